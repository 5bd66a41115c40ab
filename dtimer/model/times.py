"""
Converts durations and moments from the caller's units to those of the store.

Public numbers are milliseconds. Internal times are whole microseconds, always rounded up, because
an event may be late but never early.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from dtimer.epoch import EPOCH, MICROSECOND
from dtimer.errors import OptionError
from dtimer.model import summary

#: A number of milliseconds, or a timedelta.
Duration = int | float | timedelta

#: Milliseconds since the epoch, or an aware datetime.
Moment = int | float | datetime

#: 100 years of 365.25 days. A longer delay was probably given in a wrong unit.
LONGEST_US = 100 * 31_557_600 * 1_000_000

#: A moment in this range was probably given in seconds. In seconds these are the years 1985 to
#: 2128. In milliseconds they would all be in January or February 1970.
LIKELY_SECONDS = range(500_000_000, 5_000_000_001)

#: September 2223, the latest moment that a caller may give. Until the year 2255 a score in Redis,
#: which is a double, is exact to the microsecond.
LATEST_US = 8_006_399_337_000_000

#: The length of each unit in microseconds, the greatest first.
UNITS: dict[str, int] = {
    "w": 604_800_000_000,
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
}


def duration_us(value: Duration, name: str) -> int:
    """
    Turn a duration into microseconds, rounded up; negative ones stay negative.

    Raises:
        OptionError: *value* is not a finite real number or a timedelta, or is
            longer than 100 years.
    """
    if isinstance(value, timedelta):
        us = value // MICROSECOND
    elif isinstance(value, bool) or not isinstance(value, int | float):
        hint = _hint(value, datetime, "; a moment is given as at=") if name == "delay" else ""
        raise OptionError(
            f"{name} must be a number of milliseconds or a timedelta,"
            f" not {summary.typed(value)}{hint}"
        )
    else:
        us = _ceil(value, name)
    if abs(us) > LONGEST_US:
        raise OptionError(f"{name} is {us / 1000:g} ms, beyond 100 years; is the unit right?")
    return us


def _hint(value: object, kind: type, text: str) -> str:
    return text if isinstance(value, kind) else ""


def _ceil(ms: float, name: str) -> int:
    # isfinite would raise OverflowError for an int of 400 digits.
    if not abs(ms) < 10**17:
        raise OptionError(f"{name} must be a finite number of milliseconds, below 10**17")
    return math.ceil(ms * 1000)


def moment_us(value: Moment, name: str, *, stepped: bool = False) -> int:
    """
    Turn a moment into microseconds since the epoch, rounded up.

    Args:
        value: The moment that the caller gave.
        name: The name of the argument, for error texts.
        stepped: True if a test moves the clock. Such a clock may start anywhere, so a number that
            looks like seconds is accepted.

    Raises:
        OptionError: *value* is a naive datetime, is not a finite number, is beyond the year 2223,
            or is a number that was probably given in seconds.
    """
    if isinstance(value, datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            raise OptionError(
                f"{name} is a naive datetime, {value!r:.80}; give it a tzinfo, for instance"
                " datetime.now(timezone.utc)"
            )
        us = (value - EPOCH) // MICROSECOND
    elif isinstance(value, bool) or not isinstance(value, int | float):
        hint = _hint(value, timedelta, "; add it to datetime.now(timezone.utc)")
        raise OptionError(
            f"{name} must be an aware datetime or milliseconds since the epoch,"
            f" not {summary.typed(value)}{hint}"
        )
    else:
        us = _ceil(value, name)
        if not stepped and LIKELY_SECONDS[0] <= value <= LIKELY_SECONDS[-1]:
            raise OptionError(
                f"{name} is {value!r:.80}, which looks like seconds; multiply by 1000, because"
                " numbers are milliseconds"
            )
    if us > LATEST_US:
        raise OptionError(
            f"{name} is {value!r:.80}, which is beyond the year 2223; milliseconds since the epoch"
            " are expected"
        )
    return us


def format_duration(ms: float) -> str:
    """Format a duration in its two greatest units, such as 1h30m. Weeks are written as days."""
    left = max(0, round(ms)) * 1000
    if not left:
        return "0ms"
    words: list[str] = []
    for unit, size in list(UNITS.items())[1:]:
        count, rest = divmod(left, size)
        if count or words:
            words.append(f"{count}{unit}" if count else "")
            left = rest
        if len(words) == 2:
            break
    return "".join(words)
