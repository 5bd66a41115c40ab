"""The benchmarks' own arithmetic, tables and plots: a wrong figure is worse than none."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import plots, tables
from benchmarks.__main__ import WORKS
from benchmarks.bench import Cell, Scale
from benchmarks.contenders import CONTENDERS, choose
from benchmarks.driver import PEERS, Handled, NothingHandled
from benchmarks.environments import ENVIRONMENTS
from benchmarks.figures import each_second, middle, quantile, ratio, spread
from benchmarks.pictures import draw
from benchmarks.results import Results, against, key
from benchmarks.rounds import cells_of, order
from benchmarks.server import tally
from benchmarks.targets import judge
from benchmarks.works import drain, lateness

OURS, PEER, FLOOR = "dtimer/defaults", "Huey/defaults", "bare EVALSHA/floor"


def record(round, contender, figures, work="posting", error=None, **params):
    """One measurement, as a run keeps it."""
    named = {"round": round, "work": work, "contender": contender, "params": params}
    return {**named, "figures": figures, "error": error, "seconds": 1.0, "load": 0.5}


def results(*records):
    about = {"seed": 1, "scale": "full", "contenders": [c.id for c in CONTENDERS], "versions": {}}
    return Results(about, list(records))


class TestFigures:
    """Quantiles, medians and ratios."""

    @given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0.001, 1))
    def test_a_quantile_occurred_and_has_its_share(self, values, part):
        """A quantile is one of the values, and at least its share of them is not above it."""
        found = quantile(sorted(values), part)
        assert found in values
        assert sum(value <= found for value in values) >= part * len(values) - 1e-6

    def test_spread(self):
        """Of a hundred values the p99 is the ninety-ninth, not the greatest."""
        assert {"min": 1, "p50": 50, "p90": 90, "p99": 99, "max": 100} == spread(range(100, 0, -1))

    def test_drift_is_no_ratio(self):
        """A machine that is twice as fast in the next round changes no ratio."""
        mine, theirs = {0: 10.0, 1: 20.0, 2: 40.0}, {0: 5.0, 1: 10.0, 2: 20.0}
        assert 2 == ratio(mine, theirs)
        assert 20 == middle(mine)

    def test_a_ratio_is_of_rounds_that_both_were_in(self):
        """A round that one of the two failed says nothing of how they compare."""
        assert 3 == ratio({0: 3.0, 1: 100.0}, {0: 1.0, 2: 1.0})
        assert ratio({0: 3.0}, {1: 1.0}) is None
        assert ratio({0: 3.0}, {0: 0.0}) is None

    def test_a_rate_is_of_the_intervals(self):
        """Eleven handlers, a ms apart, are a thousand a second; all at once have no rate."""
        assert 1000 == each_second([n * 1000 for n in range(11)])
        assert 0 == each_second([5, 5, 5])


class TestRounds:
    """What is measured, in which order."""

    def test_the_seed_decides_the_order(self):
        """A round has every cell once, in an order that its seed alone decides."""
        cells = cells_of([WORKS["posting"]], CONTENDERS)
        first = [str(cell) for cell in order(cells, 7, 0)]
        assert first == [str(cell) for cell in order(cells, 7, 0)]
        assert first != [str(cell) for cell in order(cells, 7, 1)]
        assert first != [str(cell) for cell in order(cells, 8, 0)]
        assert sorted(first) == sorted(str(cell) for cell in cells)

    @pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
    def test_who_cannot_has_no_cell(self, work):
        """No contender is measured in what it cannot do, and somebody is in every work."""
        cells = cells_of([work], CONTENDERS)
        assert cells
        assert [] == [str(cell) for cell in cells if work.name in cell.contender.cannot]
        assert len({str(cell) for cell in cells}) == len(cells)

    def test_a_scale_never_comes_to_nothing(self):
        """However small the scale, there is one event to measure."""
        slow = next(c for c in CONTENDERS if c.id == "RQ/defaults")
        assert 1 == Scale(factor=1e-6).of(slow, "drain", 20_000)
        assert slow.events["drain"] == Scale().of(slow, "drain", 20_000)


class TestContenders:
    """The table of who takes part."""

    @pytest.mark.parametrize("one", CONTENDERS, ids=lambda one: one.id)
    def test_an_entry_is_whole(self, one):
        """Each has a driver, a pinned environment, and something said of its settings."""
        assert (PEERS / one.driver).is_file()
        environment = ENVIRONMENTS[one.environment]
        for pin in environment.pins:
            assert re.fullmatch(r"[\w.\[\]-]+(==|@)[\w.]+", pin), pin
        assert one.says
        parts = {part for work in WORKS.values() for part in (work.name, *work.parts)}
        assert set(one.cannot) <= parts

    def test_no_two_have_a_name(self):
        """A contender is found by its id, and every environment is somebody's."""
        assert len({c.id for c in CONTENDERS}) == len(CONTENDERS)
        assert {c.environment for c in CONTENDERS} == set(ENVIRONMENTS)

    def test_choosing(self):
        """Contenders are chosen by id, by name or by group, each once; a typo is told."""
        assert {"dtimer"} == {c.name for c in choose(["ours", "dtimer/tuned"])}
        assert 2 == len(choose(["huey"]))
        assert len(CONTENDERS) == len(choose([])) == len(choose(["ours", "peers", "floors"]))
        with pytest.raises(ValueError, match="there is no contender 'hui'"):
            choose(["hui"])


