"""
The dispatcher: gives claimed events to free handler threads when they are due.

Rule 1: a claim asks for no more events than free threads can start now. If handlers are quick, it
also asks for those that the threads can start soon.

Rule 2: an event that was claimed ahead occupies no thread before it is due. If no thread is free
then, the event waits for one as long as the node looks ahead (20 ms), or for a second at most if no
other node has joined. After this wait it is released.

Rule 3: a single handler thread starts events in the order of their due times. If one of them is
released, all events that were claimed after it are released, too. The claim that carries the
releases may claim the same events again, in order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dtimer.engine.batch_runner import BatchRunner
from dtimer.engine.batching import MAX_ADVANCE_SECONDS, Batching, claim_size, claim_size_while_busy
from dtimer.engine.clock import boottime
from dtimer.engine.handler_pool import HandlerPool
from dtimer.engine.lag import Lag
from dtimer.engine.lease import Lease
from dtimer.engine.lookahead import LookaheadQueue
from dtimer.engine.ports import Consumer, Host
from dtimer.engine.seat import Seat
from dtimer.model.claims import Verdict
from dtimer.model.options import MOST_CLAIMS


class Dispatcher:
    """
    Decides how many events to claim, when to start them, and when to release them.

    Args:
        name: A prefix for the names of the handler threads.
        seat: The namespace of the events.
        consumer: Has the handlers.
        host: Quits if a handler raises SystemExit or KeyboardInterrupt.
    """

    def __init__(self, name: str, seat: Seat, consumer: Consumer, host: Host) -> None:
        options = seat.options
        self._seat = seat
        self._leases = seat.leases
        #: The most events in one batch.
        self.max_events: int = options.max_events
        #: How late the waits of this node's threads end.
        self.lag: Lag = Lag()
        #: The events that wait for their due time, or for a free thread.
        self.lookahead: LookaheadQueue = LookaheadQueue(options)
        #: How many batches a claim takes for each thread. More than one only if a due event may
        #: wait for a thread for at least `MAX_ADVANCE_SECONDS` before it is released.
        self.batching: Batching = Batching(
            self.lag, allowed=self.lookahead.patience >= MAX_ADVANCE_SECONDS
        )
        self._runner = BatchRunner(seat, self.batching, consumer, host)
        #: The handler threads.
        self.pool: HandlerPool = HandlerPool(
            *(name, options.concurrency),
            runner=self._runner,
            events=self,
            lag=self.lag,
            announcements=seat.announcements,
        )
        # True if an event of the look-ahead queue has waited too long for a thread.
        self._behind = False

    def free_slots(self) -> int:
        """Return how many events the free handler threads can start now."""
        free = self.pool.size - self.pool.busy
        return max(0, min(free * self.max_events, MOST_CLAIMS))

    def claim_size(self, demand: int) -> tuple[int, int]:
        """
        Return how many events to claim, and how far ahead: see `batching.claim_size`.

        *demand* is how many events the listeners or readers can take.
        """
        if self._leases.must_release_waiting and self._leases.exceed_a_claim:
            # This claim cannot carry all releases. Later events that it claims would be started
            # before those that are not released yet.
            return 0, 0
        waiting, ahead_us = len(self.lookahead), self.lookahead.ahead_us
        batches, late = self.batching.batches, self.lag.late
        return claim_size(self.free_slots(), demand, waiting, batches, ahead_us, late=late)

    def claim_size_while_busy(self, batches: int, limit: int, claimed: int, demand: int) -> int:
        """
        Return how many events to claim while the threads run those that were just claimed.

        See `batching.claim_size_while_busy`. *batches* is how many batches one thread handles in
        time.
        """
        if self._leases.must_release_waiting:
            return 0
        most = self.max_events * batches
        left = demand - self.pool.busy * self.max_events
        return claim_size_while_busy(most, left, limit, claimed, len(self.lookahead))

    def accept(self, leases: Sequence[Lease], seq: int, received_at: float) -> None:
        """
        Give new *leases* to the handler threads, oldest first, or keep them until they are due.

        Args:
            leases: The leases of claimed events.
            seq: The number of the claim that they belong to.
            received_at: When its reply was received, on the monotonic clock.
        """
        if self._runner.releasing:
            self._leases.settle_as(leases, Verdict.RELEASE)
            return
        self.lookahead.add(leases, received_at)
        if gone := self._seat.superseded_ids.to_release(seq, leases):
            # The leases are in the queue by now, so a later post finds them there. The ids of
            # earlier posts are found here. In the other order, a post in between would be missed.
            self._release_ids(gone)
        self.start_due()

    def start_due(self) -> bool:
        """
        Give due events to free handler threads; release those that waited too long for one.

        Returns:
            True if events were released, so that a claim should carry the releases at once.
        """
        # Also release the events of a reply that was under way when the look-ahead queue was
        # released.
        released = self._leases.must_release_waiting and self._release_all()
        while self.lookahead and self.pool.busy < self.pool.size:
            batch = self._pop_due()
            if batch is None:
                released = True
                continue
            if not batch:
                self.pool.watch()
                return released
            try:
                self.pool.run(batch)
            except BaseException:
                # Stop renewing the leases, even if the release below fails. The release spares
                # other nodes the wait for the leases to expire.
                self._leases.drop(batch)
                self._leases.settle_as(batch, Verdict.RELEASE)
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

    def _pop_due(self) -> list[Lease] | None:
        """Remove and return the next due batch; None if it was released instead."""
        batch = self.lookahead.pop_due(self.max_events)
        if batch:
            # Leases may have expired here, if the machine was suspended. Events with an expiry
            # may have waited too long; the server makes dead letters of them.
            now = boottime()
            if any(now > lease.event_expires_at or lease.lost(now) for lease in batch):
                self._release(batch)
                return None
        return batch

    def next_due(self) -> float | None:
        """See `DueEvents`."""
        return self.lookahead.next

    def pop_startable(self) -> list[Lease]:
        """See `DueEvents`."""
        if self._leases.must_release_waiting:
            # The claimer releases the events that wait.
            return []
        batch = self._pop_due()
        if batch is None and self.pool.claimer is not None:
            self.pool.claimer.claim_soon()
        return batch or []

    def _patience(self) -> float:
        """
        Return for how many seconds a due event waits for a thread before it is released.

        Asks the store whether there are other nodes or a pause.
        """
        ahead = self.lookahead
        if ahead.alone_patience > ahead.patience and self._seat.peers.is_alone():
            return ahead.alone_patience
        return ahead.patience

    def _release(self, leases: list[Lease]) -> None:
        """Release *leases*; with one handler thread, also the whole look-ahead queue."""
        # Unlike `settle_as`, this makes `start_due` also release the events of a reply under way.
        self._leases.release(leases)
        if self._leases.in_order:
            self._release_all()

    def _release_all(self) -> bool:
        """Release all events of the look-ahead queue; return whether there were any."""
        gone = self.lookahead.remove()
        self._leases.settle_as(gone, Verdict.RELEASE)
        return bool(gone)

    def linger(self) -> float | None:
        """
        Return for how many seconds settlements may wait for others; None to send them now.

        While all threads are busy, a claim for each settlement would cost more than the event.
        """
        return self._leases.linger() if self.pool.busy == self.pool.size else None

    def next_start(self) -> float | None:
        """Return when to call `start_due` next, on the monotonic clock; None if it need not be."""
        due = self.lookahead.next
        if due is None:
            return None
        if self.pool.busy < self.pool.size:
            # An idle thread starts it. If that failed, this thread does so later.
            return due + self.lookahead.alone_patience
        # All threads are busy. A thread that becomes free calls `start_due` itself.
        late = due + self.lookahead.patience
        peers = self._seat.peers
        if not peers.known_alone:
            return late
        # Until then, ask the store regularly whether the events may be kept.
        return min(due + self.lookahead.alone_patience, max(late, peers.trusted_until))

    def release_superseded(self, ids: Collection[str]) -> bool:
        """
        Release the events of the look-ahead queue that this process has, or may have, replaced.

        Must be called after the post. Otherwise a node could claim the old event again between the
        release and the post.

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
            self._leases.drop([e for e in kept if e.started is None and e not in left])
            raise

    def _release_ids(self, ids: Collection[str]) -> bool:
        # With a single thread this releases all others, too. If the post was refused, the event
        # of the id is unchanged, and must start before those that are due later.
        if gone := self.lookahead.remove(ids):
            self._release(gone)
        return bool(gone)

    def release_waiting(self) -> None:
        """Release all events that no handler has started, now and from now on."""
        self._runner.releasing = True
        self._leases.settle_as(self.lookahead.remove(), Verdict.RELEASE)
        while batch := self.pool.take_back():
            self._leases.settle_as(batch, Verdict.RELEASE)
            self.pool.thread_is_free()
