"""
How late events were handed out, as a histogram that the scripts keep.

Two buckets to each doubling: bucket *i* counts what was at least ``2**(i/2) - 1`` µs late
and less than bucket *i + 1*. So a percentile is known to within 42 %, in bounded space.
"""

from __future__ import annotations

from collections.abc import Sequence

#: The last bucket begins at twelve days, and has no end. As in lua/turn.lua and stats.lua.
BUCKETS = 81


def percentile(counts: Sequence[int], share: float) -> float | None:
    """
    Return the lateness in ms that *share* (0 to 1) of the events did not exceed.

    The upper end of its bucket: the true value is not greater. None when nothing was counted.
    """
    total = sum(counts)
    if not total:
        return None
    rank, seen = share * total, 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= rank:
            return (2 ** ((bucket + 1) / 2) - 1) / 1000
    return None


def grown(new: Sequence[int], old: Sequence[int]) -> list[int]:
    """Return what was counted since; all of it where the counting began anew."""
    if any(n < o for n, o in zip(new, old, strict=False)) or len(old) != len(new):
        return list(new)
    return [n - o for n, o in zip(new, old, strict=True)]
