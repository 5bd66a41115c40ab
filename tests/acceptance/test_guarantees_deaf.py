"""Guarantees of a deaf node: its pub/sub connection fails in each way that networks cause."""

from __future__ import annotations

import queue
from contextlib import contextmanager

import pytest
from fleet import Fleet
from servers import PATIENCE, PROMPT, Server, eventually

from dtimer import DTimer
from dtimer.testing import Catch

pytestmark = pytest.mark.acceptance

POLL = 1_000
# The time from the poll to the claim on a busy machine. An event may be late by the poll interval;
# this allowance only keeps a slow machine from failing the tests.
SLACK = 1_000 * PROMPT

# A short deadline, after which a missing echo makes the node deaf.
TIMEOUT = 600


def silence(proxy):
    """Nothing arrives and no connection ends, as if a cable were pulled."""
    proxy.blackhole()


def refusal(proxy):
    """Connections end and new ones are refused, as if the process at the other end were gone."""
    proxy.refuse()
    proxy.cut()


CUTS = pytest.mark.parametrize("cut", [silence, refusal])


@contextmanager
def joined(server, namespace, sub, **options):
    """Run a node that subscribes through *sub*, and catch its events and errors."""
    options = {"poll_interval": POLL, "timeout": TIMEOUT} | options
    timer = DTimer("node", server.url, sub, ns=namespace, **options)
    events, errors = Catch(timer, "event"), Catch(timer, "error")
    with timer:
        yield timer, events, errors


def deaf(timer):
    return timer.health().deaf


def hearing(timer):
    return not timer.health().deaf


class TestPoll:
    """Without pub/sub an event is late by at most one poll interval."""

    @CUTS
    def test_events_arrive_by_the_poll_after_the_connection_is_cut(
        self, server, namespace, proxy, post, cut
    ):
        """
        From the cut on, before the node knows of it and afterwards, each event is late by at most
        one poll interval. The node reports that it is deaf.
        """
        with joined(server, namespace, proxy.url) as (timer, events, errors):
            eventually(lambda: hearing(timer))
            cut(proxy)
            for n in range(4):
                post.post({"n": n}, 100 * n)
                ((ev),) = events.next()
                assert n == ev["n"]
                assert 0 <= ev.lateness_ms <= POLL + SLACK
            eventually(lambda: deaf(timer), 2 * PATIENCE)
            assert not timer.health().ok
            assert "wakes do not arrive" in str(errors.next())
            post.post({"n": "deaf"}, 50)
            (ev,) = events.next()
            assert 0 <= ev.lateness_ms <= POLL + SLACK

    @CUTS
    def test_a_node_that_cannot_subscribe_joins_and_polls(
        self, server, namespace, proxy, post, cut
    ):
        """A node that cannot subscribe still joins, polls, and reports that it is deaf."""
        cut(proxy)
        with joined(server, namespace, proxy.url) as (timer, events, errors):
            assert deaf(timer)
            assert "wakes do not arrive" in str(errors.next())
            for n in range(3):
                post.post({"n": n}, 100)
                (ev,) = events.next()
                assert 0 <= ev.lateness_ms <= POLL + SLACK
            assert errors.empty()

    def test_a_user_who_may_not_publish_can_post(self, namespace):
        """
        A user without channels, the default of Redis 7, can post while other nodes hear wakes. The
        event is stored and is late by at most one poll interval.
        """
        with Server() as server:
            with server.client() as admin:
                rules = ("on", ">pw", "~*", "resetchannels", "+@all")
                admin.execute_command("ACL", "SETUSER", "mute", *rules)
            pub = server.client(username="mute", password="pw")
            post = DTimer("poster", pub, ns=namespace)
            try:
                with joined(server, namespace, None) as (timer, events, _):
                    eventually(lambda: hearing(timer))
                    for n in range(3):
                        assert post.post({"n": n}, 100)
                        (ev,) = events.next()
                        assert n == ev["n"]
                        assert 0 <= ev.lateness_ms <= POLL + SLACK
            finally:
                post.leave()
                pub.close()

    def test_a_deaf_node_comes_at_the_next_due_time(self, server, namespace, proxy, post):
        """
        A deaf node that has polled knows when the next event is due, and claims it then, even with
        a poll interval of an hour.
        """
        silence(proxy)
        post.post({"n": 1}, 3_000)
        options = {"poll_interval": 3_600_000}
        with joined(server, namespace, proxy.url, **options) as (timer, events, _):
            assert deaf(timer)
            (ev,) = events.next()
            assert 0 <= ev.lateness_ms <= SLACK


