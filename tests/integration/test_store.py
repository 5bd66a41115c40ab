"""The store on a real server, with time moved by the test: states, leases, tokens and retries."""

from __future__ import annotations

import itertools

import pytest
from peers import LEASE, Peer, post
from proxy import Proxy
from servers import LONGEST_CALL
from soundness import assert_sound

from dtimer.errors import EventExists, NamespaceCorrupt, StoreError
from dtimer.model.claims import ClaimRequest, Outcome, Settlement, Verdict
from dtimer.model.records import Cancelled, State
from dtimer.store.connection.sources import source
from dtimer.store.store import Entry, Store


class TestClaim:
    """Which events are claimed, when, and for how long."""

    def test_an_event_is_never_claimed_early(self, store, node, now):
        """An event can be claimed at its due time and not one microsecond earlier."""
        post(store, "tea", 5_000)
        now.tick(4_999.999)
        reply = node.claim_reply()
        assert [] == reply.claims
        assert 1 == reply.wait_us
        now.tick(0.001)
        (claim,) = node.claim()
        assert "tea" == claim.id
        assert claim.due_us == now.us

    def test_claims_the_oldest_events_up_to_the_limit(self, store, node):
        """A claim takes the events that were due first, and no more than its limit."""
        for i, id in enumerate("cab"):
            post(store, id, -i)
        posted = [c.id for c in node.claim(2)]
        assert ["a", "b"] == posted, "equal due times go by id"
        assert ["c"] == [c.id for c in node.claim(5)]

    def test_a_limit_of_zero_claims_nothing(self, store, node):
        """A claim with a limit of zero, as from a busy node, claims nothing and changes nothing."""
        post(store, "tea")
        assert [] == node.claim(0)
        assert ["tea"] == [c.id for c in node.claim(1)]

    def test_leases_never_overlap(self, store, node, now):
        """
        Until a lease ends, no other node gets the event. From its end another node can claim
        it.
        """
        other = Peer(store, "other")
        post(store, "tea")
        (first,) = node.claim()
        now.tick(LEASE - 0.001)
        assert [] == other.claim()
        now.tick(0.001)
        (second,) = other.claim()
        assert (first.attempt, second.attempt) == (1, 2)
        assert second.token > first.token

    def test_tokens_grow_even_if_the_clock_is_set_back(self, store, node, now):
        """A later claim has a greater token, even if the server's clock is set back."""
        tokens = []
        for id, tick in (("a", 0), ("b", -60_000), ("c", 20_000)):
            now.tick(tick)
            post(store, id)
            tokens += [c.token for c in node.claim(3)]
        assert 3 == len(tokens)
        assert sorted(set(tokens)) == tokens

    def test_an_extended_lease_lasts_from_the_extension(self, store, node, now):
        """An extended lease lasts from the extension. A lost lease cannot be extended."""
        other = Peer(store, "other")
        post(store, "tea")
        (claim,) = node.claim()
        for _ in range(5):
            now.tick(LEASE * 0.9)
            assert [True] == store.extend([("tea", claim.token)], LEASE * 1000)
        assert [] == other.claim()
        now.tick(LEASE)
        assert 1 == len(other.claim())
        assert [False] == store.extend([("tea", claim.token)], LEASE * 1000)

    def test_a_node_is_alone_if_no_other_is_alive(self, store, node, now):
        """
        A node is alone if no other node has been heard from. Nodes that left or fell silent do not
        count.
        """
        assert store.alone(node.name)
        other = Peer(store, "other")
        assert not store.alone(node.name)
        assert not store.alone("somebody")
        store.leave("other")
        assert store.alone(node.name)
        Peer(store, "other")
        now.tick(60_001)
        node.claim_reply()
        assert store.alone(node.name)
        other.claim_reply()
        assert not store.alone(node.name)

    def test_a_paused_namespace_has_no_node_that_is_alone(self, store, node):
        """A node that keeps events because it is alone releases them after a pause."""
        assert store.alone(node.name)
        store.pause(on=True)
        assert not store.alone(node.name)
        store.pause(on=False)
        assert store.alone(node.name)

    def test_a_claim_tells_when_its_event_expires(self, store, node, now):
        """
        The node keeps events for a while, and must not start an event that has expired
        meanwhile.
        """
        post(store, "tea", expires="+5000")
        post(store, "egg")
        assert {"tea": now.us + 5_000, "egg": None} == {
            c.id: c.expires_us for c in node.claim(limit=2)
        }

    def test_extend_at_least_never_shortens_a_lease(self, store, node, now, client):
        """
        An extension that a handler requests never shortens a lease. A heartbeat may shorten it:
        after the server's clock was set back, the lease would last too long.
        """
        post(store, "tea")
        (claim,) = node.claim()
        held, ends = [("tea", claim.token)], now.us + LEASE * 1000
        for us, expected in ((1_000, ends), (LEASE * 2_000, now.us + LEASE * 2_000)):
            assert [True] == store.extend(held, us, at_least=True)
            assert expected == client.zscore(store.keys.due, "tea")
        now.tick(-3_600_000)
        assert [True] == store.extend(held, LEASE * 1000)
        assert now.us + LEASE * 1000 == client.zscore(store.keys.due, "tea")

    def test_extending_replaces_an_invalid_score(self, store, node, now, client):
        """If another program has overwritten the end of a lease, an extension sets a valid one."""
        post(store, "tea")
        (claim,) = node.claim()
        client.zadd(store.keys.due, {"tea": "inf"})
        assert [True] == store.extend([("tea", claim.token)], LEASE * 1000, at_least=True)
        assert now.us + LEASE * 1000 == client.zscore(store.keys.due, "tea")

    def test_an_expired_event_is_not_delivered(self, store, node, now):
        """An event past its expiry becomes a dead letter with the reason "expired"."""
        post(store, "news", 1_000, expires="+2000000")
        now.tick(2_000)
        reply = node.claim_reply()
        assert [] == reply.claims
        assert [("news", "expired")] == reply.buried
        (letter,) = store.dead()
        assert ("news", "expired") == (letter.id, letter.reason)

    def test_a_wait_of_ten_years_is_exact(self, store, node, now):
        """A due time far ahead is exact to the microsecond."""
        ten_years = 315_576_000_000
        post(store, "far", ten_years)
        assert ten_years * 1000 == node.claim_reply().wait_us


