"""Telling a clock that was set from an answer that took its time."""

from __future__ import annotations

import pytest

from dtimer.engine import pace
from dtimer.engine.pace import Pace


@pytest.fixture
def time(monkeypatch):
    """The time that passes here, as the test moves it."""

    class Here:
        now = 1_000.0

    monkeypatch.setattr(pace, "lasting", lambda: Here.now)
    monkeypatch.setattr(pace.time, "monotonic", lambda: 0.0)
    return Here


@pytest.mark.parametrize(
    ("passed", "took", "went", "jump"),
    [
        (10, 0.01, 10, 0),
        (10, 0.01, 10.9, 0),
        (10, 0.01, 3_610, 3_600),
        (10, 0.01, -3_590, -3_600),
        # The server may have looked at its clock at any time of these five seconds.
        (10, 5, 5, 0),
        (10, 5, 10, 0),
        (10, 5, 2, -3),
        # A clock that drifts, unheard for a day.
        (86_400, 0.01, 86_450, 0),
        (86_400, 0.01, 86_300, -100),
    ],
)
def test_how_far_it_went(time, passed, took, went, jump):
    """What cannot be explained by the time that passed was a jump; less than a second is none."""
    pace = Pace()
    assert 0 == pace.jumped(1_800_000_000, -0.01)
    time.now += passed
    assert pytest.approx(jump, abs=0.1) == pace.jumped(1_800_000_000 + went, -took)
    # It is told once: from here on the new time is the time.
    time.now += 1
    assert 0 == pace.jumped(1_800_000_000 + went + 1, -0.01)


def test_suspension_counts(monkeypatch):
    """Where the kernel tells the time since boot, a suspended machine is no jump."""
    monkeypatch.setattr(pace.time, "CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr(pace.time, "clock_gettime", lambda clock: {7: 42.0}[clock])
    assert pytest.approx(42.0) == pace.lasting()


@pytest.mark.parametrize("error", [AttributeError, OSError])
def test_where_the_kernel_does_not_tell(monkeypatch, error):
    """Elsewhere the monotonic clock has to do."""

    def gettime(clock):
        raise error

    monkeypatch.setattr(pace.time, "CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr(pace.time, "clock_gettime", gettime)
    monkeypatch.setattr(pace.time, "monotonic", lambda: 43.0)
    assert pytest.approx(43.0) == pace.lasting()
