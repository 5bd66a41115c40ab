"""
From what a wall clock shows to when that is, where the clock is put forward and back.

A calendar is given as a function from a naive datetime to an iterator over the naive
datetimes after it. Moments are whole seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo

Calendar = Callable[[datetime], Iterator[datetime]]

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - a wall clock has no zone
_SECOND = timedelta(seconds=1)
_DAY = 86_400


def _offset(zone: tzinfo, at: int) -> int:
    """Return what a zone's wall clock is ahead of UTC, in seconds."""
    shown = datetime.fromtimestamp(at, UTC).astimezone(zone).utcoffset()
    return 0 if shown is None else round(shown.total_seconds())


def _shift(zone: tzinfo, low: int, high: int) -> int:
    """Return the first moment after *low* at which the offset of *low* holds no more."""
    before = _offset(zone, low)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, middle) == before:
            low = middle
        else:
            high = middle
    return high


def _wall(at: int, offset: int) -> datetime:
    return _EPOCH + timedelta(seconds=at + offset)


def _seconds(wall: datetime) -> int:
    return (wall - _EPOCH) // _SECOND


def fixed(calendar: Calendar, zone: tzinfo, after: int) -> Iterator[int]:
    """
    Walk a calendar each of whose walls is meant once.

    What the clock skips is at the first moment after, what it shows twice is the first time.
    """
    last = after
    for wall in calendar(_wall(after, _offset(zone, after))):
        early, late = (wall.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
        shown = _seconds(wall)
        at = shown - round((early or timedelta()).total_seconds())
        if early != late and _offset(zone, at) + at != shown:
            # In the gap the later offset gives a moment before it, the earlier one after.
            at = _shift(zone, shown - round((late or timedelta()).total_seconds()), at)
        if at > last:
            yield at
            last = at


def real(calendar: Calendar, zone: tzinfo, after: int) -> Iterator[int]:
    """
    Walk each moment at which the clock shows a wall of the calendar.

    What the clock skips is not, what it shows twice is twice.
    """
    at = after
    while True:
        offset = _offset(zone, at)
        for wall in calendar(_wall(at, offset)):
            then = _seconds(wall) - offset
            # A clock that was put back shows again what has been; so each shift counts.
            for look in (min(then, at + _DAY), then):
                if _offset(zone, look) != offset:
                    then = _shift(zone, at, look)
                    break
            else:
                yield then
                at = then
                continue
            at = then - 1
            break
        else:
            return
        # On with the other offset, from one second before it.
        offset = _offset(zone, at + 1)
        first = next(iter(calendar(_wall(at, offset))), None)
        if first is not None and _seconds(first) - offset == at + 1:
            yield at + 1
        at += 1
