"""Look-ahead: which events one claim takes before they are due, with time moved by the test."""

from __future__ import annotations

import json
import queue
import time

import pytest
from peers import LEASE, Peer, definition, post
from servers import PATIENCE, eventually

from dtimer import DTimer
from dtimer.model.claims import Settlement, Verdict
from dtimer.store.format import Entry

# In ms. AHEAD: how long before an event is due a claim may take the event.
# LEAD: how long before an event is due the node on duty claims.
AHEAD = 20
LEAD = AHEAD / 2


@pytest.fixture
def node(store):
    return Peer(store, "a")


def ids(reply):
    return [claim.id for claim in reply.claims]


def declare_tick(store, start_us, **options):
    """Declare a schedule that occurs every second, from *start_us* on."""
    spec = definition("tick", start=start_us / 1000, max_retries=0, **options)
    assert "new" == store.schedules.declare(spec)


class TestLookAheadClaim:
    """Which events a claim takes before they are due."""

    def test_takes_events_up_to_exactly_the_look_ahead(self, store, node, now):
        """A claim takes the events that are due within its look-ahead, to the microsecond."""
        post(store, "now")
        post(store, "soon", AHEAD)
        post(store, "later", AHEAD + 0.001)
        reply = node.claim_reply(5, ahead=AHEAD)
        assert ["now", "soon"] == ids(reply)
        assert [0, AHEAD * 1000] == [c.due_us - c.claimed_us for c in reply.claims]
        assert [] == ids(node.claim_reply(5, ahead=AHEAD))
        now.tick(0.001)
        assert ["later"] == ids(node.claim_reply(5, ahead=AHEAD))

    def test_one_free_thread_takes_one_event(self, store, node):
        """The reply says when the second event is due."""
        post(store, "one", 5)
        post(store, "two", 40)
        reply = node.claim_reply(1, ahead=AHEAD)
        assert (["one"], 40_000) == (ids(reply), reply.wait_us)

    def test_takes_nothing_early_unless_asked(self, store, node):
        """Without a look-ahead, a claim takes no event before it is due."""
        post(store, "soon", 1)
        assert [] == ids(node.claim_reply(5))

    def test_does_not_take_over_a_lease_early(self, store, node, now):
        """A claim takes over an expired lease, but not one microsecond before it expires."""
        post(store, "tea")
        node.claim()
        now.tick(LEASE - 0.001)
        reply = node.claim_reply(1, ahead=AHEAD)
        assert ([], 1) == (ids(reply), reply.wait_us)
        now.tick(0.001)
        assert ["tea"] == ids(node.claim_reply(1, ahead=AHEAD))

    def test_does_not_take_an_occurrence_early(self, store, node, now):
        """Misfire and overlap are decided when the occurrence is due."""
        declare_tick(store, now.us + 1_000_000)
        now.tick(1_000 - AHEAD / 2)
        reply = node.claim_reply(1, ahead=AHEAD)
        assert ([], 1000 * AHEAD / 2) == (ids(reply), reply.wait_us)
        now.tick(AHEAD / 2)
        assert 1 == len(node.claim_reply(1, ahead=AHEAD).claims)

    def test_leaves_an_event_that_has_expired_when_it_is_due(self, store, node, now):
        """Such an event never starts. It becomes a dead letter when it is due, not earlier."""
        # Due in 10 ms, and expired from the same moment on. The expiry is in µs.
        post(store, "tea", 10, expires="+10000")
        reply = node.claim_reply(1, ahead=AHEAD)
        assert ([], []) == (ids(reply), reply.buried)
        now.tick(10)
        assert [("tea", "expired")] == node.claim_reply(1, ahead=AHEAD).buried

    def test_leaves_an_event_with_a_users_id(self, store, node, now):
        """Until the event is due, the user may replace, reschedule or cancel it."""
        # The mark `n` says that the user chose the id (dtimer/store/format.py).
        store.post([Entry("tea", "+10000", ",3,n|{}")], "replace")
        reply = node.claim_reply(1, ahead=AHEAD)
        assert ([], 10_000) == (ids(reply), reply.wait_us)
        now.tick(10)
        assert ["tea"] == ids(node.claim_reply(1, ahead=AHEAD))

    def test_tells_generated_ids_from_users_ids(self, client, namespace, now, node):
        """The id alone does not show who chose it."""
        timer = DTimer("poster", client, ns=namespace, now=lambda: now.us / 1000)
        timer.post({}, 10, id="tea")
        generated = timer.post({}, 10)
        assert [generated] == ids(node.claim_reply(5, ahead=AHEAD))

    def test_buries_a_corrupt_event_only_when_it_is_due(self, store, node, client, now):
        """A corrupt event becomes a dead letter when it is due; until then posts may replace it."""
        post(store, "tea", 10)
        client.hset(store.keys.body, "tea", "what")
        assert ([], []) == (ids(reply := node.claim_reply(1, ahead=AHEAD)), reply.buried)
        now.tick(10)
        assert [("tea", "corrupt")] == node.claim_reply(1, ahead=AHEAD).buried

    def test_takes_nothing_while_paused(self, store, node):
        """A claim takes nothing early in a paused namespace."""
        post(store, "tea", 10)
        store.pause(on=True)
        assert [] == ids(node.claim_reply(1, ahead=AHEAD))

    def test_an_occurrence_that_replaces_an_event_is_delivered_with_its_own_payload(
        self, store, node, now
    ):
        """
        A claim may create an occurrence whose id a due event already has. The occurrence then
        replaces that event.
        """
        declare_tick(store, now.us + 1_000_000, payload='{"old":1}')
        assert f"tick@{now.us}" == store.schedules.run_now("tick")
        store.schedules.remove("tick")
        declare_tick(store, now.us - 5_000_000, payload='{"new":1}', misfire="skip")
        (claim,) = node.claim(3)
        assert (f"tick@{now.us}", {"new": 1}) == (claim.id, json.loads(claim.payload))


