"""Faults F58 and F66: failures inside a node, injected at the library's fault points."""

from __future__ import annotations

import threading
import time

import pytest
from chaos.settings import PATIENT
from scripts import Script
from servers import PROMPT, eventually

from dtimer.faultpoints import arm

pytestmark = pytest.mark.chaos

# Joins, and kills its own process as soon as the server has granted it a lease.
_KILLED = f"""
import signal
import redis
from dtimer.faultpoints import arm
from dtimer.store.keys import Keys

client, keys = redis.Redis.from_url(sys.argv[1]), Keys.of(sys.argv[2])
node = timer("killed", **{PATIENT!r})
node.on("event", lambda events: say("handled"))
node.join()

def kill():
    if client.hlen(keys.lease):
        os.kill(os.getpid(), signal.SIGKILL)

with arm("claim.answered", kill):
    say("joined")
    heard()
"""


@pytest.fixture
def killed(watch, own_server):
    """A process with the only node, which is killed between the claim and its dispatch."""
    with Script(own_server, watch.ns, _KILLED) as script:
        assert "joined" == script.hear()
        yield script
    # Other nodes may remove it from the roster only after a minute.
    with own_server.client() as client:
        for incarnation, who in client.hgetall(watch.keys.nodes).items():
            if b'"killed"' in who:
                client.hdel(watch.keys.nodes, incarnation)
                client.zrem(watch.keys.alive, incarnation)


class Failing:
    """
    Raises in one thread each time that the thread arrives at a fault point.

    Args:
        error: The exception to raise.
        thread: The name of the thread.
    """

    def __init__(self, error, thread):
        self.error = error
        self.thread = thread
        self.arrivals = []

    def __call__(self):
        if threading.current_thread().name == self.thread:
            self.arrivals.append(time.monotonic())
            raise self.error


@pytest.mark.fault("F58")
class TestKilledAfterTheClaim:
    """The process is killed when the server has granted a lease that no handler knows."""

    def test_the_event_is_redelivered_as_its_second_attempt(self, watch, killed):
        """The server cannot know that no handler started, so it counts the attempt."""
        id = watch.post()
        assert -9 == killed.wait()
        node = watch.node()
        watch.wait_handled(id)
        assert [2] == [handled.attempt for handled in watch.handled]
        assert [] == node.errors

    def test_an_event_with_max_retries_0_becomes_a_dead_letter(self, watch, killed):
        """A handler may have started, so the event must not be delivered again."""
        id = watch.post(max_retries=0)
        # The killed node starts no handler, and no other node may.
        watch.excused.add(id)
        assert -9 == killed.wait()
        node = watch.node()
        eventually(lambda: node.heard("dead"))
        (letter,) = node.heard("dead")
        assert (id, "lease_lost", 1) == (letter.id, letter.reason, letter.attempt)
        assert [] == watch.handled


@pytest.mark.fault("F66")
class TestThreads:
    """An exception in a thread of the node is reported, and the thread starts again."""

    @pytest.mark.parametrize(
        ("point", "thread", "error"),
        [
            ("loop.claimer", "dtimer-claimer-node", MemoryError("no more")),
            ("loop.claimer", "dtimer-claimer-node", SystemExit(3)),
            ("loop.listener", "dtimer-listener-node", SystemExit(3)),
            ("loop.handler", "dtimer-node-handler-1", SystemExit(3)),
            ("loop.callbacks", "dtimer-callbacks-node", MemoryError("no more")),
        ],
    )
    def test_a_failing_thread_starts_again_within_a_second(self, watch, point, thread, error):
        """The error is reported once, and ``health()`` is not ok meanwhile."""
        node = watch.node()
        failing = Failing(error, thread)
        waiting = []
        with watch.fault(), arm(point, failing):
            if point == "loop.handler":
                waiting.append(watch.post(max_retries=1_000))
            if point == "loop.callbacks":
                node.timer._node._callbacks.announce("ready")
                node.timer._node._callbacks.announce("ready")
            eventually(lambda: len(failing.arrivals) > 2 or point == "loop.callbacks")
            eventually(lambda: len(failing.arrivals) > 1 and node.errors)
        pauses = [b - a for a, b in zip(failing.arrivals, failing.arrivals[1:], strict=False)]
        assert max(pauses) < 1 + PROMPT
        (reported,) = node.errors
        assert error in (reported, reported.__cause__)
        watch.wait_handled(*waiting)

    @pytest.mark.parametrize(
        ("point", "error"),
        [
            ("claim.answered", KeyboardInterrupt()),
            ("claim.handed", MemoryError("no more")),
            ("handler.before", RuntimeError("odd")),
        ],
    )
    def test_claimed_events_are_handled_although_a_thread_fails(self, watch, point, error):
        """The claim is sent again, the events are retried, or their leases end."""
        node = watch.node()
        struck = []

        def strike():
            if not struck:
                struck.append(point)
                raise error

        with watch.fault(degraded=False), arm(point, strike):
            ids = [watch.post() for _ in range(3)]
            watch.wait_handled(*ids)
        assert [point] == struck
        assert 1 == sum(error in (e, e.__cause__) for e in node.errors), node.said
