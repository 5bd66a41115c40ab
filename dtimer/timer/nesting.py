"""What a signal handler does to a timer whose `join` it interrupts."""

from __future__ import annotations

import threading


class Nesting:
    """
    Which thread joins, and how often each thread has left.

    A join that is interrupted by a join is that of both. One that is interrupted by a leave has to
    end as soon as it goes on: until then nobody could wait for that.
    """

    def __init__(self) -> None:
        #: Held by the thread that joins. A lock, because no exception leaves it held.
        self.joining = threading.RLock()
        self._by_thread = threading.local()

    @property
    def leaves(self) -> int:
        """How often this thread has called leave()."""
        found: int = getattr(self._by_thread, "leaves", 0)
        return found

    def left(self) -> None:
        """Note that this thread calls leave()."""
        self._by_thread.leaves = self.leaves + 1

    @property
    def joining_here(self) -> bool:
        """True in what interrupts a join of this thread."""
        return bool(self.joining._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001
