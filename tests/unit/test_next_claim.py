"""When to claim again after a reply: a table for each of the two decisions."""

from __future__ import annotations

import pytest

from dtimer.engine.next_claim import must_claim_at_once, seconds_until_next

HOUR = 3_600.0


FULL = {"limit": 2, "claimed": 2, "spare": 1, "hears": True, "said_hears": True}
EMPTY = FULL | {"claimed": 0}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        pytest.param(FULL, True, id="a full reply: more events may be due"),
        pytest.param(FULL | {"claimed": 1}, False, id="the reply had all due events"),
        pytest.param(EMPTY | {"limit": 0}, False, id="the claim asked for no events"),
        pytest.param(FULL | {"spare": 0}, False, id="no thread could start more events"),
        pytest.param(FULL | {"spare": -1}, False, id="more events wait than threads are free"),
        pytest.param(EMPTY | {"said_hears": False}, True, id="off the roster, and can be on it"),
        pytest.param(
            EMPTY | {"said_hears": False, "spare": 0}, False, id="off it, but no thread is free"
        ),
        pytest.param(EMPTY | {"said_hears": False, "hears": False}, False, id="off it, and deaf"),
    ],
)
def test_claims_at_once_while_there_is_something_to_gain(case, expected):
    """A wait would make due events late, and a needless claim would cost the server."""
    assert expected == must_claim_at_once(**case)


@pytest.mark.parametrize(
    ("poll", "echo", "more", "expected"),
    [
        pytest.param(10, HOUR, {}, 9, id="the poll, shortened by the jitter"),
        pytest.param(HOUR, HOUR, {}, 27, id="at most 30 s, with the jitter"),
        pytest.param(10, 2, {}, 2, id="an echo is due: a deaf node must notice it"),
        pytest.param(10, -1, {}, 0, id="an echo is overdue"),
        pytest.param(10, HOUR, {"wait": 4}, 4, id="an event is due before the poll"),
        pytest.param(10, HOUR, {"wait": 60}, 9, id="the event is due after the poll"),
        pytest.param(10, HOUR, {"wait": -1}, 0, id="the event is overdue"),
        pytest.param(10, HOUR, {"wait": 4, "more_ahead": 2}, 3, id="the next claim looks ahead"),
        pytest.param(10, HOUR, {"wait": 4, "more_ahead": -2}, 4, id="it looks less far ahead"),
        pytest.param(10, HOUR, {"heartbeat": 3}, 3, id="a lease must be renewed"),
        pytest.param(10, HOUR, {"heartbeat": -1}, 0, id="a heartbeat is overdue"),
        pytest.param(10, HOUR, {"leave": 1}, 1, id="the time to leave is over"),
        pytest.param(10, 5, {"wait": 4, "heartbeat": 3, "leave": 2}, 2, id="the earliest of all"),
    ],
)
def test_waits_for_the_earliest_reason_to_claim(poll, echo, more, expected):
    """A claim that came later would miss its reason."""
    assert expected == seconds_until_next(poll, 0.9, echo, **more)
