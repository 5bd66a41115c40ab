"""How the command line prints moments, lateness and help."""

import time
from datetime import UTC, datetime

import click
import pytest

from dtimer.cli import main
from dtimer.cli.app import app
from dtimer.cli.durations import parse_moment
from dtimer.cli.output import brief, clock, lateness, moment

#: Friday, 15 January 2027, 8:00 UTC.
MS = 1_800_000_000_123


@pytest.fixture
def set_zone(monkeypatch):
    """Return a function that sets the time zone of this machine for the test."""

    def choose(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield choose
    monkeypatch.undo()
    time.tzset()


class TestTimes:
    """A time without its zone means another moment to another reader."""

    @pytest.mark.parametrize(
        ("tz", "date_and_time", "time_only"),
        [
            ("UTC", "2027-01-15 08:00:00.123+00:00", "08:00:00.123Z"),
            ("Europe/Berlin", "2027-01-15 09:00:00.123+01:00", "09:00:00.123+01"),
            ("America/New_York", "2027-01-15 03:00:00.123-05:00", "03:00:00.123-05"),
            ("Asia/Kolkata", "2027-01-15 13:30:00.123+05:30", "13:30:00.123+05:30"),
            ("Pacific/Apia", "2027-01-15 21:00:00.123+13:00", "21:00:00.123+13"),
        ],
    )
    def test_prints_the_offset_and_reads_it_again(self, tz, date_and_time, time_only, set_zone):
        """A complete time can be passed to ``--at`` again."""
        set_zone(tz)
        assert (date_and_time, time_only) == (moment(MS), clock(MS))
        assert datetime.fromtimestamp(MS / 1000, UTC) == parse_moment(moment(MS)).at
        assert not parse_moment(moment(MS)).zone_assumed

    @pytest.mark.parametrize("tz", ["UTC", "Pacific/Apia", "America/New_York"])
    def test_prints_a_moment_beyond_the_last_datetime(self, tz, set_zone):
        """Another program may have moved an event so far. A list that contains it must not fail."""
        set_zone(tz)
        for print_moment in (moment, clock, brief):
            assert "59" in print_moment(1e15)
        assert moment(1e15).startswith("9999-12-31 ")

    def test_narrow_columns_show_the_time_today_and_the_date_otherwise(self, set_zone):
        """Both fit in 22 characters, with their zone."""
        set_zone("Asia/Kolkata")
        assert "2027-01-15 13:30+05:30" == brief(MS)
        now = time.time() * 1000
        assert moment(now, "seconds")[11:] == brief(now)
        set_zone("UTC")
        assert "2027-01-15 08:00Z" == brief(MS)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        *[(0, "0 ms"), (0.6412, "0.641 ms"), (67.1, "67.1 ms"), (999.4, "999 ms"), (999.6, "1 s")],
        *[(1_234, "1.23 s"), (67_100, "1m7s"), (86_400_000 * 3, "3d")],
    ],
)
def test_lateness_is_printed_with_units(ms, text):
    """A minute of lateness must be readable at once: it was printed as ``6.71e+04 ms``."""
    assert text == lateness(ms)


class TestHelp:
    """``dtimer --help`` is read on a terminal of 80 columns."""

    def test_each_summary_fits_on_one_line(self, capsys, monkeypatch):
        """A cut summary does not explain the command."""
        monkeypatch.setenv("COLUMNS", "80")
        assert 0 == main(["--help"])
        lines = capsys.readouterr().out.splitlines()
        assert [] == [line for line in lines if "..." in line.replace("[ARGS]...", "")]
        assert max(map(len, lines)) <= 80
        for name, command in app.commands.items():
            (line,) = (line for line in lines if line.split()[:1] == [name])
            assert line.endswith(command.get_short_help_str(80))

    def test_each_command_has_a_heading(self):
        """A command without a heading would be missing from the help."""
        assert set(app.commands) == set(app.list_commands(click.Context(app)))
