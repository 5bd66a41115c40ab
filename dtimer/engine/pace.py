"""Whether the server's clock goes at the pace of this machine's."""

from __future__ import annotations

import time

# A step of the clock smaller than this many seconds is nobody's business, nor that clocks
# drift apart by this part of the time.
_TOLERATED, _DRIFT = 1.0, 0.001


def lasting() -> float:
    """
    Return seconds since some point, those during which the machine was suspended included.

    On Linux the monotonic clock stands still meanwhile; leases go on.
    """
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


class Pace:
    """Compares how far the server's clock goes with how much time passes here."""

    def __init__(self) -> None:
        # When the last answer was asked for, when it came, and what time it told.
        self._before: tuple[float, float, float] | None = None

    def jumped(self, told: float, sent: float) -> float:
        """
        Return by how many seconds, at the least, the server's clock was set since last asked.

        Args:
            told: The server's time, of which an answer has just come.
            sent: When that was asked for, on the monotonic clock.
        """
        # In this order: a process that is stopped in between knows less, and nothing wrong.
        came = lasting()
        took = time.monotonic() - sent
        before, self._before = self._before, (came - took, came, told)
        if before is None:
            return 0.0
        # Within the answer's time nobody knows when the server looked at its clock.
        least, most = came - took - before[1], came - before[0]
        went = told - before[2]
        tolerated = _TOLERATED + _DRIFT * most
        if least - tolerated <= went <= most + tolerated:
            return 0.0
        return went - (most if went > most else least)