class TestSettle:
    """How a claim is settled, and by whom."""

    def test_a_confirmed_event_is_gone(self, store, node, client):
        """A confirmed event leaves nothing behind."""
        post(store, "tea")
        (claim,) = node.claim()
        assert Outcome.DONE is node.confirm(claim)
        assert store.peek("tea") is None
        assert 0 == client.exists(store.keys.due, store.keys.body, store.keys.lease)

    def test_the_confirm_of_a_lost_lease_is_refused(self, store, node, now):
        """The confirm of a lost lease is refused, and the new holder keeps the event."""
        other = Peer(store, "other")
        post(store, "tea")
        (old,) = node.claim()
        now.tick(LEASE)
        (new,) = other.claim()
        assert Outcome.STALE is node.confirm(old)
        assert Outcome.STALE is node.fail(old)
        assert Outcome.STALE is node.release(old)
        assert Outcome.DONE is other.confirm(new)

    def test_a_post_replaces_a_running_event(self, store, node, now):
        """
        Posting the id of a running event makes a new event, which the old holder cannot
        settle.
        """
        post(store, "tea", payload='{"cup":1}')
        (old,) = node.claim()
        post(store, "tea", 50, payload='{"cup":2}')
        assert Outcome.STALE is node.confirm(old)
        now.tick(50)
        (new,) = node.claim()
        assert b'{"cup":2}' == new.payload
        assert 1 == new.attempt

    def test_an_event_without_retries_left_becomes_a_dead_letter(self, store, node, now):
        """
        An event starts at most max_retries + 1 times. Then it is a dead letter with its last
        error.
        """
        post(store, "tea", max_retries=2)
        for attempt in (1, 2, 3):
            (claim,) = node.claim()
            assert attempt == claim.attempt
            result = node.fail(claim, wait=100, error=f"boom {attempt}")
            assert (Outcome.DEAD if attempt == 3 else Outcome.DONE) is result
            assert [] == node.claim()
            now.tick(100)
        assert [] == node.claim()
        (letter,) = store.dead()
        assert (3, "failed", "boom 3", {}) == (
            letter.attempt,
            letter.reason,
            letter.error,
            letter.event,
        )

    def test_a_crash_is_an_attempt(self, store, node, now):
        """
        An event whose holders all die becomes a dead letter instead of being retried for
        ever.
        """
        post(store, "poison", max_retries=1)
        for _ in range(2):
            assert 1 == len(node.claim())
            now.tick(LEASE)
        reply = node.claim_reply()
        assert [] == reply.claims
        assert [("poison", "lease_lost")] == reply.buried

    def test_an_event_without_retries_never_starts_twice(self, store, node, now):
        """
        With max_retries=0 an event does not start twice, and a lost one is kept as a dead
        letter.
        """
        post(store, "once", max_retries=0)
        assert 1 == len(node.claim())
        now.tick(LEASE)
        assert [] == node.claim()
        assert State.DEAD is store.peek("once").state

    def test_release_charges_nothing(self, store, node, now):
        """
        An event that was released before it started is due at once, with the same attempts as
        before.
        """
        post(store, "tea", max_retries=0)
        (claim,) = node.claim()
        assert Outcome.DONE is node.release(claim)
        (again,) = node.claim()
        assert 1 == again.attempt
        assert again.due_us == claim.due_us

    def test_releasing_a_retry_keeps_its_attempts(self, store, node):
        """Releasing the second attempt before it starts does not forget the first attempt."""
        post(store, "tea")
        (first,) = node.claim()
        node.fail(first)
        (second,) = node.claim()
        node.release(second)
        (again,) = node.claim()
        assert 2 == again.attempt

    def test_one_claim_settles_many(self, store, node):
        """
        A claim request carries settlements of all kinds, and its reply has the outcomes in
        order.
        """
        for id in "abcd":
            post(store, id, max_retries=0 if id == "d" else 3)
        a, b, c, d = node.claim(4)
        reply = node.claim_reply(
            0,
            Settlement("b", b.token, Verdict.RETRY, 1_000_000, "later"),
            Settlement("a", a.token, Verdict.CONFIRM),
            Settlement("d", d.token, Verdict.RETRY, 0, "spent"),
            Settlement("c", c.token + 1, Verdict.CONFIRM),
            Settlement("a", a.token, Verdict.CONFIRM),
        )
        assert [
            Outcome.DONE,
            Outcome.DONE,
            Outcome.DEAD,
            Outcome.STALE,
            Outcome.STALE,
        ] == reply.results
        assert ["b"] == [r.id for r in store.upcoming("-inf", "+inf")]

    def test_a_corrupt_payload_is_buried_by_its_holder(self, store, node):
        """
        A holder that cannot read a payload buries the event; the dead letter keeps the raw
        bytes.
        """
        post(store, "x", payload="not json")
        (claim,) = node.claim()
        verdict = Settlement("x", claim.token, Verdict.BURY, error="no", reason="corrupt")
        assert [Outcome.DEAD] == store.settle([verdict])
        (letter,) = store.dead()
        assert letter.event is None
        assert letter.raw.endswith(b"not json")


