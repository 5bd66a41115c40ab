"""Moments: from milliseconds since the epoch to datetimes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


def to_datetime(ms: float) -> datetime:
    """
    Return a moment in ms since the epoch as an aware datetime in UTC, exact to the microsecond.

    A datetime cannot represent a moment before the year 1 or after the year 9999. For such a
    moment, the result is the first or the last datetime there is.
    """
    try:
        # A sum of whole microseconds. `fromtimestamp` takes seconds as a float, and rounds those.
        return EPOCH + timedelta(microseconds=round(ms * 1000))
    except OverflowError:
        return _LAST if ms > 0 else _FIRST
