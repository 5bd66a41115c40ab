"""The store on a real server, with time moved by the test: states, leases, tokens and retries."""

from __future__ import annotations

import itertools

import pytest
from peers import LEASE, Peer, post
from proxy import Proxy
from servers import LONGEST_CALL
from soundness import assert_sound

from dtimer.errors import EventExists, NamespaceCorrupt, StoreError
from dtimer.model.claims import ClaimRequest, Outcome, Renewal, Settlement, Verdict
from dtimer.model.outcomes import Reason
from dtimer.model.records import Cancelled, State
from dtimer.store.connection.sources import source
from dtimer.store.format import Entry
from dtimer.store.store import Store


def entry(id, due="+0", *, max_retries=3, payload="{}"):
    """Return an event to post, with its due time as the scripts read it, in microseconds."""
    return Entry(id, due, f",{max_retries}|{payload}")


def post_and_claim(node, id="tea", **options):
    """Post an event, and return the node's claim of it."""
    post(node.store, id, **options)
    (claim,) = node.claim()
    return claim


def post_and_bury(node, id="tea", **options):
    """Post an event without retries, and let its only attempt fail."""
    assert Outcome.DEAD is node.fail(post_and_claim(node, id, max_retries=0, **options))


def due_in(store, now, id="tea"):
    """Return the time until an event is due, in ms."""
    return store.peek(id).due - now.us / 1000


