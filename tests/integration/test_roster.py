"""
The node that is woken, and the events that are reserved for woken nodes.

A node is expected to claim after it was woken, or at the time that it was told. The server keeps
this time in the key ``promise``. The test moves the time.
"""

from __future__ import annotations

import pytest
from peers import Peer, definition, post

from dtimer.store.format import Entry

#: The time in ms within which a woken node must claim, as in the Lua part that wakes a node.
GRACE = 50


@pytest.fixture(params=["post_new", "replace"])
def policy(request):
    """Events with a generated id are posted by a different script than those with a user's id."""
    return request.param


@pytest.fixture
def trio(store, now):
    """Three nodes with one free thread each, enrolled in the order of their names."""
    nodes = []
    for name in "abc":
        nodes.append(Peer(store, name))
        nodes[-1].claim_reply()
        now.tick(1)
    return nodes


def test_a_post_wakes_only_the_node_on_duty(store, trio, wakes, policy):
    """A post wakes the node on duty and no other."""
    post(store, "tea", 1_000, policy=policy)
    assert ["a"] == wakes.heard()


def test_a_post_wakes_only_if_it_is_due_first(store, trio, wakes, policy):
    """Only a post that is due before all others wakes a node."""
    post(store, "tea", 1_000, policy=policy)
    trio[0].claim_reply()
    wakes.heard()
    post(store, "cake", 2_000, policy=policy)
    assert [] == wakes.heard()
    post(store, "milk", 500, policy=policy)
    assert ["a"] == wakes.heard()


def test_a_woken_node_is_not_woken_again_before_it_claims(store, trio, wakes, policy):
    """A node that was woken and has not claimed yet is not woken again."""
    for delay in (1_000, 900, 800):
        post(store, f"e{delay}", delay, policy=policy)
    assert ["a"] == wakes.heard()


def test_duty_rotates(store, trio, wakes, now):
    """A node that claims an event moves to the tail of the roster; the next node is on duty."""
    for i in range(6):
        post(store, f"e{i}", 1_000 * (i + 1))
    takers = []
    for _ in range(6):
        (name,) = wakes.heard()
        node = trio["abc".index(name)]
        reply = node.claim_reply()
        assert [] == reply.claims
        now.us += reply.wait_us
        (claim,) = node.claim()
        node.confirm(claim)
        node.claim_reply()
        takers.append(name)
    assert list("abcabc") == takers


def test_the_earliest_of_several_posts_decides(store, trio, wakes, policy):
    """Events that are posted together wake a node for the earliest, at any position."""
    post(store, "tea", 1_000)
    trio[0].claim_reply()
    wakes.heard()
    for first, woken in ((1_001, []), (999, ["a"])):
        delays = (5_000, first, 5_000, 4_000)
        entries = [Entry(f"{first}-{n}", f"+{d}000", ",3|{}") for n, d in enumerate(delays)]
        store.post(entries, policy)
        assert woken == wakes.heard()
    assert 999_000 == trio[0].claim_reply().wait_us


def test_each_node_gets_one_of_several_due_events(store, trio, wakes, policy):
    """Events that are due together go to one node each, even if the first node is done quickly."""
    store.post([Entry(f"e{i}", "+0", ",3|{}") for i in range(3)], policy)
    assert ["a", "b", "c"] == wakes.heard()
    a, b, c = trio
    (first,) = a.claim()
    a.confirm(first)
    reply = a.claim_reply()
    assert [] == reply.claims, "the rest is reserved for the woken nodes"
    assert GRACE * 1000 >= reply.wait_us
    assert 1 == len(b.claim())
    assert 1 == len(c.claim())


def test_events_are_not_reserved_if_there_are_more_than_nodes(store, trio):
    """A node does not wait for others while there is enough work for all nodes."""
    store.post([Entry(f"e{i}", "+0", ",3|{}") for i in range(10)], "replace")
    a = trio[0]
    (first,) = a.claim()
    a.confirm(first)
    assert 1 == len(a.claim())


@pytest.mark.parametrize("key", ["promise", "roster"])
def test_no_event_is_reserved_for_an_unknown_node(store, client, now, key, policy):
    """The node that polls gets the event, even if a thousand unregistered names are listed."""
    node = Peer(store, "node")
    node.claim_reply()
    score = now.us if key == "promise" else 0
    client.zadd(getattr(store.keys, key), {f"stranger-{n}": score + n for n in range(1_000)})
    now.tick(10)
    post(store, "tea", policy=policy)
    assert ["tea"] == [claim.id for claim in node.claim()]
    client.delete(store.keys.promise, store.keys.roster)


@pytest.mark.usefixtures("trio")
def test_a_silent_node_is_removed_and_the_next_woken(store, wakes, now, client, policy):
    """A node that was woken and does not claim loses its place, and the next node is woken."""
    post(store, "tea", 0, policy=policy)
    assert ["a"] == wakes.heard()
    now.tick(GRACE + 1)
    post(store, "cake", 0, policy=policy)
    assert ["b"] == wakes.heard()
    assert client.zscore(store.keys.roster, "a") is None


def test_a_poll_claims_an_event_that_a_silent_node_left(store, trio, wakes, now):
    """An overdue event goes to any node that polls, at most one grace after its due time."""
    post(store, "tea", 1_000)
    trio[0].claim_reply()
    now.tick(1_000)
    polled = trio[2].claim_reply()
    assert [] == polled.claims, "the node on duty is expected at this moment"
    now.us += polled.wait_us + 1
    assert ["tea"] == [c.id for c in trio[2].claim()]


