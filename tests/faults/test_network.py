"""The catalogue, F03 to F08 and F12: black holes, broken connections, slow and narrow ways."""

from __future__ import annotations

import time

import pytest
from chaos.settings import HASTY, PATIENT
from servers import LONGEST_CALL, PROMPT, eventually

from dtimer import DTimer, OutcomeUnknown, StoreError
from faults.held import Held

pytestmark = pytest.mark.chaos

LATER = 3_600_000  # ms; no test is there to see it


@pytest.fixture
def caller(watch, proxy):
    """Someone who only posts, through the proxy, and has a connection already."""
    timer = DTimer("caller", proxy.url, ns=watch.ns, **HASTY)
    timer.stats()
    yield timer
    timer.leave()


class TestBlackHole:
    """Half-open connections raise nothing for ever: deadlines and echoes are what tells."""

    @pytest.mark.fault("F03")
    def test_of_commands(self, watch, proxy, own, caller):
        """
        Each call comes back within its own deadline and tells which it was: a look failed,
        a post may have been done. The node says so once, tries ever less often, and when
        the way is open again what was sent into the hole has not been done twice.
        """
        node = watch.node(url=proxy.url, sub=own.url, **HASTY)
        # The namespace exists by now: the post has not to open it first.
        caller.stats()
        with watch.fault() as fault:
            proxy.blackhole()
            with pytest.raises(OutcomeUnknown):
                watch.in_time(watch.post, 0, caller, id="perhaps")
            with pytest.raises(StoreError, match="could not be reached") as caught:
                watch.in_time(caller.stats)
            assert not isinstance(caught.value, OutcomeUnknown)
            fault.felt()
            assert node.timer.health().error
            proxy.heal()
        id = watch.post(id="perhaps")
        watch.wait_handled(id)
        watch.excused.add("perhaps")
        assert watch.times("perhaps") <= 2

    @pytest.mark.fault("F04")
    def test_of_the_subscription(self, watch, proxy, own):
        """
        A node that hears nothing finds out by its echo, says so once and is not well; its
        events come by the poll, late by one interval and no more.
        """
        node = watch.node(url=own.url, sub=proxy.url, **HASTY)
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
    """Connections that end: each is made anew, and nobody hears of one that lay idle."""

    @pytest.mark.fault("F05")
    @pytest.mark.parametrize("which", ["all", "command", "subscription"])
    @pytest.mark.parametrize("how", ["reset", "half closed"])
    def test_ended(self, watch, proxy, own, how, which):
        """
        A reset or a half close is found out, the connection made anew and the wakes that
        fell between made good by a claim, silently: nothing is wrong for longer than that.
        """
        node = watch.node(
            url=own.url if which == "subscription" else proxy.url,
            sub=own.url if which == "command" else proxy.url,
        )
        with watch.fault(degraded=False):
            for _ in range(3):
                (proxy.cut if how == "reset" else proxy.half_close)()
                ids = [watch.post(), watch.post(20)]
                watch.recovered()
                watch.wait_handled(*ids)
        assert [] == node.errors

    @pytest.mark.fault("F05")
    def test_a_claim_follows_each_subscription(self, watch, proxy, own):
        """What was posted while nobody was subscribed does not wait for the poll."""
        node = watch.node(url=own.url, sub=proxy.url, poll_interval=LATER)
        with watch.fault(degraded=False):
            for _ in range(3):
                eventually(lambda: node.timer.nodes()[0].waiting)
                proxy.cut()
                watch.wait_handled(watch.post())
                watch.healthy()


class TestBad:
    """The network works, after its fashion."""

    @pytest.mark.fault("F06")
    def test_byte_by_byte(self, watch, proxy):
        """Bytes that arrive one by one make the same replies."""
        # A whole script may go this way.
        watch.node(url=proxy.url, max_events=10, timeout=LONGEST_CALL)
        caller = DTimer("caller", proxy.url, ns=watch.ns, timeout=LONGEST_CALL)
        with watch.fault(silent=True):
            proxy.slice1()
            ids = [
                watch.post(0, caller, more={"u": "\u00e9\U0001f600\r\n$3", "l": []})
                for _ in range(10)
            ]
            watch.wait_handled(*ids)
            assert 0 == caller.stats().dead
            proxy.heal()
        caller.leave()

    @pytest.mark.fault("F07")
    def test_slow(self, watch, proxy, own):
        """
        With round trips of a sixth of a lease a handler that runs for two leases keeps its
        event from everybody else, and events are late by the round trips and no more.
        """
        handler = Held()
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
    def test_narrow(self, watch, proxy, own, caller):
        """
        A post that cannot pass in time comes back at its deadline, its outcome unknown;
        the other nodes go on as if nothing were.
        """
        watch.node()
        with watch.fault(silent=True):
            proxy.throttle(10_000)
            with pytest.raises(OutcomeUnknown):
                watch.in_time(watch.post, 0, caller, more={"much": "x" * 200_000}, id="perhaps")
            ids = [watch.post() for _ in range(5)]
            watch.wait_handled(*ids)
            assert watch.latest(*ids) < PROMPT * 1000
            proxy.heal()

    @pytest.mark.fault("F08")
    def test_narrow_for_a_claim(self, watch, proxy, own):
        """
        An event that is too large for a node's way to it is not kept from the others for
        longer than a lease or two, and does not keep the node from what it can have.
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
    """Of each reply no more arrives than a part: what is asked for has to fit into that."""

    @pytest.fixture
    def choked(self, watch, proxy, own):
        """A node whose replies end after 100 kB, and which is about to claim six times that."""
        node = watch.node("choked", proxy.url, own.url, max_events=20)
        node.timer.pause()
        ids = [watch.post(more={"much": "x" * 50_000}) for _ in range(12)]
        proxy.choke(100_000)
        node.timer.resume()
        return node, ids

    def test_asks_for_less(self, watch, proxy, choked):
        """Every event arrives, once and on its first attempt, and Redis does not count as away."""
        node, ids = choked
        with watch.fault(degraded=False):
            watch.wait_handled(*ids)
            proxy.heal()
        assert {1} == {h.attempt for h in watch.handled}
        told = [str(e).partition(";")[0] for e in node.errors]
        assert 1 == told.count("the connection is too slow for the claimed events")

    def test_passes_over_what_is_too_large(self, watch, proxy, own):
        """
        An event that can never arrive stops nothing behind it, and another node has it; the
        node says that it is not well as long as it leaves events to others.
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

    def test_joins_though_the_first_claim_is_large(self, watch, proxy, own):
        """A node that is handed more than can arrive has joined, and starts what does arrive."""
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
def test_one_node_is_cut_off(watch, proxy):
    """
    What a cut off node holds is handed out again when its lease has ended, and not before.
    Its handler can see that, its confirm is refused when the way is open again, and what it
    says then is that it has lost the lease.
    """
    handler = Held()
    lost = watch.node("lost", proxy.url, handler=handler, **HASTY)
    id = watch.post()
    (ev,) = handler.begun()
    other = watch.node("other")
    watch.excused.add(id)
    with watch.fault(lost) as fault:
        began = time.monotonic()
        proxy.blackhole()
        assert not ev.lease_lost
        watch.wait_handled(id)
        # From the last heartbeat that came through, which may be a third of a lease ago.
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
