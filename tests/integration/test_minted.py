"""Posts of events that have no name: stored whole or not at all, whatever is met half way."""

from __future__ import annotations

import re

import pytest
import redis
from peers import Peer, post
from soundness import assert_sound

from dtimer.errors import NamespaceCorrupt, StoreError
from dtimer.store import access
from dtimer.store.connect import source
from dtimer.store.store import Entry, Store

HOUR = 3_600_000_000


@pytest.fixture
def store(client, namespace, now):
    store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
    yield store
    store.close()


def entries(count, delay=0):
    return [Entry(f"new-{n}", f"+{delay}", "", f'3|{{"n":{n}}}') for n in range(count)]


@pytest.fixture
def poor(client, server, store, now):
    """Makes a store of a user who may not run a command."""
    made = []

    def make(command):
        rules = [*access.rules(store.ns).split(), f"-{command}"]
        client.execute_command("ACL", "SETUSER", "poor", "reset", "on", ">x", *rules)
        user = redis.Redis.from_url(server.url, username="poor", password="x")
        made.append(Store(source(user, 1.0), store.ns, timeout=3.0, now=now))
        made[-1]._opened = True
        return made[-1]

    yield make
    for theirs in made:
        theirs.close()
    client.execute_command("ACL", "DELUSER", "poor")


def kept(client, keys):
    """What there is under the keys of events, and the totals."""
    return {key: client.dump(key) for key in keys if key not in (keys.memo_a, keys.memo_b)}


@pytest.mark.parametrize("count", [1, 3])
class TestWhole:
    """One event, or several in one call."""

    @pytest.mark.fault("F37")
    @pytest.mark.parametrize("delay", [0, HOUR])
    @pytest.mark.parametrize("field", ["due", "body", "sys", "memo_a", "roster", "promise"])
    def test_a_foreign_key(self, client, store, field, count, delay):
        """
        A post that meets a key of a foreign type stores nothing, and what it had written
        before is gone; a key that it has no need of does not hinder it.
        """
        store.post(entries(9)[5:], "mint")
        if field in ("roster", "promise"):
            store.post([Entry("soon", "+60000000", "", "3|{}")], "mint")
        keys = store.keys
        name = getattr(keys, field)
        client.delete(name)
        client.set(name, "foreign")
        before = kept(client, keys)
        if delay and field in ("roster", "promise"):
            store.post(entries(count, delay), "mint")
            assert store.peek("new-0") is not None
            return
        words = "WRONGTYPE" if field == "memo_a" else f"the key {re.escape(name)} holds a string"
        with pytest.raises(NamespaceCorrupt, match=words):
            store.post(entries(count, delay), "mint")
        assert before == kept(client, keys)

    def test_the_only_ones(self, client, store, count):
        """So it is in a namespace where there is nothing yet."""
        store.open()
        client.set(store.keys.body, "foreign")
        with pytest.raises(NamespaceCorrupt, match="body holds a string, not a hash"):
            store.post(entries(count), "mint")
        assert not client.exists(store.keys.due)

    @pytest.mark.fault("F104")
    @pytest.mark.parametrize("command", ["zadd", "hset", "zrange", "type", "zmscore"])
    def test_a_command_is_refused(self, client, store, poor, command, count):
        """A post stores nothing where a command is refused that it needs."""
        post(store, "early", 60_000)
        before = kept(client, store.keys)
        # Types are looked at where somebody is to be told.
        delay = 0 if command == "type" else HOUR
        if command == "zmscore" and count == 1:
            poor(command).post(entries(count, delay), "mint")
            return
        with pytest.raises(StoreError, match="refuses this client"):
            poor(command).post(entries(count, delay), "mint")
        assert before == kept(client, store.keys)

    @pytest.mark.parametrize("state", ["scheduled", "in flight", "cancelled in flight"])
    def test_an_id_that_is_taken(self, client, store, count, state):
        """An id that there is already is told, nothing is stored, and that event is as it was."""
        node = Peer(store, "node")
        (taken,) = entries(count)[-1:]
        store.post([taken], "mint")
        if state != "scheduled":
            assert node.claim()
        if state == "cancelled in flight":
            store.cancel(taken.id)
        before = kept(client, store.keys)
        assert taken.id == store.post(entries(count, HOUR), "mint").taken
        assert before == kept(client, store.keys)

    def test_an_id_that_was_taken(self, store, count):
        """What was told of a taken id is told again to who asks again, whatever is pending now."""
        (taken,) = entries(count)[-1:]
        store.post([taken], "mint")
        verb, arguments = Store._posting(entries(count), "mint")
        assert b"x;;" + taken.id.encode() == store._line.once(verb, *arguments, op="lane:1")
        store.cancel(taken.id)
        assert b"x;;" + taken.id.encode() == store._line.once(verb, *arguments, op="lane:1")
        assert [] == list(store.upcoming("-inf", "+inf"))

    @pytest.mark.parametrize("delay", [0, HOUR])
    def test_expiry(self, store, now, count, delay):
        """When events expire is told from now, or by a moment; it is kept as the moment."""
        for expires in ("+5000", str(now.us + 5000)):
            posted = [Entry(f"{expires}-{n}", f"+{delay}", expires, "3|{}") for n in range(count)]
            store.post(posted, "mint")
            bodies = store._source.command("HVALS", store.keys.body)
            assert {b"%d,3|{}" % (now.us + 5000)} == set(bodies)

    def test_a_total_that_is_no_number(self, client, store, count):
        """What somebody has put in the place of the total does not hinder a post."""
        store.post(entries(9)[5:], "mint")
        client.hset(store.keys.sys, "n:posted", "many")
        store.post(entries(count), "mint")
        assert store.peek("new-0") is not None
        assert_sound(client, store.keys)
