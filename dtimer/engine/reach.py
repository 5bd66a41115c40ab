"""Whether the store can be reached: who is told, and how long to wait before it is tried again."""

from __future__ import annotations

from collections.abc import Callable

from dtimer.engine.flag import Flag
from dtimer.model.jitter import between

_FIRST_PAUSE, _LONGEST_PAUSE, _SLOW_PAUSE = 0.05, 0.5, 5.0


class Reach:
    """
    For one thread at a time.

    Args:
        slow: Tells whether an error needs a person.
        changed: Told with None that the store answers, or with the error that it does not.
    """

    def __init__(
        self,
        slow: Callable[[BaseException | None], bool],
        changed: Callable[[Exception | None], None],
    ) -> None:
        self._slow = slow
        self._changed = changed
        self._pause = _FIRST_PAUSE
        self._told: set[type] = set()
        #: Set when the first turn has been answered, or refused.
        self.tried = Flag()
        #: Why the last turn was not answered.
        self.error: Exception | None = None

    def answered(self) -> None:
        """Note that a turn and all that followed from it was done."""
        self._pause = _FIRST_PAUSE
        if self.error is not None or not self.tried.is_set():
            self.error = None
            self._told.clear()
            self._changed(None)
        self.tried.set()

    def failed(self, error: Exception) -> float:
        """Note that a turn was not, and return for how many seconds to pause."""
        if type(error) not in self._told:
            # Each kind once in an outage, however they take turns.
            self._told.add(type(error))
            self._changed(error)
        self.error = error
        self.tried.set()
        if self._slow(error):
            return _SLOW_PAUSE
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return between(self._pause / 2, self._pause)
