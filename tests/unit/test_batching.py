"""How many events a claim asks for, how far ahead, and the estimate of a handler's duration."""

import pytest

from dtimer.engine.batching import MAX_ADVANCE_SECONDS, Batching, claim_size, claim_size_while_busy
from dtimer.engine.lag import Lag

QUICK = 1e-6  # seconds that a handler takes


IDLE = {"slots": 6, "demand": 100, "waiting": 0, "batches": 1, "ahead_us": 20_000}
BACKLOG = IDLE | {"batches": 4}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        pytest.param(IDLE, (6, 20_000), id="as many as free threads can start, also ahead"),
        pytest.param(IDLE | {"demand": 2}, (2, 20_000), id="as many as the listeners take"),
        pytest.param(IDLE | {"demand": 0}, (0, 0), id="no listener"),
        pytest.param(IDLE | {"slots": 0}, (0, 0), id="no free thread"),
        pytest.param(IDLE | {"waiting": 4}, (2, 20_000), id="threads are promised"),
        pytest.param(IDLE | {"waiting": 6}, (6, 0), id="all are promised: only due events"),
        pytest.param(IDLE | {"waiting": 9}, (6, 0), id="more events wait than threads are free"),
        pytest.param(IDLE | {"ahead_us": 0}, (6, 0), id="no look-ahead"),
        pytest.param(BACKLOG, (24, 0), id="a backlog: several batches, and none ahead"),
        pytest.param(
            BACKLOG | {"late": True}, (24, 20_000), id="a node that lags looks ahead, too"
        ),
        pytest.param(BACKLOG | {"demand": 20}, (20, 0), id="a backlog within the demand"),
        pytest.param(BACKLOG | {"demand": 20, "waiting": 4}, (8, 0), id="a backlog in the queue"),
        pytest.param(
            BACKLOG | {"demand": 7, "waiting": 4}, (3, 0), id="the queue is in the demand"
        ),
        pytest.param(BACKLOG | {"slots": 90, "demand": 999}, (100, 0), id="at most 100 a script"),
    ],
)
def test_a_claim_asks_for_what_threads_can_start_soon(case, expected):
    """Other nodes could start any further event, and cannot while this node has it."""
    assert expected == claim_size(**case)


FULL = {"most": 64, "demand": 100, "limit": 8, "claimed": 8, "waiting": 0}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        pytest.param(FULL, 16, id="at most twice the last limit"),
        pytest.param(FULL | {"limit": 80}, 64, id="as many as a thread handles in time"),
        pytest.param(FULL | {"limit": 80, "waiting": 60}, 4, id="less those that wait"),
        pytest.param(FULL | {"limit": 80, "waiting": 70}, 0, id="too many wait"),
        pytest.param(FULL | {"demand": 11}, 3, id="within the demand"),
        pytest.param(FULL | {"demand": 8}, 0, id="no demand is left"),
        pytest.param(FULL | {"demand": 5}, 0, id="less demand than before"),
        pytest.param(FULL | {"most": 0}, 0, id="no backlog of quick events"),
        pytest.param(FULL | {"most": 999, "limit": 80, "demand": 999}, 100, id="at most 100"),
    ],
)
def test_the_next_claim_of_a_backlog_asks_for_what_a_thread_handles_in_time(case, expected):
    """Events that wait for longer would be released again."""
    assert expected == claim_size_while_busy(**case)


@pytest.fixture
def batching():
    return Batching(Lag(), allowed=True)


def answer_full_claims(batching, count):
    """Record *count* claims that got the ten events they asked for, all of them overdue."""
    for _ in range(count):
        batching.claim_answered(10, 10, overdue=True)


def test_starts_with_one_batch_a_thread(batching):
    """More events are claimed only when a backlog is known."""
    assert 1 == batching.batches


def test_does_not_grow_before_a_handler_has_returned(batching):
    """The first may run for an hour, and other nodes could start the events that wait for it."""
    answer_full_claims(batching, 6)
    assert 1 == batching.batches
    batching.handler_took(QUICK)
    assert 64 == batching.batches


def test_doubles_with_each_full_claim_up_to_64(batching):
    """A backlog is known only by full claims."""
    batching.handler_took(QUICK)
    sizes = []
    for _ in range(9):
        answer_full_claims(batching, 1)
        sizes.append(batching.batches)
    assert [2, 4, 8, 16, 32, 64, 64, 64, 64] == sizes


