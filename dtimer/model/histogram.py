"""
A histogram of how late events were delivered, which the scripts count.

Two buckets for each doubling: bucket *i* counts the events that were at least ``2**(i/2) - 1`` µs
late, and less late than bucket *i + 1* begins. So a percentile is accurate to 42 %, in bounded
space.
"""

from __future__ import annotations

from collections.abc import Sequence

#: The last bucket begins at twelve days and is open-ended. lua/claim.lua and lua/stats.lua depend
#: on this number.
BUCKETS = 81


def percentile(counts: Sequence[int], share: float) -> float | None:
    """
    Return the lateness in ms that a *share* (0 to 1) of the events did not exceed.

    Returns:
        The upper end of the bucket, so that the true value is never greater. None if no event was
        counted.
    """
    total = sum(counts)
    if not total:
        return None
    rank, seen = share * total, 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= rank:
            return upper_end(bucket)
    return None


def upper_end(bucket: int) -> float:
    """Return the lateness in ms below which the events of a *bucket* were."""
    return (2 ** ((bucket + 1) / 2) - 1) / 1000


def increase(new: Sequence[int], old: Sequence[int]) -> list[int]:
    """Return the counts since *old*, or all of *new* if the counters were reset in between."""
    if any(n < o for n, o in zip(new, old, strict=False)) or len(old) != len(new):
        return list(new)
    return [n - o for n, o in zip(new, old, strict=True)]
