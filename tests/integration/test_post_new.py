"""Posts with generated ids: stored as a whole or not at all, if an error occurs half-way."""

from __future__ import annotations

import re

import pytest
import redis
from peers import Peer, post
from soundness import assert_sound

from dtimer.errors import NamespaceCorrupt, StoreError
from dtimer.store import acl
from dtimer.store.connection.sources import source
from dtimer.store.format import Entry
from dtimer.store.store import Store

HOUR = 3_600_000_000  # microseconds


@pytest.fixture
def store(client, namespace, now):
    store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
    yield store
    store.release()


def entries(count, delay=0):
    return [Entry(f"new-{n}", f"+{delay}", f',3|{{"n":{n}}}') for n in range(count)]


@pytest.fixture
def poor(client, server, store, now):
    """A function: make a store whose user may not run a given command."""
    stores = []

    def make(command):
        rules = [*acl.rules(store.ns).split(), f"-{command}"]
        client.execute_command("ACL", "SETUSER", "poor", "reset", "on", ">x", *rules)
        user = redis.Redis.from_url(server.url, username="poor", password="x")
        stores.append(Store(source(user, 1.0), store.ns, timeout=3.0, now=now))
        stores[-1].namespace._opened = True
        return stores[-1]

    yield make
    for made in stores:
        made.release()
    client.execute_command("ACL", "DELUSER", "poor")


def contents(client, keys):
    """Return the contents of all keys except the sessions' memory."""
    return {key: client.dump(key) for key in keys if key not in (keys.memo_a, keys.memo_b)}


@pytest.mark.parametrize("count", [1, 3])
class TestAllOrNothing:
    """A single event, or several in one call."""

    @pytest.mark.fault("F37")
    @pytest.mark.parametrize("delay", [0, HOUR])
    @pytest.mark.parametrize("field", ["due", "body", "sys", "memo_a", "roster", "promise"])
    def test_a_foreign_key_makes_the_post_fail_as_a_whole(self, client, store, field, count, delay):
        """A post undoes what it has written. A foreign key that it does not need has no effect."""
        store.post(entries(9)[5:], "post_new")
        if field in ("roster", "promise"):
            store.post([Entry("soon", "+60000000", ",3|{}")], "post_new")
        keys = store.keys
        name = getattr(keys, field)
        client.delete(name)
        client.set(name, "foreign")
        before = contents(client, keys)
        if delay and field in ("roster", "promise"):
            store.post(entries(count, delay), "post_new")
            assert store.peek("new-0") is not None
            return
        words = "WRONGTYPE" if field == "memo_a" else f"the key {re.escape(name)} holds a string"
        with pytest.raises(NamespaceCorrupt, match=words):
            store.post(entries(count, delay), "post_new")
        assert before == contents(client, keys)

    def test_a_foreign_key_in_an_empty_namespace_leaves_nothing(self, client, store, count):
        """In an empty namespace, too, nothing remains of a post that meets a foreign key."""
        store.namespace.open()
        client.set(store.keys.body, "foreign")
        with pytest.raises(NamespaceCorrupt, match="body holds a string, not a hash"):
            store.post(entries(count), "post_new")
        assert not client.exists(store.keys.due)

    @pytest.mark.fault("F104")
    @pytest.mark.parametrize("command", ["zadd", "hset", "zrange", "type", "zmscore"])
    def test_a_refused_command_makes_the_post_fail_as_a_whole(
        self, client, store, poor, command, count
    ):
        """If the user may not run a command that a post needs, the post stores nothing."""
        post(store, "early", 60_000)
        before = contents(client, store.keys)
        # The script checks types only if it has a node to wake.
        delay = 0 if command == "type" else HOUR
        if command == "zmscore" and count == 1:
            poor(command).post(entries(count, delay), "post_new")
            return
        with pytest.raises(StoreError, match="refuses this client"):
            poor(command).post(entries(count, delay), "post_new")
        assert before == contents(client, store.keys)

    @pytest.mark.parametrize("state", ["scheduled", "in flight", "cancelled in flight"])
    def test_a_taken_id_is_reported_and_nothing_stored(self, client, store, count, state):
        """The event that has the id is unchanged, and dtimer generates another id."""
        node = Peer(store, "node")
        (taken,) = entries(count)[-1:]
        store.post([taken], "post_new")
        if state != "scheduled":
            assert node.claim()
        if state == "cancelled in flight":
            store.cancel(taken.id)
        before = contents(client, store.keys)
        assert taken.id == store.post(entries(count, HOUR), "post_new").taken
        assert before == contents(client, store.keys)

    def test_a_repeated_post_reports_the_taken_id_again(self, store, count):
        """A repetition reports the taken id, even if that event is gone by now."""
        (taken,) = entries(count)[-1:]
        store.post([taken], "post_new")
        verb, arguments = Store._posting(entries(count), "post_new")
        for _ in range(2):
            reply = store._scripts.call_once(verb, *arguments, op="session:1")
            assert b"x;;" + taken.id.encode() == reply
            store.cancel(taken.id)
        assert [] == list(store.upcoming("-inf", "+inf"))

    @pytest.mark.parametrize("delay", [0, HOUR])
    def test_an_expiry_is_stored_as_a_time(self, store, now, count, delay):
        """An expiry may be relative or absolute; it is stored as an absolute time."""
        for expires in ("+5000", str(now.us + 5000)):
            body = f"{expires},3|{{}}"
            posted = [Entry(f"{expires}-{n}", f"+{delay}", body) for n in range(count)]
            store.post(posted, "post_new")
            bodies = store.server.source.command("HVALS", store.keys.body)
            assert {b"%d,3|{}" % (now.us + 5000)} == set(bodies)

    def test_an_invalid_total_does_not_prevent_a_post(self, client, store, count):
        """If another program has overwritten the total, a post still works."""
        store.post(entries(9)[5:], "post_new")
        client.hset(store.keys.sys, "n:posted", "many")
        store.post(entries(count), "post_new")
        assert store.peek("new-0") is not None
        assert_sound(client, store.keys)
