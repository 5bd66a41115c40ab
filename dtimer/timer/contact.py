"""Report whether Redis answers a node, and whether wakes reach it."""

from __future__ import annotations

import time
from collections.abc import Callable

from dtimer import log as messages
from dtimer.engine.ports import Announcements
from dtimer.errors import StoreError
from dtimer.log import Log
from dtimer.store import acl
from dtimer.store.store import Store


class Contact:
    """
    Emits ``'connected'``, ``'disconnected'`` and ``'error'`` when the contact changes.

    Args:
        store: Provides the address and the namespace for messages.
        announcements: Emits the reports.
        log: The node's log.
        on_answer: Called when Redis answers a claim for the first time, or again.
    """

    def __init__(
        self,
        store: Store,
        announcements: Announcements,
        log: Log,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._log = log
        self._announcements = announcements
        self._on_answer = on_answer
        #: When the last reply to a claim was received, on the monotonic clock.
        self.answered: float | None = None
        self._reachable = True
        self._outage_began = 0.0
        # Why wakes do not arrive, and since when, on the monotonic clock.
        self._deafness: tuple[BaseException | None, float | None] = (None, None)
        self._deaf_reported = False

    def connectivity_changed(
        self, error: Exception | None, *, claim_answered: bool = False
    ) -> None:
        """
        Report that the node cannot work, because of *error*; None reports that it can again.

        Args:
            error: Why it cannot work.
            claim_answered: False if Redis does not answer a claim; True if it answered one, but a
                step after it failed.
        """
        if error is None:
            if not self._reachable:
                lasted = time.monotonic() - self._outage_began
                self._log.add(messages.OUTAGE_ENDED, lasted, self._store.server.source.address)
            self._announcements.announce("connected")
            self._reachable = True
            self._on_answer()
        else:
            began, what = messages.OUTAGE_BEGAN, "does not answer"
            if claim_answered:
                began, what = messages.STEP_FAILED, "answered a claim, but a step after it failed"
            if self._reachable:
                self._outage_began = time.monotonic()
                self._log.add(began, self._store.server.source.address, error)
                self._announcements.announce("disconnected", error)
            self._reachable = False
            self._report(
                error, f"Redis at {self._store.server.source.address} {what}; the node keeps trying"
            )

    def hearing_changed(self, error: BaseException | None, deaf_since: float | None) -> None:
        """Report that wakes do not arrive, because of *error*; None records that they do."""
        self._deafness = error, deaf_since
        if error is None:
            if self._deaf_reported:
                self._log.add(messages.HEARS)
            self._deaf_reported = False
            return
        # If Redis does not answer either, the claimer reports that, and this report would only
        # repeat it. So wait for a claim that was answered since.
        answered = self.answered
        if answered is None or deaf_since is None or answered < deaf_since:
            return
        if not self._deaf_reported:
            self._deaf_reported = True
            self._log.add(messages.DEAF, error)
            self._report(error, "wakes do not arrive; events are found by polling")

    def report_if_deaf(self) -> None:
        """Report a deafness that began before the first claim was answered."""
        error, deaf_since = self._deafness
        if error is not None:
            self.hearing_changed(error, deaf_since)

    def _report(self, error: BaseException, what: str) -> None:
        rule = acl.remedy(str(error), self._store.ns)
        report = StoreError(f"{what}: {error}{f' ({rule})' if rule else ''}")
        report.__cause__ = error
        self._announcements.announce("error", report)
