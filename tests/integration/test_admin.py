"""The store's administrative verbs: listings, audit, lease holders, restoring, permissions."""

from __future__ import annotations

import pytest
from peers import LEASE, Peer, post
from soundness import assert_sound

from dtimer.store.admin import AdminStore
from dtimer.store.connection.sources import source
from dtimer.store.store import Store


@pytest.fixture
def store(client, namespace, now):
    store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
    yield store
    store.release()


@pytest.fixture
def checked_store(store, client):
    """The store, for tests that leave its keys sound."""
    yield store
    assert_sound(client, store.keys)


@pytest.fixture
def admin(checked_store):
    return AdminStore(checked_store)


class TestListings:
    """All pending events, and all dead letters."""

    def test_every_pending_event_is_listed_once_in_due_order(self, checked_store, admin, now):
        """There may be many pages, and equal due times."""
        for n in range(1_203):
            post(checked_store, f"e-{n:04d}", n // 700)
        assert [f"e-{n:04d}" for n in range(1_203)] == [e.id for e in admin.waiting()]
        first = next(admin.waiting())
        assert now.us == first.due_us
        assert b",3|{}" == first.raw

    def test_events_in_flight_are_skipped(self, checked_store, admin):
        """An event that a node holds is not pending."""
        post(checked_store, "tea")
        post(checked_store, "milk", 1)
        Peer(checked_store, "node").claim()
        assert ["milk"] == [e.id for e in admin.waiting()]

    def test_dead_letters_are_listed_from_a_given_letter_on(self, checked_store, admin, client):
        """If no letter has the given id, the list begins with the given time of death."""
        for n in range(1_100):
            # Attempt, reason, length of the error; the error and the body (dtimer/store/format.py).
            client.hset(checked_store.keys.dead, f"d{n:04d}", b"1,failed,0|,3|{}")
            client.zadd(checked_store.keys.graves, {f"d{n:04d}": 1_000 + n // 2})
        ids = [f"d{n:04d}" for n in range(1_100)]
        assert ids == [letter.id for letter in admin.died_after("\0", 0)]
        assert ids[41:] == [letter.id for letter in admin.died_after("d0040", 1_020)]
        assert ids[1_098:] == [letter.id for letter in admin.died_after("\0", 1_549)]


class TestHolders:
    """The number of events in flight by node."""

    def test_leases_are_counted_by_incarnation(self, checked_store, admin):
        """Each incarnation is counted with the events that it holds, each event once."""
        for n in range(5):
            post(checked_store, f"e{n}")
        one_node, other_node = Peer(checked_store, "one"), Peer(checked_store, "other")
        one_node.claim(3)
        other_node.claim(5)
        assert [2, 3] == sorted(admin.holders().values())
        assert 4 == sum(admin.holders(4).values())


class TestRestore:
    """Restoring dead letters."""

    def test_pending_and_dead_ids_are_skipped(self, checked_store, admin, client):
        """A dead letter whose id is pending, or is a dead letter already, is not restored."""
        keys = checked_store.keys
        # The error is "no". The body has no expiry, and `max_retries` 3 (dtimer/store/format.py).
        client.hset(keys.dead, "old", b"1,failed,2|no,3|{}")
        client.zadd(keys.graves, {"old": 7})
        (letter,) = admin.died_after("\0", 0)
        assert 0 == admin.restore([letter])
        client.delete(keys.dead, keys.graves)
        assert 1 == admin.restore([letter])
        assert [letter] == list(admin.died_after("\0", 0))
        client.delete(keys.dead, keys.graves)
        post(checked_store, "old")
        assert 0 == admin.restore([letter])
        assert [] == list(admin.died_after("\0", 0))


class TestAudit:
    """The check that the keys agree with each other."""

    def test_a_namespace_written_by_dtimer_is_sound(self, checked_store, admin, now):
        """A namespace that only dtimer has written to is sound, in all states of its events."""
        assert admin.audit().sound
        for n in range(9):
            post(checked_store, f"e{n}", n)
        Peer(checked_store, "node").claim(1)
        now.tick(LEASE * 2)
        Peer(checked_store, "other").claim(2)
        audit = admin.audit()
        assert audit.sound
        assert (9, 9, 3) == (audit.due, audit.bodies, audit.leases)

    @pytest.mark.parametrize(
        ("kind", "what"),
        {
            "body": "no_due", "lease": "no_event", "dead": "no_grave", "due": "no_body",
            "graves": "no_letter",
        }.items(),
    )  # fmt: skip
    def test_an_entry_without_its_partner_is_named(self, kind, what, store, client):
        """An entry that is in one key and missing in its partner is found and named."""
        key = getattr(store.keys, kind)
        if kind in {"due", "graves"}:
            client.zadd(key, {"ghost": 1})
        else:
            client.hset(key, "ghost", "x")
        audit = AdminStore(store).audit()
        assert not audit.sound
        assert [(what, "ghost")] == audit.strays

    def test_sizes_reveal_a_difference_outside_the_sample(self, store, client):
        """If the sample is smaller than the keys, a difference of their sizes is still found."""
        client.zadd(store.keys.due, {f"e{n}": n for n in range(500)})
        client.hset(store.keys.body, mapping={f"e{n}": "x" for n in range(499)})
        assert not AdminStore(store).audit(1).sound


class TestPermissions:
    """The self-test tries each command and changes nothing."""

    def test_no_key_changes(self, checked_store, client):
        """The self-test changes no key."""
        post(checked_store, "tea")
        checked_store.server.permissions()
        before = {key: client.dump(key) for key in checked_store.keys}
        assert {} == checked_store.server.permissions()
        assert before == {key: client.dump(key) for key in checked_store.keys}
