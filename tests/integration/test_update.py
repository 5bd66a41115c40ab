"""Updates: a waiting event receives another payload, and nothing else about it changes."""

from __future__ import annotations

import pytest
from peers import LEASE, Peer, post

from dtimer import DTimer, OptionError, PayloadError
from dtimer.model.claims import Outcome
from dtimer.store.format import Entry, write_body

OLD, NEW = '{"n":1}', '{"n":2,"text":"a|b,c"}'


def stored(store, client, id="tea"):
    """Return all that is stored about an event: due time, attempts and body."""
    keys = store.keys
    return client.zscore(keys.due, id), client.hget(keys.tries, id), client.hget(keys.body, id)


class TestWaitingEvent:
    """An event that waits for its first start, or for a retry."""

    @pytest.mark.parametrize(
        "body",
        [
            write_body("", 3, OLD),
            write_body("", 3, OLD, chosen_id=True),
            write_body("+9000000", 0, OLD, chosen_id=True, limited_wait=True),
            write_body("+9000000", 0, OLD, trace="ab" * 25),
        ],
        ids=["generated id", "chosen id", "expiry and limit", "trace context"],
    )
    def test_keeps_all_but_its_payload(self, store, client, body):
        """A post would reset the due time, the expiry and the attempts."""
        limit = ",9000000" if ",f" in body else ""
        store.post([Entry("tea", "+5000000" + limit, body)], "replace")
        due, tries, before = stored(store, client)
        assert store.update("tea", NEW)
        assert (due, tries, before.replace(OLD.encode(), NEW.encode())) == stored(store, client)

    def test_is_delivered_with_the_new_payload(self, store, node, now):
        """The caller corrects a reminder before it is sent."""
        post(store, "tea", 5_000, OLD)
        assert store.update("tea", NEW)
        now.tick(5_000)
        assert [NEW.encode()] == [claim.payload for claim in node.claim()]

    def test_keeps_its_attempts_between_two_attempts(self, store, node, now):
        """An event must not start more often because its payload was corrected."""
        post(store, "tea", payload=OLD, max_retries=1)
        (claim,) = node.claim()
        assert Outcome.DONE is node.fail(claim, wait=5_000)
        assert store.update("tea", NEW)
        assert [] == node.claim()
        now.tick(5_000)
        (claim,) = node.claim()
        assert (2, NEW.encode()) == (claim.attempt, claim.payload)
        assert Outcome.DEAD is node.fail(claim)

    def test_may_be_updated_after_a_release(self, store, node):
        """An event that was claimed and not started waits again."""
        post(store, "tea", payload=OLD)
        (claim,) = node.claim()
        node.release(claim)
        assert store.update("tea", NEW)


class TestNotWaiting:
    """An event of another state is not changed."""

    def test_refuses_an_event_in_flight(self, store, node, client):
        """Its handler has the old payload, so an update could not hold."""
        post(store, "tea", payload=OLD)
        assert node.claim()
        before = stored(store, client)
        assert not store.update("tea", NEW)
        assert before == stored(store, client)

    def test_refuses_an_event_claimed_ahead(self, store, node):
        """Its node already has the payload, and starts it when it is due."""
        post(store, "tea", 10, OLD)
        assert node.claim(ahead=20)
        assert not store.update("tea", NEW)

    def test_refuses_an_event_whose_lease_has_ended(self, store, node, now):
        """Until another node claims the event, its holder may still confirm it."""
        post(store, "tea", payload=OLD)
        (claim,) = node.claim()
        now.tick(LEASE + 1)
        assert not store.update("tea", NEW)
        assert Outcome.DONE is node.confirm(claim)

    def test_refuses_a_dead_letter(self, store, node):
        """A dead letter shows what failed. It can be posted again instead."""
        post(store, "tea", payload=OLD, max_retries=0)
        assert Outcome.DEAD is node.fail(node.claim()[0])
        assert not store.update("tea", NEW)
        assert {"n": 1} == store.letter("tea").event

    def test_creates_nothing(self, store, client):
        """An update of an event that was confirmed meanwhile must not bring it back."""
        assert not store.update("tea", NEW)
        assert (None, None, None) == stored(store, client)

    def test_leaves_foreign_bytes_alone(self, store, client):
        """Bytes that dtimer has not written have no payload that could be replaced."""
        client.zadd(store.keys.due, {"tea": 9e15})
        client.hset(store.keys.body, "tea", "junk")
        assert not store.update("tea", NEW)
        assert b"junk" == client.hget(store.keys.body, "tea")


def test_a_repeated_update_acts_once(store, node):
    """The reply to the first was lost, and a later update must not be undone."""
    post(store, "tea", payload=OLD)
    call = store._scripts.call_once
    assert b"1" == call("update", "tea", '{"n":7}', op="session:1")
    assert store.update("tea", NEW)
    assert b"1" == call("update", "tea", '{"n":7}', op="session:1")
    assert [NEW.encode()] == [claim.payload for claim in node.claim()]


def test_an_update_wakes_no_node(store, wakes):
    """The due time is the same, so no node needs to claim earlier."""
    assert Peer(store, "node").claim_reply().wait_us is None
    post(store, "tea", 5_000, OLD)
    wakes.heard()
    store.update("tea", NEW)
    assert [] == wakes.heard()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("", {}), OptionError),
        ((5, {}), OptionError),
        (("beat@1800000000000000", {}), OptionError),
        (("tea", []), PayloadError),
        (("tea", {"x": float("nan")}), PayloadError),
        (("tea", {"x": "y" * 300_000}), PayloadError),
    ],
)
def test_bad_arguments_are_refused_before_any_io(arguments, error):
    """The payload of an occurrence is that of its schedule, so an update of it is a mistake."""
    timer = DTimer("poster", "redis://127.0.0.1:1", timeout=30_000)
    with pytest.raises(error):
        timer.update(*arguments)
