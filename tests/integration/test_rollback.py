"""Rollbacks of the server: which process detects lost writes, and how they are reported."""

from __future__ import annotations

import contextlib
import gc
import os
import weakref

import pytest
from background import in_thread
from peers import Peer, post
from servers import PATIENCE, eventually
from snapshot import Snapshot

from dtimer import DTimer, LeaseLost
from dtimer.store.connection.sources import source
from dtimer.store.format import Entry
from dtimer.store.store import Store
from dtimer.testing import Catch

#: A due time after any test, in ms since the epoch.
FAR_FUTURE = 4_000_000_000_000


@pytest.fixture
def make_store(client, namespace, now):
    """A function: make a store that collects the errors of the rollbacks that it detects."""
    stores = []

    def make_store():
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        store.errors = []
        store.rollback.on_rollback = store.errors.append
        stores.append(store)
        return store

    yield make_store
    for store in stores:
        store.release()


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture
def lost(client, store):
    """A function: a block whose writes the server loses, as in a failover to a stale replica."""

    @contextlib.contextmanager
    def lost():
        snapshot = Snapshot(client, store.keys)
        yield
        snapshot.restore()

    return lost


def reported(store):
    """Return the window of each rollback that *store* reported, and whether all data were lost."""
    return [(error.since, error.until, error.wiped) for error in store.errors]


def claims_once(timer):
    """Wait until the node has claimed once more."""
    contact = timer._node._contact
    answered = contact.answered
    eventually(lambda: contact.answered > answered)


class TestDetected:
    """A process that knows of a lost write reports it once."""

    @pytest.mark.parametrize("write", ["claim", "post"])
    def test_a_lost_claim_or_post_is_detected(self, store, node, now, lost, write):
        """The window begins with the last claim that survived, and the loss is reported once."""
        node.claim_reply()
        survived = now.us
        with lost():
            now.tick(500)
            node.claim_reply() if write == "claim" else post(store, "tea", 60_000)
        now.tick(100)
        node.claim_reply()
        assert [(survived / 1000, now.us / 1000, False)] == reported(store)
        node.claim_reply()
        node.claim_reply()
        assert 1 == len(store.errors)

    def test_a_node_that_describes_itself_still_notices_a_lost_claim(self, store, node, now, lost):
        """The server updates the description, and keeps the time at which the node last claimed."""
        node.claim_reply()
        survived = now.us
        with lost():
            now.tick(500)
            node.claim_reply()
        store.report(node.name, '{"listening":true}')
        now.tick(100)
        node.claim_reply()
        assert [(survived / 1000, now.us / 1000, False)] == reported(store)

    def test_each_rollback_is_reported(self, store, node, now, lost):
        """A second rollback is reported again. A claim that is sent again reports none."""
        for count in (1, 2):
            node.claim_reply()
            with lost():
                now.tick(1)
                node.claim_reply()
            node.claim_reply()
            node.claim_reply(again=True)
            assert count == len(store.errors)

    def test_a_rollback_is_detected_if_the_revealing_reply_is_lost(
        self, store, node, now, lost, monkeypatch
    ):
        """The claim that reveals the rollback may lose its reply; its repetition reveals it too."""
        node.claim_reply()
        with lost():
            now.tick(1)
            node.claim_reply()
        now.tick(1)
        with monkeypatch.context() as patch:
            patch.setattr(store.rollback, "claimed", lambda *_: None)
            node.claim_reply()
        now.tick(1)
        node.claim_reply(again=True)
        assert 1 == len(store.errors)

    def test_posts_by_others_do_not_hide_a_loss(self, store, node, lost, make_store):
        """Other processes may have posted as many events since the rollback as were lost."""
        other_store = make_store()
        node.claim_reply()
        with lost():
            post(store, "tea", 60_000)
        post(store, "milk", 60_000)
        post(other_store, "honey", 60_000)
        node.claim_reply()
        assert [False] == [error.wiped for error in store.errors]

    def test_a_process_that_only_posts_detects_it(self, store, now, lost):
        """A process that has not joined detects the loss of its last post at its next post."""
        post(store, "tea", 60_000)
        with lost():
            post(store, "milk", 60_000)
        post(store, "honey", 60_000)
        assert [(None, now.us / 1000, False)] == reported(store)
        post(store, "sugar", 60_000)
        assert 1 == len(store.errors)

    @pytest.mark.parametrize("write", ["post", "claim"])
    def test_opening_again_detects_it(self, store, node, lost, write):
        """A process that opens the namespace again detects the loss with any request."""
        post(store, "tea")
        with lost():
            post(store, "egg") if write == "post" else node.claim()
        for _ in range(2):
            store.namespace.reopen()
            store.peek("tea")
            assert [False] == [error.wiped for error in store.errors]

    def test_replies_from_before_the_rollback_are_ignored(self, store, node, now, lost):
        """A reply that was under way at the detection is neither trusted nor reported."""
        post(store, "tea", 60_000)
        node.claim_reply()
        with lost():
            now.tick(5)
            before = store.rollback.known
            post(store, "milk", 60_000)
            late_claim = node.claim_reply()
            _, late_standing = store.namespace.read_state(store._scripts.deadline(), create=True)
        node.claim_reply()
        assert 1 == len(store.errors)
        store.rollback.claimed(before, late_claim)
        store.rollback.opened(before, late_standing)
        store.rollback.posted(before.era, before.posted, 1, 2)
        node.claim_reply()
        store.join("node", "{}")
        node.claim_reply()
        post(store, "honey", 60_000)
        assert 1 == len(store.errors)

    def test_a_wiped_namespace_is_detected(self, client, store, node, now):
        """If everything is lost, that is reported when the node registers again."""
        post(store, "tea", 60_000)
        node.claim_reply()
        client.delete(*store.keys)
        assert not node.claim_reply().known
        store.join("node", "{}")
        assert [(None, now.us / 1000, True)] == reported(store)
        node.claim_reply()
        post(store, "milk", 60_000)
        node.claim_reply()
        assert 1 == len(store.errors)

    def test_a_wiped_namespace_is_detected_if_others_have_refilled_it(
        self, client, store, node, make_store
    ):
        """A namespace that was wiped counts as wiped, even if others have posted to it since."""
        node.claim_reply()
        client.delete(*store.keys)
        other_store = make_store()
        for n in range(5):
            post(other_store, f"cup-{n}", 0)
        Peer(other_store, "other").claim_reply(5)
        assert not node.claim_reply().known
        store.join("node", "{}")
        assert [True] == [error.wiped for error in store.errors]
        assert [] == other_store.errors

    def test_a_rollback_to_before_the_node_joined_is_detected(self, make_store, now, lost):
        """If the node is not even registered in the old state, the tokens reveal the rollback."""
        old_store = make_store()
        post(old_store, "tea")
        Peer(old_store, "old").claim()
        with lost():
            store = make_store()
            node = Peer(store, "node")
            now.tick(1)
            post(old_store, "milk")
            assert 1 == len(node.claim())
        assert not node.claim_reply().known
        store.join("node", "{}")
        assert [(None, False)] == [(error.since, error.wiped) for error in store.errors]

    def test_a_lost_registration_is_detected(self, make_store, store, now, lost):
        """A node that has only registered itself detects the rollback by its missing entry."""
        make_store().join("old", "{}")
        store.namespace.open()
        with lost():
            node = Peer(store, "node")
            node.claim_reply()
            node.claim_reply()
        assert not node.claim_reply().known
        store.join("node", "{}")
        assert [(None, now.us / 1000, False)] == reported(store)
        node.claim_reply()
        assert 1 == len(store.errors)

    def test_a_forked_child_detects_it(self, client, store):
        """A forked child keeps its parent's knowledge."""
        post(store, "tea", 60_000)
        snapshot = Snapshot(client, store.keys)
        post(store, "milk", 60_000)
        child = os.fork()
        if not child:
            store.after_fork()
            snapshot.restore()
            post(store, "honey", 60_000)
            os._exit(len(store.errors))
        assert 1 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class TestNotDetected:
    """Events that resemble a rollback and are not reported."""

    @pytest.fixture(autouse=True)
    def nothing_is_reported(self, store):
        yield
        assert [] == store.errors

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
        """A process that was stopped for long has been removed from the list of nodes."""
        post(store, "tea", -1)
        node.claim()
        now.tick(600_000)
        other_store = make_store()
        Peer(other_store, "other").claim_reply()
        assert not node.claim_reply().known
        store.join("node", "{}")
        node.claim_reply()
        assert [] == other_store.errors

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

        def post_many(name):
            for n in range(50):
                post(store, f"{name}-{n}", 60_000)

        posting = [in_thread(post_many, name) for name in "abcd"]
        for _ in range(50):
            node.claim_reply()
        for future in posting:
            future.result(PATIENCE)
        node.claim_reply()

    def test_a_wipe_while_the_node_was_away_is_not_a_rollback(self, client, store, node):
        """A node that has left forgets what it knew: the data may be removed on purpose."""
        post(store, "tea", 60_000)
        node.claim_reply()
        store.release()
        client.delete(*store.keys)
        store.join("node", "{}")
        node.claim_reply()
        post(store, "milk", 60_000)


