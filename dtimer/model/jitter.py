"""Random delays, which spread events that would otherwise come at the same moment."""

from __future__ import annotations

import random

# The numbers come from the kernel. The program may have seeded the random module's generator, and
# draws by dtimer's threads would change its sequence. If dtimer had its own generator, a fork would
# copy it, and all children would draw the same delays.
_uniform = random.SystemRandom().uniform


def between(low: float, high: float) -> float:
    """Return a random number between *low* and *high*, uniformly distributed."""
    return _uniform(low, high)
