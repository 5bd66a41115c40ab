"""How much a turn claims for each hand."""

from __future__ import annotations

import pytest

from dtimer.engine.prefetch import IN_ADVANCE, Prefetch


@pytest.fixture
def prefetch():
    return Prefetch(allowed=True)


def full(prefetch, times, limit=10):
    """So many turns that got all they asked for, and it was overdue."""
    for _ in range(times):
        prefetch.answered(limit, limit, overdue=True)


def test_one_at_first(prefetch):
    """A batch for each hand, until it is known that there is more."""
    assert 1 == prefetch.batches


def test_not_before_a_handler_has_ended(prefetch):
    """How quick handlers are is seen first: the first may run for an hour."""
    full(prefetch, 6)
    assert 1 == prefetch.batches
    prefetch.took(1e-6)
    assert 64 == prefetch.batches


def test_grows_with_the_backlog(prefetch):
    """Twice as many after each turn that got all that it asked for, up to a bound."""
    prefetch.took(1e-6)
    sizes = []
    for _ in range(9):
        full(prefetch, 1)
        sizes.append(prefetch.batches)
    assert [2, 4, 8, 16, 32, 64, 64, 64, 64] == sizes


@pytest.mark.parametrize(("claimed", "overdue"), [(9, True), (10, False), (0, False)])
def test_ends_with_the_backlog(prefetch, claimed, overdue):
    """One again as soon as a turn got less, or what is not overdue."""
    prefetch.took(1e-6)
    full(prefetch, 5)
    prefetch.answered(10, claimed, overdue=overdue)
    assert 1 == prefetch.batches


def test_a_turn_that_asked_for_nothing(prefetch):
    """A turn that only settled says nothing of the backlog."""
    prefetch.took(1e-6)
    full(prefetch, 3)
    prefetch.answered(0, 0, overdue=False)
    assert 8 == prefetch.batches


def test_no_more_than_is_soon_done(prefetch):
    """No more than the slowest handler of late would get done in the time allowed."""
    full(prefetch, 6)
    prefetch.took(IN_ADVANCE / 4)
    assert 4 == prefetch.batches
    prefetch.took(IN_ADVANCE * 5)
    assert 1 == prefetch.batches


def test_too_much(prefetch):
    """What had to be given back tells that the hands are slower than they seemed."""
    full(prefetch, 6)
    prefetch.took(IN_ADVANCE / 8)
    prefetch.too_much()
    assert 1 == prefetch.batches
    full(prefetch, 6)
    assert 4 == prefetch.batches


def test_slowness_is_remembered(prefetch):
    """One slow handler among quick ones keeps it low for a while, and not for ever."""
    full(prefetch, 6)
    prefetch.took(IN_ADVANCE)
    prefetch.took(1e-6)
    assert 1 == prefetch.batches
    for _ in range(100):
        prefetch.took(1e-6)
    assert 64 == prefetch.batches


def test_not_where_it_cannot_be_given_back():
    """Where nothing may be kept for a hand, there is never more than one."""
    prefetch = Prefetch(allowed=False)
    prefetch.took(1e-6)
    full(prefetch, 6)
    assert 1 == prefetch.batches


def test_meanwhile(prefetch):
    """
    While a batch is in hand more is claimed only in a backlog, of which two full turns tell, and
    where hands are quick.
    """
    full(prefetch, 6)
    assert 0 == prefetch.meanwhile
    prefetch.took(1e-6)
    assert 64 == prefetch.meanwhile
    prefetch.answered(10, 9, overdue=True)
    full(prefetch, 1)
    assert 0 == prefetch.meanwhile
    full(prefetch, 1)
    assert 4 == prefetch.meanwhile
    prefetch.took(IN_ADVANCE * 5)
    assert 0 == prefetch.meanwhile
