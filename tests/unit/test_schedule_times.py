"""Definitions of schedules, and nominal times of cron, compared with a separate interpreter."""

import calendar
import contextlib
import itertools
import os
import random
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from dtimer.errors import OptionError
from dtimer.model.schedules import STORED_TIMES, make_spec, next_times, spec_from_json, times_to_add

SECOND = 1_000_000  # microseconds, the unit of all times of a schedule

#: The number of expressions that are compared with the oracle. Ten thousand take some minutes.
EXPRESSIONS = int(os.environ.get("DTIMER_TEST_CRONS", "200"))

DEFAULTS = {
    "start": None, "end": None, "count": None, "jitter": 0, "misfire": "coalesce",
    "overlap": "queue", "max_retries": 3, "payload": "{}",
}  # fmt: skip

NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001 - no node knows which zone is meant

#: Wrong values of each option.
INVALID = {
    "every": [0, 9.99, -1_000, "1s", True, float("nan"), timedelta(milliseconds=9),
              timedelta(days=40_000)],
    "id": ["x" * 231],
    "jitter": [-1, "1s", 1_001],
    "start": ["now", NAIVE],
    "end": [NAIVE],
    "count": [0, -1, 1.5, True],
    "misfire": ["ignore", None, "c"],
    "overlap": ["both", None],
    "tz": ["Mars/Olympus", "../etc/passwd", "", None, timezone(timedelta(hours=1))],
}  # fmt: skip


def definition(cron=None, tz="UTC", id="beat", **options):
    """Return the definition of a schedule: of *cron*, or of an interval of a second."""
    every = None if cron else 1_000
    return make_spec(id, cron=cron, tz=tz, **({"every": every} | DEFAULTS | options))


def moment(text, tz="UTC"):
    """
    Return a moment given as local time of a zone, in microseconds.

    ``+1`` at the end means the second of two equal times.
    """
    text, _, fold = text.partition("+")
    at = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(tz), fold=int(fold or 0))
    return int(at.timestamp()) * SECOND


