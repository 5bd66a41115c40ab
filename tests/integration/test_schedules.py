"""Schedules on a real server, with time moved by hand: chains, misfires, overlaps, crashes."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from peers import LEASE, Now, Peer, post
from soundness import assert_sound

from dtimer.errors import OptionError
from dtimer.model.claims import Result, Settlement, Verdict
from dtimer.model.event import Cancelled, State
from dtimer.model.recurrence import MOST_WALKED, define
from dtimer.store.connect import source
from dtimer.store.store import Store

SECOND = 1_000_000
MINUTE = 60 * SECOND

#: Where `Now` begins: Friday, 15 January 2027, 8:00 UTC.
START = Now().us


def definition(id="beat", **options):
    """A definition; every second, where neither ``every`` nor ``cron`` is given."""
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
    return define(id, **(given | options))


def declare(store, id="beat", **options):
    return store.declare(definition(id, **options))


def at(claim, unit=SECOND):
    """When an occurrence was meant to be, counted from the beginning of the test."""
    return (claim.nominal_us - START) / unit


def serve(peer, limit=10):
    """Take turns, confirm and supply as a node does, until nothing is due; return the claims."""
    served = []
    for _ in range(2_000):
        turn = peer.turn(limit)
        for name in turn.short:
            peer.store.supply(name)
        for claim in turn.claims:
            peer.confirm(claim)
        served += turn.claims
        head = next(peer.store.upcoming("-inf", "+0"), None)
        if not turn.claims and head is None:
            return served
    raise AssertionError("something stays due, and is not handed out")


def nominals(claims, unit=SECOND):
    return [at(claim, unit) for claim in claims]


class TestChain:
    """Occurrences follow from the nominal time of the one before."""

    def test_an_occurrence_tells_where_it_comes_from(self, store, node, now):
        """Its id is the schedule's with the nominal time, and claims name both."""
        assert "new" == declare(store, payload='{"cup":1}', max_retries=7)
        now.tick(1_000)
        (claim,) = node.claim()
        assert f"beat@{START + SECOND}" == claim.id
        assert ("beat", START + SECOND, 0) == (claim.schedule, claim.nominal_us, claim.missed)
        assert (b'{"cup":1}', 7, 1) == (claim.payload, claim.max_retries, claim.attempt)

    def test_never_early(self, store, node, now):
        """An occurrence cannot be claimed one µs before its nominal time."""
        declare(store)
        now.tick(999.999)
        assert [] == node.claim()
        now.tick(0.001)
        assert [1] == nominals(node.claim())

    def test_no_drift(self, store, node, now):
        """However late each is handed out, nominal times stay where the anchor puts them."""
        declare(store)
        seen = []
        for late in (0, 300, 700, 999.999, 1):
            now.tick((START + (len(seen) + 1) * SECOND - now.us) / 1000 + late)
            (claim,) = node.claim()
            node.confirm(claim)
            seen.append(at(claim))
        assert [1, 2, 3, 4, 5] == seen

    def test_one_pending_at_a_time(self, store, node, now):
        """In Redis there is one occurrence ahead of a schedule, not a year of them."""
        declare(store)
        for _ in range(5):
            now.tick(1_000)
            serve(node)
            assert 1 == len(list(store.upcoming("-inf", "+inf")))

    def test_start(self, store, node, now):
        """The first nominal time is the start, and the others are counted from it."""
        declare(store, start=START / 1000 + 250)
        now.tick(249.999)
        assert [] == node.claim()
        now.tick(0.001)
        assert [0.25] == nominals(serve(node))
        now.tick(1_000)
        assert [1.25] == nominals(serve(node))

    def test_end(self, store, node, now):
        """The end is a nominal time still; after it comes none, and the schedule is done."""
        declare(store, end=START / 1000 + 3_000)
        seen = []
        for _ in range(6):
            now.tick(1_000)
            seen += nominals(serve(node))
        assert [1, 2, 3] == seen
        assert (None, 0) == (store.schedule("beat").due, store.schedule("beat").left)

    def test_an_end_before_the_first(self, store, node, now):
        """A schedule whose end is over when it would begin makes nothing."""
        declare(store, end=START / 1000 + 500)
        declare(store, "cron", cron="* * * * *", end=START / 1000 + 500)
        now.tick(600_000)
        assert [] == serve(node)

    def test_count(self, store, node, now):
        """So many are handed out, and then no more."""
        declare(store, count=2)
        assert 2 == store.schedule("beat").left
        seen = []
        for _ in range(4):
            now.tick(1_000)
            seen += nominals(serve(node))
        assert [1, 2] == seen
        assert 0 == store.schedule("beat").left

    def test_jitter_stays_in_its_bounds(self, store, node, now):
        """Each is due up to the jitter after its nominal time; the spread uses that room."""
        for i in range(50):
            declare(store, f"j{i}", jitter=1_000)
        spread = [(r.due - START / 1000 - 1_000) for r in store.upcoming("-inf", "+inf")]
        assert 50 == len(spread)
        assert all(0 <= s <= 1_000 for s in spread)
        assert min(spread) < 250
        assert max(spread) > 750

    def test_wide_jitter_is_spread_widely(self, store):
        """A jitter of days is as wide as that, too."""
        day = 86_400_000
        for i in range(50):
            declare(store, f"j{i}", every=day, jitter=day)
        spread = [(r.due - START / 1000 - day) / day for r in store.upcoming("-inf", "+inf")]
        assert min(spread) < 0.25
        assert max(spread) > 0.75

    def test_jitter_makes_no_misfire(self, store, node, now):
        """With a jitter as long as the interval each nominal time is still handed out."""
        declare(store, jitter=1_000)
        seen = []
        for _ in range(4_000):
            now.tick(10)
            seen += serve(node)
        assert list(range(1, len(seen) + 1)) == nominals(seen)
        assert 39 <= len(seen)
        assert all(claim.missed == 0 for claim in seen)

    def test_what_is_listed(self, store, node, now):
        """A schedule shows its definition, its next due time and the last nominal one."""
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
    """Every process declares its schedules at its start, again and again."""

    def test_the_same_changes_nothing(self, store, now):
        """Declared again, later, a schedule keeps its anchor and its pending occurrence."""
        assert "new" == declare(store)
        before = store.schedule("beat")
        now.tick(400)
        assert "same" == declare(store)
        assert before == store.schedule("beat")

    def test_the_same_while_one_is_overdue(self, store, node, now):
        """What fell due while nobody was there is not forgotten by declaring at the start."""
        declare(store)
        now.tick(5_300)
        assert "same" == declare(store)
        (claim,) = serve(node)
        assert (1, 4) == (at(claim), claim.missed)

    def test_a_change_keeps_the_rhythm(self, store, node, now):
        """Another payload does not begin the interval anew: changed often, it still recurs."""
        declare(store, every=60_000)
        seen = []
        for i in range(12):
            now.tick(10_000)
            assert "changed" == declare(store, every=60_000, payload=f'{{"n":{i}}}')
            seen += serve(node)
        assert [60, 120] == nominals(seen)

    def test_a_changed_interval_goes_on_from_the_last(self, store, node, now):
        """A new interval is counted from the last nominal time, and never makes up the past."""
        declare(store, every=10_000)
        now.tick(10_000)
        serve(node)
        now.tick(5_000)
        assert "changed" == declare(store, every=2_000)
        assert [] == serve(node)
        now.tick(1_000)
        assert [16] == nominals(serve(node))

    @pytest.mark.parametrize("change", [{"payload": '{"n":2}'}, {"every": 7_000}])
    def test_a_change_loses_no_occurrence_that_is_due(self, store, node, now, change):
        """An occurrence that nobody has claimed yet is handed out, in the new form."""
        declare(store)
        now.tick(1_050)
        declare(store, **change)
        (claim,) = serve(node)
        assert 1 == at(claim)
        assert change.get("payload", '{"n":1}').encode() == claim.payload

    def test_a_changed_cron_loses_no_occurrence_that_is_due(self, store, node, now):
        """So it is with cron: the one of 8:01 comes, though the schedule is for 9:00 now."""
        declare(store, cron="* * * * *")
        now.tick(60_500)
        declare(store, cron="0 9 * * *")
        assert [1] == nominals(serve(node), MINUTE)
        now.tick(3_600_000)
        assert [60] == nominals(serve(node), MINUTE)

    def test_a_changed_cron_does_not_make_up_the_past(self, store, node, now):
        """Moved to a time of day that is over, it is next due tomorrow."""
        declare(store, cron="0 9 * * *")
        now.tick(3_600_000)
        serve(node)
        now.tick(3_600_000)
        declare(store, cron="30 9 * * *")
        assert [] == serve(node)
        assert [1] == [round((r.due - now.us / 1000) / 86_400_000) for r in store.schedules()]

    def test_what_was_coalesced_does_not_come_back(self, store, node, now):
        """A change right after an outage hands out nothing that was made good already."""
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
    def test_a_changed_cron_after_the_clock_was_put_back(self, store, node, now, back):
        """
        A cron schedule that is changed after the server's clock was put back, however far, goes
        on behind what was handed out before, and hands out none of it again.
        """
        declare(store, cron="* * * * * *")
        now.tick(3_000)
        assert [1] == nominals(serve(node)), "and it stands for 2 and 3"
        now.tick(-1_000 * back)
        assert "changed" == declare(store, cron="* * * * * *", payload='{"n":2}')
        assert [] == serve(node)
        now.tick(1_000 * back)
        assert [] == serve(node)
        now.tick(1_000)
        assert [4] == nominals(serve(node))

    def test_interval_to_cron_and_back(self, store, node, now):
        """A schedule may change its kind; there is never more than one occurrence pending."""
        declare(store)
        declare(store, cron="* * * * *")
        declare(store, every=5_000)
        now.tick(5_000)
        assert [5] == nominals(serve(node))

    @pytest.mark.parametrize("start", [None, START / 1000 + 1_000])
    def test_a_change_after_the_clock_was_put_back(self, store, node, now, start):
        """What was handed out before is not made again, though by the clock it lies ahead."""
        declare(store, start=start)
        now.tick(1_000)
        assert [1] == nominals(serve(node))
        now.tick(-600)
        declare(store, start=start, payload='{"n":2}')
        now.tick(1_000)
        assert [] == serve(node)
        now.tick(600)
        assert [2] == nominals(serve(node))

    def test_a_change_of_a_running_one(self, store, node, now):
        """An occurrence in flight is confirmed as usual, and does not come again."""
        declare(store)
        now.tick(1_000)
        (claim,) = node.claim()
        declare(store, payload='{"n":2}')
        assert Result.DONE is node.confirm(claim)
        now.tick(1_000)
        assert [2] == nominals(serve(node))

    def test_two_versions_that_take_turns(self, store, node, now):
        """During a rolling update, old and new declare in turn: no nominal time is lost."""
        seen = []
        for i in range(200):
            declare(store, payload=f'{{"n":{i % 2}}}')
            now.tick(97)
            seen += serve(node)
        assert list(range(1, 20)) == nominals(seen)

    def test_after_the_server_forgot_all(self, store, node, now, client):
        """After FLUSHALL the next declaration makes the schedule new."""
        declare(store)
        client.delete(*store.keys)
        store.join("node", "{}")
        assert "new" == declare(store)
        now.tick(1_000)
        assert [1] == nominals(serve(node))

    def test_a_chain_broken_by_hand_goes_on(self, store, node, now, client):
        """Where somebody removed the pending occurrence, declaring again puts it back."""
        declare(store)
        id = f"beat@{START + SECOND}"
        client.zrem(store.keys.due, id)
        client.hdel(store.keys.body, id)
        assert "same" == declare(store)
        now.tick(1_000)
        assert [1] == nominals(serve(node))


