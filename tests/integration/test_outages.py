"""Nodes whose Redis fails them: what they say, and how they recover by themselves."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from gated import Gated
from leftovers import descriptors, threads
from proxy import Proxy
from servers import PATIENCE, Server, eventually
from soundness import assert_sound

from dtimer import DTimer, LeaseLost, StateRollback, StoreError
from dtimer.store.keys import Keys
from dtimer.testing import Catch

LATER = 3_600_000  # ms; no test is there to see it
NS = "outage"


@pytest.fixture
def own():
    """A server of the test's own, to be treated badly, that keeps what it acknowledged."""
    with Server(appendonly=True) as server:
        yield server


@pytest.fixture
def asked(own):
    """A client of that server, which survives what the test does to it."""
    with own.client(retry_on_error=[ConnectionError]) as client:
        yield client


@pytest.fixture
def node(own):
    """A node on that server, quick to see that something is wrong. Nothing is left of it."""
    before = descriptors()
    timer = DTimer("node", own.url, ns=NS, timeout=600, poll_interval=200)
    yield timer
    timer.leave(0)
    with own.client() as client:
        assert_sound(client, Keys.of(NS))
        assert [] == client.hvals(Keys.of(NS).nodes)
        # Nobody but this very client is connected.
        eventually(lambda: len(client.client_list()) == 1)
    eventually(lambda: not threads())
    assert descriptors() <= before


@pytest.fixture
def proxy(server, clean):
    """A way to the common server that can be spoiled."""
    with Proxy(server) as proxy:
        yield proxy


@contextlib.contextmanager
def joined(timer):
    """The node, joined, hearing and on duty; it leaves in the end."""
    with timer:
        eventually(lambda: timer.health().ok and timer.nodes()[0].waiting)
        yield timer


class TestServerGone:
    """The server dies, freezes, or forgets."""

    def test_killed_and_restarted(self, node, own):
        """
        A server that is killed is told of once: 'disconnected' and one 'error'. Within a
        second of its return the node is back by itself, and what was acknowledged before
        arrives.
        """
        caught, errors, gone, back = (
            Catch(node, name) for name in ("event", "error", "disconnected", "connected")
        )
        with joined(node):
            back.next()
            node.post({"n": 1}, 2_000)
            own.kill9()
            assert isinstance(gone.next(), Exception)
            assert isinstance(errors.next(), StoreError)
            health = node.health()
            assert not health.ok
            assert health.joined
            assert health.error
            # Several tries later, by either thread, there is nothing more to be said.
            tries = _count(node._store, "turn"), _count(node._store, "ear")
            eventually(lambda: all(len(made) > 3 for made in tries))
            assert gone.empty()
            assert errors.empty()
            own.start()
            began = time.monotonic()
            back.next()
            assert time.monotonic() - began < 1
            assert [{"n": 1}] == caught.next()
            eventually(lambda: node.health().ok)
            node.post({"n": 2})
            assert [{"n": 2}] == caught.next()
        assert gone.empty()
        assert errors.empty(), errors.next()
        assert back.empty()

    def test_killed_while_a_handler_runs(self, node, own):
        """
        A handler that runs through an outage keeps its event when the lease has not ended
        meanwhile, and its return is recorded when the server is back.
        """
        node.on("error", lambda _: None)
        gone = Catch(node, "disconnected")
        handler = Gated(node)
        with joined(node):
            id = node.post({})
            handler.begun()
            own.kill9()
            gone.next()
            handler.go_on()
            handler.ended()
            own.start()
            eventually(lambda: node.peek(id) is None)
            assert 1 == node.stats().totals["started"]
            assert 1 == node.stats().totals["confirmed"]

    def test_leaving_without_a_server(self, node, own):
        """With the server gone leave() returns in bounded time all the same."""
        node.on("error", lambda _: None)
        node.on("event", lambda _: None)
        with joined(node):
            own.kill9()
            began = time.monotonic()
            node.leave()
            assert time.monotonic() - began < 2
            assert not node.joined
            assert [] == threads()
        own.start()
        with own.client() as client:
            # It could not say goodbye; after a minute it would have been forgotten.
            client.flushall()

    def test_frozen(self, node, own):
        """
        While a server is frozen nothing is believed of it; when it goes on, so does the
        node, and what was posted arrives once.
        """
        caught = Catch(node, "event")
        gone = Catch(node, "disconnected")
        node.on("error", lambda _: None)
        with joined(node):
            node.post({"n": 1}, 300)
            own.pause()
            gone.next()
            assert not node.health().ok
            with pytest.raises(StoreError):
                node.post({"n": 2}, LATER, id="perhaps")
            own.resume()
            assert [{"n": 1}] == caught.next()
            node.post({"n": 3}, id="perhaps")
            assert [{"n": 3}] == caught.next()
            eventually(lambda: node.health().ok)
            assert 2 == node.stats().totals["started"]

    def test_flushed(self, node, own, asked):
        """
        A node whose server loses everything registers again by itself, and receives what
        is posted from then on. health() is well: nothing is wrong with the node.
        """
        caught = Catch(node, "event")
        with joined(node):
            asked.flushall()
            eventually(lambda: [n for n in node.nodes() if n.id == "node" and n.waiting])
            node.post({"n": 1})
            assert [{"n": 1}] == caught.next()
            assert node.health().ok
            assert b"1" == asked.hget(Keys.of(NS).sys, "v")

    def test_flushed_under_a_handler(self, node, asked):
        """
        An event that was lost while its handler ran is a lost lease, and told as one: the
        handler's work is not recorded, and nothing comes of it.
        """
        lost, errors = Catch(node, "lease_lost"), Catch(node, "error")
        handler = Gated(node)
        with joined(node):
            id = node.post({})
            handler.begun()
            asked.flushall()
            handler.go_on()
            assert id == lost.next().id
            # A poll may have found out before, that everything is gone.
            found = {type(error): error for error in (errors.next(), errors.next())}
            assert {LeaseLost, StateRollback} == set(found)
            assert id == found[LeaseLost].id
            assert node.peek(id) is None

    def test_scripts_flushed(self, node, asked):
        """SCRIPT FLUSH is not noticed: the scripts are sent along again."""
        caught, errors = Catch(node, "event"), Catch(node, "error")
        with joined(node):
            for n in range(3):
                asked.script_flush()
                node.post({"n": n})
                assert [{"n": n}] == caught.next()
            assert node.health().ok
        assert errors.empty()

    def test_subscription_killed(self, node, asked):
        """
        CLIENT KILL TYPE pubsub: the subscription is made anew, silently, and wakes come
        through it.
        """
        caught, errors = Catch(node, "event"), Catch(node, "error")
        with joined(node):
            for n in range(3):
                heard = node._life._listener.heard
                asked.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                eventually(lambda heard=heard: node._life._listener.heard > heard)
                eventually(lambda: node.health().ok)
                node.post({"n": n})
                assert [{"n": n}] == caught.next()
        assert errors.empty()

    def test_connections_killed(self, node, asked):
        """CLIENT KILL TYPE normal: the node connects anew, and nothing is lost or doubled."""
        caught = Catch(node, "event")
        node.on("error", lambda _: None)
        with joined(node):
            for n in range(5):
                node.post({"n": n})
                asked.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert [[{"n": n}] for n in range(5)] == [caught.next() for _ in range(5)]
            eventually(lambda: node.health().ok and node.stats().totals["confirmed"] == 5)
            assert 5 == node.stats().totals["started"]


