"""Claims of a node whose connection is too slow for all due events."""

from __future__ import annotations

import pytest
from peers import LEASE, Peer, post

from dtimer.model.claims import ClaimRequest, Outcome
from dtimer.model.records import Cancelled

pytestmark = pytest.mark.fault("F108")

#: The bytes of a large payload, and of the head of a record.
LARGE, HEAD = 400_000, 3


def large(store, id, size=LARGE):
    post(store, id, payload="x" * size)


def ids(claims):
    return [claim.id for claim in claims]


class TestClaim:
    """A claim is limited in bytes."""

    def test_takes_as_many_as_fit_into_a_million_bytes(self, store, node):
        """A large reply takes long to arrive, and keeps the server busy."""
        for id in "abcd":
            large(store, id)
        assert ["a", "b"] == ids(node.claim(9))
        assert ["c", "d"] == ids(node.claim(9))

    def test_always_takes_the_first(self, store, node):
        """An event larger than any limit is delivered alone."""
        large(store, "a", 3_000_000)
        post(store, "b")
        assert ["a"] == ids(node.claim(9))
        assert ["b"] == ids(node.claim(9))

    def test_asks_for_the_next_claim_at_once_if_events_did_not_fit(self, store, node):
        """A due event that did not fit into a claim must not wait for a wake."""
        for id in "abc":
            large(store, id)
        assert 0 == node.claim_reply(9).wait_us

    def test_takes_no_more_bytes_than_requested(self, store, node):
        """A node that knows its connection to be slow gets fewer bytes, but at least one event."""
        for id in "abcd":
            large(store, id, 1_000)
        assert ["a", "b"] == ids(node.claim(9, most=2 * (1_000 + HEAD)))
        assert ["c"] == ids(node.claim(9, most=10))

    def test_takes_no_more_than_a_million_bytes_if_it_is_asked_for_more(self, store, node):
        """A node that received half of a huge event asks for half of that, which is too much."""
        for id in "abc":
            large(store, id)
        assert ["a", "b"] == ids(node.claim(9, most=10_000_000))


class TestRepeatedClaim:
    """If a reply broke off, the repeated claim returns fewer events and releases the others."""

    @pytest.fixture(autouse=True)
    def claimed(self, store, node):
        """Three events that the node has claimed, and whose reply never arrived."""
        for id in "abc":
            large(store, id, 1_000)
        assert ["a", "b", "c"] == ids(node.claim(9))

    def test_releases_what_does_not_fit(self, store, node):
        """Other nodes can claim the released events at once, as first attempts."""
        repetition = node.claim_reply(9, again=True, most=10)
        assert (["a"], 0) == (ids(repetition.claims), repetition.wait_us)
        claims = Peer(store, "other").claim(9)
        assert [("b", 1), ("c", 1)] == [(c.id, c.attempt) for c in claims]
        assert Outcome.DONE is node.confirm(repetition.claims[0])
        assert 2 == store.stats().totals["released"]

    def test_keeps_what_fits(self, node):
        """Events that fit stay claimed."""
        assert ["a", "b"] == ids(node.claim(9, again=True, most=2 * (1_000 + HEAD)))
        assert ["a", "b"] == ids(node.claim(9, again=True, most=2 * (1_000 + HEAD)))

    def test_releases_all_if_the_first_does_not_fit(self, store, node):
        """An event too large for one node is not withheld from the others for a whole lease."""
        assert [] == node.claim(9, again=True, most=10, strict=True)
        assert ["a", "b", "c"] == ids(Peer(store, "other").claim(9))

    def test_wakes_another_node(self, store, node, now):
        """A waiting node is woken, and one of the released events is reserved for it."""
        other_node = Peer(store, "other")
        other_node.claim_reply()
        now.tick(1)
        node.claim_reply(9, again=True, most=10, strict=True)
        assert ["a", "b"] == ids(node.claim(9))
        assert ["c"] == ids(other_node.claim(9))

    def test_releases_nothing_if_it_was_overtaken(self, store, node):
        """A repetition that arrives late says nothing about what the node received."""
        assert ["a", "b", "c"] == ids(node.claim(9, again=True))
        overtaken = ClaimRequest(node.seq, 9, True, False, [], 0, 0, 10, True)
        reply = store.claims.start(node.name, overtaken, LEASE * 1000)(read_late=False)
        assert [] == list(reply.claims)
        assert [] == Peer(store, "other").claim(9)

    def test_a_cancelled_event_is_not_delivered_again(self, store, node, now):
        """An event that was cancelled and does not fit is never delivered again."""
        assert Cancelled.IN_FLIGHT is store.cancel("c")
        assert ["a"] == ids(node.claim(9, again=True, most=10))
        now.tick(LEASE + 1)
        assert "c" not in ids(Peer(store, "other").claim(9))


class TestStrict:
    """A node skips an event that is too large for it, and gets the events behind it."""

    @pytest.fixture(autouse=True)
    def due(self, store, node):
        """An event that is too large for the node, and two that fit."""
        large(store, "a", 1_000)
        post(store, "b")
        post(store, "c")

    @pytest.mark.parametrize("limit", [1, 9])
    def test_takes_the_events_behind_a_large_event(self, store, node, limit):
        """An event that cannot be received does not block the events behind it."""
        found = ids(node.claim(limit, most=500, strict=True))
        found += ids(node.claim(limit, most=500, strict=True))
        assert ["b", "c"] == found
        assert ["a"] == ids(Peer(store, "other").claim(9))

    def test_leaves_one_event_to_each_node_that_was_woken(self, store, node, now):
        """The woken node must not find that a slow one has taken everything, as in any claim."""
        other_node = Peer(store, "other")
        while claims := other_node.claim(9):
            for claim in claims:
                other_node.confirm(claim)
        now.tick(1_000)
        other_node.claim_reply()
        for id in "def":
            post(store, id)
        assert ["d", "e"] == ids(node.claim(9, most=500, strict=True))
        assert ["f"] == ids(other_node.claim(9))

    @pytest.mark.parametrize("hears", [True, False])
    def test_waits_between_claims_that_find_nothing(self, node, hears):
        """While no due event fits, the node claims every 50 ms and not continuously."""
        node.hears = hears
        node.claim(9, most=500, strict=True)
        assert 50_000 == node.claim_reply(9, most=500, strict=True).wait_us

    def test_wakes_another_node_for_a_skipped_event(self, store, node):
        """A waiting node is woken for an event that was skipped."""
        other_node = Peer(store, "other")
        store.pause(on=True)
        other_node.claim_reply()
        store.pause(on=False)
        node.claim(9, most=500, strict=True)
        node.claim_reply(9, most=500, strict=True)
        assert [] == node.claim(1), "the event is reserved for the woken node"
        assert ["a"] == ids(other_node.claim(1))
