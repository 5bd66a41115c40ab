"""Durations and moments, as people write them on the command line."""

import sys
from datetime import UTC, datetime, timedelta

import pytest

from dtimer.cli import dates
from dtimer.cli.durations import parse_duration, parse_expiry, parse_moment, parse_when, spell
from dtimer.errors import OptionError


class TestDuration:
    """What is a duration, and what is none."""

    @pytest.mark.parametrize(
        ("text", "ms"),
        [
            ("0", 0),
            ("200", 200),
            ("1.5", 1.5),
            ("200ms", 200),
            ("200 ms", 200),
            ("10s", 10_000),
            ("1.5s", 1_500),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("1h30m10s5ms", 5_410_005),
            ("2d", 172_800_000),
            ("1w", 604_800_000),
            (" 10s ", 10_000),
            ("PT10M", 600_000),
            ("PT0.2S", 200),
            ("PT0,2S", 200),
            ("P1DT2H", 93_600_000),
            ("P2W", 1_209_600_000),
            ("36525d", 36_525 * 86_400_000),
        ],
    )
    def test_read(self, text, ms):
        """A number alone is milliseconds; units go from great to small; ISO 8601 is read too."""
        assert timedelta(milliseconds=ms) == parse_duration(text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "x",
            "s",
            "-5",
            "-5s",
            "+5s",
            "5x",
            "5S",
            "5 parsecs",
            "10m1h",
            "5s5s",
            "1.5h30m",
            "1.",
            ".5s",
            "1e3",
            "1_000",
            "1,5s",
            "٣s",
            "10s later",
            "1h-30m",
            "inf",
            "nan",
            "0x10",
            "P",
            "PT",
            "P1DT",
            "P1M",
            "P1Y",
            "PT1D",
            "P1H",
            "PT1S1M",
            "pt10m",
            "P-1D",
            "PT.5S",
        ],
    )
    def test_refused(self, text):
        """What is not in the grammar is refused, with what would be in it; never guessed at."""
        with pytest.raises(OptionError, match=r"not a duration.*1h30m"):
            parse_duration(text)

    def test_the_reason_is_told(self):
        """A refusal names the unit that there is none of, the order, or the calendar."""
        for text, reason in {
            "5x": "unknown unit 'x'",
            "10m1h": "greatest first",
            "1.5h30m": "only the last number",
            "P1M": "months and years",
        }.items():
            with pytest.raises(OptionError, match=reason):
                parse_duration(text)

    @pytest.mark.parametrize("text", ["36526d", "9" * 30 + "w", "9" * 5_000, "P99999999D"])
    def test_no_more_than_a_century(self, text):
        """A duration beyond 100 years is a slip of units, however great the number."""
        with pytest.raises(OptionError, match="100 years"):
            parse_duration(text)

    @pytest.mark.parametrize(
        ("text", "us"), [("0.0001", 1), ("0.0011ms", 2), ("4.35ms", 4_350), ("0.1ms", 100)]
    )
    def test_rounded_up(self, text, us):
        """A fraction of a microsecond is rounded up, and no other digit is disturbed."""
        assert timedelta(microseconds=us) == parse_duration(text)

    @pytest.mark.parametrize(
        ("ms", "text"),
        [
            (-5, "0ms"),
            (0, "0ms"),
            (200.4, "200ms"),
            (61_000, "1m1s"),
            (3_600_000, "1h"),
            (3_605_000, "1h"),
            (5_400_000, "1h30m"),
            (10 * 86_400_000, "10d"),
            (1_500, "1s500ms"),
        ],
    )
    def test_spelled(self, ms, text):
        """A duration is written in the same grammar, in its two greatest units."""
        assert text == spell(ms)
        parse_duration(text)


