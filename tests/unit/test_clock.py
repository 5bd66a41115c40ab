"""How a node distinguishes a clock that was set from a slow reply."""

import pytest

from dtimer.engine import clock
from dtimer.engine.clock import ClockJumpDetector


@pytest.mark.parametrize(
    ("passed", "reply_took", "server_passed", "jump"),
    [
        (10, 0.01, 10, 0),
        (10, 0.01, 10.9, 0),
        (10, 0.01, 3_610, 3_600),
        (10, 0.01, -3_590, -3_600),
        # The server may have read its clock at any moment of the five seconds of the reply.
        (10, 5, 5, 0),
        (10, 5, 10, 0),
        (10, 5, 2, -3),
        # A clock that drifts for a day without a reply.
        (86_400, 0.01, 86_450, 0),
        (86_400, 0.01, 86_300, -100),
    ],
)
def test_a_difference_of_over_a_second_that_time_does_not_explain_is_a_jump(
    monkeypatch, passed, reply_took, server_passed, jump
):
    """A slow reply or a drifting clock must not make the node distrust its leases."""
    start, now = 1_800_000_000, [1_000.0]
    monkeypatch.setattr(clock, "boottime", lambda: now[0])
    monkeypatch.setattr(clock.time, "monotonic", lambda: 0.0)
    detector = ClockJumpDetector()
    assert 0 == detector.jumped(start, -0.01)
    now[0] += passed
    assert pytest.approx(jump, abs=0.1) == detector.jumped(start + server_passed, -reply_took)
    # The jump is reported once. After that, the new time counts.
    now[0] += 1
    assert 0 == detector.jumped(start + server_passed + 1, -0.01)


def test_the_boot_time_clock_counts_suspension(monkeypatch):
    """With any other clock, a suspension would look like a jump of the server's clock."""
    monkeypatch.setattr(clock.time, "CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr(clock.time, "clock_gettime", lambda clock: {7: 42.0}[clock])
    assert pytest.approx(42.0) == clock.boottime()


@pytest.mark.parametrize("error", [AttributeError, OSError])
def test_uses_the_monotonic_clock_if_there_is_no_boot_time_clock(monkeypatch, error):
    """macOS, for example, has no such clock."""

    def gettime(clock):
        raise error

    monkeypatch.setattr(clock.time, "CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr(clock.time, "clock_gettime", gettime)
    monkeypatch.setattr(clock.time, "monotonic", lambda: 43.0)
    assert pytest.approx(43.0) == clock.boottime()
