"""The catalogue, F58 and F66: what strikes a node from within, at the library's fault points."""

from __future__ import annotations

import threading
import time

import pytest
from chaos.settings import PATIENT
from scripts import Script
from servers import PROMPT, eventually

from dtimer.faultpoints import arm

pytestmark = pytest.mark.chaos

# Joins, and has itself killed as soon as the server has leased it something.
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
def killed(watch, own):
    """A process that is killed between its claim and the dispatch of it; joined, and alone."""
    with Script(own, watch.ns, _KILLED) as script:
        assert "joined" == script.hear()
        yield script
    # Nobody else may strike it off the list before a minute has passed.
    with own.client() as client:
        for incarnation, who in client.hgetall(watch.keys.nodes).items():
            if b'"killed"' in who:
                client.hdel(watch.keys.nodes, incarnation)
                client.zrem(watch.keys.alive, incarnation)


class Failing:
    """Raises in the threads of one node, at each arrival, until it is let off."""

    def __init__(self, error, thread):
        self.error = error
        self.thread = thread
        self.arrivals = []

    def __call__(self):
        if threading.current_thread().name == self.thread:
            self.arrivals.append(time.monotonic())
            raise self.error


class TestKilledAfterTheClaim:
    """F58: leased, and known to nobody."""

    @pytest.mark.fault("F58")
    def test_redelivered_after_the_lease(self, watch, killed):
        """The event comes back when its lease ends, as its second attempt, and not before."""
        id = watch.post()
        assert -9 == killed.wait()
        node = watch.node()
        watch.wait_handled(id)
        ((_, _, _, attempt, _),) = watch.handled
        assert 2 == attempt
        assert [] == node.errors

    @pytest.mark.fault("F58")
    def test_at_most_once(self, watch, killed):
        """
        With ``max_retries=0`` it is never handed out again, since it may have been started,
        and it is not silently gone: it is a dead letter that says why.
        """
        id = watch.post(max_retries=0)
        watch.excused.add(id)
        assert -9 == killed.wait()
        node = watch.node()
        eventually(lambda: node.heard("dead"))
        (letter,) = node.heard("dead")
        assert (id, "lease_lost", 1) == (letter.id, letter.reason, letter.attempt)
        assert [] == watch.handled


class TestThreads:
    """F66: what a thread of the node fails with is told, and the thread goes on."""

    @pytest.mark.fault("F66")
    @pytest.mark.parametrize(
        ("point", "thread", "error"),
        [
            ("loop.claimer", "dtimer-claimer-node", MemoryError("no more")),
            ("loop.claimer", "dtimer-claimer-node", SystemExit(3)),
            ("loop.listener", "dtimer-listener-node", SystemExit(3)),
            ("loop.hand", "dtimer-node-hand-1", SystemExit(3)),
            ("loop.herald", "dtimer-herald-node", MemoryError("no more")),
        ],
    )
    def test_one_that_keeps_failing(self, watch, point, thread, error):
        """
        It is begun again within a second, time after time; ``health()`` is not ok, and the
        error is told, once; when it fails no more the node serves as before.
        """
        node = watch.node()
        failing = Failing(error, thread)
        waiting = []
        with watch.fault(), arm(point, failing):
            if point == "loop.hand":
                waiting.append(watch.post(max_retries=1_000))
            if point == "loop.herald":
                node.timer._life._herald.announce("ready")
                node.timer._life._herald.announce("ready")
            eventually(lambda: len(failing.arrivals) > 2 or point == "loop.herald")
            eventually(lambda: len(failing.arrivals) > 1 and node.errors)
        pauses = [b - a for a, b in zip(failing.arrivals, failing.arrivals[1:], strict=False)]
        assert max(pauses) < 1 + PROMPT
        (told,) = node.errors
        assert error in (told, told.__cause__)
        watch.wait_handled(*waiting)

    @pytest.mark.fault("F66")
    @pytest.mark.parametrize(
        ("point", "error"),
        [
            ("claim.answered", KeyboardInterrupt()),
            ("claim.handed", MemoryError("no more")),
            ("handler.before", RuntimeError("odd")),
        ],
    )
    def test_one_that_fails_with_events_in_hand(self, watch, point, error):
        """
        What had been claimed is handled all the same, once: the turn is asked again, or the
        events are failed, or their lease ends.
        """
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