@pytest.mark.parametrize(("claimed", "overdue"), [(9, True), (10, False), (0, False)])
def test_returns_to_one_when_a_claim_is_not_full_or_not_overdue(batching, claimed, overdue):
    """The backlog has ended, and other nodes may start the next events sooner."""
    batching.handler_took(QUICK)
    answer_full_claims(batching, 5)
    batching.claim_answered(10, claimed, overdue=overdue)
    assert 1 == batching.batches


def test_ignores_a_claim_that_asked_for_nothing(batching):
    """A claim that only settles says nothing about the backlog."""
    batching.handler_took(QUICK)
    answer_full_claims(batching, 3)
    batching.claim_answered(0, 0, overdue=False)
    assert 8 == batching.batches


def test_claims_what_the_slowest_recent_handler_finishes_in_time(batching):
    """Further events would wait too long for a thread."""
    answer_full_claims(batching, 6)
    batching.handler_took(MAX_ADVANCE_SECONDS / 4)
    assert 4 == batching.batches
    batching.handler_took(MAX_ADVANCE_SECONDS * 5)
    assert 1 == batching.batches


def test_halves_the_estimate_after_a_release(batching):
    """A release means that the handlers are slower than they seemed."""
    answer_full_claims(batching, 6)
    batching.handler_took(MAX_ADVANCE_SECONDS / 8)
    batching.claimed_too_many()
    assert 1 == batching.batches
    answer_full_claims(batching, 6)
    assert 4 == batching.batches


def test_remembers_a_slow_handler_for_a_while(batching):
    """A single slow handler among quick ones may be followed by another."""
    answer_full_claims(batching, 6)
    batching.handler_took(MAX_ADVANCE_SECONDS)
    batching.handler_took(QUICK)
    assert 1 == batching.batches
    for _ in range(100):
        batching.handler_took(QUICK)
    assert 64 == batching.batches


def test_never_exceeds_one_if_events_may_not_wait():
    """Without look-ahead, waiting events would be released at once."""
    batching = Batching(Lag(), allowed=False)
    batching.handler_took(QUICK)
    answer_full_claims(batching, 6)
    assert 1 == batching.batches


def test_sends_a_claim_ahead_after_two_full_claims_if_handlers_are_quick(batching):
    """A single full claim does not make a backlog."""
    answer_full_claims(batching, 6)
    assert 0 == batching.in_backlog
    batching.handler_took(QUICK)
    assert 64 == batching.in_backlog
    batching.claim_answered(10, 9, overdue=True)
    answer_full_claims(batching, 1)
    assert 0 == batching.in_backlog
    answer_full_claims(batching, 1)
    assert 4 == batching.in_backlog
    batching.handler_took(MAX_ADVANCE_SECONDS * 5)
    assert 0 == batching.in_backlog


def late_lag():
    lag = Lag()
    for _ in range(50):
        lag.waited(0.02)
    return lag


def test_a_node_that_lags_claims_all_that_its_threads_handle_within_the_lag():
    """A claim for each event would take longer than the events are apart."""
    batching = Batching(late_lag(), allowed=True)
    assert 1 == batching.batches  # no handler has returned
    for _ in range(30):
        batching.handler_took(0.001)
    assert 16 <= batching.batches <= 25  # 20 ms, and the estimate is within a step of 1 ms


def test_a_wait_for_the_interpreter_in_a_few_handlers_does_not_hide_that_they_are_quick():
    """Beside computing threads any call may take a switch interval, but the median tells."""
    batching = Batching(late_lag(), allowed=True)
    for i in range(60):
        batching.handler_took(0.03 if i % 4 == 3 else 0.0001)
    assert batching.batches > 30


@pytest.mark.parametrize("allowed", [True, False])
def test_slow_handlers_of_a_node_that_lags_get_one_batch_a_thread(allowed):
    """Another node could start the other events meanwhile."""
    batching = Batching(late_lag(), allowed=allowed)
    for _ in range(60):
        batching.handler_took(0.1 if allowed else 0.0001)
    assert 1 == batching.batches


def test_events_that_waited_for_a_thread_of_a_node_that_lags_are_not_too_many():
    """They waited for the interpreter, not for a handler."""
    batching = Batching(late_lag(), allowed=True)
    batching.handler_took(0.0001)
    before = batching.batches
    batching.claimed_too_many()
    assert before == batching.batches
