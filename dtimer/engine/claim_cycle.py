"""Apply the reply to a claim: everything that follows from it, except the next claim."""

from __future__ import annotations

from collections.abc import Callable

from dtimer import log as messages
from dtimer.engine.clock import ClockJumpDetector
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.heartbeat import Heartbeat
from dtimer.engine.ports import ClaimStore
from dtimer.errors import ClockJump, NamespaceCorrupt, OptionError
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import ClaimReply, ClaimRequest, Outcome


class ClaimCycle:
    """
    Applies the replies to claims. Used by one thread at a time.

    Args:
        store: The store, as the engine uses it.
        dispatcher: Receives the claimed events. Has the node's log.
        heartbeat: Is informed when leases begin.
        announce: Queues something to be emitted on the callback thread.
        reports_clock_jumps: False if the server's time is set by a test, which would look like
            jumps.
    """

    def __init__(
        self,
        *,
        store: ClaimStore,
        dispatcher: Dispatcher,
        heartbeat: Heartbeat,
        announce: Callable[..., None],
        reports_clock_jumps: bool,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._log = dispatcher.log
        self._heartbeat = heartbeat
        self._announce = announce
        self._clock_jumps = ClockJumpDetector() if reports_clock_jumps else None
        # The schedules to which this node could not add times. Each is reported once.
        self._without_times: set[str] = set()
        self._registered = True

    def apply(
        self,
        request: ClaimRequest,
        reply: ClaimReply,
        sent: float,
        received_at: float,
        *,
        read_late: bool,
    ) -> None:
        """
        Apply the reply to *request*.

        Args:
            request: The claim's request.
            reply: Its reply.
            sent: When the request was sent, on the monotonic clock.
            received_at: When the reply was received, on the monotonic clock.
            read_late: The reply may have arrived earlier than *received_at* and waited unread.
        """
        if self._clock_jumps is not None and (
            jump := self._clock_jumps.jumped(reply.now_us / 1e6, sent)
        ):
            self._clock_jumped(jump)
        if reply.claims:
            if self._log.debugging:
                self._log.add_events(messages.CLAIMED, [claim.id for claim in reply.claims])
            self._heartbeat.leases_began(sent)
            # Before the rest: a delay here delays every event that was claimed ahead of time.
            self._dispatcher.accept(
                request.seq, reply.claims, sent, received_at, read_late=read_late
            )
            if armed:
                reached("claim.handed")
        self._dispatcher.settled(request.settlements, reply.results)
        if reply.buried:
            self._log.add_events(messages.BURIED, [id for id, _ in reply.buried])
            for id, _ in reply.buried:
                self._announce("buried", id)
        # Stays False until register() has succeeded.
        self._registered = self._registered and reply.known
        if not self._registered:
            self._store.register()
            self._registered = True
        # Schedules for which the server has only few nominal times left.
        for schedule in reply.short:
            try:
                self._store.add_times(schedule)
                self._without_times.discard(schedule)
            except (OptionError, NamespaceCorrupt) as e:
                # This machine lacks the time zone, or another version wrote the definition.
                # Another node may succeed. Until then the server asks again every second.
                if schedule not in self._without_times:
                    self._without_times.add(schedule)
                    self._announce("error", e)
        if reply.buried or Outcome.DEAD in reply.results:
            self._store.trim()

    def _clock_jumped(self, jump: float) -> None:
        # Leases now end earlier than this node expects, or last too long: renew them at once.
        # After a jump forwards, rely on no lease before the server has renewed it.
        for lease in self._dispatcher.held() if jump > 0 else ():
            lease.distrust()
        self._heartbeat.renew_soon()
        self._announce("error", ClockJump(jump))
