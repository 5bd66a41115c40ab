"""
Nodes that lag: their waits end late, so the server prefers other nodes for duty.

A node says so with each claim. Time is moved by the test.
"""

from __future__ import annotations

import pytest
from peers import Peer, post

from dtimer.model.claims import Settlement, Verdict
from dtimer.store.format import Entry

#: The time in ms within which a woken node must claim, as in the Lua part that wakes a node.
GRACE = 50
#: How far ahead of its due time a claim takes an event, in ms.
AHEAD = 20


@pytest.fixture
def peers(store):
    """Four registered nodes. None has claimed."""
    return {name: Peer(store, name) for name in "abcd"}


@pytest.fixture
def claims(peers, now):
    """Have nodes claim, one ms after each other; ``a~`` means that the node a lags."""

    def claim_all(text):
        for word in text.split():
            peer = peers[word[0]]
            peer.lags = word.endswith("~")
            reply = peer.claim_reply()
            now.tick(1)
        return reply

    return claim_all


def ids(reply):
    return [claim.id for claim in reply.claims]


def roster(client, store):
    return [name.decode() for name in client.zrange(store.keys.roster, 0, -1)]


@pytest.mark.parametrize(
    ("steps", "order"),
    [
        pytest.param("a~", "a", id="a lone node that lags is on duty"),
        pytest.param("a~ b", "ba", id="a node on time that joins goes first"),
        pytest.param("a b~", "ab", id="a node that lags when it joins goes last"),
        pytest.param("a b a~", "ba", id="a node that begins to lag goes last"),
        pytest.param("a b b~", "ab", id="the last node begins to lag"),
        pytest.param("a b c c~ a~", "bca", id="the node that began to lag first is preferred"),
        pytest.param("a~ b~", "ab", id="two that lag keep the order in which they came"),
        pytest.param("a b b~ a~", "ba", id="two that lag keep the order in which they began to"),
        pytest.param("a~ b~ a~ a~", "ab", id="a node that still lags keeps its place"),
        pytest.param("a~ b~ c~ d~ c~ d~", "abcd", id="a third node that lags keeps its place"),
        pytest.param("a~ b~ b", "ba", id="a node on time again goes before a node that lags"),
        pytest.param("a~ b~ a", "ab", id="the first node is on time again"),
        pytest.param("a~ b a", "ba", id="a node on time again goes behind those on time"),
        pytest.param("a b c~ d~ d", "abdc", id="the last node is on time again"),
        pytest.param("a b c a b c", "abc", id="nodes on time keep their places"),
    ],
)  # fmt: skip
def test_nodes_that_lag_are_behind_those_on_time(store, client, claims, *, wakes, steps, order):
    """The order of the roster follows from what each node said last. The first node is woken."""
    claims(steps)
    assert list(order) == roster(client, store)
    post(store, "tea", 1_000)
    assert [order[0]] == wakes.heard()


@pytest.mark.parametrize(
    ("steps", "order"),
    [
        pytest.param("a b c~", "bac", id="on time"),
        pytest.param("a~ b~ c~", "bca", id="lagging"),
    ],
)
def test_a_node_that_took_work_goes_to_the_tail_of_its_kind(
    store, client, claims, *, peers, steps, order
):
    """Nodes on time share the work among them, and so do nodes that lag if all nodes do."""
    claims(steps)
    post(store, "tea")
    assert ["tea"] == ids(peers["a"].claim_reply(2))
    assert list(order) == roster(client, store)


def test_a_node_that_took_work_late_stays_behind_those_on_time(store, client, claims, peers, now):
    """A node that lags and took an event is not preferred to a node on time that took none."""
    claims("a~ b")
    post(store, "tea")
    now.tick(GRACE + 1)
    assert ["tea"] == ids(peers["a"].claim_reply(2))
    peers["b"].claim_reply()
    assert ["b", "a"] == roster(client, store)


