"""Detect jumps of the server's clock, by comparing it with this machine's clock."""

from __future__ import annotations

import time
from typing import NamedTuple

# A jump of fewer seconds than this is not reported.
_SMALLEST_JUMP = 1.0

# Clocks that run at slightly different speeds are not a jump: at most this many seconds per second.
_TOLERATED_DRIFT = 0.001


def boottime() -> float:
    """
    Return the seconds since an arbitrary moment. The time that the machine was suspended counts.

    The monotonic clock of Linux stops while the machine is suspended, but leases go on expiring.
    """
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


class _Reading(NamedTuple):
    """
    The server's time in one reply.

    The server read its clock at an unknown moment between ``sent_at`` and ``received_at``, which
    are on the `boottime` clock.
    """

    sent_at: float
    received_at: float
    server_time: float


class ClockJumpDetector:
    """Compares the progress of the server's clock with the time that passes here."""

    def __init__(self) -> None:
        self._last: _Reading | None = None

    def jumped(self, server_time: float, sent: float) -> float:
        """
        Return by at least how many seconds the server's clock has jumped since the last call.

        Negative if the clock was set back, and 0 if there is nothing to report.

        Args:
            server_time: The server's time in a reply that was just received, in seconds.
            sent: When the request was sent, on the monotonic clock.
        """
        # Read boottime before the monotonic clock. If the process is suspended between the two
        # reads, the request appears to have taken longer. That may hide a small jump, but cannot
        # report a false one.
        received_at = boottime()
        sent_at = received_at - (time.monotonic() - sent)
        last, self._last = self._last, _Reading(sent_at, received_at, server_time)
        if last is None:
            return 0.0
        # The time between the two reads of the server's clock is known only within these limits.
        shortest, longest = sent_at - last.received_at, received_at - last.sent_at
        progress = server_time - last.server_time
        tolerance = _SMALLEST_JUMP + _TOLERATED_DRIFT * longest
        if shortest - tolerance <= progress <= longest + tolerance:
            return 0.0
        return progress - (longest if progress > longest else shortest)
