"""Putting an event off without counting the attempt, and giving it up at once."""

from __future__ import annotations

import itertools

import pytest
from peers import LEASE, Peer, post
from servers import LATER, LONGEST_CALL, eventually

from dtimer import Cancelled, HandlerError, OptionError, Reason, SkipRetry, State
from dtimer.model.claims import Outcome, Renewal
from dtimer.testing import Catch


def post_and_claim(node, id="tea", **options):
    """Post an event, and return the node's claim of it."""
    post(node.store, id, **options)
    (claim,) = node.claim()
    return claim


class TestSnoozeInTheStore:
    """A snooze as the scripts perform it, with time moved by the test."""

    def test_a_snoozed_event_is_delivered_again_after_its_delay(self, node, now):
        """The event is never early, and no attempt is counted, even if it has no retries."""
        claim = post_and_claim(node, max_retries=0)
        for _ in range(3):
            assert Outcome.DONE is node.snooze(claim, 5_000)
            now.tick(4_999.999)
            assert [] == node.claim()
            now.tick(0.001)
            (claim,) = node.claim()
            assert ("tea", 1, now.us) == (claim.id, claim.attempt, claim.due_us)
        assert Outcome.DEAD is node.fail(claim)

    def test_attempts_that_failed_before_a_snooze_still_count(self, node, store):
        """A snooze is free, but it must not give back the retries that were used."""
        claim = post_and_claim(node, max_retries=1)
        node.fail(claim)
        (claim,) = node.claim()
        node.snooze(claim, 0)
        assert 1 == store.peek("tea").attempt
        (claim,) = node.claim()
        assert 2 == claim.attempt
        assert Outcome.DEAD is node.fail(claim)
        assert (1, 1) == tuple(store.stats().totals[name] for name in ("retried", "snoozed"))

    def test_a_snooze_does_not_move_the_expiry(self, node, store, now):
        """An event that must not start late must not start late because of a snooze either."""
        claim = post_and_claim(node, expires="+5000000")
        assert Outcome.DONE is node.snooze(claim, 6_000)
        now.tick(6_000)
        assert [("tea", "expired")] == node.claim_reply().buried
        assert Reason.EXPIRED == store.letter("tea").reason

    def test_a_stale_snooze_changes_nothing(self, node, store, now):
        """A node that lost its lease must not move the event that another node runs."""
        old = post_and_claim(node)
        now.tick(LEASE)
        (new,) = Peer(store, "other").claim()
        assert Outcome.STALE is node.snooze(old)
        assert (State.IN_FLIGHT, 2) == (store.peek("tea").state, new.attempt)

    def test_a_cancelled_event_is_not_snoozed(self, node, store):
        """The caller of ``cancel`` was told that the event will not start again."""
        claim = post_and_claim(node)
        assert Cancelled.IN_FLIGHT is store.cancel("tea")
        assert Outcome.CANCELLED is node.snooze(claim)
        assert store.peek("tea") is None

    @pytest.mark.parametrize(
        ("expires", "policy"), [("", "replace"), ("+9000000000", "replace"), ("", "post_new")]
    )
    def test_the_first_snooze_is_remembered(self, node, store, now, expires, policy):
        """A growing pause is computed from it, and a limit of the whole time; see `Router`."""
        claim = post_and_claim(node, expires=expires, policy=policy, payload='{"a":"|,z1"}')
        assert claim.snoozed_us is None
        first = now.us
        for _ in range(3):
            node.snooze(claim, 60_000, "unknown_kind")
            now.tick(60_000)
            (claim,) = node.claim()
        assert (first, "unknown_kind") == (claim.snoozed_us, claim.snooze_reason)
        assert (180_000_000, 0) == (claim.snoozed_for_us("unknown_kind"), claim.snoozed_for_us(""))
        assert b'{"a":"|,z1"}' == claim.payload
        assert {"a": "|,z1"} == store.peek("tea").event
        assert bool(expires) is (claim.expires_us is not None)

    def test_a_snooze_for_another_reason_begins_a_new_wait(self, node, store, now):
        """Otherwise an event that its handler put off for days would die as of an unknown kind."""
        claim = post_and_claim(node)
        for reason in ("", "unknown_kind", ""):
            node.snooze(claim, 60_000, reason)
            now.tick(60_000)
            (claim,) = node.claim()
            assert (60_000_000, reason) == (claim.snoozed_for_us(reason), claim.snooze_reason)
        assert (3, 1) == tuple(store.stats().totals[name] for name in ("snoozed", "unknown"))

    @pytest.mark.parametrize("how", ["fail", "revive", "post"])
    def test_the_first_snooze_is_forgotten(self, node, store, how):
        """After a failed attempt, a revival or a new post the event is not waiting any more."""
        claim = post_and_claim(node)
        node.snooze(claim, 0)
        (claim,) = node.claim()
        if how == "fail":
            node.fail(claim)
        elif how == "post":
            post(store, "tea")
        else:
            node.bury(claim)
            assert store.revive("tea")
        (claim,) = node.claim()
        assert claim.snoozed_us is None

    def test_an_event_with_a_generated_id_is_still_claimed_ahead_after_a_snooze(self, node, store):
        """The field of the first snooze must not look like the mark of a chosen id."""
        claim = post_and_claim(node)
        node.snooze(claim, 5)
        (claim,) = node.claim(ahead=10)
        assert claim.snoozed_us is not None

    def test_a_repeated_claim_snoozes_once(self, node, store, now):
        """A claim whose reply was lost is sent again: the event must not be moved twice."""
        claim = post_and_claim(node)
        assert Outcome.DONE is node.snooze(claim, 5_000)
        due = store.peek("tea").due
        now.tick(1_000)
        node.seq -= 1
        assert Outcome.DONE is node.snooze(claim, 5_000)
        assert due == store.peek("tea").due

    @pytest.mark.parametrize("body", [b"", b"junk", b",3,n,z1", b",3,|x", b",3" + b",z1" * 99_999])
    def test_a_body_that_dtimer_did_not_write_is_kept(self, node, store, now, client, body):
        """Its dead letter must show what was stored."""
        claim = post_and_claim(node)
        client.hset(store.keys.body, "tea", body)
        assert Outcome.DONE is node.snooze(claim, 0)
        written = body.replace(b",3,|", b",3,,z%d|" % now.us)
        assert written == client.hget(store.keys.body, "tea")


