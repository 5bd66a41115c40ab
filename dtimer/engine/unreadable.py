"""
The events whose payloads this node cannot open, because it lacks their codec or their key.

Another node may have it, and so may this node after the next deployment. So the event is snoozed,
with growing pauses, and its attempts are not counted. After a day it becomes a dead letter, and
keeps its bytes.
"""

from __future__ import annotations

import math
import time

from dtimer.engine.ports import Announcements
from dtimer.errors import UnreadablePayload
from dtimer.model.claims import Claim, Settlement, Verdict
from dtimer.model.outcomes import Reason

#: The pause before the next start: as long as the event has been unreadable, within these bounds.
SHORTEST_US, LONGEST_US = 1_000_000, 300_000_000

#: How long an event may be unreadable.
MOST_US = 86_400_000_000

# The seconds between two reports.
_EVERY = 60.0


class UnreadableEvents:
    """
    Decides about the events that cannot be opened, counts and reports them. For one thread.

    Args:
        announcements: Emits the reports.
    """

    def __init__(self, announcements: Announcements) -> None:
        self._announcements = announcements
        #: How often an event could not be opened.
        self.count: int = 0
        self._reported = 0
        self._report_at = -math.inf

    def settlement(self, claim: Claim, error: UnreadablePayload) -> Settlement:
        """Return how the lease of an event ends whose payload cannot be opened; count the event."""
        self.count += 1
        self._report(claim, error)
        so_far = claim.snoozed_for_us(Reason.UNREADABLE)
        settlement = Settlement(claim.id, claim.token, Verdict.SNOOZE, reason=Reason.UNREADABLE)
        if so_far >= MOST_US:
            settlement.verdict, settlement.error = Verdict.BURY, str(error)
        else:
            settlement.wait_us = min(max(so_far, SHORTEST_US), LONGEST_US)
        return settlement

    def _report(self, claim: Claim, error: UnreadablePayload) -> None:
        """Report the event, and those since the last report, at most once a minute."""
        now = time.monotonic()
        if now < self._report_at:
            return
        others = self.count - self._reported - 1
        self._report_at, self._reported = now + _EVERY, self.count
        more = f", nor {others} others since the last report" if others else ""
        report = UnreadablePayload(
            f"the event {claim.id!r} cannot be opened here{more}: {error}. It waits for a node that"
            " can open it, and becomes a dead letter after a day"
        )
        report.__cause__ = error
        self._announcements.announce("error", report)
