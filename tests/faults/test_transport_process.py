"""Faults F16 and F18: the process runs out of file descriptors, or is interrupted by signals."""

from __future__ import annotations

import contextlib
import errno
import re
import signal
import time

import pytest
from gated import Gated
from interrupted import Interruption, each_bytecode
from scripts import Script
from servers import LATER, close_connections, eventually

from dtimer.store.connection import sockets

pytestmark = pytest.mark.chaos


# A node in a process that reaches its limit of descriptors. It prints the errors that the node
# reports, and whether the threads of the node are still the same.
_STARVED = """
import resource, time
node = timer(poll_interval=100)
errors = []
node.on("error", lambda e: (errors.append(e), say("error", e)))
node.on("event", lambda events: say("event", events[0]["n"]))
node.join()
threads = {t.ident for t in threading.enumerate() if t.name.startswith("dtimer-")}
say("joined", threading.main_thread().native_id)
heard()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
# Open descriptors stay open. No other can be opened, even after one was closed.
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
try:
    os.open("/dev/null", os.O_RDONLY)
except OSError as e:
    say("full", e.errno)
before = time.process_time()
heard()
try:
    node.post({})
except Exception as e:
    say(type(e).__name__, e)
say("health", node.health().ok, round(time.process_time() - before, 2))
say("errors", len(errors))
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
heard()
while not node.health().ok:
    threading.Event().wait(0.01)
alive = {t.ident for t in threading.enumerate() if t.name.startswith("dtimer-")}
say("threads", threads == alive, "health", node.health().ok, "errors", len(errors))
node.leave()
"""


@pytest.mark.fault("F16")
def test_a_node_recovers_when_its_process_can_open_sockets_again(watch, own_server):
    """No thread ends, and no thread uses the CPU in a tight loop."""
    with Script(own_server, watch.ns, _STARVED) as script:
        assert script.hear().startswith("joined")
        script.tell()
        assert f"full {errno.EMFILE}" == script.hear()
        began = time.monotonic()
        close_connections(watch.client)
        assert "Too many open files" in script.hear()
        eventually(lambda: time.monotonic() > began + 0.5)
        script.tell()
        assert re.match(r"StoreError Redis at \S+ could not be reached", script.hear())
        health, ok, cpu = script.hear().split()
        assert ("health", "False") == (health, ok)
        assert float(cpu) < 0.3, "a thread runs in a tight loop"
        assert "errors 1" == script.hear()
        id = watch.post()
        # The program handles this event, so the watch sees no delivery of it.
        watch.excused.add(id)
        assert f"event {watch.posted[id]['n']}" == script.hear()
        script.tell()
        assert "threads True health True errors 1" == script.hear()
        script.end()


@contextlib.contextmanager
def alarms(handler):
    """Call *handler* on SIGALRM, which arrives every 10 ms in this block."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.fault("F18")
class TestSignals:
    """A signal arrives during a call."""

    class Alarm(BaseException):
        """Raised by the signal handler, as KeyboardInterrupt is."""

    class Late(Exception):
        """Raised by the signal handler. Could be taken for a failure of the call."""

    def raise_alarm(self):
        raise self.Alarm

    def test_a_call_interrupted_by_an_exception_closes_its_connection(self, watch):
        """If the connection were used again, the next call would read the reply to this one."""
        watch.node(handler=Gated())
        caller = watch.caller()
        ids = [caller.post({"mine": n}, LATER) for n in range(10)]
        for n in each_bytecode():
            interruption = Interruption(n, self.raise_alarm, raises=True)
            with contextlib.suppress(self.Alarm):
                interruption.during(lambda n=n: caller.peek(ids[n % 10]))
            if interruption.where is None:
                break
            following = (n + 1) % 10
            record = caller.peek(ids[following])
            assert {"mine": following} == record.event, interruption.where
        assert n > 10, "too few interruptions"
        assert len(ids) == sum(bool(caller.cancel(id)) for id in ids)

    @pytest.mark.parametrize("alarm", [Alarm, Late, TimeoutError, ConnectionError, ValueError])
    def test_a_wait_ends_with_the_exception_of_a_signal_handler(
        self, watch, proxy, proxied_caller, alarm
    ):
        """The handler wants the call to end. The next call must not read the late reply."""
        caller = proxied_caller
        ids = [caller.post({"mine": n}, LATER) for n in range(2)]
        raised = alarm("it takes too long")

        def raise_in_wait(_, frame):
            # The reply is withheld, so the signal is repeated until the call waits for it.
            if frame.f_code.co_filename == sockets.__file__:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise raised

        # Load the script: the reply to an unknown one would not be taken for another event.
        assert caller.peek(ids[0])
        proxy.blackhole()
        with alarms(raise_in_wait), pytest.raises(alarm) as caught:
            caller.peek(ids[0])
        assert caught.value is raised
        proxy.heal()
        assert {"mine": 1} == caller.peek(ids[1]).event
        assert len(ids) == sum(bool(caller.cancel(id)) for id in ids)

    def test_a_call_survives_signals_whose_handler_returns(self, watch, proxy, proxied_caller):
        """Each signal interrupts the wait for the reply (EINTR); the call must continue to wait."""
        signals = []
        with alarms(lambda *_: signals.append(1)):
            proxy.delay(60)
            id = watch.in_time(proxied_caller.post, {}, LATER)
            proxy.heal()
        assert len(signals) > 3
        assert 1 == proxied_caller.stats().totals["posted"]
        assert proxied_caller.cancel(id)