@pytest.mark.fault("F01")
class TestLostReplies:
    """A request that is sent again acts once."""

    def test_a_repeated_claim_returns_the_same_events(self, store, node, now):
        """
        If the reply to a claim was lost, its repetition returns the same events and claims no
        others.
        """
        for id in "abc":
            post(store, id)
        first = node.claim_reply(2)
        now.tick(700)
        again = node.claim_reply(2, again=True)
        assert [(c.id, c.token, c.attempt) for c in first.claims] == [
            (c.id, c.token, c.attempt) for c in again.claims
        ]
        now.tick(LEASE - 1)
        left = Peer(store, "other").claim(9)
        assert ["c"] == [c.id for c in left], "the leases run from the second reply"

    def test_a_claim_repeated_for_longer_than_a_lease_releases_its_events(self, store, node, now):
        """
        If a node repeats a claim for a whole lease, it apparently cannot receive the reply. Its
        events are released with no attempt charged, and another node is woken and claims them.
        """
        other = Peer(store, "other")
        post(store, "tea")
        (claim,) = node.claim()
        other.claim_reply()
        for _ in range(4):
            now.tick(LEASE / 4)
            assert [claim.token] == [c.token for c in node.claim_reply(again=True).claims]
        now.tick(1)
        assert [] == node.claim_reply(again=True).claims
        assert [] == node.claim_reply(again=True).claims
        assert [] == node.claim(), "the event is reserved for the woken node"
        (taken,) = other.claim()
        assert ("tea", 1) == (taken.id, taken.attempt)
        assert Outcome.STALE is node.confirm(claim)
        assert Outcome.DONE is other.confirm(taken)
        assert 1 == store.stats().totals["released"]

    def test_a_repeated_settlement_has_the_outcome_of_the_first(self, tcp_server):
        """
        If the reply to a confirm was lost, its repetition finds no lease. The handler must still
        learn that the event was confirmed, not that the lease was lost.
        """
        with Proxy(tcp_server.url) as proxy:
            store = Store(source(proxy.url, LONGEST_CALL), "dt", timeout=LONGEST_CALL / 1000)
            node = Peer(store, "node")
            for id in ("warm", "tea"):
                post(store, id)
            # The first call of a script sends its whole text; the proxy waits for a call that does
            # not.
            for claim in node.claim(2):
                proxy.drop_reply_once(b"EVALSHA")
                settlement = Settlement(claim.id, claim.token, Verdict.CONFIRM)
                assert [Outcome.DONE] == store.settle([settlement])
            store.release()

    def test_an_overtaken_repetition_releases_nothing(self, store, node, now):
        """
        A repetition that arrives after a later one was answered says nothing about what the node
        received. The node keeps its events, although a lease has passed.
        """
        other = Peer(store, "other")
        post(store, "tea")
        (claim,) = node.claim()
        now.tick(LEASE + 1)
        assert [claim.token] == [c.token for c in node.claim_reply(again=True).claims]
        for asked in (0, 1):
            overtaken = ClaimRequest(node.seq, 1, True, False, [], asked)
            store.claim(node.name, overtaken, LEASE * 1000)
            assert [] == other.claim()
        assert Outcome.DONE is node.confirm(claim)

    @pytest.mark.fault("F37")
    def test_a_raised_sequence_number_does_not_block_a_node(self, store, node, client):
        """
        If another program has raised a node's sequence number, the node can still claim, and each
        claim acts once.
        """
        client.hset(store.keys.memo_a, node.name, "999999999999999:1;2;3")
        post(store, "tea")
        (claim,) = node.claim()
        assert [claim.token] == [c.token for c in node.claim_reply(again=True).claims]
        assert Outcome.DONE is node.confirm(claim)

    def test_a_repeated_claim_confirms_once(self, store, node):
        """A repeated claim returns the outcomes of the first time."""
        post(store, "tea")
        (claim,) = node.claim()
        verdict = Settlement("tea", claim.token, Verdict.CONFIRM)
        assert [Outcome.DONE] == node.claim_reply(0, verdict).results
        assert [Outcome.DONE] == node.claim_reply(0, verdict, again=True).results

    @pytest.mark.parametrize("policy", ["post_new", "replace"])
    def test_a_repeated_post_after_its_event_was_handled_acts_once(self, store, node, policy):
        """
        If the reply to a post was lost and its event was handled since, sending the post again adds
        nothing.
        """
        verb, arguments = Store._posting([Entry("tea", "+0", ",3|{}")], policy)
        assert b"1;1;" == store._scripts.call_once(verb, *arguments, op="session:1")
        (claim,) = node.claim()
        node.confirm(claim)
        assert b"1;;" == store._scripts.call_once(verb, *arguments, op="session:1")
        assert store.peek("tea") is None

    @pytest.mark.parametrize("policy", ["post_new", "replace"])
    def test_an_older_operation_that_arrives_late_is_refused(self, store, policy):
        """
        After a session has sent its next operation, an earlier operation that arrives late is
        refused.
        """
        verb, new = Store._posting([Entry("tea", "+0", ',3|{"cup":2}')], policy)
        _, old = Store._posting([Entry("egg", "+0", ',3|{"cup":1}')], policy)
        store._scripts.call_once(verb, *new, op="session:2")
        with pytest.raises(Exception, match="DTSTALE"):
            store._scripts.call_once(verb, *old, op="session:1")
        assert store.peek("egg") is None
        assert {"cup": 2} == store.peek("tea").event

    @pytest.mark.parametrize("minutes", [0.5, 1.0, 1.4])
    def test_results_are_remembered_over_the_rotation_of_the_hashes(self, store, now, minutes):
        """A result is remembered for at least a minute, across the rotation of the two hashes."""
        now.us -= now.us % 60_000_000
        now.tick(30_000)
        post(store, "tea", 100)
        assert "cancelled" == store._scripts.call_once("cancel", "tea", op="session:7").decode()
        now.tick(minutes * 60_000)
        post(store, "tea", 100)
        assert "cancelled" == store._scripts.call_once("cancel", "tea", op="session:7").decode()
        assert store.peek("tea") is not None

    @pytest.mark.parametrize("steps", [(3600,), (-3600,), (-60,), (-3600, 3600), (3600, -3600)])
    def test_results_are_remembered_over_a_step_of_the_clock(self, store, node, now, steps):
        """
        The clock may be stepped back, ahead, or both before a call is sent again. The call still
        acts once, even if other nodes are active meanwhile.
        """
        verb, entry = Store._posting([Entry("tea", "+0", ",3|{}")], "post_new")
        store._scripts.call_once(verb, *entry, op="session:1")
        post(store, "egg")
        first = node.claim_reply(1)
        for n, seconds in enumerate(steps):
            now.tick(seconds * 1000)
            post(store, f"other-{n}", 10_000_000)
        assert b"1;;" == store._scripts.call_once(verb, *entry, op="session:1")
        again = node.claim_reply(1, again=True)
        assert [c.token for c in first.claims] == [c.token for c in again.claims]

    def test_session_memory_is_bounded(self, store, client, now):
        """Sessions that have been idle for two minutes are forgotten."""
        for i in range(50):
            store._scripts.call_once("cancel", "nothing", op=f"session{i}:1")
        for seq in (1, 2):
            now.tick(60_000)
            store._scripts.call_once("cancel", "nothing", op=f"last:{seq}")
        keys = store.keys
        assert 4 == client.hlen(keys.memo_a) + client.hlen(keys.memo_b)


