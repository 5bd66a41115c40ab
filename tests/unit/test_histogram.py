"""The histogram of lateness, and its percentiles."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtimer.model.histogram import BUCKETS, increase, percentile


@given(st.lists(st.integers(0, 10**9), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_at_most_42_percent_too_high_and_never_too_low(micros, share):
    """Buckets grow by the square root of two, and a percentile is the upper end of its bucket."""
    counts = [0] * BUCKETS
    for us in micros:
        counts[min(BUCKETS - 1, math.floor(2 * math.log2(us + 1)))] += 1
    exact = sorted(micros)[math.ceil(share * len(micros)) - 1]
    found = percentile(counts, share) * 1000
    assert exact <= found + 1e-6
    assert found <= (exact + 1) * 2**0.5 + 1


def test_an_empty_histogram_has_no_percentile():
    """Zero would claim that events are punctual."""
    assert percentile([0] * BUCKETS, 0.5) is None


@pytest.mark.parametrize(
    ("new", "old", "since"), [([3, 4], [1, 4], [2, 0]), ([1, 0], [5, 5], [1, 0]), ([1], [], [1])]
)
def test_increase_returns_the_counts_since_an_earlier_reading(new, old, since):
    """After a server lost its data, counting starts again at zero."""
    assert since == increase(new, old)
