"""Guarantees of idle nodes: waiting costs nothing, and finished work leaves nothing behind."""

from __future__ import annotations

import gc
import queue
import threading

import pytest
from fleet import Fleet, names
from meters import Meter
from servers import PATIENCE, Server, eventually

from dtimer import DTimer
from dtimer.model.histogram import BUCKETS
from dtimer.store.keys import Keys
from dtimer.testing import Catch

pytestmark = pytest.mark.acceptance

TEN_YEARS = 10 * 365 * 86_400_000


class TestWaiting:
    """A waiting node makes its polls and no other calls."""

    @pytest.mark.slow
    def test_an_event_in_ten_years_costs_only_polls(self):
        """
        While an event is due in ten years, a node makes no more calls than its polls and uses
        almost no processor time. This includes the limits of long waits and overflows.
        """
        ns, poll = "idle", 200
        with Server() as server, Meter(server, ns) as meter:
            post = DTimer("poster", server.url, ns=ns)
            post.post({"far": 1}, TEN_YEARS)
            with Fleet(server.url, ns, poll_interval=poll) as fleet:
                fleet.start("node")
                post.post({"near": 1})
                fleet.next("start")
                fleet.next("end")
                fleet.tell("node", "cpu")
                before = fleet.next("cpu").seconds
                meter.read()
                # Instead of sleeping, wait for an event that is due after the measured time.
                post.post({"near": 2}, 3_000)
                fleet.next("end")
                fleet.tell("node", "cpu")
                spent = fleet.next("cpu").seconds - before
                found = meter.read()
            assert TEN_YEARS / 2 < next(post.upcoming()).due - _now_ms(server)
            post.leave()
        # Jitter shortens a wait to at least three quarters of the interval. The other calls are the
        # post, the claims for the near event, and the echoes.
        polls = found.seconds * 1000 / (0.75 * poll)
        assert found.calls <= polls + len(found.echoes) + 8
        # A thread that spins would use all of the time.
        assert spent < found.seconds / 4

    def test_a_node_in_an_empty_namespace_costs_only_polls(self):
        """A node in an empty namespace makes its polls and no other calls."""
        ns, poll = "idle", 100
        with Server() as server, Meter(server, ns) as meter:
            node = DTimer("node", server.url, ns=ns, poll_interval=poll)
            node.on("event", lambda _: None)
            with node:
                eventually(lambda: not node.health().deaf)
                meter.read()
                for _ in range(4):
                    meter.wait_published()
                found = meter.read()
        assert found.wakes == []
        assert found.calls <= found.seconds * 1000 / (0.75 * poll) + 2 * 5


def _now_ms(server):
    with server.client() as client:
        seconds, micros = client.time()
    return seconds * 1000 + micros / 1000


