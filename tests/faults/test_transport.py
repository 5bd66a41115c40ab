"""Faults F01 and F02: a reply is lost, or is cut off in the middle."""

from __future__ import annotations

import pytest
from chaos.settings import PATIENT
from gated import Gated
from servers import LATER, eventually

pytestmark = pytest.mark.chaos

#: Each fault of one reply: it strikes the reply to the first request that contains *match*.
LOST = {
    "lost": lambda proxy, match: proxy.drop_reply_once(match),
    "silent": lambda proxy, match: proxy.drop_reply_once(match, close=False),
}
CUT = {
    "cut short": lambda proxy, match: proxy.truncate_reply_once(3, match),
    "cut inside a bulk string": lambda proxy, match: proxy.truncate_reply_once(30, match),
    "closed behind": lambda proxy, match: proxy.close_reply_once(match),
}

lost = [pytest.param(f, id=name, marks=pytest.mark.fault("F01")) for name, f in LOST.items()]
cut = [pytest.param(f, id=name, marks=pytest.mark.fault("F02")) for name, f in CUT.items()]


class TestLostReply:
    """A call whose reply is lost takes effect once, and the next attempt brings its result."""

    @pytest.fixture
    def timer(self, watch, proxy):
        """A timer that uses the proxy, with an open connection."""
        timer = watch.caller("caller", proxy.url, timeout=PATIENT["timeout"])
        timer.stats()
        return timer

    @pytest.mark.parametrize("strike", [*lost, *cut])
    def test_a_post_takes_effect_once(self, watch, proxy, timer, strike):
        """
        The repetition names the same operation as the first attempt. A connection whose reply was
        cut is closed, or the rest of the reply would be read as the next one.
        """
        node = watch.node()
        with watch.fault(silent=True):
            strike(proxy, b"kettle")
            id = watch.in_time(watch.post, 0, timer, more={"tea": "kettle"})
            assert proxy.wait_dropped()
        watch.wait_handled(id)
        assert 1 == watch.times(id)
        assert len(watch.posted) == timer.stats().totals["posted"]
        assert [] == node.errors

    @pytest.mark.parametrize("strike", [*lost, *cut])
    def test_a_claim_returns_the_same_events_again(self, watch, proxy, strike):
        """The events are on their first attempt. None starts twice, even if a part was read."""
        node = watch.node(url=proxy.url, sub=watch.server.url, max_events=5)
        watch.post()
        eventually(lambda: len(watch.handled) == 1 and node.timer.stats().in_flight == 0)
        with watch.fault(degraded=False):
            # A request does not show whether the claim will return events. So strike just before
            # the posts: they cause the next claim.
            strike(proxy, node.timer._node.incarnation.encode())
            ids = [watch.post() for _ in range(3)]
            assert proxy.wait_dropped()
            watch.wait_handled(*ids)
        assert [1, 1, 1] == [h.attempt for h in watch.handled if h.id in ids]
        eventually(lambda: node.timer.stats().totals["confirmed"] == len(watch.posted))
        assert watch.claims() == len(watch.posted)

    @pytest.mark.parametrize("strike", lost)
    def test_a_confirm_is_not_a_lost_lease(self, watch, proxy, strike):
        """The event is confirmed once, and does not start again."""
        handler = Gated()
        node = watch.node(url=proxy.url, sub=watch.server.url, handler=handler)
        with watch.fault(degraded=False):
            id = watch.post(id="saucer")
            handler.begun()
            strike(proxy, b"saucer")
            handler.go_on(100)
            assert proxy.wait_dropped()
        eventually(lambda: node.timer.peek(id) is None)
        assert [] == node.heard("lease_lost")
        assert 1 == watch.times(id)

    @pytest.mark.fault("F01")
    @pytest.mark.parametrize("verb", ["cancel", "revive", "pause"])
    def test_a_change_returns_the_first_result(self, watch, timer, proxy, verb):
        """A repetition that ran again would find the change made, and return the opposite."""
        timer.post({}, LATER, id="cup", max_retries=0)
        if verb == "revive":
            # Fail once only, or the event is a dead letter again at the second call.
            fails = iter([1])
            watch.node(handler=lambda ev: ev == {} and next(fails, 0) and 1 / 0)
            timer.reschedule("cup", 0)
            eventually(lambda: list(timer.dead()))
        call = {
            "cancel": lambda: timer.cancel("cup"),
            "revive": lambda: timer.revive("cup"),
            "pause": timer.pause,
        }[verb]
        proxy.drop_reply_once(f"{timer._store._scripts._idle[-1].name}".encode())
        assert watch.in_time(call)
        assert proxy.wait_dropped()
        assert not call()
        timer.cancel("cup")
        timer.resume()
        timer.purge_dead()
