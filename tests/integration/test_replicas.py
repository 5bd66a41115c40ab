"""Posts that wait for replicas, with one replica behind a network link that can fail."""

from __future__ import annotations

import time

import pytest
from background import in_thread
from proxy import Proxy
from redis import Redis
from servers import PATIENCE, PROMPT, Server, eventually

from dtimer import DTimer, EventExists, NotReplicated, OptionError, StoreError
from dtimer.testing import Catch

#: A due time after any test, in ms since the epoch.
FAR_FUTURE = 4_000_000_000_000
NS = "replicas"


@pytest.fixture(scope="module")
def master():
    with Server(tcp=True) as master:
        yield master


@pytest.fixture(scope="module")
def link(master):
    """The link from the master to the replica."""
    with Proxy(master) as link:
        yield link


@pytest.fixture(scope="module")
def replica(master, link):
    with master.replica(link.port) as replica:
        yield replica


@pytest.fixture
def proxy(master):
    """A proxy from a client to the master."""
    with Proxy(master) as proxy:
        yield proxy


@pytest.fixture
def make(master, link, replica):
    """Return a function that makes a timer to post with. At first the replica is in sync."""
    link.heal()
    with master.client() as client:
        client.flushall()
        eventually(lambda: client.wait(1, 1000) == 1)
    timers = []

    def make(url=master.url, **options):
        timers.append(DTimer("poster", url, **{"ns": NS, "timeout": 600} | options))
        return timers[-1]

    yield make
    link.heal()
    for timer in timers:
        timer.leave()


@pytest.fixture
def cut_off(link):
    """Return a function that posts an event, and then makes the replica unreachable."""

    def cut_off(timer):
        timer.post({}, at=FAR_FUTURE)
        link.blackhole()

    return cut_off


class TestHealthy:
    """The replica is connected."""

    def test_a_post_returns_after_the_replica_has_it(self, make, replica):
        """When the call returns, the event is on the replica."""
        id = make(timeout=5_000).post({"n": 1}, at=FAR_FUTURE, wait_replicas=1)
        with replica.client() as copy:
            assert copy.zscore(f"dtimer:{{{NS}}}:due", id) is not None

    def test_many_posts_return_after_the_replica_has_them(self, make, replica):
        """When post_many returns after several round trips, all events are on the replica."""
        ids = make(timeout=5_000).post_many(([{}, 10_000_000],) * 1_200, wait_replicas=1)
        with replica.client() as copy:
            replicated = {id.decode() for id in copy.zrange(f"dtimer:{{{NS}}}:due", 0, -1)}
        assert set(ids) == replicated

    def test_the_timers_option_applies_to_each_post(self, make, link):
        """The timer's option applies to each post that does not override it."""
        timer = make(wait_replicas=1)
        assert timer.post({}, at=FAR_FUTURE)
        link.blackhole()
        with pytest.raises(NotReplicated):
            timer.post({}, at=FAR_FUTURE)
        with pytest.raises(NotReplicated):
            timer.post_many([({}, 10_000_000)])
        assert timer.post({}, at=FAR_FUTURE, wait_replicas=0)

    def test_the_timers_option_does_not_apply_to_a_post_in_a_pipeline(self, make, master):
        """The caller executes the pipeline, so the post cannot wait, and must not be refused."""
        timer = make(wait_replicas=1)
        with master.client() as client, client.pipeline() as pipe:
            timer.post({}, at=FAR_FUTURE, pipe=pipe, id="tea")
            pipe.execute()
        assert timer.peek("tea")