class TestSummaries:
    """From what handlers wrote to figures."""

    def test_lateness(self):
        """An event handled twice is late once, by its first; early and missing ones are told."""
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

    def test_nobody_came(self):
        """Where no handler was called there is no lateness, and all are missing."""
        assert {"early": 0, "missing": 5, "twice": 0} == lateness.summary([], 5)

    def test_drain(self):
        """A drain is rated from its first handler, and from the moment that was due."""
        handled = [Handled(n, 1_000_000 + 1000 * n, 900_000, None) for n in range(1, 102)]
        found = drain.summary(handled, 102, 900_000)
        assert 1000 == found["events/s"]
        assert 500 == pytest.approx(found["from due"], rel=0.01)
        assert (101, 1, 0) == (found["first ms"], found["missing"], found["twice"])

    def test_a_drain_of_nothing(self):
        """A contender that handled nothing has no rate, and that is told as what it is."""
        with pytest.raises(NothingHandled, match="none of 7 events"):
            drain.summary([], 7, 0)


class TestMonitor:
    """What an idle node costs is read off the server's MONITOR."""

    def test_clients_and_scripts_are_told_apart(self):
        """A command is a client's unless a script ran it; an argument cannot pretend."""
        text = (
            b'+1.5 [0 127.0.0.1:1] "EVALSHA" "ab" "0"\r\n'
            b'+1.5 [0 lua] "TIME"\r\n'
            b'+1.5 [0 lua] "HGET" "k" "f"\r\n'
            b'+1.6 [0 unix:/s] "SET" "k" "[0 lua] "\r\n'
        )
        assert (2, 4) == tally(text)


