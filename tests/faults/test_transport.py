"""Faults F01 and F02: a reply is lost, or is cut off in the middle."""

from __future__ import annotations

import pytest
from chaos.settings import PATIENT
from servers import LATER, eventually

from dtimer import DTimer
from faults.gated_handler import GatedHandler

pytestmark = pytest.mark.chaos

#: Each fault of one reply, by its name: it strikes the first request that contains *match*.
STRIKES = {
    "lost": lambda proxy, match: proxy.drop_reply_once(match),
    "silent": lambda proxy, match: proxy.drop_reply_once(match, close=False),
    "cut short": lambda proxy, match: proxy.truncate_reply_once(3, match),
    "cut inside a bulk string": lambda proxy, match: proxy.truncate_reply_once(30, match),
    "closed behind": lambda proxy, match: proxy.close_reply_once(match),
}


def each_strike(*names):
    return pytest.mark.parametrize("strike", [STRIKES[name] for name in names], ids=names)


lost_or_silent = each_strike("lost", "silent")
cut = each_strike("cut short", "cut inside a bulk string", "closed behind")


class TestLostReply:
    """A call whose reply is lost takes effect once, and the next attempt brings its result."""

    @pytest.fixture
    def timer(self, watch, proxy):
        """A timer that uses the proxy, with an open connection."""
        timer = DTimer("caller", proxy.url, ns=watch.ns, timeout=PATIENT["timeout"])
        timer.stats()
        yield timer
        timer.leave()

    @staticmethod
    def one_post(watch, proxy, timer, strike):
        node = watch.node()
        with watch.fault(silent=True):
            strike(proxy, b"kettle")
            id = watch.in_time(watch.post, 0, timer, more={"tea": "kettle"})
            assert proxy.wait_dropped()
        watch.wait_handled(id)
        assert 1 == watch.times(id)
        assert len(watch.posted) == timer.stats().totals["posted"]
        assert [] == node.errors

    @pytest.mark.fault("F01")
    @lost_or_silent
    def test_a_post_whose_reply_is_lost_takes_effect_once(self, watch, proxy, timer, strike):
        """The repetition names the same operation as the first attempt."""
        self.one_post(watch, proxy, timer, strike)

    @pytest.mark.fault("F02")
    @cut
    def test_a_post_whose_reply_is_cut_takes_effect_once(self, watch, proxy, timer, strike):
        """The connection is closed: the rest of the reply would be read as the next one."""
        self.one_post(watch, proxy, timer, strike)

    @staticmethod
    def one_claim(watch, proxy, strike):
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
        totals = node.timer.stats().totals
        assert len(watch.posted) == totals["started"] - totals["released"]

    @pytest.mark.fault("F01")
    @lost_or_silent
    def test_a_claim_whose_reply_is_lost_returns_the_same_events_again(self, watch, proxy, strike):
        """The events are still on their first attempt."""
        self.one_claim(watch, proxy, strike)

    @pytest.mark.fault("F02")
    @cut
    def test_a_claim_whose_reply_is_cut_returns_the_same_events_again(self, watch, proxy, strike):
        """No event of a reply that was read in part may start twice."""
        self.one_claim(watch, proxy, strike)

    @pytest.mark.fault("F01")
    @lost_or_silent
    def test_a_confirm_whose_reply_is_lost_is_not_a_lost_lease(self, watch, proxy, strike):
        """The event is confirmed once, and does not start again."""
        handler = GatedHandler()
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
    def test_a_change_whose_reply_is_lost_returns_the_first_result(self, watch, timer, proxy, verb):
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
