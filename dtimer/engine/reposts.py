"""
What this process posts anew while claims are on their way to it.

A claim of such an id may be of what was replaced. Given back it does no harm: what is stale is
ignored, and what is not is claimed again at once.
"""

from __future__ import annotations

import threading
from collections.abc import Collection


class Reposts:
    """For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._earlier: set[str] = set()
        # None while no claim is on its way.
        self._ids: set[str] | None = None

    def begin(self) -> None:
        """Note that claims are asked for. Those of the question before may not be here yet."""
        with self._lock:
            self._earlier, self._ids = self._ids or set(), set()

    def end(self) -> None:
        """Note that no claims are on their way any more."""
        with self._lock:
            self._earlier, self._ids = set(), None

    def add(self, ids: Collection[str]) -> None:
        """Note what has just been posted anew."""
        with self._lock:
            if self._ids is not None:
                self._ids.update(ids)

    def __bool__(self) -> bool:
        return bool(self._ids or self._earlier)

    def __contains__(self, id: object) -> bool:
        with self._lock:
            return id in self._earlier or id in (self._ids or ())