class TestClaim:
    """Which events are claimed, when, and for how long."""

    def test_an_event_is_never_claimed_early(self, store, node, now):
        """An event can be claimed at its due time and not one microsecond earlier."""
        post(store, "tea", 5_000)
        now.tick(4_999.999)
        reply = node.claim_reply()
        assert ([], 1) == (reply.claims, reply.wait_us)
        now.tick(0.001)
        (claim,) = node.claim()
        assert ("tea", now.us) == (claim.id, claim.due_us)

    def test_claims_the_oldest_events_up_to_the_limit(self, store, node):
        """A claim takes the events that were due first, and no more than its limit."""
        for i, id in enumerate("cab"):
            post(store, id, -i)
        assert ["a", "b"] == [c.id for c in node.claim(2)], "equal due times go by id"
        assert ["c"] == [c.id for c in node.claim(5)]

    def test_a_limit_of_zero_claims_nothing(self, store, node):
        """A claim with a limit of zero, as from a busy node, claims nothing and changes nothing."""
        post(store, "tea")
        assert [] == node.claim(0)
        assert ["tea"] == [c.id for c in node.claim(1)]

    def test_leases_never_overlap(self, store, node, now):
        """Another node can claim the event from the end of its lease, not a microsecond earlier."""
        other_node = Peer(store, "other")
        first = post_and_claim(node)
        now.tick(LEASE - 0.001)
        assert [] == other_node.claim()
        now.tick(0.001)
        (second,) = other_node.claim()
        assert (1, 2) == (first.attempt, second.attempt)
        assert second.token > first.token

    def test_tokens_grow_even_if_the_clock_is_set_back(self, node, now):
        """A later claim has a greater token, even if the server's clock is set back."""
        tokens = []
        for id, step_ms in (("a", 0), ("b", -60_000), ("c", 20_000)):
            now.tick(step_ms)
            tokens.append(post_and_claim(node, id).token)
        assert sorted(set(tokens)) == tokens

    def test_an_extended_lease_lasts_from_the_extension(self, store, node, now):
        """An extended lease lasts from the extension. A lost lease cannot be extended."""
        other_node = Peer(store, "other")
        claim = post_and_claim(node)
        for _ in range(5):
            now.tick(LEASE * 0.9)
            assert [Renewal.HELD] == store.claims.extend([("tea", claim.token)], LEASE * 1000)
        assert [] == other_node.claim()
        now.tick(LEASE)
        assert 1 == len(other_node.claim())
        assert [Renewal.LOST] == store.claims.extend([("tea", claim.token)], LEASE * 1000)

    def test_a_node_is_alone_if_no_other_is_alive(self, store, node, now):
        """Nodes that left or fell silent do not count. An unregistered node is never alone."""
        assert store.alone(node.name)
        other_node = Peer(store, "other")
        assert not store.alone(node.name)
        assert not store.alone("unregistered")
        store.leave("other")
        assert store.alone(node.name)
        Peer(store, "other")
        now.tick(60_001)
        node.claim_reply()
        assert store.alone(node.name)
        other_node.claim_reply()
        assert not store.alone(node.name)

    def test_a_paused_namespace_has_no_node_that_is_alone(self, store, node):
        """A node that keeps events because it is alone releases them after a pause."""
        for paused in (False, True, False):
            store.pause(on=paused)
            assert store.alone(node.name) is not paused

    def test_a_claim_tells_when_its_event_expires(self, store, node, now):
        """A node that keeps an event must not start it once it has expired."""
        post(store, "tea", expires="+5000")
        post(store, "egg")
        expiries = {c.id: c.expires_us for c in node.claim(limit=2)}
        assert {"tea": now.us + 5_000, "egg": None} == expiries

    def test_extend_at_least_never_shortens_a_lease(self, store, node, now, client):
        """
        An extension that a handler requests never shortens a lease. A heartbeat may shorten it:
        after the server's clock was set back, the lease would last too long.
        """
        held, ends = [("tea", post_and_claim(node).token)], now.us + LEASE * 1000
        for us, expected in ((1_000, ends), (LEASE * 2_000, now.us + LEASE * 2_000)):
            assert [Renewal.HELD] == store.claims.extend(held, us, at_least=True)
            assert expected == client.zscore(store.keys.due, "tea")
        now.tick(-3_600_000)
        assert [Renewal.HELD] == store.claims.extend(held, LEASE * 1000)
        assert now.us + LEASE * 1000 == client.zscore(store.keys.due, "tea")

    def test_extending_replaces_an_invalid_score(self, store, node, now, client):
        """If another program has overwritten the end of a lease, an extension sets a valid one."""
        claim = post_and_claim(node)
        client.zadd(store.keys.due, {"tea": "inf"})
        assert [Renewal.HELD] == store.claims.extend(
            [("tea", claim.token)], LEASE * 1000, at_least=True
        )
        assert now.us + LEASE * 1000 == client.zscore(store.keys.due, "tea")

    def test_an_expired_event_is_not_delivered(self, store, node, now):
        """An event past its expiry becomes a dead letter with the reason "expired"."""
        post(store, "news", 1_000, expires="+2000000")
        now.tick(2_000)
        reply = node.claim_reply()
        assert ([], [("news", "expired")]) == (reply.claims, reply.buried)
        assert [("news", "expired")] == [(letter.id, letter.reason) for letter in store.dead()]

    def test_a_wait_of_ten_years_is_exact(self, store, node):
        """A due time far ahead is exact to the microsecond."""
        ten_years_ms = 315_576_000_000
        post(store, "far", ten_years_ms)
        assert ten_years_ms * 1000 == node.claim_reply().wait_us


