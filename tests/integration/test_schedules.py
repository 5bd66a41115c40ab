"""Schedules on a real server, with time moved by the test: chains, misfires, overlaps, crashes."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from peers import LEASE, Now, Peer, post
from soundness import assert_sound

from dtimer.errors import OptionError
from dtimer.model.claims import Outcome, Settlement, Verdict
from dtimer.model.records import Cancelled, State
from dtimer.model.schedules import MOST_COMPUTED, make_spec
from dtimer.store.connection.sources import source
from dtimer.store.store import Store

SECOND = 1_000_000
MINUTE = 60 * SECOND

#: The start time of `Now`: Friday, 15 January 2027, 8:00 UTC.
START = Now().us


def definition(id="beat", **options):
    """Return a schedule's specification; every second, unless ``every`` or ``cron`` is given."""
    given = {
        "every": None if "cron" in options else 1_000,
        "start": None,
        "end": None,
        "count": None,
        "jitter": 0,
        "misfire": "coalesce",
        "overlap": "queue",
        "max_retries": 3,
        "payload": '{"n":1}',
    }
    return make_spec(id, **(given | options))


def declare(store, id="beat", **options):
    return store.declare(definition(id, **options))


def at(claim, unit=SECOND):
    """Return the nominal time of an occurrence, counted from the start of the test."""
    return (claim.nominal_us - START) / unit


def serve(peer, limit=10):
    """Claim, confirm and add times as a node does, until nothing is due; return the claims."""
    served = []
    for _ in range(2_000):
        reply = peer.claim_reply(limit)
        for name in reply.short:
            peer.store.add_times(name)
        for claim in reply.claims:
            peer.confirm(claim)
        served += reply.claims
        head = next(peer.store.upcoming("-inf", "+0"), None)
        if not reply.claims and head is None:
            return served
    raise AssertionError("an event stays due and is not delivered")


def nominals(claims, unit=SECOND):
    return [at(claim, unit) for claim in claims]


class TestChain:
    """Each occurrence follows from the nominal time of the previous one."""

    def test_an_occurrence_names_its_schedule_and_nominal_time(self, store, node, now):
        """
        The id of an occurrence is the schedule's id with the nominal time, and the claim has
        both.
        """
        assert "new" == declare(store, payload='{"cup":1}', max_retries=7)
        now.tick(1_000)
        (claim,) = node.claim()
        assert f"beat@{START + SECOND}" == claim.id
        assert ("beat", START + SECOND, 0) == (claim.schedule, claim.nominal_us, claim.missed)
        assert (b'{"cup":1}', 7, 1) == (claim.payload, claim.max_retries, claim.attempt)

    def test_an_occurrence_is_never_claimed_early(self, store, node, now):
        """An occurrence cannot be claimed one microsecond before its nominal time."""
        declare(store)
        now.tick(999.999)
        assert [] == node.claim()
        now.tick(0.001)
        assert [1] == nominals(node.claim())

    def test_late_claims_cause_no_drift(self, store, node, now):
        """
        Nominal times keep their distance from the anchor, however late occurrences are
        claimed.
        """
        declare(store)
        seen = []
        for late in (0, 300, 700, 999.999, 1):
            now.tick((START + (len(seen) + 1) * SECOND - now.us) / 1000 + late)
            (claim,) = node.claim()
            node.confirm(claim)
            seen.append(at(claim))
        assert [1, 2, 3, 4, 5] == seen

    def test_one_occurrence_is_pending_at_a_time(self, store, node, now):
        """Redis holds one future occurrence of a schedule, not all of them."""
        declare(store)
        for _ in range(5):
            now.tick(1_000)
            serve(node)
            assert 1 == len(list(store.upcoming("-inf", "+inf")))

    def test_start_is_the_first_nominal_time(self, store, node, now):
        """The first nominal time is the start, and the others count from it."""
        declare(store, start=START / 1000 + 250)
        now.tick(249.999)
        assert [] == node.claim()
        now.tick(0.001)
        assert [0.25] == nominals(serve(node))
        now.tick(1_000)
        assert [1.25] == nominals(serve(node))

    def test_end_is_the_last_nominal_time(self, store, node, now):
        """
        The end may itself be a nominal time. No occurrence follows, and the schedule is
        finished.
        """
        declare(store, end=START / 1000 + 3_000)
        seen = []
        for _ in range(6):
            now.tick(1_000)
            seen += nominals(serve(node))
        assert [1, 2, 3] == seen
        assert (None, 0) == (store.schedule("beat").due, store.schedule("beat").left)

    def test_an_end_before_the_first_time_makes_no_occurrence(self, store, node, now):
        """A schedule that ends before its first nominal time has no occurrence."""
        declare(store, end=START / 1000 + 500)
        declare(store, "cron", cron="* * * * *", end=START / 1000 + 500)
        now.tick(600_000)
        assert [] == serve(node)

    def test_count_limits_the_occurrences(self, store, node, now):
        """After *count* occurrences no more follow."""
        declare(store, count=2)
        assert 2 == store.schedule("beat").left
        seen = []
        for _ in range(4):
            now.tick(1_000)
            seen += nominals(serve(node))
        assert [1, 2] == seen
        assert 0 == store.schedule("beat").left

    def test_jitter_stays_within_its_bounds(self, store, node, now):
        """
        Each occurrence is due within the jitter after its nominal time, spread over the whole
        range.
        """
        for i in range(50):
            declare(store, f"j{i}", jitter=1_000)
        spread = [(r.due - START / 1000 - 1_000) for r in store.upcoming("-inf", "+inf")]
        assert 50 == len(spread)
        assert all(0 <= s <= 1_000 for s in spread)
        assert min(spread) < 250
        assert max(spread) > 750

    def test_a_jitter_of_days_is_spread_over_days(self, store):
        """A jitter of a day is spread over the whole day."""
        day = 86_400_000
        for i in range(50):
            declare(store, f"j{i}", every=day, jitter=day)
        spread = [(r.due - START / 1000 - day) / day for r in store.upcoming("-inf", "+inf")]
        assert min(spread) < 0.25
        assert max(spread) > 0.75

    def test_jitter_causes_no_misfire(self, store, node, now):
        """With a jitter as long as the interval, every nominal time is still delivered."""
        declare(store, jitter=1_000)
        seen = []
        for _ in range(4_000):
            now.tick(10)
            seen += serve(node)
        assert list(range(1, len(seen) + 1)) == nominals(seen)
        assert 39 <= len(seen)
        assert all(claim.missed == 0 for claim in seen)

    def test_a_listed_schedule_has_its_next_and_last_time(self, store, node, now):
        """A listed schedule has its specification, its next due time and its last nominal time."""
        declare(store, count=5, jitter=0)
        declare(store, "cron", cron="0 9 * * *", tz="Europe/Berlin", misfire="skip")
        beat, cron = store.schedules()
        assert ("beat", 1_000, None, START / 1000 + 1_000, None, 5) == (
            beat.id, beat.interval, beat.cron, beat.due, beat.last, beat.left,
        )  # fmt: skip
        assert ("0 9 * * *", "Europe/Berlin", "skip", "queue") == (
            cron.cron, cron.tz, cron.misfire, cron.overlap,
        )  # fmt: skip
        assert datetime(2027, 1, 16, 8, 0, tzinfo=UTC).timestamp() * 1000 == cron.due
        now.tick(1_000)
        serve(node)
        assert START / 1000 + 1_000 == store.schedule("beat").last
        assert store.schedule("nobody") is None


