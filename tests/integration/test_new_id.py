"""Ids that a caller knows before the post."""

from __future__ import annotations

import threading

import pytest
from peers import Peer
from servers import PATIENCE

from dtimer import DTimer, EventExists
from dtimer.model.claims import Outcome
from dtimer.model.ids import IdGenerator, is_for_caller


@pytest.fixture
def timer(server, namespace, now):
    timer = DTimer("caller", server.url, ns=namespace, now=lambda: now.us / 1000)
    yield timer
    timer.leave()


class TestForm:
    """The id alone."""

    def test_is_recognised_by_its_form(self):
        """Any process may post the id, so no memory of its maker can be needed."""
        ids = [IdGenerator().for_caller() for _ in range(100)]
        assert all(map(is_for_caller, ids))
        assert {20} == set(map(len, ids))

    @pytest.mark.parametrize(
        "id",
        [
            "tea",
            "user~1",
            "a" * 20,
            "2AFFhSicK_RR",
            "x" * 12 + "~" + "y" * 8,
            "x" * 12 + "~é23456",
        ],
    )
    def test_other_ids_are_not_taken_for_one(self, id):
        """An id of the user's own may be posted again until it is due."""
        assert not is_for_caller(id)

    def test_ids_are_distinct_and_ascend(self, timer):
        """They sort by the time of their making, as other ids of dtimer do."""
        ids = [timer.new_id() for _ in range(1_000)]
        assert sorted(set(ids)) == ids

    def test_two_generators_do_not_make_the_same_id(self, monkeypatch):
        """Nothing would detect it, and a post would replace an event of another process."""
        monkeypatch.setattr(IdGenerator, "__call__", lambda self: "0" * 12)
        assert 2_000 == len({IdGenerator().for_caller() for _ in range(2_000)})

    def test_needs_no_server(self):
        """A caller may make the id in a transaction of its own database."""
        timer = DTimer("caller", "redis://127.0.0.1:1", timeout=30_000)
        assert is_for_caller(timer.new_id())


class TestPost:
    """An event that is posted with such an id."""

    def test_may_be_claimed_ahead(self, timer, store, now):
        """The event starts as precisely as an event whose id dtimer generates in the post."""
        node = Peer(store, "node")
        known, named = timer.post({}, 1_000, id=timer.new_id()), timer.post({}, 1_000, id="tea")
        now.tick(990)
        assert [known] == [claim.id for claim in node.claim(5, ahead=20)]
        now.tick(10)
        assert [named] == [claim.id for claim in node.claim(5)]

    def test_has_the_policies_of_an_id(self, timer):
        """The caller decides what a second post of the id does."""
        id = timer.new_id()
        assert timer.post({"n": 1}, 1_000, id=id, if_exists="error") == id
        with pytest.raises(EventExists):
            timer.post({"n": 2}, 1_000, id=id, if_exists="error")
        assert timer.post({"n": 3}, 1_000, id=id, if_exists="keep").stored is False
        assert {"n": 1} == timer.peek(id).event
        assert timer.post({"n": 4}, 1_000, id=id).stored
        assert {"n": 4} == timer.peek(id).event

    def test_is_never_stored_under_another_id(self, timer):
        """The caller has stored the id elsewhere already."""
        id = timer.new_id()
        items = [{"ev": {"n": n}, "delay": 1_000, "id": id} for n in range(3)]
        assert [id] * 3 == timer.post_many(items)
        assert [id] == [record.id for record in timer.upcoming()]
        assert {"n": 2} == timer.peek(id).event

    def test_supersedes_an_event_that_was_claimed_ahead(self, timer, store, now):
        """The last post wins, also in the milliseconds in which a node has the event already."""
        node = Peer(store, "node")
        id = timer.new_id()
        timer.post({"n": 1}, 1_000, id=id)
        now.tick(990)
        (claim,) = node.claim(ahead=20)
        timer.post({"n": 2}, 1_000, id=id)
        assert Outcome.STALE is node.confirm(claim)
        now.tick(1_000)
        assert [b'{"n":2}'] == [claim.payload for claim in node.claim()]

    def test_may_have_a_limit(self, timer, store, now):
        """A debounce is claimed ahead too: its last milliseconds count as in flight."""
        node = Peer(store, "node")
        id = timer.new_id()
        timer.post({"n": 1}, 1_000, id=id, max_wait=1_500)
        now.tick(900)
        timer.post({"n": 2}, 1_000, id=id, max_wait=1_500)
        now.tick(590)
        (claim,) = node.claim(ahead=20)
        assert (b'{"n":2}', now.us + 10_000) == (claim.payload, claim.due_us)
        timer.post({"n": 3}, 1_000, id=id, max_wait=1_500)
        assert now.us / 1000 + 1_000 == timer.peek(id).due


def test_the_old_event_of_this_process_does_not_start(make):
    """A process that posts an id again releases the event that its own node has claimed ahead."""
    timer = make("node", look_ahead=1_000)
    started, third = [], threading.Event()

    @timer.on("event")
    def handle(events):
        started.extend(ev["n"] for ev in events)
        third.set()

    with timer:
        id = timer.new_id()
        timer.post({"n": 1}, 900, id=id)
        timer.post({"n": 2}, 60_000, id=id)
        timer.post({"n": 3}, id=id)
        assert third.wait(PATIENCE)
    assert [3] == started
