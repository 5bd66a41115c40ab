"""Deleting everything in a namespace, and what must stay."""

from __future__ import annotations

import pytest
from peers import LEASE, Peer, definition, post

from dtimer import Cancelled, Cleared
from dtimer.model.claims import Outcome, Renewal, Settlement, Verdict


@pytest.fixture
def filled(store, node, now):
    """A namespace with everything: events in each state, dead letters, and schedules."""
    store.schedules.declare(definition("beat"))
    store.schedules.declare(definition("cron", cron="* * * * *"))
    for id in ("dies", "retries", "flies"):
        post(store, id, max_retries=0 if id == "dies" else 3)
    claims = {claim.id: claim for claim in node.claim(3)}
    node.fail(claims["dies"])
    node.fail(claims["retries"], wait=60_000)
    post(store, "waits", 60_000)
    return claims


class TestContents:
    """The contents that are deleted, and those that stay."""

    def test_deletes_events_dead_letters_and_schedules(self, store, filled):
        """An operator begins with an empty namespace, and knows how much there was."""
        assert filled
        assert Cleared(events=5, dead=1, schedules=2) == store.clear()
        assert [] == list(store.upcoming("-inf", "+inf"))
        assert [] == list(store.dead())
        assert [] == store.schedules.ids()
        stats = store.stats()
        assert (0, 0, 0) == (stats.scheduled, stats.in_flight, stats.dead)
        assert Cleared(0, 0, 0) == store.clear()

    def test_leaves_a_constant_handful_of_keys(self, store, client, filled):
        """Nothing that belonged to an event or a schedule remains."""
        assert filled
        store.clear()
        there = {name for name in store.keys._fields if client.exists(getattr(store.keys, name))}
        assert there <= {"sys", "memo_a", "memo_b", "nodes", "alive", "roster", "promise"}

    def test_keeps_the_schema_the_tokens_and_the_totals(self, store, client, node, filled):
        """A lower token could belong to two claims, and a lower total looks like a rollback."""
        before = client.hgetall(store.keys.sys)
        store.clear()
        after = client.hgetall(store.keys.sys)
        assert b"5" == after.pop(b"n:cleared")
        assert before == after
        post(store, "next")
        (claim,) = node.claim()
        assert claim.token > max(c.token for c in filled.values())

    def test_forgets_the_owners_of_schedules(self, store, client, filled):
        """The version of a newer program must not keep an older one out of an empty namespace."""
        assert filled
        client.hset(store.keys.sys, "owner:web", "3.1;n4:beat")
        before = client.hlen(store.keys.sys)
        store.clear()
        assert client.hget(store.keys.sys, "owner:web") is None
        # The total of the deleted events is new.
        assert before == client.hlen(store.keys.sys)

    def test_accounts_for_the_deleted_events(self, store, filled):
        """An account of all posts would else miss them."""
        assert filled
        store.clear()
        store.clear()
        assert 5 == store.stats().totals["cleared"]

    @pytest.mark.parametrize("paused", [False, True])
    def test_keeps_nodes_and_a_pause(self, store, node, paused):
        """Nodes go on as before: a pause was the wish of an operator."""
        store.pause(on=paused)
        store.clear()
        assert paused is store.stats().paused
        assert ["?"] == [info.id for info in store.nodes()]
        assert node.claim_reply().known


class TestEventsInFlight:
    """Events that a node holds while everything is deleted."""

    def test_their_settlements_are_refused(self, store, node, filled):
        """The handler runs on, and nothing of its event comes back."""
        store.clear()
        claim = filled["flies"]
        for verdict in Verdict:
            settlement = Settlement(claim.id, claim.token, verdict, 0, "why", "failed")
            assert [Outcome.STALE] == node.claim_reply(0, settlement).results
        assert [Renewal.LOST] == store.claims.extend([(claim.id, claim.token)], LEASE * 1000)
        assert store.peek(claim.id) is None

    def test_they_are_not_claimed_again(self, store, filled, now):
        """The end of a lease must not find an event that was deleted."""
        assert filled
        store.clear()
        now.tick(LEASE + 1)
        assert [] == Peer(store, "other").claim(10)

    def test_a_claim_sent_again_returns_none_of_them(self, store, node):
        """The reply to the first was lost, and the events are gone meanwhile."""
        post(store, "tea")
        assert ["tea"] == [claim.id for claim in node.claim()]
        store.clear()
        assert [] == node.claim_reply(again=True).claims

    def test_a_cancel_does_not_find_them(self, store, filled):
        """They are gone, so there is nothing to keep from being retried."""
        assert filled
        store.clear()
        assert Cancelled.NOT_FOUND is store.cancel("flies")


def test_a_repeated_clear_keeps_what_was_posted_since(store):
    """The reply to the first was lost, and an application has started again meanwhile."""
    post(store, "old", 5_000)
    call = store._scripts.call_once
    assert b"1;0;0" == call("clear", op="session:1")
    post(store, "new", 5_000)
    assert b"1;0;0" == call("clear", op="session:1")
    assert ["new"] == [record.id for record in store.upcoming("-inf", "+inf")]


def test_events_posted_afterwards_are_delivered(store, node, now, wakes):
    """A node that waits for an event that is gone is woken for an earlier one."""
    post(store, "old", 60_000)
    assert [] == node.claim()
    store.clear()
    wakes.heard()
    post(store, "new", 5_000)
    assert ["node"] == wakes.heard()
    now.tick(5_000)
    assert ["new"] == [claim.id for claim in node.claim()]


def test_an_iteration_ends_when_everything_is_deleted(store):
    """A loop that deletes everything must not fail on its next page."""
    for n in range(150):
        post(store, f"e{n}", 60_000 + n)
    met = []
    for record in store.upcoming("-inf", "+inf"):
        met.append(record.id)
        store.clear()
    assert [f"e{n}" for n in range(100)] == met


def test_schedules_of_before_are_not_declared_again_after_a_rollback(store):
    """A node declares its lost schedules again. These were deleted on purpose."""
    store.schedules.declare(definition("beat"))
    store.clear()
    store.schedules.redeclare(None)
    assert [] == store.schedules.ids()


def test_large_namespaces_are_deleted_without_blocking_the_server(store, client):
    """Memory is freed on another thread of the server, so nodes wait no longer than usual."""
    before = client.info("commandstats").get("cmdstat_unlink", {"calls": 0})["calls"]
    deleted = client.info("commandstats").get("cmdstat_del", {"calls": 0})["calls"]
    post(store, "tea", 5_000)
    store.clear()
    after = client.info("commandstats")
    assert 1 == after["cmdstat_unlink"]["calls"] - before
    assert deleted == after.get("cmdstat_del", {"calls": 0})["calls"]
