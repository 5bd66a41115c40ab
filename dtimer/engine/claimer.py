"""
The claimer: the thread that waits on the bell, claims, dispatches and repeats.

Rule 1: all claims are made here, one at a time. A component that wants a claim rings the bell.
One exception: a handler thread that has just become free may claim itself (`claim_inline`).

Rule 2: the claimer does not know why the bell rang. A wake, the poll and a leave look alike.

Rule 3: clear the bell first, then claim. A ring that arrives during the claim then starts the
next claim. In the other order the ring would be lost.

Rule 4: a claim whose reply is lost is sent again unchanged until a reply arrives. The first
repetition follows at once. So a lost reply delays its events by one try, not by a whole lease.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from dtimer.engine.batching import IN_ADVANCE
from dtimer.engine.bell import Bell
from dtimer.engine.capacity import Capacity
from dtimer.engine.claim_cycle import ClaimCycle
from dtimer.engine.connectivity import Connectivity
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.flag import Flag
from dtimer.engine.heartbeat import Heartbeat
from dtimer.engine.listener import Listener
from dtimer.engine.pipeline import Pipeline
from dtimer.engine.ports import ClaimStore
from dtimer.engine.service import Service
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import ClaimReply, ClaimRequest
from dtimer.model.jitter import between
from dtimer.model.options import Options

# The longest single wait, in seconds. A longer poll interval becomes several waits.
_LONGEST_WAIT = 30.0


class _UnreadReply(NamedTuple):
    """A received reply that is still to be applied: the arguments of `ClaimCycle.apply`."""

    request: ClaimRequest
    reply: ClaimReply
    sent: float
    received_at: float
    read_late: bool  # The reply may have arrived before `received_at`, and waited unread.


class Claimer(Service):
    """
    Runs the claim loop on a thread of its own.

    Args:
        name: The name of the thread.
        store: The store, as the engine uses it.
        bell: Ends the wait between two claims.
        listener: Knows whether wakes reach this node.
        dispatcher: Receives the claimed events. Has the node's log.
        options: The node's options.
        demand: Returns how many events the listeners or readers can take.
        changed: Called with None when Redis begins to answer, and with the error when it fails.
        announce: Queues something to be emitted on the callback thread.
        on_stopped: Called once, as the last action of this thread.
    """

    def __init__(
        self,
        name: str,
        *,
        store: ClaimStore,
        bell: Bell,
        listener: Listener,
        dispatcher: Dispatcher,
        options: Options,
        demand: Callable[[], int],
        changed: Callable[[Exception | None], None],
        announce: Callable[..., None],
        on_stopped: Callable[[], None],
    ) -> None:
        super().__init__(name, self._loop, lambda e: announce("error", e), on_stopped)
        self._store = store
        self._bell = bell
        self._listener = listener
        self._dispatcher = dispatcher
        self._options = options
        self._demand = demand
        self._pid = os.getpid()
        log = dispatcher.log
        #: Whether the store answers, and how large a claim the connection can carry.
        self.connectivity: Connectivity = Connectivity(store.needs_operator, changed, log)
        self.capacity: Capacity = Capacity(options, announce)
        self._pipeline = Pipeline(store, listener, dispatcher, demand, self.capacity)
        self._unread: _UnreadReply | None = None
        self._heartbeat = Heartbeat(store, dispatcher, options.lease)
        self._cycle = ClaimCycle(
            store=store,
            dispatcher=dispatcher,
            heartbeat=self._heartbeat,
            announce=announce,
            reports_clock_jumps=options.now is None,
        )
        # A list, because append is one step: a signal handler may interrupt another call.
        self._deadlines: list[float] = []
        # Set by a handler thread that became free while another thread claimed.
        self._thread_freed = False
        # Held by the thread that claims.
        self._claiming = threading.Lock()
        # The time of the next claim, and the time at which the claimer's wait ends.
        self._next_claim_at = self._asleep_until = 0.0
        #: When the last reply to a claim was received, on the monotonic clock.
        self.answered: float | None = None

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
        abandoned = False
        self._next_claim_at = 0.0
        while True:
            rung = self._bell.clear()
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
                        self._dispatcher.abandon()
                released = self._dispatcher.start_due()
                freed, self._thread_freed = self._thread_freed, False
                if rung or released or leaving:
                    self._run_cycle(claiming=not leaving, fresh=True)
                elif freed:
                    self._claim_or_linger()
                elif time.monotonic() >= self._next_claim_at:
                    # The time is checked, because a nudge ends the wait but asks for no claim.
                    self._run_cycle()
                if leaving:
                    if self._done(abandoned):
                        return
                    if (left := self._outage_wait_left()) > 0:
                        self._next_claim_at = min(self._next_claim_at, time.monotonic() + left)
                self._asleep_until = self._next_action_at()
            self._bell.wait(self._asleep_until - time.monotonic())

    def _next_action_at(self) -> float:
        """Return when to act next: to claim, or to start an event that was claimed ahead."""
        due = self._dispatcher.next_start()
        return self._next_claim_at if due is None else min(due, self._next_claim_at)

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
            self._thread_freed = True
            self._bell.nudge()
            return
        try:
            # A stopping claimer may have released its events already, and must not claim.
            must_nudge = self.stopping
            if not must_nudge:
                self._dispatcher.start_due()
                self._claim_or_linger()
                must_nudge = self._next_action_at() < self._asleep_until
        finally:
            self._claiming.release()
        if must_nudge:
            self._bell.nudge()

    def _claim_or_linger(self) -> None:
        """Claim for a thread that became free, or wait a moment for more settlements to send."""
        wait = self._dispatcher.linger()
        if wait is None:
            self._run_cycle()
        else:
            self._next_claim_at = min(self._next_claim_at, time.monotonic() + wait)

    def _run_cycle(self, *, claiming: bool = True, fresh: bool = False) -> None:
        """
        Receive the reply to the request sent before. If there is none, make a new claim.

        After an earlier request, make a new claim too: always with *fresh*, otherwise if it is due.
        """
        was_sent = self._pipeline.reply_outstanding or self._unread is not None
        seconds = self._claim(claiming)
        if was_sent and self._pipeline.request is None and (fresh or seconds <= 0):
            seconds = self._claim(claiming)
        self._next_claim_at = time.monotonic() + seconds

    def _is_past_deadline(self) -> bool:
        return self._give_up_at is not None and time.monotonic() >= self._give_up_at

    def _done(self, abandoned: bool) -> bool:
        """Return True if nothing is left to do, or the wait for the server is over."""
        # Check the handlers first: a handler that ends in between may add a settlement.
        if self._dispatcher.running and not abandoned:
            return False
        pending = self._pipeline.request is not None or self._unread is not None
        settled = not (pending or self._dispatcher.unsettled or self._dispatcher.lookahead)
        return settled or (self.connectivity.error is not None and self._outage_wait_left() <= 0)

    def _outage_wait_left(self) -> float:
        """
        Return for how many more seconds a leaving node waits for a server that does not answer.

        Until the deadline of the leave, or else for one ``timeout`` after the last reply.
        """
        limit = self._give_up_at or (self.answered or 0.0) + self._options.timeout / 1e6
        return limit - time.monotonic()

    def _claim(self, claiming: bool) -> float:
        """Make one claim; return the seconds to wait after it."""
        if self._unread is not None:
            return self._apply_reply(self._unread, claiming)
        pipeline = self._pipeline
        read_late = pipeline.reply_outstanding
        request = pipeline.next_request(claiming)
        try:
            reply = pipeline.receive(request)
            more = pipeline.next_limit(request, reply) if claiming else 0
            if not more:
                # Parse now: on failure this claim can be sent again, since no later one was sent.
                reply.claims[:]
        except Exception as e:
            # Renew the leases of running handlers, also while claims fail.
            with contextlib.suppress(Exception):
                self._heartbeat.beat()
            if pipeline.reply_broke_off(request, e):
                # Part of a reply has arrived, so Redis answers, and a `join` may return.
                self.connectivity.answered()
                return 0.0
            if not request.resends and not self._store.needs_operator(e):
                # Do not report the first failure: the server may have closed an idle connection.
                return 0.0
            return self.connectivity.failed(e)
        self.answered = time.monotonic()
        self._unread = _UnreadReply(
            request, reply, pipeline.sent, reply.received_at or self.answered, read_late
        )
        pipeline.done()
        if armed:
            reached("claim.answered")
        if more:
            pipeline.send_next(more)
        return self._apply_reply(self._unread, claiming)

    def _apply_reply(self, unread: _UnreadReply, claiming: bool) -> float:
        """Apply a reply; return the seconds to wait after it."""
        request, reply, sent, received_at, read_late = unread
        outstanding = self._pipeline.reply_outstanding
        try:
            reply.claims[:]
            # Not before: if parsing fails, the reply is kept and parsed again next time.
            self._unread = None
            try:
                self._cycle.apply(request, reply, sent, received_at, read_late=read_late)
            finally:
                self._heartbeat.beat()
        except Exception as e:
            if self._unread is not None:
                with contextlib.suppress(Exception):
                    self._heartbeat.beat()
            pause = self.connectivity.failed(e)
            return min(pause, IN_ADVANCE) if outstanding else pause
        self.connectivity.answered()
        if outstanding:
            return IN_ADVANCE  # Read the reply to the next claim after this time at the latest.
        if self._pipeline.request is not None:
            # The next request could not be sent. Sending it again will show why.
            return 0.0
        self._dispatcher.superseded_ids.end()  # No claim is under way that a post can overtake.
        return self._seconds_until_next(request, reply, sent, claiming)

    def _seconds_until_next(
        self, request: ClaimRequest, reply: ClaimReply, sent: float, claiming: bool
    ) -> float:
        if self._dispatcher.unsettled:
            return self._dispatcher.linger() or 0.0
        spare = self._dispatcher.free_slots() - len(self._dispatcher.lookahead)
        if claiming and 0 < request.limit == len(reply.claims) and spare > 0:
            return 0.0
        if claiming and spare > 0 and self._listener.hears and not request.hears:
            # The last claim (`hears=False`) left this node off the roster, so no wake would come.
            return 0.0
        now = time.monotonic()
        # Jitter keeps nodes from polling together. It only shortens the guaranteed interval.
        seconds = min(self._options.poll_interval / 1e6, _LONGEST_WAIT) * between(0.8, 0.95)
        if reply.wait_us is not None:
            # Counted from the sending, because the next claim will travel for as long.
            wait = reply.wait_us / 1e6 - (now - sent)
            # The wait allows for half of this claim's look-ahead. Allow for the next claim's.
            ahead_us = self._dispatcher.claim_size(self._demand())[1]
            wait -= max(0, ahead_us - request.ahead_us) / 2e6
            seconds = min(seconds, max(0.0, wait))
        seconds = min(seconds, max(0.0, self._listener.echo_due()))
        if self._dispatcher.running or self._dispatcher.lookahead:
            seconds = min(seconds, max(0.0, self._heartbeat.due - now))
        if not claiming and self._give_up_at is not None:
            seconds = min(seconds, max(0.0, self._give_up_at - now))
        return seconds
