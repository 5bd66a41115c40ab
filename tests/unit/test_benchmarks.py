"""The arithmetic of the benchmarks: every published figure depends on it."""

import json
import os
import queue
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import compare, compare_busy, driver
from benchmarks.contenders import CONTENDERS
from benchmarks.driver import PEERS, Handled, NothingHandled
from benchmarks.numbers import each_second, middle, quantile, ratio, spread
from benchmarks.results import Results, against, key
from benchmarks.server import tally
from benchmarks.targets import judge
from benchmarks.workloads import busy, drain, lateness, locks, price
from benchmarks.workloads.locks import Call

OURS, PEER, FLOOR = "dtimer/defaults", "Huey/defaults", "bare EVALSHA/floor"


def results(work, *records):
    """Return results of records of a workload, each (round, contender, figures, params)."""
    about = {"scale": "full", "contenders": [c.id for c in CONTENDERS], "versions": {}}
    names = ("round", "contender", "figures", "params")
    return Results(
        about, [dict(zip(names, one, strict=True), work=work, error=None) for one in records]
    )


class TestFigures:
    """Quantiles, medians, ratios and rates."""

    @given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0.001, 1))
    def test_a_quantile_is_a_value_with_at_least_its_share_below(self, values, part):
        """A published p99 is a latency that was measured, not an interpolation."""
        found = quantile(sorted(values), part)
        assert found in values
        assert sum(value <= found for value in values) >= part * len(values) - 1e-6

    def test_the_p99_of_a_hundred_values_is_the_99th(self):
        """The nearest rank is used, so the p99 of 100 values is not the maximum."""
        assert {"min": 1, "p50": 50, "p90": 90, "p99": 99, "max": 100} == spread(range(100, 0, -1))

    def test_a_faster_round_changes_no_ratio(self):
        """Ratios are taken within rounds, so drift of the machine cancels out."""
        mine, theirs = {0: 10.0, 1: 20.0, 2: 40.0}, {0: 5.0, 1: 10.0, 2: 20.0}
        assert 2 == ratio(mine, theirs)
        assert 20 == middle(mine)

    def test_a_ratio_uses_only_rounds_that_both_have(self):
        """A round in which one of them failed says nothing about the ratio."""
        assert 3 == ratio({0: 3.0, 1: 100.0}, {0: 1.0, 2: 1.0})
        assert ratio({0: 3.0}, {1: 1.0}) is None
        assert ratio({0: 3.0}, {0: 0.0}) is None

    def test_a_rate_counts_intervals(self):
        """Eleven moments, 1 ms apart, are 1000 a second. Simultaneous moments have rate 0."""
        assert 1000 == each_second([n * 1000 for n in range(11)])
        assert 0 == each_second([5, 5, 5])


