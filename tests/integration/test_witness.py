"""Acknowledged writes that are lost: who notices, what is said of it, and when nothing is."""

from __future__ import annotations

import gc
import os
import threading
import weakref

import pytest
from gated import Gated
from peers import Now, Peer, post
from servers import eventually
from snapshot import Snapshot

from dtimer import DTimer, LeaseLost, StateRollback
from dtimer.store.connect import source
from dtimer.store.store import Entry, Store
from dtimer.testing import Catch

LATER = 4_000_000_000_000


@pytest.fixture
def now():
    return Now()


@pytest.fixture
def make_store(client, namespace, now):
    """Make stores, each of which notes what its witness tells."""
    made = []

    def build():
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        store.told = []
        store.witness.tell = store.told.append
        made.append(store)
        return store

    yield build
    for store in made:
        store.close()


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture
def node(store):
    return Peer(store, "node")


def ms(us):
    return us / 1000


class TestNoticed:
    """Whoever knows of a write that is gone says so, once."""

    def test_a_turn_that_is_gone(self, client, store, node, now):
        """A node whose last turn is lost tells from its last that is there until now."""
        node.turn()
        there = now.us
        snapshot = Snapshot(client, store.keys)
        now.tick(500)
        node.turn()
        snapshot.restore()
        now.tick(100)
        node.turn()
        (error,) = store.told
        assert (ms(there), ms(now.us), False) == (error.since, error.until, error.wiped)
        node.turn()
        node.turn()
        assert 1 == len(store.told), "told again"

    def test_a_node_that_describes_itself_still_notices_a_lost_claim(
        self, client, store, node, now
    ):
        """The server updates the description, and keeps the time at which the node last claimed."""
        node.turn()
        there = now.us
        snapshot = Snapshot(client, store.keys)
        now.tick(500)
        node.turn()
        snapshot.restore()
        store.describe(node.name, '{"listening":true}')
        now.tick(100)
        node.turn()
        assert [(ms(there), ms(now.us))] == [(error.since, error.until) for error in store.told]

    def test_each_time(self, client, store, node):
        """Writes that are lost a second time are told of a second time."""
        for times in (1, 2):
            node.turn()
            snapshot = Snapshot(client, store.keys)
            node.store._now.tick(1)
            node.turn()
            snapshot.restore()
            node.turn()
            assert times == len(store.told)

    def test_its_reply_is_lost(self, client, store, node, now):
        """The turn that finds it out may lose its reply: the repetition says it as well."""
        node.turn()
        snapshot = Snapshot(client, store.keys)
        now.tick(1)
        node.turn()
        snapshot.restore()
        now.tick(1)
        turned, store.witness.turned = store.witness.turned, lambda *_: None
        node.turn()
        store.witness.turned = turned
        now.tick(1)
        node.turn(again=True)
        assert 1 == len(store.told)

    def test_the_same_turn_again(self, client, store, node, now):
        """A turn that was answered, and is asked again all the same, tells nothing new."""
        node.turn()
        snapshot = Snapshot(client, store.keys)
        now.tick(1)
        node.turn()
        snapshot.restore()
        node.turn()
        node.turn(again=True)
        assert 1 == len(store.told)

    def test_only_a_post_is_gone(self, client, store, node, now):
        """A node misses a post of its own that came after its last turn."""
        node.turn()
        there = now.us
        snapshot = Snapshot(client, store.keys)
        now.tick(5)
        post(store, "tea", 60_000)
        snapshot.restore()
        now.tick(5)
        node.turn()
        (error,) = store.told
        assert (ms(there), ms(now.us), False) == (error.since, error.until, error.wiped)

    def test_a_post_by_another_hides_nothing(self, client, store, node, make_store):
        """As many posts by others meanwhile do not make up for it, if this node posts again."""
        other = make_store()
        node.turn()
        snapshot = Snapshot(client, store.keys)
        post(store, "tea", 60_000)
        snapshot.restore()
        post(store, "milk", 60_000)
        post(other, "honey", 60_000)
        node.turn()
        assert [False] == [error.wiped for error in store.told]

    def test_who_only_posts(self, client, store, now):
        """A process that is no node misses its last post with its next."""
        post(store, "tea", 60_000)
        snapshot = Snapshot(client, store.keys)
        post(store, "milk", 60_000)
        snapshot.restore()
        post(store, "honey", 60_000)
        (error,) = store.told
        assert (None, ms(now.us), False) == (error.since, error.until, error.wiped)
        post(store, "sugar", 60_000)
        assert 1 == len(store.told)

    @pytest.mark.parametrize("gone", ["a post", "a claim"])
    def test_looked_at_anew(self, client, store, node, gone):
        """Who looks at the namespace anew finds out what is gone, whatever it asks."""
        post(store, "tea")
        snapshot = Snapshot(client, store.keys)
        if gone == "a post":
            post(store, "egg")
        else:
            assert 1 == len(node.claim())
        snapshot.restore()
        store.reopen()
        store.peek("tea")
        (error,) = store.told
        assert not error.wiped
        store.reopen()
        store.peek("tea")
        assert 1 == len(store.told), "told again"

    def test_replies_from_before(self, client, store, node, now):
        """A reply that was on its way when it was found out is believed by nobody, nor told."""
        post(store, "tea", 60_000)
        node.turn()
        snapshot = Snapshot(client, store.keys)
        now.tick(5)
        before = store.witness.known
        post(store, "milk", 60_000)
        late_turn = node.turn()
        _, late_standing = store._stands(store._line.deadline(), make=True)
        snapshot.restore()
        node.turn()
        assert 1 == len(store.told)
        store.witness.turned(before, late_turn)
        store.witness.opened(before, late_standing)
        store.witness.posted(before, 1, 2)
        node.turn()
        store.join("node", "{}")
        node.turn()
        post(store, "honey", 60_000)
        assert 1 == len(store.told), "told again"

    def test_wiped(self, client, store, node, now):
        """When everything is gone it says that, once the node registers again."""
        post(store, "tea", 60_000)
        node.turn()
        client.delete(*store.keys)
        assert not node.turn().known
        store.join("node", "{}")
        (error,) = store.told
        assert (None, ms(now.us), True) == (error.since, error.until, error.wiped)
        node.turn()
        post(store, "milk", 60_000)
        node.turn()
        assert 1 == len(store.told)

    def test_made_anew_by_another(self, client, store, node, make_store):
        """A namespace that was wiped is another one, however much others have put there since."""
        node.turn()
        client.delete(*store.keys)
        other = make_store()
        for n in range(5):
            post(other, f"cup-{n}", 0)
        Peer(other, "other").turn(5)
        assert not node.turn().known
        store.join("node", "{}")
        assert [True] == [error.wiped for error in store.told]
        assert [] == other.told

    def test_back_to_before_it_joined(self, client, make_store):
        """Of a node that is not even registered there the tokens tell that much is gone."""
        old = make_store()
        post(old, "tea")
        Peer(old, "old").claim()
        snapshot = Snapshot(client, old.keys)
        store = make_store()
        node = Peer(store, "node")
        node.store._now.tick(1)
        post(old, "milk")
        assert 1 == len(node.claim())
        snapshot.restore()
        assert not node.turn().known
        store.join("node", "{}")
        assert [(None, False)] == [(error.since, error.wiped) for error in store.told]

    def test_forgotten(self, client, make_store, now):
        """A node that knows of nothing but itself, and is gone, was forgotten with the rest."""
        make_store().join("old", "{}")
        store = make_store()
        store.open()
        snapshot = Snapshot(client, store.keys)
        node = Peer(store, "node")
        node.turn()
        node.turn()
        snapshot.restore()
        assert not node.turn().known
        store.join("node", "{}")
        (error,) = store.told
        assert (None, ms(now.us), False) == (error.since, error.until, error.wiped)
        node.turn()
        assert 1 == len(store.told)

    def test_after_a_fork(self, client, store):
        """A forked child knows what its parent knew."""
        post(store, "tea", 60_000)
        snapshot = Snapshot(client, store.keys)
        post(store, "milk", 60_000)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            store.after_fork()
            snapshot.restore()
            post(store, "honey", 60_000)
            os.write(writer, b"%d" % len(store.told))
            os._exit(0)
        os.waitpid(child, 0)
        assert b"1" == os.read(reader, 10)
        os.close(reader)
        os.close(writer)


