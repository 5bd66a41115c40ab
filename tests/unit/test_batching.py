"""Batching: how many events a claim asks for, for each handler thread."""

from __future__ import annotations

import pytest

from dtimer.engine.batching import IN_ADVANCE, Batching


@pytest.fixture
def prefetch():
    return Batching(allowed=True)


def full(prefetch, times, limit=10):
    """Record *times* claims that got all they asked for, all of it overdue."""
    for _ in range(times):
        prefetch.claim_answered(limit, limit, overdue=True)


def test_starts_with_one_batch_a_thread(prefetch):
    """More events are claimed only when a backlog is known."""
    assert 1 == prefetch.batches


def test_does_not_grow_before_a_handler_has_returned(prefetch):
    """
    The first handler may run for an hour, and other nodes could start the events
    that wait for it.
    """
    full(prefetch, 6)
    assert 1 == prefetch.batches
    prefetch.handler_took(1e-6)
    assert 64 == prefetch.batches


def test_doubles_with_each_full_claim_up_to_64(prefetch):
    """A backlog is known only by full claims."""
    prefetch.handler_took(1e-6)
    sizes = []
    for _ in range(9):
        full(prefetch, 1)
        sizes.append(prefetch.batches)
    assert [2, 4, 8, 16, 32, 64, 64, 64, 64] == sizes


@pytest.mark.parametrize(("claimed", "overdue"), [(9, True), (10, False), (0, False)])
def test_returns_to_one_when_a_claim_is_not_full_or_not_overdue(prefetch, claimed, overdue):
    """The backlog has ended."""
    prefetch.handler_took(1e-6)
    full(prefetch, 5)
    prefetch.claim_answered(10, claimed, overdue=overdue)
    assert 1 == prefetch.batches


def test_ignores_a_claim_that_asked_for_nothing(prefetch):
    """A claim that only settles says nothing about the backlog."""
    prefetch.handler_took(1e-6)
    full(prefetch, 3)
    prefetch.claim_answered(0, 0, overdue=False)
    assert 8 == prefetch.batches


def test_claims_what_the_slowest_recent_handler_finishes_in_time(prefetch):
    """Further events would wait too long for a thread."""
    full(prefetch, 6)
    prefetch.handler_took(IN_ADVANCE / 4)
    assert 4 == prefetch.batches
    prefetch.handler_took(IN_ADVANCE * 5)
    assert 1 == prefetch.batches


def test_halves_the_estimate_after_a_release(prefetch):
    """A release means that the handlers are slower than they seemed."""
    full(prefetch, 6)
    prefetch.handler_took(IN_ADVANCE / 8)
    prefetch.claimed_too_many()
    assert 1 == prefetch.batches
    full(prefetch, 6)
    assert 4 == prefetch.batches


def test_remembers_a_slow_handler_for_a_while(prefetch):
    """A single slow handler among quick ones may be followed by another."""
    full(prefetch, 6)
    prefetch.handler_took(IN_ADVANCE)
    prefetch.handler_took(1e-6)
    assert 1 == prefetch.batches
    for _ in range(100):
        prefetch.handler_took(1e-6)
    assert 64 == prefetch.batches


def test_never_exceeds_one_if_events_may_not_wait():
    """Without look-ahead, waiting events would be released at once."""
    prefetch = Batching(allowed=False)
    prefetch.handler_took(1e-6)
    full(prefetch, 6)
    assert 1 == prefetch.batches


def test_sends_a_claim_ahead_after_two_full_claims_if_handlers_are_quick(prefetch):
    """A single full claim does not make a backlog."""
    full(prefetch, 6)
    assert 0 == prefetch.in_backlog
    prefetch.handler_took(1e-6)
    assert 64 == prefetch.in_backlog
    prefetch.claim_answered(10, 9, overdue=True)
    full(prefetch, 1)
    assert 0 == prefetch.in_backlog
    full(prefetch, 1)
    assert 4 == prefetch.in_backlog
    prefetch.handler_took(IN_ADVANCE * 5)
    assert 0 == prefetch.in_backlog
