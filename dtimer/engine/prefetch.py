"""
How many batches a turn claims for each hand: more than one where events are overdue and handlers
are quick.

A turn takes as long as many a handler does, and its cost is that of one script however much it
claims. But what a node has claimed no other node can have, so it is no more than the hands get
done within a few milliseconds, and it is begun with one: whether there is more than that, and how
long handlers take, is seen first.
"""

from __future__ import annotations

#: For so many seconds the hands may have work in advance; and settlements wait no longer for a
#: turn while they do.
IN_ADVANCE = 0.005

_MOST = 64
# Two turns in a row that were given all that they asked for.
_BACKLOG = 4


class Prefetch:
    """For any thread, without a lock: of two notes at the same time one may be lost."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._streak = 1
        # What a batch takes: as long as the longest of late. None before one has ended.
        self._took: float | None = None

    def took(self, seconds: float) -> None:
        """Note how long a hand was busy with a batch."""
        self._took = max(seconds, 0.9 * (self._took or 0.0))

    def too_much(self) -> None:
        """Note that hands did not come to what they had in advance."""
        self._streak = 1
        self._took = 2 * (self._took or IN_ADVANCE)

    def answered(self, limit: int, claimed: int, *, overdue: bool) -> None:
        """Note how much of what a turn asked for it was given, and whether that was overdue."""
        if limit:
            full = self._allowed and overdue and claimed == limit
            self._streak = min(2 * self._streak, _MOST) if full else 1

    @property
    def meanwhile(self) -> int:
        """
        How many batches to claim for each hand while it has one: 0 where that takes it long, or
        where it is not known to be a backlog. One event that was due says nothing of a second.
        """
        took = self._took
        if self._streak < _BACKLOG or took is None or took > IN_ADVANCE:
            return 0
        return self.batches

    @property
    def batches(self) -> int:
        """How many batches to claim for each free hand."""
        took = self._took
        if self._streak == 1 or took is None:
            return 1
        return max(1, min(self._streak, int(IN_ADVANCE / max(took, 1e-6))))
