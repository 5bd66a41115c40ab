"""
The callback thread: emits everything except ``'event'``, and writes the log.

A listener of ``'error'`` may be slow, for example because it writes to a remote log. On the
claimer's thread it would delay the renewal of leases.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

from dtimer.engine.flag import Flag
from dtimer.engine.ports import Announcement, AnnouncementEmitter
from dtimer.engine.service import Service
from dtimer.faultpoints import armed, reached

# The longest queue. A listener that never returns must not fill the memory. Calls, which write the
# log, may fill half of it, so that a slow log causes no announcement to be dropped.
_MOST = 10_000
_MOST_CALLS = _MOST // 2


class CallbackThread(Service):
    """Emits, in order, what the other threads of the node announce."""

    def __init__(self, name: str, emitter: AnnouncementEmitter) -> None:
        super().__init__(name, self._loop, self._report)
        self._emitter = emitter
        self._queue: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        #: How many announcements were dropped because the queue was full.
        self.dropped: int = 0
        # Re-entrant, because a signal handler that interrupts an announcement may announce, too.
        self._dropped_lock = threading.RLock()
        # The moment of a delayed call, on the monotonic clock, and the function to call.
        # In a list of at most one, so that each change is one step of the interpreter.
        self._later: list[tuple[float, Callable[[], None]]] = []

    def _report(self, error: BaseException) -> None:
        self._emitter.emit("error", error)

    def announce(
        self, event: Announcement, *arguments: Any, context: Context | None = None
    ) -> None:
        """
        Queue *event* to be emitted. Never blocks; if the queue is full, drops and counts it.

        Args:
            event: The name.
            arguments: The arguments of its listeners.
            context: The context in which they run; None for that of this thread.
        """
        if self._queue.qsize() < _MOST:
            call = () if context is None else (context.run, self._emitter.emit)
            self._queue.put((*call, event, *arguments))
        else:
            with self._dropped_lock:
                self.dropped += 1

    def call(self, function: Callable[..., None], *arguments: Any) -> bool:
        """Queue *function* to be called. Never blocks; return False if the call was dropped."""
        room = self._queue.qsize() < _MOST_CALLS
        if room:
            self._queue.put((function, *arguments))
        return room

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Run *call* on this thread in *seconds*. Replaces a call that still waits."""
        self._later[:] = [(time.monotonic() + seconds, call)]
        # An empty item emits nothing; it wakes the thread to compute its wait again.
        self._queue.put(())

    def _loop(self, stopping: Flag) -> None:
        # Emits everything that was announced before the stop.
        while (item := self._next()) is not None:
            self._emit_item(item)

    def _next(self) -> tuple[Any, ...] | None:
        """Wait for the next announcement; run the delayed call once it is due."""
        while later := self._later[:]:
            left = later[0][0] - time.monotonic()
            if left <= 0:
                # Fails if another thread has just replaced the call. Then wait for the new one.
                with contextlib.suppress(ValueError):
                    self._later.remove(later[0])
                    later[0][1]()
                continue
            try:
                return self._queue.get(timeout=left)
            except queue.Empty:
                continue
        return self._queue.get()

    def _emit_item(self, item: tuple[Any, ...]) -> None:
        if not item:
            return
        if armed:
            reached("loop.callbacks")
        if callable(item[0]):
            item[0](*item[1:])
        else:
            self._emitter.emit(*item)

    def emit_one(self) -> bool:
        """Emit the next announcement on the calling thread; return False if there is none."""
        try:
            item = self._queue.get_nowait()
        except queue.Empty:
            return False
        if item is not None:
            self._emit_item(item)
        return item is not None

    def stop(self) -> None:
        """Ask the thread to end after it has emitted all announcements so far."""
        super().stop()
        self._queue.put(None)
