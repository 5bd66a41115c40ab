"""Who is woken: the roster, the promises and the sharing, with time moved by hand."""

from __future__ import annotations

import pytest
from peers import Peer, post
from servers import PATIENCE

from dtimer.model.recurrence import define
from dtimer.store.store import Entry

GRACE = 50  # ms, as in lua/parts/rouse.lua


class Wakes:
    """Hears the wakes of all nodes of a namespace."""

    def __init__(self, client, store):
        self._client = client
        self._pubsub = client.pubsub()
        self._prefix = store.keys.wake("")
        self._pubsub.psubscribe(self._prefix + "*")
        assert self._pubsub.get_message(timeout=PATIENCE)["type"] == "psubscribe"

    def heard(self):
        """Return who has been told to come since the last time, in order."""
        # The server answers in order: when the end is heard, so is all before it.
        self._client.publish(self._prefix + "end", "")
        names = []
        while True:
            message = self._pubsub.get_message(timeout=PATIENCE)
            name = message["channel"].decode().removeprefix(self._prefix)
            if name == "end":
                return names
            names.append(name)


@pytest.fixture
def wakes(client, store):
    wakes = Wakes(client, store)
    yield wakes
    wakes._pubsub.close()


@pytest.fixture(params=["mint", "replace"])
def policy(request):
    """Events without a name of their own are posted by another script than those with one."""
    return request.param


@pytest.fixture
def trio(store, now):
    """Three nodes with a free hand, that enrolled in the order of their names."""
    nodes = []
    for name in "abc":
        nodes.append(Peer(store, name))
        nodes[-1].turn()
        now.tick(1)
    return nodes


def test_one_node_is_told_of_a_post(store, trio, wakes, policy):
    """A post wakes the node on duty, and nobody else."""
    post(store, "tea", 1_000, policy=policy)
    assert ["a"] == wakes.heard()


def test_later_posts_tell_nobody(store, trio, wakes, policy):
    """Only a post that moves the earliest due time closer wakes anybody."""
    post(store, "tea", 1_000, policy=policy)
    trio[0].turn()
    wakes.heard()
    post(store, "cake", 2_000, policy=policy)
    assert [] == wakes.heard()
    post(store, "milk", 500, policy=policy)
    assert ["a"] == wakes.heard()


def test_posts_before_the_answer_are_one_wake(store, trio, wakes, policy):
    """A node that has been told and has not come yet is not told again."""
    for delay in (1_000, 900, 800):
        post(store, f"e{delay}", delay, policy=policy)
    assert ["a"] == wakes.heard()


def test_duty_goes_round(store, trio, wakes, now):
    """Who took work goes to the tail, and the next is told when to come."""
    for i in range(6):
        post(store, f"e{i}", 1_000 * (i + 1))
    takers = []
    for _ in range(6):
        (name,) = wakes.heard()
        node = trio["abc".index(name)]
        turn = node.turn()
        assert [] == turn.claims
        now.us += turn.wait_us
        (claim,) = node.claim()
        node.confirm(claim)
        node.turn()
        takers.append(name)
    assert list("abcabc") == takers


def test_the_earliest_of_several(store, trio, wakes, policy):
    """Of events that are posted together the earliest decides, wherever it stands among them."""
    post(store, "tea", 1_000)
    trio[0].turn()
    wakes.heard()
    for first, told in ((1_001, []), (999, ["a"])):
        delays = (5_000, first, 5_000, 4_000)
        entries = [Entry(f"{first}-{n}", f"+{d}000", "", "3|{}") for n, d in enumerate(delays)]
        store.post(entries, policy)
        assert told == wakes.heard()
    assert 999_000 == trio[0].turn().wait_us


def test_each_gets_one(store, trio, wakes, policy):
    """Events due at once go to one node each, also when one of them is quick."""
    store.post([Entry(f"e{i}", "+0", "", "3|{}") for i in range(3)], policy)
    assert ["a", "b", "c"] == wakes.heard()
    a, b, c = trio
    (first,) = a.claim()
    a.confirm(first)
    kept = a.turn()
    assert [] == kept.claims, "the rest is kept for those who were told"
    assert GRACE * 1000 >= kept.wait_us
    assert 1 == len(b.claim())
    assert 1 == len(c.claim())


