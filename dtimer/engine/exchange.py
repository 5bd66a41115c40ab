"""
The exchange of a node with the store: one turn at a time, asked again until it is answered.

Between the question and its answer the store is at work, and whoever asked may be, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dtimer.engine.listener import Listener
from dtimer.engine.turns import Turns
from dtimer.model.claims import Turn, TurnRequest


class Exchange:
    """
    For one thread at a time.

    Args:
        turns: Asks the store.
        listener: Told of echoes that a turn has sent.
    """

    def __init__(self, turns: Turns, listener: Listener) -> None:
        self._turns = turns
        self._listener = listener
        self._answer: Callable[[], Turn] | None = None
        #: The turn that has not been answered; None when all have.
        self.request: TurnRequest | None = None
        #: When it was sent.
        self.sent = 0.0

    @property
    def under_way(self) -> bool:
        """True when a turn was sent and its answer, which may be here by now, was not read."""
        return self._answer is not None

    def ask(self, request: TurnRequest) -> Callable[[], Turn]:
        """Send a turn: a new one, or once more the one that was not answered."""
        if request is self.request:
            request.asked += 1
        self.request = request
        self.sent = time.monotonic()
        if request.echo and not request.asked:
            # Before it is sent: it may be heard before this thread runs again. Where the
            # first try got through, and only its reply was lost, no other echo will come.
            self._listener.echo_sent()
        try:
            self._answer = self._turns.ask(request)
        except BaseException:
            self._listener.echo_failed()
            raise
        return self._answer

    def answer(self, request: TurnRequest) -> Turn:
        """
        Wait for the answer to *request*, which is sent first where it is not under way.

        Only when it has come there is nothing to be asked again.
        """
        answer = self._answer or self.ask(request)
        self._answer = None
        try:
            turn = answer()
        except BaseException:
            self._listener.echo_failed()
            raise
        self.request = None
        return turn
