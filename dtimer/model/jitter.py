"""Random delays, which spread events that would otherwise come at the same moment."""

from __future__ import annotations

import random

# From the kernel, not from the random module's generator: the program may have seeded that, and
# draws by our threads would change its sequence. A generator of our own would be copied by a fork,
# so all children would draw the same delays.
_uniform = random.SystemRandom().uniform


def between(low: float, high: float) -> float:
    """Return a random number between *low* and *high*, uniformly distributed."""
    return _uniform(low, high)
