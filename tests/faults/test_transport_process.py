"""Faults F16 and F18: the process runs out of file descriptors, or is interrupted by signals."""

from __future__ import annotations

import contextlib
import errno
import re
import signal
import time

import pytest
from interrupted import Interruption, each_bytecode
from scripts import Script
from servers import LATER, LONGEST_CALL, close_connections, eventually

from dtimer import DTimer
from dtimer.store.connection import sockets
from faults.gated_handler import GatedHandler

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
def test_a_node_recovers_when_its_process_can_open_sockets_again(watch, own):
    """
    Without descriptors the node cannot connect. It reports that once, no thread ends, and no
    thread uses the CPU in a tight loop.
    """
    with Script(own, watch.ns, _STARVED) as script:
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
        watch.excused.add(id)
        assert f"event {watch.posted[id]['n']}" == script.hear()
        script.tell()
        assert "threads True health True errors 1" == script.hear()
        script.end()


class TestSignals:
    """F18: a signal arrives during a call."""

    class Alarm(BaseException):
        """Raised by the signal handler, as KeyboardInterrupt is."""

    class Late(Exception):
        """Raised by the signal handler. Could be taken for a failure of the call."""

    def ring(self):
        raise self.Alarm

    @pytest.mark.fault("F18")
    def test_a_call_interrupted_by_an_exception_closes_its_connection(self, watch, own):
        """
        The exception of the signal handler passes through the call. If the connection were used
        again, the next call would read the reply to this one.
        """
        watch.node(handler=GatedHandler())
        caller = DTimer("caller", own.url, ns=watch.ns, timeout=LONGEST_CALL)
        ids = [caller.post({"mine": n}, LATER) for n in range(10)]
        for n in each_bytecode():
            interruption = Interruption(n, self.ring, raises=True)
            with contextlib.suppress(self.Alarm):
                interruption.during(lambda n=n: caller.peek(ids[n % 10]))
            if interruption.where is None:
                break
            following = (n + 1) % 10
            record = caller.peek(ids[following])
            assert {"mine": following} == record.event, interruption.where
        assert n > 10, "too few interruptions"
        assert len(ids) == sum(bool(caller.cancel(id)) for id in ids)
        caller.leave()

    @pytest.mark.fault("F18")
    @pytest.mark.parametrize("alarm", [Alarm, Late, TimeoutError, ConnectionError, ValueError])
    def test_a_wait_ends_with_the_exception_of_a_signal_handler(self, watch, own, proxy, alarm):
        """
        A handler that raises wants the call to end, and not another attempt until its deadline.
        The reply arrives after the exception, and the next call must not read it.
        """
        caller = DTimer("caller", proxy.url, ns=watch.ns, timeout=LONGEST_CALL)
        ids = [caller.post({"mine": n}, LATER) for n in range(2)]

        wish = alarm("it takes too long")

        def ring(_, frame):
            # The reply is withheld, so the signal is repeated until the call waits for it.
            if frame.f_code.co_filename == sockets.__file__:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise wish

        # Load the script: the reply to an unknown one would not be taken for another event.
        assert caller.peek(ids[0])
        before = signal.signal(signal.SIGALRM, ring)
        proxy.blackhole()
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            with pytest.raises(alarm) as caught:
                caller.peek(ids[0])
            assert caught.value is wish
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        proxy.heal()
        assert {"mine": 1} == caller.peek(ids[1]).event
        assert len(ids) == sum(bool(caller.cancel(id)) for id in ids)
        caller.leave()

    @pytest.mark.fault("F18")
    def test_a_call_survives_signals_whose_handler_returns(self, watch, own, proxy):
        """Each signal interrupts the wait for the reply (EINTR); the call must continue to wait."""
        caller = DTimer("caller", proxy.url, ns=watch.ns, timeout=LONGEST_CALL)
        caller.stats()
        heard = []
        before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            proxy.delay(60)
            id = watch.in_time(caller.post, {}, LATER)
            proxy.heal()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert len(heard) > 3
        assert 1 == caller.stats().totals["posted"]
        assert caller.cancel(id)
        caller.leave()
