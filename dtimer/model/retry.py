"""How long a failed event waits before it is handed out again."""

from __future__ import annotations

from collections.abc import Callable

from dtimer.model.jitter import between
from dtimer.model.moments import Duration, duration_us

#: Milliseconds, or a function from the number of the attempt that failed to a duration.
Backoff = Duration | Callable[[int], Duration]

FIRST_MS = 1_000
LONGEST_MS = 3_600_000


def exponential(attempt: int) -> float:
    """
    Return the default wait in ms: one second, doubled for each attempt, an hour at most.

    Half of it is random, so that events which failed together do not come back
    together ("equal jitter", M. Brooker, *Exponential Backoff And Jitter*, 2015).
    """
    full = min(LONGEST_MS, FIRST_MS << min(attempt - 1, 30))
    return full / 2 + between(0, full / 2)


def wait_us(backoff: Backoff, attempt: int) -> int:
    """
    Ask *backoff* how many microseconds to wait after *attempt* has failed; never negative.

    Raises:
        OptionError: the user's function gave no duration. Whatever else it raises
            passes through.
    """
    wait = backoff(attempt) if callable(backoff) else backoff
    return max(0, duration_us(wait, "backoff"))
