"""Faults F03 to F08, F12 and F108: lost packets, broken, slow and narrow connections."""

from __future__ import annotations

import time

import pytest
from chaos.settings import PATIENT
from servers import LONGEST_CALL, eventually

from dtimer import DTimer, OutcomeUnknown, StoreError
from faults.calls import definite_failure, hurried

pytestmark = pytest.mark.chaos


def large(size):
    """Return the further payload of an event of this many bytes."""
    return {"text": "x" * size}


class TestBlackHole:
    """A half-open connection never raises, so only deadlines and echoes reveal it."""

    @pytest.mark.fault("F03")
    def test_calls_into_a_black_hole_end_at_their_deadline(
        self, watch, proxy, own_server, proxied_caller
    ):
        """The outcome of a post is unknown, and it does not act twice later."""
        node = watch.node(url=proxy.url, sub=own_server.url)
        with watch.fault() as fault:
            proxy.blackhole()
            with hurried(proxied_caller):
                with pytest.raises(OutcomeUnknown):
                    watch.in_time(watch.post, 0, proxied_caller, id="perhaps")
                with definite_failure("could not be reached"):
                    watch.in_time(proxied_caller.stats)
            fault.felt()
            assert node.timer.health().error
            proxy.heal()
        id = watch.post(id="perhaps")
        watch.wait_handled(id)
        # Both posts with this id may have been delivered.
        watch.excused.add("perhaps")
        assert watch.times("perhaps") <= 2

    @pytest.mark.fault("F04")
    def test_a_deaf_node_polls_and_reports_it_once(self, watch, proxy, own_server):
        """Its echo does not come back, so no wake would. Events are late by one poll at most."""
        node = watch.node(url=own_server.url, sub=proxy.url)
        with watch.fault() as fault:
            proxy.blackhole()
            id = watch.post()
            watch.wait_handled(id)
            fault.felt(1.0)
            health = node.timer.health()
            assert health.deaf
            assert health.error is None
            assert ["wakes do not arrive"] == [str(e).partition(";")[0] for e in node.errors]
            watch.assert_prompt()
            proxy.heal()
        assert [] == node.heard("disconnected")


@pytest.mark.fault("F05")
@pytest.mark.parametrize("which", ["all", "command", "subscription"])
@pytest.mark.parametrize("how", ["reset", "half closed"])
def test_an_ended_connection_is_replaced_without_an_error(watch, proxy, own_server, how, which):
    """The node connects again, and claims at once, in case it missed a wake meanwhile."""
    node = watch.node(
        url=own_server.url if which == "subscription" else proxy.url,
        sub=own_server.url if which == "command" else proxy.url,
    )
    with watch.fault(degraded=False):
        for _ in range(3):
            (proxy.cut if how == "reset" else proxy.half_close)()
            ids = [watch.post(), watch.post(20)]
            watch.assert_recovery()
            watch.wait_handled(*ids)
    assert [] == node.errors


class TestSlowNetwork:
    """The network works, but slowly."""

    @pytest.mark.fault("F06")
    def test_replies_that_arrive_byte_by_byte_are_complete(self, watch, proxy, proxied_caller):
        """Text outside ASCII and line breaks in a payload survive it too."""
        # The text of a script may be sent byte by byte too, which takes long.
        watch.node(url=proxy.url, max_events=10, timeout=LONGEST_CALL)
        more = {"u": "\u00e9\U0001f600\r\n$3", "l": []}
        with watch.fault(silent=True):
            proxy.slice1()
            watch.wait_handled(*[watch.post(0, proxied_caller, more=more) for _ in range(10)])
            assert 0 == proxied_caller.stats().dead
            proxy.heal()

    @pytest.mark.fault("F07")
    def test_long_round_trips_cost_neither_a_lease_nor_more_lateness(self, watch, proxy):
        """A round trip takes a sixth of a lease, and the handler two leases."""
        lease = PATIENT["lease"]
        node, handler, ev = watch.busy_node(url=proxy.url, concurrency=2)
        other_node = watch.node("other")
        other_node.timer.remove_listener("event", other_node.timer.listeners("event")[0])
        eventually(lambda: any("no listener" in line for line in watch.gauges.lines))
        with watch.fault(node, silent=True):
            proxy.delay(lease / 12)
            began = time.monotonic()
            eventually(lambda: time.monotonic() > began + 2 * lease / 1000)
            assert not ev.lease_lost
            handler.go_on(100)
            watch.wait_handled(ev.id)
            watch.assert_prompt()
            proxy.heal()
        assert [] == node.heard("lease_lost")

    @pytest.mark.fault("F08")
    def test_a_post_that_is_too_slow_has_an_unknown_outcome(self, watch, proxy, proxied_caller):
        """A large post over a narrow connection ends at its deadline. Other nodes work on."""
        watch.node()
        with watch.fault(silent=True):
            proxy.throttle(10_000)
            with hurried(proxied_caller), pytest.raises(OutcomeUnknown):
                watch.in_time(watch.post, 0, proxied_caller, more=large(200_000), id="perhaps")
            watch.assert_prompt()
            proxy.heal()

    @pytest.mark.fault("F08")
    def test_an_event_too_large_for_one_node_goes_to_another(self, watch, proxy, own_server):
        """A node that cannot receive it in time withholds it for at most a lease or two."""
        watch.node("narrow", proxy.url, own_server.url)
        with watch.fault(degraded=False):
            proxy.throttle(10_000)
            id = watch.post(more=large(200_000))
            other_node = watch.node("other")
            watch.wait_handled(id)
            assert other_node.id == next(h.node for h in watch.handled if h.id == id)
            proxy.heal()