class TestMisfires:
    """What becomes of occurrences whose successor is due already."""

    @pytest.mark.parametrize("over", [1, 2, 9, 10, 11, 35, 1_000])
    @pytest.mark.parametrize("kind", [{"every": 60_000}, {"cron": "* * * * *"}])
    def test_coalesce_counts_exactly(self, store, node, now, kind, over):
        """One stands for all, and says for how many besides itself; then the rhythm goes on."""
        declare(store, **kind)
        now.tick(60_000 * (1 + over) + 30_000)
        (claim,) = serve(node)
        assert (1, over) == (at(claim, MINUTE), claim.missed)
        assert START + (1 + over) * MINUTE == store.schedule("beat").last * 1000
        now.tick(30_000)
        (claim,) = serve(node)
        assert (2 + over, 0) == (at(claim, MINUTE), claim.missed)
        assert over == store.stats().totals["coalesced"]

    def test_coalesce_ends_at_the_end(self, store, node, now):
        """Nominal times after the end are none, and are not counted as missed."""
        for id, kind in (("e", {"every": 60_000}), ("c", {"cron": "* * * * *"})):
            declare(store, id, end=START / 1000 + 5 * 60_000, **kind)
        now.tick(100 * 60_000)
        assert [(1, 4), (1, 4)] == [(at(c, MINUTE), c.missed) for c in serve(node)]
        assert all(s.due is None for s in store.schedules())

    @pytest.mark.parametrize("over", [1, 2, 9, 10, 11, 35])
    @pytest.mark.parametrize("kind", [{"every": 60_000}, {"cron": "* * * * *"}])
    def test_skip_drops_all_but_the_latest(self, store, node, now, kind, over):
        """Those whose successor is due are dropped; the latest is merely late."""
        declare(store, misfire="skip", **kind)
        now.tick(60_000 * (1 + over) + 30_000)
        (claim,) = serve(node)
        assert (1 + over, 0) == (at(claim, MINUTE), claim.missed)
        assert over == store.stats().totals["skipped"]
        now.tick(30_000)
        assert [2 + over] == nominals(serve(node), MINUTE)

    def test_skip_ends_at_the_end(self, store, node, now):
        """The latest that is handed out late is the last before the end, not one after it."""
        for id, kind in (("e", {"every": 60_000}), ("c", {"cron": "* * * * *"})):
            declare(store, id, misfire="skip", end=START / 1000 + 5 * 60_000, **kind)
        now.tick(100 * 60_000)
        assert [5, 5] == nominals(serve(node), MINUTE)

    @pytest.mark.parametrize("kind", [{"every": 60_000}, {"cron": "* * * * *"}])
    def test_all_hands_out_each(self, store, node, now, kind):
        """Each nominal time of the outage is handed out, in order."""
        declare(store, misfire="all", overlap="allow", **kind)
        now.tick(60_000 * 47 + 30_000)
        served = serve(node)
        assert list(range(1, 48)) == nominals(served, MINUTE)
        assert all(claim.missed == 0 for claim in served)

    @pytest.mark.parametrize("kind", [{"every": 60_000}, {"cron": "* * * * *"}])
    def test_all_is_bounded(self, store, node, now, kind):
        """A thousand at most, and the first of them says how many were left out."""
        declare(store, misfire="all", overlap="allow", **kind)
        now.tick(60_000 * 1_200)
        served = serve(node)
        assert 1_200 == len(served) + sum(claim.missed for claim in served)
        # The stored times of a cron schedule are handed out besides.
        assert 1_000 <= len(served) <= (1_000 if "every" in kind else 1_011)
        assert 1_200 == nominals(served, MINUTE)[-1]

    def test_a_very_long_outage_is_walked_in_parts(self, store, node, now):
        """Counting what was missed in a month of seconds does not hold up who counts."""
        declare(store, cron="* * * * * *")
        seconds = 2 * MOST_WALKED + 17
        now.tick(seconds * 1_000)
        (claim,) = serve(node)
        assert seconds - 1 == claim.missed
        now.tick(1_000)
        assert [seconds + 1] == nominals(serve(node))

    def test_a_late_one_alone_is_no_misfire(self, store, node, now):
        """As long as its successor is not due, an occurrence is only late."""
        for policy in ("coalesce", "skip", "all"):
            declare(store, policy, misfire=policy)
        now.tick(1_999.999)
        assert [1, 1, 1] == nominals(serve(node))


