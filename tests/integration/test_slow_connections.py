"""What a script hands to a node whose connection is too slow for all that is due."""

from __future__ import annotations

import pytest
from peers import LEASE, Peer, post

from dtimer.model.claims import Result, TurnRequest
from dtimer.model.event import Cancelled

pytestmark = pytest.mark.fault("F108")

#: Bytes of a large payload, and those of the head of a body.
LARGE, HEAD = 400_000, 3


def large(store, id, size=LARGE):
    post(store, id, payload="x" * size)


def ids(claims):
    return [claim.id for claim in claims]


class TestClaim:
    """A claim is bounded by its bytes."""

    def test_takes_as_many_as_fit_into_a_million_bytes(self, store, node):
        """A reply that takes long to send takes long to arrive, and keeps the server."""
        for id in "abcd":
            large(store, id)
        assert ["a", "b"] == ids(node.claim(9))
        assert ["c", "d"] == ids(node.claim(9))

    def test_always_takes_the_first(self, store, node):
        """An event that is larger than any bound is handed out alone."""
        large(store, "a", 3_000_000)
        post(store, "b")
        assert ["a"] == ids(node.claim(9))
        assert ["b"] == ids(node.claim(9))

    def test_asks_again_at_once_for_what_did_not_fit(self, store, node):
        """What is due and was left only for its size is not left until the next wake."""
        for id in "abc":
            large(store, id)
        assert 0 == node.turn(9).wait_us

    def test_takes_no_more_bytes_than_it_is_asked_for(self, store, node):
        """A node that knows its connection to be slow is handed less, and at least one event."""
        for id in "abcd":
            large(store, id, 1_000)
        assert ["a", "b"] == ids(node.claim(9, most=2 * (1_000 + HEAD)))
        assert ["c"] == ids(node.claim(9, most=10))

    def test_takes_no_more_than_a_million_bytes_if_it_is_asked_for_more(self, store, node):
        """A node that received half of a huge event asks for half of that, which is too much."""
        for id in "abc":
            large(store, id)
        assert ["a", "b"] == ids(node.claim(9, most=10_000_000))


class TestAskedAgain:
    """A turn whose reply broke off is answered with less, and the rest is released."""

    @pytest.fixture
    def claimed(self, store, node):
        """Three events that the node has claimed and never received."""
        for id in "abc":
            large(store, id, 1_000)
        assert ["a", "b", "c"] == ids(node.claim(9))

    @pytest.mark.usefixtures("claimed")
    def test_releases_what_does_not_fit(self, store, node):
        """Other nodes have it at once, on its first attempt, and nothing starts twice."""
        again = node.turn(9, again=True, most=10)
        assert ["a"] == ids(again.claims)
        assert 0 == again.wait_us
        other = Peer(store, "other").claim(9)
        assert [("b", 1), ("c", 1)] == [(c.id, c.attempt) for c in other]
        assert Result.DONE is node.confirm(again.claims[0])
        assert 2 == store.stats().totals["released"]

    @pytest.mark.usefixtures("claimed")
    def test_keeps_what_fits(self, node):
        """What can be received is not given away."""
        assert ["a", "b"] == ids(node.claim(9, again=True, most=2 * (1_000 + HEAD)))
        assert ["a", "b"] == ids(node.claim(9, again=True, most=2 * (1_000 + HEAD)))

    @pytest.mark.usefixtures("claimed")
    def test_releases_all_when_even_the_first_does_not_fit(self, store, node):
        """An event that is too large for one node is not kept from the others for a lease."""
        assert [] == node.claim(9, again=True, most=10, strict=True)
        assert ["a", "b", "c"] == ids(Peer(store, "other").claim(9))

    @pytest.mark.usefixtures("claimed")
    def test_wakes_another_node_for_it(self, store, node, now):
        """A node that waits is told, and one of those that were released is kept for it."""
        other = Peer(store, "other")
        other.turn()
        now.tick(1)
        node.turn(9, again=True, most=10, strict=True)
        assert ["a", "b"] == ids(node.claim(9))
        assert ["c"] == ids(other.claim(9))

    @pytest.mark.usefixtures("claimed")
    def test_releases_nothing_when_it_was_overtaken(self, store, node):
        """A try that arrives after a later one was answered says nothing of what was received."""
        assert ["a", "b", "c"] == ids(node.claim(9, again=True))
        late = TurnRequest(node.seq, 9, True, False, [], 0, 0, 10, True)
        assert [] == list(store.turn(node.name, late, LEASE * 1000).claims)
        assert [] == Peer(store, "other").claim(9)

    @pytest.mark.usefixtures("claimed")
    def test_starts_nothing_that_was_cancelled(self, store, node, now):
        """What was cancelled and does not fit is never handed out again."""
        assert Cancelled.IN_FLIGHT is store.cancel("c")
        assert ["a"] == ids(node.claim(9, again=True, most=10))
        now.tick(LEASE + 1)
        assert "c" not in ids(Peer(store, "other").claim(9))


class TestStrict:
    """A node passes over what is too large for it, and has what comes after that."""

    @pytest.fixture(autouse=True)
    def due(self, store, node):
        """One event that is too large for the node, and two that are not."""
        large(store, "a", 1_000)
        post(store, "b")
        post(store, "c")

    @pytest.mark.parametrize("limit", [1, 9])
    def test_takes_what_comes_after_it(self, store, node, limit):
        """An event that cannot be received does not stop those behind it."""
        found = ids(node.claim(limit, most=500, strict=True))
        found += ids(node.claim(limit, most=500, strict=True))
        assert ["b", "c"] == found
        assert ["a"] == ids(Peer(store, "other").claim(9))

    @pytest.mark.parametrize("hears", [True, False])
    def test_does_not_spin(self, node, hears):
        """While nothing that fits is due, it asks every 50 ms and not at once."""
        node.hears = hears
        node.claim(9, most=500, strict=True)
        assert 50_000 == node.turn(9, most=500, strict=True).wait_us

    def test_calls_others(self, store, node):
        """A node that waits is told of what is passed over."""
        other = Peer(store, "other")
        store.pause(on=True)
        other.turn()
        store.pause(on=False)
        node.claim(9, most=500, strict=True)
        node.turn(9, most=500, strict=True)
        assert [] == node.claim(1), "it is kept for the one that was told"
        assert ["a"] == ids(other.claim(1))
