"""What a turn claims ahead of its time, and what not, with time moved by hand."""

from __future__ import annotations

import json
import queue

import pytest
from peers import LEASE, Peer, post
from servers import PATIENCE, eventually

from dtimer import DTimer
from dtimer.model.claims import Settlement, Verdict
from dtimer.model.recurrence import define
from dtimer.store.store import Entry

AHEAD = 20
LEAD = AHEAD / 2


@pytest.fixture
def node(store):
    return Peer(store, "a")


def ids(turn):
    return [claim.id for claim in turn.claims]


def second(now, payload="{}", *, start=None, misfire="coalesce"):
    """A schedule named tick, of a second."""
    return define(
        "tick",
        every=1_000,
        start=(now.us if start is None else start) / 1000,
        end=None,
        count=None,
        jitter=0,
        misfire=misfire,
        overlap="queue",
        max_retries=0,
        payload=payload,
    )


class TestWhat:
    """What is claimed before it is due."""

    def test_within_the_horizon(self, store, node, now):
        """What is due within the time asked for is claimed, to the microsecond, and no more."""
        post(store, "now")
        post(store, "soon", AHEAD)
        post(store, "later", AHEAD + 0.001)
        turn = node.turn(5, ahead=AHEAD)
        assert ["now", "soon"] == ids(turn)
        assert [0, AHEAD * 1000] == [c.due_us - c.claimed_us for c in turn.claims]
        assert [] == ids(node.turn(5, ahead=AHEAD))
        now.tick(0.001)
        assert ["later"] == ids(node.turn(5, ahead=AHEAD))

    def test_by_one(self, store, node):
        """A single hand takes the first, and is told of the second."""
        post(store, "one", 5)
        post(store, "two", 40)
        turn = node.turn(1, ahead=AHEAD)
        assert (["one"], 40_000) == (ids(turn), turn.wait_us)

    def test_not_unasked(self, store, node):
        """Nothing is claimed ahead that was not asked for."""
        post(store, "soon", 1)
        assert [] == ids(node.turn(5))

    def test_not_the_end_of_a_lease(self, store, node, now):
        """A lease is taken over when it has run out, and not a microsecond before."""
        post(store, "tea")
        node.claim()
        now.tick(LEASE - 0.001)
        turn = node.turn(1, ahead=AHEAD)
        assert ([], 1) == (ids(turn), turn.wait_us)
        now.tick(0.001)
        assert ["tea"] == ids(node.turn(1, ahead=AHEAD))

    def test_not_an_occurrence(self, store, node, now):
        """An occurrence is judged by its misfire and overlap when it is due."""
        store.declare(second(now, start=now.us + 1_000_000))
        now.tick(1_000 - AHEAD / 2)
        turn = node.turn(1, ahead=AHEAD)
        assert ([], 1000 * AHEAD / 2) == (ids(turn), turn.wait_us)
        now.tick(AHEAD / 2)
        assert 1 == len(node.turn(1, ahead=AHEAD).claims)

    def test_not_what_ends_before_it_begins(self, store, node, now):
        """What will have expired by the time it is due is buried then, and never claimed."""
        post(store, "tea", 10, expires=f"+{10_000}")
        turn = node.turn(1, ahead=AHEAD)
        assert ([], []) == (ids(turn), turn.buried)
        now.tick(10)
        assert [("tea", "expired")] == node.turn(1, ahead=AHEAD).buried

    def test_not_what_may_be_replaced(self, store, node, now):
        """An event whose id the user gave is his to replace, move and cancel until it is due."""
        store.post([Entry("tea", "+10000", "", "3,n|{}")], "replace")
        turn = node.turn(1, ahead=AHEAD)
        assert ([], 10_000) == (ids(turn), turn.wait_us)
        now.tick(10)
        assert ["tea"] == ids(node.turn(1, ahead=AHEAD))

    def test_whose_id_it_is(self, client, namespace, now, node):
        """Which ids are the user's is known from how it was posted."""
        timer = DTimer("poster", client, ns=namespace, now=lambda: now.us / 1000)
        timer.post({}, 10, id="tea")
        made = timer.post({}, 10)
        assert [made] == ids(node.turn(5, ahead=AHEAD))

    def test_not_the_unfit(self, store, node, client, now):
        """What is unfit is buried when it is due; until then it may be posted anew."""
        post(store, "tea", 10)
        client.hset(store.keys.body, "tea", "what")
        assert ([], []) == (ids(turn := node.turn(1, ahead=AHEAD)), turn.buried)
        now.tick(10)
        assert [("tea", "corrupt")] == node.turn(1, ahead=AHEAD).buried

    def test_paused(self, store, node):
        """Nothing is claimed ahead in a namespace that is paused."""
        post(store, "tea", 10)
        store.pause(on=True)
        assert [] == ids(node.turn(1, ahead=AHEAD))

    def test_what_was_put_in_its_place(self, store, node, now):
        """
        An event in whose place a schedule has put an occurrence, in this very turn, is handed
        out as that occurrence: with its payload.
        """
        store.declare(second(now, '{"old":1}', start=now.us + 1_000_000))
        assert f"tick@{now.us}" == store.run_now("tick")
        store.unschedule("tick")
        store.declare(second(now, '{"new":1}', start=now.us - 5_000_000, misfire="skip"))
        (claim,) = node.claim(3)
        assert (f"tick@{now.us}", {"new": 1}) == (claim.id, json.loads(claim.payload))