class TestLeave:
    """After ``leave`` nothing of a node remains."""

    @pytest.fixture
    def alone(self):
        """A server that no other test uses, and a client of it."""
        with Server() as server, server.client() as client:
            client.ping()
            yield server, client

    def test_nothing_is_left_after_each_leave(self, alone):
        """After each leave no thread, no connection and no registration remains."""
        server, client = alone
        threads = set(threading.enumerate())
        for life in range(5):
            nodes = [DTimer(name, server.url, ns="x") for name in names("node", 3)]
            caught = [Catch(node, "event") for node in nodes]
            for node in nodes:
                node.join()
            assert 3 == len(nodes[0].nodes())
            nodes[0].post_many([({}, 0)] * 30)
            eventually(lambda: not client.exists(Keys.of("x").due))
            for node in nodes:
                node.leave()
            assert threads == set(threading.enumerate())
            eventually(lambda: 1 == len(client.client_list()))
            assert [] == nodes[0].nodes()
            for key in ("nodes", "alive", "roster", "promise"):
                assert not client.exists(getattr(Keys.of("x"), key)), f"{key} after life {life}"
            assert any(not net.empty() for net in caught)
            nodes[0].leave()  # close the connection that reading has opened since
            eventually(lambda: 1 == len(client.client_list()))

    def test_nothing_is_left_of_a_process(self, server, client, namespace):
        """A process whose nodes have left has only its main thread."""
        with Fleet(server.url, namespace) as fleet:
            fleet.start("one", "two", "three")
            for report in fleet.leave("one"):
                assert ["MainThread"] == report.threads
        assert not client.exists(Keys.of(namespace).nodes, Keys.of(namespace).alive)

    def test_the_next_join_forgets_a_killed_node(self, server, client, namespace):
        """The registration of a killed node is removed when another node joins a minute later."""
        with Fleet(server.url, namespace) as fleet:
            fleet.start("victim")
            fleet.kill9("victim")
        keys = Keys.of(namespace)
        assert 1 == client.zcard(keys.alive)
        # To simulate a minute, make the registration older by a minute.
        for name, seen in client.zrange(keys.alive, 0, -1, withscores=True):
            client.zadd(keys.alive, {name: seen - 60_000_001})
        with DTimer("next", server.url, ns=namespace) as node:
            assert ["next"] == [other.id for other in node.nodes()]
            assert (1, 1) == (client.zcard(keys.alive), client.hlen(keys.nodes))
            assert 0 == client.zcard(keys.roster)

    def test_a_timer_that_only_posts_closes_its_connections(self, alone):
        """
        A timer that never joined closes its connections in leave() and when it is
        garbage-collected.
        """
        server, client = alone
        timer = DTimer("poster", server.url, ns="x")
        timer.post({})
        eventually(lambda: 2 == len(client.client_list()))
        timer.leave()
        eventually(lambda: 1 == len(client.client_list()))
        timer.post({})
        del timer
        gc.collect()
        eventually(lambda: 1 == len(client.client_list()))


class TestKeys:
    """A namespace does not grow with the number of events that it has handled."""

    def test_a_thousand_events_leave_as_much_as_ten(self, server, client, namespace):
        """
        Events are handled at the first or second attempt, cancelled or replaced. When all are gone
        the namespace has a few keys, which are as large after a thousand events as after ten.
        """
        handled: queue.SimpleQueue[int] = queue.SimpleQueue()
        node = DTimer("node", server.url, ns=namespace, max_events=50, backoff=0)
        node.on("error", lambda _: None)

        @node.on("event")
        def handle(events):
            if events[0].attempt == 1 and "fail" in events[0]:
                raise RuntimeError("as the payload says")
            handled.put(len(events))

        def found():
            """Return the size of each key of the namespace."""
            sizes = {}
            for key in client.scan_iter(match=f"dtimer:{{{namespace}}}:*", count=1000):
                size = client.hlen if client.type(key) == b"hash" else client.zcard
                sizes[key.decode().rpartition(":")[2]] = size(key)
            return sizes

        def go(number):
            node.post_many([({}, 0)] * number)
            node.post_many([{"ev": {"fail": 1}} for _ in range(number // 10)])
            for id in node.post_many([({}, 3_600_000)] * (number // 5)):
                assert node.cancel(id)
            for n in range(number // 10):
                node.post({"n": n}, 50, id="same")
            eventually(lambda: not client.exists(Keys.of(namespace).due), 2 * PATIENCE)
            return found()

        with node:
            few = go(10)
            many = go(1000)
        after = found()
        # Two session hashes alternate, so there may be one more after a minute.
        bookkeeping = {"sys", "memo_a", "memo_b"}
        assert set(many) <= bookkeeping | {"nodes", "alive", "roster", "promise"}
        assert set(after) <= bookkeeping
        for key, size in many.items():
            # The lateness histogram has a fixed number of buckets.
            room = 8 + (BUCKETS if key == "sys" else 0)
            assert size <= few.get(key, 0) + room, f"{key} grew: {few} to {many}"
