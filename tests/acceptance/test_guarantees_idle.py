"""Guarantees of idle nodes: waiting costs nothing, and finished work leaves nothing behind."""

from __future__ import annotations

import queue

import pytest
from fleet import Fleet
from meters import Meter
from servers import PATIENCE, Server, eventually, server_ms

from dtimer import DTimer
from dtimer.model.histogram import BUCKETS
from dtimer.store.keys import Keys

pytestmark = pytest.mark.acceptance

TEN_YEARS = 10 * 365 * 86_400_000


class TestWaiting:
    """A waiting node makes its polls and no other calls."""

    @pytest.mark.slow
    def test_an_event_in_ten_years_costs_only_polls(self):
        """A long wait must not overflow, or become a tight loop."""
        ns, poll = "idle", 200
        with Server() as server, server.client() as client, Meter(server, ns) as meter:
            poster = DTimer("poster", server.url, ns=ns)
            poster.post({"far": 1}, TEN_YEARS)
            with Fleet(server.url, ns, poll_interval=poll) as fleet:
                fleet.start("node")
                poster.post({"near": 1})
                fleet.next("start")
                fleet.next("end")
                fleet.tell("node", "cpu")
                before = fleet.next("cpu").seconds
                meter.read()
                # Instead of sleeping, wait for an event that is due after the measured time.
                poster.post({"near": 2}, 3_000)
                fleet.next("end")
                fleet.tell("node", "cpu")
                spent = fleet.next("cpu").seconds - before
                found = meter.read()
            assert TEN_YEARS / 2 < next(poster.upcoming()).due - server_ms(client)
            poster.leave()
        # Jitter shortens a wait to at least three quarters of the interval. The other calls are the
        # post, the claims for the near event, and the echoes.
        polls = found.seconds * 1000 / (0.75 * poll)
        assert found.calls <= polls + len(found.echoes) + 8
        # A thread that spins would use all of the time.
        assert spent < found.seconds / 4


class TestKeys:
    """A namespace does not grow with the number of events that it has handled."""

    def test_a_thousand_events_leave_as_much_as_ten(self, server, client, namespace):
        """
        Events are handled at the first or second attempt, cancelled or replaced. A namespace that
        grew with each would fill the memory in a year.
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
