"""How nodes in processes of their own share the events, and what that costs their server."""

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
def crew(server):
    """Eight nodes, each in a process, and a timer that posts and never joins."""
    ns = f"t-{uuid.uuid4().hex[:12]}"
    post = DTimer("poster", server.url, ns=ns)
    with Fleet(server.url, ns) as fleet:
        start_together(fleet, [[name] for name in EIGHT])
        yield fleet, post
    post.leave()
    with server.client() as client:
        clear(client, ns)


@pytest.fixture
def post(crew):
    """The timer that posts, when nothing is left of the test before."""
    _, post = crew
    eventually(lambda: not post.stats().in_flight)
    idle(post, 8)
    return post


@pytest.fixture
def eight(crew, post):
    """The eight nodes, all idle."""
    return crew[0]


def idle(timer, count):
    """Wait until *count* nodes are on the roster."""
    eventually(lambda: count == sum(node.waiting for node in timer.nodes()))


class TestShares:
    """Eight equal nodes share what there is."""

    @pytest.mark.parametrize("delay", [0, 200])
    def test_one_each(self, eight, post, delay):
        """
        Of eight events due at once eight nodes with a hand each receive one each: a node
        that handles one takes no second, and all others are told to come.
        """
        post.post_many([({"hold": 1}, delay)] * 8)
        started = eight.wait("start", 8)
        assert Counter(EIGHT) == Counter(report.node for report in started)
        for name in EIGHT:
            eight.go_on(name)
        eight.wait("end", 8)

    @pytest.mark.parametrize("delay", [0, 200])
    def test_a_backlog_is_shared(self, eight, post, delay):
        """
        Of 320 events due at once each of eight nodes handles its share, within 25 %.

        Handlers take their time here, far more than an event takes of the processor. Where they
        take none at all, what a node gets of the backlog is what it gets of the processor, and
        that is not dtimer's to share out.
        """
        post.post_many([({"brief": True, "take": 100}, delay)] * 320)
        shares = Counter(report.node for report in eight.wait("start", 320))
        assert set(EIGHT) == set(shares)
        assert 30 <= min(shares.values())
        assert max(shares.values()) <= 50

    def test_a_stream_goes_round(self, eight, post, client):
        """
        Of events that come one after the other each of eight nodes handles its share,
        within 25 %: who took one goes to the tail of the roster.
        """
        due = Keys.of(post.ns).due
        shares: Counter[str] = Counter()
        for _ in range(400):
            post.post({"brief": True})
            shares[eight.next("start").node] += 1
            eventually(lambda: not client.zcard(due))
        assert set(EIGHT) == set(shares)
        assert 38 <= min(shares.values())
        assert max(shares.values()) <= 62


EVENTS = 100


@functools.cache
def cost(count):
    """What *count* idle nodes cost while events are posted and handled one by one."""
    ns = "cost"
    due = Keys.of(ns).due
    # A server without other guests: all that it counts is ours.
    with Server() as server, server.client() as client, Meter(server, ns) as meter:
        post = DTimer("poster", server.url, ns=ns)
        with Fleet(server.url, ns, poll_interval=60_000) as fleet:
            groups = max(1, count // 8)
            start_together(fleet, [names(f"node-{g}", count // groups) for g in range(groups)])
            idle(post, count)
            meter.read()
            for _ in range(EVENTS):
                post.post({"brief": True})
                fleet.next("start")
                eventually(lambda: not client.zcard(due))
            found = meter.read()
        post.leave()
    return found


class TestCost:
    """Many idle nodes cost the server their polls, and nothing per event."""

    @pytest.mark.slow
    def test_commands_do_not_grow_with_nodes(self):
        """
        An event costs at most four calls, posting included, and with 32 nodes no more than
        with two. Polls and echoes are extra: they are the price of a node, not of an event.
        """
        two, many = cost(2), cost(32)
        # A node that was late once comes once in vain.
        spare = EVENTS // 10
        assert len(many.echoes) <= 32 * (1 + many.seconds / 5)
        assert two.calls - len(two.echoes) <= 4 * EVENTS + spare
        assert many.calls - len(many.echoes) <= 4 * EVENTS + spare
        assert abs(sum(many.inside.values()) / sum(two.inside.values()) - 1) < 0.25

    @pytest.mark.slow
    def test_one_is_woken_and_not_all(self):
        """
        An event wakes the node that is to handle it and, at most, the one that watches its
        lease, of 32; and each of them has its turn.
        """
        found = cost(32)
        assert EVENTS <= len(found.wakes) <= 2 * EVENTS + EVENTS // 10
        assert 32 == len(set(found.wakes))


class TestBell:
    """A wake makes an event prompt, where the poll alone would take a minute."""

    def test_a_post_rings(self, server, namespace):
        """An event posted by another process arrives long before the next poll, due now or soon."""
        with Fleet(server.url, namespace, poll_interval=60_000) as fleet:
            fleet.start("node")
            fleet.start("poster", join=False)
            for delay in (0, 300, 0):
                fleet.tell("poster", "post", items=[[{}, delay]])
                (id,) = fleet.next("posted").ids
                started = fleet.next("start")
                assert id == started.id
                assert started.due <= started.began

    def test_a_sooner_event_rings(self, server, namespace):
        """A node that waits for an event far off is told of a sooner one."""
        with Fleet(server.url, namespace, poll_interval=60_000) as fleet:
            fleet.start("node")
            fleet.start("poster", join=False)
            fleet.tell("poster", "post", items=[[{}, 3_600_000], [{}, 50]])
            assert fleet.next("posted").ids[1] == fleet.next("start").id

    def test_a_freed_hand_goes_on(self, server, namespace):
        """What waited for a free hand is handled as soon as one is, with no poll in between."""
        with Fleet(server.url, namespace, poll_interval=60_000) as fleet:
            fleet.start("node")
            fleet.start("poster", join=False)
            fleet.tell("poster", "post", items=[[{"hold": 1}, 0], [{}, 0], [{}, 100]])
            first, *others = fleet.next("posted").ids
            assert first == fleet.next("start").id
            fleet.go_on("node")
            assert others == [report.id for report in fleet.wait("start", 2)]
