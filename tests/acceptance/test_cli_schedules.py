"""``dtimer every``, ``cron``, ``schedules``, ``unschedule`` and ``run-now``."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.acceptance


class TestDeclare:
    """``every`` and ``cron``."""

    def test_every_declares_an_interval_once(self, run, timer):
        """A script may declare it at each start. Another interval changes the schedule."""
        words = ("every", "10m", '{"n": 1}', "--id", "sweep", "--json")
        assert ["new", "same"] == [run(*words).objects[0]["outcome"] for _ in range(2)]
        assert 600_000 == timer.schedule("sweep").interval
        changed = run("every", "20m", '{"n": 1}', "--id", "sweep", "--json").objects
        assert [("changed", timer.schedule("sweep").due)] == [
            (c["outcome"], c["due"]) for c in changed
        ]

    def test_cron_declares_an_expression_in_a_zone(self, run, timer):
        """A cron expression is declared with its time zone."""
        words = ("--id", "report", "--tz", "Europe/Berlin")
        assert 0 == run("cron", "0 9 * * mon-fri", '{"n": 1}', *words).code
        schedule = timer.schedule("report")
        assert ("0 9 * * mon-fri", "Europe/Berlin") == (schedule.cron, schedule.tz)

    def test_its_options_are_those_of_the_library(self, run, timer):
        """Start, count, jitter, misfire and overlap work as in the library."""
        words = ("--start", "2030-01-31T00:00Z", "--count", 3, "--jitter", "1m")
        run("every", "1h", "{}", "--id", "x", *words, "--misfire", "skip", "--overlap", "allow")
        schedule = timer.schedule("x")
        assert (3, 60_000.0, "skip", "allow") == (
            schedule.left,
            schedule.jitter,
            schedule.misfire,
            schedule.overlap,
        )
        assert 1_896_048_000_000 <= schedule.due <= 1_896_048_060_000
        run("cron", "@daily", "{}", "--id", "y", "--grace", "2h", "--expires", "1d")
        assert (7_200_000, 86_400_000) == (timer.schedule("y").grace, timer.schedule("y").expires)

    @pytest.mark.parametrize(
        "words",
        [
            ("every", "1h", "{}"),
            ("every", "1ms", "{}", "--id", "x"),
            ("every", "soon", "{}", "--id", "x"),
            ("every", "1h", "[]", "--id", "x"),
            ("every", "1h", "{}", "--id", "x", "--misfire", "panic"),
            ("every", "1h", "{}", "--id", "x", "--grace", "9ms"),
            ("every", "1h", "{}", "--id", "x", "--start", "2031-01-01", "--end", "2030-01-01"),
            ("cron", "61 * * * *", "{}", "--id", "x"),
            ("cron", "@sometimes", "{}", "--id", "x"),
            ("cron", "@daily", "{}", "--id", "x", "--tz", "Mars/Olympus"),
        ],
        ids=" ".join,
    )
    def test_bad_input_is_exit_code_2_before_any_io(self, words, run, monkeypatch):
        """A mistake is reported at once, even if no server can be reached."""
        ran = run("--url", "redis://127.0.0.1:1", *words)
        assert (2, "") == (ran.code, ran.out)


class TestSchedules:
    """Commands for existing schedules."""

    def test_schedules_are_listed_by_name(self, run, timer):
        """With rule, next time, last time and payload. JSON has everything."""
        assert "no schedules" in run("schedules").err
        timer.every(5_400_000, {"n": 1}, id="b")
        timer.cron("@daily", {}, id="a", tz="Asia/Tokyo")
        timer.pause_schedule("a")
        a, b = run("schedules").rows
        assert ["a", "@daily Asia/Tokyo", "paused", "", "never", "{}"] == a
        assert ["b", "every 1h30m", "never", '{"n": 1}'] == [*b[:2], *b[4:]]
        assert [True, False] == [s["paused"] for s in run("schedules", "--json").objects]

    def test_unschedule_asks_and_ends_the_schedule(self, run, timer):
        """``unschedule`` asks and ends the schedule. If it does not exist, the exit code is 1."""
        timer.every(60_000, {}, id="sweep")
        assert 2 == run("unschedule", "sweep").code
        assert 0 == run("unschedule", "sweep", "--yes").code
        assert timer.schedule("sweep") is None
        assert 1 == run("unschedule", "sweep", "--yes").code

    def test_run_now_prints_the_id_of_the_occurrence(self, run, timer):
        """A script can follow the occurrence by its id."""
        timer.every(60_000, {"n": 1}, id="sweep")
        ran = run("run-now", "sweep")
        assert {"n": 1} == timer.peek(ran.out.strip()).event
        assert 1 == run("run-now", "nothing").code
