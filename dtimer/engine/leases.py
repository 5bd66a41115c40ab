"""The leases that a node holds, and the settlements that it has yet to send to the store."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from dtimer import log as messages
from dtimer.engine.lease import Lease
from dtimer.errors import LeaseLost
from dtimer.log import Log
from dtimer.model.claims import Outcome, Settlement, Verdict
from dtimer.model.options import Options

#: The most settlements that one claim carries, because a script must stay short.
MOST_SETTLEMENTS = 250

# The most characters of error text in them, because a slow connection takes long to send these.
# Few settlements always stay below it: the handler pool bounds each text (engine/handler_pool.py).
_MOST_TEXT, _FEW = 50_000, 20

# The records of the outcomes. A stale outcome means that the lease was lost.
_MESSAGES = {Outcome.DEAD: messages.BURIED, Outcome.CANCELLED: messages.CANCELLED}
_DONE = {
    (Verdict.CONFIRM, Outcome.DONE): messages.CONFIRMED,
    (Verdict.RETRY, Outcome.DONE): messages.RETRIED,
    (Verdict.RELEASE, Outcome.DONE): messages.RELEASED,
    (Verdict.BURY, Outcome.DONE): messages.BURIED,
}


class LeaseTable:
    """
    Keeps the node's leases and unsent settlements. Safe for any thread, without a lock.

    Every change is one step of the interpreter. A signal handler that interrupts a post here may
    post itself, or leave, which waits for threads that need this table: a lock would deadlock.

    Args:
        node: The node's id, for messages.
        options: The node's options.
        announce: Queues something to be emitted on the callback thread.
        log: The node's log.
    """

    def __init__(
        self, node: str, options: Options, announce: Callable[..., None], log: Log
    ) -> None:
        #: The node's log.
        self.log = log
        self._node = node
        self._options = options
        self._announce = announce
        self._leases: dict[int, Lease] = {}
        self._settlements: list[Settlement] = []
        self._unsettled_since = 0.0
        # Whether the last claim could not carry all settlements.
        self._left_over = False

    def _add(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._leases[lease.claim.token] = lease

    def _remove(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._leases.pop(lease.claim.token, None)

    def _settle(self, settlements: Sequence[Settlement]) -> None:
        if not self._settlements:
            self._unsettled_since = time.monotonic()
        self._settlements.extend(settlements)

    def take_settlements(self) -> list[Settlement]:
        """Remove and return the settlements that the next claim carries."""
        taken = self._settlements[:MOST_SETTLEMENTS]
        if len(taken) > _FEW:
            sizes = itertools.accumulate([len(s.error) for s in taken])
            del taken[max(1, bisect.bisect_right(list(sizes), _MOST_TEXT)) :]
        # By their number: other threads may have added settlements meanwhile.
        del self._settlements[: len(taken)]
        self._left_over = bool(self._settlements)
        return taken

    @property
    def unsettled(self) -> bool:
        """True while settlements wait for a claim to carry them."""
        return bool(self._settlements)

    def settled(self, settlements: Sequence[Settlement], results: Sequence[Outcome]) -> None:
        """Record the outcomes of the settlements that a claim carried."""
        if self.log.debugging:
            done = zip(settlements, results, strict=False)
            self._log_outcomes([(s.id, s.verdict, result) for s, result in done])
        unusual: list[tuple[Settlement, Outcome, Lease]] = []
        for settlement, result in zip(settlements, results, strict=False):
            lease = self._leases.pop(settlement.token, None)
            # The common case: a confirm that was accepted needs no more work.
            plain = result is Outcome.DONE and settlement.verdict is Verdict.CONFIRM
            if lease is not None and not plain:
                unusual.append((settlement, result, lease))
        for settlement, result, lease in unusual:
            stale = result is Outcome.STALE and settlement.verdict is not Verdict.RELEASE
            if stale:
                self._log_lost(lease)
            # Not an error if this process itself replaced or settled the event.
            if stale and lease.mark_lost() and not lease.superseded:
                self._announce("lease_lost", lease.event)
                lost = LeaseLost(settlement.id, self._node, settlement.token)
                self._announce("error", lost)
            self._finish(lease, result)

    def held(self) -> list[Lease]:
        """Return the unsettled leases, except those whose handler overran ``max_run``."""
        now = time.monotonic()
        leases = list(self._leases.values())
        return [each for each in leases if not (each.settled or self._overran(each, now))]

    def _overran(self, lease: Lease, now: float) -> bool:
        limit = self._options.max_run
        return limit is not None and lease.started is not None and now > lease.started + limit / 1e6

    def stuck(self) -> int:
        """Return how many events have handlers that have run longer than ``max_run``."""
        now = time.monotonic()
        return sum(self._overran(lease, now) for lease in list(self._leases.values()))

    def superseded(self, ids: Collection[str]) -> None:
        """Record that this process replaces the events of these ids."""
        for lease in list(self._leases.values()):
            if lease.claim.id in ids:
                lease.superseded = True

    def mark_lost(self, lease: Lease) -> None:
        """Record that the server refused to renew a lease: this node no longer holds it."""
        self._log_lost(lease)
        if lease.mark_lost() and not lease.superseded:
            self._announce("lease_lost", lease.event)

    def _log_outcomes(self, outcomes: Iterable[tuple[str, Verdict, Outcome]]) -> None:
        """Log one record for each kind of outcome."""
        ids: dict[messages.Message, list[str]] = {}
        for id, verdict, result in outcomes:
            if message := _MESSAGES.get(result) or _DONE.get((verdict, result)):
                ids.setdefault(message, []).append(id)
        for message, some in ids.items():
            self.log.add_events(message, some)

    def _log_lost(self, lease: Lease) -> None:
        """Log once that a lease was lost, unless this process has replaced the event."""
        if self.log.debugging and not (lease.superseded or lease.logged_lost):
            lease.logged_lost = True
            self.log.add_events(messages.LEASE_LOST, [lease.claim.id])

    def _ended(self, lease: Lease, result: Outcome) -> None:
        """Record the outcome of a call of `Event` that has settled *lease*."""
        if self.log.debugging and (verdict := lease.verdict):
            if result is Outcome.STALE:
                self._log_lost(lease)
            self._log_outcomes([(lease.claim.id, verdict, result)])
        self._finish(lease, result)

    def _finish(self, lease: Lease, result: Outcome) -> None:
        self._leases.pop(lease.claim.token, None)
        if result is Outcome.STALE:
            return
        if result is Outcome.DEAD:
            self._announce("buried", lease.claim.id)
        elif lease.verdict is Verdict.RETRY and result is Outcome.DONE:
            self._announce("retry", lease.event)
