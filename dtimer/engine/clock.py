"""Detect jumps of the server's clock, by comparing it with this machine's clock."""

from __future__ import annotations

import time

# Ignored: steps of less than this many seconds, and drift below this fraction of the time.
_TOLERATED, _DRIFT = 1.0, 0.001


def boottime() -> float:
    """
    Return the seconds since an arbitrary moment, including those of a suspended machine.

    The monotonic clock of Linux stops while the machine is suspended. Leases do not.
    """
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


class ClockJumpDetector:
    """Compares the progress of the server's clock with the time that passes here."""

    def __init__(self) -> None:
        # Of the last reply: when its request was sent, when it was received, the server's time.
        self._before: tuple[float, float, float] | None = None

    def jumped(self, server_time: float, sent: float) -> float:
        """
        Return by how many seconds the server's clock jumped since the last call, at the least.

        Negative if the clock was set back, and 0 if there is nothing to report.

        Args:
            server_time: The server's time in a reply that was just received, in seconds.
            sent: When the request was sent, on the monotonic clock.
        """
        # Read this clock first. If the process is suspended between the two reads, the interval
        # gets wider. That may hide a small jump, but cannot report a false one.
        received_at = boottime()
        took = time.monotonic() - sent
        before, self._before = self._before, (received_at - took, received_at, server_time)
        if before is None:
            return 0.0
        # The server read its clock at an unknown moment between request and reply.
        least, most = received_at - took - before[1], received_at - before[0]
        went = server_time - before[2]
        tolerated = _TOLERATED + _DRIFT * most
        if least - tolerated <= went <= most + tolerated:
            return 0.0
        return went - (most if went > most else least)
