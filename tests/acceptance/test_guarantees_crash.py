"""Guarantees if nodes are killed or frozen while they handle an event."""

from __future__ import annotations

import signal
from collections import defaultdict
from itertools import count, pairwise

import pytest
from fleet import Fleet, start_together
from servers import PATIENCE, PROMPT, eventually, server_ms

from dtimer import Cancelled
from dtimer.store.keys import Keys

pytestmark = pytest.mark.acceptance

LEASE = 2_000
KILLS = 10
OTHERS = 20  # ordinary events posted between two kills


def starts_by_id(fleet):
    """Return all reported starts by id, in the order of their attempts."""
    starts = defaultdict(list)
    for report in fleet.reported("start"):
        starts[report.id].append(report)
    return {id: sorted(reports, key=lambda r: r.attempt) for id, reports in starts.items()}


class ReplacedNodes:
    """Three nodes, each replaced when it is killed, so that a live node can receive its event."""

    def __init__(self, fleet):
        self.fleet = fleet
        self.names = (f"node-{n}" for n in count(1))
        start_together(fleet, [[next(self.names)] for _ in range(3)])

    def kill(self, name):
        self.fleet.kill9(name)
        self.fleet.start(next(self.names))


@pytest.mark.fault("F59")
@pytest.mark.slow
def test_ten_nodes_killed_in_a_handler_lose_no_event(server, client, namespace, poster):
    """
    The event of a killed node is delivered again after its lease has ended, never before, and
    within a second. No other event starts twice, and each start has a greater token.
    """
    running, killed = [], {}
    with Fleet(server.url, namespace, lease=LEASE) as fleet:
        nodes = ReplacedNodes(fleet)
        ordinary = []
        for _ in range(KILLS):
            ordinary += poster.post_many([({}, 20 * n) for n in range(OTHERS)])
            running.append(poster.post({"hold": 1}))
            start = fleet.next("start", id=running[-1])
            assert 1 == start.attempt
            nodes.kill(start.node)
            killed[start.id] = server_ms(client)
        for id in running:
            assert 2 == fleet.next("end", id=id, patience=LEASE / 1000 + 2 * PATIENCE).attempt
        eventually(lambda: not client.zcard(Keys.of(namespace).due))
        starts = starts_by_id(fleet)

    assert set(running + ordinary) == set(starts)
    for id, reports in starts.items():
        # A killed node may have claimed an event early without starting it; that is an attempt too.
        assert 1 <= reports[0].attempt
        for before, after in pairwise(reports):
            assert before.attempt < after.attempt
            assert before.token < after.token
            assert before.claimed + LEASE <= after.claimed, f"{id} had two holders"
    for id in running:
        assert starts[id][1].claimed <= killed[id] + LEASE + 1_000 * PROMPT
    stats = poster.stats()
    assert len(starts) == stats.totals["posted"] == stats.totals["confirmed"]
    # A claim that is released before its handler starts does not count.
    attempts = stats.totals["started"] - stats.totals["released"]
    assert attempts == sum(reports[-1].attempt for reports in starts.values())
    assert (0, 0) == (stats.totals["died"], stats.in_flight)


@pytest.mark.fault("F59")
def test_an_event_that_kills_its_nodes_becomes_a_dead_letter(server, client, namespace, poster):
    """The event would be retried for ever if only failures counted as attempts."""
    with Fleet(server.url, namespace, lease=1_000) as fleet:
        nodes = ReplacedNodes(fleet)
        id = poster.post({"hold": 9}, max_retries=2)
        for attempt in (1, 2, 3):
            nodes.kill(fleet.next("start", id=id, attempt=attempt).node)
        eventually(lambda: poster.stats().dead)
        (letter,) = poster.dead()
        assert (id, 3, "lease_lost") == (letter.id, letter.attempt, letter.reason)
        assert 3 == len(starts_by_id(fleet)[id])


@pytest.mark.fault("F52")
def test_a_frozen_node_loses_its_lease(server, client, namespace, poster):
    """
    When the node continues, its handler sees the lost lease. Its confirm has no effect, even if the
    same id has been posted again.
    """
    with Fleet(server.url, namespace, lease=1_000) as fleet:
        start_together(fleet, [["node-1"], ["node-2"]])
        poster.post({"hold": 1}, id="own")
        first = fleet.next("start")
        fleet.signal(first.node, signal.SIGSTOP)
        second = fleet.next("start")
        assert ("own", 2) == (second.id, second.attempt)
        assert first.node != second.node
        assert first.claimed + 1_000 <= second.claimed
        assert first.token < second.token
        assert not fleet.next("end", node=second.node).lost
        eventually(lambda: 1 == poster.stats().totals["confirmed"])
        poster.post({"the": "newer"}, 3_600_000, id="own")

        fleet.signal(first.node, signal.SIGCONT)
        fleet.go_on(first.node)
        assert fleet.next("end", node=first.node).lost
        assert "LeaseLost" in fleet.next("error", node=first.node).text
        assert 1 == poster.stats().totals["confirmed"]
        record = poster.peek("own")
        assert record
        assert {"the": "newer"} == record.event


def test_a_cancelled_event_does_not_start(server, client, namespace, poster):
    """
    This holds if ``cancel`` returns CANCELLED. After IN_FLIGHT the event starts, or is dropped if
    its node releases it for want of a thread.
    """
    with Fleet(server.url, namespace) as fleet:
        start_together(fleet, [["node-1"], ["node-2"]])
        # One event certainly starts before its cancellation, and one is certainly cancelled in
        # time.
        ids = [poster.post({})]
        fleet.next("end")
        ids += poster.post_many([({}, n / 2) for n in range(600)])
        ids.append(poster.post({}, 3_600_000))
        results = {id: poster.cancel(id) for id in ids}
        eventually(lambda: not client.zcard(Keys.of(namespace).due))
        started = set(starts_by_id(fleet))
    cancelled = {id for id, result in results.items() if result}
    dropped = set(ids) - started - cancelled
    assert set() == started & cancelled
    assert {Cancelled.IN_FLIGHT} >= {results[id] for id in dropped}
    assert len(cancelled) + len(dropped) == poster.stats().totals["cancelled"]
    assert cancelled
    assert started
