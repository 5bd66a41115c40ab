"""The book: which events the node holds, and which of their ends are to be told the store."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Callable, Collection, Sequence

from dtimer.engine.hold import Hold
from dtimer.errors import LeaseLost
from dtimer.model.claims import Result, Settlement, Verdict
from dtimer.model.options import Options

#: Settlements in one turn; a script must stay short.
MOST_SETTLEMENTS = 250

# And characters of the errors in them, because a slow connection takes long to send those. A few
# are always less (engine/hands.py).
_MOST_TEXT, _FEW = 50_000, 20


class Book:
    """
    What the node holds, for any thread and without a lock.

    Each change is one step of the interpreter: a signal handler may post while a post is
    interrupted here, and may leave, which waits for threads that need the book.

    Args:
        node: The node's id, for messages.
        options: The node's.
        announce: Has something emitted soon.
    """

    def __init__(self, node: str, options: Options, announce: Callable[..., None]) -> None:
        self._node = node
        self._options = options
        self._announce = announce
        self._held: dict[int, Hold] = {}
        self._settlements: list[Settlement] = []
        self._unsettled_since = 0.0
        # Whether the last turn could not take all of them.
        self._left_over = False

    def _hold_on(self, holds: Sequence[Hold]) -> None:
        for hold in holds:
            self._held[hold.claim.token] = hold

    def _forget(self, holds: Sequence[Hold]) -> None:
        for hold in holds:
            self._held.pop(hold.claim.token, None)

    def _settle(self, settlements: Sequence[Settlement]) -> None:
        if not self._settlements:
            self._unsettled_since = time.monotonic()
        self._settlements.extend(settlements)

    def take_settlements(self) -> list[Settlement]:
        """Return what is to be settled in the next turn."""
        taken = self._settlements[:MOST_SETTLEMENTS]
        if len(taken) > _FEW:
            sizes = itertools.accumulate([len(s.error) for s in taken])
            del taken[max(1, bisect.bisect_right(list(sizes), _MOST_TEXT)) :]
        # And not more, though more may have come meanwhile.
        del self._settlements[: len(taken)]
        self._left_over = bool(self._settlements)
        return taken

    @property
    def unsettled(self) -> bool:
        """True while something waits for a turn to be settled in."""
        return bool(self._settlements)

    def settled(self, settlements: Sequence[Settlement], results: Sequence[Result]) -> None:
        """Note what a turn made of the settlements that were taken for it."""
        told: list[tuple[Settlement, Result, Hold]] = []
        for settlement, result in zip(settlements, results, strict=False):
            hold = self._held.pop(settlement.token, None)
            # Most are confirmed, of which there is nothing more to say.
            plain = result is Result.DONE and settlement.verdict is Verdict.CONFIRM
            if hold is not None and not plain:
                told.append((settlement, result, hold))
        for settlement, result, hold in told:
            stale = result is Result.STALE and settlement.verdict is not Verdict.RELEASE
            # One that this process has posted anew, or ended, it has given up itself.
            if stale and hold.lose() and not hold.superseded:
                self._announce("lease_lost", hold.event)
                lost = LeaseLost(settlement.id, self._node, settlement.token)
                self._announce("error", lost)
            self._ended(hold, result)

    def held(self) -> list[Hold]:
        """Return the holds to be renewed: those of handlers that run, and not for too long."""
        now = time.monotonic()
        return [h for h in list(self._held.values()) if not (h.settled or self._overran(h, now))]

    def _overran(self, hold: Hold, now: float) -> bool:
        limit = self._options.max_run
        return limit is not None and hold.started is not None and now > hold.started + limit / 1e6

    def stuck(self) -> int:
        """Return how many events are in the hands of handlers that overran ``max_run``."""
        now = time.monotonic()
        return sum(self._overran(h, now) for h in list(self._held.values()))

    def superseded(self, ids: Collection[str]) -> None:
        """Note that this process has posted events of these ids anew."""
        for hold in list(self._held.values()):
            if hold.claim.id in ids:
                hold.superseded = True

    def lose(self, hold: Hold) -> None:
        """Note that a lease could not be renewed because it was somebody else's."""
        if hold.lose() and not hold.superseded:
            self._announce("lease_lost", hold.event)

    def _ended(self, hold: Hold, result: Result) -> None:
        self._held.pop(hold.claim.token, None)
        if result is Result.STALE:
            return
        if result is Result.DEAD:
            self._announce("buried", hold.claim.id)
        elif hold.verdict is Verdict.RETRY and result is Result.DONE:
            self._announce("retry", hold.event)