class TestSettle:
    """How a claim is settled, and by whom."""

    def test_a_confirmed_event_is_gone(self, store, node, client):
        """A confirmed event leaves nothing behind."""
        assert Outcome.DONE is node.confirm(post_and_claim(node))
        assert store.peek("tea") is None
        assert 0 == client.exists(store.keys.due, store.keys.body, store.keys.lease)

    def test_the_confirm_of_a_lost_lease_is_refused(self, store, node, now):
        """The former holder can no longer settle the event; the new holder can."""
        other_node = Peer(store, "other")
        lost = post_and_claim(node)
        now.tick(LEASE)
        (held,) = other_node.claim()
        for settle in (node.confirm, node.fail, node.release):
            assert Outcome.STALE is settle(lost)
        assert Outcome.DONE is other_node.confirm(held)

    def test_a_post_replaces_a_running_event(self, store, node, now):
        """The old holder of a replaced event cannot settle the new event."""
        old = post_and_claim(node, payload='{"cup":1}')
        post(store, "tea", 50, payload='{"cup":2}')
        assert Outcome.STALE is node.confirm(old)
        now.tick(50)
        (new,) = node.claim()
        assert (b'{"cup":2}', 1) == (new.payload, new.attempt)

    def test_an_event_without_retries_left_becomes_a_dead_letter(self, store, node, now):
        """An event starts at most max_retries + 1 times, and the dead letter has the last error."""
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
            letter.attempt, letter.reason, letter.error, letter.event,
        )  # fmt: skip

    @pytest.mark.parametrize("max_retries", [0, 1])
    def test_a_crash_is_an_attempt(self, store, node, now, max_retries):
        """An event that kills its holders is not retried for ever, or at all without retries."""
        post(store, "poison", max_retries=max_retries)
        for _ in range(max_retries + 1):
            assert 1 == len(node.claim())
            now.tick(LEASE)
        reply = node.claim_reply()
        assert ([], [("poison", "lease_lost")]) == (reply.claims, reply.buried)
        assert State.DEAD is store.peek("poison").state

    @pytest.mark.parametrize("failed", [0, 1])
    def test_release_charges_nothing(self, store, node, failed):
        """An event released before it starts is due at once, with as many attempts as before."""
        post(store, "tea", max_retries=failed)
        for _ in range(failed):
            node.fail(*node.claim())
        (claim,) = node.claim()
        assert Outcome.DONE is node.release(claim)
        (released,) = node.claim()
        assert (failed + 1, claim.due_us) == (released.attempt, released.due_us)

    def test_one_claim_settles_many(self, store, node):
        """A claim carries settlements of all kinds, and its reply has the outcomes in order."""
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
        done, dead, stale = Outcome.DONE, Outcome.DEAD, Outcome.STALE
        assert [done, done, dead, stale, stale] == reply.results
        assert ["b"] == [r.id for r in store.upcoming("-inf", "+inf")]

    def test_a_corrupt_payload_is_buried_by_its_holder(self, store, node):
        """If a holder cannot read a payload, the dead letter keeps the bytes."""
        claim = post_and_claim(node, "x", payload="not json")
        verdict = Settlement("x", claim.token, Verdict.BURY, error="no", reason="corrupt")
        assert [Outcome.DEAD] == store.claims.settle([verdict])
        (letter,) = store.dead()
        assert letter.event is None
        assert letter.raw.endswith(b"not json")


