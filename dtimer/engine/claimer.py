"""
The claimer: the thread that waits on the bell, claims, dispatches and repeats.

Rule 1: this module decides when to claim, and `claim_cycle` makes the claims, one at a time. A
component that wants a claim rings the bell. One exception: a handler thread that has just become
free may claim itself (`claim_inline`).

Rule 2: the claimer does not know why the bell rang. A wake and a leave look alike. The poll does
not ring: the wait on the bell ends by itself.

Rule 3: clear the bell first, then claim. A ring that arrives during the claim then starts the
next claim. In the other order the ring would be lost.
"""

from __future__ import annotations

import os
import threading
import time

from dtimer.engine.batching import MAX_ADVANCE_SECONDS
from dtimer.engine.bell import Bell
from dtimer.engine.claim_cycle import ClaimCycle
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.flag import Flag
from dtimer.engine.lag import wait_exactly
from dtimer.engine.ports import Consumer, Host
from dtimer.engine.seat import Seat
from dtimer.engine.service import Service
from dtimer.faultpoints import armed, reached


class Claimer(Service):
    """
    Runs the claim loop on a thread of its own.

    Args:
        name: The name of the thread.
        bell: Ends the wait between two claims.
        seat: The namespace that it claims from.
        dispatcher: Receives the claimed events.
        consumer: Knows how many events the listeners or readers can take.
        host: Is told when this thread ends.
    """

    def __init__(
        self,
        name: str,
        *,
        bell: Bell,
        seat: Seat,
        dispatcher: Dispatcher,
        consumer: Consumer,
        host: Host,
    ) -> None:
        super().__init__(name, self._loop, self._report, host.on_stopped)
        self._bell = bell
        self._seat = seat
        self._dispatcher = dispatcher
        # A handler thread that becomes free claims here.
        dispatcher.pool.claimer = self
        # Has a claim carry the events that a handler thread settles during its batch.
        seat.leases.carrier = self
        self._cycle = ClaimCycle(seat, dispatcher, consumer)
        self._pid = os.getpid()
        # A list, because append is one step: a signal handler may interrupt another call.
        self._deadlines: list[float] = []
        # Set by a handler thread that became free while another thread claimed.
        self._thread_freed = False
        # Set by a handler thread that has settled an event before the end of its batch.
        self._must_carry = False
        # Held by the thread that claims.
        self._claiming = threading.Lock()
        # The time at which the claimer's wait ends.
        self._asleep_until = 0.0

    def _report(self, error: BaseException) -> None:
        self._seat.announcements.announce("error", error)

    def stop_within(self, seconds: float | None) -> None:
        """
        Ask the claimer to end: it claims no more, waits for running handlers and settles all.

        After *seconds* (None: never) running handlers' events are retried; the attempt counts.
        """
        if seconds is not None:
            self._deadlines.append(time.monotonic() + seconds)
        self.stop()
        self._bell.ring()

    @property
    def _give_up_at(self) -> float | None:
        return min(self._deadlines, default=None)

    def _loop(self, stopping: Flag) -> None:
        abandoned, seat = False, self._seat
        seat.next_claim_at = 0.0
        wait_exactly()
        woken = True
        while True:
            # A wait that has ended at its time has heard no ring.
            rung = woken and self._bell.clear()
            if armed:
                reached("loop.claimer")
            with self._claiming:
                # Read once a round: a stop during a claim must first release that claim's events.
                leaving = stopping.is_set()
                # Under the lock: events that a handler thread claims now would not be released.
                if leaving:
                    self._dispatcher.release_waiting()
                    if not abandoned and self._is_past_deadline():
                        abandoned = True
                        seat.leases.abandon()
                released = self._dispatcher.start_due()
                freed, self._thread_freed = self._thread_freed, False
                if rung or released or leaving:
                    self._cycle.run(claiming=not leaving, fresh=True, leave_at=self._give_up_at)
                elif freed:
                    self._claim_or_linger()
                elif time.monotonic() >= seat.next_claim_at:
                    # The time is checked, because a nudge ends the wait but asks for no claim.
                    self._cycle.run()
                if leaving:
                    if self._done(abandoned):
                        return
                    if (left := self._outage_wait_left()) > 0:
                        seat.next_claim_at = min(seat.next_claim_at, time.monotonic() + left)
                self._asleep_until = self._next_action_at()
                self._plan_to_carry()
            seconds = max(0.0, self._asleep_until - time.monotonic())
            woken = self._bell.wait(seconds)
            if seconds and not woken:
                lag = self._dispatcher.lag
                lag.waited(time.monotonic() - self._asleep_until)
                self._bell.keeps_lock = lag.late

    def claim_soon(self) -> None:
        """Claim on the claimer's thread now, to carry releases."""
        self._bell.ring()

    def carry_soon(self) -> None:
        """See `InlineClaims`."""
        # First the mark, then the check. `_plan_to_carry` works in the other order, so one of the
        # two threads sees what the other has written.
        self._must_carry = True
        if self._asleep_until > time.monotonic() + MAX_ADVANCE_SECONDS:
            self._bell.nudge()

    def _plan_to_carry(self) -> None:
        """Claim in time for the settlements of batches that still run."""
        if not self._must_carry:
            return
        self._must_carry = False
        seat = self._seat
        # During an outage the pause between two claims decides.
        if seat.leases.unsettled and seat.connectivity.error is None:
            wait = seat.leases.linger() or 0.0
            seat.next_claim_at = min(seat.next_claim_at, time.monotonic() + wait)
            self._asleep_until = min(self._asleep_until, seat.next_claim_at)

    def _next_action_at(self) -> float:
        """Return when to act next: to claim, or to start an event that was claimed ahead."""
        due, claim = self._dispatcher.next_start(), self._seat.next_claim_at
        return claim if due is None else min(due, claim)

    def claim_inline(self) -> None:
        """
        Claim on the handler thread that has just become free, unless another thread claims now.

        Waking the claimer, to be woken by it in turn, would cost more than the claim itself.
        """
        # In a child that a handler has forked, this thread does not belong to the node.
        if os.getpid() != self._pid:
            self._bell.ring()
            return
        if not self._claiming.acquire(blocking=False):
            # If it is set, the claimer was nudged for another thread, and has not looked yet.
            if not self._thread_freed:
                self._thread_freed = True
                self._bell.nudge()
            return
        try:
            # A stopping claimer may have released its events already, and must not claim.
            must_nudge = self.stopping
            if not must_nudge:
                self._dispatcher.start_due()
                self._claim_or_linger()
                due = self._next_action_at()
                must_nudge = due < self._asleep_until
                # The claimer will have computed it again before the next wait. Until then no
                # other nudge is needed.
                self._asleep_until = min(due, self._asleep_until)
        finally:
            self._claiming.release()
        if must_nudge:
            self._bell.nudge()

    def _claim_or_linger(self) -> None:
        """Claim for a thread that became free, or wait a moment for more settlements to send."""
        wait = self._dispatcher.linger()
        if wait is None:
            self._cycle.run()
        else:
            seat = self._seat
            seat.next_claim_at = min(seat.next_claim_at, time.monotonic() + wait)

    def _is_past_deadline(self) -> bool:
        return self._give_up_at is not None and time.monotonic() >= self._give_up_at

    def _done(self, abandoned: bool) -> bool:
        """Return True if nothing is left to do, or the wait for the server is over."""
        # Check the handlers first: a handler that ends in between may add a settlement.
        if self._dispatcher.pool.busy and not abandoned:
            return False
        seat = self._seat
        settled = not (seat.unfinished or seat.leases.unsettled or self._dispatcher.lookahead)
        return settled or (seat.connectivity.error is not None and self._outage_wait_left() <= 0)

    def _outage_wait_left(self) -> float:
        """
        Return for how many more seconds a leaving node waits for a server that does not answer.

        Until the deadline of the leave, or else for one ``timeout`` after the last reply.
        """
        answered = self._seat.contact.answered or 0.0
        limit = self._give_up_at or answered + self._seat.options.timeout / 1e6
        return limit - time.monotonic()
