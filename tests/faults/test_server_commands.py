"""Faults F25 to F28: commands that an operator sends to a server and that affect its clients."""

from __future__ import annotations

import signal
import time

import pytest
from chaos.settings import HASTY
from fleet import Fleet
from servers import LATER, LONGEST_CALL, PROMPT, eventually

from dtimer import OutcomeUnknown
from faults.calls import definite_failure, hurried

pytestmark = pytest.mark.chaos


@pytest.mark.fault("F25")
@pytest.mark.parametrize("kind", ["WRITE", "ALL"])
def test_a_pause_shorter_than_the_deadlines_only_delays(watch, caller, kind):
    """Operators use a short CLIENT PAUSE for failovers. It must not cause errors."""
    watch.node(timeout=LONGEST_CALL)
    with watch.fault(silent=True):
        watch.client.execute_command("CLIENT", "PAUSE", 300, kind)
        began = time.monotonic()
        id = watch.post(0, caller)
        assert time.monotonic() - began > 0.2
        watch.wait_handled(id)


@pytest.mark.fault("F25")
@pytest.mark.parametrize("kind", ["WRITE", "ALL"])
def test_a_post_sent_into_a_long_pause_takes_effect_at_most_once(watch, hasty_caller, kind):
    """A CLIENT PAUSE longer than the deadlines is an outage: the outcome of the post is unknown."""
    watch.node()
    with watch.fault() as fault:
        # A pause of ALL also blocks the command that would end it, so it must end by itself.
        lasts = LATER if kind == "WRITE" else HASTY["timeout"] + round(1_000 * PROMPT)
        watch.client.execute_command("CLIENT", "PAUSE", lasts, kind)
        with pytest.raises(OutcomeUnknown):
            watch.in_time(watch.post, 0, hasty_caller, id="perhaps")
        fault.felt()
        watch.client.execute_command("CLIENT", "UNPAUSE")
    assert watch.times("perhaps") <= 1
    assert watch.claims() == len(watch.handled)


@pytest.mark.fault("F25")
def test_a_first_call_fails_definitely_if_the_namespace_cannot_be_opened(watch):
    """A timer opens the namespace first, so the call itself has not been sent."""
    timer = watch.caller()
    watch.client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    for call in (timer.stats, lambda: timer.post({})):
        with hurried(timer), definite_failure("could not be reached"):
            watch.in_time(call)
    watch.client.execute_command("CLIENT", "UNPAUSE")
    assert 0 == timer.stats().totals["posted"]


@pytest.mark.fault("F26")
@pytest.mark.parametrize("kind", ["pubsub", "normal"])
def test_a_killed_connection_is_replaced_silently_and_followed_by_a_claim(watch, kind):
    """An event posted while the subscription was down would otherwise wait for the next poll."""
    node = watch.node(poll_interval=LATER)
    with watch.fault(silent=True):
        for _ in range(5):
            rings_before = node.rings
            watch.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            watch.wait_handled(watch.post())
            if kind == "pubsub":
                # Only a new subscription is sure to ring: a claim that is sent again because its
                # connection was killed may find the event, and then no wake is published.
                eventually(lambda rings_before=rings_before: node.rings > rings_before)
            watch.healthy()


@pytest.mark.fault("F27")
def test_a_node_dropped_as_a_slow_subscriber_subscribes_again(own_server):
    """Redis drops a subscriber whose output buffer overflows, here of a stopped process."""
    with (
        own_server.client() as client,
        Fleet(own_server.url, "chaos", poll_interval=LATER, timeout=LONGEST_CALL) as fleet,
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
        assert [] == [r.text for r in fleet.reported("error")]


@pytest.mark.fault("F28")
def test_a_script_flush_goes_unnoticed(watch, caller):
    """A script that the server no longer knows is sent again with its source."""
    watch.node()
    with watch.fault(silent=True):
        ids = []
        for _ in range(30):
            watch.client.script_flush()
            ids.append(watch.in_time(watch.post, 0, caller))
        watch.wait_handled(*ids)
    assert len(watch.posted) == caller.stats().totals["posted"]