class TestTables:
    """What is printed."""

    def test_aligned(self):
        """Names stand to the left, figures to the right, and no line ends in blanks."""
        lines = tables.aligned(["who", "n"], [["a", "1"], ["long name", "1,000"]])
        assert ["who            n", "---------  -----", "a              1"] == lines[:3]

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (None, "—"),
            (0, "0"),
            (0.123, "0.12"),
            (12.34, "12.3"),
            (123.4, "123"),
            (12345, "12,345"),
        ],
    )
    def test_number(self, value, said):
        """A figure has the digits that it is worth; what is not there is a dash."""
        assert said == tables.number(value)

    def test_ratios_and_reasons(self):
        """A row tells how it compares with ours and with the floor; who cannot has a reason."""
        run = results(
            record(0, OURS, {"events/s": 100.0}, way="one"),
            record(0, PEER, {"events/s": 50.0}, way="one"),
            record(0, FLOOR, {"events/s": 200.0}, way="one"),
        )
        text = "\n".join(tables.table(run, WORKS["posting"]))
        assert re.search(rf"{PEER} +one +50\.0 +50\.0 to 50\.0 +0\.50 +0\.25\n", text)
        assert re.search(r"bare wait/floor +—.*\n", text)
        assert "— bare wait/floor, posting: only waits" in text

    def test_what_failed_is_told(self):
        """A contender that failed has no figure, and its error stands below the table."""
        run = results(
            record(0, OURS, {"events/s": 100.0}, way="one"),
            record(0, PEER, None, error="DriverError: no\nreally: it ended", way="one"),
        )
        text = "\n".join(tables.table(run, WORKS["posting"]))
        assert f"FAILED {PEER} way=one: really: it ended" in text

    def test_drains_are_compared_with_a_hundred_at_a_time(self):
        """However a peer drains, it is compared with dtimer at its best batch, and so are we."""
        run = results(
            record(0, OURS, {"events/s": 10.0}, work="drain", batch=1, processes=1),
            record(0, OURS, {"events/s": 1000.0}, work="drain", batch=100, processes=1),
            record(0, PEER, {"events/s": 100.0}, work="drain", batch=1, processes=1),
        )
        rows = run.rows("drain")
        row = rows[key(PEER, {"batch": 1, "processes": 1})]
        params = WORKS["drain"].reference(row.params)
        assert 0.1 == against(row, rows, OURS, params, "events/s")

    def test_a_floor_needs_no_batch(self):
        """A floor that was measured once is the floor of every batch."""
        run = results(
            record(0, OURS, {"events/s": 1000.0}, work="drain", batch=100, processes=1),
            record(0, FLOOR, {"events/s": 250.0}, work="drain", batch=1, processes=1),
        )
        rows = run.rows("drain")
        row = rows[key(OURS, {"batch": 100, "processes": 1})]
        assert 4 == against(row, rows, FLOOR, row.params, "events/s")


class TestTargets:
    """Whether results reach what they are meant to."""

    def test_a_target_is_judged_by_what_was_measured(self):
        """A bound is met or missed by the median of the rounds; what was not run is not judged."""
        alone = {"nodes": 1, "stream": 0}
        run = results(
            *(
                record(n, OURS, {"p50": p50}, "lateness", **alone)
                for n, p50 in enumerate((0.5, 0.7, 9))
            )
        )
        assert [("lateness p50, ms", 0.7, True)] == [
            (target.what, value, target.met(value)) for target, value in judge(run)
        ]
        run.records[1]["figures"]["p50"] = 2.0
        assert [False] == [target.met(value) for target, value in judge(run)]
        assert "MISSED" in "".join(tables.judgement(run))

    def test_ahead_of_the_best_peer(self):
        """Ahead is ahead of the best, within rounds; floors and the early do not count as peers."""
        alone = {"nodes": 1, "stream": 0}
        run = results(
            *(
                record(0, who, {"p50": p50}, "lateness", **alone)
                for who, p50 in (
                    (OURS, 2.0),
                    (PEER, 500.0),
                    ("Celery/tuned", 4.0),
                    ("RQ/tuned", -300.0),
                    ("bare wait/floor", 0.2),
                )
            )
        )
        found = {target.what: value for target, value in judge(run)}
        assert 0.5 == found["lateness p50, of the best peer's"]

    def test_a_quick_run_is_not_judged(self):
        """A hundredth of the work says nothing about targets."""
        run = results(record(0, OURS, {"p50": 9.0}, "lateness", nodes=1, stream=0))
        run.about["scale"] = "quick"
        assert 1 == len(tables.judgement(run))


