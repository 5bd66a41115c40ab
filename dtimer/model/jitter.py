"""Chance, to spread what would otherwise come all at once."""

from __future__ import annotations

import random

# From the kernel. The random module's own generator belongs to the program around us: to
# draw from it on our threads would disturb whoever has seeded it. And one of ours would be
# copied by a fork, so that all children jitter alike.
_uniform = random.SystemRandom().uniform


def between(low: float, high: float) -> float:
    """Return a number between the two, any with the same chance."""
    return _uniform(low, high)
