"""
Rollbacks of the server: which process detects lost writes, what is reported, and when
nothing is.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref

import pytest
from gated import Gated
from peers import Peer, post
from servers import eventually
from snapshot import Snapshot

from dtimer import DTimer, LeaseLost, StateRollback
from dtimer.store.connection.sources import source
from dtimer.store.store import Entry, Store
from dtimer.testing import Catch

LATER = 4_000_000_000_000


@pytest.fixture
def make_store(client, namespace, now):
    """Return a function that makes stores, each of which collects the rollbacks that it detects."""
    made = []

    def build():
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        store.told = []
        store.rollback.on_rollback = store.told.append
        made.append(store)
        return store

    yield build
    for store in made:
        store.close()


@pytest.fixture
def store(make_store):
    return make_store()


def ms(us):
    return us / 1000


class TestDetected:
    """A process that knows of a lost write reports it once."""

    def test_a_lost_claim_is_detected(self, client, store, node, now):
        """
        A node whose last claim is lost reports the time from the last claim that survived until
        now.
        """
        node.claim_reply()
        there = now.us
        snapshot = Snapshot(client, store.keys)
        now.tick(500)
        node.claim_reply()
        snapshot.restore()
        now.tick(100)
        node.claim_reply()
        (error,) = store.told
        assert (ms(there), ms(now.us), False) == (error.since, error.until, error.wiped)
        node.claim_reply()
        node.claim_reply()
        assert 1 == len(store.told), "told again"

    def test_a_node_that_describes_itself_still_notices_a_lost_claim(
        self, client, store, node, now
    ):
        """The server updates the description, and keeps the time at which the node last claimed."""
        node.claim_reply()
        there = now.us
        snapshot = Snapshot(client, store.keys)
        now.tick(500)
        node.claim_reply()
        snapshot.restore()
        store.describe(node.name, '{"listening":true}')
        now.tick(100)
        node.claim_reply()
        assert [(ms(there), ms(now.us))] == [(error.since, error.until) for error in store.told]

    def test_each_rollback_is_reported(self, client, store, node):
        """A second rollback is reported again."""
        for times in (1, 2):
            node.claim_reply()
            snapshot = Snapshot(client, store.keys)
            node.store._now.tick(1)
            node.claim_reply()
            snapshot.restore()
            node.claim_reply()
            assert times == len(store.told)

    def test_a_rollback_is_detected_if_the_revealing_reply_is_lost(self, client, store, node, now):
        """The claim that reveals the rollback may lose its reply; its repetition reveals it too."""
        node.claim_reply()
        snapshot = Snapshot(client, store.keys)
        now.tick(1)
        node.claim_reply()
        snapshot.restore()
        now.tick(1)
        claimed, store.rollback.claimed = store.rollback.claimed, lambda *_: None
        node.claim_reply()
        store.rollback.claimed = claimed
        now.tick(1)
        node.claim_reply(again=True)
        assert 1 == len(store.told)

    def test_a_repeated_claim_reports_nothing_new(self, client, store, node, now):
        """If a claim that was answered is sent again, the rollback is not reported again."""
        node.claim_reply()
        snapshot = Snapshot(client, store.keys)
        now.tick(1)
        node.claim_reply()
        snapshot.restore()
        node.claim_reply()
        node.claim_reply(again=True)
        assert 1 == len(store.told)

    def test_a_lost_post_is_detected(self, client, store, node, now):
        """A node detects the loss of its own post after its last claim."""
        node.claim_reply()
        there = now.us
        snapshot = Snapshot(client, store.keys)
        now.tick(5)
        post(store, "tea", 60_000)
        snapshot.restore()
        now.tick(5)
        node.claim_reply()
        (error,) = store.told
        assert (ms(there), ms(now.us), False) == (error.since, error.until, error.wiped)

    def test_posts_by_others_do_not_hide_a_loss(self, client, store, node, make_store):
        """
        If others have posted as many events meanwhile, the node still detects the loss at its next
        post.
        """
        other = make_store()
        node.claim_reply()
        snapshot = Snapshot(client, store.keys)
        post(store, "tea", 60_000)
        snapshot.restore()
        post(store, "milk", 60_000)
        post(other, "honey", 60_000)
        node.claim_reply()
        assert [False] == [error.wiped for error in store.told]

    def test_a_process_that_only_posts_detects_it(self, client, store, now):
        """A process that has not joined detects the loss of its last post at its next post."""
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
    def test_opening_again_detects_it(self, client, store, node, gone):
        """A process that opens the namespace again detects the loss with any request."""
        post(store, "tea")
        snapshot = Snapshot(client, store.keys)
        if gone == "a post":
            post(store, "egg")
        else:
            assert 1 == len(node.claim())
        snapshot.restore()
        store.namespace.reopen()
        store.peek("tea")
        (error,) = store.told
        assert not error.wiped
        store.namespace.reopen()
        store.peek("tea")
        assert 1 == len(store.told), "told again"

    def test_replies_from_before_the_rollback_are_ignored(self, client, store, node, now):
        """
        A reply that was under way when the rollback was detected is not trusted, and not
        reported.
        """
        post(store, "tea", 60_000)
        node.claim_reply()
        snapshot = Snapshot(client, store.keys)
        now.tick(5)
        before = store.rollback.known
        post(store, "milk", 60_000)
        late_claim = node.claim_reply()
        _, late_standing = store.namespace.read_state(store._scripts.deadline(), create=True)
        snapshot.restore()
        node.claim_reply()
        assert 1 == len(store.told)
        store.rollback.claimed(before, late_claim)
        store.rollback.opened(before, late_standing)
        store.rollback.posted(before.era, before.posted, 1, 2)
        node.claim_reply()
        store.join("node", "{}")
        node.claim_reply()
        post(store, "honey", 60_000)
        assert 1 == len(store.told), "told again"

    def test_a_wiped_namespace_is_detected(self, client, store, node, now):
        """If everything is lost, that is reported when the node registers again."""
        post(store, "tea", 60_000)
        node.claim_reply()
        client.delete(*store.keys)
        assert not node.claim_reply().known
        store.join("node", "{}")
        (error,) = store.told
        assert (None, ms(now.us), True) == (error.since, error.until, error.wiped)
        node.claim_reply()
        post(store, "milk", 60_000)
        node.claim_reply()
        assert 1 == len(store.told)

    def test_a_wiped_namespace_is_detected_if_others_have_refilled_it(
        self, client, store, node, make_store
    ):
        """A namespace that was wiped counts as wiped, even if others have posted to it since."""
        node.claim_reply()
        client.delete(*store.keys)
        other = make_store()
        for n in range(5):
            post(other, f"cup-{n}", 0)
        Peer(other, "other").claim_reply(5)
        assert not node.claim_reply().known
        store.join("node", "{}")
        assert [True] == [error.wiped for error in store.told]
        assert [] == other.told

    def test_a_rollback_to_before_the_node_joined_is_detected(self, client, make_store):
        """If the node is not even registered in the old state, the tokens reveal the rollback."""
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
        assert not node.claim_reply().known
        store.join("node", "{}")
        assert [(None, False)] == [(error.since, error.wiped) for error in store.told]

    def test_a_lost_registration_is_detected(self, client, make_store, now):
        """
        A node that has only registered itself detects the rollback when its registration is
        gone.
        """
        make_store().join("old", "{}")
        store = make_store()
        store.namespace.open()
        snapshot = Snapshot(client, store.keys)
        node = Peer(store, "node")
        node.claim_reply()
        node.claim_reply()
        snapshot.restore()
        assert not node.claim_reply().known
        store.join("node", "{}")
        (error,) = store.told
        assert (None, ms(now.us), False) == (error.since, error.until, error.wiped)
        node.claim_reply()
        assert 1 == len(store.told)

    def test_a_forked_child_detects_it(self, client, store):
        """A forked child keeps its parent's knowledge."""
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


