"""The catalogue, F25 to F28: what somebody commands a server to do to its clients."""

from __future__ import annotations

import signal
import time

import pytest
from chaos.settings import HASTY
from fleet import Fleet
from servers import LONGEST_CALL, PROMPT, eventually

from dtimer import DTimer, OutcomeUnknown, StoreError

pytestmark = pytest.mark.chaos

LATER = 3_600_000  # ms; no test is there to see it


@pytest.mark.fault("F25")
@pytest.mark.parametrize("kind", ["WRITE", "ALL"])
def test_a_short_pause(watch, own, caller, kind):
    """A CLIENT PAUSE that is shorter than the deadlines is a delay, and nothing else."""
    watch.node(timeout=LONGEST_CALL)
    with watch.fault(silent=True):
        watch.client.execute_command("CLIENT", "PAUSE", 300, kind)
        began = time.monotonic()
        id = watch.post(0, caller)
        assert time.monotonic() - began > 0.2
        watch.wait_handled(id)


@pytest.mark.fault("F25")
@pytest.mark.parametrize("kind", ["WRITE", "ALL"])
def test_a_long_pause(watch, own, hasty, kind):
    """One that is longer is an outage; what was sent into it is done once when it ends."""
    node = watch.node(**HASTY)
    with watch.fault() as fault:
        # No command gets through one of ALL, not even the one that ends it.
        lasts = LATER if kind == "WRITE" else HASTY["timeout"] + round(1_000 * PROMPT)
        watch.client.execute_command("CLIENT", "PAUSE", lasts, kind)
        with pytest.raises(OutcomeUnknown):
            watch.in_time(watch.post, 0, hasty, id="perhaps")
        fault.felt()
        watch.client.execute_command("CLIENT", "UNPAUSE")
    assert watch.times("perhaps") <= 1
    eventually(lambda: node.timer.stats().in_flight == 0)
    assert len(watch.handled) == node.timer.stats().totals["started"]


@pytest.mark.fault("F25")
def test_a_first_call(watch, own):
    """
    A timer looks at the namespace before its first call. Where that is not answered nothing
    of the call has been sent, and it is said to have failed, not that nobody knows.
    """
    fresh = DTimer("fresh", own.url, ns=watch.ns, **HASTY)
    watch.client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    for call in (fresh.stats, lambda: fresh.post({})):
        with pytest.raises(StoreError, match="could not be reached") as caught:
            watch.in_time(call)
        assert not isinstance(caught.value, OutcomeUnknown)
    watch.client.execute_command("CLIENT", "UNPAUSE")
    assert 0 == fresh.stats().totals["posted"]
    fresh.leave()


@pytest.mark.fault("F26")
@pytest.mark.parametrize("kind", ["pubsub", "normal"])
def test_connections_are_killed(watch, own, kind):
    """
    A subscription, or a command connection, that is killed is made anew without a word,
    and a claim follows at once: what was posted in between waits for no poll.
    """
    node = watch.node(poll_interval=LATER)
    with watch.fault(silent=True):
        for _ in range(5):
            heard = node.rings
            watch.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            watch.wait_handled(watch.post())
            eventually(lambda heard=heard: node.rings > heard)
            watch.healthy()


@pytest.mark.fault("F27")
def test_a_slow_subscriber(own):
    """
    A node that is stopped while its wakes, or a stranger's flood of them, overflow the
    server's buffer, is dropped by the server, and subscribes anew when it goes on.
    """
    with (
        own.client() as client,
        Fleet(own.url, "chaos", poll_interval=LATER, timeout=LONGEST_CALL) as fleet,
    ):
        client.config_set("client-output-buffer-limit", "pubsub 32kb 16kb 1")
        fleet.start("node")
        fleet.start("poster", join=False, timeout=LONGEST_CALL)
        fleet.signal("node", signal.SIGSTOP)
        (incarnation,) = client.hkeys("dtimer:{chaos}:nodes")
        channel = b"dtimer:{chaos}:wake:" + incarnation
        eventually(lambda: not client.publish(channel, b"x" * 1_000_000))
        fleet.signal("node", signal.SIGCONT)
        for n in range(3):
            fleet.tell("poster", "post", items=[[{"n": n}, 0]])
            (id,) = fleet.next("posted").ids
            assert 1 == fleet.next("end", id=id).attempt
        eventually(lambda: client.publish(channel, b""))
        assert [] == [r.text for r in fleet.taken("error")]


@pytest.mark.fault("F28")
def test_scripts_are_forgotten(watch, own, caller):
    """SCRIPT FLUSH, again and again, is not noticed: the source is sent along once more."""
    watch.node()
    with watch.fault(silent=True):
        ids = []
        for _ in range(30):
            watch.client.script_flush()
            ids.append(watch.in_time(watch.post, 0, caller))
        watch.wait_handled(*ids)
    assert len(watch.posted) == caller.stats().totals["posted"]
