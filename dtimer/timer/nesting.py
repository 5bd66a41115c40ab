"""Keep track of a `join` that a signal handler interrupts with another `join` or a `leave`."""

from __future__ import annotations

import threading


class Nesting:
    """
    Knows which thread joins, and how often each thread has called leave().

    If a join interrupts a join, the interrupted one serves both. If a leave interrupts a join,
    the join must end once it continues. The leave cannot wait for that, because it runs on the
    same thread.

    Args:
        leaves: How often the calling thread has called leave() before.
    """

    def __init__(self, leaves: int = 0) -> None:
        #: Held by the thread that joins. A lock, because an exception always releases it.
        self.joining: threading.RLock = threading.RLock()
        self._by_thread = threading.local()
        self._by_thread.leaves = leaves

    @property
    def leaves(self) -> int:
        """How often this thread has called leave()."""
        found: int = getattr(self._by_thread, "leaves", 0)
        return found

    def record_leave(self) -> None:
        """Record that this thread calls leave()."""
        self._by_thread.leaves = self.leaves + 1

    @property
    def joining_here(self) -> bool:
        """True in a signal handler that interrupts a join on this thread."""
        return bool(self.joining._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001
