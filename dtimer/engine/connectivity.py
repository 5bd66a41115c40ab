"""Track whether the store answers: report changes, and decide how long to pause after errors."""

from __future__ import annotations

from dtimer import log as messages
from dtimer.engine.flag import Flag
from dtimer.engine.ports import ClaimStore, ContactReports
from dtimer.log import Log
from dtimer.model.jitter import between

# Seconds before the next try: the shortest pause after the first error, the longest pause, and the
# pause after an error that an operator must fix.
_FIRST_PAUSE, _LONGEST_PAUSE, _SLOW_PAUSE = 0.05, 0.5, 5.0


class Connectivity:
    """
    Tracks whether claims are answered. Used by one thread at a time.

    Args:
        store: Knows whether an error lasts until an operator fixes its cause. The next try is
            then made after 5 s.
        contact: Learns when the store begins to answer and when it fails. In one outage it is told
            once of each kind of error.
        log: The node's log.
    """

    def __init__(self, store: ClaimStore, contact: ContactReports, log: Log) -> None:
        self._store = store
        self._contact = contact
        self._log = log
        self._pause = _FIRST_PAUSE
        self._reported: set[type] = set()
        #: Set when the first claim has been answered, or has failed.
        self.tried: Flag = Flag()
        #: Why the last claim failed; None if it was answered.
        self.error: Exception | None = None

    def expect_first(self) -> None:
        """Let `tried` stand for the claims that follow, and not for earlier tries."""
        self.tried = Flag()

    def answered(self) -> None:
        """Record that a claim was answered and its reply applied."""
        self._pause = _FIRST_PAUSE
        if self.error is not None or not self.tried.is_set():
            self.error = None
            self._reported.clear()
            self._contact.connectivity_changed(None)
            self.tried.set()

    def failed(self, error: Exception, *, claim_answered: bool = False) -> float:
        """
        Record that a claim failed; return for how many seconds to pause.

        Args:
            error: Why it failed.
            claim_answered: True if the claim was answered, but a step after it failed: a heartbeat,
                or a call that the reply asks for.
        """
        if type(error) not in self._reported:
            # Once for each kind, even if two kinds of error alternate during an outage.
            self._reported.add(type(error))
            self._contact.connectivity_changed(error, claim_answered=claim_answered)
        self.error = error
        self.tried.set()
        pause = self._next_pause(error)
        self._log.add(messages.CLAIMING_AGAIN, pause * 1000, error)
        return pause

    def _next_pause(self, error: Exception) -> float:
        if self._store.needs_operator(error):
            return _SLOW_PAUSE
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return between(self._pause / 2, self._pause)
