"""Nodes during an outage of Redis: what they report, and how they recover without help."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from gated import Gated
from leftovers import descriptors, threads
from servers import PATIENCE, PROMPT, Server, eventually
from soundness import assert_sound

from dtimer import DTimer, LeaseLost, StateRollback, StoreError
from dtimer.store.keys import Keys
from dtimer.testing import Catch

#: The namespace on the server of the test.
NS = "outage"


@pytest.fixture
def own_server():
    """A server for one test to damage, which keeps acknowledged data."""
    with Server(appendonly=True) as server:
        yield server


@pytest.fixture
def patient_client(own_server):
    """A client of that server that survives the outages of the test."""
    with own_server.client(retry_on_error=[ConnectionError]) as client:
        yield client


@pytest.fixture
def node(own_server):
    """A node on that server that detects a fault quickly and leaves nothing behind."""
    before = descriptors()
    timer = DTimer("node", own_server.url, ns=NS, timeout=3_000, poll_interval=200)
    yield timer
    timer.leave(0)
    with own_server.client() as client:
        assert_sound(client, Keys.of(NS))
        assert [] == client.hvals(Keys.of(NS).nodes)
        # Only this client is connected.
        eventually(lambda: len(client.client_list()) == 1)
    eventually(lambda: not threads())
    assert descriptors() <= before


@contextlib.contextmanager
def joined(timer):
    """Join, wait until the node hears wakes and waits for work; leave at the end."""
    with timer:
        eventually(lambda: timer.health().ok and timer.nodes()[0].waiting)
        yield timer


class TestServerGone:
    """The server is killed or loses its data."""

    @pytest.mark.fault("F19")
    def test_a_node_recovers_from_a_restart_of_the_server(self, node, own_server):
        """The outage is reported once. Soon after the restart, events are delivered again."""
        caught, errors = Catch(node, "event"), Catch(node, "error")
        disconnects, connects = Catch(node, "disconnected"), Catch(node, "connected")
        with joined(node):
            connects.next()
            node.post({"n": 1}, 2_000)
            own_server.kill9()
            assert isinstance(disconnects.next(), Exception)
            assert isinstance(errors.next(), StoreError)
            health = node.health()
            assert not health.ok
            assert health.joined
            assert health.error
            # After several more attempts by both threads, nothing else must be reported.
            store = node._store
            attempts = [_recorded(store.claims, "start"), _recorded(store, "subscription")]
            eventually(lambda: all(len(calls) > 3 for calls in attempts))
            assert disconnects.empty()
            assert errors.empty()
            own_server.start()
            began = time.monotonic()
            connects.next()
            assert time.monotonic() - began < PROMPT
            assert [{"n": 1}] == caught.next()
            eventually(lambda: node.health().ok)
            node.post({"n": 2})
            assert [{"n": 2}] == caught.next()
        assert disconnects.empty()
        assert errors.empty(), errors.next()
        assert connects.empty()

    @pytest.mark.fault("F19")
    def test_a_handler_that_runs_through_an_outage_is_confirmed(self, node, own_server):
        """The event stays its own while the lease lasts, and its return is recorded afterwards."""
        node.on("error", lambda _: None)
        disconnects = Catch(node, "disconnected")
        handler = Gated(node)
        with joined(node):
            id = node.post({})
            handler.begun()
            own_server.kill9()
            disconnects.next()
            handler.go_on()
            handler.ended()
            own_server.start()
            eventually(lambda: node.peek(id) is None)
            assert 1 == node.stats().totals["started"]
            assert 1 == node.stats().totals["confirmed"]

    @pytest.mark.fault("F09")
    def test_leave_without_a_server_returns(self, node, own_server):
        """If the server is gone, leave() still returns within a bounded time."""
        node.on("error", lambda _: None)
        node.on("event", lambda _: None)
        with joined(node):
            own_server.kill9()
            began = time.monotonic()
            node.leave()
            assert time.monotonic() - began < PROMPT
            assert not node.joined
            assert [] == threads()
        own_server.start()
        with own_server.client() as client:
            # The node could not unregister; it would be forgotten after a minute.
            client.flushall()

    @pytest.mark.fault("F21")
    def test_an_event_flushed_while_its_handler_runs_is_a_lost_lease(self, node, patient_client):
        """The handler's work is not recorded."""
        lost, errors = Catch(node, "lease_lost"), Catch(node, "error")
        handler = Gated(node)
        with joined(node):
            id = node.post({})
            handler.begun()
            patient_client.flushall()
            handler.go_on()
            assert id == lost.next().id
            # A poll may report before this that all data are gone.
            errors_by_type = {type(error): error for error in (errors.next(), errors.next())}
            assert {LeaseLost, StateRollback} == set(errors_by_type)
            assert id == errors_by_type[LeaseLost].id
            assert node.peek(id) is None


def _recorded(owner, name):
    """Return a list that gets the arguments of each call of a method from now on."""
    calls = []
    method = getattr(owner, name)

    def call(*arguments):
        calls.append(arguments)
        return method(*arguments)

    setattr(owner, name, call)
    return calls


class TestNetwork:
    """The server works, and the network to it does not."""

    @pytest.mark.fault("F01")
    def test_a_lost_reply_does_not_cost_the_subscription(self, make, proxy, server):
        """The echo of a claim arrives although the reply is lost, so the subscription works."""
        timer = DTimer("node", proxy.url, server.url, ns=make().ns, timeout=3_000, poll_interval=50)
        errors = Catch(timer, "error")
        timer.on("event", lambda _: None)
        with joined(timer):
            subscriptions = _recorded(timer._store, "subscription")
            claims = _recorded(timer._store.claims, "start")
            for _ in range(3):
                before = len(claims)
                _drop_reply_to_echo(timer, proxy)
                eventually(lambda before=before: len(claims) > before + 10)
            eventually(lambda: timer.health().ok)
        assert [] == subscriptions
        while not errors.empty():
            assert "wakes" not in str(errors.next())


def _drop_reply_to_echo(timer, proxy):
    """Drop the reply of the next claim that requests an echo."""
    claims = timer._store.claims
    start = claims.start
    dropped = threading.Event()

    def drop_reply_and_claim(incarnation, request, lease_us):
        if request.echo and not dropped.is_set():
            dropped.set()
            proxy.drop_reply_once(f"{incarnation}:{request.seq}".encode())
        return start(incarnation, request, lease_us)

    claims.start = drop_reply_and_claim
    assert dropped.wait(PATIENCE)
    assert proxy.wait_dropped()
    claims.start = start


def test_burying_an_event_out_of_memory_is_not_an_outage(node, own_server, patient_client):
    """A node can bury an event while Redis is out of memory, and reports no outage."""
    disconnects, dead = Catch(node, "disconnected"), Catch(node, "dead")
    node.on("event", lambda events: 1 / 0)
    node.join()
    node.post({}, 100, id="a", max_retries=0)
    patient_client.config_set("maxmemory", 1)
    assert "a" == dead.next().id
    # The burial is emitted before the dead letters are counted, so wait for a later claim.
    buried = time.monotonic()
    eventually(lambda: node.health().claim_age_ms < (time.monotonic() - buried) * 1000)
    patient_client.config_set("maxmemory", 0)
    assert disconnects.empty()