class TestOverlap:
    """When an occurrence falls due while the one before still runs."""

    def test_queue_keeps_one_waiting(self, store, node, now):
        """It starts as soon as the one before has ended, and stands for those in between."""
        declare(store)
        now.tick(1_000)
        (first,) = node.claim()
        for _ in range(5):
            now.tick(700)
            assert [] == node.claim(10)
        turn = node.turn(10, Settlement(first.id, first.token, Verdict.CONFIRM))
        assert [2] == nominals(turn.claims)
        assert 2 == turn.claims[0].missed

    def test_queue_after_the_clock_was_put_back(self, store, node, now):
        """What waited for the one before is not early, though that has ended."""
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
        """An occurrence that waits for its retry still runs."""
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

    def test_queue_goes_on_when_the_running_one_is_cancelled(self, store, node, now):
        """Cancelled between two attempts, it keeps nobody waiting."""
        declare(store)
        now.tick(1_000)
        (first,) = node.claim()
        node.fail(first, wait=60_000)
        now.tick(1_000)
        assert [] == node.claim(10)
        assert Cancelled.CANCELLED is store.cancel(first.id)
        assert [2] == nominals(node.claim(10))

    def test_queue_goes_on_when_its_node_has_died(self, store, node, now):
        """The lease of the running one ends, it is handed out again, and then the next."""
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

    def test_allow_starts_it_beside(self, store, node, now):
        """Any number of occurrences run at a time."""
        declare(store, overlap="allow")
        running = []
        for _ in range(4):
            now.tick(1_000)
            running += node.claim(10)
        assert [1, 2, 3, 4] == nominals(running)
        assert [Result.DONE] * 4 == [node.confirm(claim) for claim in running]

    def test_skip_drops_it(self, store, node, now):
        """What falls due while one runs never starts, and is counted."""
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

    def test_skip_with_cron_and_few_times_known(self, store, node, now):
        """A long run over more times than are stored drops them all, and the chain goes on."""
        declare(store, cron="* * * * *", overlap="skip")
        now.tick(60_000)
        (first,) = node.claim()
        for _ in range(25):
            now.tick(60_000)
            store.extend([(first.id, first.token)], LEASE * 10_000)
            for name in node.turn(10).short:
                store.supply(name)
        node.confirm(first)
        now.tick(60_000)
        assert [27] == nominals(serve(node), MINUTE)


