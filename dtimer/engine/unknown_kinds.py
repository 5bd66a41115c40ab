"""
Events of unknown kinds: a router of this node has no route for them.

They wait instead of failing, because another node may know the kind: during a deploy, new nodes
post events that old ones also receive.
"""

from __future__ import annotations

import threading
import time

from dtimer.engine.lease import Lease
from dtimer.engine.ports import Announcements
from dtimer.errors import UnknownKind
from dtimer.model.claims import Verdict
from dtimer.model.kinds import UnknownPolicy
from dtimer.model.outcomes import Reason

# Seconds between two reports of one kind.
_QUIET = 60.0

# The most kinds to report separately. A payload may have any text as its kind.
_MOST_KINDS = 100


class UnknownKinds:
    """
    Puts events of unknown kinds off, counts them, and reports each kind once a minute.

    Args:
        announcements: Emits the reports as ``'error'``.
    """

    def __init__(self, announcements: Announcements) -> None:
        self._announcements = announcements
        #: How many deliveries to this node had an unknown kind.
        self.count: int = 0
        # When each kind may be reported again, on the monotonic clock.
        self._quiet_until: dict[str, float] = {}
        # Only handler threads take it, and no user code runs while it is held.
        self._lock = threading.Lock()

    def put_off(self, lease: Lease, kind: object, policy: UnknownPolicy) -> None:
        """Snooze an event, or bury it if it has waited for a node that knows it for too long."""
        text = policy.describe(kind)
        pause = policy.pause_us(lease.claim.snoozed_for_us(Reason.UNKNOWN_KIND))
        if pause is None:
            error = f"no route for {text}"
            settled = lease.settle_later(Verdict.BURY, error=error, reason=Reason.UNKNOWN_KIND)
        else:
            settled = lease.settle_later(Verdict.SNOOZE, wait=pause, reason=Reason.UNKNOWN_KIND)
        if settled and self._is_news(text):
            event = lease.event
            self._announcements.announce("error", UnknownKind(text, kind, event))

    def _is_news(self, text: str) -> bool:
        """Count one delivery; return True if its kind was not reported in the last minute."""
        now = time.monotonic()
        with self._lock:
            self.count += 1
            quiet = self._quiet_until
            if len(quiet) >= _MOST_KINDS and text not in quiet:
                for old in [kind for kind, until in quiet.items() if until <= now]:
                    del quiet[old]
                if len(quiet) >= _MOST_KINDS:
                    return False
            if quiet.get(text, now) > now:
                return False
            quiet[text] = now + _QUIET
            return True
