"""
The exchange of a node with the store: one turn at a time, asked again until it is answered.

Between the question and its answer the store is at work, and whoever asked may be, too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from dtimer.engine.capacity import Capacity
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.listener import Listener
from dtimer.engine.turns import Turns
from dtimer.model.claims import Answer, Result, Turn, TurnRequest


class Exchange:
    """
    For one thread at a time.

    Args:
        turns: Asks the store.
        listener: Told of echoes that a turn has sent.
        dispatcher: Tells what to claim, and what to settle.
        appetite: How many events there is anybody to hand to.
        capacity: Bounds what is claimed.
    """

    def __init__(
        self,
        turns: Turns,
        listener: Listener,
        dispatcher: Dispatcher,
        appetite: Callable[[], int],
        capacity: Capacity,
    ) -> None:
        self._turns = turns
        self._listener = listener
        self._dispatcher = dispatcher
        self._appetite = appetite
        self._capacity = capacity
        self._seq = 0
        self._answer: Answer | None = None
        #: The turn that has not been answered; None when all have.
        self.request: TurnRequest | None = None
        #: When it was sent.
        self.sent = 0.0

    @property
    def under_way(self) -> bool:
        """True when a turn was sent and its answer, which may be here by now, was not read."""
        return self._answer is not None

    def next(self, claiming: bool) -> TurnRequest:
        """Return the turn that was not answered, or else a new one, not sent yet."""
        if self.request is not None:
            if not (claiming or self.under_way):
                # The node leaves: what this turn has claimed goes back, unseen.
                self.request.most_bytes, self.request.strict = 0, True
            return self.request
        limit, ahead_us = self._dispatcher.wanted(self._appetite()) if claiming else (0, 0)
        return self._new(limit, ahead_us, hears=self._listener.hears and claiming)

    def _new(self, limit: int, ahead_us: int = 0, *, hears: bool) -> TurnRequest:
        self._seq += 1
        request = TurnRequest(
            seq=self._seq,
            limit=limit,
            ahead_us=ahead_us,
            hears=hears,
            echo=self._listener.echo_wanted,
            settlements=self._dispatcher.take_settlements(),
        )
        if self._capacity.most is not None:
            self._capacity.bound(request)
        return request

    def _send(self, request: TurnRequest) -> Answer:
        if request is self.request:
            request.asked += 1
        self.request = request
        self.sent = time.monotonic()
        if request.echo and not request.asked:
            # Before it is sent: it may be heard before this thread runs again. Where the
            # first try got through, and only its reply was lost, no other echo will come.
            self._listener.echo_sent()
        try:
            return self._turns.ask(request)
        except BaseException:
            self._listener.echo_failed()
            raise

    def answer(self, request: TurnRequest) -> Turn:
        """
        Wait for the answer to *request*, which is sent first where it is not under way.

        Until it is `done` the same request is to be asked again.
        """
        lay = self._answer is not None
        answer, self._answer = self._answer or self._send(request), None
        try:
            turn = answer(lay=lay)
        except BaseException:
            self._listener.echo_failed()
            raise
        if self._capacity.most is not None:
            took = None if lay else time.monotonic() - self.sent
            self._capacity.received(request, turn, took)
        return turn

    def broke(self, request: TurnRequest, error: Exception) -> bool:
        """Tell whether the answer broke off while it arrived; then *request* asks for less."""
        broke = self._capacity.broke(request, error)
        if broke:
            self._capacity.bound(request)
        return broke

    def done(self) -> None:
        """Note that the answer was read, as far as it has to be."""
        self.request = None

    def wanted_meanwhile(self, request: TurnRequest, turn: Turn) -> int:
        """Return how many events to ask for before those that have come are handed out."""
        count = len(turn.claims)
        # Without a look at the claims, where nothing was asked for ahead of its time.
        overdue = count > 0 and (not request.ahead_us or turn.claims[-1].due_us <= turn.now_us)
        self._dispatcher.prefetch.answered(request.limit, count, overdue=overdue)
        if (
            self._turns.busy
            or not turn.known
            or turn.buried
            or turn.short
            or Result.DEAD in turn.results
        ):
            # These are to be seen to first, which takes a call.
            return 0
        return self._dispatcher.wanted_meanwhile(request.limit, count, self._appetite())

    def ask_meanwhile(self, limit: int) -> None:
        """
        Ask for more: the server is at work on it while what has come is handed out.

        Where it cannot be sent it is to be asked again, and then it will be seen what is wrong.
        """
        # Hands that will be free are not offered: a wake would find them busy.
        # Its answer will lie unread for longer than it is on its way.
        self._dispatcher.reposts.begin(self._seq + 1)
        request = self._new(limit, hears=False)
        with contextlib.suppress(Exception):
            self._answer = self._send(request)
