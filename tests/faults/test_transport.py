"""The catalogue, F01 to F08: replies are lost, connections break, the network is bad."""

from __future__ import annotations

import pytest
from chaos.settings import PATIENT
from servers import eventually

from dtimer import DTimer
from faults.held import Held

pytestmark = pytest.mark.chaos

LATER = 3_600_000  # ms; no test is there to see it

#: What strikes the reply to one request, by its name.
STRIKES = {
    "lost": lambda proxy, match: proxy.drop_reply_once(match),
    "silent": lambda proxy, match: proxy.drop_reply_once(match, close=False),
    "cut short": lambda proxy, match: proxy.truncate_reply_once(3, match),
    "cut amid a bulk": lambda proxy, match: proxy.truncate_reply_once(30, match),
    "closed behind": lambda proxy, match: proxy.close_reply_once(match),
}


def each_strike(*names):
    return pytest.mark.parametrize("strike", [STRIKES[name] for name in names], ids=names)


lost_or_silent = each_strike("lost", "silent")
cut = each_strike("cut short", "cut amid a bulk", "closed behind")


class TestOneReply:
    """What was done and not heard of is done once, and heard of with the next try."""

    @pytest.fixture
    def timer(self, watch, proxy):
        """Someone who posts and looks through the proxy, and has a connection already."""
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
    def test_lost_of_a_post(self, watch, proxy, timer, strike):
        """A post whose reply is lost is asked again under the same name, and acts once."""
        self.one_post(watch, proxy, timer, strike)

    @pytest.mark.fault("F02")
    @cut
    def test_cut_of_a_post(self, watch, proxy, timer, strike):
        """Half a reply is no reply: the connection is dropped, and the post acts once."""
        self.one_post(watch, proxy, timer, strike)

    @staticmethod
    def one_claim(watch, proxy, strike):
        node = watch.node(url=proxy.url, sub=watch.server.url, max_events=5)
        watch.post()
        eventually(lambda: len(watch.handled) == 1 and node.timer.stats().in_flight == 0)
        with watch.fault(degraded=False):
            # A turn that claims is not told from others by its request: its reply is not
            # known before. So it is the next of all, that the events were there for.
            strike(proxy, node.timer._life.incarnation.encode())
            ids = [watch.post() for _ in range(3)]
            assert proxy.wait_dropped()
            watch.wait_handled(*ids)
        assert [1, 1, 1] == [h.attempt for h in watch.handled if h.id in ids]
        eventually(lambda: node.timer.stats().totals["confirmed"] == len(watch.posted))
        assert len(watch.posted) == node.timer.stats().totals["started"]

    @pytest.mark.fault("F01")
    @lost_or_silent
    def test_lost_of_a_claim(self, watch, proxy, strike):
        """A claim whose reply is lost gives the same events again, on their first attempt."""
        self.one_claim(watch, proxy, strike)

    @pytest.mark.fault("F02")
    @cut
    def test_cut_of_a_claim(self, watch, proxy, strike):
        """A claim whose reply breaks off gives the same events again."""
        self.one_claim(watch, proxy, strike)

    @pytest.mark.fault("F01")
    @lost_or_silent
    def test_lost_of_a_confirm(self, watch, proxy, strike):
        """A confirm whose reply is lost was a confirm: no lost lease, no second start."""
        handler = Held()
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
    def test_lost_of_a_change(self, watch, timer, proxy, verb):
        """What a call answers after its reply was lost is what it would have answered first."""
        timer.post({}, LATER, id="cup", max_retries=0)
        if verb == "revive":
            # Once: it must not be dead again when the second call comes.
            fails = iter([1])
            watch.node(handler=lambda ev: ev == {} and next(fails, 0) and 1 / 0)
            timer.reschedule("cup", 0)
            eventually(lambda: list(timer.dead()))
        call = {
            "cancel": lambda: timer.cancel("cup"),
            "revive": lambda: timer.revive("cup"),
            "pause": timer.pause,
        }[verb]
        proxy.drop_reply_once(f"{timer._store._line._idle[-1].name}".encode())
        assert watch.in_time(call)
        assert proxy.wait_dropped()
        assert not call()
        timer.cancel("cup")
        timer.resume()
        timer.purge_dead()
