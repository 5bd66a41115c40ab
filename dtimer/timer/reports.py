"""Report what a joined node says about itself, and write the history of the namespace."""

from __future__ import annotations

import time
from collections.abc import Callable

from dtimer.engine.callbacks import CallbackThread
from dtimer.model.records import Health
from dtimer.store.store import Store
from dtimer.timer.presence import Presence

# Seconds between two looks at the state of the node, between two reports of a node that does not
# change, and from the begin of a minute, by the server's clock, to a report.
_LOOK_EVERY, _REPORT_EVERY, _AFTER_MINUTE = 5.0, 60.0, 0.05


class Reports:
    """
    Reports once a minute, and within 5 s after the state of the node has changed.

    A report is a call of its own, on the callback thread, so it costs a claim nothing.

    Args:
        store: The store.
        incarnation: The node's incarnation.
        presence: Builds the entry of the node.
        callbacks: Runs the reports.
        health: Returns the node's health; None once the node leaves.
        answers: Returns False during an outage.
        history: Whether to write the history, too.
    """

    def __init__(
        self,
        store: Store,
        incarnation: str,
        presence: Presence,
        callbacks: CallbackThread,
        *,
        health: Callable[[], Health | None],
        answers: Callable[[], bool],
        history: bool,
    ) -> None:
        self._store = store
        self._incarnation = incarnation
        self._presence = presence
        self._callbacks = callbacks
        self._health = health
        self._answers = answers
        self._history = history
        self._unsent = False
        self._next = time.monotonic() + _REPORT_EVERY

    def look_in(self, seconds: float) -> None:
        """Look at the state of the node in *seconds*, and then again and again."""
        self._callbacks.later(seconds, self._look)

    def _look(self) -> None:
        health = self._health()
        if health is None:
            return
        self._unsent = self._presence.outdated(health) or self._unsent
        # During an outage a report would only delay the emissions of the callback thread.
        if (self._unsent or time.monotonic() >= self._next) and self._answers():
            self._report()
        self.look_in(max(_AFTER_MINUTE, min(_LOOK_EVERY, self._next - time.monotonic())))

    def _report(self) -> None:
        self._next = time.monotonic() + _REPORT_EVERY
        began = time.perf_counter()
        try:
            entry = self._presence.entry()
            left = self._store.report(self._incarnation, entry, history=self._history)
        except Exception:
            # The claims report an outage. The next look tries again.
            return
        self._presence.rtt = round((time.perf_counter() - began) * 1e6)
        self._unsent = False
        self._next = time.monotonic() + min(left / 1e6, _REPORT_EVERY) + _AFTER_MINUTE