class TestDeclaring:
    """Every process declares its schedules at each start."""

    def test_declaring_the_same_changes_nothing(self, store, now):
        """A schedule that is declared again keeps its anchor and its pending occurrence."""
        assert "new" == declare(store)
        before = store.schedule("beat")
        now.tick(400)
        assert "same" == declare(store)
        assert before == store.schedule("beat")

    def test_declaring_the_same_keeps_an_overdue_occurrence(self, store, node, now):
        """
        Occurrences that became due while no node was there are not lost when a process declares the
        schedule at its start.
        """
        declare(store)
        now.tick(5_300)
        assert "same" == declare(store)
        (claim,) = serve(node)
        assert (1, 4) == (at(claim), claim.missed)

    def test_a_change_keeps_the_rhythm(self, store, node, now):
        """
        A new payload does not restart the interval. A schedule that is changed often still
        recurs.
        """
        declare(store, every=60_000)
        seen = []
        for i in range(12):
            now.tick(10_000)
            assert "changed" == declare(store, every=60_000, payload=f'{{"n":{i}}}')
            seen += serve(node)
        assert [60, 120] == nominals(seen)

    def test_a_new_interval_counts_from_the_last_occurrence(self, store, node, now):
        """A new interval counts from the last nominal time, and adds no occurrences in the past."""
        declare(store, every=10_000)
        now.tick(10_000)
        serve(node)
        now.tick(5_000)
        assert "changed" == declare(store, every=2_000)
        assert [] == serve(node)
        now.tick(1_000)
        assert [16] == nominals(serve(node))

    @pytest.mark.parametrize("change", [{"payload": '{"n":2}'}, {"every": 7_000}])
    def test_a_change_keeps_a_due_occurrence(self, store, node, now, change):
        """An occurrence that is due and not claimed yet is delivered with the new payload."""
        declare(store)
        now.tick(1_050)
        declare(store, **change)
        (claim,) = serve(node)
        assert 1 == at(claim)
        assert change.get("payload", '{"n":1}').encode() == claim.payload

    def test_a_changed_cron_keeps_a_due_occurrence(self, store, node, now):
        """
        A changed cron expression keeps a due occurrence too: that of 8:01 comes, although the new
        expression is for 9:00.
        """
        declare(store, cron="* * * * *")
        now.tick(60_500)
        declare(store, cron="0 9 * * *")
        assert [1] == nominals(serve(node), MINUTE)
        now.tick(3_600_000)
        assert [60] == nominals(serve(node), MINUTE)

    def test_a_changed_cron_does_not_make_up_the_past(self, store, node, now):
        """If the new time of day has passed, the next occurrence is due tomorrow."""
        declare(store, cron="0 9 * * *")
        now.tick(3_600_000)
        serve(node)
        now.tick(3_600_000)
        declare(store, cron="30 9 * * *")
        assert [] == serve(node)
        assert [1] == [round((r.due - now.us / 1000) / 86_400_000) for r in store.schedules()]

    def test_a_change_does_not_repeat_coalesced_occurrences(self, store, node, now):
        """
        A change right after an outage does not deliver occurrences that were coalesced into
        one.
        """
        declare(store, cron="* * * * *")
        now.tick(5 * 60_000)
        (claim,) = serve(node)
        assert 4 == claim.missed
        declare(store, cron="* * * * *", payload='{"n":2}')
        assert [] == serve(node)
        now.tick(60_000)
        assert [6] == nominals(serve(node), MINUTE)

    @pytest.mark.fault("F50")
    @pytest.mark.parametrize("back", [1, 5, 60, 3_600])
    def test_a_changed_cron_after_the_clock_was_set_back_repeats_nothing(
        self, store, node, now, back
    ):
        """
        A cron schedule may be changed after the server's clock was set back, by any amount. It
        continues after the occurrences that were delivered, and repeats none.
        """
        declare(store, cron="* * * * * *")
        now.tick(3_000)
        assert [1] == nominals(serve(node)), "2 and 3 are coalesced into it"
        now.tick(-1_000 * back)
        assert "changed" == declare(store, cron="* * * * * *", payload='{"n":2}')
        assert [] == serve(node)
        now.tick(1_000 * back)
        assert [] == serve(node)
        now.tick(1_000)
        assert [4] == nominals(serve(node))

    def test_a_schedule_may_change_between_interval_and_cron(self, store, node, now):
        """A schedule may change its kind. There is never more than one pending occurrence."""
        declare(store)
        declare(store, cron="* * * * *")
        declare(store, every=5_000)
        now.tick(5_000)
        assert [5] == nominals(serve(node))

    @pytest.mark.parametrize("start", [None, START / 1000 + 1_000])
    def test_a_change_after_the_clock_was_set_back_repeats_nothing(self, store, node, now, start):
        """
        Occurrences that were delivered are not repeated, although the clock says they are still to
        come.
        """
        declare(store, start=start)
        now.tick(1_000)
        assert [1] == nominals(serve(node))
        now.tick(-600)
        declare(store, start=start, payload='{"n":2}')
        now.tick(1_000)
        assert [] == serve(node)
        now.tick(600)
        assert [2] == nominals(serve(node))

    def test_a_change_does_not_affect_an_occurrence_in_flight(self, store, node, now):
        """An occurrence in flight is confirmed as usual, and does not come again."""
        declare(store)
        now.tick(1_000)
        (claim,) = node.claim()
        declare(store, payload='{"n":2}')
        assert Outcome.DONE is node.confirm(claim)
        now.tick(1_000)
        assert [2] == nominals(serve(node))

    def test_alternating_declarations_lose_no_occurrence(self, store, node, now):
        """
        During a rolling update the old and the new version declare alternately. No nominal time is
        lost.
        """
        seen = []
        for i in range(200):
            declare(store, payload=f'{{"n":{i % 2}}}')
            now.tick(97)
            seen += serve(node)
        assert list(range(1, 20)) == nominals(seen)

    def test_after_a_flush_a_declaration_is_new(self, store, node, now, client):
        """After FLUSHALL the next declaration creates the schedule again."""
        declare(store)
        client.delete(*store.keys)
        store.join("node", "{}")
        assert "new" == declare(store)
        now.tick(1_000)
        assert [1] == nominals(serve(node))

    def test_declaring_repairs_a_broken_chain(self, store, node, now, client):
        """If another program has removed the pending occurrence, declaring again restores it."""
        declare(store)
        id = f"beat@{START + SECOND}"
        client.zrem(store.keys.due, id)
        client.hdel(store.keys.body, id)
        assert "same" == declare(store)
        now.tick(1_000)
        assert [1] == nominals(serve(node))


