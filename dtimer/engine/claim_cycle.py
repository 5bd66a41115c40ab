"""
The claim cycle: one claim, and all that follows from its reply.

A claim settles what the handler threads have finished, and leases the events that are due::

    ask       plan a request, send it, and wait for its reply; send the next one ahead in a backlog
    apply     check the clock, dispatch the events, record the settlements, follow up, beat
    pause     decide when to claim again

Rule: a claim whose reply is lost is sent again unchanged until a reply arrives. The first
repetition follows at once. So a lost reply delays its events by one try, not by a whole lease.
"""

from __future__ import annotations

import contextlib
import time

from dtimer import log as messages
from dtimer.engine.batching import MAX_ADVANCE_SECONDS
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.next_claim import must_claim_at_once, seconds_until_next
from dtimer.engine.ports import Consumer
from dtimer.engine.seat import Seat, UnreadReply
from dtimer.errors import ClockJump, NamespaceCorrupt, OptionError
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import ClaimReply, ClaimRequest, Outcome
from dtimer.model.jitter import between

# The script has a claim sent half of the look-ahead before the next event is due. A node that lags
# sends it earlier by at most this fraction of the look-ahead.
_MOST_LEAD = 0.45


class ClaimCycle:
    """
    Makes the claims of a seat. Used by one thread at a time.

    Args:
        seat: The namespace.
        dispatcher: Receives the claimed events, and knows how many to claim.
        consumer: Knows how many events the listeners or readers can take.
    """

    def __init__(self, seat: Seat, dispatcher: Dispatcher, consumer: Consumer) -> None:
        self._seat = seat
        self._dispatcher = dispatcher
        self._consumer = consumer

    def run(
        self, *, claiming: bool = True, fresh: bool = False, leave_at: float | None = None
    ) -> None:
        """
        Receive the reply to the request sent before. If there is none, make a new claim.

        After an earlier request, make a new claim too: always with *fresh*, otherwise if it is due.

        Args:
            claiming: False once the node leaves: it then only settles.
            fresh: Make a claim that begins now.
            leave_at: When a leaving node gives up its running handlers, on the monotonic clock.
        """
        was_sent = self._seat.pipeline.pending is not None or self._seat.unread is not None
        seconds = self.claim(claiming, leave_at)
        if was_sent and self._seat.pipeline.request is None and (fresh or seconds <= 0):
            seconds = self.claim(claiming, leave_at)
        self._seat.next_claim_at = time.monotonic() + seconds

    def claim(self, claiming: bool, leave_at: float | None = None) -> float:
        """Make one claim; return the seconds to wait after it."""
        reply = self._seat.unread or self._ask(claiming)
        return reply if isinstance(reply, float) else self._apply(reply, claiming, leave_at)

    # Asking

    def _ask(self, claiming: bool) -> UnreadReply | float:
        """Send a request and return its reply; if that fails, return the seconds to wait."""
        seat = self._seat
        pipeline = seat.pipeline
        read_late = pipeline.pending is not None
        request = pipeline.request
        if request is None:
            request = self._plan() if claiming else self._new_request(0, 0, hears=False)
        elif not (claiming or read_late):
            # The node leaves. With this limit the server releases the events of this claim, and
            # does not send them again.
            request.most_bytes, request.strict = 0, True
        try:
            reply = pipeline.receive(request)
            more = self._plan_ahead(request, reply) if claiming else 0
            if not more:
                # Parse now: on failure this claim can be sent again, since no later one was sent.
                reply.claims[:]
        except Exception as e:
            return self._ask_again(request, e)
        seat.contact.answered = answered = time.monotonic()
        received_at = reply.received_at or answered
        unread_ms = (received_at - pipeline.sent) * 1000 if read_late else 0.0
        unread = UnreadReply(request, reply, pipeline.sent, received_at, unread_ms)
        seat.unread = unread
        pipeline.request = None  # The server has answered it.
        if armed:
            reached("claim.answered")
        if more:
            # Send `hears=False`: all threads are busy, so a wake would find none free.
            pipeline.send_ahead(self._new_request(more, 0, hears=False))
        return unread

    def _plan(self) -> ClaimRequest:
        """Make the request of a claim for the free handler threads."""
        limit, ahead_us = self._dispatcher.claim_size(self._consumer.demand())
        return self._new_request(limit, ahead_us, hears=self._seat.listener.hears)

    def _new_request(self, limit: int, ahead_us: int, *, hears: bool) -> ClaimRequest:
        seat = self._seat
        # Before the request is sent: its reply may have events that this process then replaces.
        seat.superseded_ids.begin(seat.pipeline.seq + 1)
        settlements = seat.leases.take_settlements()
        request = seat.pipeline.new_request(settlements, limit, ahead_us, hears=hears)
        request.lags = self._dispatcher.lag.late
        return request

    def _plan_ahead(self, request: ClaimRequest, reply: ClaimReply) -> int:
        """Return how many events to claim before the events of *reply* are dispatched."""
        count = len(reply.claims)
        # If the claim did not look ahead, all its events were due, and no claim is parsed here.
        overdue = count > 0 and (not request.ahead_us or reply.claims[-1].due_us <= reply.now_us)
        batching = self._dispatcher.batching
        batching.claim_answered(request.limit, count, overdue=overdue)
        batches = batching.in_backlog
        if (
            not batches
            # Each of these needs a call to the store first.
            or self._seat.store.busy
            or not reply.known
            or reply.buried
            or reply.short
            or Outcome.DEAD in reply.results
            or self._seat.leases.must_trim
        ):
            return 0
        demand = self._consumer.demand()
        return self._dispatcher.claim_size_while_busy(batches, request.limit, count, demand)

    def _ask_again(self, request: ClaimRequest, error: Exception) -> float:
        """Prepare to send *request* again after an error; return the seconds to wait before."""
        seat = self._seat
        # Renew the leases of running handlers, also while claims fail.
        with contextlib.suppress(Exception):
            seat.heartbeat.beat()
        if seat.pipeline.reply_broke_off(request, error):
            # Part of a reply has arrived, so Redis answers, and a `join` may return.
            seat.connectivity.answered()
            return 0.0
        if not request.resends and not seat.store.needs_operator(error):
            # Do not report the first failure: the server may have closed an idle connection.
            return 0.0
        return seat.connectivity.failed(error)

    # Applying

    def _apply(self, unread: UnreadReply, claiming: bool, leave_at: float | None) -> float:
        """Apply a reply; return the seconds to wait after it."""
        seat = self._seat
        outstanding = seat.pipeline.pending is not None
        try:
            if seat.pipeline.request is not None:
                # A later request was sent before this reply was parsed. If parsing fails, the reply
                # is kept and parsed again next time.
                unread.reply.claims[:]
            seat.unread = None
            try:
                self._check_clock(unread)
                self._dispatch(unread)
                seat.leases.settled(unread.request.settlements, unread.reply.results)
                self._follow_up(unread.reply)
            finally:
                seat.heartbeat.beat()
        except Exception as e:
            if seat.unread is not None:
                with contextlib.suppress(Exception):
                    seat.heartbeat.beat()
            pause = seat.connectivity.failed(e, claim_answered=True)
            return min(pause, MAX_ADVANCE_SECONDS) if outstanding else pause
        seat.connectivity.answered()
        if outstanding:
            # Read the reply to the next claim after this time at the latest.
            return MAX_ADVANCE_SECONDS
        if seat.pipeline.request is not None:
            # The next request could not be sent. Sending it again will show why.
            return 0.0
        seat.superseded_ids.end()  # No claim is under way that a post can overtake.
        return self._wait_after(unread.request, unread.reply, unread.sent, claiming, leave_at)

    def _check_clock(self, unread: UnreadReply) -> None:
        """Report a jump of the server's clock, and renew the leases, whose ends have moved."""
        detector = self._seat.clock_jumps
        jump = detector and detector.jumped(unread.reply.now_us / 1e6, unread.sent)
        if not jump:
            return
        # Leases now end earlier than this node expects, or last too long: renew them at once.
        # After a jump forwards, rely on no lease before the server has renewed it.
        for lease in self._seat.leases.held() if jump > 0 else ():
            lease.distrust()
        self._seat.heartbeat.renew_soon()
        self._seat.announcements.announce("error", ClockJump(jump))

    def _dispatch(self, unread: UnreadReply) -> None:
        """Give the claimed events to the dispatcher. A delay here would delay each of them."""
        request, reply, sent, received_at, unread_ms = unread
        seat = self._seat
        if not reply.claims:
            return
        if seat.log.debugging:
            seat.log.add_events(messages.CLAIMED, [claim.id for claim in reply.claims])
        seat.heartbeat.leases_began(sent)
        leases = seat.leases.grant(reply.claims, sent, unread_ms)
        # The script computed the time that is left until an event is due when it began. The reply
        # was sent after the script had ended.
        self._dispatcher.accept(leases, request.seq, received_at - reply.script_us / 1e6)
        if armed:
            reached("claim.handed")

    def _follow_up(self, reply: ClaimReply) -> None:
        """Make the calls that the reply asks for."""
        seat = self._seat
        if reply.buried:
            seat.log.add_events(messages.BURIED, [id for id, _ in reply.buried])
            for id, _ in reply.buried:
                seat.announcements.announce("buried", id)
        # Stays False until register() has succeeded.
        seat.registered = seat.registered and reply.known
        if not seat.registered:
            seat.store.register()
            seat.registered = True
        # Schedules for which the server has only few nominal times left.
        for schedule in reply.short:
            try:
                seat.store.add_times(schedule)
                seat.without_times.discard(schedule)
            except (OptionError, NamespaceCorrupt) as e:
                # This machine lacks the time zone, or another version wrote the definition.
                # Another node may succeed. Until then the server asks again every second.
                if schedule not in seat.without_times:
                    seat.without_times.add(schedule)
                    seat.announcements.announce("error", e)
        if reply.buried or Outcome.DEAD in reply.results or seat.leases.must_trim:
            seat.leases.must_trim = False
            seat.store.trim()

    # Waiting

    def _wait_after(
        self,
        request: ClaimRequest,
        reply: ClaimReply,
        sent: float,
        claiming: bool,
        leave_at: float | None,
    ) -> float:
        """Return the seconds until the next claim."""
        seat, dispatcher = self._seat, self._dispatcher
        if seat.leases.unsettled:
            return dispatcher.linger() or 0.0
        spare = dispatcher.free_slots() - len(dispatcher.lookahead)
        if claiming and must_claim_at_once(
            request.limit,
            len(reply.claims),
            spare,
            hears=seat.listener.hears,
            said_hears=request.hears,
        ):
            return 0.0
        now = time.monotonic()
        wait, more_ahead = None, 0.0
        lag = dispatcher.lag
        # While all threads of a node that lags are busy, another claim would only delay them.
        if reply.wait_us is not None and (spare > 0 or not lag.late):
            # Counted from the sending, because the next claim will travel for as long.
            wait = reply.wait_us / 1e6 - (now - sent)
            ahead_us = dispatcher.claim_size(self._consumer.demand())[1]
            more_ahead = (ahead_us - request.ahead_us) / 1e6
            # A node that lags claims earlier, within the look-ahead. Never twice in a row: the
            # script may have left an event to another node until it is due.
            lead = min(lag.claim_lead, _MOST_LEAD * ahead_us / 1e6)
            if wait > lead:
                wait -= lead
        active = dispatcher.pool.busy or dispatcher.lookahead
        return seconds_until_next(
            seat.options.poll_interval / 1e6,
            between(0.8, 0.95),
            seat.listener.echo_due(),
            wait=wait,
            more_ahead=more_ahead,
            heartbeat=seat.heartbeat.due - now if active else None,
            leave=None if claiming or leave_at is None else leave_at - now,
        )
