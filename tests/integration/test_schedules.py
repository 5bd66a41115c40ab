"""Schedules on a real server, with time moved by the test: chains, misfires, overlaps, crashes."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from peers import LEASE, Now, Peer, add_missing_times, definition, post
from soundness import assert_sound

from dtimer.errors import OptionError
from dtimer.model.claims import Outcome, Settlement, Verdict
from dtimer.model.records import Cancelled, State
from dtimer.model.schedules import MOST_COMPUTED
from dtimer.store.connection.sources import source
from dtimer.store.format import Entry
from dtimer.store.namespace import Namespace
from dtimer.store.store import Store

#: The start time of `Now` in microseconds and in milliseconds: Friday, 15 January 2027, 8:00 UTC.
START = Now().us
START_MS = START / 1_000

#: The reports of lateness and jitter are in milliseconds.
DAY_MS = 86_400_000


def declare(store, id="beat", **options):
    return store.schedules.declare(definition(id, **{"payload": '{"n":1}'} | options))


def first_occurrence(node, now, seconds, **options):
    """Declare the schedule ``beat``, wait, and claim its first occurrence."""
    declare(node.store, **options)
    now.tick(1_000 * seconds)
    (claim,) = node.claim()
    return claim


def occurrence(seconds):
    """Return the id of the occurrence of ``beat`` that is due *seconds* after the start."""
    return f"beat@{START + seconds * 1_000_000}"


def nominal(claim):
    """Return the nominal time of an occurrence, in seconds since the start of the test."""
    return (claim.nominal_us - START) / 1_000_000


def nominals(claims):
    return [nominal(claim) for claim in claims]


def each_minute(first, last):
    """Return the nominal times from the *first* to the *last* minute, in seconds."""
    return [60 * minute for minute in range(first, last + 1)]


def serve(peer):
    """Claim, confirm and add times as a node does, until nothing is due; return the claims."""
    served = []
    for _ in range(2_000):
        reply = peer.claim_reply(10)
        add_missing_times(peer.store, reply)
        for claim in reply.claims:
            peer.confirm(claim)
        served += reply.claims
        if not reply.claims and next(peer.store.upcoming("-inf", "+0"), None) is None:
            return served
    raise AssertionError("an event stays due and is not delivered")


@pytest.fixture
def delivered(node, now):
    """A function: move the time by some seconds, serve, and return the nominal times served."""

    def delivered_after(seconds):
        now.tick(1_000 * seconds)
        return nominals(serve(node))

    return delivered_after


@pytest.fixture(params=[{"every": 60_000}, {"cron": "* * * * *"}], ids=["every", "cron"])
def minutely(request):
    """The options of a schedule that recurs every minute, by interval or by cron expression."""
    return request.param


class TestChain:
    """Each occurrence follows from the nominal time of the previous one."""

    def test_an_occurrence_names_its_schedule_and_nominal_time(self, node, now):
        """A handler can tell from the event which occurrence of which schedule it handles."""
        claim = first_occurrence(node, now, 1, payload='{"cup":1}', max_retries=7)
        assert (occurrence(1), "beat", 1, 0) == (
            claim.id, claim.schedule, nominal(claim), claim.missed
        )  # fmt: skip
        assert (b'{"cup":1}', 7, 1) == (claim.payload, claim.max_retries, claim.attempt)

    def test_late_claims_cause_no_drift(self, store, node, now):
        """Nominal times keep their distance from the anchor, however late claims are."""
        declare(store)
        for second, late_ms in enumerate((0, 300, 700, 999.999, 1), start=1):
            now.tick((START + second * 1_000_000 - now.us) / 1_000 + late_ms)
            (claim,) = node.claim()
            node.confirm(claim)
            assert second == nominal(claim)

    def test_one_occurrence_is_pending_at_a_time(self, store, delivered):
        """Redis holds one future occurrence of a schedule, not all of them."""
        declare(store)
        for _ in range(5):
            delivered(1)
            assert 1 == len(list(store.upcoming("-inf", "+inf")))

    def test_start_is_the_first_nominal_time(self, store, node, now, delivered):
        """Later nominal times count from the start, and no occurrence is a microsecond early."""
        declare(store, start=START_MS + 250)
        now.tick(249.999)
        assert [] == node.claim()
        assert [0.25] == delivered(0.000_001)
        assert [1.25] == delivered(1)

    @pytest.mark.parametrize(
        ("limit", "last"), [({"end": START_MS + 3_000}, 3), ({"count": 2}, 2)], ids=["end", "count"]
    )
    def test_a_limit_finishes_the_schedule(self, store, delivered, limit, last):
        """No occurrence follows the end, which may itself be a nominal time, or the count."""
        declare(store, **limit)
        assert limit.get("count") == store.schedules.get("beat").left
        assert list(range(1, last + 1)) == [t for _ in range(6) for t in delivered(1)]
        assert (None, 0) == (store.schedules.get("beat").due, store.schedules.get("beat").left)

    def test_an_end_before_the_first_time_makes_no_occurrence(self, store, delivered, minutely):
        """A schedule may be declared when it is already over."""
        declare(store, end=START_MS + 500, **minutely)
        assert [] == delivered(600)

    @pytest.mark.parametrize("interval", [1_000, DAY_MS], ids=["a second", "a day"])
    def test_jitter_is_spread_over_its_whole_range(self, store, interval):
        """Many schedules with the same times must not be due at the same moment."""
        for i in range(50):
            declare(store, f"j{i}", every=interval, jitter=interval)
        jitters = [(r.due - START_MS) / interval - 1 for r in store.upcoming("-inf", "+inf")]
        assert 50 == len(jitters)
        assert 0 <= min(jitters) < 0.25
        assert 0.75 < max(jitters) <= 1

    def test_jitter_causes_no_misfire(self, store, node, now):
        """With a jitter as long as the interval, every nominal time is still delivered."""
        declare(store, jitter=1_000)
        served = []
        for _ in range(4_000):
            now.tick(10)
            served += serve(node)
        assert list(range(1, len(served) + 1)) == nominals(served)
        assert 39 <= len(served)
        assert all(claim.missed == 0 for claim in served)

    def test_a_listed_schedule_has_its_next_and_last_time(self, store, delivered):
        """An operator sees what a schedule will do next, and when it last did something."""
        declare(store, count=5)
        declare(store, "cron", cron="0 9 * * *", tz="Europe/Berlin", misfire="skip")
        beat, cron = store.schedules.all()
        assert ("beat", 1_000, None, START_MS + 1_000, None, 5) == (
            beat.id, beat.interval, beat.cron, beat.due, beat.last, beat.left,
        )  # fmt: skip
        assert ("0 9 * * *", "Europe/Berlin", "skip", "queue") == (
            cron.cron, cron.tz, cron.misfire, cron.overlap,
        )  # fmt: skip
        assert datetime(2027, 1, 16, 8, 0, tzinfo=UTC).timestamp() * 1_000 == cron.due
        delivered(1)
        assert START_MS + 1_000 == store.schedules.get("beat").last
        assert store.schedules.get("nobody") is None


class TestDeclaring:
    """Every process declares its schedules at each start."""

    def test_declaring_the_same_changes_nothing(self, store, now):
        """A schedule that is declared again keeps its anchor and its pending occurrence."""
        assert "new" == declare(store)
        before = store.schedules.get("beat")
        now.tick(400)
        assert "same" == declare(store)
        assert before == store.schedules.get("beat")

    def test_declaring_the_same_keeps_an_overdue_occurrence(self, store, node, now):
        """A process that starts after an outage must not lose the occurrences of the outage."""
        declare(store)
        now.tick(5_300)
        assert "same" == declare(store)
        (claim,) = serve(node)
        assert (1, 4) == (nominal(claim), claim.missed)

    def test_a_change_keeps_the_rhythm(self, store, now, delivered):
        """If a new payload restarted the interval, a schedule changed often would never recur."""
        declare(store, every=60_000)
        times = []
        for i in range(12):
            now.tick(10_000)
            assert "changed" == declare(store, every=60_000, payload=f'{{"n":{i}}}')
            times += delivered(0)
        assert [60, 120] == times

    def test_a_new_interval_counts_from_the_last_occurrence(self, store, now, delivered):
        """A new interval counts from the last nominal time, and adds no occurrences in the past."""
        declare(store, every=10_000)
        delivered(10)
        now.tick(5_000)
        assert "changed" == declare(store, every=2_000)
        assert [] == delivered(0)
        assert [16] == delivered(1)

    @pytest.mark.parametrize("change", [{"payload": '{"n":2}'}, {"every": 7_000}])
    def test_a_change_keeps_a_due_occurrence(self, store, node, now, change):
        """An occurrence that is due and not claimed yet is delivered with the new payload."""
        declare(store)
        now.tick(1_050)
        declare(store, **change)
        (claim,) = serve(node)
        assert 1 == nominal(claim)
        assert change.get("payload", '{"n":1}').encode() == claim.payload

    def test_a_changed_cron_keeps_a_due_occurrence(self, store, now, delivered):
        """The occurrence of 8:01 is delivered, although the new expression is for 9:00."""
        declare(store, cron="* * * * *")
        now.tick(60_500)
        declare(store, cron="0 9 * * *")
        assert [60] == delivered(0)
        assert [3_600] == delivered(3_600)

    def test_a_changed_cron_does_not_make_up_the_past(self, store, now, delivered):
        """If the new time of day has passed, the next occurrence is due tomorrow."""
        declare(store, cron="0 9 * * *")
        delivered(3_600)
        now.tick(3_600_000)
        declare(store, cron="30 9 * * *")
        assert [] == delivered(0)
        assert 1 == round((store.schedules.get("beat").due - now.us / 1_000) / DAY_MS)

    def test_a_change_does_not_repeat_coalesced_occurrences(self, store, node, now, delivered):
        """A change after an outage must not deliver the occurrences that one stood for."""
        declare(store, cron="* * * * *")
        now.tick(5 * 60_000)
        assert [4] == [claim.missed for claim in serve(node)]
        declare(store, cron="* * * * *", payload='{"n":2}')
        assert [] == delivered(0)
        assert [6 * 60] == delivered(60)

    @pytest.mark.fault("F50")
    @pytest.mark.parametrize("back", [1, 5, 60, 3_600])
    def test_a_changed_cron_after_the_clock_was_set_back_repeats_nothing(
        self, store, now, delivered, back
    ):
        """However far the clock was set back, the schedule continues after what was delivered."""
        declare(store, cron="* * * * * *")
        assert [1] == delivered(3), "2 and 3 are coalesced into it"
        now.tick(-1_000 * back)
        assert "changed" == declare(store, cron="* * * * * *", payload='{"n":2}')
        assert [] == delivered(0)
        assert [] == delivered(back)
        assert [4] == delivered(1)

    def test_a_schedule_may_change_between_interval_and_cron(self, store, delivered):
        """A change of kind leaves no second pending occurrence behind."""
        declare(store)
        declare(store, cron="* * * * *")
        declare(store, every=5_000)
        assert [5] == delivered(5)

    @pytest.mark.parametrize("start", [None, START_MS + 1_000], ids=["without", "with a start"])
    def test_a_change_after_the_clock_was_set_back_repeats_nothing(
        self, store, now, delivered, start
    ):
        """Delivered occurrences are not repeated, although the clock says they are to come."""
        declare(store, start=start)
        assert [1] == delivered(1)
        now.tick(-600)
        declare(store, start=start, payload='{"n":2}')
        assert [] == delivered(1)
        assert [2] == delivered(0.6)

    def test_a_change_does_not_affect_an_occurrence_in_flight(self, store, node, now, delivered):
        """An occurrence in flight is confirmed as usual, and does not come again."""
        claim = first_occurrence(node, now, 1)
        declare(store, payload='{"n":2}')
        assert Outcome.DONE is node.confirm(claim)
        assert [2] == delivered(1)

    def test_alternating_declarations_lose_no_occurrence(self, store, delivered):
        """During a rolling update the old and the new version declare alternately."""
        times = []
        for i in range(200):
            declare(store, payload=f'{{"n":{i % 2}}}')
            times += delivered(0.097)
        assert list(range(1, 20)) == times

    def test_after_a_flush_a_declaration_is_new(self, store, client, delivered):
        """After FLUSHALL the next declaration creates the schedule again."""
        declare(store)
        client.delete(*store.keys)
        store.join("node", "{}")
        assert "new" == declare(store)
        assert [1] == delivered(1)

    def test_declaring_repairs_a_broken_chain(self, store, client, delivered):
        """If another program has removed the pending occurrence, declaring again restores it."""
        declare(store)
        client.zrem(store.keys.due, occurrence(1))
        client.hdel(store.keys.body, occurrence(1))
        assert "same" == declare(store)
        assert [1] == delivered(1)


class TestMisfires:
    """Occurrences whose successor is due already."""

    @pytest.mark.parametrize("missed", [1, 2, 9, 10, 11, 35, 1_000])
    def test_coalesce_counts_exactly(self, store, node, now, minutely, missed):
        """A single occurrence stands for all and has the number of the others. The rhythm stays."""
        declare(store, **minutely)
        now.tick(60_000 * (1 + missed) + 30_000)
        (claim,) = serve(node)
        assert (60, missed) == (nominal(claim), claim.missed)
        assert START_MS + (1 + missed) * 60_000 == store.schedules.get("beat").last
        now.tick(30_000)
        (claim,) = serve(node)
        assert (60 * (2 + missed), 0) == (nominal(claim), claim.missed)
        assert missed == store.stats().totals["coalesced"]

    @pytest.mark.parametrize(("policy", "served"), [("coalesce", (60, 4)), ("skip", (300, 0))])
    def test_no_nominal_time_after_the_end_counts(self, node, now, minutely, policy, served):
        """Nominal times after the end are neither delivered nor counted as missed."""
        declare(node.store, misfire=policy, end=START_MS + 5 * 60_000, **minutely)
        now.tick(100 * 60_000)
        assert [served] == [(nominal(claim), claim.missed) for claim in serve(node)]
        assert node.store.schedules.get("beat").due is None

    @pytest.mark.parametrize("dropped", [1, 2, 9, 10, 11, 35])
    def test_skip_drops_all_but_the_latest(self, store, node, now, minutely, dropped):
        """Occurrences whose successor is due are dropped. The latest one is late."""
        declare(store, misfire="skip", **minutely)
        now.tick(60_000 * (1 + dropped) + 30_000)
        (claim,) = serve(node)
        assert (60 * (1 + dropped), 0) == (nominal(claim), claim.missed)
        assert dropped == store.stats().totals["skipped"]
        now.tick(30_000)
        assert [60 * (2 + dropped)] == nominals(serve(node))

    @pytest.mark.parametrize("cause", ["pause", "running", "start"])
    def test_skip_delivers_the_latest_whatever_the_cause(self, store, node, now, minutely, cause):
        """After a pause, after a long run and with a start in the past, the rule is the same."""
        if cause == "start":
            declare(store, every=60_000, start=START_MS - 4 * 60_000, misfire="skip")
            latest, dropped = 0, 4
        elif cause == "pause":
            declare(store, misfire="skip", **minutely)
            store.schedules.pause("beat", on=True)
            now.tick(5 * 60_000)
            store.schedules.pause("beat", on=False)
            latest, dropped = 300, 4
        else:
            first = first_occurrence(node, now, 60, misfire="skip", **minutely)
            now.tick(5 * 60_000)
            store.claims.extend([(first.id, first.token)], LEASE * 1_000)
            add_missing_times(store, node.claim_reply(10))
            node.confirm(first)
            latest, dropped = 360, 4
        assert [(latest, 0)] == [(nominal(claim), claim.missed) for claim in serve(node)]
        assert dropped == store.stats().totals["skipped"]

    def test_all_delivers_each(self, store, node, now, minutely):
        """Each nominal time of the outage is delivered, in order."""
        declare(store, misfire="all", overlap="allow", **minutely)
        now.tick(60_000 * 47 + 30_000)
        served = serve(node)
        assert each_minute(1, 47) == nominals(served)
        assert all(claim.missed == 0 for claim in served)

    def test_all_is_bounded(self, store, node, now, minutely):
        """After a long outage, the first of a thousand has the number of those left out."""
        declare(store, misfire="all", overlap="allow", **minutely)
        now.tick(60_000 * 1_200)
        served = serve(node)
        assert 1_200 == len(served) + sum(claim.missed for claim in served)
        # The stored times of a cron schedule are delivered in addition.
        assert 1_000 <= len(served) <= (1_000 if "every" in minutely else 1_011)
        assert 60 * 1_200 == nominal(served[-1])

    def test_a_very_long_outage_is_counted_in_parts(self, store, node, now, delivered):
        """Counting the missed seconds of a month is split, so that it does not block the node."""
        declare(store, cron="* * * * * *")
        seconds = 2 * MOST_COMPUTED + 17
        now.tick(seconds * 1_000)
        assert [seconds - 1] == [claim.missed for claim in serve(node)]
        assert [seconds + 1] == delivered(1)

    def test_a_late_occurrence_alone_is_not_a_misfire(self, store, delivered):
        """Until its successor is due, an occurrence is only late."""
        for policy in ("coalesce", "skip", "all"):
            declare(store, policy, misfire=policy)
        assert [1, 1, 1] == delivered(1.999_999)


class TestGrace:
    """An occurrence that would start later than its grace is skipped."""

    @pytest.mark.parametrize(("late_ms", "served"), [(20_000, [60]), (20_000.001, [])])
    def test_the_grace_is_exact(self, store, delivered, minutely, late_ms, served):
        """An occurrence starts up to its grace after it was due, and not a microsecond later."""
        declare(store, grace=20_000, **minutely)
        assert served == delivered(60 + late_ms / 1_000)
        assert 1 - len(served) == store.stats().totals["skipped"]
        assert [120] == delivered(60 - late_ms / 1_000)

    @pytest.mark.parametrize("late", [1, 2, 9, 10, 11, 35, 1_500])
    @pytest.mark.parametrize("policy", ["coalesce", "skip", "all"])
    def test_the_misfire_policy_applies_to_those_within_the_grace(
        self, store, delivered, *, minutely, late, policy
    ):
        """Late occurrences are skipped and counted, however many there are."""
        declare(store, misfire=policy, grace=90_000, **minutely)
        # Two more are due, and not too late.
        one, two = 60 * (late + 1), 60 * (late + 2)
        served, dropped = {
            "coalesce": ([one], ("coalesced", 1)),
            "skip": ([two], ("skipped", late + 1)),
            "all": ([one, two], ("skipped", late)),
        }[policy]
        assert served == delivered(two + 20)
        assert dropped in store.stats().totals.items()
        assert [60 * (late + 3)] == delivered(40)

    def test_a_very_long_outage_is_skipped_in_parts(self, store, node, now, delivered):
        """Even if no missed second is within the grace, the chain continues."""
        declare(store, cron="0 * * * * *", grace=10_000)
        minutes = MOST_COMPUTED + 17
        now.tick(60_000 * minutes + 30_000)
        assert [] == serve(node)
        assert minutes == store.stats().totals["skipped"]
        assert [60 * (minutes + 1)] == delivered(30)

    def test_the_grace_counts_from_the_time_with_jitter(self, store, node, now):
        """The jitter of an occurrence does not use up its grace."""
        declare(store, every=3_600_000, jitter=3_600_000, grace=10_000)
        due = store.schedules.get("beat").due
        now.tick(due - START_MS + 10_000)
        assert [3_600] == nominals(serve(node))

    def test_the_grace_counts_from_the_time_to_which_a_user_moved_it(self, store, delivered):
        """A user who moves an occurrence to a later time wants it to start then."""
        declare(store, every=60_000, grace=10_000)
        assert store.reschedule(occurrence(60), "+100000000")
        assert [] == delivered(99)
        assert [60] == delivered(11)

    def test_the_grace_of_an_occurrence_moved_to_an_earlier_time_stays(self, store, delivered):
        """A move to an earlier time does not make the occurrence too late before it was due."""
        declare(store, every=60_000, grace=10_000)
        assert store.reschedule(occurrence(60), "+0")
        assert [60] == delivered(70)

    def test_an_occurrence_that_waits_for_another_may_get_too_late(self, store, node, now):
        """The wait for the running occurrence counts, because the occurrence was due before it."""
        first = first_occurrence(node, now, 1, every=1_000, grace=1_500)
        for _ in range(3):
            now.tick(1_000)
            assert [] == node.claim(10)
        node.confirm(first)
        now.tick(100)
        assert [(3, 1)] == [(nominal(claim), claim.missed) for claim in serve(node)]
        assert 1 == store.stats().totals["skipped"]

    def test_a_retry_is_never_too_late(self, node, now, minutely):
        """The grace is checked once, before the first start."""
        first = first_occurrence(node, now, 60, grace=10_000, **minutely)
        node.fail(first, wait=30_000)
        now.tick(30_000)
        assert [(first.id, 2)] == [(claim.id, claim.attempt) for claim in node.claim()]

    def test_a_snoozed_occurrence_may_start_after_its_grace(self, node, now, minutely):
        """The grace is checked once, before the first start."""
        first = first_occurrence(node, now, 60, grace=10_000, **minutely)
        node.snooze(first, 30_000)
        now.tick(30_000)
        assert [first.id] == [claim.id for claim in node.claim(10)]

    def test_an_extra_occurrence_has_no_grace(self, store, delivered, minutely):
        """An operator who runs a schedule by hand wants it to run, however late."""
        declare(store, grace=10_000, **minutely)
        store.schedules.run_now("beat")
        assert [0] == delivered(20)

    def test_skipped_occurrences_do_not_count(self, store, delivered, minutely):
        """``count`` limits how many are delivered."""
        declare(store, grace=10_000, count=2, **minutely)
        assert [[], [], [300], [360], []] == [delivered(s) for s in (90, 50, 160, 60, 60)]

    def test_the_end_of_a_schedule_that_is_too_late_finishes_it(self, store, delivered, minutely):
        """If even the last occurrence is too late, the schedule is over."""
        declare(store, grace=10_000, end=START_MS + 5 * 60_000, **minutely)
        assert [] == delivered(1_000)
        assert (None, 5) == (store.schedules.get("beat").due, store.stats().totals["skipped"])

    def test_a_repeated_claim_skips_nothing_twice(self, store, node, now, minutely):
        """If the reply to a claim is lost, the repetition counts nothing again."""
        declare(store, grace=10_000, **minutely)
        now.tick(90_000)
        assert [] == node.claim_reply(10).claims
        assert [] == node.claim_reply(10, again=True).claims
        assert 1 == store.stats().totals["skipped"]


class TestExpiry:
    """An occurrence that has not ended in time becomes a dead letter, and the chain continues."""

    def test_a_late_occurrence_expires(self, store, node, now, minutely):
        """A report that is too old to be useful is not made, and an operator sees it."""
        declare(store, expires=20_000, **minutely)
        now.tick(80_000)
        reply = node.claim_reply(10)
        assert ([], [(occurrence(60), "expired")]) == (reply.claims, reply.buried)
        assert [(occurrence(60), "expired")] == [(dead.id, dead.reason) for dead in store.dead()]
        now.tick(40_000)
        assert [120] == nominals(serve(node))

    def test_an_occurrence_in_time_starts(self, node, now, minutely):
        """The expiry counts from the due time, not from the declaration."""
        claim = first_occurrence(node, now, 79.999, expires=20_000, **minutely)
        assert (60, START + 80_000_000) == (nominal(claim), claim.expires_us)

    def test_an_expired_retry_lets_the_next_one_start(self, store, node, now, minutely):
        """An occurrence that failed until it expired does not hold back the next one."""
        first = first_occurrence(node, now, 60, expires=20_000, **minutely)
        node.fail(first, wait=30_000)
        now.tick(60_000)
        served = serve(node)
        assert [120] == nominals(served)
        assert [first.id] == [letter.id for letter in store.dead()]

    @pytest.mark.parametrize("missed", [1, 9, 10, 11, 35])
    def test_one_that_stands_for_others_expires_with_the_latest(
        self, store, node, now, minutely, missed
    ):
        """After an outage the latest occurrence is still wanted, so nothing is lost with it."""
        declare(store, expires=20_000, **minutely)
        now.tick(60_000 * (1 + missed) + 10_000)
        (claim,) = serve(node)
        assert (60, missed) == (nominal(claim), claim.missed)
        assert START + (60 * (1 + missed) + 20) * 1_000_000 == claim.expires_us

    def test_skip_delivers_the_latest_unless_it_expired(self, store, delivered, minutely):
        """Of those before it none becomes a dead letter."""
        declare(store, misfire="skip", expires=20_000, **minutely)
        assert [300] == delivered(310)
        assert [] == delivered(280)
        assert [occurrence(540)] == [letter.id for letter in store.dead()]

    def test_the_jitter_does_not_shorten_the_time(self, store, node, now):
        """An occurrence must not have expired before it is due."""
        declare(store, every=3_600_000, jitter=3_600_000, expires=10_000)
        now.tick(store.schedules.get("beat").due - START_MS + 9_999)
        assert [3_600] == nominals(serve(node))

    def test_an_extra_occurrence_expires_too(self, store, node, now, minutely):
        """Its time counts from the call of run_now."""
        declare(store, expires=20_000, **minutely)
        id = store.schedules.run_now("beat")
        now.tick(20_000)
        assert [] == serve(node)
        assert [id] == [letter.id for letter in store.dead()]

    def test_a_revived_occurrence_does_not_expire(self, store, node, now, minutely):
        """Reviving a dead letter gives it another life, without its expiry."""
        declare(store, expires=20_000, **minutely)
        now.tick(80_000)
        assert [] == serve(node)
        assert store.revive(occurrence(60))
        assert [60] == nominals(serve(node))


class TestOverlap:
    """An occurrence that becomes due while the previous one still runs."""

    def test_queue_keeps_one_waiting(self, node, now):
        """The waiting occurrence starts after the running one, and stands for those in between."""
        first = first_occurrence(node, now, 1)
        for _ in range(5):
            now.tick(700)
            assert [] == node.claim(10)
        reply = node.claim_reply(10, Settlement(first.id, first.token, Verdict.CONFIRM))
        assert [(2, 2)] == [(nominal(claim), claim.missed) for claim in reply.claims]

    def test_queue_after_the_clock_was_set_back_is_not_early(self, node, now):
        """An occurrence that waited for the previous one is never early, even on a wrong clock."""
        first = first_occurrence(node, now, 1)
        now.tick(1_000)
        assert [] == node.claim()
        now.tick(-600)
        node.confirm(first)
        assert [] == node.claim()
        now.tick(600)
        assert [2] == nominals(node.claim())

    def test_queue_waits_for_retries(self, node, now, delivered):
        """An occurrence that waits for its retry still counts as running."""
        first = first_occurrence(node, now, 1)
        node.fail(first, wait=5_000)
        now.tick(1_000)
        assert [] == node.claim(10)
        now.tick(4_000)
        (retry,) = node.claim(10)
        assert (first.id, 2) == (retry.id, retry.attempt)
        node.confirm(retry)
        assert [2] == delivered(0)

    @pytest.mark.parametrize(("overlap", "then"), [("queue", [2]), ("skip", [4])])
    def test_a_snoozed_occurrence_counts_as_running(self, node, now, delivered, overlap, then):
        """Its work is not done, so the next one must not overtake it. No attempt is counted."""
        first = first_occurrence(node, now, 1, overlap=overlap, max_retries=0)
        assert Outcome.DONE is node.snooze(first, 2_500)
        for _ in range(2):
            now.tick(1_000)
            assert [] == node.claim(10)
        now.tick(500)
        (again,) = node.claim(10)
        assert (first.id, 1, first.nominal_us) == (again.id, again.attempt, again.nominal_us)
        node.confirm(again)
        assert then == delivered(0.5)

    def test_the_next_occurrence_starts_if_the_snoozed_one_is_buried(self, node, now, delivered):
        """A dead letter is an end like any other, and the chain goes on."""
        first = first_occurrence(node, now, 1)
        node.snooze(first, 1_500)
        now.tick(1_500)
        (again,) = node.claim(10)
        assert Outcome.DEAD is node.bury(again)
        assert [2] == delivered(0)

    def test_queue_continues_if_the_running_one_is_cancelled(self, store, node, now):
        """If an occurrence is cancelled between two attempts, the next one starts."""
        first = first_occurrence(node, now, 1)
        node.fail(first, wait=60_000)
        now.tick(1_000)
        assert [] == node.claim(10)
        assert Cancelled.CANCELLED is store.cancel(first.id)
        assert [2] == nominals(node.claim(10))

    def test_queue_continues_if_the_node_died(self, store, node, now):
        """When the lease ends, another node gets the running occurrence, and then the next one."""
        other_node = Peer(store, "other")
        first = first_occurrence(node, now, 1)
        now.tick(1_000)
        assert [] == other_node.claim()
        now.tick(LEASE)
        assert [first.id] == [c.id for c in other_node.claim(1)]
        assert [] == other_node.claim()
        now.tick(LEASE + 1_000)
        assert [1, 2] == nominals(serve(other_node))

    def test_allow_runs_occurrences_in_parallel(self, store, node, now):
        """With ``allow`` any number of occurrences run at the same time."""
        declare(store, overlap="allow")
        running = []
        for _ in range(4):
            now.tick(1_000)
            running += node.claim(10)
        assert [1, 2, 3, 4] == nominals(running)
        assert [Outcome.DONE] * 4 == [node.confirm(claim) for claim in running]

    def test_skip_drops_occurrences_while_one_runs(self, store, node, now, delivered):
        """An occurrence that becomes due while another runs is dropped and counted."""
        first = first_occurrence(node, now, 1, overlap="skip")
        for _ in range(3):
            now.tick(1_000)
            assert [] == node.claim(10)
        node.confirm(first)
        assert [5] == delivered(1)
        assert 3 == store.stats().totals["skipped"]

    def test_skip_with_cron_drops_more_than_the_stored_times(self, store, node, now, delivered):
        """A handler that runs longer than the stored times reach does not end the chain."""
        first = first_occurrence(node, now, 60, cron="* * * * *", overlap="skip")
        for _ in range(25):
            now.tick(60_000)
            store.claims.extend([(first.id, first.token)], LEASE * 10_000)
            add_missing_times(store, node.claim_reply(10))
        node.confirm(first)
        assert [27 * 60] == delivered(60)


class TestFailures:
    """Retries, lost leases and dead letters concern one occurrence and do not affect the chain."""

    def test_a_failed_occurrence_is_retried_as_itself(self, node, now, minutely):
        """A retry has the same id, nominal time and count of missed occurrences."""
        claim = first_occurrence(node, now, 3 * 60, **minutely)
        node.fail(claim, wait=10)
        now.tick(10)
        (retry,) = node.claim()
        assert (claim.id, 2, 2) == (retry.id, retry.attempt, retry.missed)
        assert claim.nominal_us == retry.nominal_us

    def test_a_dead_occurrence_does_not_stop_the_chain(self, store, node, now, delivered, minutely):
        """The next occurrence follows, and the dead letter may be revived in addition."""
        claim = first_occurrence(node, now, 60, max_retries=0, **minutely)
        assert Outcome.DEAD is node.fail(claim)
        assert [120] == delivered(60)
        assert [claim.id] == [letter.id for letter in store.dead()]
        assert store.revive(claim.id)
        assert [60, 180] == sorted(delivered(60))

    def test_an_occurrence_is_delivered_again_after_a_lost_lease(self, store, node, now, minutely):
        """If the node that holds an occurrence dies, another node gets it, and then the next."""
        lost = first_occurrence(node, now, 60, overlap="allow", **minutely)
        now.tick(LEASE)
        other_node = Peer(store, "other")
        (found,) = other_node.claim()
        assert (lost.id, 2) == (found.id, found.attempt)
        other_node.confirm(found)
        now.tick(60_000 - LEASE)
        assert [120] == nominals(other_node.claim())

    def test_a_lost_occurrence_without_retries_is_dead(self, store, node, now, minutely):
        """With max_retries=0 a lost occurrence becomes a dead letter, and the next one follows."""
        first_occurrence(node, now, 60, max_retries=0, **minutely)
        now.tick(60_000)
        assert [120] == nominals(serve(Peer(store, "other")))
        assert ["lease_lost"] == [letter.reason for letter in store.dead()]

    def test_a_released_occurrence_is_delivered_once(self, store, node, now, minutely):
        """An occurrence that is released before it starts is claimed again once, as itself."""
        claim = first_occurrence(node, now, 3 * 60, **minutely)
        assert Outcome.DONE is node.release(claim)
        other_node = Peer(store, "other")
        (released,) = serve(other_node)
        assert (claim.id, 1, 2) == (released.id, released.attempt, released.missed)
        now.tick(60_000)
        assert [4 * 60] == nominals(serve(other_node))

    def test_a_repeated_claim_makes_no_second_successor(
        self, store, node, now, delivered, minutely
    ):
        """If a claim is sent again after a lost reply, it returns the same occurrence."""
        declare(store, **minutely)
        now.tick(60_000 * 3)
        first, repetition = (node.claim_reply(10, again=again).claims for again in (False, True))
        assert [(c.id, c.token, c.missed) for c in first] == [
            (c.id, c.token, c.missed) for c in repetition
        ]
        assert [2] == [c.missed for c in repetition]
        now.tick(60_000)
        node.confirm(repetition[0])
        assert [4 * 60] == delivered(0)


class TestUpcoming:
    """``upcoming(schedule=…)``: the occurrences of one schedule that wait."""

    def upcoming(self, store, schedule="beat"):
        return [record.id for record in store.upcoming("-inf", "+inf", schedule)]

    def test_all_waiting_occurrences_are_listed(self, store, node, now, minutely):
        """The pending one, a retry, and an additional one of run_now are listed in due order."""
        first = first_occurrence(node, now, 60, overlap="allow", **minutely)
        declare(store, "other", **minutely)
        declare(store, "beat@1", **minutely)
        post(store, "beat@2", 0)
        post(store, "beat", 0)
        node.fail(first, wait=90_000)
        extra = store.schedules.run_now("beat")
        assert [extra, occurrence(120), first.id] == self.upcoming(store)
        assert 1 == len(self.upcoming(store, "beat@1"))

    def test_a_running_occurrence_is_not_listed(self, store, node, now, minutely):
        """As in every list of waiting events."""
        first_occurrence(node, now, 60, **minutely)
        assert [occurrence(120)] == self.upcoming(store)

    def test_an_unknown_schedule_has_none(self, store):
        """An empty namespace does not raise."""
        assert [] == self.upcoming(store, "nobody")

    def test_many_other_events_are_passed_over(self, store, monkeypatch):
        """The search continues over as many pages as it takes."""
        for first in range(0, 2_500, 500):
            events = [Entry(f"e{i}", "+0", ",3|{}") for i in range(first, first + 500)]
            store.post(events, "replace")
        declare(store)
        asked, ask = [], store.namespace.ask
        monkeypatch.setattr(
            store.namespace, "ask", lambda *words: asked.append(words) or ask(*words)
        )
        assert [occurrence(1)] == self.upcoming(store)
        assert 3 == len(asked)

    def test_a_loop_that_cancels_them_ends(self, store, minutely):
        """Each cancel creates the next occurrence, and the iteration yields only the first."""
        declare(store, **minutely)
        for record in store.upcoming("-inf", "+inf", "beat"):
            assert Cancelled.CANCELLED is store.cancel(record.id)
        assert [occurrence(120)] == self.upcoming(store)


class TestControl:
    """Reading and changing occurrences and schedules."""

    @pytest.mark.parametrize("cancelled", [1, 25], ids=["one", "more than the stored times"])
    def test_cancelling_pending_occurrences_skips_them(self, store, delivered, minutely, cancelled):
        """The cancelled occurrences never start, and the chain does not end."""
        declare(store, **minutely)
        for minute in range(1, cancelled + 1):
            assert Cancelled.CANCELLED is store.cancel(occurrence(60 * minute))
        assert [] == delivered(60 * cancelled)
        assert [60 * (cancelled + 1)] == delivered(60)

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
        for minute in range(1, 25):
            calls.clear()
            store.cancel(occurrence(60 * minute))
            if len(calls) > 1:
                break
        assert ["cancel", "schedule", "open", "add_times", "cancel"] == [verb for verb, _ in calls]
        assert 1 == len({deadline for _, deadline in calls})

    def test_cancelling_the_last_occurrence_ends_the_schedule(self, store, minutely):
        """Cancelling the last occurrence before the end finishes the schedule."""
        declare(store, end=START_MS + 60_000, **minutely)
        assert Cancelled.CANCELLED is store.cancel(occurrence(60))
        assert store.schedules.get("beat").due is None

    def test_an_occurrence_cancelled_in_flight_is_not_retried(
        self, store, node, now, delivered, minutely
    ):
        """An occurrence in flight runs to its end, is not retried, and the next one follows."""
        claim = first_occurrence(node, now, 60, **minutely)
        assert Cancelled.IN_FLIGHT is store.cancel(claim.id)
        assert Outcome.CANCELLED is node.fail(claim)
        assert [120] == delivered(60)

    def test_rescheduling_the_pending_occurrence_keeps_the_rhythm(self, store, delivered, minutely):
        """A rescheduled occurrence keeps its id and nominal time, and the rhythm continues."""
        declare(store, **minutely)
        assert store.reschedule(occurrence(60), "+90000000")
        assert [] == delivered(89.999)
        assert [60] == delivered(0.001)
        assert [120] == delivered(30)

    def test_a_rescheduled_occurrence_stays_when_the_previous_one_ends(
        self, store, node, now, delivered
    ):
        """The end of the previous occurrence does not move an occurrence that was rescheduled."""
        first = first_occurrence(node, now, 1)
        now.tick(1_000)
        assert [] == node.claim()
        assert store.reschedule(occurrence(2), "+10000000")
        node.confirm(first)
        assert [] == node.claim()
        assert [2] == delivered(10)

    def test_an_occurrence_may_be_rescheduled_to_now(self, store, delivered, minutely):
        """The occurrence is delivered before its nominal time, and only once."""
        declare(store, **minutely)
        assert store.reschedule(occurrence(60), "+0")
        assert [60] == delivered(0)
        assert [] == delivered(60)
        assert [120] == delivered(60)

    def test_unschedule_leaves_nothing_behind(self, store, node, now, client, minutely):
        """No occurrence follows, an occurrence in flight runs on, and no key is left."""
        claim = first_occurrence(node, now, 60, overlap="allow", **minutely)
        assert store.schedules.remove("beat")
        assert not store.schedules.remove("beat")
        assert Outcome.DONE is node.confirm(claim)
        now.tick(600_000)
        assert [] == serve(node)
        assert 0 == client.exists(store.keys.beats, store.keys.defs, store.keys.plans)

    @pytest.mark.parametrize("end", ["in flight", "to be retried", "dead"])
    def test_a_schedule_declared_again_starts_with_a_new_event(self, store, node, now, client, end):
        """The old first occurrence has the same id, and may still run, wait or be dead."""
        start = START_MS + 1_000
        old_claim = first_occurrence(
            node, now, 1, start=start, max_retries=0 if end == "dead" else 3
        )
        if end != "in flight":
            node.fail(old_claim, wait=60_000)
        store.schedules.remove("beat")
        declare(store, start=start)
        assert_sound(client, store.keys)
        (new_claim,) = node.claim()
        assert (old_claim.id, 1) == (new_claim.id, new_claim.attempt)
        assert Outcome.STALE is node.confirm(old_claim)
        assert Outcome.DONE is node.confirm(new_claim)
        assert [] == list(store.dead())

    def test_unschedule_keeps_retries(self, store, node, now, delivered, minutely):
        """An occurrence in flight keeps its retries after its schedule has been removed."""
        claim = first_occurrence(node, now, 60, **minutely)
        store.schedules.remove("beat")
        node.fail(claim)
        assert [60] == delivered(0)

    def test_a_paused_schedule_delivers_nothing_until_resumed(self, store, node, now, minutely):
        """Other schedules continue. After the pause, the misfire policy applies to missed times."""
        declare(store, **minutely)
        declare(store, "other", **minutely)
        assert store.schedules.pause("beat", on=True)
        assert not store.schedules.pause("beat", on=True)
        assert not store.schedules.pause("unknown", on=True)
        assert store.schedules.get("unknown") is None
        assert (True, None) == (store.schedules.get("beat").paused, store.schedules.get("beat").due)
        now.tick(60_000 * 5)
        assert ["other"] == [claim.schedule for claim in serve(node)]
        assert "same" == declare(store, **minutely)
        assert [] == serve(node)
        assert store.schedules.pause("beat", on=False)
        assert not store.schedules.pause("beat", on=False)
        (claim,) = serve(node)
        assert (60, 4) == (nominal(claim), claim.missed)

    def test_a_paused_schedule_stays_paused_when_changed(self, store, node, delivered, minutely):
        """A process that starts with a new version must not resume what an operator paused."""
        declare(store, **minutely)
        store.schedules.pause("beat", on=True)
        assert "changed" == declare(store, payload='{"n":2}', **minutely)
        assert [] == delivered(60)
        store.schedules.pause("beat", on=False)
        assert [b'{"n":2}'] == [claim.payload for claim in serve(node)]

    def test_run_now_adds_an_occurrence(self, store, node, now, delivered, minutely):
        """The additional occurrence is due at once, with an id of its own. The rhythm stays."""
        declare(store, **minutely)
        now.tick(20_000)
        id = store.schedules.run_now("beat")
        assert f"beat@{now.us}" == id
        assert [id] == [claim.id for claim in serve(node)]
        assert [60] == delivered(40)
        assert store.schedules.run_now("nobody") is None

    def test_run_now_twice_in_one_microsecond_adds_two(self, store, node, now, minutely):
        """Each call of run_now delivers an occurrence with its own id."""
        declare(store, **minutely)
        ids = [store.schedules.run_now("beat") for _ in range(3)]
        assert 3 == len(set(ids))
        assert sorted(ids) == sorted(claim.id for claim in serve(node))

    def test_run_now_works_for_a_paused_or_finished_schedule(self, store, delivered, minutely):
        """A paused or finished schedule can be run by hand."""
        declare(store, count=1, **minutely)
        store.schedules.pause("beat", on=True)
        store.schedules.run_now("beat")
        assert 1 == len(delivered(0))
        store.schedules.pause("beat", on=False)
        delivered(60)
        store.schedules.run_now("beat")
        assert 1 == len(delivered(0))

    def test_pausing_the_namespace_is_a_misfire(self, store, node, now, minutely):
        """While the namespace is paused nothing is delivered, and then the policy applies."""
        declare(store, **minutely)
        store.pause(on=True)
        now.tick(180_000)
        assert [] == node.claim(10)
        store.pause(on=False)
        assert [2] == [claim.missed for claim in serve(node)]

    def test_an_occurrence_can_be_peeked_at(self, store):
        """peek() returns an occurrence like any event."""
        declare(store)
        record = store.peek(occurrence(1))
        assert (State.SCHEDULED, {"n": 1}) == (record.state, record.event)

    def test_an_event_with_an_id_like_an_occurrence_is_no_occurrence(self, store, node, now):
        """Such an event belongs to no schedule, and affects none."""
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

    def test_a_schedule_id_may_have_an_at_sign(self, store, node, now, delivered):
        """The id of a schedule may contain an @ followed by digits."""
        declare(store, "mail@5")
        now.tick(1_000)
        (claim,) = serve(node)
        assert ("mail@5", 1) == (claim.schedule, nominal(claim))
        assert [2] == delivered(1)


class TestAddTimes:
    """Scripts cannot read cron expressions, so nodes add nominal times; any node may die."""

    @pytest.fixture
    def other_store(self, client, namespace, now):
        """The store of another process, on the same namespace."""
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        yield store
        store.release()

    def add_times_after(self, store, monkeypatch, action):
        """Add times, with *action* after the schedule was read and before the times are written."""

        def call(verb, *arguments, **options):
            if verb == "add_times":
                action()
            return Namespace.call(store.namespace, verb, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(store.namespace, "call", call)
            return store.schedules.add_times("beat")

    def test_a_node_is_asked_in_time(self, store, node, now):
        """The reply asks a node for more times before the stored ones are used up."""
        declare(store, cron="* * * * *")
        requests = []
        for _ in range(9):
            now.tick(60_000)
            reply = node.claim_reply(10)
            requests.append(reply.short)
            node.confirm(reply.claims[0])
        assert ["beat"] == next(names for names in requests if names)
        assert requests.index(["beat"]) < 8

    def test_without_new_times_occurrences_wait(self, store, node, now):
        """An occurrence without a known successor waits, and no time is missing afterwards."""
        declare(store, cron="* * * * *")
        times = []
        for _ in range(15):
            now.tick(60_000)
            for claim in node.claim(10):
                times.append(nominal(claim))
                node.confirm(claim)
        assert each_minute(1, 9) == times
        now.tick(1_000)
        (claim,) = serve(node)
        assert (10 * 60, 5) == (nominal(claim), claim.missed)

    def test_another_node_is_asked_if_one_dies(self, store, now):
        """If the node that was asked dies, the next occurrence asks another node."""
        declare(store, cron="* * * * *")
        times = []
        for i in range(40):
            now.tick(60_000)
            peer = Peer(store, f"n{i}")
            reply = peer.claim_reply(10)
            if i % 3 == 0:
                add_missing_times(store, reply)
            times += nominals(reply.claims)
            for claim in reply.claims:
                peer.confirm(claim)
            store.leave(peer.name)
        assert each_minute(1, 40) == times

    def test_two_nodes_that_add_at_once_add_once(self, node, now, monkeypatch, other_store):
        """The second addition is refused, so that no nominal time is listed twice."""
        store = node.store
        declare(store, cron="* * * * *")
        for _ in range(7):
            now.tick(60_000)
            for claim in node.claim(10):
                node.confirm(claim)
        additions = []
        assert not self.add_times_after(
            store, monkeypatch, lambda: additions.append(other_store.schedules.add_times("beat"))
        )
        assert [True] == additions
        times = []
        for _ in range(20):
            now.tick(60_000)
            times += nominals(serve(node))
        assert each_minute(8, 27) == times

    def test_times_of_an_old_specification_are_refused(
        self, store, monkeypatch, other_store, delivered
    ):
        """The specification may change between the reading and the addition of times."""
        declare(store, cron="* * * * *")
        assert not self.add_times_after(
            store, monkeypatch, lambda: declare(other_store, cron="*/5 * * * *")
        )
        assert [5 * 60] == delivered(5 * 60)

    def test_adding_times_to_nothing_is_not_an_error(self, store):
        """Adding times to a schedule that is gone, or does not need them, is not an error."""
        declare(store)
        assert not store.schedules.add_times("beat")
        assert not store.schedules.add_times("nobody")

    @pytest.mark.parametrize(
        "limit", [{"end": START_MS + 23 * 60_000}, {"count": 23}], ids=["end", "count"]
    )
    def test_added_times_stop_at_the_limit(self, store, delivered, limit):
        """A cron schedule with an end or a count stops there."""
        declare(store, cron="* * * * *", **limit)
        assert each_minute(1, 23) == [t for _ in range(40) for t in delivered(60)]
        assert store.schedules.get("beat").due is None

    def test_an_unknown_time_zone_is_named(self, store, client):
        """A machine that lacks the time zone raises an error that names the zone."""
        declare(store, cron="* * * * *")
        raw = client.hget(store.keys.defs, "beat").replace(b'"UTC"', b'"Mars/Olympus"')
        client.hset(store.keys.defs, "beat", raw)
        with pytest.raises(OptionError, match="Mars/Olympus"):
            store.schedules.add_times("beat")


class TestManyNodes:
    """Any number of nodes serve the schedules, with equal roles."""

    def test_each_nominal_time_is_delivered_once(self, store, now, minutely):
        """Two nodes that alternately declare and claim deliver each nominal time once."""
        peers = [Peer(store, "a"), Peer(store, "b")]
        times = []
        for i, peer in zip(range(60), itertools.cycle(peers)):
            declare(store, **minutely)
            now.tick(30_000)
            for claim in peer.claim(10):
                times.append(nominal(claim))
                peer.confirm(claim)
            for claimer in peers:
                add_missing_times(store, claimer.claim_reply(0))
            if i % 7 == 0:
                store.schedules.add_times("beat")
        assert each_minute(1, 30) == times