class TestMisfires:
    """Occurrences whose successor is due already."""

    @pytest.mark.parametrize("over", [1, 2, 9, 10, 11, 35, 1_000])
    @pytest.mark.parametrize("kind", [{"every": 60_000}, {"cron": "* * * * *"}])
    def test_coalesce_counts_exactly(self, store, node, now, kind, over):
        """
        A single occurrence stands for all and has the number of the others. Then the rhythm
        continues.
        """
        declare(store, **kind)
        now.tick(60_000 * (1 + over) + 30_000)
        (claim,) = serve(node)
        assert (1, over) == (at(claim, MINUTE), claim.missed)
        assert START + (1 + over) * MINUTE == store.schedule("beat").last * 1000
        now.tick(30_000)
        (claim,) = serve(node)
        assert (2 + over, 0) == (at(claim, MINUTE), claim.missed)
        assert over == store.stats().totals["coalesced"]

    def test_coalesce_stops_at_the_end(self, store, node, now):
        """Nominal times after the end are not counted as missed."""
        for id, kind in (("e", {"every": 60_000}), ("c", {"cron": "* * * * *"})):
            declare(store, id, end=START / 1000 + 5 * 60_000, **kind)
        now.tick(100 * 60_000)
        assert [(1, 4), (1, 4)] == [(at(c, MINUTE), c.missed) for c in serve(node)]
        assert all(s.due is None for s in store.schedules())

    @pytest.mark.parametrize("over", [1, 2, 9, 10, 11, 35])
    @pytest.mark.parametrize("kind", [{"every": 60_000}, {"cron": "* * * * *"}])
    def test_skip_drops_all_but_the_latest(self, store, node, now, kind, over):
        """Occurrences whose successor is due are dropped. The latest one is late."""
        declare(store, misfire="skip", **kind)
        now.tick(60_000 * (1 + over) + 30_000)
        (claim,) = serve(node)
        assert (1 + over, 0) == (at(claim, MINUTE), claim.missed)
        assert over == store.stats().totals["skipped"]
        now.tick(30_000)
        assert [2 + over] == nominals(serve(node), MINUTE)

    def test_skip_stops_at_the_end(self, store, node, now):
        """The latest occurrence is the last one before the end, not one after it."""
        for id, kind in (("e", {"every": 60_000}), ("c", {"cron": "* * * * *"})):
            declare(store, id, misfire="skip", end=START / 1000 + 5 * 60_000, **kind)
        now.tick(100 * 60_000)
        assert [5, 5] == nominals(serve(node), MINUTE)

    @pytest.mark.parametrize("kind", [{"every": 60_000}, {"cron": "* * * * *"}])
    def test_all_delivers_each(self, store, node, now, kind):
        """Each nominal time of the outage is delivered, in order."""
        declare(store, misfire="all", overlap="allow", **kind)
        now.tick(60_000 * 47 + 30_000)
        served = serve(node)
        assert list(range(1, 48)) == nominals(served, MINUTE)
        assert all(claim.missed == 0 for claim in served)

    @pytest.mark.parametrize("kind", [{"every": 60_000}, {"cron": "* * * * *"}])
    def test_all_is_bounded(self, store, node, now, kind):
        """
        At most a thousand occurrences are delivered, and the first has the number of those left
        out.
        """
        declare(store, misfire="all", overlap="allow", **kind)
        now.tick(60_000 * 1_200)
        served = serve(node)
        assert 1_200 == len(served) + sum(claim.missed for claim in served)
        # The stored times of a cron schedule are delivered in addition.
        assert 1_000 <= len(served) <= (1_000 if "every" in kind else 1_011)
        assert 1_200 == nominals(served, MINUTE)[-1]

    def test_a_very_long_outage_is_counted_in_parts(self, store, node, now):
        """Counting the missed seconds of a month is split, so that it does not block the node."""
        declare(store, cron="* * * * * *")
        seconds = 2 * MOST_COMPUTED + 17
        now.tick(seconds * 1_000)
        (claim,) = serve(node)
        assert seconds - 1 == claim.missed
        now.tick(1_000)
        assert [seconds + 1] == nominals(serve(node))

    def test_a_late_occurrence_alone_is_not_a_misfire(self, store, node, now):
        """Until its successor is due, an occurrence is only late."""
        for policy in ("coalesce", "skip", "all"):
            declare(store, policy, misfire=policy)
        now.tick(1_999.999)
        assert [1, 1, 1] == nominals(serve(node))


