"""What the engine asks of the store, in the name of one node."""

from __future__ import annotations

from collections.abc import Callable

from dtimer.errors import StateRollback
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import Answer, TurnRequest
from dtimer.model.options import Options
from dtimer.store.store import Store

# Seconds by which a rollback may go back further than the clock of the server says.
_SPARE = 2.0


class Turns:
    """The store, as the claimer of this node asks it."""

    def __init__(
        self, store: Store, incarnation: str, who: Callable[[], str], options: Options
    ) -> None:
        self._store = store
        self._incarnation = incarnation
        self._who = who
        self._options = options
        self.extend = store.renew
        self.slow = store.slow
        # For how many seconds back schedules may be gone (None: for ever), of each rollback
        # that nothing was done about yet.
        self._gone: list[float | None] = []

    def rolled_back(self, error: StateRollback) -> None:
        """Have declared again, before the next turn, what was declared from here and is gone."""
        since = None if error.wiped else error.since
        self._gone.append(None if since is None else (error.until - since) / 1000 + _SPARE)

    def ask(self, request: TurnRequest) -> Answer:
        """See `dtimer.engine.turns.Turns`, as for all of these."""
        if armed:
            self._points(request)
        while self._gone:
            # Where this fails it counts as the turn's failure, and is tried again.
            self._store.redeclare(self._gone[0])
            self._gone.pop(0)
        return self._store.ask(self._incarnation, request, self._options.lease)

    @property
    def busy(self) -> bool:
        """Whether there are schedules to be declared again first."""
        return bool(self._gone)

    @staticmethod
    def _points(request: TurnRequest) -> None:
        if request.asked:
            reached("retry.sending")
        if request.settlements:
            reached("settle.sending")
        reached("turn.asking")

    def alone(self) -> bool:
        """Tell whether no other node has joined."""
        return self._store.alone(self._incarnation)

    def register(self) -> None:
        """Register the node."""
        self._store.join(self._incarnation, self._who())

    def supply(self, schedule: str) -> None:
        """Bring a schedule more nominal times."""
        self._store.supply(schedule)

    def trim(self) -> None:
        """Drop the dead letters that are too many or too old."""
        self._store.trim(self._options.dead_limit, self._options.dead_age)