class TestDuty:
    """Which node claims an event that falls due."""

    def test_a_lone_node_that_lags_gets_every_event(self, store, claims, peers, now, wakes):
        """To lag costs a node nothing while no other node is free."""
        claims("a~ b~")
        peers["b"].claim_reply(0)
        post(store, "tea", 1_000)
        assert ["a"] == wakes.heard()
        reply = peers["a"].claim_reply(ahead=AHEAD)
        assert 1000 * (1_000 - AHEAD / 2) == reply.wait_us
        now.us += reply.wait_us
        assert ["tea"] == ids(peers["a"].claim_reply(ahead=AHEAD))

    def test_a_node_on_time_that_joins_takes_the_duty(self, store, claims, peers, now):
        """No event is kept for the node that lags, so the other claims it when it falls due."""
        claims("a~")
        post(store, "tea", 1_000)
        claims("a~")
        now.us += peers["b"].claim_reply().wait_us
        assert ["tea"] == ids(peers["b"].claim_reply())

    def test_a_node_on_time_that_becomes_free_takes_the_duty(self, store, claims, peers, now):
        """A node that was busy takes the duty as a node that joins does."""
        claims("b a~")
        peers["b"].claim_reply(0)
        post(store, "tea", 1_000)
        claims("a~")
        now.us += peers["b"].claim_reply().wait_us
        assert ["tea"] == ids(peers["b"].claim_reply())

    def test_a_node_that_begins_to_lag_passes_the_duty_on(self, store, claims, wakes):
        """The node on duty says that it lags, and a node on time is woken at once."""
        claims("a b")
        post(store, "tea", 1_000)
        assert ["a"] == wakes.heard()
        reply = claims("a~")
        assert (["b"], None) == (wakes.heard(), reply.wait_us)

    def test_a_node_on_time_again_takes_the_duty_back(self, store, claims, now):
        """The claim that no longer says so is enough."""
        claims("b~ a~")
        post(store, "tea", 1_000)
        claims("b~")
        assert claims("a").wait_us is not None
        now.tick(1_000)
        assert ["tea"] == ids(claims("a"))

    @pytest.mark.parametrize(("steps", "order"), [("a b~", "ab"), ("a~ b~", "b"), ("a b", "b")])
    def test_a_node_with_an_early_event_stays_on_duty_if_it_alone_is_on_time(
        self, store, client, claims, *, peers, steps, order
    ):
        """Until its event is due, its thread is free, and it starts an earlier event on time."""
        claims(steps)
        post(store, "tea", AHEAD)
        assert ["tea"] == ids(peers["a"].claim_reply(ahead=AHEAD))
        assert list(order) == roster(client, store)

    def test_nodes_that_lag_do_not_pass_the_duty_back_and_forth(self, store, claims, wakes):
        """A claim that takes nothing moves a node that still lags to no other place."""
        claims("a~ b~")
        post(store, "tea", 1_000)
        assert ["a"] == wakes.heard()
        for _ in range(3):
            claims("a~ b~")
        assert [] == wakes.heard()

    def test_nodes_that_lag_share_what_is_due_if_all_nodes_lag(self, store, claims, peers, wakes):
        """As among nodes on time, each gets one of several events."""
        claims("a~ b~ c~")
        store.post([Entry(f"ev-{i}", "+0", ",3|{}") for i in range(3)], "replace")
        assert ["a", "b", "c"] == wakes.heard()
        assert [1, 1, 1] == [len(peers[name].claim(5)) for name in "abc"]