class TestOverlap:
    """An occurrence that becomes due while the previous one still runs."""

    def test_queue_keeps_one_waiting(self, store, node, now):
        """
        The next occurrence starts when the previous one has ended, and stands for those in
        between.
        """
        declare(store)
        now.tick(1_000)
        (first,) = node.claim()
        for _ in range(5):
            now.tick(700)
            assert [] == node.claim(10)
        reply = node.claim_reply(10, Settlement(first.id, first.token, Verdict.CONFIRM))
        assert [2] == nominals(reply.claims)
        assert 2 == reply.claims[0].missed

    def test_queue_after_the_clock_was_set_back_is_not_early(self, store, node, now):
        """
        An occurrence that waited for the previous one does not start early if the clock was set
        back.
        """
        declare(store)
        now.tick(1_000)
        (first,) = node.claim()
        now.tick(1_000)
        assert [] == node.claim()
        now.tick(-600)
        node.confirm(first)
        assert [] == node.claim()
        now.tick(600)
        assert [2] == nominals(node.claim())

    def test_queue_waits_for_retries(self, store, node, now):
        """An occurrence that waits for its retry still counts as running."""
        declare(store)
        now.tick(1_000)
        (first,) = node.claim()
        node.fail(first, wait=5_000)
        now.tick(1_000)
        assert [] == node.claim(10)
        now.tick(4_000)
        (again,) = node.claim(10)
        assert (first.id, 2) == (again.id, again.attempt)
        node.confirm(again)
        assert [2] == nominals(serve(node))

    def test_queue_continues_if_the_running_one_is_cancelled(self, store, node, now):
        """If an occurrence is cancelled between two attempts, the next one starts."""
        declare(store)
        now.tick(1_000)
        (first,) = node.claim()
        node.fail(first, wait=60_000)
        now.tick(1_000)
        assert [] == node.claim(10)
        assert Cancelled.CANCELLED is store.cancel(first.id)
        assert [2] == nominals(node.claim(10))

    def test_queue_continues_if_the_node_died(self, store, node, now):
        """
        When the lease of the running occurrence ends, it is delivered again, and then the
        next one.
        """
        other = Peer(store, "other")
        declare(store)
        now.tick(1_000)
        (first,) = node.claim()
        now.tick(1_000)
        assert [] == other.claim()
        now.tick(LEASE)
        assert [first.id] == [c.id for c in other.claim(1)]
        assert [] == other.claim()
        now.tick(LEASE + 1_000)
        served = serve(other)
        assert [1, 2] == nominals(served)

    def test_allow_runs_occurrences_in_parallel(self, store, node, now):
        """With ``allow`` any number of occurrences run at the same time."""
        declare(store, overlap="allow")
        running = []
        for _ in range(4):
            now.tick(1_000)
            running += node.claim(10)
        assert [1, 2, 3, 4] == nominals(running)
        assert [Outcome.DONE] * 4 == [node.confirm(claim) for claim in running]

    def test_skip_drops_occurrences_while_one_runs(self, store, node, now):
        """An occurrence that becomes due while another runs is dropped and counted."""
        declare(store, overlap="skip")
        now.tick(1_000)
        (first,) = node.claim()
        for _ in range(3):
            now.tick(1_000)
            assert [] == node.claim(10)
        node.confirm(first)
        now.tick(1_000)
        assert [5] == nominals(serve(node))
        assert 3 == store.stats().totals["skipped"]

    def test_skip_with_cron_drops_more_than_the_stored_times(self, store, node, now):
        """
        If a handler runs longer than the stored times reach, all occurrences meanwhile are dropped,
        and the chain continues.
        """
        declare(store, cron="* * * * *", overlap="skip")
        now.tick(60_000)
        (first,) = node.claim()
        for _ in range(25):
            now.tick(60_000)
            store.extend([(first.id, first.token)], LEASE * 10_000)
            for name in node.claim_reply(10).short:
                store.add_times(name)
        node.confirm(first)
        now.tick(60_000)
        assert [27] == nominals(serve(node), MINUTE)