class TestPost:
    """The effect of a post on an existing event."""

    @pytest.mark.parametrize(
        ("policy", "due"), [("replace", 200), ("keep", 100), ("earliest", 100), ("latest", 200)]
    )
    def test_a_later_post_of_a_pending_id_follows_its_policy(self, store, now, policy, due):
        """
        If a pending id is posted with a later due time, the policy decides which due time
        applies.
        """
        post(store, "tea", 100)
        post(store, "tea", 200, policy=policy)
        assert now.us / 1000 + due == store.peek("tea").due

    @pytest.mark.parametrize(
        ("policy", "due"), [("replace", 50), ("keep", 100), ("earliest", 50), ("latest", 100)]
    )
    def test_an_earlier_post_of_a_pending_id_follows_its_policy(self, store, now, policy, due):
        """
        If a pending id is posted with an earlier due time, the policy decides which due time
        applies.
        """
        post(store, "tea", 100)
        post(store, "tea", 50, policy=policy)
        assert now.us / 1000 + due == store.peek("tea").due

    def test_error_on_a_pending_id_stores_nothing(self, store):
        """With if_exists="error" one pending id makes the whole call fail."""
        post(store, "b")
        entries = [Entry(id, "+0", ",3|{}") for id in "abc"]
        with pytest.raises(EventExists) as caught:
            store.post(entries, "error")
        assert "b" == caught.value.id
        assert store.peek("a") is None

    def test_keep_keeps_an_event_in_flight(self, store, node):
        """``keep`` keeps an event in flight, returns False, and its holder can confirm it."""
        post(store, "tea")
        (claim,) = node.claim()
        assert not post(store, "tea", policy="keep")
        assert Outcome.DONE is node.confirm(claim)
        assert store.peek("tea") is None

    @pytest.mark.parametrize("delay", [-100, 100], ids=["sooner", "later"])
    @pytest.mark.parametrize("policy", ["replace", "earliest", "latest"])
    def test_supersedes_an_event_in_flight(self, store, node, now, policy, delay):
        """
        An event in flight has no due time to compare, so the post is stored and the old holder's
        confirm is refused. If the old event were kept, its confirm would remove the new one.
        """
        post(store, "tea")
        (old,) = node.claim()
        now.tick(200)
        assert post(store, "tea", delay, '{"n":2}', policy=policy)
        assert Outcome.STALE is node.confirm(old)
        now.tick(max(0, delay))
        (new,) = node.claim()
        assert (b'{"n":2}', 1) == (new.payload, new.attempt)

    @pytest.mark.parametrize("policy", ["replace", "earliest", "latest"])
    def test_a_superseded_event_is_not_retried(self, store, node, policy):
        """A failure of the superseded holder does not change the new event."""
        post(store, "tea")
        (old,) = node.claim()
        assert post(store, "tea", 100, '{"n":2}', policy=policy)
        assert Outcome.STALE is node.fail(old)
        assert {"n": 2} == store.peek("tea").event
        assert State.SCHEDULED is store.peek("tea").state

    @pytest.mark.parametrize(
        ("policy", "delay", "stored"),
        [
            ("earliest", 50, True),
            ("earliest", 150, False),
            ("latest", 50, False),
            ("latest", 150, True),
        ],
    )
    def test_compares_with_an_event_that_waits_for_its_retry(
        self, store, node, policy, delay, stored
    ):
        """Between two attempts an event is pending: the due time of its retry is compared."""
        post(store, "tea")
        (claim,) = node.claim()
        node.fail(claim, wait=100)
        assert stored is post(store, "tea", delay, policy=policy)
        assert (0 if stored else 1) == store.peek("tea").attempt

    @pytest.mark.parametrize("policy", ["keep", "error", "earliest", "latest"])
    def test_an_event_cancelled_in_flight_does_not_block_a_post(self, store, node, policy):
        """
        An event that was cancelled in flight is not retried. A post that kept it would be
        lost.
        """
        post(store, "tea")
        node.claim()
        store.cancel("tea")
        assert post(store, "tea", policy=policy)

    def test_says_which_of_several_were_kept(self, store):
        """The reply to one call names which of its events were kept."""
        post(store, "b", 100)
        entries = [Entry(id, "+200000", ",3|{}") for id in "abc"]
        assert {"b"} == store.post(entries, "keep").kept

    def test_a_repeated_post_returns_the_first_result(self, store):
        """
        A post that is sent again returns what it did the first time, not what it would do
        now.
        """
        post(store, "tea", 100)
        words = ("keep", "tea", "+0", ",3|{}")
        first = store._scripts.call_once("post", *words, op="session:1")
        store.cancel("tea")
        assert first == store._scripts.call_once("post", *words, op="session:1")
        assert b"0;;" == first

    def test_a_post_replaces_a_dead_letter(self, store, node):
        """Posting the id of a dead letter makes a live event and removes the dead letter."""
        post(store, "tea", max_retries=0)
        (claim,) = node.claim()
        node.fail(claim)
        post(store, "tea", 100)
        assert State.SCHEDULED is store.peek("tea").state
        assert [] == list(store.dead())

    def test_replacing_resets_the_attempts(self, store, node):
        """A new event with an old id starts with its first attempt."""
        post(store, "tea")
        (claim,) = node.claim()
        node.fail(claim, wait=10)
        post(store, "tea")
        assert 1 == node.claim()[0].attempt

    def test_a_due_time_in_the_past_is_now(self, store, node, now):
        """A due time in the past means now, so that the event does not count as late."""
        store.post([Entry("tea", str(now.us - 5_000_000), ",3|{}")], "replace")
        assert now.us == node.claim()[0].due_us


