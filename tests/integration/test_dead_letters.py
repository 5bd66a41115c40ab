"""Dropping one dead letter, and reviving all of a reason."""

from __future__ import annotations

import pytest
from peers import LEASE, post

from dtimer import DeadLetter, DTimer, OptionError, Reason
from dtimer.model.claims import Outcome
from dtimer.store import store as store_module
from dtimer.store.admin import AdminStore


@pytest.fixture
def bury(store, node, now):
    """A function: make a dead letter with a reason."""

    def bury(id, reason="failed", payload="{}"):
        expires = "+1" if reason == "expired" else ""
        post(store, id, payload=payload, max_retries=0, expires=expires)
        if reason == "expired":
            now.tick(1)
        claims = node.claim()
        if reason == "lease_lost":
            now.tick(LEASE + 1)
            assert [] == node.claim()
        for claim in claims if reason == "failed" else ():
            assert Outcome.DEAD is node.fail(claim)
        assert reason == store.letter(id).reason

    return bury


class TestDrop:
    """Deleting one dead letter."""

    def test_deletes_only_this_letter(self, store, bury):
        """An operator drops what needs no repair, and keeps the rest."""
        bury("tea")
        bury("milk")
        assert store.drop("tea")
        assert ["milk"] == [letter.id for letter in store.dead()]
        assert not store.drop("tea")

    def test_leaves_pending_events_alone(self, store, node):
        """An event that was revived meanwhile must not be deleted by a late click."""
        post(store, "waits", 5_000)
        post(store, "flies")
        assert node.claim()
        assert not store.drop("waits")
        assert not store.drop("flies")
        assert 2 == store.stats().scheduled + store.stats().in_flight

    def test_a_repeated_drop_acts_once(self, store, bury):
        """The reply to the first was lost, and another event of this id has died since."""
        bury("tea")
        call = store._scripts.call_once
        assert b"1" == call("drop", "tea", op="session:1")
        bury("tea")
        assert b"1" == call("drop", "tea", op="session:1")
        assert ["tea"] == [letter.id for letter in store.dead()]


class TestReviveByReason:
    """Reviving all dead letters with one reason."""

    @pytest.fixture
    def several(self, bury):
        for n, reason in enumerate(["failed", "expired", "failed", "lease_lost"]):
            bury(f"e{n}", reason)

    @pytest.mark.parametrize(
        ("reason", "revived"),
        [
            ("failed", {"e0", "e2"}),
            ("expired", {"e1"}),
            ("lease_lost", {"e3"}),
            ("corrupt", set()),
            ("", {"e0", "e1", "e2", "e3"}),
        ],
    )
    def test_revives_those_and_no_others(self, store, node, several, reason, revived):
        """After a bug fix the failed events are handled, but those that expired are of no use."""
        assert len(revived) == store.revive_all(reason)
        assert revived == {claim.id for claim in node.claim(10)}
        assert {"e0", "e1", "e2", "e3"} - revived == {letter.id for letter in store.dead()}

    def test_takes_several_pages(self, store, node, bury):
        """A namespace may have thousands of dead letters."""
        for n in range(230):
            bury(f"e{n:03}", "expired" if n % 2 else "failed")
        assert 115 == store.revive_all("failed")
        assert 115 == store.stats().scheduled == store.stats().dead

    def test_divides_large_letters_into_several_calls(self, store, bury, monkeypatch):
        """A script that copies a hundred large payloads would block the server."""
        monkeypatch.setattr(store_module, "_MOST_REVIVED_BYTES", 2_500)
        batches, some = [], store.revive_some
        monkeypatch.setattr(
            store, "revive_some", lambda ids, reason: batches.append(len(ids)) or some(ids, reason)
        )
        for n in range(7):
            bury(f"e{n}", payload=f'"{"x" * 1_000}"')
        assert 7 == store.revive_all("")
        assert [3, 3, 1] == batches

    def test_ends_although_revived_events_die_again(self, store, node, bury, monkeypatch):
        """The handler may still have its bug."""
        for n in range(120):
            bury(f"e{n:03}")
        some = store.revive_some

        def fails_again(ids, reason):
            revived = some(ids, reason)
            for claim in node.claim(100):
                node.fail(claim)
            return revived

        monkeypatch.setattr(store, "revive_some", fails_again)
        assert 120 == store.revive_all("failed")
        assert 120 == store.stats().dead

    def test_leaves_a_letter_whose_reason_has_changed(self, store, bury):
        """Between reading and reviving, another process may have revived the letter."""
        bury("tea", "expired")
        assert 0 == store.revive_some(["tea"], "failed")
        assert ["tea"] == [letter.id for letter in store.dead()]

    def test_leaves_letters_that_were_never_events(self, client, store):
        """Their bytes cannot be delivered; they stay for a person to look at."""
        letter = DeadLetter("junk", None, 1, Reason.CORRUPT, "", 1_700_000_000_000.0, b"junk")
        AdminStore(store).restore([letter])
        assert 0 == store.revive_all("")
        assert ["junk"] == [letter.id for letter in store.dead()]

    def test_wakes_as_many_nodes_as_there_are_events(self, store, wakes, bury, node):
        """The revived events are due now, and one node alone would need longer."""
        for n in range(3):
            bury(f"e{n}")
        node.claim()
        wakes.heard()
        assert 3 == store.revive_all("")
        assert ["node"] == wakes.heard()

    def test_a_repeated_revival_acts_once(self, store, node, bury):
        """The reply to the first was lost, and the events have failed again since."""
        bury("tea")
        call = store._scripts.call_once
        assert b"10" == call("revive", "failed", "tea", "nothing", op="session:1")
        node.fail(*node.claim())
        assert b"10" == call("revive", "failed", "tea", "nothing", op="session:1")
        assert 1 == store.stats().dead


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.drop(None),
        lambda t: t.drop(""),
        lambda t: t.revive_dead("faild"),
        lambda t: t.revive_dead(5),
        lambda t: t.revive_dead(""),
    ],
)
def test_bad_arguments_are_refused_before_any_io(call):
    """A misspelt reason would revive nothing, and look like success."""
    timer = DTimer("caller", "redis://127.0.0.1:1", timeout=30_000)
    with pytest.raises(OptionError):
        call(timer)


def test_the_calls_of_a_timer_reach_the_store(server, namespace, store, bury):
    """`drop`, `revive_dead` and `clear` are public."""
    for id in ("a", "b", "c"):
        bury(id)
    timer = DTimer("caller", server.url, ns=namespace)
    assert timer.drop("a")
    assert 2 == timer.revive_dead(Reason.FAILED)
    assert 0 == timer.revive_dead()
    assert (2, 0, 0) == ((c := timer.clear()).events, c.dead, c.schedules)
    timer.leave()