def local(nominal, tz="UTC"):
    """Return a moment as local time of a zone, with its offset."""
    at = datetime.fromtimestamp(nominal // SECOND, UTC).astimezone(ZoneInfo(tz))
    return at.strftime("%Y-%m-%d %H:%M:%S %z")


def nominals(cron, tz, after, most, **options):
    """Return the first *most* nominal times of an expression after a moment."""
    return list(itertools.islice(definition(cron, tz, **options).nominals(after), most))


class TestDefinition:
    """Valid and invalid definitions. Each mistake raises OptionError before any I/O."""

    @pytest.mark.parametrize(
        ("option", "value"), [(option, x) for option, values in INVALID.items() for x in values]
    )
    def test_refuses_invalid_options(self, option, value):
        """A wrong value would otherwise be stored, and every node would fail on it."""
        with pytest.raises(OptionError):
            definition(**{option: value})

    def test_refuses_an_end_before_the_start(self):
        """Such a schedule would never fire."""
        with pytest.raises(OptionError):
            definition(start=2_000, end=1_000)

    @pytest.mark.parametrize(
        "cron",
        [
            *["", " ", "*", "* * * *", "* * * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *"],
            *["* * 32 * *", "* * * 0 *", "* * * 13 *", "* * * * 8", "-1 * * * *", "5-1 * * * *"],
            *["*/0 * * * *", "1,,2 * * * *", "a * * * *", "* * * FOO *", "* * * * MON#6"],
            *["* * * * MON#0", "* * * * L", "60 * * * * *", "0 0 30 2 *", "0 0 31 4,6,9,11 *"],
            *["@hurly", "@", "@reboot", "\u0661 * * * *", "* * * * *\x00", 5, b"* * * * *"],
        ],
    )
    def test_refuses_invalid_expressions_and_those_that_never_match(self, cron):
        """A schedule that never fires is a mistake."""
        with pytest.raises(OptionError):
            definition(cron or " ")

    def test_the_message_shows_the_expression_and_the_wrong_field(self):
        """The user sees which part is wrong."""
        with pytest.raises(OptionError, match=r"'\* 25 \* \* \*'.*hour"):
            definition("* 25 * * *")

    def test_spaces_and_case_do_not_change_the_fingerprint(self):
        """A reformatted expression must not restart its schedule."""
        for one, other in (("0  9 * * *", " 0 9 * *\t* "), ("@Daily", "@daily")):
            assert definition(one).fingerprint == definition(other).fingerprint

    def test_survives_json_with_its_payload(self):
        """The stored definition must be read back unchanged."""
        spec = definition("0 9 * * MON", "Europe/Berlin", jitter=5, payload='{"a":"|"}')
        assert spec == spec_from_json("beat", spec.to_json().encode(), b'{"a":"|"}')

    def test_times_lie_between_start_and_end_inclusive(self):
        """Both bounds are part of the schedule."""
        start, end = moment("2027-01-01 00:00"), moment("2027-01-01 00:03")
        found = nominals("* * * * *", "UTC", 0, 50, start=start / 1000, end=end / 1000)
        assert [start + i * 60 * SECOND for i in range(4)] == found

    def test_computes_ten_times_in_advance_and_fewer_at_the_end(self):
        """The server needs times in advance, because only nodes can compute cron."""
        each_minute = definition("* * * * *", end=moment("2027-01-01 00:20") / 1000)
        assert STORED_TIMES == len(next_times(each_minute, moment("2027-01-01 00:00")))
        assert 5 == len(next_times(each_minute, moment("2027-01-01 00:15")))

    @pytest.mark.parametrize(("misfire", "missed"), [("coalesce", 199), ("skip", 199), ("all", 0)])
    def test_leaves_out_missed_times_as_the_misfire_policy_says(self, misfire, missed):
        """With ``all`` the missed times are kept. Otherwise only the last of them is."""
        each_minute = definition("* * * * *", misfire=misfire)
        stored = moment("2027-01-01 00:00")
        left_out, times, final = times_to_add(each_minute, stored, stored + 200 * 60 * SECOND)
        assert (missed, STORED_TIMES, False) == (left_out, len(times), final)
        assert stored + (missed + 1) * 60 * SECOND == times[0]

    def test_marks_the_last_times_as_final(self):
        """The server then asks for no more."""
        stored = moment("2027-01-01 00:00")
        each_minute = definition("* * * * *", end=stored / 1000 + 180_000)
        minutes = [stored + i * 60 * SECOND for i in (1, 2, 3)]
        assert (0, minutes, True) == times_to_add(each_minute, stored, stored)
        assert (0, [], True) == times_to_add(each_minute, stored + 180 * SECOND, stored)


@pytest.mark.fault("F55")
class TestCronFields:
    """The meaning of the fields."""

    @pytest.mark.parametrize(
        ("cron", "expected"),
        [
            ("@hourly", "01-01 01:00, 01-01 02:00"),
            ("@daily", "01-02 00:00, 01-03 00:00"),
            ("@midnight", "01-02 00:00, 01-03 00:00"),
            ("@weekly", "01-03 00:00, 01-10 00:00"),
            ("@monthly", "02-01 00:00, 03-01 00:00"),
            ("@yearly", "01-01 00:00, 01-01 00:00"),
            ("@annually", "01-01 00:00, 01-01 00:00"),
            ("0 0 1 jan,Jul *", "07-01 00:00, 01-01 00:00"),
            ("0 0 * * mon-fri", "01-04 00:00, 01-05 00:00"),
            ("0 0 * * 0", "01-03 00:00, 01-10 00:00"),
            ("0 0 * * 7", "01-03 00:00, 01-10 00:00"),
            ("5/20 * * * *", "01-01 00:05, 01-01 00:25, 01-01 00:45, 01-01 01:05"),
            ("0 6-6/2 * * *", "01-01 06:00, 01-02 06:00"),
            ("0 0 * * Fri-FRI/2", "01-08 00:00, 01-15 00:00"),
            ("10-40/15 3 * * *", "01-01 03:10, 01-01 03:25, 01-01 03:40, 01-02 03:10"),
            ("0 0 L * *", "01-31 00:00, 02-28 00:00, 03-31 00:00, 04-30 00:00"),
            ("0 0 LW * *", "01-29 00:00, 02-26 00:00, 03-31 00:00, 04-30 00:00"),
            ("0 0 31 * *", "01-31 00:00, 03-31 00:00, 05-31 00:00"),
            ("0 0 * * FRI#2", "01-08 00:00, 02-12 00:00, 03-12 00:00"),
            ("0 0 * * FRI#5", "01-29 00:00, 04-30 00:00, 07-30 00:00"),
            ("0 0 * * 5L", "01-29 00:00, 02-26 00:00, 03-26 00:00"),
            # If both day fields are given, one of them must match. If one begins with *, both must.
            ("0 0 13 * FRI", "01-08 00:00, 01-13 00:00, 01-15 00:00"),
            ("0 0 */2 * FRI", "01-15 00:00, 01-29 00:00, 02-05 00:00"),
        ],
    )
    def test_fields_match_the_documented_times(self, cron, expected):
        """Names, lists, ranges, steps, L, LW, # and the two day fields, from Friday 2027-01-01."""
        expected = expected.split(", ")
        found = nominals(cron, "UTC", moment("2027-01-01 00:00"), len(expected))
        assert expected == [local(at)[5:16] for at in found]
        # So early that the table needs no years.
        assert found[-1] < moment("2029-01-02 00:00")

    def test_the_first_of_six_fields_is_the_seconds(self):
        """Five fields have no seconds."""
        found = nominals("*/20 59 23 31 12 *", "UTC", moment("2027-01-01 00:00"), 4)
        assert [moment(f"2027-12-31 23:59:{s:02}") for s in (0, 20, 40)] == found[:3]
        assert moment("2028-12-31 23:59:00") == found[3]

    def test_29_february_comes_in_leap_years_only(self):
        """2100 has no 29 February."""
        found = nominals("0 12 29 2 *", "UTC", moment("2088-03-01 00:00"), 4)
        assert ["2092", "2096", "2104", "2108"] == [local(at)[:4] for at in found]

    def test_the_next_time_is_strictly_later(self):
        """A time equal to the given moment is not returned again."""
        at = moment("2027-01-01 00:00")
        for after, expected in ((at, at + SECOND), (at + 1, at + SECOND), (at - 1, at)):
            assert [expected] == nominals("* * * * * *", "UTC", after, 1)


BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
BEIRUT, SANTIAGO, APIA = "Asia/Beirut", "America/Santiago", "Pacific/Apia"


#: Expression, zone, moment, and the first times after it. An indented line continues the row
#: above.
DAYLIGHT_SAVING = """
# The clock goes forward, 02:00 to 03:00: once, at the first moment after the gap.
30 2 * * * | BERLIN | 2027-03-27 12:00 | 03-28 03:00:00 +0200, 03-29 02:30:00 +0200
0,15,30,45 2 * * * | BERLIN | 2027-03-27 12:00 | 03-28 03:00:00 +0200, 03-29 02:00:00 +0200
0 2,3 * * * | BERLIN | 2027-03-27 12:00 | 03-28 03:00:00 +0200, 03-29 02:00:00 +0200
15 30 2 * * * | BERLIN | 2027-03-27 12:00 | 03-28 03:00:00 +0200, 03-29 02:30:15 +0200
30 2 * * * | NEW_YORK | 2027-03-13 12:00 | 03-14 03:00:00 -0400, 03-15 02:30:00 -0400
15 2 * * * | LORD_HOWE | 2027-10-02 12:00 | 10-03 02:30:00 +1100, 10-04 02:15:00 +1100
0 0 * * * | BEIRUT | 2027-03-27 12:00 | 03-28 01:00:00 +0300, 03-29 00:00:00 +0300
0 0 0 * * * | BEIRUT | 2027-03-27 12:00 | 03-28 01:00:00 +0300, 03-29 00:00:00 +0300
# Hours with a star follow the local clock: no time in the gap.
0 */2 * * * | BERLIN | 2027-03-28 00:00 | 03-28 04:00:00 +0200
30 * * * * | BERLIN | 2027-03-28 01:00 | 03-28 01:30:00 +0100, 03-28 03:30:00 +0200
* 2 * * * | BERLIN | 2027-03-27 12:00 | 03-29 02:00:00 +0200
# The clock goes back, 03:00 to 02:00: a fixed hour once, at the first of the two.
30 2 * * * | BERLIN | 2027-10-30 12:00 | 10-31 02:30:00 +0200, 11-01 02:30:00 +0100
0 30 2 * * * | BERLIN | 2027-10-30 12:00 | 10-31 02:30:00 +0200, 11-01 02:30:00 +0100
30 1 * * * | NEW_YORK | 2027-11-06 12:00 | 11-07 01:30:00 -0400, 11-08 01:30:00 -0500
45 1 * * * | LORD_HOWE | 2027-04-03 12:00 | 04-04 01:45:00 +1100, 04-05 01:45:00 +1030
# A minute or an hour with a star fires each time the local clock reads it.
30 * * * * | BERLIN | 2027-10-31 02:00 | 10-31 02:30:00 +0200, 10-31 02:30:00 +0100,
    10-31 03:30:00 +0100
*/30 2 * * * | BERLIN | 2027-10-31 01:00 | 10-31 02:00:00 +0200, 10-31 02:30:00 +0200,
    10-31 02:00:00 +0100, 10-31 02:30:00 +0100
*/15 1-2 * * * | LORD_HOWE | 2027-04-04 01:20 | 04-04 01:30:00 +1100, 04-04 01:45:00 +1100,
    04-04 01:30:00 +1030, 04-04 01:45:00 +1030, 04-04 02:00:00 +1030
# After a moment in the second of the two hours, a fixed hour does not come again.
30 2 * * * | BERLIN | 2027-10-31 02:10+1 | 11-01 02:30:00 +0100
30 2 * * * | BERLIN | 2027-10-31 02:30 | 11-01 02:30:00 +0100
# Samoa skipped 30 December 2011.
0 12 * * * | APIA | 2011-12-29 00:00 | 12-29 12:00:00 -1000, 12-31 00:00:00 +1400,
    12-31 12:00:00 +1400
"""


def rows(table):
    """Return the rows of a table, without its comments."""
    return [row for row in table.replace("\n   ", "").strip().split("\n") if row[0] != "#"]


@pytest.mark.fault("F55")
@pytest.mark.parametrize("row", rows(DAYLIGHT_SAVING))
def test_times_match_the_documented_table_if_the_clock_is_put_forward_or_back(row):
    """The same table is in docs/recurring.rst. The times are local, with their offsets."""
    cron, zone, after, expected = row.split(" | ")
    expected, tz = expected.split(", "), globals()[zone]
    found = nominals(cron, tz, moment(after, tz), len(expected))
    assert expected == [local(at, tz)[5:] for at in found]


# ------------------------------------------------------------------------------- the oracle

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
NAMES = {
    "month": {name: number for number, name in enumerate(MONTHS, 1)},
    "weekday": {name: number for number, name in enumerate(DAYS)},
}
#: The smallest and the largest number of each field.
BOUNDS = {
    "second": (0, 59), "minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12),
    "weekday": (0, 7),
}  # fmt: skip


def seconds(at):
    """Return a datetime as seconds since the epoch. One without a zone is taken as UTC."""
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


class Oracle:
    """
    Cron as the documentation defines it, interpreted in the slowest and simplest way.

    Shares no code with the library: it checks for each moment, or each local time of a day, whether
    all fields match.
    """

    def __init__(self, text, tz):
        fields = text.split()
        self.zone = ZoneInfo(tz)
        self.texts = dict(zip(BOUNDS, fields if len(fields) == 6 else ["0", *fields], strict=True))
        self.begins_with_star = {name: text.startswith("*") for name, text in self.texts.items()}
        self.numbers = {
            name: self.expand(name, self.texts[name])
            for name in ("second", "minute", "hour", "month")
        }

    @staticmethod
    def expand(name, text):
        """Return the numbers of a field without L and #."""
        low, high = BOUNDS[name]
        numbers = NAMES.get(name, {})
        found = set()
        for part in text.split(","):
            base, _, step = part.partition("/")
            if base == "*":
                first, last = low, high
            elif "-" in base:
                first, last = (int(numbers.get(x.lower(), x)) for x in base.split("-"))
            else:
                first = int(numbers.get(base.lower(), base))
                last = high if step else first
            found |= set(range(first, last + 1, int(step or 1)))
        return found

    def matches_day_of_month(self, day):
        last = calendar.monthrange(day.year, day.month)[1]
        workdays = [d for d in range(1, last + 1) if day.replace(day=d).weekday() < 5]
        special = {"L": last, "LW": workdays[-1]}
        return any(
            day.day == special[part] if part in special else day.day in self.expand("day", part)
            for part in self.texts["day"].split(",")
        )

    def matches_weekday(self, day):
        weekday = day.isoweekday() % 7  # cron counts from Sunday, as 0 or 7
        last = calendar.monthrange(day.year, day.month)[1]
        for part in self.texts["weekday"].split(","):
            text, _, nth = part.partition("#")
            is_last = text.endswith("L")
            if weekday not in {d % 7 for d in self.expand("weekday", text.removesuffix("L"))}:
                continue
            if is_last and day.day + 7 <= last:
                continue
            if not nth or int(nth) == (day.day + 6) // 7:
                return True
        return False

    def matches(self, day):
        """Return whether a date is in the month and on the days of the expression."""
        if day.month not in self.numbers["month"]:
            return False
        both = self.matches_day_of_month(day), self.matches_weekday(day)
        one_has_star = self.begins_with_star["day"] or self.begins_with_star["weekday"]
        return all(both) if one_has_star else any(both)

    def next_times(self, after, most, days):
        """Return the next moments, in seconds since the epoch; look at no more than *days* days."""
        found = []
        day = datetime.fromtimestamp(after, self.zone).date() - timedelta(days=2)
        for _ in range(days):
            if self.matches(day):
                found = sorted({at for at in found + self.times_of(day) if at > after})
                # A time of a later day may come before one of this day, but never by a whole day.
                if len(found) >= most + 60:
                    break
            day += timedelta(days=1)
        return found[:most]

    def times_of(self, day):
        """Return the moments of a day, in seconds since the epoch."""
        midnight = seconds(datetime(day.year, day.month, day.day, tzinfo=UTC))
        # The times as a clock on the wall shows them, counted like moments in UTC.
        walls = [
            midnight + 3600 * h + 60 * m + s
            for h in sorted(self.numbers["hour"])
            for m in sorted(self.numbers["minute"])
            for s in sorted(self.numbers["second"])
        ]
        # All offsets that the zone has around that day give all moments that may show such a time.
        around = [datetime.fromtimestamp(midnight + h * 3600, UTC) for h in range(-30, 55)]
        offsets = {
            int(self.zone.utcoffset(at.replace(tzinfo=None)).total_seconds()) for at in around
        }
        moments = []
        for wall in walls:
            showing = sorted(wall - o for o in offsets if self.wall_at(wall - o) == wall)
            if self.begins_with_star["minute"] or self.begins_with_star["hour"]:
                moments += showing
            elif showing:
                moments.append(showing[0])
            else:
                # The clock skips this time: take the first moment that shows a later one.
                at = wall - max(offsets) - 5
                while self.wall_at(at) < wall:
                    at += 1
                moments.append(at)
        return moments

    def wall_at(self, at):
        """Return the local time at a moment, counted like a moment in UTC."""
        return seconds(datetime.fromtimestamp(at, self.zone).replace(tzinfo=None))


ZONES = [
    *["UTC", BERLIN, "Europe/London", "Europe/Dublin", NEW_YORK, "America/St_Johns"],
    *["America/Havana", SANTIAGO, "America/Asuncion", LORD_HOWE, "Australia/Adelaide"],
    *["Pacific/Auckland", "Pacific/Chatham", BEIRUT, "Africa/Cairo", "Africa/Casablanca"],
    *["Asia/Kathmandu", "Asia/Kolkata", "Antarctica/Troll", "Asia/Jerusalem"],
]


def any_field(chance, name):
    """Return a random field: a star, number, name, range, step, list, or a form for days only."""
    low, high = BOUNDS[name]

    def number():
        return chance.randint(low, high)

    def any_part():
        kind = chance.random()
        if kind < 0.45:
            if name in NAMES and chance.random() < 0.3:
                word = chance.choice(list(NAMES[name]))
                return chance.choice([word, word.upper(), word.title()])
            return str(number())
        first, last = sorted((number(), number()))
        step = chance.randint(1, max(2, (high - low) // 2))
        if kind < 0.65:
            return f"{first}-{last}"
        if kind < 0.8:
            return f"*/{step}"
        if kind < 0.9:
            return f"{first}-{last}/{step}"
        return f"{first}/{step}"

    if name == "day" and chance.random() < 0.15:
        return chance.choice(["L", "LW", f"{number()},L"])
    if name == "weekday" and chance.random() < 0.15:
        return chance.choice([f"{number()}#{chance.randint(1, 5)}", f"{number()}L"])
    if chance.random() < {"second": 0.1, "minute": 0.2, "hour": 0.35}.get(name, 0.55):
        return "*"
    return ",".join(any_part() for _ in range(chance.choice([1, 1, 1, 2, 3])))


def any_definition(chance, tz):
    """Return a random expression, of five fields or, one time in five, of six; and its schedule."""
    while True:
        names = list(BOUNDS)[1:] if chance.random() < 0.8 else list(BOUNDS)
        text = " ".join(any_field(chance, name) for name in names)
        with contextlib.suppress(OptionError):  # a 31 February
            return text, definition(text, tz)


def any_moment(chance, tz):
    """Return a random moment. Half of them are within a day of a clock change."""
    at = chance.randrange(seconds(datetime(2000, 1, 1, tzinfo=UTC)), 3_000_000_000)
    if chance.random() < 0.5:
        return at
    zone = ZoneInfo(tz)
    offset = datetime.fromtimestamp(at, zone).utcoffset()
    for _ in range(500):
        at += 24 * 3_600
        if datetime.fromtimestamp(at, zone).utcoffset() != offset:
            return at - chance.randrange(30 * 3_600)
    return at


@pytest.mark.fault("F55")
class TestOracle:
    """
    Nominal times against an interpreter that shares only the rules.

    A wrong oracle would not agree with the library, which gives the times of the tables above.
    """

    def compare(self, chance, most):
        """Compare one random expression; return the number of compared times."""
        tz, days = chance.choice(ZONES), 4_000
        text, tested = any_definition(chance, tz)
        after = any_moment(chance, tz)
        horizon = after + (days - 4) * 86_400

        def tested_after(start, most):
            times = itertools.islice(tested.nominals(start * SECOND), most)
            return [at // SECOND for at in times if at // SECOND < horizon]

        expected = [at for at in Oracle(text, tz).next_times(after, most, days) if at < horizon]
        found = tested_after(after, most)
        assert expected == found, (text, tz, after)
        if found:
            # Continuing from any of these times gives the same later ones.
            cut = chance.randrange(len(found))
            rest = tested_after(found[cut], len(found) - cut - 1)
            assert found[cut + 1 :] == rest, (text, tz, after, cut)
        return len(found)

    @pytest.mark.timeout(3_600)
    def test_random_expressions_match_the_oracle(self):
        """Fifty times of each expression are compared, in zones of all kinds."""
        seed = os.environ.get("DTIMER_TEST_SEED", "20270115")
        compared = sum(self.compare(random.Random(f"{seed}/{i}"), 50) for i in range(EXPRESSIONS))
        assert compared > EXPRESSIONS * 30