class TestCompare:
    """The comparison of two checkouts."""

    def test_ratios_are_taken_within_each_round(self):
        """A slow round is slow for both checkouts."""
        found = compare.ratio([10.0, 20.0, 40.0], [11.0, 22.0, 44.0])
        assert pytest.approx((1.1, 1.1, 1.1)) == (found.low, found.median, found.high)

    def test_a_difference_inside_the_quartiles_counts_as_none(self):
        """A single odd round must not decide the verdict."""
        odd = compare.ratio([1.0] * 5, [0.9, 1.0, 1.1, 1.2, 9.0])
        assert pytest.approx((1.0, 1.1, 1.2)) == (odd.low, odd.median, odd.high)
        assert "no difference" in str(compare.ratio([1.0] * 3, [0.9, 1.02, 1.1]))
        assert "+5.0 %" in str(compare.ratio([1.0] * 3, [1.04, 1.05, 1.06]))

    def test_leaves_out_rounds_without_a_measurable_cost(self):
        """A cost of zero has no ratio, and a spread needs two rounds."""
        assert 2.0 == compare.ratio([0.0, 1.0, 1.0], [1.0, 2.0, 2.0]).median
        with pytest.raises(ValueError, match="at least two rounds"):
            compare.ratio([0.0, 1.0], [1.0, 1.0])

    def test_the_table_of_lateness_shows_the_worst_early_count(self):
        """Times are medians, but a single early event of any round must be seen."""
        names = ("p50", "p90", "p99", "max", "missing")
        old = [{**dict.fromkeys(names, ms), "early": 0} for ms in (10.0, 20.0, 90.0)]
        new = [{**dict.fromkeys(names, ms), "early": 0} for ms in (5.0, 8.0, 9.0)]
        new[0]["early"] = 1
        case = json.dumps({"nodes": 1, "busy": 4, "switch": 0.5})
        row = compare_busy.table({case: (old, new)})[2]
        assert ["1", "4", "0.5", "20.0", ">", "8.00"] == row.split()[:6]
        assert "0 > 1" in row
        assert row.endswith("0.40")  # of 0.5, 0.4 and 0.1

    def test_the_table_of_locks_has_each_call_of_either_checkout(self):
        """A call that one of them no longer makes is shown with 0."""
        wait, short = ("claimer", "select.select", "wait"), ("handler", "os.write", "short")
        rows = compare_busy.table_of_locks(
            compare_busy.Counts({"waits": 2.0}, {wait: 2.0}, {wait: 1.0}),
            compare_busy.Counts({"waits": 1.0}, {short: 1.0}, {}),
        )[2:]
        assert [
            ["all", "threads", "waits", "2.00", "1.00"],
            [*wait, "2.00", "0", "1.00", "0"],
            [*short, "0", "1.00", "0", "0"],
        ] == [row.split() for row in rows]


