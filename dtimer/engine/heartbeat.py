"""
The heartbeat: renews all unsettled leases, three times in the length of a lease.

Events that wait for a handler thread have leases too. The heartbeat has no thread of its own: the
claim cycle calls `Heartbeat.beat` after each claim, and the wait for the next claim ends in time.
"""

from __future__ import annotations

import time

from dtimer.engine.lease import Lease
from dtimer.engine.leases import LeaseTable
from dtimer.engine.ports import ClaimStore
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import Renewal
from dtimer.model.options import MOST_CLAIMS

# Heartbeats in the length of a lease. Two of the three may be lost.
_BEATS = 3


class Heartbeat:
    """
    Renews the leases of a table. Used by one thread at a time.

    Args:
        store: Renews leases in the store.
        leases: The leases that the node holds.
        lease_us: The length of a lease.
    """

    def __init__(self, store: ClaimStore, leases: LeaseTable, lease_us: int) -> None:
        self._store = store
        self._leases = leases
        self._interval = lease_us / 1e6 / _BEATS
        #: When the next heartbeat is due, on the monotonic clock.
        self.due: float = 0.0

    def leases_began(self, sent: float) -> None:
        """Record that leases were granted to a request that was sent at *sent*."""
        if not self._leases.held():
            self.due = sent + self._interval

    def renew_soon(self) -> None:
        """Make the next heartbeat due now."""
        self.due = 0.0

    def beat(self) -> None:
        """Renew the leases of the table if a heartbeat is due."""
        now = time.monotonic()
        if now < self.due:
            return
        # Group the leases by length, because a handler may have extended its own.
        groups: dict[int, list[Lease]] = {}
        for lease in self._leases.held():
            groups.setdefault(lease.lease_us(now), []).append(lease)
        for lease_us, leases in groups.items():
            # A request with more than MOST_CLAIMS leases would block the other clients of Redis.
            for i in range(0, len(leases), MOST_CLAIMS):
                self._renew(leases[i : i + MOST_CLAIMS], lease_us)
        # Only after success: a failed renewal is repeated at once, not a third of a lease later.
        self.due = now + self._interval

    def _renew(self, leases: list[Lease], lease_us: int) -> None:
        if armed:
            reached("heartbeat.sending")
        sent = time.monotonic()
        kept = self._store.renew([lease.key for lease in leases], lease_us)
        for lease, still in zip(leases, kept, strict=True):
            if still:
                lease.renewed(sent, lease_us)
                if still is Renewal.CANCELLED:
                    lease.mark_cancelled()
                if (longer := lease.lease_us(sent)) > lease_us and not lease.settled:
                    # The handler extended its lease while this request was under way, and
                    # this request has shortened the lease again.
                    self._renew([lease], longer)
            elif not lease.settled:
                self._leases.mark_lost(lease)