def test_a_removed_node_enrols_again_with_its_next_claim(store, trio, now, client):
    """The next claim of a node that was removed for its silence enrols it again, at the tail."""
    post(store, "tea", 0)
    now.tick(GRACE + 1)
    post(store, "cake", 0)
    for id in ("tea", "cake"):
        store.cancel(id)
    trio[0].claim_reply()
    assert [b"b", b"c", b"a"] == client.zrange(store.keys.roster, 0, -1)


def test_a_deaf_node_is_never_on_duty(store, wakes, now):
    """A node that does not hear wakes is never on duty. If alone, it is told when to claim."""
    deaf = Peer(store, "deaf", hears=False)
    deaf.claim_reply()
    post(store, "tea", 700)
    assert [] == wakes.heard()
    assert 700_000 == deaf.claim_reply().wait_us
    hearing = Peer(store, "hearing")
    assert 700_000 == hearing.claim_reply().wait_us
    assert deaf.claim_reply().wait_us is None


def test_leaving_passes_the_duty_on(store, trio, wakes):
    """When the node on duty leaves, the next is woken."""
    post(store, "tea", 1_000)
    trio[0].claim_reply()
    wakes.heard()
    store.leave("a")
    assert ["b"] == wakes.heard()


def test_a_release_wakes_another_node(store, trio, wakes):
    """An event that a leaving node releases is offered to another node at once."""
    post(store, "tea")
    wakes.heard()
    a, b, _ = trio
    (claim,) = a.claim()
    a.release(claim)
    assert ["b"] == wakes.heard()
    assert 1 == len(b.claim())


def test_resume_wakes_for_events_that_became_due(store, trio, wakes):
    """When a pause ends, a node is woken for what became due during it."""
    store.pause(on=True)
    post(store, "tea")
    assert ["a"] == wakes.heard()
    trio[0].claim_reply()
    assert [] == wakes.heard()
    store.pause(on=False)
    assert ["a"] == wakes.heard()


def test_cancelling_wakes_for_an_occurrence_that_waited(store, trio, wakes, now):
    """If an occurrence waits for the previous one and that one is cancelled, a node is woken."""
    store.schedules.declare(definition())
    now.tick(1_000)
    (first,) = trio[0].claim()
    trio[0].fail(first, wait=60_000)
    now.tick(1_000)
    for node in (*trio, *trio):
        assert [] == node.claim()
    wakes.heard()
    store.cancel(first.id)
    assert 1 == len(wakes.heard())


def test_cancelling_wakes_for_the_next_occurrence(store, trio, wakes):
    """Cancelling an occurrence that was moved far ahead brings the next one closer."""
    store.schedules.declare(definition())
    (pending,) = store.upcoming("-inf", "+inf")
    store.reschedule(pending.id, "+60000000")
    trio[0].claim_reply()
    wakes.heard()
    store.cancel(pending.id)
    assert ["a"] == wakes.heard()


def test_a_node_claims_again_at_once_if_nothing_is_reserved(store, trio, now):
    """Further missed occurrences, or events that did not fit into the last claim, are waiting."""
    store.schedules.declare(definition(misfire="all", overlap="allow"))
    for node in trio:
        node.claim_reply()
    now.tick(3_500)
    reply = trio[0].claim_reply(5)
    assert (1, 0) == (len(reply.claims), reply.wait_us)
    store.schedules.remove("beat")
    for i in range(12):
        post(store, f"large-{i}", payload='{"n":"' + 200_000 * "x" + '"}')
    now.tick(1_000)
    reply = trio[0].claim_reply(100)
    assert (4, 0) == (len(reply.claims), reply.wait_us), "a claim is limited to a million bytes"


def test_registering_again_wakes_no_other_node(store, trio, wakes, client):
    """A node that is expected at a certain time stays expected when it registers again."""
    post(store, "tea", 1_000)
    assert ["a"] == wakes.heard()
    trio[0].claim_reply()
    before = client.zrange(store.keys.promise, 0, -1, withscores=True)
    store.join("a", "{}")
    assert before == client.zrange(store.keys.promise, 0, -1, withscores=True)


def test_forgetting_the_node_on_duty_passes_the_duty_on(store, trio, wakes, now):
    """When the node on duty is forgotten because it was silent, another is woken."""
    post(store, "tea", 90_000)
    trio[0].claim_reply()
    now.tick(40_000)
    trio[1].claim_reply()
    now.tick(40_000)
    wakes.heard()
    store.join("new", "{}")
    assert ["b"] == wakes.heard()


def test_a_busy_node_is_not_woken(store, trio, wakes):
    """A node without a free thread is not on the roster."""
    for node in trio:
        node.claim_reply(0)
    post(store, "tea")
    assert [] == wakes.heard()


def test_a_node_learns_that_its_registration_is_gone(store, trio, client):
    """After a FLUSHALL, the reply to a node's next claim tells it to register again."""
    assert trio[0].claim_reply().known
    client.delete(*store.keys)
    assert not trio[0].claim_reply().known
    store.join("a", "{}")
    assert trio[0].claim_reply().known


def test_a_join_forgets_long_silent_nodes(store, trio, now, client):
    """When a node joins, nodes that died long ago are removed from every list."""
    now.tick(61_000)
    Peer(store, "new")
    assert ["new"] == [n.incarnation for n in store.nodes()]
    assert {b"new"} == set(client.hkeys(store.keys.nodes))
    assert 0 == client.zcard(store.keys.roster)


def test_a_node_that_left_is_on_no_list(store, trio, client):
    """Nodes that have left are on no list."""
    for node in trio:
        store.leave(node.name)
    keys = store.keys
    assert 0 == client.exists(keys.nodes, keys.alive, keys.roster, keys.promise)