class TestSummaries:
    """From the records of handlers to figures."""

    def test_lateness_counts_each_event_once_by_its_first_handler(self):
        """Early, missing and repeated events are counted separately."""
        due = 1_000_000
        handled = [
            Handled(0, due + 2_000, due, 1_000),
            Handled(1, due - 500, due, 500),
            Handled(0, due + 90_000, due, 80_000),
        ]
        found = lateness.summary(handled, 3)
        assert (-0.5, 2.0) == (found["min"], found["max"])
        assert (1, 1, 1) == (found["early"], found["missing"], found["twice"])
        assert 1.0 == found["claim p99"]
        assert {"early": 0, "missing": 5, "twice": 0} == lateness.summary([], 5)

    def test_a_missing_event_is_as_late_as_it_is_when_the_records_are_read(self):
        """If it did not count, a timer that delivers fewer events would look more punctual."""
        dues = [1_000_000, 2_000_000]
        found = busy.summary([[Handled(0, 1_003_000, 1_000_000, None)]], dues, 9_000_000)
        assert (3.0, 7000.0) == (found["p50"], found["max"])
        assert (0, 1, 0) == (found["early"], found["missing"], found["twice"])
        assert "busy node %" not in found

    def test_the_share_of_the_busy_node_counts_first_handlers(self):
        """A second handler of an event does not count for the share of its node."""
        one, two = Handled(0, 1_005_000, 1_000_000, None), Handled(1, 1_999_000, 2_000_000, None)
        late = Handled(0, 1_900_000, 1_000_000, None)
        found = busy.summary([[one, two], [late]], [1_000_000, 2_000_000], 9_000_000)
        assert (5.0, 1, 1) == (found["max"], found["early"], found["twice"])
        assert 100 == found["busy node %"]
        found = busy.summary([[], [one, two]], [1_000_000, 2_000_000], 9_000_000)
        assert 0 == found["busy node %"]

    def test_calls_that_release_the_lock_are_counted_for_each_event(self):
        """Calls between the due moment and the handler are also counted apart from the others."""
        calls = [
            Call(900, "claimer", "socket.recv", waited=True),
            Call(1_100, "claimer", "select.select", waited=True),
            Call(1_150, "handler", "SimpleQueue.get", waited=True),
            Call(1_300, "handler", "os.write", waited=False),
        ]
        handled = [Handled(0, 1_200, 1_000, None), Handled(1, 5_200, 5_000, None)]
        assert {"due to handler": 1, "waits": 1.5, "short": 0.5} == locks.summary(calls, handled)
        assert 0.5 == locks.tally(calls, 2)["handler", "os.write", "short"]
        assert [calls[1:3], []] == locks.on_the_way(calls, handled)
        assert {"waits": 0, "short": 0} == locks.summary([], [])

    def test_overlapping_events_have_no_calls_of_their_own(self):
        """A poller that handles many events in one go would seem to make hundreds of calls."""
        call = Call(1_500, "worker", "socket.recv", waited=True)
        both = [Handled(0, 1_900, 1_000, None), Handled(1, 1_950, 1_800, None)]
        assert [] == locks.on_the_way([call], both)
        assert {"waits": 0.5, "short": 0} == locks.summary([call], both)

    def test_the_work_of_computing_threads_is_a_rate_of_their_own_clock(self):
        """The tool's sleep is longer than asked, and the answers of a busy process are late."""
        before = {"additions": 5_000_000, "at": 10.0, "cpu": 3.0}
        after = {"additions": 45_000_000, "at": 12.0, "cpu": 4.0}
        assert {"M/s": 20, "M/CPU s": 40, "events/s": 50} == price.summary(before, after, 100)

    def test_a_drain_has_rates_from_the_first_handler_and_from_the_due_moment(self):
        """The second rate includes the time until the first handler starts."""
        handled = [Handled(n, 1_000_000 + 1000 * n, 900_000, None) for n in range(1, 102)]
        found = drain.summary(handled, 102, 900_000)
        assert 1000 == found["events/s"]
        assert 500 == pytest.approx(found["from due"], rel=0.01)
        assert (101, 1, 0) == (found["first ms"], found["missing"], found["twice"])
        with pytest.raises(NothingHandled, match="none of 7 events"):
            drain.summary([], 7, 0)

    def test_monitor_separates_clients_from_scripts(self):
        """An argument that looks like the mark of a script does not count as one."""
        text = (
            b'+1.5 [0 127.0.0.1:1] "EVALSHA" "ab" "0"\r\n'
            b'+1.5 [0 lua] "TIME"\r\n'
            b'+1.5 [0 lua] "HGET" "k" "f"\r\n'
            b'+1.6 [0 unix:/s] "SET" "k" "[0 lua] "\r\n'
        )
        # Two commands of clients (EVALSHA and SET), and four with those that the script called.
        assert (2, 4) == tally(text)

    def test_an_incomplete_record_is_left_out(self):
        """A handler may be writing it while the file is read."""
        record = driver._RECORD.pack(1, 2, 3, 4)
        assert [1] == [handled.number for handled in driver.unpack(record + record[:-1])]

    @pytest.mark.parametrize("size", [50, 51, 500])
    def test_a_payload_has_the_given_size(self, size, monkeypatch):
        """Bytes per event are compared with the payload's size."""
        monkeypatch.setenv("BENCHMARK_LOG", os.devnull)
        monkeypatch.syspath_prepend(PEERS)
        import driving

        body = driving.payload(7, 1_800_000_000_000_000, size)
        assert size == len(json.dumps(body, separators=(",", ":")))


