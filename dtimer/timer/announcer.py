"""Emit what a node announces."""

from __future__ import annotations

import contextlib
from typing import Any

from dtimer.engine.ports import Announcement
from dtimer.errors import StoreError
from dtimer.model.outcomes import Reason
from dtimer.store.store import Store
from dtimer.timer.weak import TimerCalls


class Announcer:
    """
    Emits the announcements of a node on its callback thread, where a call of Redis may wait.

    Args:
        store: Returns the dead letter of an event.
        timer: Has the listeners.
    """

    def __init__(self, store: Store, timer: TimerCalls) -> None:
        self._store = store
        self._timer = timer

    def emit(self, event: Announcement, *arguments: Any) -> None:
        """Emit *event*; for an event that was buried, emit ``'dead'`` or ``'expired'``."""
        if event != "buried":
            self._timer.emit(event, *arguments)
            return
        with contextlib.suppress(StoreError):
            # None if the dead letter was revived, purged or trimmed meanwhile.
            if letter := self._store.letter(arguments[0]):
                kind = "expired" if letter.reason == Reason.EXPIRED else "dead"
                self._timer.emit(kind, letter)