def test_more_events_than_nodes_are_not_kept(store, trio):
    """Nobody waits for others while there is work enough for all."""
    store.post([Entry(f"e{i}", "+0", "", "3|{}") for i in range(10)], "replace")
    a = trio[0]
    (first,) = a.claim()
    a.confirm(first)
    assert 1 == len(a.claim())


@pytest.mark.parametrize("key", ["promise", "roster"])
def test_no_event_is_kept_for_a_stranger(store, client, now, key, policy):
    """
    A name that is no registered node's, among the promises or on the roster, does not keep a lone
    event from the node that polls, however many there are.
    """
    node = Peer(store, "node")
    node.turn()
    score = now.us if key == "promise" else 0
    client.zadd(getattr(store.keys, key), {f"stranger-{n}": score + n for n in range(1_000)})
    now.tick(10)
    post(store, "tea", policy=policy)
    assert ["tea"] == [claim.id for claim in node.claim()]
    client.delete(store.keys.promise, store.keys.roster)


@pytest.mark.usefixtures("trio")
def test_the_silent_are_struck_off(store, wakes, now, client, policy):
    """A node that was told and does not come loses its place, and the next is told."""
    post(store, "tea", 0, policy=policy)
    assert ["a"] == wakes.heard()
    now.tick(GRACE + 1)
    post(store, "cake", 0, policy=policy)
    assert ["b"] == wakes.heard()
    assert client.zscore(store.keys.roster, "a") is None


def test_a_poll_takes_what_the_silent_left(store, trio, wakes, now):
    """An overdue event goes to whoever polls, one grace after its due time at the latest."""
    post(store, "tea", 1_000)
    trio[0].turn()
    now.tick(1_000)
    polled = trio[2].turn()
    assert [] == polled.claims, "the node on duty is expected this very moment"
    now.us += polled.wait_us + 1
    assert ["tea"] == [c.id for c in trio[2].claim()]


def test_a_struck_off_node_comes_back_with_its_poll(store, trio, now, client):
    """Being silent once is no disgrace: the next turn enrols the node again, at the tail."""
    post(store, "tea", 0)
    now.tick(GRACE + 1)
    post(store, "cake", 0)
    for id in ("tea", "cake"):
        store.cancel(id)
    trio[0].turn()
    assert [b"b", b"c", b"a"] == client.zrange(store.keys.roster, 0, -1)


def test_a_deaf_node_is_not_counted_on(store, wakes, now):
    """A node that does not hear is never on duty; alone, it is its own alarm clock."""
    deaf = Peer(store, "deaf", hears=False)
    deaf.turn()
    post(store, "tea", 700)
    assert [] == wakes.heard()
    assert 700_000 == deaf.turn().wait_us
    hearing = Peer(store, "hearing")
    assert 700_000 == hearing.turn().wait_us
    assert deaf.turn().wait_us is None


def test_leaving_hands_over_the_duty(store, trio, wakes):
    """When the node on duty leaves, the next is told."""
    post(store, "tea", 1_000)
    trio[0].turn()
    wakes.heard()
    store.leave("a")
    assert ["b"] == wakes.heard()


def test_a_release_wakes_another(store, trio, wakes):
    """What a leaving node hands back is somebody else's at once."""
    post(store, "tea")
    wakes.heard()
    a, b, _ = trio
    (claim,) = a.claim()
    a.release(claim)
    assert ["b"] == wakes.heard()
    assert 1 == len(b.claim())


def test_resume_wakes(store, trio, wakes):
    """What fell due during a pause is announced when it ends."""
    store.pause(on=True)
    post(store, "tea")
    assert ["a"] == wakes.heard()
    trio[0].turn()
    assert [] == wakes.heard()
    store.pause(on=False)
    assert ["a"] == wakes.heard()