class TestEndsOfOccurrences:
    """Occurrences have retries, leases and dead letters of their own; the chain has none."""

    @pytest.fixture(params=[{"every": 60_000}, {"cron": "* * * * *"}], ids=["every", "cron"])
    def kind(self, request):
        return request.param

    def test_retry(self, store, node, now, kind):
        """A failed occurrence is handed out again under its id, and still tells what it is."""
        declare(store, **kind)
        now.tick(60_000 * 3)
        (claim,) = node.claim()
        node.fail(claim, wait=10)
        now.tick(10)
        (again,) = node.claim()
        assert (claim.id, 2, 2) == (again.id, again.attempt, again.missed)
        assert claim.nominal_us == again.nominal_us

    def test_dead(self, store, node, now, kind):
        """An occurrence whose retries are spent is a dead letter, and the next one comes."""
        declare(store, max_retries=0, **kind)
        now.tick(60_000)
        (claim,) = node.claim()
        assert Result.DEAD is node.fail(claim)
        now.tick(60_000)
        assert [2] == nominals(serve(node), MINUTE)
        assert [claim.id] == [letter.id for letter in store.dead()]

    def test_revived(self, store, node, now, kind):
        """A dead occurrence may have another life, beside the chain."""
        declare(store, max_retries=0, **kind)
        now.tick(60_000)
        (claim,) = node.claim()
        node.fail(claim)
        assert store.revive(claim.id)
        now.tick(60_000)
        assert [1, 2] == sorted(nominals(serve(node), MINUTE))

    def test_lease_loss(self, store, node, now, kind):
        """The node that held one dies: that one is handed out again, and the next one comes."""
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

    def test_lease_loss_with_no_retries(self, store, node, now, kind):
        """With max_retries=0 a lost occurrence is a dead letter, and the next one comes."""
        declare(store, max_retries=0, **kind)
        now.tick(60_000)
        node.claim()
        now.tick(60_000)
        other = Peer(store, "other")
        served = serve(other)
        assert [2] == nominals(served, MINUTE)
        assert ["lease_lost"] == [letter.reason for letter in store.dead()]

    def test_release_does_not_double(self, store, node, now, kind):
        """Handed back unstarted, it is claimed again as itself, once."""
        declare(store, **kind)
        now.tick(60_000 * 3)
        (claim,) = node.claim()
        assert Result.DONE is node.release(claim)
        other = Peer(store, "other")
        (again,) = serve(other)
        assert (claim.id, 1, 2) == (again.id, again.attempt, again.missed)
        now.tick(60_000)
        assert [4] == nominals(serve(other), MINUTE)

    def test_a_lost_reply_does_not_double(self, store, node, now, kind):
        """The turn that handed it out, repeated, gives the same, and makes no second next."""
        declare(store, **kind)
        now.tick(60_000 * 3)
        first = node.turn(10)
        again = node.turn(10, again=True)
        assert [(c.id, c.token, c.missed) for c in first.claims] == [
            (c.id, c.token, c.missed) for c in again.claims
        ]
        assert [2] == [c.missed for c in again.claims]
        now.tick(60_000)
        node.confirm(again.claims[0])
        assert [4] == nominals(serve(node), MINUTE)