class TestLookAheadQueue:
    """Events that a node claimed early and keeps until they are due."""

    @pytest.mark.parametrize("part", [0.6, 3])
    def test_a_replaced_event_is_not_started(self, make, part):
        """
        The new event starts once, when it is due itself. One new event is due before the old one
        would have been, the other after.
        """
        timer = make(look_ahead=1_000, poll_interval=60_000)
        caught = queue.SimpleQueue()
        timer.on("event", lambda events: caught.put((events[0]["n"], time.monotonic())))
        errors = []
        timer.on("error", errors.append)
        timer.join()
        old, delay, replaced = 0, 500, 0
        while replaced < 3:
            id = timer.post({"n": old}, delay)
            eventually(lambda: timer.stats().in_flight or not caught.empty())
            timer.post({"n": old + 1}, delay * part, id=id)
            posted = time.monotonic()
            n, began = caught.get(timeout=PATIENCE)
            if n == old:
                # The machine is so slow that the old event was due before the post.
                assert began < posted
                n, _ = caught.get(timeout=PATIENCE)
                delay = 1_000
            else:
                replaced += 1
            assert old + 1 == n
            old += 2
        assert caught.empty()
        assert [] == errors


class TestLookAheadOnDuty:
    """Which node is on duty if nodes claim early."""

    def test_the_node_on_duty_claims_half_of_its_look_ahead_early(self, store, node, now):
        """The reply tells the node when to claim, and that claim takes the event."""
        post(store, "tea", 1_000)
        reply = node.claim_reply(1, ahead=AHEAD)
        assert 1000 * (1_000 - LEAD) == reply.wait_us
        now.tick(1_000 - LEAD)
        assert ["tea"] == ids(node.claim_reply(1, ahead=AHEAD))

    def test_a_lone_node_stays_on_duty_after_an_early_claim(self, store, node, client):
        """If no other node is there, the node must hear of earlier events."""
        post(store, "tea", AHEAD)
        assert ["tea"] == ids(node.claim_reply(1, ahead=AHEAD))
        assert [b"a"] == client.zrange(store.keys.roster, 0, -1)
        post(store, "urgent")
        assert ["urgent"] == ids(node.claim_reply(1))

    def test_another_free_node_goes_on_duty_after_an_early_claim(self, store, node, client):
        """If another node has a free thread, that node goes on duty."""
        node.claim_reply()
        Peer(store, "b").claim_reply()
        post(store, "tea", AHEAD)
        assert ["tea"] == ids(node.claim_reply(1, ahead=AHEAD))
        assert [b"b"] == client.zrange(store.keys.roster, 0, -1)

    def test_four_nodes_share_four_events_before_they_are_due(self, store, node):
        """With as many events as nodes, each node claims one, so all start on time."""
        others = [Peer(store, name) for name in "bcd"]
        for peer in (node, *others):
            peer.claim_reply()
        for i in range(4):
            post(store, f"ev-{i}", AHEAD)
        assert [["ev-0"], ["ev-1"], ["ev-2"], ["ev-3"]] == [
            ids(peer.claim_reply(1, ahead=AHEAD)) for peer in (node, *others)
        ]

    def test_an_event_released_early_keeps_its_due_time_and_attempts(self, store, node, now):
        """The release is not an attempt, and the event is not early on another node."""
        post(store, "tea", AHEAD)
        (claim,) = node.claim_reply(1, ahead=AHEAD).claims
        node.claim_reply(0, Settlement(claim.id, claim.token, Verdict.RELEASE))
        assert [] == node.claim()
        now.tick(AHEAD)
        (released,) = node.claim()
        assert (1, claim.due_us) == (released.attempt, released.due_us)
