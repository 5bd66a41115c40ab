"""How two checkouts are compared: the arithmetic, and nothing that is measured."""

from __future__ import annotations

import pytest

from benchmarks.compare import ratio


def test_takes_the_ratio_within_each_round():
    """A machine that is slower in one round is so for both, and changes no ratio."""
    found = ratio([10.0, 20.0, 40.0], [11.0, 22.0, 44.0])
    assert pytest.approx(1.1) == found.median
    assert pytest.approx((1.1, 1.1)) == (found.low, found.high)


def test_spread_is_between_the_quartiles():
    """A single odd round does not decide how far the ratios are spread."""
    found = ratio([1.0] * 5, [0.9, 1.0, 1.1, 1.2, 9.0])
    assert pytest.approx((1.0, 1.1, 1.2)) == (found.low, found.median, found.high)


def test_a_difference_inside_the_spread_counts_as_none():
    """Only what nearly every round shows is called a difference."""
    assert ratio([1.0] * 3, [0.9, 1.02, 1.1]).none
    assert "no difference" in str(ratio([1.0] * 3, [0.9, 1.02, 1.1]))
    assert not ratio([1.0] * 3, [1.04, 1.05, 1.06]).none
    assert "+5.0 %" in str(ratio([1.0] * 3, [1.04, 1.05, 1.06]))


def test_leaves_out_what_the_clock_does_not_resolve():
    """A cost of nothing has no ratio; too few rounds have no spread."""
    assert 2.0 == ratio([0.0, 1.0, 1.0], [1.0, 2.0, 2.0]).median
    with pytest.raises(ValueError, match="at least two rounds"):
        ratio([0.0, 1.0], [1.0, 1.0])