class TestBuryInTheStore:
    """A handler's dead letter as the scripts make it."""

    def test_a_buried_event_has_its_text_and_can_be_revived(self, node, store):
        """An operator must see why the handler gave it up."""
        claim = post_and_claim(node)
        assert Outcome.DEAD is node.bury(claim, "no such order")
        letter = store.letter("tea")
        assert ("buried", "no such order", 1) == (letter.reason, letter.error, letter.attempt)
        assert letter.reason is Reason.BURIED
        assert store.revive("tea")
        assert 1 == node.claim()[0].attempt

    def test_a_stale_bury_changes_nothing(self, node, store, now):
        """A node that lost its lease must not end the event that another node runs."""
        old = post_and_claim(node)
        now.tick(LEASE)
        (new,) = Peer(store, "other").claim()
        assert Outcome.STALE is node.bury(old)
        assert Outcome.DONE is node.confirm(new)

    def test_a_reason_of_a_later_version_is_shown_as_text(self, node, store):
        """An older node must still list the letter."""
        node.bury(post_and_claim(node), reason="eaten")
        assert "eaten" == store.letter("tea").reason

    def test_a_cancelled_event_leaves_no_dead_letter(self, node, store):
        """Nothing of it is wanted any more."""
        claim = post_and_claim(node)
        store.cancel("tea")
        assert Outcome.CANCELLED is node.bury(claim)
        assert store.letter("tea") is None


class TestRenewal:
    """The reply to the renewal of a lease."""

    def test_the_renewal_says_that_the_event_was_cancelled(self, node, store):
        """The node still holds the lease, because the handler may still be running."""
        claim = post_and_claim(node)
        key = [(claim.id, claim.token)]
        assert [Renewal.HELD] == store.claims.renew(key, LEASE * 1000)
        store.cancel("tea")
        assert [Renewal.CANCELLED] == store.claims.renew(key, LEASE * 1000)
        assert [Renewal.CANCELLED] == store.claims.extend(key, LEASE * 1000)
        post(store, "tea")
        assert [Renewal.LOST] == store.claims.renew(key, LEASE * 1000)