class TestSharing:
    """A node that lags claims while a node on time is expected."""

    def test_leaves_the_event_to_the_node_on_duty(self, store, claims, peers, now):
        """The claim that carries its confirms takes nothing, even if it comes first."""
        claims("b a~")
        post(store, "tea", 1_000)
        claims("b")
        now.tick(999)
        reply = peers["a"].claim_reply(5)
        assert ([], 1000 * GRACE) == (ids(reply), reply.wait_us)
        assert ["tea"] == ids(peers["b"].claim_reply())

    def test_leaves_an_event_that_is_due_soon(self, store, claims, peers, now):
        """Its look-ahead does not reach beyond the time at which the node on duty claims."""
        claims("b a~")
        post(store, "tea", 1_000)
        peers["b"].claim_reply(ahead=AHEAD)
        now.tick(1_000 - AHEAD + 1)
        reply = peers["a"].claim_reply(5, ahead=AHEAD)
        assert ([], None) == (ids(reply), reply.wait_us)
        now.tick(AHEAD / 2)
        assert ["tea"] == ids(peers["b"].claim_reply(ahead=AHEAD))

    def test_leaves_all_of_several_events(self, store, claims, peers, wakes):
        """A node that lags is not woken while a node on time has a free thread."""
        claims("b a~")
        store.post([Entry(f"ev-{i}", "+0", ",3|{}") for i in range(3)], "replace")
        assert ["b"] == wakes.heard()
        assert [] == ids(peers["a"].claim_reply(5))
        assert 3 == len(peers["b"].claim(5))

    def test_gets_what_nodes_on_time_have_no_thread_for(self, store, claims, peers, wakes):
        """When the nodes on time are busy, the node that lags is woken for the rest."""
        claims("b a~")
        store.post([Entry(f"ev-{i}", "+0", ",3|{}") for i in range(3)], "replace")
        assert ["b"] == wakes.heard()
        (claim,) = peers["b"].claim(1)
        assert ["a"] == wakes.heard()
        assert 2 == len(peers["a"].claim(5))
        settlement = Settlement(claim.id, claim.token, Verdict.CONFIRM)
        assert [] == peers["b"].claim_reply(1, settlement).claims

    def test_takes_the_event_if_the_node_on_time_is_silent(self, store, claims, peers, now):
        """A node that died on duty delays an event by no more than the grace."""
        claims("b a~")
        post(store, "tea", 1_000)
        claims("b")
        now.tick(1_000)
        now.us += peers["a"].claim_reply().wait_us
        assert ["tea"] == ids(peers["a"].claim_reply())

    def test_takes_the_event_at_its_poll_if_the_node_was_silent_before(
        self, store, claims, peers, now
    ):
        """Without any wake, an event is late by at most one poll."""
        claims("b a~")
        post(store, "tea", 1_000)
        claims("b")
        now.tick(1_000 + GRACE)
        assert ["tea"] == ids(peers["a"].claim_reply())

    @pytest.mark.parametrize("expected", [None, 9_000])
    def test_takes_the_event_if_no_node_is_expected_by_then(
        self, store, client, claims, *, peers, now, expected
    ):
        """If a node on time is listed and comes later, or at no known time, it gets no event."""
        claims("b a~")
        post(store, "tea")
        client.zrem(store.keys.promise, "b")
        if expected:
            client.zadd(store.keys.promise, {"b": now.us + 1000 * expected})
        assert ["tea"] == ids(peers["a"].claim_reply())

    def test_leaves_nothing_to_an_unknown_node(self, store, client, claims, peers, now):
        """Names that dtimer has not written keep no event from a node that lags."""
        claims("a~")
        client.zadd(store.keys.roster, {"stranger": now.us})
        client.zadd(store.keys.promise, {"stranger": now.us})
        post(store, "tea")
        assert ["tea"] == ids(peers["a"].claim_reply())
        client.delete(store.keys.promise, store.keys.roster)

    def test_says_that_it_lags_with_all_else_that_a_claim_says(self, store, claims, peers):
        """A claim for a slow connection is understood, and so is its repetition."""
        claims("a~")
        for i in range(3):
            post(store, f"ev-{i}", payload='{"n":"' + 100 * "x" + '"}')
        first = peers["a"].claim_reply(3, most=300)
        again = peers["a"].claim_reply(3, most=150, again=True)
        assert (2, 1) == (len(first.claims), len(again.claims))
