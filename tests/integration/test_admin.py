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
def sound(store, client):
    """The store, for tests that leave its keys sound."""
    yield store
    assert_sound(client, store.keys)


class TestListings:
    """All pending events, and all dead letters."""

    def test_every_pending_event_is_listed_once_in_due_order(self, sound, now):
        """There may be many pages, and equal due times."""
        for n in range(1_203):
            post(sound, f"e-{n:04d}", n // 700)
        assert [f"e-{n:04d}" for n in range(1_203)] == [e.id for e in AdminStore(sound).waiting()]
        first = next(AdminStore(sound).waiting())
        assert now.us == first.due_us
        assert b",3|{}" == first.raw

    def test_events_in_flight_are_skipped(self, sound):
        """An event that a node holds is not pending."""
        post(sound, "tea")
        post(sound, "milk", 1)
        Peer(sound, "node").claim()
        assert ["milk"] == [e.id for e in AdminStore(sound).waiting()]

    def test_dead_letters_are_listed_from_a_given_one(self, sound, client):
        """If no letter has the given id, the list begins with the given time of death."""
        for n in range(1_100):
            client.hset(sound.keys.dead, f"d{n:04d}", b"1,failed,0|,3|{}")
            client.zadd(sound.keys.graves, {f"d{n:04d}": 1_000 + n // 2})
        ids = [f"d{n:04d}" for n in range(1_100)]
        assert ids == [letter.id for letter in AdminStore(sound).died_after("\0", 0)]
        assert ids[41:] == [letter.id for letter in AdminStore(sound).died_after("d0040", 1_020)]
        assert ids[1_098:] == [letter.id for letter in AdminStore(sound).died_after("\0", 1_549)]


class TestHolders:
    """The number of events in flight by node."""

    def test_leases_are_counted_by_incarnation(self, sound):
        """Each incarnation is counted with the events that it holds, each event once."""
        for n in range(5):
            post(sound, f"e{n}")
        one, other = Peer(sound, "one"), Peer(sound, "other")
        one.claim(3)
        other.claim(5)
        assert [2, 3] == sorted(AdminStore(sound).holders().values())
        assert 4 == sum(AdminStore(sound).holders(4).values())


class TestRestore:
    """Restoring dead letters."""

    def test_pending_and_dead_ids_are_skipped(self, sound, client):
        """A dead letter whose id is pending, or is a dead letter already, is not restored."""
        keys = sound.keys
        client.hset(keys.dead, "old", b"1,failed,2|no,3|{}")
        client.zadd(keys.graves, {"old": 7})
        (letter,) = AdminStore(sound).died_after("\0", 0)
        assert 0 == AdminStore(sound).restore([letter])
        client.delete(keys.dead, keys.graves)
        assert 1 == AdminStore(sound).restore([letter])
        assert [letter] == list(AdminStore(sound).died_after("\0", 0))
        client.delete(keys.dead, keys.graves)
        post(sound, "old")
        assert 0 == AdminStore(sound).restore([letter])
        assert [] == list(AdminStore(sound).died_after("\0", 0))


class TestAudit:
    """The check that the keys agree with each other."""

    def test_a_namespace_written_by_dtimer_is_sound(self, sound, now):
        """A namespace that only dtimer has written to is sound, in all states of its events."""
        assert AdminStore(sound).audit().sound
        for n in range(9):
            post(sound, f"e{n}", n)
        Peer(sound, "node").claim(1)
        now.tick(LEASE * 2)
        Peer(sound, "other").claim(2)
        audit = AdminStore(sound).audit()
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

    def test_no_key_changes(self, sound, client):
        """The self-test changes no key."""
        post(sound, "tea")
        sound.server.permissions()
        before = {key: client.dump(key) for key in sound.keys}
        assert {} == sound.server.permissions()
        assert before == {key: client.dump(key) for key in sound.keys}