class TestControl:
    """Looking at occurrences and changing them, and whole schedules."""

    @pytest.fixture(params=[{"every": 60_000}, {"cron": "* * * * *"}], ids=["every", "cron"])
    def kind(self, request):
        return request.param

    def test_cancel_of_the_pending_skips_it(self, store, node, now, kind):
        """The cancelled one never starts, and the one after it does."""
        declare(store, **kind)
        assert Cancelled.CANCELLED is store.cancel(f"beat@{START + MINUTE}")
        now.tick(60_000)
        assert [] == serve(node)
        now.tick(60_000)
        assert [2] == nominals(serve(node), MINUTE)

    def test_cancel_more_than_are_known(self, store, node, now, kind):
        """However many are cancelled in a row, the chain does not end."""
        declare(store, **kind)
        for i in range(1, 26):
            assert Cancelled.CANCELLED is store.cancel(f"beat@{START + i * MINUTE}")
        now.tick(26 * 60_000)
        assert [26] == nominals(serve(node), MINUTE)

    def test_cancel_of_the_last(self, store, node, now, kind):
        """Cancelling the last one before the end ends the schedule."""
        declare(store, end=START / 1000 + 60_000, **kind)
        assert Cancelled.CANCELLED is store.cancel(f"beat@{START + MINUTE}")
        assert store.schedule("beat").due is None

    def test_cancel_in_flight(self, store, node, now, kind):
        """One that has started is not recalled; its successor comes."""
        declare(store, **kind)
        now.tick(60_000)
        (claim,) = node.claim()
        assert Cancelled.IN_FLIGHT is store.cancel(claim.id)
        assert Result.CANCELLED is node.fail(claim)
        now.tick(60_000)
        assert [2] == nominals(serve(node), MINUTE)

    def test_reschedule_of_the_pending(self, store, node, now, kind):
        """Moved, it keeps its name and its nominal time, and the rhythm goes on."""
        declare(store, **kind)
        assert store.reschedule(f"beat@{START + MINUTE}", "+90000000")
        now.tick(89_999)
        assert [] == serve(node)
        now.tick(1)
        assert [1] == nominals(serve(node), MINUTE)
        now.tick(30_000)
        assert [2] == nominals(serve(node), MINUTE)

    def test_reschedule_holds_while_another_ends(self, store, node, now):
        """The end of the one before does not pull at an occurrence that was moved."""
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

    def test_pull_ahead(self, store, node, now, kind):
        """Moved to now, it is handed out before its nominal time, and only once."""
        declare(store, **kind)
        assert store.reschedule(f"beat@{START + MINUTE}", "+0")
        assert [1] == nominals(serve(node), MINUTE)
        now.tick(60_000)
        assert [] == serve(node)
        now.tick(60_000)
        assert [2] == nominals(serve(node), MINUTE)

    def test_unschedule(self, store, node, now, kind, client):
        """Nothing comes any more; what is in flight runs on; nothing is left behind."""
        declare(store, overlap="allow", **kind)
        now.tick(60_000)
        (claim,) = node.claim()
        assert store.unschedule("beat")
        assert not store.unschedule("beat")
        assert Result.DONE is node.confirm(claim)
        now.tick(600_000)
        assert [] == serve(node)
        assert 0 == client.exists(store.keys.beats, store.keys.defs, store.keys.plans)

    @pytest.mark.parametrize("end", ["in flight", "to be retried", "dead"])
    def test_declared_again_with_the_same_start(self, store, node, now, client, end):
        """
        A schedule that is ended and declared again begins at its start again: that
        occurrence is a new event, whatever had become of the older one.
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
        assert Result.STALE is node.confirm(old)
        assert Result.DONE is node.confirm(new)
        assert [] == list(store.dead())

    def test_unschedule_leaves_retries(self, store, node, now, kind):
        """An occurrence in flight has its retries though its schedule is gone."""
        declare(store, **kind)
        now.tick(60_000)
        (claim,) = node.claim()
        store.unschedule("beat")
        node.fail(claim)
        assert [claim.id] == [c.id for c in serve(node)]

    def test_pause_and_resume_one(self, store, node, now, kind):
        """A paused schedule hands nothing out, others go on; resumed, it makes good as told."""
        declare(store, **kind)
        declare(store, "other", **kind)
        assert store.suspend("beat", on=True)
        assert not store.suspend("beat", on=True)
        assert (True, None) == (store.schedule("beat").paused, store.schedule("beat").due)
        now.tick(60_000 * 5)
        assert ["other"] == [claim.schedule for claim in serve(node)]
        assert "same" == declare(store, **kind)
        assert [] == serve(node)
        assert store.suspend("beat", on=False)
        assert not store.suspend("beat", on=False)
        (claim,) = serve(node)
        assert (1, 4) == (at(claim, MINUTE), claim.missed)

    def test_a_change_of_a_paused_one(self, store, node, now, kind):
        """A schedule stays paused through a change."""
        declare(store, **kind)
        store.suspend("beat", on=True)
        assert "changed" == declare(store, payload='{"n":2}', **kind)
        now.tick(60_000)
        assert [] == serve(node)
        store.suspend("beat", on=False)
        assert [b'{"n":2}'] == [claim.payload for claim in serve(node)]

    def test_pause_of_the_unknown(self, store):
        """Pausing what is not there changes nothing, and makes nothing."""
        assert not store.suspend("nobody", on=True)
        assert store.schedule("nobody") is None

    def test_run_now(self, store, node, now, kind):
        """One more is handed out at once, of the same payload, and the rhythm is the same."""
        declare(store, **kind)
        now.tick(20_000)
        id = store.run_now("beat")
        assert f"beat@{now.us}" == id
        assert [id] == [claim.id for claim in serve(node)]
        now.tick(40_000)
        assert [1] == nominals(serve(node), MINUTE)
        assert store.run_now("nobody") is None

    def test_run_now_twice_in_one_microsecond(self, store, node, now, kind):
        """Each call hands out one of its own."""
        declare(store, **kind)
        ids = [store.run_now("beat") for _ in range(3)]
        assert 3 == len(set(ids))
        assert sorted(ids) == sorted(claim.id for claim in serve(node))

    def test_run_now_of_a_paused_and_of_a_finished_one(self, store, node, now, kind):
        """Whatever its rules are: paused or at its end, it can be run by hand."""
        declare(store, count=1, **kind)
        store.suspend("beat", on=True)
        store.run_now("beat")
        assert 1 == len(serve(node))
        store.suspend("beat", on=False)
        now.tick(60_000)
        serve(node)
        store.run_now("beat")
        assert 1 == len(serve(node))

    def test_pause_of_the_namespace(self, store, node, now, kind):
        """While the namespace is paused nothing is handed out; then it is a misfire."""
        declare(store, **kind)
        store.pause(on=True)
        now.tick(180_000)
        assert [] == node.claim(10)
        store.pause(on=False)
        assert [2] == [claim.missed for claim in serve(node)]

    def test_peek(self, store, node, now):
        """An occurrence is an event like any other, to those who look at it."""
        declare(store)
        record = store.peek(f"beat@{START + SECOND}")
        assert (State.SCHEDULED, {"n": 1}) == (record.state, record.event)

    def test_an_event_with_a_look_alike_id(self, store, node, now):
        """An event whose id looks like an occurrence's is none, and harms no chain."""
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

    def test_a_schedule_with_an_at_sign(self, store, node, now):
        """A schedule may have an @ in its name, and digits after it."""
        declare(store, "mail@5")
        now.tick(1_000)
        (claim,) = serve(node)
        assert ("mail@5", 1) == (claim.schedule, at(claim))
        now.tick(1_000)
        assert [2] == nominals(serve(node))