@pytest.mark.fault("F108")
class TestChoked:
    """Only the first part of each reply arrives, so a node must claim less at a time."""

    def test_claims_fewer_events_at_a_time(self, watch, proxy, own_server):
        """Each event arrives once, on its first attempt. The node does not report an outage."""
        node = watch.node("choked", proxy.url, own_server.url, max_events=20)
        node.timer.pause()
        ids = [watch.post(more=large(50_000)) for _ in range(12)]
        proxy.choke(100_000)
        node.timer.resume()
        with watch.fault(degraded=False):
            watch.wait_handled(*ids)
            proxy.heal()
        assert {1} == {h.attempt for h in watch.handled}
        reported = [str(e).partition(";")[0] for e in node.errors]
        assert 1 == reported.count("the connection is too slow for the claimed events")

    def test_skips_an_event_that_can_never_arrive(self, watch, proxy, own_server):
        """The event does not block the events behind it. The node is not healthy meanwhile."""
        node = watch.node("choked", proxy.url, own_server.url, max_events=20)
        node.timer.pause()
        too_large = watch.post(more=large(200_000))
        small = [watch.post() for _ in range(5)]
        with watch.fault(node) as fault:
            proxy.choke(100_000)
            node.timer.resume()
            watch.wait_handled(*small)
            fault.felt()
            assert "left to other nodes" in str(node.timer.health().error)
            assert 0 == watch.times(too_large)
            other_node = watch.node("other")
            watch.wait_handled(too_large)
            assert other_node.id == next(h.node for h in watch.handled if h.id == too_large)
            proxy.heal()
        assert {1} == {h.attempt for h in watch.handled}

    def test_joins_although_its_first_claim_is_too_large(self, watch, proxy, own_server):
        """A node that could not join would never learn to claim less at a time."""
        ids = [watch.post(more=large(50_000)) for _ in range(12)]
        proxy.choke(100_000)
        timer = DTimer("choked", proxy.url, own_server.url, ns=watch.ns, max_events=20, **PATIENT)
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
    Another node receives the event after the lease, never before. The first handler can see it, and
    the node reports it when the network works again.
    """
    cut_off, handler, ev = watch.busy_node("cut off", proxy.url)
    other_node = watch.node("other")
    # Delivered twice: to the node that is cut off, and later to the other.
    watch.excused.add(ev.id)
    with watch.fault(cut_off) as fault:
        began = time.monotonic()
        proxy.blackhole()
        assert not ev.lease_lost
        watch.wait_handled(ev.id)
        # The lease began at the last heartbeat, at most a third of a lease ago.
        assert time.monotonic() - began > PATIENT["lease"] / 1000 * 2 / 3 - 0.1
        assert other_node.id == watch.handled[-1].node
        assert ev.lease_lost
        with pytest.raises(StoreError):
            watch.in_time(ev.confirm)
        fault.felt()
        watch.wait_handled(*[watch.post() for _ in range(5)])
        proxy.heal()
        eventually(lambda: cut_off.heard("lease_lost"))
        assert not watch.in_time(ev.confirm)
        assert ev.lease_lost
        handler.go_on(1000)
        eventually(lambda: watch.times(ev.id) == 2)
    assert [ev.id] == [lost.id for lost in cut_off.heard("lease_lost")]
