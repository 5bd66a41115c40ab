"""The catalogue, F16 and F18: the process itself is in the way of its connections."""

from __future__ import annotations

import errno
import random
import re
import signal
import statistics
import time

import pytest
from scripts import Script
from servers import LONGEST_CALL, eventually

from dtimer import DTimer
from faults.held import Held

pytestmark = pytest.mark.chaos

LATER = 3_600_000  # ms; no test is there to see it


# A node in a process that has all the descriptors it may have. Its word for word: what was
# told, and whether its threads are those that they were.
_STARVED = """
import resource, time
node = timer(poll_interval=100)
told = []
node.on("error", lambda e: (told.append(e), say("error", e)))
node.on("event", lambda events: say("event", events[0]["n"]))
node.join()
threads = {t.ident for t in threading.enumerate() if t.name.startswith("dtimer-")}
say("joined", threading.main_thread().native_id)
heard()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
# What is open stays open, and nothing else can be, though a descriptor be closed before.
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
say("told", len(told))
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
heard()
while not node.health().ok:
    threading.Event().wait(0.01)
alive = {t.ident for t in threading.enumerate() if t.name.startswith("dtimer-")}
say("threads", threads == alive, "health", node.health().ok, "told", len(told))
node.leave()
"""


@pytest.mark.fault("F16")
def test_no_more_descriptors(watch, own):
    """
    A process that can open no more sockets is a process without a server: told of once, no
    thread ends over it, and when there are descriptors again the node goes on.
    """
    with Script(own, watch.ns, _STARVED) as script:
        assert script.hear().startswith("joined")
        script.tell()
        assert f"full {errno.EMFILE}" == script.hear()
        began = time.monotonic()
        # The subscription last: with it alone gone the node would say that it is deaf.
        for kind in ("normal", "pubsub"):
            watch.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        assert "Too many open files" in script.hear()
        eventually(lambda: time.monotonic() > began + 0.5)
        script.tell()
        assert re.match(r"StoreError Redis at \S+ could not be reached", script.hear())
        health, ok, cpu = script.hear().split()
        assert ("health", "False") == (health, ok)
        assert float(cpu) < 0.3, "it spins"
        assert "told 1" == script.hear()
        id = watch.post()
        watch.excused.add(id)
        assert f"event {watch.posted[id]['n']}" == script.hear()
        script.tell()
        assert "threads True health True told 1" == script.hear()
        script.end()


class TestSignals:
    """A handler of a signal that raises, in the midst of a call."""

    class Alarm(Exception):
        """Raised by the handler of a signal."""

    @pytest.fixture
    def seed(self):
        """Says how to see the same again."""
        seed = random.randrange(2**32)
        print(f"the seed was {seed}")  # noqa: T201 - shown where the test fails
        return seed

    @pytest.mark.fault("F18")
    def test_one_that_raises(self, watch, own, seed):
        """
        A call that a signal's handler breaks off ends with what that raised, and its
        connection with it: no later call reads a reply that was another's.
        """
        watch.node(handler=Held())
        caller = DTimer("caller", own.url, ns=watch.ns)
        ids = [caller.post({"mine": n}, LATER) for n in range(10)]
        chance = random.Random(seed)

        def ring(*_):
            raise self.Alarm

        # Machines differ: in the midst of a call is a part of what one takes here.
        # The median, since on a busy machine one of them takes as long as all others.
        took = []
        for _ in range(50):
            began = time.perf_counter()
            caller.peek(ids[0])
            took.append(time.perf_counter() - began)
        usual = statistics.median(took)
        before = signal.signal(signal.SIGALRM, ring)
        broken = 0
        try:
            for round in range(300):
                n = round % len(ids)
                try:
                    signal.setitimer(signal.ITIMER_REAL, usual * chance.uniform(0.1, 1.2))
                    record = caller.peek(ids[n])
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except self.Alarm:
                    broken += 1
                    record = caller.peek(ids[n])
                assert {"mine": n} == record.event
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert broken > 10
        assert len(ids) == sum(bool(caller.cancel(id)) for id in ids)
        caller.leave()

    @pytest.mark.fault("F18")
    def test_one_that_returns(self, watch, own, proxy):
        """A call during which signals come and go waits on, and is answered."""
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