class TestKept:
    """What a node keeps until it is due."""

    @pytest.mark.parametrize("after", [300, 1_500])
    def test_posted_anew(self, make, after):
        """
        An event that its own process posts anew while it is kept is not started: the new one is,
        once, when that is due.
        """
        timer = make(look_ahead=1_000, poll_interval=60_000)
        caught = queue.SimpleQueue()
        timer.on("event", lambda events: caught.put([ev["n"] for ev in events]))
        troubles = []
        timer.on("error", troubles.append)
        timer.join()
        for n in range(3):
            id = timer.post({"n": n}, 500)
            eventually(lambda: timer.stats().in_flight)
            timer.post({"n": n + 100}, after, id=id)
            assert [n + 100] == caught.get(timeout=PATIENCE)
        assert caught.empty()
        assert [] == troubles


class TestDuty:
    """Who comes when."""

    def test_in_time(self, store, node, now):
        """The node on duty is to come half of its horizon before the event, and finds it."""
        post(store, "tea", 1_000)
        turn = node.turn(1, ahead=AHEAD)
        assert 1000 * (1_000 - LEAD) == turn.wait_us
        now.tick(1_000 - LEAD)
        assert ["tea"] == ids(node.turn(1, ahead=AHEAD))

    def test_alone(self, store, node, client):
        """Where nobody else is there, who claimed ahead stays on duty for what comes before."""
        post(store, "tea", AHEAD)
        assert ["tea"] == ids(node.turn(1, ahead=AHEAD))
        assert [b"a"] == client.zrange(store.keys.roster, 0, -1)
        post(store, "urgent")
        assert ["urgent"] == ids(node.turn(1))

    def test_not_alone(self, store, node, client):
        """Where somebody else has a free hand, he is on duty."""
        node.turn()
        Peer(store, "b").turn()
        post(store, "tea", AHEAD)
        assert ["tea"] == ids(node.turn(1, ahead=AHEAD))
        assert [b"b"] == client.zrange(store.keys.roster, 0, -1)

    def test_share(self, store, node):
        """Of as many events as nodes, each node gets one before they are due."""
        others = [Peer(store, name) for name in "bcd"]
        for peer in (node, *others):
            peer.turn()
        for i in range(4):
            post(store, f"ev-{i}", AHEAD)
        assert [["ev-0"], ["ev-1"], ["ev-2"], ["ev-3"]] == [
            ids(peer.turn(1, ahead=AHEAD)) for peer in (node, *others)
        ]

    def test_given_back(self, store, node, now):
        """Given back before it is due, it is due when it was, with no attempt charged."""
        post(store, "tea", AHEAD)
        (claim,) = node.turn(1, ahead=AHEAD).claims
        node.turn(0, Settlement(claim.id, claim.token, Verdict.RELEASE))
        assert [] == node.claim()
        now.tick(AHEAD)
        (again,) = node.claim()
        assert (1, claim.due_us) == (again.attempt, again.due_us)
