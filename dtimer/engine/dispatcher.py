"""
The dispatcher: gives claimed events to free handler threads when they are due.

Rule 1: a claim asks for no more events than free threads can start now. If handlers are quick, it
also asks for those that the threads can start soon.

Rule 2: an event that was claimed ahead occupies no thread before it is due. If no thread is free
then, the event waits for one as long as the node looks ahead (20 ms), or for a second at most if no
other node has joined. After this wait it is released.

Rule 3: a single handler thread starts events in the order of their due times. If one of them is
released, all events that were claimed after it are released, too. The claim that carries these
settlements claims them again.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Collection, Sequence

from dtimer.engine.batching import IN_ADVANCE
from dtimer.engine.clock import boottime
from dtimer.engine.handler_pool import HandlerPool
from dtimer.engine.lease import Lease, trusted_until
from dtimer.engine.leases import MOST_SETTLEMENTS
from dtimer.errors import PayloadError
from dtimer.model.claims import Claim, Settlement, Verdict
from dtimer.model.event import Event
from dtimer.model.options import MOST_CLAIMS
from dtimer.model.payload import decode


class Dispatcher(HandlerPool):
    """Decides how many events to claim, when to start them, and when to release them."""

    def free_slots(self) -> int:
        """Return how many events the free handler threads can start now."""
        free = self._options.concurrency - self._busy
        return max(0, min(free * self.max_events, MOST_CLAIMS))

    def claim_size(self, demand: int) -> tuple[int, int]:
        """
        Return how many events to claim, and how far ahead of their due time, in µs.

        Args:
            demand: How many events the listeners or readers can take.
        """
        if self._recalling and len(self._settlements) > MOST_SETTLEMENTS:
            # This claim cannot carry all releases. Later events that it claims would be started
            # before those that are not released yet.
            return 0, 0
        free_slots = min(self.free_slots(), demand)
        # Every event in the look-ahead queue will need a thread once it is due. Until then the
        # threads may run events that are due earlier.
        spare = free_slots - len(self.lookahead)
        if spare <= 0:
            return free_slots, 0
        batches = self.batching.batches
        if batches > 1:
            return min(spare * batches, demand - len(self.lookahead), MOST_CLAIMS), 0
        return spare, self.lookahead.ahead_us

    def next_claim_size(self, limit: int, claimed: int, demand: int) -> int:
        """
        Return how many events to claim while the threads run those that were just claimed.

        Args:
            limit: How many events the last claim asked for.
            claimed: How many it got.
            demand: How many events the listeners or readers can take.
        """
        if self._recalling:
            return 0
        # For one thread, not for each of them: quick handlers mostly hold the interpreter lock,
        # so that only one runs at a time.
        most = self.max_events * self.batching.in_backlog
        left = demand - self._busy * self.max_events - claimed
        return max(0, min(min(most, left) - len(self.lookahead), 2 * limit, MOST_CLAIMS))

    def accept(
        self,
        seq: int,
        claims: Sequence[Claim],
        sent: float,
        received_at: float,
        *,
        read_late: bool = False,
    ) -> None:
        """
        Give *claims* to the handler threads, oldest first, or keep them until they are due.

        Args:
            seq: The number of the claim that they belong to.
            claims: The claimed events.
            sent: When the claim was sent, on the monotonic clock.
            received_at: When its reply was received, on the monotonic clock.
            read_late: The reply may have arrived earlier than *received_at* and waited unread.
                The time since *sent* then counts as lateness.
        """
        trusted = trusted_until(sent, self._options.lease)
        # Add the leases only when all are complete: if this fails half-way, the heartbeat would
        # renew for ever leases whose events are never started.
        leases = [lease for claim in claims if (lease := self._lease_of(claim, trusted))]
        self._set_expiries(leases, sent)
        for lease in leases if read_late else ():
            if lease.event is not None:
                lease.event.lateness_ms += (received_at - sent) * 1000
        self._add(leases)
        if self._releasing:
            self._settle_as(leases, Verdict.RELEASE)
            return
        self.lookahead.add(leases, received_at)
        if gone := self.superseded_ids.since(seq):
            # The leases are in the queue by now, so a later post finds them there. The ids of
            # earlier posts are found here. In the other order, a post in between would be missed.
            self._release_ids(gone)
        self.start_due()

    def _set_expiries(self, leases: Sequence[Lease], sent: float) -> None:
        """Record until when the events of a claim may start, from the server's times in it."""
        for lease in leases:
            claim = lease.claim
            # A test's clock does not advance while an event waits.
            if claim.expires_us is not None and self._options.now is None:
                left = (claim.expires_us - claim.claimed_us) / 1e6
                lease.expires_at = boottime() - (time.monotonic() - sent) + left

    def start_due(self) -> bool:
        """
        Give due events to free handler threads; release those that waited too long for one.

        Returns:
            True if events were released, so that a claim should carry the releases at once.
        """
        # Also release the events of a reply that was under way when the others were released.
        released = self._release_all() if self._recalling else False
        while self.lookahead and self._busy < self._options.concurrency:
            batch = self.lookahead.pop_due(self.max_events)
            if not batch:
                return released
            # Leases may have expired here, if the machine was suspended. Events with an expiry
            # may have waited too long; the server makes dead letters of them.
            now = boottime()
            if any(now > lease.expires_at or lease.lost(now) for lease in batch):
                self._release(batch)
                released = True
                continue
            try:
                self._enqueue(batch)
            except BaseException:
                # Stop renewing the leases, even if the release below fails. The release spares
                # other nodes the wait for the leases to expire.
                self._remove(batch)
                self._settle_as(batch, Verdict.RELEASE)
                raise
        if not (self.lookahead and self.lookahead.overdue(self.lookahead.patience)):
            self._behind = False
            return released
        if not self._behind:
            self._behind = True
            self.batching.claimed_too_many()
        if late := self.lookahead.pop_overdue(self._patience()):
            self._release(late)
            released = True
        return released

    def _patience(self) -> float:
        """
        Return for how many seconds a due event waits for a thread before it is released.

        Asks the store whether there are other nodes or a pause.
        """
        ahead = self.lookahead
        if ahead.alone_patience > ahead.patience and self._peers.is_alone():
            return ahead.alone_patience
        return ahead.patience

    def _release(self, leases: list[Lease]) -> None:
        """Release *leases*; with one handler thread, also the whole look-ahead queue."""
        self._settle_as(leases, Verdict.RELEASE)
        if self._in_order:
            self._recalling = True
            self._release_all()

    def _release_all(self) -> bool:
        """Release all events of the look-ahead queue; return whether there were any."""
        gone = self.lookahead.remove()
        self._settle_as(gone, Verdict.RELEASE)
        return bool(gone)

    def take_settlements(self) -> list[Settlement]:
        """See `LeaseTable.take_settlements`."""
        # Clear the mark before taking the settlements. A handler thread may now add a release and
        # set the mark again. If the next claim carries that release, it must find the mark.
        recalling, self._recalling = self._recalling, False
        taken = super().take_settlements()
        if self._left_over and recalling:
            self._recalling = True
        return taken

    def linger(self) -> float | None:
        """
        Return for how many seconds settlements may wait for others; None to send them now.

        While all threads are busy, a claim for each settlement would cost more than the event.
        """
        waited = time.monotonic() - self._unsettled_since
        busy = self._busy == self._options.concurrency
        if busy and waited < IN_ADVANCE and len(self._settlements) < MOST_SETTLEMENTS:
            return IN_ADVANCE - waited
        return None

    def next_start(self) -> float | None:
        """Return when to call `start_due` next, on the monotonic clock; None if it need not be."""
        due = self.lookahead.next
        if due is None or self._busy < self._options.concurrency:
            return due
        # All threads are busy. A thread that becomes free calls `start_due` itself.
        late = due + self.lookahead.patience
        if not self._peers.known_alone:
            return late
        # Until then, ask the store regularly whether the events may be kept.
        return min(due + self.lookahead.alone_patience, max(late, self._peers.trusted_until))

    def release_superseded(self, ids: Collection[str]) -> bool:
        """
        Release the events of the look-ahead queue that this process has, or may have, replaced.

        Must be called after the post: an event released before it could be claimed again at once.

        Returns:
            True if there were any, so that a claim should carry the releases soon.
        """
        if not self.lookahead:
            return False
        kept = self.lookahead.leases()
        try:
            return self._release_ids(ids)
        except BaseException:
            # A signal handler raised. Leases that are neither kept nor released must expire, so
            # the heartbeat must not renew them.
            left = self.lookahead.leases()
            self._remove([e for e in kept if e.started is None and e not in left])
            raise

    def _release_ids(self, ids: Collection[str]) -> bool:
        # With a single thread this releases all others, too. If the post was refused, the event
        # of the id is unchanged, and must start before those that are due later.
        if gone := self.lookahead.remove(ids):
            self._release(gone)
        return bool(gone)

    def _lease_of(self, claim: Claim, trusted: float) -> Lease | None:
        lease = Lease(claim, self._options, self._store, self._ended, trusted)
        try:
            payload = decode(claim.payload)
        except PayloadError as e:
            lease.reserve(Verdict.BURY)
            self._add([lease])
            self._settle([Settlement(*lease.key, Verdict.BURY, error=str(e), reason="corrupt")])
            return None
        lease.event = Event(
            payload,
            id=claim.id,
            due=claim.due_us / 1000,
            attempt=claim.attempt,
            max_retries=claim.max_retries,
            # Not negative: if a claim is sent again after the server's clock was set back, its
            # reply has the new time.
            lateness_ms=max(0, claim.claimed_us - claim.due_us) / 1000,
            token=claim.token,
            holder=lease,
            schedule=claim.schedule,
            nominal=None if claim.nominal_us is None else claim.nominal_us / 1000,
            missed=claim.missed,
        )
        return lease

    def release_waiting(self) -> None:
        """Release all events that no handler has started, now and from now on."""
        self._releasing = True
        self._settle_as(self.lookahead.remove(), Verdict.RELEASE)
        while True:
            try:
                batch = self._inbox.get_nowait()
            except queue.Empty:
                return
            if batch is not None:
                self._settle_as(batch, Verdict.RELEASE)
                self._thread_is_free()

    def abandon(self) -> None:
        """Retry the events of handlers that still run; the attempt counts. The node leaves now."""
        for lease in list(self._leases.values()):
            if lease.reserve(Verdict.RETRY):
                lease.mark_lost()
                error = "the node left while the handler was running"
                self._settle([lease.settlement(Verdict.RETRY, error=error)])