class TestNodes:
    """How a user's timer reports a rollback."""

    def test_schedules_are_declared_again(self, client, make):
        """After a FLUSHALL a node declares its own schedules again, and no others."""
        node = make(poll_interval=50)
        errors, events = Catch(node, "error"), Catch(node, "event")
        node.every(50, {"beat": True}, id="beat")
        node.every(50, {"gone": True}, id="gone")
        node.unschedule("gone")
        make("other").every(3_600_000, {}, id="of another")
        node.join()
        events.next()
        client.delete(*node._store.keys)
        # An occurrence in flight at that moment is lost too.
        while isinstance(error := errors.next(), LeaseLost):
            pass
        assert error.wiped
        eventually(lambda: ["beat"] == [s.id for s in node.schedules()])
        eventually(lambda: node.health().ok)
        while not events.empty():
            events.next()
        assert [{"beat": True}] == events.next()
        node.unschedule("beat")

    def test_only_schedules_of_the_lost_period_are_declared_again(self, client, make):
        """A schedule that was declared before, and ended by another node, stays ended."""
        node, other_store = make(poll_interval=50), make("other")
        errors = Catch(node, "error")
        node.every(3_600_000, {}, id="old")
        store = node._store
        declaration, declared = store.schedules._declared["", "old"]
        store.schedules._declared["", "old"] = (declaration, declared - 60)
        node.join()
        other_store.unschedule("old")
        snapshot = Snapshot(client, store.keys)
        node.every(3_600_000, {}, id="new")
        claims_once(node)
        snapshot.restore()
        assert not errors.next().wiped
        eventually(lambda: ["new"] == [s.id for s in node.schedules()])
        node.unschedule("new")

    def test_the_rollback_detector_does_not_keep_the_timer_alive(self, server, namespace):
        """The detector calls the timer, but holds no strong reference to it."""
        timer = DTimer("node", server.url, ns=namespace)
        reference = weakref.ref(timer)
        del timer
        gc.collect()
        assert reference() is None