class TestFailures:
    """Retries, lost leases and dead letters concern one occurrence and do not affect the chain."""

    @pytest.fixture(params=[{"every": 60_000}, {"cron": "* * * * *"}], ids=["every", "cron"])
    def kind(self, request):
        return request.param

    def test_a_failed_occurrence_is_retried(self, store, node, now, kind):
        """
        A failed occurrence is delivered again with the same id, nominal time and count of missed
        ones.
        """
        declare(store, **kind)
        now.tick(60_000 * 3)
        (claim,) = node.claim()
        node.fail(claim, wait=10)
        now.tick(10)
        (again,) = node.claim()
        assert (claim.id, 2, 2) == (again.id, again.attempt, again.missed)
        assert claim.nominal_us == again.nominal_us

    def test_a_dead_occurrence_does_not_stop_the_chain(self, store, node, now, kind):
        """An occurrence without retries left becomes a dead letter, and the next one follows."""
        declare(store, max_retries=0, **kind)
        now.tick(60_000)
        (claim,) = node.claim()
        assert Outcome.DEAD is node.fail(claim)
        now.tick(60_000)
        assert [2] == nominals(serve(node), MINUTE)
        assert [claim.id] == [letter.id for letter in store.dead()]

    def test_a_dead_occurrence_may_be_revived(self, store, node, now, kind):
        """A dead occurrence may be revived in addition to the chain."""
        declare(store, max_retries=0, **kind)
        now.tick(60_000)
        (claim,) = node.claim()
        node.fail(claim)
        assert store.revive(claim.id)
        now.tick(60_000)
        assert [1, 2] == sorted(nominals(serve(node), MINUTE))

    def test_an_occurrence_is_delivered_again_after_a_lost_lease(self, store, node, now, kind):
        """
        If the node that holds an occurrence dies, it is delivered again, and the next one
        follows.
        """
        declare(store, overlap="allow", **kind)
        now.tick(60_000)
        (lost,) = node.claim()
        now.tick(LEASE)
        other = Peer(store, "other")
        (found,) = other.claim()
        assert (lost.id, 2) == (found.id, found.attempt)
        other.confirm(found)
        now.tick(60_000 - LEASE)
        assert [2] == nominals(other.claim(), MINUTE)

    def test_a_lost_occurrence_without_retries_is_dead(self, store, node, now, kind):
        """With max_retries=0 a lost occurrence becomes a dead letter, and the next one follows."""
        declare(store, max_retries=0, **kind)
        now.tick(60_000)
        node.claim()
        now.tick(60_000)
        other = Peer(store, "other")
        served = serve(other)
        assert [2] == nominals(served, MINUTE)
        assert ["lease_lost"] == [letter.reason for letter in store.dead()]

    def test_a_released_occurrence_is_delivered_once(self, store, node, now, kind):
        """An occurrence that is released before it starts is claimed again once, as itself."""
        declare(store, **kind)
        now.tick(60_000 * 3)
        (claim,) = node.claim()
        assert Outcome.DONE is node.release(claim)
        other = Peer(store, "other")
        (again,) = serve(other)
        assert (claim.id, 1, 2) == (again.id, again.attempt, again.missed)
        now.tick(60_000)
        assert [4] == nominals(serve(other), MINUTE)

    def test_a_repeated_claim_makes_no_second_successor(self, store, node, now, kind):
        """
        If the reply to a claim was lost, its repetition returns the same occurrence and makes no
        second successor.
        """
        declare(store, **kind)
        now.tick(60_000 * 3)
        first = node.claim_reply(10)
        again = node.claim_reply(10, again=True)
        assert [(c.id, c.token, c.missed) for c in first.claims] == [
            (c.id, c.token, c.missed) for c in again.claims
        ]
        assert [2] == [c.missed for c in again.claims]
        now.tick(60_000)
        node.confirm(again.claims[0])
        assert [4] == nominals(serve(node), MINUTE)


