"""Guarantees of sharing: how nodes in separate processes share events, and what that costs."""

from __future__ import annotations

import functools
import uuid
from collections import Counter

import pytest
from fleet import Fleet, names, start_together
from meters import Meter
from servers import Server, clear, eventually

from dtimer import DTimer
from dtimer.store.keys import Keys

pytestmark = pytest.mark.acceptance

EIGHT = names("node", 8)


@pytest.fixture(scope="module")
def fleet(server):
    """Eight nodes, each in a process, and a timer that posts and never joins."""
    ns = f"t-{uuid.uuid4().hex[:12]}"
    poster = DTimer("poster", server.url, ns=ns)
    with Fleet(server.url, ns) as fleet:
        start_together(fleet, [[name] for name in EIGHT])
        yield fleet, poster
    poster.leave()
    with server.client() as client:
        clear(client, ns)


@pytest.fixture
def poster(fleet):
    """The timer that posts, after the previous test's events are done."""
    _, poster = fleet
    eventually(lambda: not poster.stats().in_flight)
    idle(poster, 8)
    return poster


@pytest.fixture
def eight(fleet, poster):
    """The eight nodes, all idle."""
    return fleet[0]


def idle(timer, count):
    """Wait until *count* nodes are on the roster."""
    eventually(lambda: count == sum(node.waiting for node in timer.nodes()))


class TestShares:
    """Eight equal nodes share the events."""

    @pytest.mark.parametrize("delay", [0, 200])
    def test_eight_due_events_go_to_one_node_each(self, eight, poster, delay):
        """A busy node claims no second event, and the other nodes are woken."""
        poster.post_many([({"hold": 1}, delay)] * 8)
        started = eight.wait("start", 8)
        assert Counter(EIGHT) == Counter(report.node for report in started)
        for name in EIGHT:
            eight.go_on(name)
        eight.wait("end", 8)

    @pytest.mark.parametrize("delay", [0, 200])
    def test_a_backlog_is_shared(self, eight, poster, delay):
        """
        If 320 events are due at once, each of eight nodes handles its share, within 25 %.

        The handlers take far longer than an event needs of the processor. If they took no time, the
        shares would follow the nodes' shares of the processor, which dtimer does not control.
        """
        poster.post_many([({"brief": True, "take": 100}, delay)] * 320)
        shares = Counter(report.node for report in eight.wait("start", 320))
        assert set(EIGHT) == set(shares)
        assert 30 <= min(shares.values())
        assert max(shares.values()) <= 50

    def test_a_stream_is_shared(self, eight, poster, client):
        """A node that has claimed goes to the tail of the roster, so shares differ by 25 %."""
        due = Keys.of(poster.ns).due
        shares: Counter[str] = Counter()
        for _ in range(400):
            poster.post({"brief": True})
            shares[eight.next("start").node] += 1
            eventually(lambda: not client.zcard(due))
        assert set(EIGHT) == set(shares)
        assert 38 <= min(shares.values())
        assert max(shares.values()) <= 62


EVENTS = 100


@functools.cache
def cost(count):
    """Return the calls of *count* idle nodes while events are posted and handled one by one."""
    ns = "cost"
    due = Keys.of(ns).due
    # Use a separate server, so that its counters count only these nodes.
    with Server() as server, server.client() as client, Meter(server, ns) as meter:
        poster = DTimer("poster", server.url, ns=ns)
        with Fleet(server.url, ns, poll_interval=60_000) as fleet:
            groups = max(1, count // 8)
            start_together(fleet, [names(f"node-{g}", count // groups) for g in range(groups)])
            idle(poster, count)
            meter.read()
            for _ in range(EVENTS):
                poster.post({"brief": True})
                fleet.next("start")
                eventually(lambda: not client.zcard(due))
            found = meter.read()
        poster.leave()
    return found


class TestCost:
    """Many idle nodes cost the server their polls, and nothing for each event."""

    @pytest.mark.slow
    def test_calls_do_not_grow_with_nodes(self):
        """
        An event costs at most four calls with its post. Polls and echoes are not counted, because
        they belong to a node.
        """
        two, many = cost(2), cost(32)
        # A node that is late makes one claim in vain.
        spare = EVENTS // 10
        assert len(many.echoes) <= 32 * (1 + many.seconds / 5)
        assert two.calls - len(two.echoes) <= 4 * EVENTS + spare
        assert many.calls - len(many.echoes) <= 4 * EVENTS + spare
        assert abs(sum(many.inside.values()) / sum(two.inside.values()) - 1) < 0.25

    @pytest.mark.slow
    def test_an_event_wakes_at_most_two_nodes(self):
        """The node that handles it, and the node that watches its lease. All are woken in turn."""
        found = cost(32)
        assert EVENTS <= len(found.wakes) <= 2 * EVENTS + EVENTS // 10
        assert 32 == len(set(found.wakes))


def test_no_event_of_another_process_waits_for_a_poll(server, namespace):
    """
    The poll alone would take a minute. A wake announces an event that is due now or soon, or
    earlier than the event that the node waits for. A handler thread that becomes free looks for
    the next event itself.
    """
    with Fleet(server.url, namespace, poll_interval=60_000) as fleet:
        fleet.start("node")
        fleet.start("poster", join=False)

        def send(*items):
            fleet.tell("poster", "post", items=items)
            return fleet.next("posted").ids

        for delay in (0, 300, 0):
            (id,) = send([{}, delay])
            started = fleet.next("start")
            assert id == started.id
            assert started.due <= started.began
        _, earlier = send([{}, 3_600_000], [{}, 50])
        assert earlier == fleet.next("start").id
        first, *others = send([{"hold": 1}, 0], [{}, 0], [{}, 100])
        assert first == fleet.next("start").id
        fleet.go_on("node")
        assert others == [report.id for report in fleet.wait("start", 2)]