class TestSupply:
    """A script cannot read cron: nodes bring it nominal times, and any of them may die."""

    def test_told_in_time(self, store, node, now):
        """A node is told before the known times are spent."""
        declare(store, cron="* * * * *")
        shorts = []
        for _ in range(9):
            now.tick(60_000)
            turn = node.turn(10)
            shorts.append(turn.short)
            node.confirm(turn.claims[0])
        assert ["beat"] == next(s for s in shorts if s)
        assert shorts.index(["beat"]) < 8

    def test_nobody_supplies(self, store, node, now):
        """Without supply no occurrence is handed out whose successor is unknown; with it all."""
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

    def test_the_node_that_was_told_dies(self, store, node, now):
        """Another is told at the next occurrence; no nominal time is left out."""
        declare(store, cron="* * * * *")
        seen = []
        for i in range(40):
            now.tick(60_000)
            peer = Peer(store, f"n{i}")
            turn = peer.turn(10)
            if i % 3 == 0:
                for name in turn.short:
                    store.supply(name)
            for claim in turn.claims:
                seen.append(at(claim, MINUTE))
                peer.confirm(claim)
            store.leave(peer.name)
        assert list(range(1, 41)) == seen

    def test_two_nodes_supply_at_once(self, store, node, now, client, namespace):
        """Whoever comes second finds it done: no time is listed twice."""
        declare(store, cron="* * * * *")
        for _ in range(7):
            now.tick(60_000)
            for claim in node.claim(10):
                node.confirm(claim)
        second = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        calls = []

        def between(verb, *arguments, named=False):
            # The other one supplies after this one has looked, and before it writes.
            if verb == "supply":
                calls.append(second.supply("beat"))
            return Store._call(store, verb, *arguments, named=named)

        store._call = between
        assert not store.supply("beat")
        del store._call
        assert [True] == calls
        second.close()
        seen = []
        for _ in range(20):
            now.tick(60_000)
            seen += nominals(serve(node), MINUTE)
        assert list(range(8, 28)) == seen

    def test_supply_of_an_old_definition_is_refused(self, store, node, now, client, namespace):
        """Times of a definition that has been changed meanwhile are not taken."""
        declare(store, cron="* * * * *")
        second = Store(source(client, 1.0), namespace, timeout=3.0, now=now)

        def between(verb, *arguments, named=False):
            if verb == "supply":
                declare(second, cron="*/5 * * * *")
            return Store._call(store, verb, *arguments, named=named)

        store._call = between
        assert not store.supply("beat")
        del store._call
        second.close()
        now.tick(5 * 60_000)
        assert [5] == nominals(serve(node), MINUTE)

    def test_supply_of_nothing(self, store):
        """Supplying what is gone, or needs none, is no error."""
        declare(store)
        assert not store.supply("beat")
        assert not store.supply("nobody")

    def test_supply_to_the_end(self, store, node, now):
        """A cron schedule with an end, or a count, stops where it should."""
        declare(store, "end", cron="* * * * *", end=START / 1000 + 23 * 60_000)
        declare(store, "count", cron="* * * * *", count=23)
        seen = []
        for _ in range(40):
            now.tick(60_000)
            seen += serve(node)
        for id in ("end", "count"):
            assert list(range(1, 24)) == [at(c, MINUTE) for c in seen if c.schedule == id]
            assert store.schedule(id).due is None

    def test_a_zone_that_is_not_known_here(self, store, node, now, client):
        """A machine without the time zone says so, and names it."""
        declare(store, cron="* * * * *")
        raw = client.hget(store.keys.defs, "beat").replace(b'"UTC"', b'"Mars/Olympus"')
        client.hset(store.keys.defs, "beat", raw)
        with pytest.raises(OptionError, match="Mars/Olympus"):
            store.supply("beat")


class TestManyNodes:
    """Any number of nodes, none of them in particular."""

    @pytest.mark.parametrize(
        "kind", [{"every": 60_000}, {"cron": "* * * * *"}], ids=["every", "cron"]
    )
    def test_each_nominal_time_once(self, store, now, kind):
        """Two nodes that declare and serve in turn hand out each nominal time once."""
        peers = [Peer(store, "a"), Peer(store, "b")]
        seen = []
        for i, peer in itertools.islice(zip(itertools.count(), itertools.cycle(peers)), 60):
            declare(store, **kind)
            now.tick(30_000)
            for claim in peer.claim(10):
                seen.append(at(claim, MINUTE))
                peer.confirm(claim)
            for other in peers:
                for name in other.turn(0).short:
                    store.supply(name)
            if i % 7 == 0:
                store.supply("beat")
        assert list(range(1, 31)) == seen