class TestControl:
    """Reading and changing events in every state."""

    def test_a_cancelled_event_never_starts(self, store, node, now):
        """A cancelled event is gone, and the result is true."""
        post(store, "tea", 100)
        assert store.cancel("tea")
        now.tick(100)
        assert [] == node.claim()

    def test_an_event_cancelled_in_flight_is_not_retried(self, store, node, now):
        """An event that is cancelled in flight still runs, but is not retried."""
        for id in ("fails", "crashes"):
            post(store, id)
        fails, crashes = sorted(node.claim(2), key=lambda c: c.id, reverse=True)
        for claim in (fails, crashes):
            assert Cancelled.IN_FLIGHT is store.cancel(claim.id)
        assert Outcome.CANCELLED is node.fail(fails)
        now.tick(LEASE)
        assert [] == node.claim(2)
        assert [] == list(store.dead())

    def test_the_holder_of_a_cancelled_event_may_confirm(self, store, node):
        """The holder of an event that was cancelled in flight can still record it as done."""
        post(store, "tea")
        (claim,) = node.claim()
        store.cancel("tea")
        assert Outcome.DONE is node.confirm(claim)

    def test_an_event_that_waits_for_its_retry_can_be_cancelled(self, store, node, now):
        """An event between two attempts can be cancelled like any pending event."""
        post(store, "tea")
        (claim,) = node.claim()
        node.fail(claim, wait=100)
        assert Cancelled.CANCELLED is store.cancel("tea")
        now.tick(100)
        assert [] == node.claim()

    def test_cancelling_an_unknown_or_dead_id_is_not_found(self, store, node):
        """If no event with this id is pending, the result is "not found". Dead letters stay."""
        assert Cancelled.NOT_FOUND is store.cancel("nobody")
        post(store, "tea", max_retries=0)
        node.fail(node.claim()[0])
        assert Cancelled.NOT_FOUND is store.cancel("tea")
        assert 1 == len(list(store.dead()))

    def test_reschedule_moves_a_pending_event(self, store, node, now):
        """
        A pending event moves, whether it waits for its first attempt or a retry. Its
        attempts stay.
        """
        post(store, "tea", 100)
        assert store.reschedule("tea", "+0")
        (claim,) = node.claim()
        node.fail(claim, wait=100)
        assert store.reschedule("tea", "+50000")
        now.tick(50)
        assert 2 == node.claim()[0].attempt

    def test_reschedule_creates_nothing(self, store, node):
        """
        For an unknown id, an event in flight or a dead letter the result is False, and nothing
        changes.
        """
        assert not store.reschedule("ghost", "+0")
        assert store.peek("ghost") is None
        post(store, "tea", max_retries=0)
        (claim,) = node.claim()
        assert not store.reschedule("tea", "+0")
        node.fail(claim)
        assert not store.reschedule("tea", "+0")
        assert [] == node.claim()

    def test_peek_shows_state_due_time_and_starts(self, store, node, now):
        """A record states the event's state, due time and number of starts."""
        post(store, "tea", 100, payload='{"cup":1}')
        record = store.peek("tea")
        assert (State.SCHEDULED, 0, {"cup": 1}) == (record.state, record.attempt, record.event)
        now.tick(150)
        (claim,) = node.claim()
        record = store.peek("tea")
        assert (State.IN_FLIGHT, 1) == (record.state, record.attempt)
        assert record.due == now.us / 1000 - 50
        node.fail(claim, wait=1_000)
        record = store.peek("tea")
        assert (State.SCHEDULED, 1) == (record.state, record.attempt)
        assert record.due == now.us / 1000 + 1_000

    def test_upcoming_lists_in_due_order_with_ties(self, store, node):
        """
        Each scheduled event is listed once, in due order, over many pages and many equal due
        times.
        """
        entries = [Entry(f"e{i:04}", f"+{i // 250 * 1000}", ",3|{}") for i in range(1000)]
        store.post(entries[:500], "replace")
        store.post(entries[500:], "replace")
        node.claim(10)
        walked = [r.id for r in store.upcoming("-inf", "+inf")]
        assert [e.id for e in entries[10:]] == walked

    def test_upcoming_continues_if_the_last_event_of_a_page_is_removed(self, store):
        """
        If the last event of a page is removed, the next page neither skips nor repeats an
        event.
        """
        entries = [Entry(f"e{i:04}", "+1000", ",3|{}") for i in range(300)]
        store.post(entries, "replace")
        walk = store.upcoming("-inf", "+inf")
        seen = [r.id for r in itertools.islice(walk, 100)]
        store.cancel(seen[-1])
        seen += [r.id for r in walk]
        assert [e.id for e in entries] == seen

    def test_upcoming_lists_a_window(self, store):
        """Offset and duration limit the listed events; both ends are included."""
        for ms in (100, 200, 300, 400):
            post(store, str(ms), ms)
        found = [r.id for r in store.upcoming("+200000", "+300000")]
        assert ["200", "300"] == found

    def test_a_paused_namespace_delivers_nothing(self, store, node):
        """A paused namespace delivers no events, and its claimed events can be confirmed."""
        post(store, "a")
        (claim,) = node.claim()
        post(store, "b")
        assert store.pause(on=True)
        assert not store.pause(on=True)
        assert [] == node.claim()
        assert Outcome.DONE is node.confirm(claim)
        assert store.stats().paused
        assert store.pause(on=False)
        assert ["b"] == [c.id for c in node.claim()]

    def test_a_revived_dead_letter_is_due_with_all_its_retries(self, store, node, now):
        """A revived dead letter is due now, with all its retries and without its expiry."""
        post(store, "tea", max_retries=0, expires="+1000000", payload='{"cup":1}')
        node.fail(node.claim()[0])
        now.tick(2_000)
        assert b"1" == store._scripts.call_once("revive", "tea", op="session:1")
        assert not store.revive("tea")
        assert b"1" == store._scripts.call_once("revive", "tea", op="session:1"), (
            "its reply was lost"
        )
        (claim,) = node.claim()
        assert (1, b'{"cup":1}') == (claim.attempt, claim.payload)

    def test_dead_letters_are_bounded(self, store, node, now):
        """Dead letters beyond the maximum number or age are removed, the oldest first."""
        for i in range(10):
            post(store, f"e{i}", max_retries=0)
            node.fail(node.claim()[0])
            now.tick(1_000)
        assert 4 == store.trim(6, 3_600_000_000)
        assert ["e4", "e5", "e6", "e7", "e8", "e9"] == [letter.id for letter in store.dead()]
        assert 3 == store.trim(100, 3_000_001)
        assert 3 == store.trim(0, -1)

    def test_purge_ends_if_events_keep_dying(self, store, node, monkeypatch):
        """
        A purge removes as many dead letters as there were at first, so a handler that keeps failing
        cannot prolong it.
        """
        trim, calls = store.trim, itertools.count()

        def die_again(*arguments):
            dropped = trim(*arguments)
            assert next(calls) < 9, "it does not end"
            for n in range(3):
                post(store, f"e{n}", max_retries=0)
                node.fail(node.claim()[0])
            return dropped

        die_again(100, -1)
        monkeypatch.setattr(store, "trim", die_again)
        assert 3 == store.purge()

    def test_dead_letters_are_listed_in_pages(self, store, node):
        """Each dead letter is listed once, even if many events died in the same microsecond."""
        store.post([Entry(f"e{i:03}", "+0", ",0|{}") for i in range(250)], "replace")
        while claims := node.claim(100):
            verdicts = [Settlement(c.id, c.token, Verdict.RETRY, 0, "x") for c in claims]
            store.settle(verdicts)
        ids = [letter.id for letter in store.dead()]
        assert 250 == len(ids)
        assert sorted(ids) == ids

    def test_stats_count_each_state(self, store, node, now):
        """The counts match the events' states, and the totals match what has happened."""
        for id, delay in (("a", 0), ("b", 0), ("c", 0), ("d", 5_000)):
            post(store, id, delay, max_retries=0 if id == "a" else 3)
        a, b = node.claim(2)
        node.fail(a)
        now.tick(1_500)
        stats = store.stats()
        assert (2, 1, 1, 1, 1) == (
            stats.scheduled,
            stats.in_flight,
            stats.overdue,
            stats.dead,
            stats.nodes,
        )
        assert 1_500 == stats.oldest_overdue_ms
        node.confirm(b)
        totals = store.stats().totals
        assert (4, 2, 1, 1) == (
            totals["posted"],
            totals["started"],
            totals["confirmed"],
            totals["died"],
        )