class TestMoment:
    """What is a moment, and what is none."""

    @pytest.mark.parametrize(
        "text",
        [
            "2030-01-31T08:00:00Z",
            "2030-01-31T09:00+01:00",
            "2030-01-31 08:00Z",
            "1896076800000",
            "1896076800000.0",
        ],
    )
    def test_read(self, text):
        """ISO 8601 with a zone and milliseconds since the epoch are the same moment anywhere."""
        assert (datetime(2030, 1, 31, 8, tzinfo=UTC), False) == parse_moment(text)

    @pytest.mark.parametrize("text", ["2030-01-31T08:00", "2030-01-31 08:00:00", "2030-01-31"])
    def test_without_a_zone_it_is_local(self, text):
        """A moment without a zone is this machine's local time, and is marked as assumed."""
        at, assumed = parse_moment(text)
        naive = datetime.fromisoformat(text)
        assert assumed
        assert naive.astimezone() == at
        assert at.utcoffset() is not None

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "now",
            "tomorrow",
            "2030-13-01",
            "2030-02-30T00:00",
            "2030-W01-1x",
            "31.01.2030",
            "-1",
            "10m",
            "inf",
        ],
    )
    def test_refused(self, text):
        """What is no moment is refused, with what would be one."""
        with pytest.raises(OptionError, match="not a moment"):
            parse_moment(text)

    @pytest.mark.parametrize("text", ["0", "1790000000", "20300131", "99999999999"])
    def test_seconds_are_not_taken_for_milliseconds(self, text):
        """
        A number of seconds, or a date without dashes, would be a moment in the 1970s, and
        the event would come at once: it is refused.
        """
        with pytest.raises(OptionError, match="long past"):
            parse_moment(text)

    def test_not_beyond_2223(self):
        """Milliseconds that the store could not count exactly are refused."""
        with pytest.raises(OptionError, match="2223"):
            parse_moment("9" * 16)


def test_expiry_is_either():
    """An expiry that begins with a date is a moment, and otherwise a duration."""
    assert timedelta(minutes=10) == parse_expiry("10m")
    assert (datetime(2030, 1, 31, tzinfo=UTC), False) == parse_expiry("2030-01-31T00:00Z")


def test_when_is_either():
    """A due time is a duration or a moment; a number as great as ms since the epoch are is one."""
    assert timedelta(minutes=10) == parse_when("10m")
    assert timedelta(milliseconds=99_999_999_999) == parse_when("99999999999")
    assert (datetime(2030, 1, 31, 8, tzinfo=UTC), False) == parse_when("1896076800000")
    assert (datetime(2030, 1, 31, 8, tzinfo=UTC), False) == parse_when("2030-01-31T08:00Z")


class TestWords:
    """Moments in words, with the extra ``dates``."""

    # A Sunday, local time.
    NOW = datetime(2026, 11, 22, 10, 30, 5).astimezone()

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("tomorrow 9:00", (2026, 11, 23, 9)),
            ("Tomorrow at 9am", (2026, 11, 23, 9)),
            ("tomorrow noon", (2026, 11, 23, 12)),
            ("today 18:00", (2026, 11, 22, 18)),
            ("9:00", (2026, 11, 23, 9)),
            ("friday 9:00", (2026, 11, 27, 9)),
            ("31 Jan 9:00", (2027, 1, 31, 9)),
            ("31 January 2030 9:00", (2030, 1, 31, 9)),
            ("in 2 hours", (2026, 11, 22, 12, 30, 5)),
        ],
    )
    def test_read(self, text, expected):
        """A day and an hour in English are the next such moment, local time."""
        assert datetime(*expected).astimezone() == dates.read(text, self.NOW)

    @pytest.mark.parametrize(
        "text",
        [
            "tomorrow",
            "friday",
            "in 3 days",
            "tomorrow 25:00",
            "march 9:00",
            "01/02/2030 9:00",
            "31.01.2030 9:00",
            "2030-01-31 9:00",
            "tomorow 9:00",
            "x y z 9:00",
            "10m",
            "soon",
            "",
        ],
    )
    def test_nothing_is_borrowed(self, text):
        """What leaves the hour or the day open, or could be two days, is refused."""
        assert dates.read(text, self.NOW) is None

    def test_not_what_is_over(self):
        """A moment in words that lies behind is refused: nobody means it."""
        with pytest.raises(OptionError, match="in the past"):
            dates.read("yesterday 9:00", self.NOW)

    def test_without_the_extra(self, monkeypatch):
        """Without dateparser the message says what to install, or what else to write."""
        monkeypatch.setitem(sys.modules, "dateparser", None)
        with pytest.raises(OptionError, match=r"pip install 'dtimer\[dates\]'.*2030-01-31"):
            parse_moment("tomorrow 9:00")
        with pytest.raises(OptionError, match="not a moment"):
            parse_moment("soon")

    def test_only_where_nothing_else_is_meant(self, monkeypatch):
        """ISO 8601, durations and numbers never get so far."""

        def fail(*_):
            raise AssertionError("read as words")

        monkeypatch.setattr(dates, "read", fail)
        for text in ("2030-01-31 09:00", "2030-01-31T08:00Z", "1896076800000"):
            parse_moment(text)
        assert timedelta(hours=2) == parse_expiry("2h")

    def test_it_is_marked_as_assumed(self):
        """What was read from words is said back to the user."""
        assert parse_expiry("tomorrow 9:00").assumed
