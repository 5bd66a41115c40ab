"""A debounce with a limit: posts of one id with `max_wait`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dtimer import DTimer, OptionError
from dtimer.model.claims import Outcome, Settlement, Verdict
from dtimer.store.format import Entry, write_body
from dtimer.testing import Clock

#: In ms.
DELAY, MAX_WAIT = 5_000, 12_000


def post(store, delay=DELAY, max_wait: int | None = MAX_WAIT, *, id="tea", max_retries=3):
    """Post an event, by default with `max_wait`; the times are in ms."""
    limit = "" if max_wait is None else f",{max_wait * 1000}"
    body = write_body("", max_retries, "{}", chosen_id=True, limited_wait=max_wait is not None)
    store.post([Entry(id, f"+{delay * 1000}{limit}", body)], "replace")


def due_in(store, now, id="tea"):
    """Return the time until an event is due, in ms."""
    return store.peek(id).due - now.us / 1000


class TestWait:
    """When an event that is posted again and again is due."""

    def test_posts_postpone_an_event_until_its_wait_is_over(self, store, now):
        """Without a limit, an event that is posted every four seconds would never start."""
        waits = []
        for _ in range(4):
            post(store)
            waits.append(due_in(store, now))
            now.tick(4_000)
        assert [5_000, 5_000, 4_000, 0] == waits

    def test_an_event_whose_wait_is_over_is_due_at_once(self, store, now, node):
        """While no node runs, a wait ends. The next post must not make the event later."""
        post(store)
        now.tick(60_000)
        post(store)
        assert 0 == due_in(store, now)
        assert ["tea"] == [claim.id for claim in node.claim()]

    def test_each_post_has_its_own_limit(self, store, now):
        """A deploy changes the limit. The posts of the new version count from the same moment."""
        post(store, max_wait=60_000)
        now.tick(4_000)
        post(store, max_wait=6_000)
        assert 2_000 == due_in(store, now)

    def test_a_post_without_a_limit_ends_the_wait(self, store, now):
        """A plain post states a due time that must hold, and the next debounce starts afresh."""
        post(store)
        now.tick(10_000)
        post(store, max_wait=None)
        assert 5_000 == due_in(store, now)
        post(store)
        assert 5_000 == due_in(store, now)

    def test_a_rescheduled_event_keeps_its_wait(self, store, now):
        """The limit is a promise to the first caller, which a later move does not renew."""
        post(store)
        now.tick(10_000)
        assert store.reschedule("tea", "+9000000")
        post(store)
        assert 2_000 == due_in(store, now)

    def test_a_post_after_a_snooze_begins_a_new_wait(self, store, now, node):
        """A snoozed event has started, so its wait is over although no attempt was counted."""
        post(store, delay=0)
        (claim,) = node.claim()
        now.tick(10_000)
        assert Outcome.DONE is node.snooze(claim, 60_000)
        post(store)
        assert 5_000 == due_in(store, now)

    def test_a_released_event_keeps_its_wait(self, store, now, node):
        """An event that was claimed and not started still waits for its first start."""
        post(store, delay=0)
        (claim,) = node.claim()
        now.tick(10_000)
        node.release(claim)
        post(store)
        assert 2_000 == due_in(store, now)

    def test_each_id_has_its_own_wait(self, store, now):
        """A wait belongs to an id, not to a call that posts several."""
        post(store)
        now.tick(10_000)
        bodies = [write_body("", 3, "{}", chosen_id=True, limited_wait=True)] * 2
        entries = [
            Entry(id, "+5000000,12000000", body)
            for id, body in zip(["tea", "milk"], bodies, strict=True)
        ]
        store.post(entries, "replace")
        assert [2_000, 5_000] == [due_in(store, now, id) for id in ("tea", "milk")]

    def test_a_clock_that_is_set_back_does_not_prolong_the_wait(self, store, now):
        """The limit would be later by as much as the clock was set back, here by an hour."""
        post(store)
        now.tick(-3_600_000)
        post(store)
        now.tick(10_000)
        post(store)
        assert 2_000 == due_in(store, now)

    def test_an_iteration_skips_an_event_that_its_loop_posts(self, store, now):
        """The event may become due earlier than the post says: at the end of its wait."""
        post(store, 60_000, 90_000, id="a")
        post(store, 80_000, 90_000, id="b")
        now.tick(30_000)
        met = []
        for record in store.upcoming("-inf", "+inf"):
            met.append(record.id)
            post(store, 3_600_000, 3_600_000, id=record.id)
            post(store, 70_000, 90_000, id=record.id)
        assert ["a", "b"] == met


class TestNewWait:
    """Which states of the event begin a new wait."""

    @pytest.fixture
    def begun(self, store, now, node):
        """The claim of an event whose wait began ten seconds ago."""
        post(store, delay=0, max_retries=0)
        now.tick(10_000)
        (claim,) = node.claim()
        return claim

    def test_begins_when_the_event_is_in_flight(self, store, now, begun):
        """The running handler may have read its data already, so what is new is not handled."""
        assert begun
        post(store)
        assert 5_000 == due_in(store, now)

    def test_begins_when_the_lease_has_ended(self, store, now, begun):
        """The event has started, even if its node died."""
        assert begun
        now.tick(60_000)
        post(store)
        assert 5_000 == due_in(store, now)

    def test_begins_between_attempts(self, store, now, node):
        """An event that waits for a retry has started, so it does not wait for its first start."""
        post(store, delay=0)
        (claim,) = node.claim()
        assert Outcome.DONE is node.fail(claim, wait=60_000)
        now.tick(10_000)
        post(store)
        assert 5_000 == due_in(store, now)

    def test_begins_after_a_snooze(self, store, now, node):
        """An event that was snoozed has started, although the attempt does not count."""
        post(store, delay=0)
        (claim,) = node.claim()
        snooze = Settlement(claim.id, claim.token, Verdict.SNOOZE, 60_000_000)
        assert [Outcome.DONE] == node.claim_reply(0, snooze).results
        now.tick(10_000)
        post(store)
        assert 5_000 == due_in(store, now)

    def test_begins_after_the_event_has_died(self, store, now, node, begun):
        """The post replaces the dead letter."""
        assert Outcome.DEAD is node.fail(begun)
        post(store)
        assert 5_000 == due_in(store, now)
        assert [] == list(store.dead())

    def test_begins_when_the_event_is_gone(self, store, now, node, begun):
        """After each run of the handler, the debounce starts again."""
        assert Outcome.DONE is node.confirm(begun)
        post(store)
        assert 5_000 == due_in(store, now)

    def test_begins_after_a_revival(self, store, now, node, begun):
        """A revived dead letter has another life. Its old wait was over long ago."""
        assert Outcome.DEAD is node.fail(begun)
        now.tick(3_600_000)
        assert store.revive("tea")
        post(store)
        assert 5_000 == due_in(store, now)

    def test_a_revived_event_runs(self, store, node, begun):
        """A revival removes only the wait and the expiry from the stored bytes."""
        assert Outcome.DEAD is node.fail(begun)
        assert store.revive("tea")
        (claim,) = node.claim()
        assert (b"{}", 0) == (claim.payload, claim.max_retries)


def test_an_event_with_a_limit_is_not_claimed_ahead(store, node, now):
    """Until it is due, the next post may replace it."""
    post(store)
    now.tick(DELAY - 1)
    assert [] == node.claim(ahead=20)
    now.tick(1)
    assert ["tea"] == [claim.id for claim in node.claim(ahead=20)]


@pytest.mark.parametrize("trace", ["", "ab" * 25])
def test_a_node_reads_the_event_as_any_other(store, node, now, trace):
    """The time at which the wait began is only for later posts, and leaves other flags alone."""
    body = write_body("+5", 3, "{}", chosen_id=True, limited_wait=True, trace=trace)
    store.post([Entry("tea", "+0,5", body)], "replace")
    (claim,) = node.claim()
    assert (b"{}", 3, now.us + 5, trace) == (
        claim.payload,
        claim.max_retries,
        claim.expires_us,
        claim.trace,
    )


class TestCall:
    """The argument `max_wait` of the public calls."""

    @pytest.fixture
    def clock(self):
        return Clock(1_800_000_000_000)

    @pytest.fixture
    def timer(self, server, namespace, clock):
        timer = DTimer("poster", server.url, ns=namespace, now=clock)
        yield timer
        timer.leave()

    @pytest.fixture
    def posts(self, timer, client):
        """Functions that post with `max_wait`, one for each way to post."""

        def piped(ev, delay, **options):
            with client.pipeline() as pipe:
                timer.post(ev, delay, pipe=pipe, **options)
                pipe.execute()

        return {
            "post": timer.post,
            "post_many": lambda ev, delay, **more: timer.post_many(
                [{"ev": ev, "delay": delay, **more}]
            ),
            "pipe": piped,
        }

    @pytest.mark.parametrize("way", ["post", "post_many", "pipe"])
    def test_limits_a_debounce(self, timer, clock, posts, way):
        """Every way to post an event has the argument, and the last payload wins."""
        for n in range(4):
            posts[way]({"n": n}, DELAY, id="tea", max_wait=timedelta(milliseconds=MAX_WAIT))
            clock.tick(4_000)
        record = timer.peek("tea")
        assert ({"n": 3}, 1_800_000_012_000) == (record.event, record.due)

    def test_equal_to_the_delay_means_the_delay_of_the_first_post(self, timer, clock):
        """Then later posts replace the payload only: a throttle."""
        timer.post({"n": 1}, DELAY, id="tea", max_wait=DELAY)
        clock.tick(3_000)
        timer.post({"n": 2}, DELAY, id="tea", max_wait=DELAY)
        record = timer.peek("tea")
        assert ({"n": 2}, 1_800_000_005_000) == (record.event, record.due)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({}, "needs an id"),
            ({"id": "tea", "if_exists": "keep"}, "if_exists='replace'"),
            ({"id": "tea", "if_exists": "latest"}, "if_exists='replace'"),
            ({"id": "tea", "at": datetime(2030, 1, 1, tzinfo=UTC), "delay": 0}, "not with at"),
            ({"id": "tea", "max_wait": DELAY - 1}, "shorter than the delay"),
            ({"id": "tea", "max_wait": "soon"}, "max_wait"),
        ],
    )
    def test_is_refused_before_any_io(self, options, text):
        """A limit that cannot hold is a mistake of the caller."""
        timer = DTimer("poster", "redis://127.0.0.1:1", timeout=30_000)
        arguments = {"delay": DELAY, "max_wait": MAX_WAIT} | options
        with pytest.raises(OptionError, match=text):
            timer.post({}, **arguments)
        with pytest.raises(OptionError, match=text):
            timer.post_many([{"ev": {}, **arguments}])