class TestCounting:
    """The calls that release the interpreter's lock."""

    @pytest.fixture
    def counting(self, monkeypatch):
        """Return the module, which runs in the peers' processes."""
        monkeypatch.syspath_prepend(PEERS)
        import counting

        return counting

    def test_counts_calls_by_their_thread_and_name(self, counting):
        """A lock that is free is acquired without releasing the interpreter's lock."""
        counter, reader = counting.Counter(), queue.SimpleQueue()

        def work():
            reader.put(1)
            reader.get()
            threading.Lock().acquire()
            os.write(null, b"x")

        null = os.open(os.devnull, os.O_WRONLY)
        before = sys.getprofile()
        counter.start()
        try:
            thread = threading.Thread(target=work, name="dtimer-node-handler-1")
            thread.start()
        finally:
            sys.setprofile(before)
            threading.setprofile(None)
        thread.join()
        os.close(null)
        calls = [Call(*one) for one in counter.told()]
        mine = [one for one in calls if one.thread == "handler"]
        assert [("os.write", False)] == [(one.function, one.waited) for one in mine]

    @pytest.mark.parametrize(
        ("thread", "role"),
        [
            ("dtimer-claimer-node-12", "claimer"),
            ("dtimer-node-handler-3", "handler"),
            ("Worker-1", "Worker"),
            ("7", "7"),
        ],
    )
    def test_threads_of_one_role_are_counted_together(self, counting, thread, role):
        """A table with a line for each handler thread would hide what an event costs."""
        assert role == counting.role_of(thread)


class TestResults:
    """From records to ratios and targets."""

    def test_a_drain_is_compared_with_dtimer_at_a_hundred_at_a_time(self):
        """Every other rate, also of dtimer itself, is compared with dtimer at its best batch."""
        one, hundred = {"batch": 1, "processes": 1}, {"batch": 100, "processes": 1}
        rows = results(
            "drain",
            (0, OURS, {"events/s": 1000.0}, hundred),
            (0, PEER, {"events/s": 100.0}, one),
            (0, FLOOR, {"events/s": 250.0}, one),
        ).rows("drain")
        params = drain.Drain().reference(one)
        assert 0.1 == against(rows[key(PEER, one)], rows, OURS, params, "events/s")
        # The cost of this floor does not depend on the batch. It is compared with every batch.
        assert 4 == against(rows[key(OURS, hundred)], rows, FLOOR, hundred, "events/s")

    @pytest.mark.parametrize(("p50s", "met"), [((0.5, 0.7, 9), True), ((0.5, 2.0, 9), False)])
    def test_a_target_is_judged_by_the_median_of_the_rounds(self, p50s, met):
        """A single slow round does not miss a target, and unmeasured targets are not judged."""
        alone = {"nodes": 1, "stream": 0}
        run = results("lateness", *((n, OURS, {"p50": p50}, alone) for n, p50 in enumerate(p50s)))
        judged = [(target.what, value, target.met(value)) for target, value in judge(run)]
        assert [("lateness p50, ms", p50s[1], met)] == judged

    def test_a_busy_target_is_for_one_number_of_threads_and_one_interval(self):
        """Lateness with a shorter switch interval must not meet the target for the default."""
        cases = ((1, 5, 7.0, 30.0), (4, 0.5, 9.0, 9.0))
        run = results(
            "busy",
            *(
                (0, OURS, {"p50": p50, "p99": p99}, {"nodes": 1, "busy": busy, "switch": switch})
                for busy, switch, p50, p99 in cases
            ),
        )
        judged = {target.what: target.met(value) for target, value in judge(run)}
        assert {
            "busy p50, 1 thread, ms": True,
            "busy p99, 1 thread, ms": False,
            "busy p50, 4 threads, switch 0.5 ms, ms": False,
        } == judged

    def test_the_best_peer_is_neither_a_floor_nor_early(self):
        """An early event breaks the promise, and a floor is not a timer."""
        p50s = {OURS: 2.0, PEER: 500.0, "Celery/tuned": 4.0, "RQ/tuned": -300.0, FLOOR: 0.2}
        alone = {"nodes": 1, "stream": 0}
        run = results("lateness", *((0, who, {"p50": p50}, alone) for who, p50 in p50s.items()))
        judged = {target.what: value for target, value in judge(run)}
        assert 0.5 == judged["lateness p50, ratio to the best peer's"]