class TestInAHandler:
    """The methods of the event, and `SkipRetry`, with a real node."""

    def test_a_snoozed_event_starts_again_and_no_retry_is_emitted(self, make):
        """'retry' means a failure, and dashboards count it as one."""
        timer = make(max_retries=0)
        starts, retries = Catch(timer, "event"), Catch(timer, "retry")
        results = []
        timer.on(
            "event", lambda events: results.append(events[0].snooze(0)) if not results else None
        )
        with timer:
            timer.post({"a": 1})
            assert [1, 1] == [starts.next()[0].attempt for _ in range(2)]
            eventually(lambda: timer.stats().totals["confirmed"] == 1)
        assert [True] == results
        assert retries.empty()

    def test_the_shortest_snooze_is_10_ms(self, make):
        """An event that is not ready must not keep a node busy. A delay below 10 ms is accepted."""
        timer = make()
        dues = []

        def handle(events):
            (ev,) = events
            dues.append(ev.due)
            if len(dues) < 3:
                ev.snooze(-60_000 if len(dues) == 1 else 0)

        timer.on("event", handle)
        with timer:
            timer.post({})
            eventually(lambda: len(dues) == 3)
        assert all(later - due >= 10 for due, later in itertools.pairwise(dues))

    def test_a_bad_argument_is_refused_before_any_call(self, make):
        """The event stays with its handler, which may settle it in another way."""
        timer = make()
        errors = Catch(timer, "error")

        def handle(events):
            (ev,) = events
            with pytest.raises(OptionError, match="delay"):
                ev.snooze("soon")
            with pytest.raises(OptionError, match="text"):
                ev.bury(3)
            with pytest.raises(OptionError, match="one by one"):
                raise SkipRetry("no", [ev])

        timer.on("event", handle)
        with timer:
            timer.post({})
            eventually(lambda: timer.stats().totals["confirmed"] == 1)
        assert errors.empty()

    @pytest.mark.parametrize("raising", [False, True], ids=["ev.bury", "SkipRetry"])
    def test_a_buried_event_is_a_dead_letter_with_its_text(self, make, raising):
        """The event is not retried. 'dead' is emitted, but not 'error', because nothing failed."""
        timer = make(max_retries=5, backoff=0)
        errors, dead, retries = (Catch(timer, name) for name in ("error", "dead", "retry"))
        results = []

        def handle(events):
            if raising:
                raise SkipRetry("no such order \ud800")
            results.append(events[0].bury("no such order \ud800"))

        timer.on("event", handle)
        with timer:
            id = timer.post({"a": 1})
            letter = dead.next()
            assert (id, "buried", 1) == (letter.id, letter.reason, letter.attempt)
            assert "no such order \\ud800" == letter.error
        assert ([] if raising else [True]) == results
        assert errors.empty()
        assert retries.empty()

    def test_a_second_verb_returns_false(self, make):
        """An event is settled once, so each later answer must not claim otherwise."""
        timer = make()
        results = []

        def handle(events):
            (ev,) = events
            results.extend([ev.bury("no"), ev.snooze(10), ev.bury("no"), ev.retry(), ev.confirm()])

        timer.on("event", handle)
        with timer:
            timer.post({})
            eventually(lambda: len(results) == 5)
        assert [True, False, False, False, False] == results

    def test_letters_of_bury_are_trimmed(self, make):
        """A handler that buries all its events must not fill the server."""
        timer = make(dead_limit=2)
        timer.on("event", lambda events: events[0].bury("no"))
        with timer:
            timer.post_many([({}, 0)] * 5)
            eventually(lambda: timer.stats().totals["died"] == 5)
            eventually(lambda: timer.stats().dead <= 2)

    def test_skip_retry_buries_only_the_events_that_it_names(self, make):
        """The others of the batch have not failed for good: they are retried."""
        timer = make(max_events=3, backoff=LATER)
        errors, dead, retries = (Catch(timer, name) for name in ("error", "dead", "retry"))

        def handle(events):
            raise SkipRetry("gone", *(ev for ev in events if ev["gone"]))

        timer.post_many([({"gone": gone}, 0) for gone in (True, False, True)])
        timer.on("event", handle)
        with timer:
            letters = [dead.next(), dead.next()]
            assert ["gone", "gone"] == [letter.error for letter in letters]
            assert [{"gone": True}] * 2 == [letter.event for letter in letters]
            error = errors.next()
            assert isinstance(error, HandlerError)
            assert [{"gone": False}] == error.events == [retries.next()]

    def test_skip_retry_without_events_buries_no_batch(self, make):
        """The node cannot tell which event is meant, and a retry loses nothing."""
        timer = make(max_events=2, backoff=LATER)
        errors, retries = Catch(timer, "error"), Catch(timer, "retry")

        def handle(events):
            raise SkipRetry("gone")

        timer.post_many([({"n": 1}, 0), ({"n": 2}, 0)])
        timer.on("event", handle)
        with timer:
            assert [{"n": 1}, {"n": 2}] == errors.next().events
            assert {1, 2} == {retries.next()["n"] for _ in range(2)}
            assert 0 == timer.stats().dead

    def test_skip_retry_buries_the_only_event_that_is_not_settled(self, make):
        """A handler that goes through its batch confirms each event, and raises for the last."""
        timer = make(max_events=2)
        errors, dead = Catch(timer, "error"), Catch(timer, "dead")

        def handle(events):
            events[0].confirm()
            raise ExceptionGroup("tasks", [SkipRetry("gone")])

        timer.post_many([({"n": 1}, 0), ({"n": 2}, 0)])
        timer.on("event", handle)
        with timer:
            assert {"n": 2} == dead.next().event
            eventually(lambda: timer.stats().totals["confirmed"] == 1)
        assert errors.empty()

    @pytest.mark.parametrize("how", ["cancel", "replace"])
    def test_a_handler_learns_that_its_event_was_cancelled(self, make, how):
        """A long handler can stop, because its result is not wanted any more."""
        timer = make(lease=900, timeout=LONGEST_CALL)
        other = make("other")
        seen = []

        def handle(events):
            (ev,) = events
            if ev.get("new"):
                return
            seen.append(ev.cancelled)
            if how == "cancel":
                other.cancel(ev.id)
            else:
                other.post({"new": True}, LATER, id=ev.id)
            eventually(lambda: ev.cancelled)
            seen.append(ev.lease_lost)
            seen.append(ev.snooze(0))

        timer.on("event", handle)
        with timer:
            timer.post({}, id="tea")
            eventually(lambda: len(seen) == 3)
        assert [False, how == "replace", False] == seen
