"""Apply the reply to a claim: everything that follows from it, except the next claim."""

from __future__ import annotations

from collections.abc import Callable

from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.heart import Heart
from dtimer.engine.pace import Pace
from dtimer.engine.turns import Turns
from dtimer.errors import ClockJump, NamespaceCorrupt, OptionError
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import Result, Turn, TurnRequest


class Answers:
    """
    Applies the replies to claims. Used by one thread at a time.

    Args:
        turns: The store, as the engine uses it.
        dispatcher: Receives the claimed events.
        heart: Is informed when leases begin.
        announce: Queues something to be emitted on the callback thread.
        paced: Report a server clock that jumps against this machine's. False for a test's clock.
    """

    def __init__(
        self,
        *,
        turns: Turns,
        dispatcher: Dispatcher,
        heart: Heart,
        announce: Callable[..., None],
        paced: bool,
    ) -> None:
        self._turns = turns
        self._dispatcher = dispatcher
        self._heart = heart
        self._announce = announce
        self._pace = Pace() if paced else None
        self._unsupplied: set[str] = set()
        self._registered = True

    def take(
        self, request: TurnRequest, turn: Turn, sent: float, came: float, *, lay: bool
    ) -> None:
        """
        Apply the reply to *request*.

        Args:
            request: The claim's request.
            turn: Its reply.
            sent: When the request was sent, on the monotonic clock.
            came: When the reply was received, on the monotonic clock.
            lay: The reply may have arrived earlier than *came* and waited unread.
        """
        if self._pace is not None and (jump := self._pace.jumped(turn.now_us / 1e6, sent)):
            self._clock_jumped(jump)
        if turn.claims:
            self._heart.begin(sent)
            # First of all: a delay here makes every event late that was claimed ahead of time.
            self._dispatcher.accept(request.seq, turn.claims, sent, came, lay=lay)
            if armed:
                reached("claim.handed")
        self._dispatcher.settled(request.settlements, turn.results)
        for id, _ in turn.buried:
            self._announce("buried", id)
        # Stays False until register() has succeeded.
        self._registered = self._registered and turn.known
        if not self._registered:
            self._turns.register()
            self._registered = True
        for schedule in turn.short:
            try:
                self._turns.supply(schedule)
                self._unsupplied.discard(schedule)
            except (OptionError, NamespaceCorrupt) as e:
                # This machine lacks the time zone, or another version wrote the definition.
                # Another node may succeed. Until then the server asks again every second.
                if schedule not in self._unsupplied:
                    self._unsupplied.add(schedule)
                    self._announce("error", e)
        if turn.buried or Result.DEAD in turn.results:
            self._turns.trim()

    def _clock_jumped(self, jump: float) -> None:
        # Leases now end earlier than this node expects, or last too long: renew them at once.
        # After a jump forwards, rely on no lease before the server has renewed it.
        for hold in self._dispatcher.held() if jump > 0 else ():
            hold.distrust()
        self._heart.hasten()
        self._announce("error", ClockJump(jump))
