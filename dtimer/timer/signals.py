"""Catch the signals that end `DTimer.run`, and restore their handlers after the node has left."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any


class Signals:
    """
    Catches signals that end a node, but only if used on the main thread.

    A signal must not interrupt a node that leaves, because an exception of its handler would
    leave the work half done. So a second signal only hurries the leave. Its previous handler is
    called after the node has left.

    Args:
        stop_waiting: Called by the signal handler if another signal comes while the node leaves.
        names: The signals. Those that the system lacks are left out.
    """

    def __init__(
        self, stop_waiting: Callable[[], None], names: Sequence[str] = ("SIGINT", "SIGTERM")
    ) -> None:
        self._stop_waiting = stop_waiting
        self._numbers = [number for name in names if (number := getattr(signal, name, None))]
        self._caught: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._leaving = False
        self._previous: dict[int, Any] = {}

    def catch(self) -> None:
        """Catch the signals from now on."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._numbers:
            # A shell starts a background job with SIGINT ignored, so that Ctrl-C does not end it.
            # nohup ignores SIGHUP.
            if number != signal.SIGTERM and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._caught.put(number)
        if self._leaving:
            self._stop_waiting()

    def wait(self, seconds: float) -> bool:
        """Wait at most *seconds* for a signal; return False if none came."""
        try:
            self._caught.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    def hurry_leave(self) -> None:
        """Let each signal from now on shorten the leave, and each that `wait` has not seen."""
        self._leaving = True
        if not self._caught.empty():
            self._stop_waiting()

    def put_back(self) -> None:
        """Restore the previous handlers, and raise again a signal that came during the leave."""
        try:
            self._restore()
        finally:
            # Again, because the first handler may be called, and raise, before the second is
            # restored.
            self._restore()
        if not self._caught.empty():
            signal.raise_signal(self._caught.get())

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that Python has not installed, and cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
