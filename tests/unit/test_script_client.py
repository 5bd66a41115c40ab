"""Calls with a deadline: how often they are tried, and when they end."""

from types import SimpleNamespace

import pytest
import redis

from dtimer import OutcomeUnknown, StoreError
from dtimer.store.keys import Keys
from dtimer.store.script_client import TRIES, ScriptClient

TIMEOUT = 3.0  # seconds


class FakeConnection:
    """A connection that has sent the request."""

    sent = True

    def close(self):
        """Nothing is open."""


class Clock:
    """A clock that the attempts and pauses of a call move forward."""

    now = 1_000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """The clock of the calls."""
    clock = Clock()
    monkeypatch.setattr("dtimer.store.script_client.time", clock)
    return clock


@pytest.fixture
def script_client(clock):
    """A script client for a server that does not exist."""
    connection = FakeConnection()
    source = SimpleNamespace(connection=lambda keys: connection, address="nowhere")
    return ScriptClient(source, Keys.of("x"), TIMEOUT, None)


class TestDeadline:
    """A call ends by its deadline, however its attempts end."""

    @pytest.fixture
    def failed_call(self, script_client, monkeypatch):
        """Return a function that runs a call by *attempt*, and returns its error and deadline."""

        def call(attempt):
            monkeypatch.setattr("dtimer.store.script_client.run", attempt)
            deadline = script_client.deadline()
            with pytest.raises(StoreError) as caught:
                script_client.call("cancel", "id", deadline=deadline)
            return caught.value, deadline

        return call

    def test_ends_at_its_deadline_if_no_attempt_is_answered(self, clock, failed_call):
        """The caller relies on it. Each attempt gets its share of the time, the last the rest."""
        shares, limits = [], []

        def unanswered(connection, script, words, until, limit):
            shares.append(until - clock.now)
            limits.append(limit)
            clock.now = max(clock.now, until)
            raise redis.TimeoutError("no reply")

        error, deadline = failed_call(unanswered)
        assert isinstance(error, OutcomeUnknown)
        assert deadline == clock.now
        assert [deadline] * TRIES == limits, "the limit while bytes arrive"
        assert max(shares) <= TIMEOUT / TRIES + 1e-6

    def test_ends_by_its_deadline_if_each_attempt_is_refused(self, clock, failed_call):
        """
        A refused connection costs no time, so the call is repeated after growing pauses.

        It gives up when no attempt would fit any more.
        """
        attempts = []

        def refused(connection, script, words, until, limit):
            attempts.append(clock.now)
            connection.sent = False
            raise redis.ConnectionError("refused")

        error, deadline = failed_call(refused)
        assert not isinstance(error, OutcomeUnknown)
        assert deadline - TIMEOUT / TRIES <= clock.now <= deadline
        assert len(attempts) > TRIES
