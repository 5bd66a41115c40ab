"""The lag of a process, as its own waits show it."""

import ctypes
import sys

import pytest
from background import in_thread
from servers import PATIENCE

from dtimer.engine.lag import Lag, wait_exactly


def after(*waits):
    """Return the lag after waits that ended late by these seconds."""
    lag = Lag()
    for late in waits:
        lag.waited(late)
    return lag


def test_a_machine_on_time_changes_nothing():
    """Waits end late by about 0.1 ms on any machine."""
    lag = after(*[0.0001] * 100)
    assert (False, 0.0, 0.0) == (lag.late, lag.lead, lag.claim_lead)


def test_one_long_pause_is_no_lag():
    """A machine that was busy once need not be so again."""
    assert not after(*[0.0001] * 10, 0.012).late


def test_waits_that_keep_ending_a_switch_interval_late_are_a_lag():
    """A computing thread delays each wait by 5 ms."""
    lag = after(*[0.005] * 20)
    assert lag.late
    assert pytest.approx(0.005, rel=0.02) == lag.lead
    assert pytest.approx(3 * lag.lead) == lag.claim_lead


def test_the_lag_ends_at_half_of_where_it_began():
    """At a single limit, a lag near it would begin and end with each wait."""
    lag = after(*[0.0032] * 50)
    for _ in range(50):
        lag.waited(0.0016)
    assert lag.late
    for _ in range(50):
        lag.waited(0.0014)
    assert not lag.late


@pytest.mark.skipif(sys.platform != "linux", reason="timer slack is a setting of Linux")
def test_waits_of_the_calling_thread_have_no_slack():
    """Linux otherwise lets each wait end up to 50 µs late."""
    get_slack = 30  # PR_GET_TIMERSLACK

    def slack():
        wait_exactly()
        return ctypes.CDLL(None).prctl(get_slack, 0, 0, 0, 0)

    assert 1 == in_thread(slack).result(PATIENCE)
