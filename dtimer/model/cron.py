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
    return _whole_seconds(datetime.fromtimestamp(at, UTC).astimezone(zone).utcoffset())


def _whole_seconds(offset: timedelta | None) -> int:
    return 0 if offset is None else round(offset.total_seconds())


def _offset_change(zone: tzinfo, low: int, high: int) -> int:
    """
    Return a moment at which the offset of a zone changes.

    The change lies after *low* and not after *high*. The offsets at these two must differ.
    """
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
        # If the clock skips or repeats this time, two offsets are possible: the one before the
        # change and the one after it. Else the two are equal.
        offset_before, offset_after = (
            _whole_seconds(local.replace(tzinfo=zone, fold=fold).utcoffset()) for fold in (0, 1)
        )
        local_seconds = _seconds(local)
        at = local_seconds - offset_before
        if offset_before != offset_after and _offset(zone, at) + at != local_seconds:
            # The clock skips this time. Computed with the offset before the change, the moment
            # lies after the gap. Computed with the other offset, it lies before the gap.
            at = _offset_change(zone, local_seconds - offset_after, at)
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
            # If the offset changes before the next time, *then* is wrong. A clock that is set back
            # soon after *at* can also repeat earlier times, so check the offset a day later too.
            for moment in (min(then, at + _DAY), then):
                if _offset(zone, moment) != offset:
                    then = _offset_change(zone, at, moment)
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