@pytest.mark.fault("F01")
class TestLostReplies:
    """A request that is sent again acts once."""

    @pytest.fixture
    def send(self, store):
        """A function: send a call as the given operation of a session, ``session:1`` by default."""

        def send(verb, *arguments, op="session:1"):
            return store._scripts.call_once(verb, *arguments, op=op)

        return send

    def test_a_repeated_claim_returns_the_same_events(self, store, node, now):
        """The node would otherwise not learn what it holds, and would take events from others."""
        for id in "abc":
            post(store, id)
        first = node.claim_reply(2)
        now.tick(700)
        repetition = node.claim_reply(2, again=True)
        assert [(c.id, c.token, c.attempt) for c in first.claims] == [
            (c.id, c.token, c.attempt) for c in repetition.claims
        ]
        now.tick(LEASE - 1)
        unclaimed = Peer(store, "other").claim(9)
        assert ["c"] == [c.id for c in unclaimed], "the leases run from the second reply"

    def test_a_claim_repeated_for_longer_than_a_lease_releases_its_events(self, store, node, now):
        """
        If a node repeats a claim for a whole lease, it apparently cannot receive the reply. Its
        events are released with no attempt charged, and another node is woken and claims them.
        """
        other_node = Peer(store, "other")
        claim = post_and_claim(node)
        other_node.claim_reply()
        for _ in range(4):
            now.tick(LEASE / 4)
            assert [claim.token] == [c.token for c in node.claim_reply(again=True).claims]
        now.tick(1)
        assert [] == node.claim_reply(again=True).claims
        assert [] == node.claim_reply(again=True).claims
        assert [] == node.claim(), "the event is reserved for the woken node"
        (taken,) = other_node.claim()
        assert ("tea", 1) == (taken.id, taken.attempt)
        assert Outcome.STALE is node.confirm(claim)
        assert Outcome.DONE is other_node.confirm(taken)
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
                assert [Outcome.DONE] == store.claims.settle([settlement])
            store.release()

    def test_an_overtaken_repetition_releases_nothing(self, store, node, now):
        """
        A repetition that arrives after a later one was answered says nothing about what the node
        received. The node keeps its events, although a lease has passed.
        """
        other_node = Peer(store, "other")
        claim = post_and_claim(node)
        now.tick(LEASE + 1)
        assert [claim.token] == [c.token for c in node.claim_reply(again=True).claims]
        for resends in (0, 1):
            overtaken = ClaimRequest(node.seq, 1, True, False, [], resends)
            store.claims.start(node.name, overtaken, LEASE * 1000)(read_late=False)
            assert [] == other_node.claim()
        assert Outcome.DONE is node.confirm(claim)

    @pytest.mark.fault("F37")
    def test_a_raised_sequence_number_does_not_block_a_node(self, store, node, client):
        """If another program has raised the number, the node's claims still act, each once."""
        client.hset(store.keys.memo_a, node.name, "999999999999999:1;2;3")
        claim = post_and_claim(node)
        assert [claim.token] == [c.token for c in node.claim_reply(again=True).claims]
        assert Outcome.DONE is node.confirm(claim)

    def test_a_repeated_claim_confirms_once(self, node):
        """A repeated claim returns the outcomes of the first time."""
        verdict = Settlement("tea", post_and_claim(node).token, Verdict.CONFIRM)
        assert [Outcome.DONE] == node.claim_reply(0, verdict).results
        assert [Outcome.DONE] == node.claim_reply(0, verdict, again=True).results

    @pytest.mark.parametrize("policy", ["post_new", "replace"])
    def test_a_repeated_post_after_its_event_was_handled_acts_once(self, store, node, send, policy):
        """If the event of a post was handled before the post is sent again, it stays gone."""
        verb, arguments = Store._posting([entry("tea")], policy)
        assert b"1;1;" == send(verb, *arguments)
        node.confirm(*node.claim())
        assert b"1;;" == send(verb, *arguments)
        assert store.peek("tea") is None

    @pytest.mark.parametrize("policy", ["post_new", "replace"])
    def test_an_older_operation_that_arrives_late_is_refused(self, store, send, policy):
        """After a session has sent its next operation, an earlier one must not take effect."""
        verb, new = Store._posting([entry("tea", payload='{"cup":2}')], policy)
        _, old = Store._posting([entry("egg", payload='{"cup":1}')], policy)
        send(verb, *new, op="session:2")
        with pytest.raises(Exception, match="DTSTALE"):
            send(verb, *old, op="session:1")
        assert store.peek("egg") is None
        assert {"cup": 2} == store.peek("tea").event

    @pytest.mark.parametrize("minutes", [0.5, 1.0, 1.4])
    def test_results_are_remembered_over_the_rotation_of_the_hashes(
        self, store, now, send, minutes
    ):
        """A result is remembered for at least a minute, across the rotation of the two hashes."""
        now.us -= now.us % 60_000_000
        now.tick(30_000)
        post(store, "tea", 100)
        assert b"c" == send("cancel", "tea")
        now.tick(minutes * 60_000)
        post(store, "tea", 100)
        assert b"c" == send("cancel", "tea")
        assert store.peek("tea") is not None

    @pytest.mark.parametrize("steps", [(3600,), (-3600,), (-60,), (-3600, 3600), (3600, -3600)])
    def test_results_are_remembered_over_a_step_of_the_clock(self, store, node, now, send, steps):
        """
        The clock may be stepped back, ahead, or both before a call is sent again. The call still
        acts once, even if other nodes are active meanwhile.
        """
        verb, arguments = Store._posting([entry("tea")], "post_new")
        send(verb, *arguments)
        post(store, "egg")
        first = node.claim_reply(1)
        for n, seconds in enumerate(steps):
            now.tick(seconds * 1000)
            post(store, f"other-{n}", 10_000_000)
        assert b"1;;" == send(verb, *arguments)
        repetition = node.claim_reply(1, again=True)
        assert [c.token for c in first.claims] == [c.token for c in repetition.claims]

    def test_session_memory_is_bounded(self, store, client, now, send):
        """Sessions that have been idle for two minutes are forgotten."""
        for i in range(50):
            send("cancel", "nothing", op=f"session{i}:1")
        for seq in (1, 2):
            now.tick(60_000)
            send("cancel", "nothing", op=f"last:{seq}")
        assert 4 == client.hlen(store.keys.memo_a) + client.hlen(store.keys.memo_b)

    def test_a_repeated_post_returns_the_first_result(self, store, send):
        """A post that is sent again returns what it did then, not what it would do now."""
        post(store, "tea", 100)
        arguments = ("keep", "tea", "+0", ",3|{}")
        assert b"0;;" == send("post", *arguments)
        store.cancel("tea")
        assert b"0;;" == send("post", *arguments)


