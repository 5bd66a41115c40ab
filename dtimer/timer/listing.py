"""Check the arguments of the calls that list events, before any I/O."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TypeVar

from dtimer.model.options import check_count
from dtimer.model.times import Duration, duration_us

T = TypeVar("T")


def due_bounds(offset: Duration | None, duration: Duration | None) -> tuple[str, str]:
    """Return the bounds of the due times of *offset* and *duration*, in the form of scripts."""
    start = None if offset is None else duration_us(offset, "offset")
    high = "+inf"
    if duration is not None:
        high = f"+{(start or 0) + duration_us(duration, 'duration')}"
    return "-inf" if start is None else f"+{start}", high


def limited(found: Iterator[T], limit: int | None) -> Iterator[T]:
    """Return an iterator over the first *limit* items of *found*, or over all with None."""
    if limit is not None:
        check_count(limit, "limit", 0, 2**53)
    return itertools.islice(found, limit)
