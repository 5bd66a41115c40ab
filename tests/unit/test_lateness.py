"""The histogram of lateness, and the percentiles that are read off it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtimer.model.lateness import BUCKETS, grown, percentile


def histogram(micros):
    counts = [0] * BUCKETS
    for us in micros:
        counts[min(BUCKETS - 1, math.floor(2 * math.log2(us + 1)))] += 1
    return counts


@given(st.lists(st.integers(0, 10**9), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_never_too_good(micros, share):
    """The percentile told is at least the true one, and at most 42 % (and 1 µs) above it."""
    true = sorted(micros)[math.ceil(share * len(micros)) - 1]
    told = percentile(histogram(micros), share) * 1000
    assert true <= told + 1e-6
    assert told <= (true + 1) * 2**0.5 + 1


def test_nothing_counted():
    """Where nothing was handed out there is no lateness to tell."""
    assert percentile([0] * BUCKETS, 0.5) is None


@pytest.mark.parametrize(
    ("new", "old", "since"), [([3, 4], [1, 4], [2, 0]), ([1, 0], [5, 5], [1, 0]), ([1], [], [1])]
)
def test_what_was_counted_since(new, old, since):
    """Two looks tell what came between; a server that lost everything counts anew."""
    assert since == grown(new, old)
