"""The heartbeat: renews the leases of running handlers, three times in the length of a lease."""

from __future__ import annotations

import time
from typing import Protocol

from dtimer.engine.book import Book
from dtimer.engine.hold import Hold
from dtimer.faultpoints import armed, reached
from dtimer.model.options import MOST_CLAIMS

# Heartbeats in the length of a lease. Two of the three may be lost.
_BEATS = 3


class Renewals(Protocol):
    """Renews leases."""

    def extend(self, held: list[tuple[str, int]], lease_us: int) -> list[bool]:
        """Renew leases, given as (id, token); return which of them this node still holds."""
        ...


class Heart:
    """
    Renews the leases of a table. Used by one thread at a time.

    Args:
        renewals: Renews leases in the store.
        book: The leases that the node holds.
        lease_us: The length of a lease.
    """

    def __init__(self, renewals: Renewals, book: Book, lease_us: int) -> None:
        self._renewals = renewals
        self._book = book
        self._pause = lease_us / 1e6 / _BEATS
        #: When the next heartbeat is due, on the monotonic clock.
        self.due = 0.0

    def begin(self, sent: float) -> None:
        """Record that leases were granted to a request that was sent at *sent*."""
        if not self._book.held():
            self.due = sent + self._pause

    def hasten(self) -> None:
        """Make the next heartbeat due now."""
        self.due = 0.0

    def beat(self) -> None:
        """Renew the leases of the table if a heartbeat is due."""
        now = time.monotonic()
        if now < self.due:
            return
        # Group the leases by length, because a handler may have extended its own.
        groups: dict[int, list[Hold]] = {}
        for hold in self._book.held():
            groups.setdefault(hold.lease_us(now), []).append(hold)
        for lease_us, holds in groups.items():
            for i in range(0, len(holds), MOST_CLAIMS):
                self._renew(holds[i : i + MOST_CLAIMS], lease_us)
        # Only after success: a failed renewal is repeated at once, not a third of a lease later.
        self.due = now + self._pause

    def _renew(self, holds: list[Hold], lease_us: int) -> None:
        if armed:
            reached("beat.sending")
        sent = time.monotonic()
        kept = self._renewals.extend([hold.key for hold in holds], lease_us)
        for hold, still in zip(holds, kept, strict=True):
            if still:
                hold.renewed(sent, lease_us)
                if (longer := hold.lease_us(sent)) > lease_us and not hold.settled:
                    # The handler extended its lease while this request was under way, and
                    # this request has shortened the lease again.
                    self._renew([hold], longer)
            elif not hold.settled:
                self._book.mark_lost(hold)