class TestNotDetected:
    """Events that resemble a rollback and are not reported."""

    @pytest.fixture(autouse=True)
    def silent(self, store):
        yield
        assert [] == store.told

    def test_ordinary_work_is_not_a_rollback(self, store, node, now):
        """Posting, claiming, confirming, failing and cancelling."""
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

    def test_a_post_that_stores_nothing_is_not_a_rollback(self, store):
        """A post that keeps a pending event does not increase the count, and is not a loss."""
        post(store, "tea", 60_000)
        for _ in range(3):
            post(store, "tea", 60_000, policy="keep")

    @pytest.mark.parametrize("hours", [-1, 1])
    def test_a_step_of_the_clock_is_not_a_rollback(self, store, node, now, hours):
        """The server's clock is set back, or ahead, and is corrected later."""
        for tick in (10, hours * 3_600_000, 10, -hours * 3_600_000, 10):
            now.tick(tick)
            post(store, f"tea-{tick}", -1)
            for claim in node.claim(9):
                node.confirm(claim)

    def test_a_forgotten_node_is_not_a_rollback(self, store, node, now, make_store):
        """
        A process that was stopped for long has been removed from the list of nodes, and
        returns.
        """
        post(store, "tea", -1)
        node.claim()
        now.tick(600_000)
        other = make_store()
        Peer(other, "other").claim_reply()
        assert not node.claim_reply().known
        store.join("node", "{}")
        node.claim_reply()
        assert [] == other.told

    def test_a_node_forgotten_by_a_wrong_clock_is_not_a_rollback(
        self, store, node, now, make_store
    ):
        """A node was removed because the clock was wrong for a moment."""
        node.claim_reply()
        now.tick(3_600_000)
        Peer(make_store(), "other").claim_reply()
        now.tick(-3_600_000)
        assert not node.claim_reply().known
        store.join("node", "{}")
        node.claim_reply()

    def test_repeated_requests_are_not_a_rollback(self, store, node, now):
        """Claims and posts that are sent again."""
        for n in range(4):
            now.tick(1)
            post(store, f"tea-{n}", -1)
            node.claim()
            now.tick(1)
            node.claim_reply(again=True)
        for policy in ("replace", "post_new"):
            verb, arguments = Store._posting([Entry(f"milk-{policy}", "+0", ",3|{}")], policy)
            store._scripts.call_once(verb, *arguments, op=f"{policy}:1")
            store._scripts.call_once(verb, *arguments, op=f"{policy}:1")
        post(store, "honey")
        node.claim_reply()

    def test_a_later_heartbeat_is_not_a_rollback(self, client, store, node, now):
        """A node that was heard from later than it knows has lost nothing."""
        node.claim_reply()
        client.zadd(store.keys.alive, {"node": now.us + 5})
        now.tick(10)
        node.claim_reply()

    def test_registering_after_the_clock_was_set_back_is_not_a_rollback(self, store, node, now):
        """The registration of a node counts as its last sign of life."""
        node.claim_reply()
        now.tick(-3_600_000)
        store.join("node", "{}")
        now.tick(10)
        node.claim_reply()

    def test_an_invalid_token_is_not_a_rollback(self, client, store, node):
        """A token that another program has set far too high is not trusted here either."""
        client.hset(store.keys.sys, "token", 9_000_000_000_000_001)
        store.join("node", "{}")
        post(store, "tea", -1)
        node.claim()
        store.join("node", "{}")

    def test_an_invalid_total_is_not_a_rollback(self, client, store, node):
        """A total that another program has overwritten reveals nothing, and blocks nothing."""
        post(store, "tea", 60_000)
        client.hset(store.keys.sys, "n:posted", "many")
        post(store, "milk", 60_000)
        node.claim_reply()
        store.join("node", "{}")
        node.claim_reply()

    def test_replies_that_overtake_each_other_are_not_a_rollback(self, store, node):
        """Replies overtake each other on several connections."""

        def many(name):
            for n in range(50):
                post(store, f"{name}-{n}", 60_000)

        threads = [threading.Thread(target=many, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for _ in range(50):
            node.claim_reply()
        for thread in threads:
            thread.join()
        node.claim_reply()

    def test_a_wipe_while_the_node_was_away_is_not_a_rollback(self, client, store, node):
        """
        A node that has left forgets what it knew, because the data may have been removed on
        purpose.
        """
        post(store, "tea", 60_000)
        node.claim_reply()
        store.release()
        client.delete(*store.keys)
        store.join("node", "{}")
        node.claim_reply()
        post(store, "milk", 60_000)


class TestNodes:
    """How a user's timer reports a rollback."""

    def test_each_timer_emits_it_once(self, client, make):
        """Each timer emits a StateRollback once, and the node continues to work."""
        node, other = make("node", poll_interval=50), make("other", poll_interval=50)
        told, told_other = Catch(node, "error"), Catch(other, "error")
        events = Catch(node, "event")
        node.join()
        other.join()
        snapshot = Snapshot(client, node._store.keys)
        node.post({}, id="lost", at=LATER)
        for timer in (node, other):
            before = timer._node._contact.answered
            eventually(lambda t=timer, b=before: t._node._contact.answered > b)
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

    def test_a_timer_that_only_posts_emits_it(self, client, make):
        """A timer that has not joined emits the rollback during a post, which succeeds."""
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
        """After a FLUSHALL a node declares its own schedules again, and no others."""
        node = make(poll_interval=50)
        told, events = Catch(node, "error"), Catch(node, "event")
        node.every(50, {"beat": True}, id="beat")
        node.every(50, {"gone": True}, id="gone")
        node.unschedule("gone")
        make("other").every(3_600_000, {}, id="of another")
        node.join()
        events.next()
        client.delete(*node._store.keys)
        # An occurrence in flight at that moment is lost too.
        while isinstance(error := told.next(), LeaseLost):
            pass
        assert error.wiped
        eventually(lambda: ["beat"] == [s.id for s in node.schedules()])
        eventually(lambda: node.health().ok)
        while not events.empty():
            events.next()
        assert [{"beat": True}] == events.next()
        node.unschedule("beat")

    def test_only_schedules_of_the_lost_period_are_declared_again(self, client, make):
        """
        If a period is lost, a schedule declared in it is declared again. A schedule that was
        declared before, and ended by another node, is not.
        """
        node, other = make(poll_interval=50), make("other")
        told = Catch(node, "error")
        node.every(3_600_000, {}, id="old")
        store = node._store
        definition, declared = store.schedules._declared["old"]
        store.schedules._declared["old"] = (definition, declared - 60)
        node.join()
        other.unschedule("old")
        snapshot = Snapshot(client, store.keys)
        node.every(3_600_000, {}, id="new")
        before = node._node._contact.answered
        eventually(lambda: node._node._contact.answered > before)
        snapshot.restore()
        assert not told.next().wiped
        eventually(lambda: ["new"] == [s.id for s in node.schedules()])
        node.unschedule("new")

    def test_a_lost_lease_is_reported_too(self, client, make):
        """If the lease of a running handler is lost with the rest, that is reported as usual."""
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

    def test_it_does_not_keep_the_timer_alive(self, server, namespace):
        """The rollback detector holds no strong reference to the timer."""
        timer = DTimer("node", server.url, ns=namespace)
        gone = weakref.ref(timer)
        del timer
        gc.collect()
        assert gone() is None
