"""A handler that a test steps through."""

from __future__ import annotations

import queue
import threading
from typing import Any

from servers import PATIENCE


class Gated:
    """
    A handler that waits, once called, until the test lets it return.

    Args:
        timer: The node whose events it handles; None if the test passes the handler on itself.
        then: Called with the events before the handler returns.
    """

    def __init__(self, timer: Any = None, then: Any = lambda events: None) -> None:
        self._begun: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._go_on = threading.Semaphore(0)
        self._then = then
        if timer is not None:
            timer.on("event", self.handle)

    def __call__(self, ev: Any) -> None:
        """Handle one event, as the ``handler=`` of `faults.expectations.Watch.node`."""
        self.handle([ev])

    def handle(self, events: list[Any]) -> None:
        self._begun.put(events)
        assert self._go_on.acquire(timeout=PATIENCE)
        try:
            self._then(events)
        finally:
            self._ended.put(events)

    def begun(self) -> list[Any]:
        """Wait for the next call of the handler; return its events."""
        return self._begun.get(timeout=PATIENCE)

    def go_on(self, times: int = 1) -> None:
        """Let *times* calls return, future calls included."""
        self._go_on.release(times)

    def ended(self) -> list[Any]:
        """Wait until the next call has returned; return its events."""
        return self._ended.get(timeout=PATIENCE)

    @property
    def waiting(self) -> int:
        """The number of calls that have begun and were not yet taken by `begun`."""
        return self._begun.qsize()