class TestUnreplicated:
    """A post waits while something fails: the link, a connection, a permission, or the post."""

    def test_an_unreplicated_post_is_named_in_the_error(self, make, client, cut_off):
        """The event is posted. The error names it and the number of replicas that have it."""
        timer = make()
        cut_off(timer)
        began = time.monotonic()
        with pytest.raises(NotReplicated, match="'tea' is posted, but only 0 of 1") as raised:
            timer.post({"n": 1}, at=FAR_FUTURE, id="tea", wait_replicas=1)
        assert time.monotonic() - began < PROMPT
        assert (["tea"], 1, 0) == (raised.value.ids, raised.value.wanted, raised.value.acknowledged)
        assert {"n": 1} == timer.peek("tea").event

    def test_the_replicas_that_have_it_are_counted(self, make):
        """If more replicas are requested than exist, the error counts those that have the event."""
        with pytest.raises(NotReplicated) as raised:
            make().post({}, at=FAR_FUTURE, wait_replicas=2)
        assert 1 == raised.value.acknowledged

    def test_posting_again_after_the_link_is_restored(self, make, link, cut_off):
        """Posting the same id again waits again, and does not add a second event."""
        timer = make()
        cut_off(timer)
        with pytest.raises(NotReplicated) as raised:
            timer.post({}, at=FAR_FUTURE, wait_replicas=1)
        link.heal()
        (id,) = raised.value.ids
        timer.post({}, at=FAR_FUTURE, id=id, wait_replicas=1)
        assert 2 == timer.stats().scheduled

    def test_a_post_with_a_lost_reply_still_waits(self, make, proxy, cut_off):
        """
        The post is sent again on a new connection, which has written nothing, so WAIT alone would
        count every replica. The post still waits, and is stored once.
        """
        timer = make(url=proxy.url)
        cut_off(timer)
        proxy.drop_reply_once(b"EVALSHA")
        with pytest.raises(NotReplicated) as raised:
            timer.post({}, at=FAR_FUTURE, wait_replicas=1)
        assert proxy.wait_dropped()
        assert 0 == raised.value.acknowledged
        assert 2 == timer.stats().totals["posted"]

    def test_a_post_with_a_lost_reply_still_waits_on_a_full_server(
        self, make, proxy, master, cut_off
    ):
        """A stored post waits for replicas, even if the server is out of memory by then."""
        timer = make(url=proxy.url, timeout=2_000)
        cut_off(timer)
        # Keep the connection open: the next attempt starts only when this one times out.
        proxy.drop_reply_once(b"EVALSHA", close=False)
        posting = in_thread(lambda: timer.post({}, at=FAR_FUTURE, wait_replicas=1))
        assert proxy.wait_dropped()
        master.configure(maxmemory=1)
        with pytest.raises(NotReplicated) as raised:
            posting.result(PATIENCE)
        master.configure(maxmemory=0)
        assert 0 == raised.value.acknowledged

    def test_a_lost_wait_is_repeated(self, make, link, proxy):
        """If the connection breaks during WAIT, the call reconnects and waits again."""
        timer = make(url=proxy.url, timeout=2_000)
        timer.post({}, at=FAR_FUTURE)
        proxy.drop_reply_once(b"WAIT")
        timer.post({}, at=FAR_FUTURE, wait_replicas=1)
        assert proxy.wait_dropped()
        assert 2 == timer.stats().totals["posted"]

    def test_a_user_who_may_not_wait_is_told_that_the_event_is_posted(self, make, master):
        """If the user may not run WAIT, the error says so and that the event is posted."""
        with master.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-wait")
            try:
                with pytest.raises(NotReplicated) as raised:
                    make().post({}, at=FAR_FUTURE, id="tea", wait_replicas=1)
            finally:
                client.execute_command("ACL", "SETUSER", "default", "+wait")
        assert isinstance(raised.value.__cause__, StoreError)
        assert make().peek("tea")

    def test_a_refused_post_does_not_wait(self, make, link):
        """A post that is refused raises EventExists, whether the replicas answer or not."""
        timer = make()
        timer.post({}, at=FAR_FUTURE, id="tea")
        link.blackhole()
        with pytest.raises(EventExists):
            timer.post({}, at=FAR_FUTURE, id="tea", if_exists="error", wait_replicas=1)

    def test_post_many_stops_after_the_first_unreplicated_chunk(self, make, cut_off):
        """post_many stops after the first round trip that is not replicated."""
        timer = make()
        cut_off(timer)
        with pytest.raises(NotReplicated, match="500 events are posted") as raised:
            timer.post_many([({}, 10_000_000)] * 1_200, wait_replicas=1)
        assert 500 == len(raised.value.ids)
        assert ["post_many had posted 0 events before"] == raised.value.__notes__
        assert 501 == timer.stats().scheduled

    def test_a_node_whose_posts_wait_receives_events(self, make, link):
        """A node receives events while its posts wait for replicas."""
        timer = make(poll_interval=50, wait_replicas=1)
        events = Catch(timer, "event")
        with timer:
            timer.post({"n": 1})
            assert [{"n": 1}] == events.next()
            link.blackhole()
            with pytest.raises(NotReplicated):
                timer.post({"n": 2})
            assert [{"n": 2}] == events.next()


class TestRefused:
    """Waiting that cannot work is refused before any event is posted."""

    def test_waiting_in_a_pipeline_is_refused(self, make, master):
        """A post in a pipeline cannot wait, because the caller executes the pipeline."""
        timer = make()
        with master.client() as client, pytest.raises(OptionError, match="pipe"):
            timer.post({}, pipe=client.pipeline(), wait_replicas=1)

    def test_an_embedded_server_is_refused(self):
        """An embedded server has no replicas."""
        with pytest.raises(OptionError, match="embedded server has no replicas"):
            DTimer("node", "embedded:", wait_replicas=1)
        with pytest.raises(OptionError, match="embedded server has no replicas"):
            DTimer("node", "embedded:").post({}, wait_replicas=1)

    def test_an_emulation_is_refused(self):
        """An emulation of Redis has no replicas."""
        fakeredis = pytest.importorskip("fakeredis")
        with pytest.raises(OptionError, match="no replicas"):
            DTimer("node", fakeredis.FakeRedis(), wait_replicas=1)

    @pytest.mark.parametrize("value", [-1, 101, 1.0, True, "1"])
    def test_an_invalid_number_of_replicas_is_refused(self, make, value):
        """The number of replicas must be a small whole number, for a post and for a timer."""
        with pytest.raises(OptionError, match="wait_replicas"):
            make().post({}, wait_replicas=value)
        with pytest.raises(OptionError, match="wait_replicas"):
            DTimer("node", Redis(), wait_replicas=value)
