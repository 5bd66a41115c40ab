"""A handler that a test holds by the hand."""

from __future__ import annotations

import queue
import threading
from typing import Any

from servers import PATIENCE


class Gated:
    """
    Tells when it has been called, and returns when it is let go on.

    Args:
        timer: Whose ``'event'`` it listens to.
        then: Called with the events before it returns.
    """

    def __init__(self, timer: Any, then: Any = lambda events: None) -> None:
        self._begun: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._go_on = threading.Semaphore(0)
        self._then = then
        timer.on("event", self.handle)

    def handle(self, events: list[Any]) -> None:
        self._begun.put(events)
        assert self._go_on.acquire(timeout=PATIENCE)
        try:
            self._then(events)
        finally:
            self._ended.put(events)

    def begun(self) -> list[Any]:
        """Wait for the next call, and return its events."""
        return self._begun.get(timeout=PATIENCE)

    def go_on(self, times: int = 1) -> None:
        """Let *times* calls return, those to come included."""
        self._go_on.release(times)

    def ended(self) -> list[Any]:
        """Wait for the next call to return, and return its events."""
        return self._ended.get(timeout=PATIENCE)

    @property
    def waiting(self) -> int:
        """How many calls have begun that nobody has asked for."""
        return self._begun.qsize()
