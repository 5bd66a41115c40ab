"""The leases that a node holds, and the settlements that it has yet to send to the store."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Collection, Iterable, Sequence

from dtimer import log as messages
from dtimer.engine.batching import MAX_ADVANCE_SECONDS
from dtimer.engine.clock import boottime
from dtimer.engine.lease import Lease, trusted_until
from dtimer.engine.ports import Announcements, InlineClaims, LeaseStore
from dtimer.engine.unreadable import UnreadableEvents
from dtimer.errors import LeaseLost, PayloadError, UnreadablePayload
from dtimer.log import Log
from dtimer.model.claims import Claim, Outcome, Settlement, Verdict
from dtimer.model.options import Options
from dtimer.model.outcomes import Reason

#: The most settlements that one claim carries, because a script must stay short.
MOST_SETTLEMENTS = 250

# The most characters of error text in them, because a slow connection takes long to send these.
# Few settlements always stay below it: the runner bounds each text (engine/batch_runner.py).
_MOST_TEXT, _FEW = 50_000, 20

# The records of the outcomes. A stale outcome means that the lease was lost.
_MESSAGES = {Outcome.DEAD: messages.BURIED, Outcome.CANCELLED: messages.CANCELLED}
_DONE = {
    (Verdict.CONFIRM, Outcome.DONE): messages.CONFIRMED,
    (Verdict.RETRY, Outcome.DONE): messages.RETRIED,
    (Verdict.SNOOZE, Outcome.DONE): messages.SNOOZED,
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
        store: Settles and extends leases immediately.
        announcements: Emits the outcomes.
        log: The node's log.
    """

    def __init__(
        self,
        node: str,
        options: Options,
        store: LeaseStore,
        announcements: Announcements,
        log: Log,
    ) -> None:
        self._log = log
        self._node = node
        self._options = options
        self._store = store
        self._announcements = announcements
        #: The events that this node cannot open.
        self.unreadable: UnreadableEvents = UnreadableEvents(announcements)
        self._leases: dict[int, Lease] = {}
        self._settlements: list[Settlement] = []
        self._unsettled_since = 0.0
        #: True if there is a single handler thread: it starts events in the order of their due
        #: times.
        self.in_order: bool = options.concurrency == 1
        #: With a single handler thread, True after a release until a claim carries all releases.
        #: Meanwhile the node releases all events that wait, because they may be due after the
        #: released one.
        self.must_release_waiting: bool = False
        #: True from a call of `Event` that has made a dead letter until the claimer trims these.
        self.must_trim: bool = False
        #: Carries settlements while their batch goes on. The claimer sets it.
        self.carrier: InlineClaims | None = None

    def carry_soon(self) -> None:
        """Have a claim carry the settlements soon, although the batch of these events goes on."""
        if self.carrier is not None:
            self.carrier.carry_soon()

    def grant(self, claims: Sequence[Claim], sent: float, unread_ms: float = 0.0) -> list[Lease]:
        """
        Add and return the leases of *claims*, except of those whose payload cannot be decoded.

        Corrupt events become dead letters. Events that another node may open are snoozed.

        Args:
            claims: The events that a claim got.
            sent: When the claim was sent, on the monotonic clock.
            unread_ms: For how long its reply may have waited unread.
        """
        trusted = trusted_until(sent, self._options.lease)
        # Add the leases only when all are complete. If this fails half-way, no event is started,
        # and the heartbeat must not renew the leases.
        leases: list[Lease] = []
        for claim in claims:
            lease = Lease(claim, self._options, self._store, self, trusted)
            try:
                lease.decode(unread_ms)
            except UnreadablePayload as e:
                self._settle_unread(lease, self.unreadable.settlement(claim, e))
                continue
            except PayloadError as e:
                corrupt = lease.settlement(Verdict.BURY, error=str(e), reason=Reason.CORRUPT)
                self._settle_unread(lease, corrupt)
                continue
            # A test's clock does not advance while an event waits.
            if claim.expires_us is not None and self._options.now is None:
                left = (claim.expires_us - claim.claimed_us) / 1e6
                lease.event_expires_at = boottime() - (time.monotonic() - sent) + left
            leases.append(lease)
        self._add(leases)
        return leases

    def _settle_unread(self, lease: Lease, settlement: Settlement) -> None:
        """Settle a lease whose event cannot be made."""
        lease.reserve(settlement.verdict)
        self._add([lease])
        self.settle([settlement])

    def _add(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._leases[lease.claim.token] = lease

    def drop(self, leases: Sequence[Lease]) -> None:
        """Forget *leases*, so that they are not renewed and expire."""
        for lease in leases:
            self._leases.pop(lease.claim.token, None)

    def reserve(self, leases: Sequence[Lease], verdict: Verdict) -> list[Lease]:
        """Reserve *leases* for this caller; return those that it must now settle."""
        taken = [lease for lease in leases if lease.reserve(verdict)]
        if len(taken) < len(leases):
            # Another thread is settling the other leases, through a method of `Event`. This call
            # has given up waiting for it if a lease is `abandoned`. If the other thread then
            # fails, no thread settles the lease. It must expire, so do not renew it.
            self.drop([lease for lease in leases if lease.abandoned])
        return taken

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Have the next claim carry *settlements*."""
        if not self._settlements:
            self._unsettled_since = time.monotonic()
        self._settlements.extend(settlements)

    def settle_as(self, leases: Sequence[Lease], verdict: Verdict) -> None:
        """Settle those of *leases* that no other party settles."""
        self.settle([lease.settlement(verdict) for lease in self.reserve(leases, verdict)])

    def release(self, leases: Sequence[Lease]) -> None:
        """Release *leases*. With a single handler thread, the events that wait must follow."""
        self.settle_as(leases, Verdict.RELEASE)
        # Set the flag after the release. A claim may reset it, and a claim between the two steps
        # would reset it before the release exists. In this order, such a claim carries the
        # release, and the flag only causes some needless releases.
        self.must_release_waiting = self.in_order

    def abandon(self) -> None:
        """Retry the events of handlers that still run; the attempt counts. The node leaves now."""
        for lease in list(self._leases.values()):
            if lease.reserve(Verdict.RETRY):
                lease.mark_lost()
                error = "the node left while the handler was running"
                self.settle([lease.settlement(Verdict.RETRY, error=error)])

    def take_settlements(self) -> list[Settlement]:
        """Remove and return the settlements that the next claim carries."""
        # Clear the mark before taking the settlements. A handler thread may now add a release and
        # set the mark again. If the next claim carries that release, it must find the mark.
        must_release_waiting, self.must_release_waiting = self.must_release_waiting, False
        taken = self._settlements[:MOST_SETTLEMENTS]
        if len(taken) > _FEW:
            sizes = itertools.accumulate([len(s.error) for s in taken])
            del taken[max(1, bisect.bisect_right(list(sizes), _MOST_TEXT)) :]
        # By their number: other threads may have added settlements meanwhile.
        del self._settlements[: len(taken)]
        if must_release_waiting and self._settlements:
            self.must_release_waiting = True
        return taken

    @property
    def exceed_a_claim(self) -> bool:
        """True if more settlements wait than one claim carries."""
        return len(self._settlements) > MOST_SETTLEMENTS

    def linger(self) -> float | None:
        """Return for how many seconds settlements may wait for others; None to send them now."""
        waited = time.monotonic() - self._unsettled_since
        if waited < MAX_ADVANCE_SECONDS and len(self._settlements) < MOST_SETTLEMENTS:
            return MAX_ADVANCE_SECONDS - waited
        return None

    @property
    def unsettled(self) -> bool:
        """True while settlements wait for a claim to carry them."""
        return bool(self._settlements)

    def settled(self, settlements: Sequence[Settlement], results: Sequence[Outcome]) -> None:
        """Record the outcomes of the settlements that a claim carried."""
        if self._log.debugging:
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
            if stale and self.mark_lost(lease):
                lost = LeaseLost(settlement.id, self._node, settlement.token)
                self._announcements.announce("error", lost)
            self._finish(lease, result)

    def held(self) -> list[Lease]:
        """
        Return the unsettled leases, except those whose handler overran ``max_run``.

        A lease that was lost is left out too: no renewal brings it back.
        """
        now = time.monotonic()
        leases = list(self._leases.values())
        return [
            each
            for each in leases
            if not (each.settled or each.known_lost or self._overran(each, now))
        ]

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

    def mark_lost(self, lease: Lease) -> bool:
        """
        Record that the server refused to renew or to settle a lease: this node lost it.

        Returns:
            True if the loss is unexpected and not recorded before. It is expected if this process
            itself has replaced or settled the event.
        """
        self._log_lost(lease)
        unexpected = lease.mark_lost() and not lease.superseded
        if unexpected:
            self._announcements.announce("lease_lost", lease.event)
        return unexpected

    def _log_outcomes(self, outcomes: Iterable[tuple[str, Verdict, Outcome]]) -> None:
        """Log one record for each kind of outcome."""
        ids: dict[messages.Message, list[str]] = {}
        for id, verdict, result in outcomes:
            if message := _MESSAGES.get(result) or _DONE.get((verdict, result)):
                ids.setdefault(message, []).append(id)
        for message, some in ids.items():
            self._log.add_events(message, some)

    def _log_lost(self, lease: Lease) -> None:
        """Log once that a lease was lost, unless this process has replaced the event."""
        if self._log.debugging and not (lease.superseded or lease.logged_lost):
            lease.logged_lost = True
            self._log.add_events(messages.LEASE_LOST, [lease.claim.id])

    def ended(self, lease: Lease, outcome: Outcome) -> None:
        """Record the outcome of a call of `Event` that has settled *lease*."""
        if self._log.debugging and (verdict := lease.verdict):
            if outcome is Outcome.STALE:
                self._log_lost(lease)
            self._log_outcomes([(lease.claim.id, verdict, outcome)])
        if outcome is Outcome.DEAD:
            self.must_trim = True
        self._finish(lease, outcome)

    def _finish(self, lease: Lease, result: Outcome) -> None:
        self._leases.pop(lease.claim.token, None)
        if result is Outcome.STALE:
            return
        if result is Outcome.DEAD:
            self._announcements.announce("buried", lease.claim.id)
        elif lease.verdict is Verdict.RETRY and result is Outcome.DONE:
            self._announcements.announce("retry", lease.event)
