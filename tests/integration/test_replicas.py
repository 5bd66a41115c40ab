"""Posts that wait for replicas, on a master with a replica behind a link that may fail."""

from __future__ import annotations

import threading
import time

import pytest
from proxy import Proxy
from redis import Redis
from servers import PROMPT, Server, eventually

from dtimer import DTimer, EventExists, NotReplicated, OptionError, StoreError
from dtimer.testing import Catch

LATER = 4_000_000_000_000
NS = "replicas"


@pytest.fixture(scope="module")
def master():
    with Server(tcp=True) as master:
        yield master


@pytest.fixture(scope="module")
def link(master):
    """The way to the replica."""
    with Proxy(master) as link:
        yield link


@pytest.fixture(scope="module")
def replica(master, link):
    with master.replica(link.port) as replica:
        yield replica


@pytest.fixture
def proxy(master):
    """The way of a client to the master."""
    with Proxy(master) as proxy:
        yield proxy


@pytest.fixture
def post(master, link, replica):
    """Make timers that post, with replicas that are in step."""
    link.heal()
    with master.client() as client:
        client.flushall()
        eventually(lambda: client.wait(1, 1000) == 1)
    made = []

    def build(url=master.url, **options):
        timer = DTimer("poster", url, **{"ns": NS, "timeout": 600} | options)
        made.append(timer)
        return timer

    yield build
    link.heal()
    for timer in made:
        timer.leave()


class TestHealthy:
    """The replica is there, and hears."""

    def test_it_returns_when_the_replica_has_it(self, post, replica):
        """What was posted so is on the replica when the call returns."""
        id = post(timeout=5_000).post({"n": 1}, at=LATER, wait_replicas=1)
        with replica.client() as copy:
            assert copy.zscore(f"dtimer:{{{NS}}}:due", id) is not None

    def test_many(self, post, replica):
        """So it is with many posts, in several round trips."""
        ids = post(timeout=5_000).post_many(([{}, 10_000_000],) * 1_200, wait_replicas=1)
        with replica.client() as copy:
            there = {id.decode() for id in copy.zrange(f"dtimer:{{{NS}}}:due", 0, -1)}
        assert set(ids) == there

    def test_of_all_posts_of_a_timer(self, post, link):
        """The option of the timer holds for each post that does not say otherwise."""
        timer = post(wait_replicas=1)
        assert timer.post({}, at=LATER)
        link.blackhole()
        with pytest.raises(NotReplicated):
            timer.post({}, at=LATER)
        with pytest.raises(NotReplicated):
            timer.post_many([({}, 10_000_000)])
        assert timer.post({}, at=LATER, wait_replicas=0)