class TestPost:
    """The effect of a post on an existing event."""

    @pytest.mark.parametrize(
        ("policy", "earlier", "later"),
        [("replace", 50, 200), ("keep", 100, 100), ("earliest", 50, 100), ("latest", 100, 200)],
    )
    def test_a_post_of_a_pending_id_follows_its_policy(self, store, now, policy, earlier, later):
        """If a pending id is posted again, the policy decides which due time applies."""
        for delay, expected in ((50, earlier), (200, later)):
            post(store, "tea", 100)
            post(store, "tea", delay, policy=policy)
            assert expected == due_in(store, now)

    def test_error_on_a_pending_id_stores_nothing(self, store):
        """With if_exists="error" one pending id makes the whole call fail."""
        post(store, "b")
        with pytest.raises(EventExists) as caught:
            store.post([entry(id) for id in "abc"], "error")
        assert "b" == caught.value.id
        assert store.peek("a") is None

    def test_keep_keeps_an_event_in_flight(self, store, node):
        """``keep`` keeps an event in flight, returns False, and its holder can confirm it."""
        claim = post_and_claim(node)
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
        old = post_and_claim(node)
        now.tick(200)
        assert post(store, "tea", delay, '{"n":2}', policy=policy)
        assert Outcome.STALE is node.confirm(old)
        now.tick(max(0, delay))
        (new,) = node.claim()
        assert (b'{"n":2}', 1) == (new.payload, new.attempt)

    @pytest.mark.parametrize("policy", ["replace", "earliest", "latest"])
    def test_a_superseded_event_is_not_retried(self, store, node, policy):
        """A failure of the superseded holder does not change the new event."""
        old = post_and_claim(node)
        assert post(store, "tea", 100, '{"n":2}', policy=policy)
        assert Outcome.STALE is node.fail(old)
        record = store.peek("tea")
        assert ({"n": 2}, State.SCHEDULED) == (record.event, record.state)

    @pytest.mark.parametrize(
        ("policy", "delay", "stored"),
        [("earliest", 50, 1), ("earliest", 150, 0), ("latest", 50, 0), ("latest", 150, 1)],
    )
    def test_compares_with_an_event_that_waits_for_its_retry(
        self, store, node, policy, delay, stored
    ):
        """Between two attempts an event is pending: the due time of its retry is compared."""
        node.fail(post_and_claim(node), wait=100)
        assert stored == post(store, "tea", delay, policy=policy)
        assert (0 if stored else 1) == store.peek("tea").attempt

    @pytest.mark.parametrize("policy", ["keep", "error", "earliest", "latest"])
    def test_an_event_cancelled_in_flight_does_not_block_a_post(self, store, node, policy):
        """An event cancelled in flight is not retried, so a post that kept it would be lost."""
        post_and_claim(node)
        store.cancel("tea")
        assert post(store, "tea", payload='{"n":2}', policy=policy)
        assert {"n": 2} == store.peek("tea").event

    def test_says_which_of_several_were_kept(self, store):
        """The reply to one call names which of its events were kept."""
        post(store, "b", 100)
        assert {"b"} == store.post([entry(id, "+200000") for id in "abc"], "keep").kept

    def test_a_post_replaces_a_dead_letter(self, store, node):
        """Posting the id of a dead letter makes a live event and removes the dead letter."""
        post_and_bury(node)
        post(store, "tea", 100)
        assert State.SCHEDULED is store.peek("tea").state
        assert [] == list(store.dead())

    def test_replacing_resets_the_attempts(self, node):
        """A new event with an old id starts with its first attempt."""
        node.fail(post_and_claim(node), wait=10)
        assert 1 == post_and_claim(node).attempt

    def test_a_due_time_in_the_past_is_now(self, store, node, now):
        """A due time in the past means now, so that the event does not count as late."""
        store.post([entry("tea", str(now.us - 5_000_000))], "replace")
        assert now.us == node.claim()[0].due_us