def test_one_that_waited_for_a_cancelled_one_is_announced(store, trio, wakes, now):
    """An occurrence that waited for the one before is announced when that is cancelled."""
    definition = define(
        "beat", every=1_000, start=None, end=None, count=None, jitter=0, misfire="coalesce",
        overlap="queue", max_retries=3, payload="{}",
    )  # fmt: skip
    store.declare(definition)
    now.tick(1_000)
    (first,) = trio[0].claim()
    trio[0].fail(first, wait=60_000)
    now.tick(1_000)
    for node in (*trio, *trio):
        assert [] == node.claim()
    wakes.heard()
    store.cancel(first.id)
    assert 1 == len(wakes.heard())


def test_one_that_follows_a_cancelled_one_is_announced(store, trio, wakes):
    """Cancelling an occurrence that had been moved far away brings the next one closer."""
    definition = define(
        "beat", every=1_000, start=None, end=None, count=None, jitter=0, misfire="coalesce",
        overlap="queue", max_retries=3, payload="{}",
    )  # fmt: skip
    store.declare(definition)
    (pending,) = store.upcoming("-inf", "+inf")
    store.reschedule(pending.id, "+60000000")
    trio[0].turn()
    wakes.heard()
    store.cancel(pending.id)
    assert ["a"] == wakes.heard()


def test_what_is_kept_for_nobody_is_asked_for_at_once(store, trio, now):
    """
    A node with free hands left is not made to wait for others where nobody was told: the
    next of a chain that is behind comes at once, and so does what was too large for a turn.
    """
    definition = define(
        "beat", every=1_000, start=None, end=None, count=None, jitter=0, misfire="all",
        overlap="allow", max_retries=3, payload="{}",
    )  # fmt: skip
    store.declare(definition)
    for node in trio:
        node.turn()
    now.tick(3_500)
    turn = trio[0].turn(5)
    assert (1, 0) == (len(turn.claims), turn.wait_us)
    store.unschedule("beat")
    for i in range(12):
        post(store, f"large-{i}", payload='{"n":"' + 200_000 * "x" + '"}')
    now.tick(1_000)
    turn = trio[0].turn(100)
    assert (4, 0) == (len(turn.claims), turn.wait_us), "a million bytes"


def test_nobody_else_is_told_when_a_node_registers_again(store, trio, wakes, client):
    """Who has promised to come keeps its promise when it registers once more."""
    post(store, "tea", 1_000)
    assert ["a"] == wakes.heard()
    trio[0].turn()
    before = client.zrange(store.keys.promise, 0, -1, withscores=True)
    store.join("a", "{}")
    assert before == client.zrange(store.keys.promise, 0, -1, withscores=True)


def test_the_duty_of_the_forgotten_is_handed_over(store, trio, wakes, now):
    """When the node on duty is forgotten for its silence, another is told."""
    post(store, "tea", 90_000)
    trio[0].turn()
    now.tick(40_000)
    trio[1].turn()
    now.tick(40_000)
    wakes.heard()
    store.join("new", "{}")
    assert ["b"] == wakes.heard()


def test_the_busy_are_not_told(store, trio, wakes):
    """A node without free hands is not on the roster."""
    for node in trio:
        node.turn(0)
    post(store, "tea")
    assert [] == wakes.heard()


def test_registration_that_is_gone_is_noticed(store, trio, client):
    """After a FLUSHALL a node's next turn tells it to register again."""
    assert trio[0].turn().known
    client.delete(*store.keys)
    assert not trio[0].turn().known
    store.join("a", "{}")
    assert trio[0].turn().known


def test_long_silent_nodes_are_forgotten(store, trio, now, client):
    """Nodes that died long ago leave every list when another joins."""
    now.tick(61_000)
    Peer(store, "new")
    assert ["new"] == [n.incarnation for n in store.nodes()]
    assert {b"new"} == set(client.hkeys(store.keys.nodes))
    assert 0 == client.zcard(store.keys.roster)


def test_after_leaving_nothing_remains(store, trio, client):
    """Nodes that left are on no list."""
    for node in trio:
        store.leave(node.name)
    keys = store.keys
    assert 0 == client.exists(keys.nodes, keys.alive, keys.roster, keys.promise)
