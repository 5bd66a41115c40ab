"""
The lag of this process: by how much its timed waits end late.

A thread that waits needs the interpreter's lock again at the end of its wait. If other threads
compute, each of them keeps the lock for one switch interval (5 ms by default). So a wait ends late
by about one interval for each busy thread. dtimer learns this from its own waits, and then:

- waits for a due event end earlier by the lag
- claims are sent earlier, and take all events that the handlers can start within the lag
- claims say that this node lags, so that other nodes are preferred for the next event

On an idle machine the lag is about 0.1 ms, and none of this happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Any

# The share of a new wait in the average, if it ended later than the average, and if not. So a long
# pause of the machine does not count as a lag at once, and a node that is on time again soon says
# so.
_LATER, _EARLIER = 0.2, 0.5

# From this many seconds on, the node lags. It is on time again below half of that.
_LATE = 0.003

# Below this many seconds, a lag changes nothing.
_NEGLIGIBLE = 0.0005

# A claim waits for the interpreter's lock three times: when it begins, when its reply has arrived,
# and when the handler thread begins to wait for the due time.
_WAITS_OF_A_CLAIM = 3

_PR_SET_TIMERSLACK = 29


class Lag:
    """
    Averages how late the timed waits of this node's threads end.

    Safe for any thread, without a lock: of two records at the same time one may be lost.
    """

    def __init__(self) -> None:
        #: By how many seconds a wait ends late.
        self.seconds: float = 0.0
        #: True if this node should be on duty only if no other node is.
        self.late: bool = False

    def waited(self, late: float) -> None:
        """Record that a timed wait ended *late* seconds after its time."""
        share = _LATER if late > self.seconds else _EARLIER
        self.seconds = lag = self.seconds + share * (late - self.seconds)
        if lag >= _LATE:
            self.late = True
        elif self.late and lag < _LATE / 2:
            self.late = False

    @property
    def lead(self) -> float:
        """By how many seconds a wait for a due event should end early."""
        return self.seconds if self.seconds > _NEGLIGIBLE else 0.0

    @property
    def claim_lead(self) -> float:
        """By how many seconds earlier a claim should be sent."""
        return _WAITS_OF_A_CLAIM * self.lead


def wait_exactly() -> None:
    """
    Have timed waits of the calling thread end on time, where the system allows it.

    Linux lets a wait end up to 50 µs late, so that it can end several waits together (timer slack).
    Threads that the caller starts inherit the setting.
    """
    if sys.platform == "linux":
        # A sandbox may refuse this call.
        with contextlib.suppress(Exception):
            libc: Any = ctypes.CDLL(None)
            libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
