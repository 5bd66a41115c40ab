"""The heart: renews the leases of what runs, several times in the length of one."""

from __future__ import annotations

import time
from typing import Protocol

from dtimer.engine.book import Book
from dtimer.engine.hold import Hold
from dtimer.faultpoints import armed, reached
from dtimer.model.options import MOST_CLAIMS

# Heartbeats come this often in a lease: two may be lost.
_BEATS = 3


class Renewals(Protocol):
    """What the heart asks of the store."""

    def extend(self, held: list[tuple[str, int]], lease_us: int) -> list[bool]:
        """Renew leases, and tell which are still held."""
        ...


class Heart:
    """
    Args:
        renewals: Asks the store.
        book: Tells what is held.
        lease_us: The length of a lease.
    """

    def __init__(self, renewals: Renewals, book: Book, lease_us: int) -> None:
        self._renewals = renewals
        self._book = book
        self._pause = lease_us / 1e6 / _BEATS
        #: When the next beat is due, on the monotonic clock.
        self.due = 0.0

    def begin(self, sent: float) -> None:
        """Note that leases were granted to a request that went out at *sent*."""
        if not self._book.held():
            self.due = sent + self._pause

    def hasten(self) -> None:
        """Have the next beat at once."""
        self.due = 0.0

    def beat(self) -> None:
        """Renew the leases of what runs, when it is time."""
        now = time.monotonic()
        if now < self.due:
            return
        # By the length of the lease: who asked for more than the rest keeps it.
        groups: dict[int, list[Hold]] = {}
        for hold in self._book.held():
            groups.setdefault(hold.lease_us(now), []).append(hold)
        for lease_us, holds in groups.items():
            for i in range(0, len(holds), MOST_CLAIMS):
                self._renew(holds[i : i + MOST_CLAIMS], lease_us)
        # Not before: what could not be renewed is tried again at once, and not a third of
        # a lease later.
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
                    # Its handler has asked for more since this was sent, and this undid it.
                    self._renew([hold], longer)
            elif not hold.settled:
                self._book.lose(hold)
