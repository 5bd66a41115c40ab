"""Faults F03 to F08, F12 and F108: lost packets, broken, slow and narrow connections."""

from __future__ import annotations

import time

import pytest
from chaos.settings import PATIENT
from servers import LATER, LONGEST_CALL, PROMPT, eventually

from dtimer import DTimer, OutcomeUnknown, StoreError
from faults.gated_handler import GatedHandler
from faults.haste import hurried

pytestmark = pytest.mark.chaos


@pytest.fixture
def proxied(watch, proxy):
    """A timer that only posts, through the proxy, and already has a connection."""
    timer = DTimer("proxied", proxy.url, ns=watch.ns, timeout=LONGEST_CALL)
    timer.stats()
    yield timer
    timer.leave()


class TestBlackHole:
    """A half-open connection never raises, so only deadlines and echoes reveal it."""

    @pytest.mark.fault("F03")
    def test_calls_into_a_black_hole_end_at_their_deadline(self, watch, proxy, own, proxied):
        """
        A call that only reads fails; the outcome of a post is unknown. The node reports the
        outage once and retries less and less often. When the network works again, a post that
        was sent into the black hole has not acted twice.
        """
        node = watch.node(url=proxy.url, sub=own.url)
        # Notices that the namespace exists, so that the post below is the only request.
        proxied.stats()
        with watch.fault() as fault:
            proxy.blackhole()
            with hurried(proxied):
                with pytest.raises(OutcomeUnknown):
                    watch.in_time(watch.post, 0, proxied, id="perhaps")
                with pytest.raises(StoreError, match="could not be reached") as caught:
                    watch.in_time(proxied.stats)
            assert not isinstance(caught.value, OutcomeUnknown)
            fault.felt()
            assert node.timer.health().error
            proxy.heal()
        id = watch.post(id="perhaps")
        watch.wait_handled(id)
        watch.excused.add("perhaps")
        assert watch.times("perhaps") <= 2

    @pytest.mark.fault("F04")
    def test_a_deaf_node_polls_and_reports_it_once(self, watch, proxy, own):
        """
        Its echo does not come back, so the node knows that no wake would. It is not healthy.
        Its events arrive by polling, at most one poll interval late.
        """
        node = watch.node(url=own.url, sub=proxy.url)
        with watch.fault() as fault:
            proxy.blackhole()
            id = watch.post()
            watch.wait_handled(id)
            fault.felt(1.0)
            health = node.timer.health()
            assert health.deaf
            assert health.error is None
            assert ["wakes do not arrive"] == [str(e).partition(";")[0] for e in node.errors]
            ids = [watch.post() for _ in range(5)]
            watch.wait_handled(*ids)
            assert watch.latest(*ids) < PROMPT * 1000
            proxy.heal()
        assert [] == node.heard("disconnected")


class TestBroken:
    """A connection that ends is replaced, without an error if it was idle."""

    @pytest.mark.fault("F05")
    @pytest.mark.parametrize("which", ["all", "command", "subscription"])
    @pytest.mark.parametrize("how", ["reset", "half closed"])
    def test_an_ended_connection_is_replaced_without_an_error(self, watch, proxy, own, how, which):
        """
        The node notices a reset or a half close and connects again. It claims at once, in case
        it missed a wake meanwhile.
        """
        node = watch.node(
            url=own.url if which == "subscription" else proxy.url,
            sub=own.url if which == "command" else proxy.url,
        )
        with watch.fault(degraded=False):
            for _ in range(3):
                (proxy.cut if how == "reset" else proxy.half_close)()
                ids = [watch.post(), watch.post(20)]
                watch.assert_recovery()
                watch.wait_handled(*ids)
        assert [] == node.errors

    @pytest.mark.fault("F05")
    def test_a_claim_follows_each_subscription(self, watch, proxy, own):
        """An event posted while the node was not subscribed does not wait for the next poll."""
        node = watch.node(url=own.url, sub=proxy.url, poll_interval=LATER)
        with watch.fault(degraded=False):
            for _ in range(3):
                eventually(lambda: node.timer.nodes()[0].waiting)
                proxy.cut()
                watch.wait_handled(watch.post())
                watch.healthy()


