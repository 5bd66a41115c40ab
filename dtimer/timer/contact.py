"""Report whether Redis answers a node, and whether wakes reach it."""

from __future__ import annotations

import time
from collections.abc import Callable

from dtimer import log as messages
from dtimer.errors import StoreError
from dtimer.log import Log
from dtimer.store import acl
from dtimer.store.store import Store


class Contact:
    """
    Emits ``'connected'``, ``'disconnected'`` and ``'error'`` when the contact changes.

    Args:
        store: Provides the address and the namespace for messages.
        announce: Queues something to be emitted on the callback thread.
        answered: Returns the time of the last answered claim on the monotonic clock, or None if no
            claim was answered.
        deaf_since: Returns the time from which on wakes do not arrive; None while they do.
        log: The node's log.
    """

    def __init__(
        self,
        store: Store,
        announce: Callable[..., None],
        answered: Callable[[], float | None],
        deaf_since: Callable[[], float | None],
        log: Log,
    ) -> None:
        self._store = store
        self._log = log
        self._announce = announce
        self._answered = answered
        self._deaf_since = deaf_since
        self._reachable = True
        self._outage_began = 0.0
        self._deaf_error: BaseException | None = None
        self._deaf_reported = False

    def connectivity_changed(self, error: Exception | None) -> None:
        """Report that Redis does not answer, because of *error*; None reports that it answers."""
        if error is None:
            if not self._reachable:
                lasted = time.monotonic() - self._outage_began
                self._log.add(messages.OUTAGE_ENDED, lasted, self._store.place)
            self._announce("connected")
            self._reachable = True
        else:
            if self._reachable:
                self._outage_began = time.monotonic()
                self._log.add(messages.OUTAGE_BEGAN, self._store.place, error)
                self._announce("disconnected", error)
            self._reachable = False
            self._report(
                error, f"Redis at {self._store.place} does not answer; the node keeps trying"
            )

    def hearing_changed(self, error: BaseException | None) -> None:
        """Report that wakes do not arrive, because of *error*; None records that they do."""
        self._deaf_error = error
        if error is None:
            if self._deaf_reported:
                self._log.add(messages.HEARS)
            self._deaf_reported = False
            return
        # If Redis does not answer either, the claimer reports that, and this report would only
        # repeat it. So wait for a claim that was answered since.
        answered, since = self._answered(), self._deaf_since()
        if answered is None or since is None or answered < since:
            return
        if not self._deaf_reported:
            self._deaf_reported = True
            self._log.add(messages.DEAF, error)
            self._report(error, "wakes do not arrive; events are found by polling")

    def report_if_deaf(self) -> None:
        """Report a deafness that began before the first claim was answered."""
        if self._deaf_error is not None:
            self.hearing_changed(self._deaf_error)

    def _report(self, error: BaseException, what: str) -> None:
        rule = acl.remedy(str(error), self._store.ns)
        report = StoreError(f"{what}: {error}{f' ({rule})' if rule else ''}")
        report.__cause__ = error
        self._announce("error", report)
