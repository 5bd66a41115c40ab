"""Backoff: how long a failed event waits before it is delivered again."""

from __future__ import annotations

from collections.abc import Callable

from dtimer.model.jitter import between
from dtimer.model.times import Duration, duration_us

#: A duration, or a function that takes the number of the failed attempt and returns a duration.
Backoff = Duration | Callable[[int], Duration]

FIRST_MS = 1_000
LONGEST_MS = 3_600_000


def exponential(attempt: int) -> float:
    """
    Return the default wait in ms: one second, doubled for each attempt, at most an hour.

    Half of the wait is random, so that events which failed together are not retried together
    ("equal jitter", M. Brooker, *Exponential Backoff And Jitter*, 2015).
    """
    full = min(LONGEST_MS, FIRST_MS << min(attempt - 1, 30))
    return full / 2 + between(0, full / 2)


def wait_us(backoff: Backoff, attempt: int) -> int:
    """
    Return how many microseconds to wait after *attempt* has failed, at least 0.

    Raises:
        OptionError: the user's function did not return a valid duration. Exceptions of the
            function itself are not caught.
    """
    wait = backoff(attempt) if callable(backoff) else backoff
    return max(0, duration_us(wait, "backoff"))