class TestResults:
    """What a run leaves behind."""

    def test_they_are_read_as_they_were_written(self, tmp_path):
        """Tables and plots can be made of a file again."""
        run = results(record(0, OURS, {"events/s": 1.5}, way="one"))
        run.write(tmp_path / "deep" / "run.json")
        again = Results.read(tmp_path / "deep" / "run.json")
        assert (run.about, run.records) == (again.about, again.records)

    def test_rounds_are_kept_apart(self):
        """Each figure knows its rounds, and a row is the median of them."""
        run = results(*(record(n, OURS, {"events/s": float(n)}, way="one") for n in (0, 1, 5)))
        (row,) = run.rows("posting").values()
        assert {0: 0.0, 1: 1.0, 5: 5.0} == row.main("events/s")
        assert {"events/s": 1.0} == row.medians()


class TestPlots:
    """Pictures, as SVG."""

    def test_bars(self):
        """A picture is well-formed whatever the names, and a longer bar is a greater figure."""
        few = [plots.Bar('<one> & "two"', 10, 9, 11), plots.Bar("b", 1000, 900, 1100)]
        root = ET.fromstring(plots.bars("t & t", "ms", few))
        widths = [float(e.get("width")) for e in root.findall(".//{*}rect")]
        assert widths == sorted(widths)
        assert '<one> & "two"' in [e.text for e in root.findall(".//{*}text")]

    def test_a_scale_holds_its_values(self):
        """A scale begins and ends at powers of ten, and lets equal ratios be equal lengths."""
        scale = plots.around([3, 450], 0, 300)
        assert [1, 10, 100, 1000] == scale.decades
        assert [0, 100, 200, 300] == pytest.approx([scale(value) for value in scale.decades])
        assert 0 == scale(0)
        assert plots.around([], 0, 1).high > plots.around([], 0, 1).low

    def test_names_of_lines_do_not_overlap(self):
        """Lines that end at one place have their names below one another."""
        same = [plots.Line(name, {1.0: 5.0, 10.0: 5.0}, "red") for name in "abc"]
        root = ET.fromstring(plots.lines("t", "x", "y", same))
        places = [float(e.get("y")) for e in root.findall(".//{*}text") if e.text in list("abc")]
        assert 3 == len({math.floor(y) for y in places})
        assert all(b - a >= 12 for a, b in zip(sorted(places), sorted(places)[1:], strict=False))

    def test_what_is_drawn(self, tmp_path):
        """Each work has its picture, growth one for each unit; early events have no logarithm."""
        rows = [(OURS, 1.0), (PEER, 500.0), ("RQ/defaults", -3.0)]
        late = [
            record(0, who, {"p50": at, "p99": at}, "lateness", nodes=1, stream=0)
            for who, at in rows
        ]
        grown = [
            record(0, OURS, {"post/s": 5.0, "late p50": 1.0, "bytes": 9.0}, "growth", pending=n)
            for n in (1000, 100_000)
        ]
        drawn = draw(results(*late, *grown), [WORKS["lateness"], WORKS["growth"]], tmp_path)
        expected = {"lateness", "lateness-p99", "growth-rates", "growth-lateness", "growth-bytes"}
        assert expected == {path.stem for path in drawn}
        bars = ET.parse(tmp_path / "lateness.svg")
        assert 2 == len(list(bars.findall(".//{*}rect")))

    def test_a_bar_is_the_median(self, tmp_path):
        """A bar is as long as its table says: the median of the rounds, also of two."""
        late = [
            record(n, who, {"p50": at, "p99": at}, "lateness", nodes=1, stream=0)
            for n, who, at in ((0, OURS, 1.0), (1, OURS, 2.0), (0, PEER, 9.0), (1, PEER, 9.0))
        ]
        draw(results(*late), [WORKS["lateness"]], tmp_path)
        assert ">1.5<" in (tmp_path / "lateness.svg").read_text("utf-8")


def test_a_cell_says_what_it_is():
    """Progress names the work, the circumstances and the contender."""
    cell = Cell("drain", choose([OURS])[0], {"batch": 10})
    assert "drain batch=10 dtimer/defaults" == str(cell)
