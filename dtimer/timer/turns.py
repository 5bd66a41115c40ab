"""What the engine asks of the store, in the name of one node."""

from __future__ import annotations

from dtimer.model.claims import Turn, TurnRequest
from dtimer.model.options import Options
from dtimer.store.store import Store


class Turns:
    """The store, as the claimer of this node asks it."""

    def __init__(self, store: Store, incarnation: str, who: str, options: Options) -> None:
        self._store = store
        self._incarnation = incarnation
        self._who = who
        self._options = options
        self.extend = store.renew
        self.slow = store.slow

    def turn(self, request: TurnRequest) -> Turn:
        """See `dtimer.engine.claimer.Turns`, as for all of these."""
        return self._store.turn(self._incarnation, request, self._options.lease)

    def register(self) -> None:
        """Register the node."""
        self._store.join(self._incarnation, self._who)

    def supply(self, schedule: str) -> None:
        """Bring a schedule more nominal times."""
        self._store.supply(schedule)

    def trim(self) -> None:
        """Drop the dead letters that are too many or too old."""
        self._store.trim(self._options.dead_limit, self._options.dead_age)
