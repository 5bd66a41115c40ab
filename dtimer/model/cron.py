"""
Converts the local times of a calendar to moments, across changes of the local clock.

A calendar is a function that takes a naive datetime and returns an iterator over the naive
datetimes that follow it. Moments are whole seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo

Calendar = Callable[[datetime], Iterator[datetime]]

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - a local time has no zone
_SECOND = timedelta(seconds=1)
_DAY = 86_400


def _offset(zone: tzinfo, at: int) -> int:
    """Return the offset of a zone's local time from UTC at a moment, in seconds."""
    shown = datetime.fromtimestamp(at, UTC).astimezone(zone).utcoffset()
    return 0 if shown is None else round(shown.total_seconds())


def _offset_change(zone: tzinfo, low: int, high: int) -> int:
    """Return the first moment after *low*, at most *high*, that has another offset than *low*."""
    before = _offset(zone, low)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, middle) == before:
            low = middle
        else:
            high = middle
    return high


def _local_time(at: int, offset: int) -> datetime:
    return _EPOCH + timedelta(seconds=at + offset)


def _seconds(local: datetime) -> int:
    return (local - _EPOCH) // _SECOND


def once_each(calendar: Calendar, zone: tzinfo, after: int) -> Iterator[int]:
    """
    Yield one moment for each local time of a calendar, for expressions with fixed hours.

    A time that the clock skips in spring is yielded at the first moment after the gap. A time that
    the clock repeats in autumn is yielded once, the first time.
    """
    last = after
    for local in calendar(_local_time(after, _offset(zone, after))):
        early, late = (local.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
        shown = _seconds(local)
        at = shown - round((early or timedelta()).total_seconds())
        if early != late and _offset(zone, at) + at != shown:
            # For a skipped time, the later offset gives a moment before the gap, and the earlier
            # offset one after it. Search the change between the two.
            at = _offset_change(zone, shown - round((late or timedelta()).total_seconds()), at)
        if at > last:
            yield at
            last = at


def every_match(calendar: Calendar, zone: tzinfo, after: int) -> Iterator[int]:
    """
    Yield every moment at which the local clock reads one of the calendar's times.

    A time that the clock skips in spring is not yielded. A time that it repeats in autumn is
    yielded twice.
    """
    at = after
    while True:
        offset = _offset(zone, at)
        for local in calendar(_local_time(at, offset)):
            then = _seconds(local) - offset
            # After the clock is set back, earlier local times come again, so look for a change of
            # the offset within a day as well as at the next time.
            for look in (min(then, at + _DAY), then):
                if _offset(zone, look) != offset:
                    then = _offset_change(zone, at, look)
                    break
            else:
                yield then
                at = then
                continue
            at = then - 1
            break
        else:
            return
        # Continue with the new offset, from one second before the change.
        offset = _offset(zone, at + 1)
        first = next(iter(calendar(_local_time(at, offset))), None)
        if first is not None and _seconds(first) - offset == at + 1:
            yield at + 1
        at += 1