class TestRecovery:
    """A node hears wakes again as soon as it can."""

    @CUTS
    def test_a_node_hears_again_after_the_network_recovers(
        self, server, namespace, proxy, post, cut
    ):
        """
        After the network has recovered the node notices without help. With a poll interval of a
        minute, events arrive long before the next poll.
        """
        options = {"poll_interval": 60_000}
        with joined(server, namespace, proxy.url, **options) as (timer, events, _):
            eventually(lambda: hearing(timer))
            cut(proxy)
            eventually(lambda: deaf(timer), 2 * PATIENCE)
            proxy.heal()
            eventually(lambda: hearing(timer), 2 * PATIENCE)
            assert timer.health().ok
            # While it recovered, the node claimed once. From here on it needs a wake.
            for n in range(3):
                post.post({"n": n})
                (ev,) = events.next()
                assert n == ev["n"]

    @CUTS
    def test_events_posted_while_deaf_are_handled_when_it_hears_again(
        self, server, namespace, proxy, post, cut
    ):
        """
        Events that were posted while the node was deaf are handled when it hears again, before a
        poll.
        """
        options = {"poll_interval": 60_000}
        with joined(server, namespace, proxy.url, **options) as (timer, events, _):
            eventually(lambda: hearing(timer))
            cut(proxy)
            eventually(lambda: deaf(timer), 2 * PATIENCE)
            post.post({"n": 1})
            proxy.heal()
            (ev,) = events.next()
            assert {"n": 1} == ev


class TestOtherNodes:
    """A deaf node does not affect other nodes."""

    @CUTS
    def test_a_deaf_node_does_not_delay_others(self, server, namespace, proxy, post, cut):
        """
        A node that knows that it is deaf is never expected to come. With a poll interval of a
        minute, the node that hears handles each event at once.
        """
        with (
            Fleet(server.url, namespace, poll_interval=60_000, timeout=TIMEOUT) as fleet,
            joined(server, namespace, proxy.url, poll_interval=60_000) as (timer, events, _),
        ):
            eventually(lambda: hearing(timer))
            cut(proxy)
            eventually(lambda: deaf(timer), 2 * PATIENCE)
            # The next claim takes the deaf node off the roster; it claims when an echo is due.
            eventually(lambda: not any(node.waiting for node in post.nodes()), 2 * PATIENCE)
            fleet.start("hears")
            eventually(lambda: any(node.waiting for node in post.nodes()))
            for _ in range(20):
                id = post.post({})
                assert id == fleet.next("start").id
            assert events.empty()

    @CUTS
    def test_a_node_that_has_just_gone_deaf_delays_by_one_poll_at_most(
        self, server, namespace, proxy, post, cut
    ):
        """
        A node has just gone deaf, and no node knows of it yet. An event whose wake it misses is
        late by at most one poll interval, on either of the two nodes.
        """
        with joined(server, namespace, proxy.url) as (timer, *_):
            eventually(lambda: hearing(timer))
            late: queue.SimpleQueue[float] = queue.SimpleQueue()
            timer.on("event", lambda batch: late.put(batch[0].lateness_ms))
            with DTimer("hears", server.url, ns=namespace, poll_interval=POLL) as other:
                other.on("event", lambda batch: late.put(batch[0].lateness_ms))
                eventually(lambda: 2 == sum(node.waiting for node in post.nodes()))
                cut(proxy)
                for _ in range(6):
                    post.post({}, 30)
                    assert 0 <= late.get(timeout=2 * PATIENCE) <= POLL + SLACK