class TestControl:
    """Reading and changing occurrences and schedules."""

    @pytest.fixture(params=[{"every": 60_000}, {"cron": "* * * * *"}], ids=["every", "cron"])
    def kind(self, request):
        return request.param

    def test_cancelling_the_pending_occurrence_skips_it(self, store, node, now, kind):
        """The cancelled occurrence never starts, and the next one does."""
        declare(store, **kind)
        assert Cancelled.CANCELLED is store.cancel(f"beat@{START + MINUTE}")
        now.tick(60_000)
        assert [] == serve(node)
        now.tick(60_000)
        assert [2] == nominals(serve(node), MINUTE)

    def test_cancelling_more_than_the_stored_times_continues(self, store, node, now, kind):
        """Cancelling any number of occurrences in a row does not end the chain."""
        declare(store, **kind)
        for i in range(1, 26):
            assert Cancelled.CANCELLED is store.cancel(f"beat@{START + i * MINUTE}")
        now.tick(26 * 60_000)
        assert [26] == nominals(serve(node), MINUTE)

    def test_all_calls_of_a_cancel_or_of_a_declaration_share_one_deadline(
        self, store, now, monkeypatch
    ):
        """A slow server must not hold the caller several times as long as ``timeout``."""
        calls, call = [], store._scripts.call

        def noted(verb, *arguments, deadline, **options):
            calls.append((verb, deadline))
            return call(verb, *arguments, deadline=deadline, **options)

        monkeypatch.setattr(store._scripts, "call", noted)
        declare(store, cron="* * * * *")
        assert ["open", "open", "declare"] == [verb for verb, _ in calls]
        assert 1 == len({deadline for _, deadline in calls})
        for occurrence in range(1, 25):
            calls.clear()
            store.cancel(f"beat@{START + occurrence * MINUTE}")
            if len(calls) > 1:
                break
        assert ["cancel", "schedule", "open", "add_times", "cancel"] == [verb for verb, _ in calls]
        assert 1 == len({deadline for _, deadline in calls})

    def test_cancelling_the_last_occurrence_ends_the_schedule(self, store, node, now, kind):
        """Cancelling the last occurrence before the end finishes the schedule."""
        declare(store, end=START / 1000 + 60_000, **kind)
        assert Cancelled.CANCELLED is store.cancel(f"beat@{START + MINUTE}")
        assert store.schedule("beat").due is None

    def test_an_occurrence_cancelled_in_flight_is_not_retried(self, store, node, now, kind):
        """An occurrence in flight runs to its end, is not retried, and the next one follows."""
        declare(store, **kind)
        now.tick(60_000)
        (claim,) = node.claim()
        assert Cancelled.IN_FLIGHT is store.cancel(claim.id)
        assert Outcome.CANCELLED is node.fail(claim)
        now.tick(60_000)
        assert [2] == nominals(serve(node), MINUTE)

    def test_rescheduling_the_pending_occurrence_keeps_the_rhythm(self, store, node, now, kind):
        """A rescheduled occurrence keeps its id and nominal time, and the rhythm continues."""
        declare(store, **kind)
        assert store.reschedule(f"beat@{START + MINUTE}", "+90000000")
        now.tick(89_999)
        assert [] == serve(node)
        now.tick(1)
        assert [1] == nominals(serve(node), MINUTE)
        now.tick(30_000)
        assert [2] == nominals(serve(node), MINUTE)

    def test_a_rescheduled_occurrence_stays_when_the_previous_one_ends(self, store, node, now):
        """The end of the previous occurrence does not move an occurrence that was rescheduled."""
        declare(store)
        now.tick(1_000)
        (first,) = node.claim()
        now.tick(1_000)
        assert [] == node.claim()
        assert store.reschedule(f"beat@{START + 2 * SECOND}", "+10000000")
        node.confirm(first)
        assert [] == node.claim()
        now.tick(10_000)
        assert [2] == nominals(serve(node))

    def test_an_occurrence_may_be_rescheduled_to_now(self, store, node, now, kind):
        """
        An occurrence that is rescheduled to now is delivered before its nominal time, and only
        once.
        """
        declare(store, **kind)
        assert store.reschedule(f"beat@{START + MINUTE}", "+0")
        assert [1] == nominals(serve(node), MINUTE)
        now.tick(60_000)
        assert [] == serve(node)
        now.tick(60_000)
        assert [2] == nominals(serve(node), MINUTE)

    def test_unschedule_leaves_nothing_behind(self, store, node, now, kind, client):
        """
        After unschedule no occurrence follows, an occurrence in flight runs on, and no key
        is left.
        """
        declare(store, overlap="allow", **kind)
        now.tick(60_000)
        (claim,) = node.claim()
        assert store.unschedule("beat")
        assert not store.unschedule("beat")
        assert Outcome.DONE is node.confirm(claim)
        now.tick(600_000)
        assert [] == serve(node)
        assert 0 == client.exists(store.keys.beats, store.keys.defs, store.keys.plans)

    @pytest.mark.parametrize("end", ["in flight", "to be retried", "dead"])
    def test_a_schedule_declared_again_starts_with_a_new_event(self, store, node, now, client, end):
        """
        A schedule that is ended and declared with the same start has its first occurrence again.
        That occurrence is a new event, whether the old one runs, waits or is dead.
        """
        start = START / 1_000 + 1_000
        declare(store, start=start, max_retries=0 if end == "dead" else 3)
        now.tick(1_000)
        (old,) = node.claim()
        if end != "in flight":
            node.fail(old, wait=60_000)
        store.unschedule("beat")
        declare(store, start=start)
        assert_sound(client, store.keys)
        (new,) = node.claim()
        assert (old.id, 1) == (new.id, new.attempt)
        assert Outcome.STALE is node.confirm(old)
        assert Outcome.DONE is node.confirm(new)
        assert [] == list(store.dead())

    def test_unschedule_keeps_retries(self, store, node, now, kind):
        """An occurrence in flight keeps its retries after its schedule has been removed."""
        declare(store, **kind)
        now.tick(60_000)
        (claim,) = node.claim()
        store.unschedule("beat")
        node.fail(claim)
        assert [claim.id] == [c.id for c in serve(node)]

    def test_a_paused_schedule_delivers_nothing_until_resumed(self, store, node, now, kind):
        """
        A paused schedule delivers nothing, and others continue. When it is resumed, its misfire
        policy applies to the missed occurrences.
        """
        declare(store, **kind)
        declare(store, "other", **kind)
        assert store.pause_schedule("beat", on=True)
        assert not store.pause_schedule("beat", on=True)
        assert (True, None) == (store.schedule("beat").paused, store.schedule("beat").due)
        now.tick(60_000 * 5)
        assert ["other"] == [claim.schedule for claim in serve(node)]
        assert "same" == declare(store, **kind)
        assert [] == serve(node)
        assert store.pause_schedule("beat", on=False)
        assert not store.pause_schedule("beat", on=False)
        (claim,) = serve(node)
        assert (1, 4) == (at(claim, MINUTE), claim.missed)

    def test_a_paused_schedule_stays_paused_when_changed(self, store, node, now, kind):
        """A change does not resume a paused schedule."""
        declare(store, **kind)
        store.pause_schedule("beat", on=True)
        assert "changed" == declare(store, payload='{"n":2}', **kind)
        now.tick(60_000)
        assert [] == serve(node)
        store.pause_schedule("beat", on=False)
        assert [b'{"n":2}'] == [claim.payload for claim in serve(node)]

    def test_pausing_an_unknown_schedule_changes_nothing(self, store):
        """Pausing an unknown schedule changes and creates nothing."""
        assert not store.pause_schedule("nobody", on=True)
        assert store.schedule("nobody") is None

    def test_run_now_adds_an_occurrence(self, store, node, now, kind):
        """
        run_now delivers one more occurrence at once with the same payload, and the rhythm
        stays.
        """
        declare(store, **kind)
        now.tick(20_000)
        id = store.run_now("beat")
        assert f"beat@{now.us}" == id
        assert [id] == [claim.id for claim in serve(node)]
        now.tick(40_000)
        assert [1] == nominals(serve(node), MINUTE)
        assert store.run_now("nobody") is None

    def test_run_now_twice_in_one_microsecond_adds_two(self, store, node, now, kind):
        """Each call of run_now delivers an occurrence with its own id."""
        declare(store, **kind)
        ids = [store.run_now("beat") for _ in range(3)]
        assert 3 == len(set(ids))
        assert sorted(ids) == sorted(claim.id for claim in serve(node))

    def test_run_now_works_for_a_paused_or_finished_schedule(self, store, node, now, kind):
        """A paused or finished schedule can be run by hand."""
        declare(store, count=1, **kind)
        store.pause_schedule("beat", on=True)
        store.run_now("beat")
        assert 1 == len(serve(node))
        store.pause_schedule("beat", on=False)
        now.tick(60_000)
        serve(node)
        store.run_now("beat")
        assert 1 == len(serve(node))

    def test_pausing_the_namespace_is_a_misfire(self, store, node, now, kind):
        """
        While the namespace is paused nothing is delivered. Afterwards the misfire policy
        applies.
        """
        declare(store, **kind)
        store.pause(on=True)
        now.tick(180_000)
        assert [] == node.claim(10)
        store.pause(on=False)
        assert [2] == [claim.missed for claim in serve(node)]

    def test_an_occurrence_can_be_peeked_at(self, store, node, now):
        """peek() returns an occurrence like any event."""
        declare(store)
        record = store.peek(f"beat@{START + SECOND}")
        assert (State.SCHEDULED, {"n": 1}) == (record.state, record.event)

    def test_an_event_with_an_id_like_an_occurrence_is_not_one(self, store, node, now):
        """
        An event whose id looks like that of an occurrence does not belong to a schedule, and
        affects none.
        """
        declare(store)
        post(store, "beat@5")
        post(store, "nobody@5")
        (first, second) = node.claim(10)
        assert [None, None] == [first.schedule, second.schedule]
        assert Cancelled.IN_FLIGHT is store.cancel("beat@5")
        node.fail(first, wait=10)
        node.fail(second, wait=10)
        assert Cancelled.CANCELLED is store.cancel("nobody@5")
        now.tick(1_000)
        assert "beat" in [claim.schedule for claim in serve(node)]

    def test_a_schedule_id_may_have_an_at_sign(self, store, node, now):
        """The id of a schedule may contain an @ followed by digits."""
        declare(store, "mail@5")
        now.tick(1_000)
        (claim,) = serve(node)
        assert ("mail@5", 1) == (claim.schedule, at(claim))
        now.tick(1_000)
        assert [2] == nominals(serve(node))