class TestLateness:
    """The histogram of how late events are delivered."""

    def test_percentiles_come_from_the_histogram(self, store, node, now):
        """The histogram counts the lateness of each claim, and percentiles are computed from it."""
        for i in range(10):
            post(store, f"e{i}", i)
        now.tick(9)
        assert 10 == len(node.claim(100))
        stats = store.stats()
        assert 10 == sum(stats.lateness)
        assert 4 <= stats.late(0.5) <= 4 * 2**0.5 + 1
        assert 9 <= stats.late(1.0) <= 9 * 2**0.5 + 1


@pytest.mark.fault("F37")
class TestForeignData:
    """Foreign data are named or buried, and do not block other events."""

    def test_wrong_type_is_found_at_opening(self, client, namespace, now):
        """If a key of the namespace has a wrong type, it is named and nothing is written."""
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        client.set(store.keys.lease, "x")
        with pytest.raises(NamespaceCorrupt, match="lease holds a string"):
            post(store, "tea")
        assert [store.keys.lease.encode()] == client.keys(f"dtimer:{{{namespace}}}*")
        store.close()

    @pytest.mark.parametrize("field", ["due", "body", "dead", "sys", "memo_a", "roster"])
    def test_a_wrong_type_found_later_writes_nothing(self, client, namespace, now, field):
        """If a key gets a wrong type after opening, it is named too, before any write."""
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        store.open()
        keys = store.keys
        client.delete(getattr(keys, field))
        client.set(getattr(keys, field), "x")
        with pytest.raises(NamespaceCorrupt):
            post(store, "tea")
        others = [k for k in keys if k not in (getattr(keys, field), keys.sys)]
        assert 0 == client.exists(*others)
        store.close()

    @pytest.mark.fault("F39")
    def test_a_later_schema_is_refused(self, client, namespace, now):
        """A namespace that a later version has written is not used."""
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        client.hset(store.keys.sys, "v", "2")
        with pytest.raises(NamespaceCorrupt, match="version 2"):
            post(store, "tea")
        store.close()

    @pytest.mark.fault("F39")
    def test_a_later_schema_while_joined_ends_claims(self, store, node, client):
        """A node that meets a later schema claims nothing more, and can still settle its events."""
        post(store, "tea")
        (claim,) = node.claim()
        post(store, "egg")
        client.hset(store.keys.sys, "v", "2")
        reply = node.claim_reply(9)
        assert [] == reply.claims
        assert not reply.known
        assert Outcome.DONE is node.confirm(claim)
        with pytest.raises(NamespaceCorrupt, match="version 2"):
            store.join("node", "{}")
        client.hset(store.keys.sys, "v", "1")
        assert ["egg"] == [c.id for c in node.claim(9)]

    def test_foreign_members_are_buried(self, store, node, client):
        """
        Members with a missing or foreign record are buried, and the other events are
        delivered.
        """
        post(store, "good")
        client.zadd(store.keys.due, {b"\xff\xfe": 1, "gibberish": 2})
        client.hset(store.keys.body, "gibberish", b"\xff no body of ours")
        reply = node.claim_reply(10)
        assert ["good"] == [c.id for c in reply.claims]
        assert ["payload_missing", "corrupt"] == [reason for _, reason in reply.buried]
        raws = [letter.raw for letter in store.dead()]
        assert [b"\xff no body of ours", b""] == raws


@pytest.mark.fault("F30")
class TestOutOfMemory:
    """A server out of memory refuses posts as a whole, and events can still be handled."""

    def test_posts_are_refused_and_work_goes_on(self, tcp_server, now):
        """
        If Redis is out of memory, a post fails as a whole; claims, confirms and cancels
        still work.
        """
        client = tcp_server.client()
        store = Store(source(tcp_server.url, 1.0), "oom", timeout=3.0, now=now)
        node = Peer(store, "node")
        for id in "abcd":
            post(store, id)
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreError, match="memory"):
            post(store, "e")
        assert store.peek("e") is None
        a, b, c = node.claim(3)
        assert Outcome.DONE is node.confirm(a)
        assert Outcome.DONE is node.fail(b, wait=1_000)
        assert Outcome.DONE is node.release(c)
        assert store.cancel("d")
        (again,) = node.claim()
        assert [again.token] == [c.token for c in node.claim_reply(again=True).claims]
        client.config_set("maxmemory", 0)
        post(store, "e")
        assert_sound(client, store.keys)
        store.close()
        client.close()
