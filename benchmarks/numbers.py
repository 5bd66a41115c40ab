"""
The arithmetic: quantiles, medians of rounds, and ratios within rounds.

A machine with other load, or a virtual one, is faster in one minute than in the next. So a figure
is the median of its rounds. The ratio of two contenders is the median of the ratios of the rounds
in which both took part.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return a quantile of ordered values by the nearest rank: one of the values."""
    rank = -(-len(ordered) * part // 1)
    return ordered[min(len(ordered), max(1, int(rank))) - 1]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the published figures of a distribution: min, p50, p90, p99 and max."""
    ordered = sorted(values)
    parts = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    between = {name: quantile(ordered, part) for name, part in parts.items()}
    return {"min": ordered[0], **between, "max": ordered[-1]}


def middle(rounds: Mapping[int, float]) -> float:
    """Return the median of several rounds."""
    return statistics.median(rounds.values())


def ratio(mine: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    """
    Return the median ratio of *mine* to *theirs*, over the rounds that have both;
    None without any.
    """
    both = [mine[n] / theirs[n] for n in mine.keys() & theirs.keys() if theirs[n]]
    return statistics.median(both) if both else None


def each_second(moments_us: Sequence[int]) -> float:
    """Return a rate per second, from the first moment to the last."""
    took = (max(moments_us) - min(moments_us)) / 1e6
    return (len(moments_us) - 1) / took if took else 0.0
