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

#: The poll interval, in ms. An event may be late by it, and by the time from a poll to its claim:
#: the allowance for that only keeps a slow machine from failing the tests.
POLL = 1_000
LATEST = POLL + 1_000 * PROMPT

#: The poll interval of a test in which an event can only arrive by a wake.
MINUTE = 60_000

#: A short deadline, in ms, after which a missing echo makes the node deaf.
TIMEOUT = 600


def silence(proxy):
    """Nothing arrives and no connection ends, as if a cable were pulled."""
    proxy.blackhole()


def refusal(proxy):
    """Connections end and new ones are refused, as if the process at the other end were gone."""
    proxy.refuse()
    proxy.cut()


@pytest.fixture(params=[silence, refusal], ids=["silence", "refusal"])
def cut(request, proxy):
    """A function that cuts the pub/sub connection of the node."""
    return lambda: request.param(proxy)


@contextmanager
def joined(server, namespace, sub, poll_interval=POLL):
    """Run a node that subscribes through *sub*; yield it, and catch its events and errors."""
    timer = DTimer(
        "node", server.url, sub, ns=namespace, poll_interval=poll_interval, timeout=TIMEOUT
    )
    events, errors = Catch(timer, "event"), Catch(timer, "error")
    with timer:
        yield timer, events, errors


@pytest.fixture
def join(server, namespace, proxy):
    """A function that runs a node whose subscription goes through the proxy: see `joined`."""
    return lambda *options: joined(server, namespace, proxy.url, *options)


def wait_deaf(timer):
    eventually(lambda: timer.health().deaf, 2 * PATIENCE)


def wait_hearing(timer):
    eventually(lambda: not timer.health().deaf, 2 * PATIENCE)


def assert_by_poll(poster, events, *delays):
    """Post an event for each delay in ms, and assert that it arrives by the next poll."""
    for n, delay in enumerate(delays):
        assert poster.post({"n": n}, delay)
        (ev,) = events.next()
        assert n == ev["n"]
        assert 0 <= ev.lateness_ms <= LATEST


class TestPoll:
    """Without pub/sub an event is late by at most one poll interval."""

    def test_events_arrive_by_the_poll_after_the_connection_is_cut(self, join, poster, cut):
        """This holds before the node knows of the cut, and after it has reported it."""
        with join() as (timer, events, errors):
            wait_hearing(timer)
            cut()
            assert_by_poll(poster, events, 0, 100, 200, 300)
            wait_deaf(timer)
            assert not timer.health().ok
            assert "wakes do not arrive" in str(errors.next())
            assert_by_poll(poster, events, 50)

    def test_a_node_that_cannot_subscribe_joins_and_polls(self, join, poster, cut):
        """The node reports that it is deaf, once."""
        cut()
        with join() as (timer, events, errors):
            assert timer.health().deaf
            assert "wakes do not arrive" in str(errors.next())
            assert_by_poll(poster, events, 100, 100, 100)
            assert errors.empty()

    def test_a_user_who_may_not_publish_can_post(self, namespace):
        """A user of Redis 7 has no channels by default. A poll finds the event."""
        with Server() as server, joined(server, namespace, None) as (timer, events, _):
            with server.client() as admin:
                rules = ("on", ">pw", "~*", "resetchannels", "+@all")
                admin.execute_command("ACL", "SETUSER", "mute", *rules)
            with server.client(username="mute", password="pw") as client:
                poster = DTimer("poster", client, ns=namespace)
                wait_hearing(timer)
                assert_by_poll(poster, events, 100, 100, 100)
                poster.leave()

    def test_a_deaf_node_comes_at_the_next_due_time(self, join, proxy, poster):
        """A poll tells the node when the next event is due, so it need not wait for another."""
        silence(proxy)
        poster.post({"n": 1}, 3_000)
        with join(60 * MINUTE) as (timer, events, _):
            assert timer.health().deaf
            (ev,) = events.next()
            assert 0 <= ev.lateness_ms <= 1_000 * PROMPT


class TestRecovery:
    """A node hears wakes again as soon as it can."""

    def test_a_node_hears_again_after_the_network_recovers(self, join, proxy, poster, cut):
        """An event posted while the node was deaf, and events that come later, wait for no poll."""
        with join(MINUTE) as (timer, events, _):
            wait_hearing(timer)
            cut()
            wait_deaf(timer)
            poster.post({"n": "while deaf"})
            proxy.heal()
            assert [{"n": "while deaf"}] == events.next()
            wait_hearing(timer)
            assert timer.health().ok
            # While it recovered, the node claimed. From here on it needs a wake.
            for n in range(3):
                poster.post({"n": n})
                assert [{"n": n}] == events.next()


class TestOtherNodes:
    """A deaf node does not affect other nodes."""

    def test_a_deaf_node_does_not_delay_others(self, server, namespace, join, poster, cut):
        """A node that knows that it is deaf is never expected to come, so no event waits for it."""
        with (
            Fleet(server.url, namespace, poll_interval=MINUTE, timeout=TIMEOUT) as fleet,
            join(MINUTE) as (timer, events, _),
        ):
            wait_hearing(timer)
            cut()
            wait_deaf(timer)
            # The next claim takes the deaf node off the roster; it claims when an echo is due.
            eventually(lambda: not any(node.waiting for node in poster.nodes()), 2 * PATIENCE)
            fleet.start("hears")
            eventually(lambda: any(node.waiting for node in poster.nodes()))
            for _ in range(20):
                id = poster.post({})
                assert id == fleet.next("start").id
            assert events.empty()

    def test_a_node_that_has_just_gone_deaf_delays_by_one_poll_at_most(
        self, server, namespace, join, poster, cut
    ):
        """No node knows of it yet. Either node handles an event whose wake is missed."""
        late: queue.SimpleQueue[float] = queue.SimpleQueue()
        with (
            join() as (timer, _, _),
            DTimer("hears", server.url, ns=namespace, poll_interval=POLL) as other,
        ):
            wait_hearing(timer)
            for node in (timer, other):
                node.on("event", lambda batch: late.put(batch[0].lateness_ms))
            eventually(lambda: 2 == sum(node.waiting for node in poster.nodes()))
            cut()
            for _ in range(6):
                poster.post({}, 30)
                assert 0 <= late.get(timeout=2 * PATIENCE) <= LATEST