class TestNotNoticed:
    """Nothing is said of what is no rollback."""

    @pytest.fixture(autouse=True)
    def silent(self, store):
        yield
        assert [] == store.told

    def test_an_ordinary_life(self, store, node, now):
        """Posting, claiming, confirming, failing, cancelling."""
        for n in range(20):
            now.tick(n)
            post(store, f"tea-{n}", -n)
            post(store, "milk", n)
            for claim in node.claim(2):
                if n % 2:
                    node.confirm(claim)
                else:
                    node.fail(claim)
            store.cancel("milk")

    def test_nothing_stored(self, store):
        """A post that keeps what is pending counts nothing up, and is no loss."""
        post(store, "tea", 60_000)
        for _ in range(3):
            post(store, "tea", 60_000, policy="keep")

    @pytest.mark.parametrize("hours", [-1, 1])
    def test_the_clock_is_put(self, store, node, now, hours):
        """A clock of the server that goes back, or ahead, and comes right again."""
        for tick in (10, hours * 3_600_000, 10, -hours * 3_600_000, 10):
            now.tick(tick)
            post(store, f"tea-{tick}", -1)
            for claim in node.claim(9):
                node.confirm(claim)

    def test_struck_off(self, store, node, now, make_store):
        """A process that was stopped for long was struck off the list of nodes, and is back."""
        post(store, "tea", -1)
        node.claim()
        now.tick(600_000)
        other = make_store()
        Peer(other, "other").turn()
        assert not node.turn().known
        store.join("node", "{}")
        node.turn()
        assert [] == other.told

    def test_struck_off_by_a_clock(self, store, node, now, make_store):
        """So was one while the clock was wrong for a moment."""
        node.turn()
        now.tick(3_600_000)
        Peer(make_store(), "other").turn()
        now.tick(-3_600_000)
        assert not node.turn().known
        store.join("node", "{}")
        node.turn()

    def test_the_reply_was_lost(self, store, node, now):
        """Turns and posts that are asked again."""
        for n in range(4):
            now.tick(1)
            post(store, f"tea-{n}", -1)
            node.claim()
            now.tick(1)
            node.turn(again=True)
        for policy in ("replace", "mint"):
            verb, arguments = Store._posting([Entry(f"milk-{policy}", "+0", "", "3|{}")], policy)
            store._line.once(verb, *arguments, op=f"{policy}:1")
            store._line.once(verb, *arguments, op=f"{policy}:1")
        post(store, "honey")
        node.turn()

    def test_heard_of_since(self, client, store, node, now):
        """A node that was heard of later than it knows has lost nothing."""
        node.turn()
        client.zadd(store.keys.alive, {"node": now.us + 5})
        now.tick(10)
        node.turn()

    def test_registered_again_after_the_clock_was_put_back(self, store, node, now):
        """When a node registers that is when it was heard of last."""
        node.turn()
        now.tick(-3_600_000)
        store.join("node", "{}")
        now.tick(10)
        node.turn()

    def test_tokens_begin_anew(self, client, store, node):
        """A token that somebody has set beyond all bounds is not believed, here either."""
        client.hset(store.keys.sys, "token", 9_000_000_000_000_001)
        store.join("node", "{}")
        post(store, "tea", -1)
        node.claim()
        store.join("node", "{}")

    def test_a_foreign_total(self, client, store, node):
        """Totals that somebody has made no numbers tell nothing, and stop nothing."""
        post(store, "tea", 60_000)
        client.hset(store.keys.sys, "n:posted", "many")
        post(store, "milk", 60_000)
        node.turn()
        store.join("node", "{}")
        node.turn()

    def test_posts_from_many_threads(self, store, node):
        """Replies that overtake each other on several connections."""

        def many(name):
            for n in range(50):
                post(store, f"{name}-{n}", 60_000)

        threads = [threading.Thread(target=many, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for _ in range(50):
            node.turn()
        for thread in threads:
            thread.join()
        node.turn()

    def test_left_and_back(self, client, store, node):
        """Who has left knows nothing any more: the data may have been removed on purpose."""
        post(store, "tea", 60_000)
        node.turn()
        store.release()
        client.delete(*store.keys)
        store.join("node", "{}")
        node.turn()
        post(store, "milk", 60_000)


class TestNodes:
    """What a user's timer makes of it."""

    def test_told_to_the_listeners(self, client, make):
        """Each timer emits a StateRollback, once, and the node is well and works."""
        node, other = make("node", poll_interval=50), make("other", poll_interval=50)
        told, told_other = Catch(node, "error"), Catch(other, "error")
        events = Catch(node, "event")
        node.join()
        other.join()
        snapshot = Snapshot(client, node._store.keys)
        node.post({}, id="lost", at=LATER)
        for timer in (node, other):
            before = timer._life._claimer.answered
            eventually(lambda t=timer, b=before: t._life._claimer.answered > b)
        snapshot.restore()
        errors = [told.next(), told_other.next()]
        assert [StateRollback] * 2 == [type(e) for e in errors]
        for error in errors:
            assert error.since < error.until
            assert not error.wiped
            assert "between" in str(error)
        other.leave()
        node.post({"n": 1})
        assert [{"n": 1}] == events.next()
        assert node.health().ok
        assert told.empty()
        assert told_other.empty()

    def test_who_only_posts_hears_of_it(self, client, make):
        """A timer that has not joined emits it while it posts, which succeeds."""
        timer = make()
        told = Catch(timer, "error")
        snapshot = Snapshot(client, timer._store.keys)
        timer.post({}, at=LATER)
        snapshot.restore()
        id = timer.post({}, at=LATER)
        assert told.next().wiped
        assert timer.peek(id)
        timer.cancel(id)

    def test_schedules_are_declared_again(self, client, make):
        """After a FLUSHALL a node declares what it had declared, and no more than that."""
        node = make(poll_interval=50)
        told, events = Catch(node, "error"), Catch(node, "event")
        node.every(50, {"beat": True}, id="beat")
        node.every(50, {"gone": True}, id="gone")
        node.unschedule("gone")
        make("other").every(3_600_000, {}, id="of another")
        node.join()
        events.next()
        client.delete(*node._store.keys)
        # One in hand just then is lost with the rest.
        while isinstance(error := told.next(), LeaseLost):
            pass
        assert error.wiped
        eventually(lambda: ["beat"] == [s.id for s in node.schedules()])
        eventually(lambda: node.health().ok)
        while not events.empty():
            events.next()
        assert [{"beat": True}] == events.next()
        node.unschedule("beat")

    def test_of_the_window_only(self, client, make):
        """
        Where a moment is lost, a schedule declared in it is declared again, and one that
        somebody has ended long ago is not.
        """
        node, other = make(poll_interval=50), make("other")
        told = Catch(node, "error")
        node.every(3_600_000, {}, id="old")
        store = node._store
        definition, declared = store._declared["old"]
        store._declared["old"] = (definition, declared - 60)
        node.join()
        other.unschedule("old")
        snapshot = Snapshot(client, store.keys)
        node.every(3_600_000, {}, id="new")
        before = node._life._claimer.answered
        eventually(lambda: node._life._claimer.answered > before)
        snapshot.restore()
        assert not told.next().wiped
        eventually(lambda: ["new"] == [s.id for s in node.schedules()])
        node.unschedule("new")

    def test_a_lease_that_is_gone(self, client, make):
        """The lease of a running handler may be gone with the rest: it is told, as ever."""
        node = make(poll_interval=50)
        told = Catch(node, "error")
        handler = Gated(node)
        node.join()
        snapshot = Snapshot(client, node._store.keys)
        node.post({"n": 1}, id="tea")
        handler.begun()
        snapshot.restore()
        assert isinstance(told.next(), StateRollback)
        handler.go_on()
        handler.ended()
        assert isinstance(told.next(), LeaseLost)

    def test_does_not_keep_the_timer_alive(self, server, namespace):
        """The witness tells a timer that it does not hold on to."""
        timer = DTimer("node", server.url, ns=namespace)
        gone = weakref.ref(timer)
        del timer
        gc.collect()
        assert gone() is None