class TestUnreplicated:
    """The replica does not hear."""

    def test_it_is_said(self, post, link, client):
        """The event is posted; the error names it, and how many replicas have it."""
        timer = post()
        timer.post({}, at=LATER)
        link.blackhole()
        began = time.monotonic()
        with pytest.raises(NotReplicated, match="'tea' is posted, and on 0 of 1") as raised:
            timer.post({"n": 1}, at=LATER, id="tea", wait_replicas=1)
        assert time.monotonic() - began < PROMPT
        assert (["tea"], 1, 0) == (raised.value.ids, raised.value.wanted, raised.value.acknowledged)
        assert {"n": 1} == timer.peek("tea").event

    def test_more_than_there_are(self, post):
        """Those that have it are counted, where more were asked for."""
        with pytest.raises(NotReplicated) as raised:
            post().post({}, at=LATER, wait_replicas=2)
        assert 1 == raised.value.acknowledged

    def test_again_when_it_is_healed(self, post, link):
        """Posting the same id again waits again, and there is one event."""
        timer = post()
        timer.post({}, at=LATER)
        link.blackhole()
        with pytest.raises(NotReplicated) as raised:
            timer.post({}, at=LATER, wait_replicas=1)
        link.heal()
        (id,) = raised.value.ids
        timer.post({}, at=LATER, id=id, wait_replicas=1)
        assert 2 == timer.stats().scheduled

    def test_a_reply_that_is_lost(self, post, link, proxy):
        """
        The post is asked again on a connection that has written nothing, where Redis would
        count every replica: it waits for this post all the same, and it is there once.
        """
        timer = post(url=proxy.url)
        timer.post({}, at=LATER)
        link.blackhole()
        proxy.drop_reply_once(b"EVALSHA")
        with pytest.raises(NotReplicated) as raised:
            timer.post({}, at=LATER, wait_replicas=1)
        assert proxy.wait_dropped()
        assert 0 == raised.value.acknowledged
        assert 2 == timer.stats().totals["posted"]

    def test_a_reply_that_is_lost_when_memory_is_full(self, post, link, proxy, master):
        """So it is where the server takes no more: the post had been done before."""
        timer = post(url=proxy.url, timeout=2_000)
        timer.post({}, at=LATER)
        link.blackhole()
        # In silence: the next try comes when this one has been waited for.
        proxy.drop_reply_once(b"EVALSHA", close=False)
        caught = []

        def act():
            with pytest.raises(NotReplicated) as raised:
                timer.post({}, at=LATER, wait_replicas=1)
            caught.append(raised.value)

        thread = threading.Thread(target=act)
        thread.start()
        assert proxy.wait_dropped()
        master.configure(maxmemory=1)
        try:
            thread.join()
        finally:
            master.configure(maxmemory=0)
        assert [0] == [error.acknowledged for error in caught]

    def test_the_wait_is_lost(self, post, link, proxy):
        """A connection that breaks while it waits is made anew, and waits on."""
        timer = post(url=proxy.url, timeout=2_000)
        timer.post({}, at=LATER)
        proxy.drop_reply_once(b"WAIT")
        timer.post({}, at=LATER, wait_replicas=1)
        assert proxy.wait_dropped()
        assert 2 == timer.stats().totals["posted"]

    def test_nobody_can_be_asked(self, post, master):
        """A user who may not wait is told so, and that the event is posted."""
        with master.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-wait")
            try:
                with pytest.raises(NotReplicated) as raised:
                    post().post({}, at=LATER, id="tea", wait_replicas=1)
            finally:
                client.execute_command("ACL", "SETUSER", "default", "+wait")
        assert isinstance(raised.value.__cause__, StoreError)
        assert post().peek("tea")

    def test_an_id_that_is_pending(self, post, link):
        """A post that is refused is refused, whatever the replicas have."""
        timer = post()
        timer.post({}, at=LATER, id="tea")
        link.blackhole()
        with pytest.raises(EventExists):
            timer.post({}, at=LATER, id="tea", if_exists="error", wait_replicas=1)

    def test_the_rest_of_many(self, post, link):
        """Of many the first round trip that is not replicated is the last."""
        timer = post()
        timer.post({}, at=LATER)
        link.blackhole()
        with pytest.raises(NotReplicated, match="500 events are posted") as raised:
            timer.post_many([({}, 10_000_000)] * 1_200, wait_replicas=1)
        assert 500 == len(raised.value.ids)
        assert ["post_many had posted 0 events before"] == raised.value.__notes__
        assert 501 == timer.stats().scheduled

    def test_a_node_that_waits_works(self, post, link):
        """A node whose posts wait receives meanwhile, as ever."""
        timer = post(poll_interval=50, wait_replicas=1)
        events = Catch(timer, "event")
        with timer:
            timer.post({"n": 1})
            assert [{"n": 1}] == events.next()
            link.blackhole()
            with pytest.raises(NotReplicated):
                timer.post({"n": 2})
            assert [{"n": 2}] == events.next()


class TestRefused:
    """Where it makes no sense it is refused, before anything is posted."""

    def test_in_a_pipe(self, post, master):
        """Nothing can be waited for in a pipeline that somebody else executes."""
        timer = post()
        with master.client() as client, pytest.raises(OptionError, match="pipe"):
            timer.post({}, pipe=client.pipeline(), wait_replicas=1)

    def test_in_a_pipe_of_a_timer_that_waits(self, post, master):
        """There a timer whose posts wait does not."""
        timer = post(wait_replicas=1)
        with master.client() as client, client.pipeline() as pipe:
            timer.post({}, at=LATER, pipe=pipe, id="tea")
            pipe.execute()
        assert timer.peek("tea")

    def test_embedded(self):
        """An embedded server has no replicas."""
        with pytest.raises(OptionError, match="embedded server has no replicas"):
            DTimer("node", "embedded:", wait_replicas=1)
        with pytest.raises(OptionError, match="embedded server has no replicas"):
            DTimer("node", "embedded:").post({}, wait_replicas=1)

    def test_an_emulation(self):
        """Nor has an emulation."""
        fakeredis = pytest.importorskip("fakeredis")
        with pytest.raises(OptionError, match="no replicas"):
            DTimer("node", fakeredis.FakeRedis(), wait_replicas=1)

    @pytest.mark.parametrize("value", [-1, 101, 1.0, True, "1"])
    def test_what_is_no_number_of_replicas(self, post, value):
        """It is a whole number within reason, on the post and of the timer."""
        with pytest.raises(OptionError, match="wait_replicas"):
            post().post({}, wait_replicas=value)
        with pytest.raises(OptionError, match="wait_replicas"):
            DTimer("node", Redis(), wait_replicas=value)
