"""Settle and extend leases immediately, even after their node has left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from dtimer.engine.flag import Flag
from dtimer.model.claims import Outcome, Renewal, Settlement
from dtimer.store.store import Store
from dtimer.timer.weak import TimerCalls


class Ledger:
    """
    Passes the settlements and extensions of events to the store.

    Args:
        store: The node's store.
        end: Set when the node that claimed the events has ended. A call opened after that must
            close its own connections, because the node does not close them any more.
        timer: Closes the connections of the store, unless it has joined again.
    """

    def __init__(self, store: Store, end: Flag, timer: TimerCalls) -> None:
        self._store = store
        self._end = end
        self._timer = timer

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        """See `dtimer.store.claims.Claims.settle`."""
        with self._closing():
            return self._store.claims.settle(settlements)

    def extend(
        self, held: Sequence[tuple[str, int]], lease_us: int, *, at_least: bool = False
    ) -> list[Renewal]:
        """See `dtimer.store.claims.Claims.extend`."""
        with self._closing():
            return self._store.claims.extend(held, lease_us, at_least=at_least)

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._end.is_set():
                self._timer.close_unless_joined()
