"""
Durations and moments as users write them, in a small and strict grammar.

.. code-block:: text

    duration = number                        milliseconds, as everywhere in dtimer
             | number unit { number unit }   1h30m, 200ms, 1.5s: the greatest unit first
             | ISO 8601                      PT10M, P1DT2H, PT0.2S, P2W
    unit     = w | d | h | m | s | ms
    moment   = ISO 8601                      2030-01-31T09:00+01:00, 2030-01-31 09:00
             | number                        milliseconds since the epoch

Any other text is refused. The parser never guesses: an event at a wrong time is worse than an
error message.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from dtimer.epoch import EPOCH
from dtimer.errors import OptionError
from dtimer.model.times import LATEST_US, LONGEST_US, UNITS

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def _number(unit: str, mark: str) -> str:
    """Return the pattern for a number of *unit*, followed by *mark*, or for nothing."""
    return rf"(?:(?P<{unit}>{_NUMBER.pattern}){mark})?"


_UNITS = re.compile("".join(_number(unit, rf"\s*{unit}\s*") for unit in UNITS))
_ISO = re.compile(
    rf"P(?=[0-9T]){_number('w', 'W')}{_number('d', 'D')}"
    rf"(?:T(?=[0-9]){_number('h', 'H')}{_number('m', 'M')}{_number('s', 'S')})?"
)
_DATE_FIRST = re.compile(r"[0-9]{4}-")

# The smallest number that is taken for a moment in ms since the epoch: March 1973. A smaller one
# was probably meant as seconds, or as a date without dashes.
_EARLIEST_MOMENT_MS = 100_000_000_000


class Moment(NamedTuple):
    """A moment. *zone_assumed* is True if the user gave no zone, so that local time was assumed."""

    at: datetime
    zone_assumed: bool


def parse_duration(text: str) -> timedelta:
    """
    Parse a duration, and round it up to the microsecond.

    Raises:
        OptionError: *text* is not a duration; the error shows valid forms.
    """
    words = text.strip()
    if _NUMBER.fullmatch(words):
        words = f"{words}ms"
    match = _UNITS.fullmatch(words) or _ISO.fullmatch(words.replace(",", "."))
    parts = {unit: n for unit, n in (match.groupdict() if match else {}).items() if n}
    if not parts or any("." in number for number in list(parts.values())[:-1]):
        raise OptionError(
            f"{text!r} is not a duration; write 200 or 200ms, 10s, 10m, 1h30m, 2d or PT10M, with"
            " the greatest unit first, and a fraction only at the end"
        )
    us = sum(Decimal(number) * UNITS[unit] for unit, number in parts.items())
    if us > LONGEST_US:
        raise OptionError(f"{text!r} is longer than 100 years; is the unit right?")
    return timedelta(microseconds=math.ceil(us))


def parse_moment(text: str) -> Moment:
    """
    Parse a moment. Without a zone, it is in the local time of this machine.

    Raises:
        OptionError: *text* is not a moment; the error shows valid forms.
    """
    words = text.strip()
    if _NUMBER.fullmatch(words):
        ms = Decimal(words)
        if ms < _EARLIEST_MOMENT_MS:
            raise OptionError(
                f"{text!r} as milliseconds since the epoch is long past; append 000 to seconds,"
                " or write a date with dashes: 2030-01-31"
            )
        if ms > LATEST_US // 1000:
            raise OptionError(f"{text!r} as milliseconds since the epoch is beyond the year 2223")
        return Moment(EPOCH + timedelta(microseconds=math.ceil(ms * 1000)), zone_assumed=False)
    try:
        if not _DATE_FIRST.match(words):
            raise ValueError("no date")  # noqa: TRY301 - the same message as below
        at = datetime.fromisoformat(words)
        if at.utcoffset() is not None:
            return Moment(at, zone_assumed=False)
        return Moment(at.astimezone(), zone_assumed=True)
    except (ValueError, OverflowError, OSError):
        raise OptionError(
            f"{text!r} is not a moment; write 2030-01-31T09:00+01:00, 2030-01-31 09:00 for"
            " local time, or milliseconds since the epoch"
        ) from None


def parse_expiry(text: str) -> timedelta | Moment:
    """
    Parse an expiry: a duration from now, or a moment that begins with its date.

    Raises:
        OptionError: *text* is neither; the error shows valid forms of both.
    """
    if _DATE_FIRST.match(text.strip()):
        return parse_moment(text)
    try:
        return parse_duration(text)
    except OptionError as e:
        raise OptionError(f"{e} (a moment begins with its date: 2030-01-31 09:00)") from None


def parse_when(text: str) -> timedelta | Moment:
    """
    Parse a due time: a duration from now, a moment that begins with its date, or a number.

    A number below 100 000 000 000 means milliseconds from now (up to three years). A larger
    number means milliseconds since the epoch (from 1973 on).

    Raises:
        OptionError: *text* has none of these forms.
    """
    words = text.strip()
    if _NUMBER.fullmatch(words) and Decimal(words) >= _EARLIEST_MOMENT_MS:
        return parse_moment(text)
    return parse_expiry(text)
