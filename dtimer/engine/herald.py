"""
The herald: says aloud what happened, on a thread of its own.

A listener of ``'error'`` may take its time, to write to a log far away. It must not do
so on the thread that renews leases.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from dtimer.engine.flag import Flag
from dtimer.engine.service import Service
from dtimer.faultpoints import armed, reached

# A listener that never returns must not fill the memory.
_MOST = 10_000


class Herald(Service):
    """Emits, in order, what others announce."""

    def __init__(self, name: str, emit: Callable[..., None]) -> None:
        super().__init__(name, self._loop, lambda e: emit("error", e))
        self._emit = emit
        self._queue: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        #: How many announcements were dropped because listeners had fallen too far behind.
        self.dropped = 0
        # Re-entrant: the handler of a signal may announce something, too.
        self._counting = threading.RLock()
        # What is to be called, and when, on the monotonic clock.
        self._later: tuple[float, Callable[[], None]] | None = None

    def announce(self, event: str, *arguments: Any) -> None:
        """Have *event* emitted soon. Never blocks; what is too much is dropped and counted."""
        if self._queue.qsize() < _MOST:
            self._queue.put((event, *arguments))
        else:
            with self._counting:
                self.dropped += 1

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Have *call* called on this thread in so many seconds, in place of one that waits."""
        self._later = (time.monotonic() + seconds, call)
        # Nothing to be said: the wait is for a new moment.
        self._queue.put(())

    def _loop(self, stopping: Flag) -> None:
        # What was announced before the stop is still said.
        while (said := self._next()) is not None:
            self._speak(said)

    def _next(self) -> tuple[Any, ...] | None:
        """Wait for the next announcement; what is due to be called meanwhile is called."""
        while (later := self._later) is not None:
            left = later[0] - time.monotonic()
            if left <= 0:
                self._later = None
                later[1]()
                continue
            try:
                return self._queue.get(timeout=left)
            except queue.Empty:
                continue
        return self._queue.get()

    def _speak(self, said: tuple[Any, ...]) -> None:
        if not said:
            return
        if armed:
            reached("loop.herald")
        self._emit(*said)

    def speak_up(self) -> bool:
        """Say the next thing on the caller's own thread; False for none. See `lend_a_hand`."""
        try:
            said = self._queue.get_nowait()
        except queue.Empty:
            return False
        if said is not None:
            self._speak(said)
        return said is not None

    def stop(self) -> None:
        """End, once everything announced so far has been said."""
        super().stop()
        self._queue.put(None)
