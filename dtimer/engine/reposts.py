"""
What this process posts anew while claims wait to be read by it.

A claim that was asked for before is, most likely, of what was replaced. Given back it does no
harm: what is stale is ignored, and what is not is claimed again at once.
"""

from __future__ import annotations

import threading
from collections.abc import Collection


class Reposts:
    """For any thread. Questions are numbered upwards; their answers come in that order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The last question that asked for claims; None while no claim is on its way.
        self._asked: int | None = None
        # Of each id the last question that had been asked before it was posted.
        self._ids: dict[str, int] = {}

    def begin(self, seq: int) -> None:
        """Note that claims are asked for. Those of the question before may not be here yet."""
        with self._lock:
            self._asked = seq
            if self._ids:
                self._ids = {id: asked for id, asked in self._ids.items() if asked >= seq - 1}

    def end(self) -> None:
        """Note that no claims are on their way any more."""
        with self._lock:
            self._asked = None
            self._ids.clear()

    def add(self, ids: Collection[str]) -> None:
        """Note what is about to be posted anew."""
        with self._lock:
            if self._asked is not None:
                self._ids.update(dict.fromkeys(ids, self._asked))

    def since(self, seq: int) -> set[str]:
        """Return what was posted anew after a question was asked."""
        if not self._ids:
            return set()
        with self._lock:
            return {id for id, asked in self._ids.items() if asked >= seq}
