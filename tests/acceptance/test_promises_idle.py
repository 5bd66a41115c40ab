"""What waits costs nothing, and what is over leaves nothing behind."""

from __future__ import annotations

import gc
import queue
import threading

import pytest
from fleet import Fleet, names
from meters import Meter
from servers import PATIENCE, Server, eventually

from dtimer import DTimer
from dtimer.model.lateness import BUCKETS
from dtimer.store.keys import Keys
from dtimer.testing import Catch

pytestmark = pytest.mark.acceptance

TEN_YEARS = 10 * 365 * 86_400_000


class TestWaiting:
    """A node that waits takes its polls, and nothing more."""

    @pytest.mark.slow
    def test_ten_years_cost_nothing(self):
        """
        With an event due in ten years a node takes no more turns than its polls, the ends
        of long waits and overflows included, and next to no processor time.
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
                # Nothing is waited for but what comes after the time in question.
                post.post({"near": 2}, 3_000)
                fleet.next("end")
                fleet.tell("node", "cpu")
                spent = fleet.next("cpu").seconds - before
                found = meter.read()
            assert TEN_YEARS / 2 < next(post.upcoming()).due - _now_ms(server)
            post.leave()
        # A nap is shortened by jitter to three quarters of the interval at the most. And
        # there are the post, the turns about the near event, and the echoes.
        polls = found.seconds * 1000 / (0.75 * poll)
        assert found.calls <= polls + len(found.echoes) + 8
        # A thread that spins would take all of it.
        assert spent < found.seconds / 4

    def test_an_idle_node_with_nothing_to_wait_for(self):
        """A node in an empty namespace takes its polls, and nothing more."""
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

    def test_re_posting_the_own_id(self, server, namespace):
        """
        A handler that posts its own id anew, and then returns: the new event fires, each
        time, and what the first one's return confirms is not the new one.
        """
        with Fleet(server.url, namespace) as fleet:
            fleet.start("node")
            fleet.start("poster", join=False)
            item = {"ev": {"again": 3}, "id": "own"}
            fleet.tell("poster", "post", items=[item])
            starts = fleet.wait("start", 4)
            fleet.wait("end", 4)
            assert ["own"] * 4 == [report.id for report in starts]
            assert [1] * 4 == [report.attempt for report in starts]
            assert sorted({r.token for r in starts}) == [r.token for r in starts]
            post = DTimer("look", server.url, ns=namespace)
            eventually(lambda: 0 == post.stats().in_flight)
            assert post.peek("own") is None
            assert 0 == post.stats().dead
            post.leave()

    def test_re_posting_the_own_id_for_later(self, server, namespace):
        """A handler that posts its own id for ten years hence leaves exactly that behind."""
        node = DTimer("node", server.url, ns=namespace)
        node.on("event", lambda events: node.post({"new": 1}, TEN_YEARS, id="own"))
        done = Catch(node, "event")
        with node:
            node.post({"old": 1}, id="own")
            done.next()
            eventually(lambda: 0 == node.stats().in_flight)
            record = node.peek("own")
            assert record
            assert ({"new": 1}, 0) == (record.event, record.attempt)
            assert 1 == node.stats().scheduled


def _now_ms(server):
    with server.client() as client:
        seconds, micros = client.time()
    return seconds * 1000 + micros / 1000


class TestLeaving:
    """After ``leave`` a node has never been."""

    @pytest.fixture
    def alone(self):
        """A server without other guests, and a client of it."""
        with Server() as server, server.client() as client:
            client.ping()
            yield server, client

    def test_nothing_is_left(self, alone):
        """No thread, no connection, no registration: after each life, and after many."""
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
            nodes[0].leave()  # it looked around once more, and so has a connection
            eventually(lambda: 1 == len(client.client_list()))

    def test_nothing_is_left_of_a_process(self, server, client, namespace):
        """A process whose nodes have left has its main thread, and goes."""
        with Fleet(server.url, namespace) as fleet:
            fleet.start("one", "two", "three")
            for report in fleet.leave("one"):
                assert ["MainThread"] == report.threads
        assert not client.exists(Keys.of(namespace).nodes, Keys.of(namespace).alive)

    def test_a_killed_node_is_forgotten(self, server, client, namespace):
        """What a killed node has left registered is gone when another joins a minute later."""
        with Fleet(server.url, namespace) as fleet:
            fleet.start("victim")
            fleet.kill9("victim")
        keys = Keys.of(namespace)
        assert 1 == client.zcard(keys.alive)
        # A minute later: the registration is made a minute older.
        for name, seen in client.zrange(keys.alive, 0, -1, withscores=True):
            client.zadd(keys.alive, {name: seen - 60_000_001})
        with DTimer("next", server.url, ns=namespace) as node:
            assert ["next"] == [other.id for other in node.nodes()]
            assert (1, 1) == (client.zcard(keys.alive), client.hlen(keys.nodes))
            assert 0 == client.zcard(keys.roster)

    def test_nothing_is_left_of_a_timer_that_only_posts(self, alone):
        """A timer that never joined and is dropped has closed its connections."""
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
    """A namespace does not grow by what has gone through it."""

    def test_a_handful_of_keys(self, server, client, namespace):
        """
        When all events are gone, handled at once or at the second attempt, cancelled or
        replaced, the namespace holds a handful of keys, and they hold as much after a
        thousand events as after ten.
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
            """How much each key of the namespace holds."""
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
        # Two memos take turns: from one minute to the next there may be one more.
        bookkeeping = {"sys", "memo_a", "memo_b"}
        assert set(many) <= bookkeeping | {"nodes", "alive", "roster", "promise"}
        assert set(after) <= bookkeeping
        for key, size in many.items():
            # How late events were is counted in buckets, of which there are so many.
            room = 8 + (BUCKETS if key == "sys" else 0)
            assert size <= few.get(key, 0) + room, f"{key} grew: {few} to {many}"
