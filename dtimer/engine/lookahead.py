"""
The look-ahead queue: events that wait for their due time, or for a free handler thread.

A claim takes a round trip, which makes an event late that is already due. So a claim also takes
events that fall due within the next milliseconds, and the node waits for their due time here.
No event starts early: the script computes the time that is left, and the node counts it from the
arrival of the reply, which is later.
"""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Container, Sequence

from dtimer.engine.lease import Lease
from dtimer.model.options import Options

# The seconds that a due event waits for a handler thread on a node without other nodes. The same
# node would claim a released event again. The wait is limited, because the event cannot be
# cancelled or rescheduled meanwhile.
_ALONE_GRACE = 1.0

# At most this fraction (1/10) of a lease may pass before the handler starts.
_LEASE_FRACTION = 10


def ahead_us(options: Options) -> int:
    """Return how far ahead a node of these *options* claims, in µs."""
    # A test's clock does not advance while a thread waits, so an event would start early.
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
        self.ahead_us = ahead_us(options)
        #: The seconds that a due event waits for a thread; then another node may have one free.
        self.grace = self.ahead_us / 1e6
        #: The same for a node without other nodes.
        self.alone_patience = max(
            self.grace,
            min(_ALONE_GRACE, options.lease / 1e6 / _LEASE_FRACTION) if self.ahead_us else 0,
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

    def pop_due(self, most: int) -> list[Lease]:
        """Remove and return the leases of at *most* that many due events."""
        taken: list[Lease] = []
        now = time.monotonic()
        while len(taken) < most and (first := self._remove_first(now)):
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
        late = time.monotonic() - seconds
        given: list[Lease] = []
        while first := self._remove_first(late):
            given.append(first[4])
        return given

    def remove(self, ids: Container[str] | None = None) -> list[Lease]:
        """Remove and return the leases of these *ids*, or all of them."""
        wanted = [e for e in list(self._kept) if ids is None or e[1] in ids]
        return [entry[4] for entry in wanted if self._remove(entry)]

    def holds(self) -> list[Lease]:
        """Return all leases in the queue."""
        return [entry[4] for entry in list(self._kept)]

    def _remove_first(self, by: float) -> _Entry | None:
        """Remove and return the first entry if it starts no later than *by*; else return None."""
        kept = self._kept
        while kept:
            # Without `_remove` and `suppress`, which would cost a quick handler several percent.
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
            # Each entry has a number of its own, so leases are never compared.
            self._kept.remove(entry)
        except ValueError:
            return False
        return True
