"""Durations and moments, as users type them on the command line."""

from datetime import UTC, datetime, timedelta

import pytest

from dtimer.cli.durations import (
    parse_duration,
    parse_expiry,
    parse_moment,
    parse_when,
)
from dtimer.errors import OptionError
from dtimer.model.times import format_duration


class TestDuration:
    """Valid and invalid durations."""

    @pytest.mark.parametrize(
        ("text", "ms"),
        [
            *[("0", 0), ("200", 200), ("1.5", 1.5), ("200ms", 200), ("200 ms", 200)],
            *[("10s", 10_000), ("1.5s", 1_500), ("10m", 600_000), ("1h30m", 5_400_000)],
            *[("1h 30m", 5_400_000), ("1h30m10s5ms", 5_410_005), ("2d", 172_800_000)],
            *[("1w", 604_800_000), (" 10s ", 10_000), ("PT10M", 600_000), ("PT0.2S", 200)],
            *[("PT0,2S", 200), ("P1DT2H", 93_600_000), ("P2W", 1_209_600_000)],
            *[("36525d", 36_525 * 86_400_000)],
        ],
    )
    def test_reads_milliseconds_units_and_iso_8601(self, text, ms):
        """A number without a unit is milliseconds. Units go from large to small."""
        assert timedelta(milliseconds=ms) == parse_duration(text)

    @pytest.mark.parametrize(
        "text",
        [
            *["", " ", "x", "s", "-5", "-5s", "+5s", "5x", "5S", "5 parsecs", "10m1h", "5s5s"],
            *["1.5h30m", "1.", ".5s", "1e3", "1_000", "1,5s", "٣s", "10s later", "1h-30m", "inf"],
            *["nan", "0x10", "P", "PT", "P1DT", "P1M", "P1Y", "PT1D", "P1H", "PT1S1M", "pt10m"],
            *["P-1D", "PT.5S", "P 1D", "P1 D", "1h 3", "1h" + " " * 5_000 + "x"],
        ],
    )
    def test_refuses_invalid_text_and_shows_a_valid_duration(self, text):
        """The parser never guesses."""
        with pytest.raises(OptionError, match=r"not a duration.*1h30m"):
            parse_duration(text)

    @pytest.mark.parametrize("text", ["36526d", "9" * 30 + "w", "9" * 5_000, "P99999999D"])
    def test_refuses_more_than_100_years(self, text):
        """Such a duration is a mistake in the unit."""
        with pytest.raises(OptionError, match="100 years"):
            parse_duration(text)

    @pytest.mark.parametrize(
        ("text", "us"), [("0.0001", 1), ("0.0011ms", 2), ("4.35ms", 4_350), ("0.1ms", 100)]
    )
    def test_rounds_fractions_of_a_microsecond_up(self, text, us):
        """A shorter duration would make an event early. All other digits stay."""
        assert timedelta(microseconds=us) == parse_duration(text)

    @pytest.mark.parametrize(
        ("ms", "text"),
        [
            *[(-5, "0ms"), (0, "0ms"), (200.4, "200ms"), (61_000, "1m1s"), (3_600_000, "1h")],
            *[(3_605_000, "1h"), (5_400_000, "1h30m"), (10 * 86_400_000, "10d")],
            *[(1_500, "1s500ms")],
        ],
    )
    def test_prints_the_two_largest_units_in_the_same_grammar(self, ms, text):
        """The printed text can be typed again."""
        assert text == format_duration(ms)
        parse_duration(text)


class TestMoment:
    """Valid and invalid moments."""

    @pytest.mark.parametrize(
        "text",
        [
            *["2030-01-31T08:00:00Z", "2030-01-31T09:00+01:00", "2030-01-31 08:00Z"],
            *["1896076800000", "1896076800000.0"],
        ],
    )
    def test_reads_iso_8601_with_a_zone_and_epoch_milliseconds(self, text):
        """Such a text means the same moment on every machine."""
        assert (datetime(2030, 1, 31, 8, tzinfo=UTC), False) == parse_moment(text)

    @pytest.mark.parametrize("text", ["2030-01-31T08:00", "2030-01-31 08:00:00", "2030-01-31"])
    def test_a_moment_without_a_zone_is_local_time_and_marked_as_assumed(self, text):
        """The command then prints the local time that it has assumed."""
        at, zone_assumed = parse_moment(text)
        assert zone_assumed
        assert datetime.fromisoformat(text).astimezone() == at
        assert at.utcoffset() is not None

    @pytest.mark.parametrize(
        "text",
        [
            *["", "now", "tomorrow", "2030-13-01", "2030-02-30T00:00", "2030-W01-1x"],
            *["31.01.2030", "-1", "10m", "inf", "tomorrow 9:00", "01/02/2030 9:00"],
        ],
    )
    def test_refuses_invalid_text_and_shows_every_valid_form(self, text):
        """The parser never guesses, and the message says what it accepts."""
        with pytest.raises(OptionError, match=r"not a moment; write 2030-01-31.*milliseconds"):
            parse_moment(text)

    @pytest.mark.parametrize("text", ["0", "1790000000", "20300131", "99999999999"])
    def test_refuses_a_number_that_would_be_a_moment_in_the_1970s(self, text):
        """A number of seconds, or a date without dashes, would make the event due at once."""
        with pytest.raises(OptionError, match="long past"):
            parse_moment(text)

    def test_refuses_moments_after_2223(self):
        """The store could not count their microseconds exactly."""
        with pytest.raises(OptionError, match="2223"):
            parse_moment("9" * 16)


def test_an_expiry_is_a_moment_or_a_duration():
    """Text that begins with a date is a moment."""
    assert timedelta(minutes=10) == parse_expiry("10m")
    assert (datetime(2030, 1, 31, tzinfo=UTC), False) == parse_expiry("2030-01-31T00:00Z")


@pytest.mark.parametrize("read", [parse_expiry, parse_when])
@pytest.mark.parametrize("text", ["soon", "tomorrow 9:00", "31.01.2030", "in 2 hours"])
def test_an_error_shows_the_forms_of_durations_and_of_moments(text, read):
    """Either of the two may have been meant."""
    with pytest.raises(OptionError, match=r"not a duration.*1h30m.*a moment begins.*2030-01-31"):
        read(text)


def test_a_due_time_is_a_duration_or_a_moment():
    """A number as large as today's epoch milliseconds is a moment."""
    assert timedelta(minutes=10) == parse_when("10m")
    assert timedelta(milliseconds=99_999_999_999) == parse_when("99999999999")
    assert (datetime(2030, 1, 31, 8, tzinfo=UTC), False) == parse_when("1896076800000")
    assert (datetime(2030, 1, 31, 8, tzinfo=UTC), False) == parse_when("2030-01-31T08:00Z")
