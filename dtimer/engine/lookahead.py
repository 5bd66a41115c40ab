"""
The look-ahead queue: events that wait for their due time, or for a free handler thread.

A claim takes a round trip. An event that is claimed only when it is due is late by this time. So a
claim also takes events that fall due within the next milliseconds, and this queue keeps them until
then. No event starts early: the script computes the time that is left until an event is due. The
node waits for this time from the arrival of the reply, which is later than the computation.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Container, Sequence

from dtimer.engine.lease import Lease
from dtimer.model.options import Options

# The seconds that a due event waits for a handler thread if no other node has joined. A release
# would be useless then, because this node would claim the event again. The wait is limited, because
# an event that is in flight can be neither cancelled nor rescheduled.
_ALONE_PATIENCE = 1.0

# At most this fraction (1/10) of a lease may pass before the handler starts.
_LEASE_FRACTION = 10


def ahead_us(options: Options) -> int:
    """Return how far ahead a node of these *options* claims, in µs."""
    # With the option `now` a test sets the clock. That clock does not advance while the node waits,
    # so an event that was claimed ahead would start before it is due by that clock.
    return 0 if options.now else min(options.look_ahead, options.lease // _LEASE_FRACTION)


#: The due time on the server's clock in µs, the id, a unique number, the moment to start on the
#: monotonic clock, and the lease.
_Entry = tuple[int, str, int, float, Lease]


class LookaheadQueue:
    """
    Keeps leases in the order of their due times. Safe for any thread, without a lock.

    A lease is added or removed in one step of the interpreter, and belongs to the caller that
    removed it. So a signal handler may change the queue while it interrupts another change.
    """

    def __init__(self, options: Options) -> None:
        self.ahead_us: int = ahead_us(options)
        #: The seconds that a due event waits for a free thread. Then it is released, because
        #: another node may have a free thread.
        self.patience: float = self.ahead_us / 1e6
        #: The same if no other node has joined.
        self.alone_patience: float = max(
            self.patience,
            min(_ALONE_PATIENCE, options.lease / 1e6 / _LEASE_FRACTION) if self.ahead_us else 0,
        )
        self._order = itertools.count()
        # Ordered by the server's due times. The moments to start also depend on the time that a
        # reply took, and could be in another order.
        self._kept: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, leases: Sequence[Lease], received_at: float) -> None:
        """Add *leases*, whose reply was received at *received_at* on the monotonic clock."""
        for lease in leases:
            due = lease.claim.due_us
            left = due - lease.claim.claimed_us
            # No claim looks further ahead than ahead_us. If more time is left, the server's
            # clock was set back after the claim, and the event starts now.
            at = received_at + left / 1e6 if 0 < left <= self.ahead_us else received_at
            bisect.insort(self._kept, (due, lease.claim.id, next(self._order), at, lease))

    @property
    def next(self) -> float | None:
        """When the first event starts, on the monotonic clock; None if the queue is empty."""
        try:
            return self._kept[0][3]
        except IndexError:
            return None

    def pop_due(self, limit: int) -> list[Lease]:
        """Remove and return the leases of due events, at most *limit*."""
        taken: list[Lease] = []
        now = time.monotonic()
        while len(taken) < limit and (first := self._remove_first(now)):
            _, _, _, at, lease = first
            if lease.event is not None:
                lease.event.lateness_ms += (now - at) * 1000
            taken.append(lease)
        return taken

    def overdue(self, seconds: float) -> bool:
        """Return whether the first event has been due for *seconds*."""
        due = self.next
        return due is not None and due <= time.monotonic() - seconds

    def pop_overdue(self, seconds: float) -> list[Lease]:
        """Remove and return the leases of events that have been due for *seconds*."""
        latest_start = time.monotonic() - seconds
        taken: list[Lease] = []
        while first := self._remove_first(latest_start):
            taken.append(first[4])
        return taken

    def remove(self, ids: Container[str] | None = None) -> list[Lease]:
        """Remove and return the leases of these *ids*, or all of them."""
        wanted = [e for e in list(self._kept) if ids is None or e[1] in ids]
        return [entry[4] for entry in wanted if self._remove(entry)]

    def leases(self) -> list[Lease]:
        """Return all leases in the queue."""
        return [entry[4] for entry in list(self._kept)]

    def _remove_first(self, by: float) -> _Entry | None:
        """Remove and return the first entry if it starts no later than *by*; else return None."""
        kept = self._kept
        while kept:
            # Inlined, without `contextlib.suppress`: with handlers that return at once, these two
            # calls would cost several percent of all time.
            try:
                first = kept[0]
                if first[3] > by:
                    return None
                kept.remove(first)
            except (IndexError, ValueError):
                # A signal handler, or another thread, has removed the entry meanwhile.
                continue
            return first
        return None

    def _remove(self, entry: _Entry) -> bool:
        """Remove an entry; return False if another caller has already removed it."""
        try:
            # The unique number decides each comparison of entries, so leases are never compared.
            self._kept.remove(entry)
        except ValueError:
            return False
        return True