def _count(thing, name):
    """Have the calls of a method counted from now on, in the list that is returned."""
    made = []
    method = getattr(thing, name)

    def counted(*arguments):
        made.append(arguments)
        return method(*arguments)

    setattr(thing, name, counted)
    return made


class TestWay:
    """The server is well, and the way to it is not."""

    def test_only_wakes_are_lost(self, make, server, proxy):
        """
        With the subscription black-holed, and nothing else, the node knows that it is deaf
        and says so once; events arrive by the poll. When the way is open it hears again.
        """
        timer = DTimer("deaf", server.url, proxy.url, ns=make().ns, timeout=300, poll_interval=50)
        caught, errors = Catch(timer, "event"), Catch(timer, "error")
        with joined(timer):
            proxy.blackhole()
            assert "wakes do not arrive" in str(errors.next())
            health = timer.health()
            assert (True, False) == (health.deaf, health.ok)
            assert health.error is None
            timer.post({"n": 1})
            assert [{"n": 1}] == caught.next()
            # A few attempts to subscribe later it has still been said once.
            made = _count(timer._store, "ear")
            eventually(lambda: len(made) > 2)
            assert errors.empty()
            proxy.heal()
            eventually(lambda: timer.health().ok)
            assert not timer.health().deaf
            assert timer.health().heard_age_ms < PATIENCE * 1000
        assert errors.empty()

    def test_half_closed_subscription(self, make, server, proxy):
        """A subscription whose server end was closed is made anew, and wakes come again."""
        timer = DTimer("deaf", server.url, proxy.url, ns=make().ns, poll_interval=LATER)
        caught = Catch(timer, "event")
        with joined(timer):
            heard = timer._life._listener.heard
            proxy.half_close()
            eventually(lambda: timer._life._listener.heard > heard)
            eventually(lambda: timer.health().ok and timer.nodes()[0].waiting)
            timer.post({"n": 1})
            assert [{"n": 1}] == caught.next()

    def test_black_hole(self, make, proxy):
        """
        A node whose connections lead nowhere notices within its timeout, and its leave()
        returns in bounded time; another node gets what it held when the lease has ended.
        """
        timer = make("lost", proxy.url, timeout=300, lease=600)
        other = make("other", poll_interval=50)
        handler = Gated(timer)
        gone, errors = Catch(timer, "disconnected"), Catch(timer, "error")
        caught = Catch(other, "event")
        with joined(timer):
            timer.post({})
            (ev,) = handler.begun()
            incarnation = timer._life.incarnation
            proxy.blackhole()
            gone.next()
            assert isinstance(errors.next(), StoreError)
            assert not timer.health().ok
            with other:
                assert 2 == caught.next()[0].attempt
            assert ev.lease_lost
            with pytest.raises(StoreError):
                ev.confirm()
            began = time.monotonic()
            timer.leave(100)
            assert time.monotonic() - began < 0.1 + 2 * 0.3 + 1
            assert not timer.joined
            handler.go_on()
            handler.ended()
            proxy.heal()
        # It could not say goodbye; after a minute it would have been forgotten.
        other._store.leave(incarnation)

    def test_the_reply_of_a_claim_is_lost(self, make, proxy):
        """
        When the reply of a claim is lost, the same events are handed out with the next
        try, not with the end of their lease, and that is still their first attempt.
        """
        timer = make("node", proxy.url, max_events=5, poll_interval=LATER)
        other = make("other")
        caught = Catch(timer, "event")
        timer.on("error", lambda _: None)
        with joined(timer):
            proxy.drop_reply_once(timer._life.incarnation.encode())
            ids = other.post_many([({"n": n}, 0) for n in range(3)])
            assert proxy.wait_dropped()
            began = time.monotonic()
            taken = []
            while len(taken) < 3:
                taken += caught.next()
            assert time.monotonic() - began < 5, "that was the lease, or luck"
            assert [(id, 1) for id in ids] == [(ev.id, ev.attempt) for ev in taken]
            eventually(lambda: other.stats().totals.get("confirmed") == 3)
            assert 3 == other.stats().totals["started"]
        assert caught.empty()

    @pytest.mark.parametrize("close", [True, False])
    def test_the_reply_of_a_confirm_is_lost(self, make, proxy, close):
        """
        When the reply of a confirm is lost it is asked again, and found to be done: no
        lost lease, no second start.
        """
        timer = make("node", proxy.url, timeout=600)
        other = make("other")
        lost = Catch(timer, "lease_lost")
        handler = Gated(timer)
        timer.on("error", lambda _: None)
        with joined(timer):
            other.post({}, id="tea")
            handler.begun()
            eventually(lambda: timer._life._claimer._bell.wait(0) is False)
            proxy.drop_reply_once(b"tea", close=close)
            handler.go_on()
            assert proxy.wait_dropped()
            eventually(lambda: timer.health().ok)
            assert other.peek("tea") is None
        assert lost.empty()
        totals = other.stats().totals
        assert (1, 1) == (totals["started"], totals["confirmed"])

    @pytest.mark.parametrize("fault", ["drop", "silence", "truncate"])
    def test_the_reply_of_a_post_is_lost(self, make, proxy, fault):
        """A post whose reply is lost or cut short is tried again, and acts once."""
        poster, other = make("poster", proxy.url, timeout=900), make("other")
        caught = Catch(other, "event")
        poster.post({}, LATER, id="open")
        if fault == "truncate":
            proxy.truncate_reply_once(3, b"kettle")
        else:
            proxy.drop_reply_once(b"kettle", close=fault == "drop")
        id = poster.post({"tea": "kettle"})
        assert proxy.wait_dropped()
        with other:
            assert id == caught.next()[0].id
        assert caught.empty()
        assert 2 == other.stats().totals["posted"]

    def test_a_lost_reply_is_no_deafness(self, make, proxy, server):
        """
        The echo comes with a turn. When the reply of that turn is lost the echo was heard
        all the same: the subscription is not thrown away for it.
        """
        timer = DTimer("node", proxy.url, server.url, ns=make().ns, timeout=300, poll_interval=50)
        caught = Catch(timer, "error")
        timer.on("event", lambda _: None)
        with joined(timer):
            made = _count(timer._store, "ear")
            turns = _count(timer._store, "turn")
            for _ in range(3):
                seen = len(turns)
                _hold_for_echo(timer, proxy, turns)
                eventually(lambda seen=seen: len(turns) > seen + 10)
            eventually(lambda: timer.health().ok)
        assert [] == made
        assert all("wakes" not in str(e) for e in iter(lambda: _next(caught), None))


def _next(caught):
    return None if caught.empty() else caught.next()


def _hold_for_echo(timer, proxy, turns):
    """Have the reply of the next turn that asks for an echo dropped."""
    store = timer._store
    turn = store.turn
    dropped = threading.Event()

    def look(incarnation, request, lease_us):
        if request.echo and not dropped.is_set():
            dropped.set()
            proxy.drop_reply_once(f"{incarnation}:{request.seq}".encode())
        return turn(incarnation, request, lease_us)

    store.turn = look
    assert dropped.wait(PATIENCE)
    assert proxy.wait_dropped()
    store.turn = turn
    assert turns
