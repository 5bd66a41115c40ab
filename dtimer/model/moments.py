"""
Durations and moments, as people give them and as the store keeps them.

Public numbers are milliseconds. Inside, times are whole microseconds, and rounding
is always up: an event may be late but never early.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from dtimer.errors import OptionError

#: A number of milliseconds, or a timedelta.
Duration = int | float | timedelta

#: Milliseconds since the epoch, or an aware datetime.
Moment = int | float | datetime

#: 100 years of 365.25 days. A longer delay is a slip of units and not a wish.
LONGEST_US = 100 * 31_557_600 * 1_000_000

#: A number of milliseconds in this range is in January or February 1970, which nobody means; in
#: seconds it is a moment from 1985 to 2128.
SECONDS = range(500_000_000, 5_000_000_001)

#: September 2223: a score is a double, and counts microseconds exactly until 2255.
LATEST_US = 8_006_399_337_000_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def duration_us(value: Duration, name: str) -> int:
    """
    Turn a duration into microseconds, rounded up; negative ones stay negative.

    Raises:
        OptionError: *value* is not a finite real number or a timedelta, or is
            longer than 100 years.
    """
    if isinstance(value, timedelta):
        us = value // _MICROSECOND
    elif isinstance(value, bool) or not isinstance(value, int | float):
        hint = _hint(value, datetime, "; a moment is given as at=") if name == "delay" else ""
        raise OptionError(
            f"{name} must be a number of milliseconds or a timedelta, not {value!r:.80}"
            f" ({type(value).__name__}){hint}"
        )
    else:
        us = _ceil(value, name)
    if abs(us) > LONGEST_US:
        raise OptionError(f"{name} is {us / 1000:g} ms, beyond 100 years; is the unit right?")
    return us


def _hint(value: object, kind: type, text: str) -> str:
    return text if isinstance(value, kind) else ""


def _ceil(ms: float, name: str) -> int:
    # Not isfinite, which cannot take a whole number of four hundred digits.
    if not abs(ms) < 10**17:
        raise OptionError(f"{name} must be finite, a number of milliseconds within all bounds")
    return math.ceil(ms * 1000)


def moment_us(value: Moment, name: str, *, stepped: bool = False) -> int:
    """
    Turn a moment into microseconds since the epoch, rounded up.

    Args:
        value: What was given.
        name: What a message calls it.
        stepped: The moment is one of a test's own clock, which may begin anywhere: a number
            that looks like seconds is taken as it is.

    Raises:
        OptionError: a naive datetime, or no finite number, or beyond the year 2223, or a number
            that reads as a present moment in seconds.
    """
    if isinstance(value, datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            raise OptionError(
                f"{name} is a naive datetime, {value!r:.80}; give it a tzinfo, for instance"
                " datetime.now(timezone.utc)"
            )
        us = (value - _EPOCH) // _MICROSECOND
    elif isinstance(value, bool) or not isinstance(value, int | float):
        hint = _hint(value, timedelta, "; add it to datetime.now(timezone.utc)")
        raise OptionError(
            f"{name} must be an aware datetime or milliseconds since the epoch, not {value!r:.80}"
            f" ({type(value).__name__}){hint}"
        )
    else:
        us = _ceil(value, name)
        if not stepped and SECONDS[0] <= value <= SECONDS[-1]:
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