class TestControl:
    """Reading and changing events in every state."""

    @pytest.mark.parametrize("failed", [False, True], ids=["before it starts", "before its retry"])
    def test_a_cancelled_event_never_starts(self, store, node, now, failed):
        """A pending event can be cancelled, even if it waits for its retry."""
        if failed:
            node.fail(post_and_claim(node), wait=100)
        else:
            post(store, "tea", 100)
        assert Cancelled.CANCELLED is store.cancel("tea")
        now.tick(100)
        assert [] == node.claim()

    def test_an_event_cancelled_in_flight_is_not_retried(self, store, node, now):
        """The event still runs, but neither a failure nor a crash of its holder retries it."""
        for id in ("crashes", "fails"):
            post(store, id)
        crashes, fails = node.claim(2)
        for claim in (fails, crashes):
            assert Cancelled.IN_FLIGHT is store.cancel(claim.id)
        assert Outcome.CANCELLED is node.fail(fails)
        now.tick(LEASE)
        assert [] == node.claim(2)
        assert [] == list(store.dead())

    def test_the_holder_of_a_cancelled_event_may_confirm(self, store, node):
        """The holder of an event that was cancelled in flight can still record it as done."""
        claim = post_and_claim(node)
        store.cancel("tea")
        assert Outcome.DONE is node.confirm(claim)

    def test_cancelling_an_unknown_or_dead_id_is_not_found(self, store, node):
        """If no event with this id is pending, the result is "not found". Dead letters stay."""
        assert Cancelled.NOT_FOUND is store.cancel("nobody")
        post_and_bury(node)
        assert Cancelled.NOT_FOUND is store.cancel("tea")
        assert 1 == len(list(store.dead()))

    def test_reschedule_moves_a_pending_event(self, store, node, now):
        """A pending event can be moved before its first attempt or a retry. Its attempts stay."""
        post(store, "tea", 100)
        assert store.reschedule("tea", "+0")
        node.fail(*node.claim(), wait=100)
        assert store.reschedule("tea", "+50000")
        now.tick(50)
        assert 2 == node.claim()[0].attempt

    def test_reschedule_creates_nothing(self, store, node):
        """An unknown id, an event in flight and a dead letter cannot be rescheduled."""
        assert not store.reschedule("ghost", "+0")
        assert store.peek("ghost") is None
        claim = post_and_claim(node, max_retries=0)
        assert not store.reschedule("tea", "+0")
        node.fail(claim)
        assert not store.reschedule("tea", "+0")
        assert [] == node.claim()

    def test_peek_shows_state_due_time_and_starts(self, store, node, now):
        """A record states the event's state, due time and number of starts."""

        def shown():
            record = store.peek("tea")
            return record.state, record.attempt, due_in(store, now), record.event

        post(store, "tea", 100, payload='{"cup":1}')
        assert (State.SCHEDULED, 0, 100, {"cup": 1}) == shown()
        now.tick(150)
        (claim,) = node.claim()
        assert (State.IN_FLIGHT, 1, -50, {"cup": 1}) == shown()
        node.fail(claim, wait=1_000)
        assert (State.SCHEDULED, 1, 1_000, {"cup": 1}) == shown()

    def test_upcoming_lists_in_due_order_with_ties(self, store, node):
        """Each event is listed once, in due order, over many pages and many equal due times."""
        entries = [entry(f"e{i:04}", f"+{i // 250 * 1000}") for i in range(1000)]
        store.post(entries[:500], "replace")
        store.post(entries[500:], "replace")
        node.claim(10)
        assert [e.id for e in entries[10:]] == [r.id for r in store.upcoming("-inf", "+inf")]

    def test_a_paused_namespace_delivers_nothing(self, store, node):
        """A paused namespace delivers no events, and its claimed events can be confirmed."""
        claim = post_and_claim(node, "a")
        post(store, "b")
        assert store.pause(on=True)
        assert not store.pause(on=True)
        assert [] == node.claim()
        assert Outcome.DONE is node.confirm(claim)
        assert store.stats().paused
        assert store.pause(on=False)
        assert ["b"] == [c.id for c in node.claim()]

    def test_a_revived_dead_letter_is_due_with_all_its_retries(self, store, node, now):
        """The event is due now, without its expiry, and is revived once if the call is repeated."""
        post_and_bury(node, expires="+1000000", payload='{"cup":1}')
        now.tick(2_000)
        for _ in range(2):
            assert b"1" == store._scripts.call_once("revive", "", "tea", op="session:1")
            assert not store.revive("tea")
        (claim,) = node.claim()
        assert (1, b'{"cup":1}') == (claim.attempt, claim.payload)

    def test_dead_letters_are_bounded(self, store, node, now):
        """Dead letters beyond the maximum number or age are removed, the oldest first."""
        for i in range(10):
            post_and_bury(node, f"e{i}")
            now.tick(1_000)
        assert 4 == store.trim(6, 3_600_000_000)
        assert ["e4", "e5", "e6", "e7", "e8", "e9"] == [letter.id for letter in store.dead()]
        assert 3 == store.trim(100, 3_000_001)
        assert 3 == store.trim(0, -1)

    def test_purge_ends_if_events_keep_dying(self, store, node, monkeypatch):
        """A purge ends after as many as there were at first, even if a handler keeps failing."""
        trim, calls = store.trim, itertools.count()

        def trim_while_events_die(*arguments):
            dropped = trim(*arguments)
            assert next(calls) < 9, "it does not end"
            for n in range(3):
                post_and_bury(node, f"e{n}")
            return dropped

        trim_while_events_die(100, -1)
        monkeypatch.setattr(store, "trim", trim_while_events_die)
        assert 3 == store.purge()

    def test_stats_count_each_state(self, store, node, now):
        """The counts match the events' states, and the totals match what has happened."""
        for id, delay in (("a", 0), ("b", 0), ("c", 0), ("d", 5_000)):
            post(store, id, delay, max_retries=0 if id == "a" else 3)
        a, b = node.claim(2)
        node.fail(a)
        now.tick(1_500)
        stats = store.stats()
        assert (2, 1, 1, 1, 1) == (
            stats.scheduled, stats.in_flight, stats.overdue, stats.dead, stats.nodes,
        )  # fmt: skip
        assert 1_500 == stats.oldest_overdue_ms
        node.confirm(b)
        expected = {"posted": 4, "started": 2, "confirmed": 1, "died": 1}
        assert expected.items() <= store.stats().totals.items()

    def test_totals_count_dead_letters_by_reason(self, store, node, now, client):
        """An alarm ignores events that expired, and fires for those that failed."""
        for id in ("failed", "lapsed"):
            post(store, id, max_retries=0)
        post(store, "old", expires="+1000")
        failed, *_ = node.claim(2)
        node.fail(failed)
        now.tick(LEASE)
        client.zadd(store.keys.due, {"foreign": 1})
        node.claim(9)
        totals = store.stats().totals
        reasons = {name[5:]: n for name, n in totals.items() if name.startswith("died:") and n}
        assert dict.fromkeys(("failed", "lease_lost", "expired", "payload_missing"), 1) == reasons
        assert (4, 1) == (totals["died"], totals["expired"])

    def test_an_unknown_reason_is_counted_as_other(self, store, node):
        """The number of totals is bounded, also for the reasons of later versions."""
        claim = post_and_claim(node)
        settlement = Settlement(claim.id, claim.token, Verdict.BURY, reason="tired")
        node.claim_reply(0, settlement)
        totals = store.stats().totals
        assert (1, 1) == (totals["died"], totals["died:other"])
        assert {f"died:{reason}" for reason in [*Reason, "other"]} <= totals.keys()

    def test_totals_count_what_a_post_replaces(self, store, node, client):
        """A superseded event neither starts again nor dies, and must be accounted for."""
        post(store, "tea")
        node.claim(1)
        post(store, "tea")
        post(store, "tea")
        post(store, "egg")
        assert 2 == store.stats().totals["superseded"]

    def test_totals_count_events_that_were_moved(self, store):
        """A call that finds no event to move is not counted."""
        post(store, "tea", 1_000)
        assert store.reschedule("tea", "+1")
        assert not store.reschedule("egg", "+1")
        assert 1 == store.stats().totals["moved"]

    def test_totals_count_leases_that_ran_out(self, store, node, now):
        """They tell that nodes die or stall, also if the event is then buried or cancelled."""
        for id, max_retries in (("tea", 3), ("egg", 0), ("ham", 3)):
            post(store, id, max_retries=max_retries)
        node.claim(3)
        store.cancel("ham")
        now.tick(LEASE)
        assert ["tea"] == [claim.id for claim in node.claim(3)]
        assert 3 == store.stats().totals["lapsed"]

    def test_percentiles_come_from_the_histogram(self, store, node, now):
        """The histogram counts the lateness of each claim, in steps of the square root of two."""
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

    @pytest.fixture
    def unchecked_store(self, client, namespace, now):
        """A store that is not opened yet, and whose keys need not agree after the test."""
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        yield store
        store.release()

    def test_wrong_type_is_found_at_opening(self, unchecked_store, client, namespace):
        """If a key of the namespace has a wrong type, it is named and nothing is written."""
        lease = unchecked_store.keys.lease
        client.set(lease, "x")
        with pytest.raises(NamespaceCorrupt, match="lease holds a string"):
            post(unchecked_store, "tea")
        assert [lease.encode()] == client.keys(f"dtimer:{{{namespace}}}*")

    @pytest.mark.parametrize("field", ["due", "body", "dead", "sys", "memo_a", "roster"])
    def test_a_wrong_type_found_later_writes_nothing(self, unchecked_store, client, field):
        """If a key gets a wrong type after opening, it is named too, before any write."""
        unchecked_store.namespace.open()
        keys = unchecked_store.keys
        spoilt = getattr(keys, field)
        client.delete(spoilt)
        client.set(spoilt, "x")
        with pytest.raises(NamespaceCorrupt):
            post(unchecked_store, "tea")
        assert 0 == client.exists(*(set(keys) - {spoilt, keys.sys}))

    @pytest.mark.fault("F39")
    def test_a_later_schema_while_joined_ends_claims(self, store, node, client):
        """A node that meets a later schema claims nothing more, and can still settle its events."""
        claim = post_and_claim(node)
        post(store, "egg")
        client.hset(store.keys.sys, "v", "3")
        reply = node.claim_reply(9)
        assert ([], False) == (reply.claims, reply.known)
        assert Outcome.DONE is node.confirm(claim)
        with pytest.raises(NamespaceCorrupt, match="version 3"):
            store.join("node", "{}")
        client.hset(store.keys.sys, "v", "2")
        assert ["egg"] == [c.id for c in node.claim(9)]

    def test_foreign_members_are_buried(self, store, node, client):
        """Members with a missing or foreign record must not hold up the other events."""
        post(store, "good")
        client.zadd(store.keys.due, {b"\xff\xfe": 1, "gibberish": 2})
        client.hset(store.keys.body, "gibberish", b"\xff no body of ours")
        reply = node.claim_reply(10)
        assert ["good"] == [c.id for c in reply.claims]
        assert ["payload_missing", "corrupt"] == [reason for _, reason in reply.buried]
        assert [b"\xff no body of ours", b""] == [letter.raw for letter in store.dead()]


@pytest.mark.fault("F30")
def test_posts_are_refused_and_work_goes_on_if_memory_is_full(tcp_server, now):
    """A post fails as a whole. Claims, settlements and cancels, which free memory, still work."""
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
    (released,) = node.claim()
    assert [released.token] == [c.token for c in node.claim_reply(again=True).claims]
    client.config_set("maxmemory", 0)
    post(store, "e")
    assert_sound(client, store.keys)
    store.release()
    client.close()
