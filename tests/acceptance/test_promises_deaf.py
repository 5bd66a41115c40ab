"""Nodes that do not hear: pub/sub is cut off, in each of the ways in which networks do that."""

from __future__ import annotations

import queue
from contextlib import contextmanager

import pytest
from fleet import Fleet
from proxy import Proxy
from servers import PATIENCE, PROMPT, Server, eventually

from dtimer import DTimer
from dtimer.testing import Catch

pytestmark = pytest.mark.acceptance

POLL = 1_000
# From the poll to the claim, on a machine that is busy with something else. By how much an
# event may be late is the poll interval; this only keeps a slow machine from failing us.
SLACK = 1_000 * PROMPT

# A deadline that makes deafness known soon: an echo has this long to come back.
TIMEOUT = 600


def silence(proxy):
    """Nothing arrives any more, and no connection ends: a cable was pulled."""
    proxy.blackhole()


def refusal(proxy):
    """Connections end, and new ones are refused: the process at the other end is gone."""
    proxy.refuse()
    proxy.cut()


CUTS = pytest.mark.parametrize("cut", [silence, refusal])


@pytest.fixture
def proxy(server):
    """The way of the subscriptions, and of nothing else."""
    with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
def post(server, namespace):
    """A timer that posts and never joins."""
    timer = DTimer("poster", server.url, ns=namespace)
    yield timer
    timer.leave()


@contextmanager
def joined(server, namespace, sub, **options):
    """A node that hears by way of *sub*, with nets for its events and its errors."""
    options = {"poll_interval": POLL, "timeout": TIMEOUT} | options
    timer = DTimer("node", server.url, sub, ns=namespace, **options)
    events, errors = Catch(timer, "event"), Catch(timer, "error")
    with timer:
        yield timer, events, errors


def deaf(timer):
    return timer.health().deaf


def hearing(timer):
    return not timer.health().deaf


class TestThePollIsTheGuarantee:
    """Without pub/sub an event is late by one poll interval at most."""

    @CUTS
    def test_cut_off_after_joining(self, server, namespace, proxy, post, cut):
        """
        From the moment of the cut, with the node not knowing yet, and afterwards: each
        event is late by a poll interval at most, and the node says that it is deaf.
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
    def test_cut_off_before_joining(self, server, namespace, proxy, post, cut):
        """A node that cannot subscribe joins all the same, polls, and says that it is deaf."""
        cut(proxy)
        with joined(server, namespace, proxy.url) as (timer, events, errors):
            assert deaf(timer)
            assert "wakes do not arrive" in str(errors.next())
            for n in range(3):
                post.post({"n": n}, 100)
                (ev,) = events.next()
                assert 0 <= ev.lateness_ms <= POLL + SLACK
            assert errors.empty()

    def test_subscribing_is_forbidden(self, namespace):
        """
        A user who may do everything but subscribe has a node that polls and says that it is
        deaf, and who forbade it.
        """
        with Server() as server:
            with server.client() as admin:
                rules = ("on", ">pw", "~*", "&*", "+@all", "-subscribe", "-psubscribe")
                admin.execute_command("ACL", "SETUSER", "mute", *rules)
            sub = server.client(username="mute", password="pw")
            post = DTimer("poster", server.url, ns=namespace)
            with joined(server, namespace, sub) as (timer, events, errors):
                assert deaf(timer)
                assert "permission" in str(errors.next())
                for n in range(3):
                    post.post({"n": n}, 100)
                    (ev,) = events.next()
                    assert 0 <= ev.lateness_ms <= POLL + SLACK
            post.leave()
            sub.close()

    def test_publishing_is_forbidden(self, namespace):
        """
        A user without a channel, as Redis 7 makes them by default, may post while others
        hear: the event is stored, the post says so, and the event is late by a poll at most.
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

    def test_the_next_due_time_needs_no_wake(self, server, namespace, proxy, post):
        """
        A deaf node that has polled knows when the next event is due, and comes for it then:
        with a poll interval of an hour what was posted before is not late by one.
        """
        silence(proxy)
        post.post({"n": 1}, 3_000)
        options = {"poll_interval": 3_600_000}
        with joined(server, namespace, proxy.url, **options) as (timer, events, _):
            assert deaf(timer)
            (ev,) = events.next()
            assert 0 <= ev.lateness_ms <= SLACK


class TestHealing:
    """A node hears again as soon as it can."""

    @CUTS
    def test_it_hears_again(self, server, namespace, proxy, post, cut):
        """
        After the network has healed a node finds out by itself, and is as prompt as before:
        with a poll interval of a minute an event arrives long before that.
        """
        options = {"poll_interval": 60_000}
        with joined(server, namespace, proxy.url, **options) as (timer, events, _):
            eventually(lambda: hearing(timer))
            cut(proxy)
            eventually(lambda: deaf(timer), 2 * PATIENCE)
            proxy.heal()
            eventually(lambda: hearing(timer), 2 * PATIENCE)
            assert timer.health().ok
            # On its way from deaf to hearing it had a turn; from here on it has to be woken.
            for n in range(3):
                post.post({"n": n})
                (ev,) = events.next()
                assert n == ev["n"]

    @CUTS
    def test_what_was_posted_meanwhile(self, server, namespace, proxy, post, cut):
        """What was posted while the node was deaf is handled when it hears again, unasked."""
        options = {"poll_interval": 60_000}
        with joined(server, namespace, proxy.url, **options) as (timer, events, _):
            eventually(lambda: hearing(timer))
            cut(proxy)
            eventually(lambda: deaf(timer), 2 * PATIENCE)
            post.post({"n": 1})
            proxy.heal()
            (ev,) = events.next()
            assert {"n": 1} == ev


class TestOthers:
    """A deaf node is nobody else's trouble."""

    @CUTS
    def test_a_deaf_node_delays_nobody(self, server, namespace, proxy, post, cut):
        """
        A node that knows that it is deaf is not counted on: with a poll interval of a
        minute each event is handled at once, by the node that hears.
        """
        with (
            Fleet(server.url, namespace, poll_interval=60_000, timeout=TIMEOUT) as fleet,
            joined(server, namespace, proxy.url, poll_interval=60_000) as (timer, events, _),
        ):
            eventually(lambda: hearing(timer))
            cut(proxy)
            eventually(lambda: deaf(timer), 2 * PATIENCE)
            # Its next turn takes it off the roster; an echo that is due makes it take one.
            eventually(lambda: not any(node.waiting for node in post.nodes()), 2 * PATIENCE)
            fleet.start("hears")
            eventually(lambda: any(node.waiting for node in post.nodes()))
            for _ in range(20):
                id = post.post({})
                assert id == fleet.next("start").id
            assert events.empty()

    @CUTS
    def test_a_fresh_silence(self, server, namespace, proxy, post, cut):
        """
        Of two nodes one has just gone deaf, and neither it nor anybody else knows. What it
        is told in vain is late by a poll interval at most, whoever handles it.
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