class TestAddTimes:
    """
    Scripts cannot read cron expressions, so nodes add nominal times; any of these nodes may
    die.
    """

    def test_a_node_is_asked_in_time(self, store, node, now):
        """The reply asks a node for more times before the stored ones are used up."""
        declare(store, cron="* * * * *")
        shorts = []
        for _ in range(9):
            now.tick(60_000)
            reply = node.claim_reply(10)
            shorts.append(reply.short)
            node.confirm(reply.claims[0])
        assert ["beat"] == next(s for s in shorts if s)
        assert shorts.index(["beat"]) < 8

    def test_without_new_times_occurrences_wait(self, store, node, now):
        """
        If no node adds times, an occurrence without a known successor is not delivered. Once times
        are added, none is missing.
        """
        declare(store, cron="* * * * *")
        seen = []
        for _ in range(15):
            now.tick(60_000)
            for claim in node.claim(10):
                seen.append(at(claim, MINUTE))
                node.confirm(claim)
        assert list(range(1, 10)) == seen
        now.tick(1_000)
        (claim,) = serve(node)
        assert (10, 5) == (at(claim, MINUTE), claim.missed)

    def test_another_node_is_asked_if_one_dies(self, store, node, now):
        """
        If the node that was asked dies, the next occurrence asks another, and no nominal time is
        missed.
        """
        declare(store, cron="* * * * *")
        seen = []
        for i in range(40):
            now.tick(60_000)
            peer = Peer(store, f"n{i}")
            reply = peer.claim_reply(10)
            if i % 3 == 0:
                for name in reply.short:
                    store.add_times(name)
            for claim in reply.claims:
                seen.append(at(claim, MINUTE))
                peer.confirm(claim)
            store.leave(peer.name)
        assert list(range(1, 41)) == seen

    def test_two_nodes_that_add_at_once_add_once(self, store, node, now, client, namespace):
        """
        If two nodes add times at once, the second addition is refused, so that no time is listed
        twice.
        """
        declare(store, cron="* * * * *")
        for _ in range(7):
            now.tick(60_000)
            for claim in node.claim(10):
                node.confirm(claim)
        second = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        calls = []

        def between(verb, *arguments, **options):
            # The other node adds times after this one has read and before it writes.
            if verb == "add_times":
                calls.append(second.add_times("beat"))
            return Store._call(store, verb, *arguments, **options)

        store._call = between
        assert not store.add_times("beat")
        del store._call
        assert [True] == calls
        second.close()
        seen = []
        for _ in range(20):
            now.tick(60_000)
            seen += nominals(serve(node), MINUTE)
        assert list(range(8, 28)) == seen

    def test_times_of_an_old_specification_are_refused(self, store, node, now, client, namespace):
        """Times are refused if the specification has been changed since they were computed."""
        declare(store, cron="* * * * *")
        second = Store(source(client, 1.0), namespace, timeout=3.0, now=now)

        def between(verb, *arguments, **options):
            if verb == "add_times":
                declare(second, cron="*/5 * * * *")
            return Store._call(store, verb, *arguments, **options)

        store._call = between
        assert not store.add_times("beat")
        del store._call
        second.close()
        now.tick(5 * 60_000)
        assert [5] == nominals(serve(node), MINUTE)

    def test_adding_times_to_nothing_is_not_an_error(self, store):
        """Adding times to a schedule that is gone, or does not need them, is not an error."""
        declare(store)
        assert not store.add_times("beat")
        assert not store.add_times("nobody")

    def test_added_times_stop_at_the_end(self, store, node, now):
        """A cron schedule with an end or a count stops there."""
        declare(store, "end", cron="* * * * *", end=START / 1000 + 23 * 60_000)
        declare(store, "count", cron="* * * * *", count=23)
        seen = []
        for _ in range(40):
            now.tick(60_000)
            seen += serve(node)
        for id in ("end", "count"):
            assert list(range(1, 24)) == [at(c, MINUTE) for c in seen if c.schedule == id]
            assert store.schedule(id).due is None

    def test_an_unknown_time_zone_is_named(self, store, node, now, client):
        """A machine that lacks the time zone raises an error that names the zone."""
        declare(store, cron="* * * * *")
        raw = client.hget(store.keys.defs, "beat").replace(b'"UTC"', b'"Mars/Olympus"')
        client.hset(store.keys.defs, "beat", raw)
        with pytest.raises(OptionError, match="Mars/Olympus"):
            store.add_times("beat")


class TestManyNodes:
    """Any number of nodes serve the schedules, with equal roles."""

    @pytest.mark.parametrize(
        "kind", [{"every": 60_000}, {"cron": "* * * * *"}], ids=["every", "cron"]
    )
    def test_each_nominal_time_is_delivered_once(self, store, now, kind):
        """Two nodes that alternately declare and claim deliver each nominal time once."""
        peers = [Peer(store, "a"), Peer(store, "b")]
        seen = []
        for i, peer in itertools.islice(zip(itertools.count(), itertools.cycle(peers)), 60):
            declare(store, **kind)
            now.tick(30_000)
            for claim in peer.claim(10):
                seen.append(at(claim, MINUTE))
                peer.confirm(claim)
            for other in peers:
                for name in other.claim_reply(0).short:
                    store.add_times(name)
            if i % 7 == 0:
                store.add_times("beat")
        assert list(range(1, 31)) == seen
