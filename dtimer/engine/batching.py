"""
Decide how many events a claim asks for, and how far ahead of their due time.

Nothing here has a thread, a clock or a lock: numbers go in, and numbers come out.

More than one batch for each handler thread pays if events are overdue and handlers are quick: a
claim may take as long as a handler, and costs one script call, however many events it takes. But no
other node can start the events that this node has claimed. So a claim takes no more than the
threads handle within a few milliseconds. It begins with one batch a thread, until it is known that
there is a backlog and that handlers are quick.
"""

from __future__ import annotations

from dtimer.engine.lag import Lag
from dtimer.model.options import MOST_CLAIMS

#: The handler threads may have at most this many seconds of work in advance. Settlements wait no
#: longer than this for a claim that carries them.
MAX_ADVANCE_SECONDS = 0.005

# The most batches for each thread.
_MOST = 64
# The number of batches after two claims in a row that got all the events they asked for.
_BACKLOG = 4

# By this factor a batch changes the estimate of the median.
_STEP = 1.25


def claim_size(
    slots: int, demand: int, waiting: int, batches: int, ahead_us: int, *, late: bool = False
) -> tuple[int, int]:
    """
    Return how many events to claim, and how far ahead of their due time, in µs.

    Args:
        slots: How many events the free handler threads can start now.
        demand: How many events the listeners or readers can take.
        waiting: How many events the look-ahead queue has.
        batches: How many batches to claim for each free handler thread.
        ahead_us: How far ahead the node may claim.
        late: Whether this node's threads lag.
    """
    slots = min(slots, demand)
    # Every event in the look-ahead queue will need a thread once it is due. Until then the
    # threads may run events that are due earlier.
    spare = slots - waiting
    if spare <= 0:
        return slots, 0
    if batches > 1:
        # In a backlog there are due events enough. A node that lags looks ahead, too: it might be
        # late to claim the next event alone.
        return min(spare * batches, demand - waiting, MOST_CLAIMS), ahead_us if late else 0
    return spare, ahead_us


def claim_size_while_busy(most: int, demand: int, limit: int, claimed: int, waiting: int) -> int:
    """
    Return how many events to claim while the threads run those that were just claimed.

    Args:
        most: The most events that one thread handles in time. One thread, not each of them: quick
            handlers mostly hold the interpreter lock, so that only one runs at a time.
        demand: How many events the listeners or readers can take besides those that are handled.
        limit: How many events the last claim asked for.
        claimed: How many it got.
        waiting: How many events the look-ahead queue has.
    """
    return max(0, min(min(most, demand - claimed) - waiting, 2 * limit, MOST_CLAIMS))


class Batching:
    """
    Learns from claims and handlers how many batches to claim.

    Safe for any thread, without a lock: of two records at the same time one may be lost.
    """

    def __init__(self, lag: Lag, *, allowed: bool) -> None:
        self._lag = lag
        self._allowed = allowed
        # 1, doubled with each claim in a row that got all the events it asked for.
        self._streak = 1
        # The seconds that a batch takes: the longest of recent ones. None before the first end.
        self._handler_seconds: float | None = None
        # An estimate of the median time of a batch, in seconds. In a process that lags, a few
        # batches take long only because their thread had to wait for the interpreter's lock.
        self._usual = MAX_ADVANCE_SECONDS

    def handler_took(self, seconds: float) -> None:
        """Record how long a handler thread ran a batch."""
        self._handler_seconds = max(seconds, 0.9 * (self._handler_seconds or 0.0))
        self._usual *= _STEP if seconds > self._usual else 1 / _STEP

    def claimed_too_many(self) -> None:
        """Record that events claimed in advance waited too long for a thread."""
        if self._lag.late:
            return
        self._streak = 1
        self._handler_seconds = 2 * (self._handler_seconds or MAX_ADVANCE_SECONDS)

    def claim_answered(self, limit: int, claimed: int, *, overdue: bool) -> None:
        """
        Record the result of a claim.

        Args:
            limit: How many events the claim asked for.
            claimed: How many it got.
            overdue: Whether all of them were due already.
        """
        if limit:
            full = self._allowed and overdue and claimed == limit
            self._streak = min(2 * self._streak, _MOST) if full else 1

    @property
    def in_backlog(self) -> int:
        """
        How many batches to claim for a busy handler thread.

        Zero unless the last two claims were filled and handlers return within 5 ms: one full
        claim does not make a backlog.
        """
        took = self._handler_seconds
        if self._streak < _BACKLOG or took is None or took > MAX_ADVANCE_SECONDS:
            return 0
        return self.batches

    @property
    def batches(self) -> int:
        """How many batches to claim for each free handler thread."""
        took = self._handler_seconds
        if took is None:
            return 1
        most, advance = self._streak, MAX_ADVANCE_SECONDS
        if self._lag.late and self._allowed:
            # Claim all events that are due within the lag at once: a claim for each takes longer.
            most, took, advance = _MOST, self._usual, max(advance, self._lag.seconds)
        elif most == 1:
            return 1
        return max(1, min(most, int(advance / max(took, 1e-6))))
