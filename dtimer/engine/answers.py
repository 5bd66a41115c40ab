"""What follows from the answer to a turn, beside the next one."""

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
    For one thread at a time.

    Args:
        turns: Asks the store.
        dispatcher: Takes the claims.
        heart: Told that leases begin.
        announce: Has something emitted soon.
        paced: Whether the server's clock is to go at the pace of this machine's.
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
        Do all that the answer to *request* asks for, which was *sent* and *came* then.

        Where it *lay* unread, nobody knows since when.
        """
        if self._pace is not None and (jump := self._pace.jumped(turn.now_us / 1e6, sent)):
            self._clock_jumped(jump)
        if turn.claims:
            self._heart.begin(sent)
            # Not later than need be: what was claimed ahead is as late as this.
            self._dispatcher.accept(request.seq, turn.claims, sent, came, lay=lay)
            if armed:
                reached("claim.handed")
        self._dispatcher.settled(request.settlements, turn.results)
        for id, _ in turn.buried:
            self._announce("buried", id)
        self._registered = self._registered and turn.known  # until it is done
        if not self._registered:
            self._turns.register()
            self._registered = True
        for schedule in turn.short:
            try:
                self._turns.supply(schedule)
                self._unsupplied.discard(schedule)
            except (OptionError, NamespaceCorrupt) as e:
                # A time zone that is not known here, or a definition that somebody else has
                # written. Another node may know better; it is asked for again every second.
                if schedule not in self._unsupplied:
                    self._unsupplied.add(schedule)
                    self._announce("error", e)
        if turn.buried or Result.DEAD in turn.results:
            self._turns.trim()

    def _clock_jumped(self, jump: float) -> None:
        # Leases now end sooner than is believed here, or would last for too long: they are
        # renewed at once. The server's word alone counts until they are.
        for hold in self._dispatcher.held() if jump > 0 else ():
            hold.doubt()
        self._heart.hasten()
        self._announce("error", ClockJump(jump))