class TestBad:
    """The network works, but badly."""

    @pytest.mark.fault("F06")
    def test_replies_that_arrive_byte_by_byte_are_complete(self, watch, proxy):
        """Text outside ASCII and line breaks in a payload survive it too."""
        # The text of a script may be sent byte by byte too, which takes long.
        watch.node(url=proxy.url, max_events=10, timeout=LONGEST_CALL)
        proxied = DTimer("proxied", proxy.url, ns=watch.ns, timeout=LONGEST_CALL)
        with watch.fault(silent=True):
            proxy.slice1()
            ids = [
                watch.post(0, proxied, more={"u": "\u00e9\U0001f600\r\n$3", "l": []})
                for _ in range(10)
            ]
            watch.wait_handled(*ids)
            assert 0 == proxied.stats().dead
            proxy.heal()
        proxied.leave()

    @pytest.mark.fault("F07")
    def test_long_round_trips_cost_neither_a_lease_nor_more_lateness(self, watch, proxy, own):
        """
        Each round trip takes a sixth of a lease. A handler that runs for two leases still keeps
        its event. Other events are late by the round trips and no more.
        """
        handler = GatedHandler()
        lease = PATIENT["lease"]
        node = watch.node(url=proxy.url, concurrency=2, handler=handler)
        long = watch.post()
        (ev,) = handler.begun()
        other = watch.node("other")
        other.timer.remove_listener("event", other.timer.listeners("event")[0])
        eventually(lambda: any("no listener" in line for line in watch.gauges.lines))
        with watch.fault(node, silent=True):
            proxy.delay(lease / 12)
            began = time.monotonic()
            eventually(lambda: time.monotonic() > began + 2 * lease / 1000)
            assert not ev.lease_lost
            handler.go_on(100)
            watch.wait_handled(long)
            ids = [watch.post() for _ in range(5)]
            watch.wait_handled(*ids)
            assert watch.latest(*ids) < PROMPT * 1000
            proxy.heal()
        assert [] == node.heard("lease_lost")

    @pytest.mark.fault("F08")
    def test_a_post_that_is_too_slow_has_an_unknown_outcome(self, watch, proxy, own, proxied):
        """A large post over a narrow connection ends at its deadline. Other nodes work on."""
        watch.node()
        with watch.fault(silent=True):
            proxy.throttle(10_000)
            with hurried(proxied), pytest.raises(OutcomeUnknown):
                watch.in_time(watch.post, 0, proxied, more={"much": "x" * 200_000}, id="perhaps")
            ids = [watch.post() for _ in range(5)]
            watch.wait_handled(*ids)
            assert watch.latest(*ids) < PROMPT * 1000
            proxy.heal()

    @pytest.mark.fault("F08")
    def test_an_event_too_large_for_one_node_goes_to_another(self, watch, proxy, own):
        """
        A node that cannot receive an event in time withholds it from the others for at most a
        lease or two.
        """
        watch.node("narrow", proxy.url, own.url)
        with watch.fault(degraded=False):
            proxy.throttle(10_000)
            id = watch.post(more={"much": "x" * 200_000})
            other = watch.node("other")
            watch.wait_handled(id)
            assert other.id == next(h.node for h in watch.handled if h.id == id)
            proxy.heal()


@pytest.mark.fault("F108")
class TestChoked:
    """Only the first part of each reply arrives, so a node must claim less at a time."""

    @pytest.fixture
    def choked(self, watch, proxy, own):
        """A node that will claim 600 kB, over a connection that ends each reply after 100 kB."""
        node = watch.node("choked", proxy.url, own.url, max_events=20)
        node.timer.pause()
        ids = [watch.post(more={"much": "x" * 50_000}) for _ in range(12)]
        proxy.choke(100_000)
        node.timer.resume()
        return node, ids

    def test_claims_fewer_events_at_a_time(self, watch, proxy, choked):
        """Each event arrives once, on its first attempt. The node does not report an outage."""
        node, ids = choked
        with watch.fault(degraded=False):
            watch.wait_handled(*ids)
            proxy.heal()
        assert {1} == {h.attempt for h in watch.handled}
        reported = [str(e).partition(";")[0] for e in node.errors]
        assert 1 == reported.count("the connection is too slow for the claimed events")

    def test_skips_an_event_that_can_never_arrive(self, watch, proxy, own):
        """
        The event does not block the events behind it, and another node receives it. The node is
        not healthy while it leaves events to others.
        """
        node = watch.node("choked", proxy.url, own.url, max_events=20)
        node.timer.pause()
        large = watch.post(more={"much": "x" * 200_000})
        small = [watch.post() for _ in range(5)]
        with watch.fault(node) as fault:
            proxy.choke(100_000)
            node.timer.resume()
            watch.wait_handled(*small)
            fault.felt()
            assert "left to other nodes" in str(node.timer.health().error)
            assert 0 == watch.times(large)
            other = watch.node("other")
            watch.wait_handled(large)
            assert other.id == next(h.node for h in watch.handled if h.id == large)
            proxy.heal()
        assert {1} == {h.attempt for h in watch.handled}

    def test_joins_although_its_first_claim_is_too_large(self, watch, proxy, own):
        """The node joins, claims less at a time, and handles all events."""
        ids = [watch.post(more={"much": "x" * 50_000}) for _ in range(12)]
        proxy.choke(100_000)
        timer = DTimer("choked", proxy.url, own.url, ns=watch.ns, max_events=20, **PATIENT)
        seen: set[str] = set()
        timer.on("event", lambda events: seen.update(ev.id for ev in events))
        timer.on("error", lambda _: None)
        timer.join()
        assert timer.joined
        eventually(lambda: seen == set(ids))
        timer.leave()
        assert 0 == timer.stats().in_flight


@pytest.mark.fault("F12")
def test_a_node_that_is_cut_off_loses_its_event_after_the_lease(watch, proxy):
    """
    Another node receives the event after the lease has ended, and not before. The first
    handler can see that its lease is lost. When the network works again, its confirm returns
    False and the node reports the lost lease.
    """
    handler = GatedHandler()
    lost = watch.node("lost", proxy.url, handler=handler)
    id = watch.post()
    (ev,) = handler.begun()
    other = watch.node("other")
    watch.excused.add(id)
    with watch.fault(lost) as fault:
        began = time.monotonic()
        proxy.blackhole()
        assert not ev.lease_lost
        watch.wait_handled(id)
        # The lease began at the last heartbeat, at most a third of a lease ago.
        assert time.monotonic() - began > PATIENT["lease"] / 1000 * 2 / 3 - 0.1
        assert other.id == watch.handled[-1].node
        assert ev.lease_lost
        with pytest.raises(StoreError):
            watch.in_time(ev.confirm)
        fault.felt()
        ids = [watch.post() for _ in range(5)]
        watch.wait_handled(*ids)
        proxy.heal()
        eventually(lambda: lost.heard("lease_lost"))
        assert not watch.in_time(ev.confirm)
        assert ev.lease_lost
        handler.go_on(1000)
        eventually(lambda: watch.times(id) == 2)
    assert [id] == [ev.id for ev in lost.heard("lease_lost")]
