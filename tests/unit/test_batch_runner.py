"""The batch runner: the settlements of a batch after its handlers. The test runs the batch."""

from __future__ import annotations

import pytest
from seats import CycleHarness, claim, summary

from dtimer.errors import HandlerError
from dtimer.model.claims import Verdict


class RunnerHarness(CycleHarness):
    """A runner whose listeners raise as the test says."""

    def __init__(self, **options):
        super().__init__(**options)
        self.raised = []  # the exceptions of the listeners; None without any listener
        self.quits = 0

    def deliver(self, events, results):
        super().deliver(events, results)
        if isinstance(self.raised, BaseException):
            raise self.raised
        return self.raised

    def quit(self):
        self.quits += 1

    def run(self, *claims):
        """Run a batch of these claims, or of one; return the settlements."""
        leases = self.leases.grant(claims or [claim()], 0.0)
        self.dispatcher._runner.run(leases)
        return self.leases.take_settlements()


@pytest.fixture
def harness():
    return RunnerHarness()


def test_confirms_the_events_of_a_handler_that_returns(harness):
    """The handler receives the whole batch."""
    batch = [claim(), claim()]
    assert [(c.id, c.token, Verdict.CONFIRM) for c in batch] == summary(harness.run(*batch))
    assert [[c.id for c in batch]] == harness.handled


def test_releases_events_if_the_last_listener_was_removed(harness):
    """A confirm would lose an event that no handler has seen."""
    harness.raised = None
    assert [Verdict.RELEASE] == [s.verdict for s in harness.run()]


def test_without_auto_confirm_renews_and_settles_nothing_after_the_handler():
    """The event then belongs to the user's code, which confirms or extends it."""
    harness = RunnerHarness(auto_confirm=False)
    (lease,) = harness.leases.grant([claim()], 0.0)
    assert [lease] == harness.leases.held()
    harness.dispatcher._runner.run([lease])
    assert not harness.leases.unsettled
    assert [] == harness.leases.held()
    assert not lease.running
    assert lease.verdict is None


def test_retries_a_batch_once_if_two_listeners_raise(harness):
    """'error' is emitted for each of the exceptions, and SystemExit makes the node quit."""
    harness.raised = [ValueError("one"), SystemExit("two")]
    (settlement,) = harness.run()
    assert Verdict.RETRY is settlement.verdict
    assert "ValueError: one" in settlement.error
    errors = [error for _, error in harness.announced.all()]
    assert [HandlerError] * 2 == [type(error) for error in errors]
    assert [ValueError, SystemExit] == [type(error.__cause__) for error in errors]
    assert [[settlement.id]] * 2 == [[ev.id for ev in error.events] for error in errors]
    assert 1 == harness.quits


def test_keeps_the_end_of_a_traceback_as_valid_utf8(harness):
    """The error is stored with the event, so it must be short and encodable."""
    harness.raised = [ValueError("\ud800" + "x" * 5_000 + "\udfff the end")]
    (settlement,) = harness.run()
    assert settlement.error.encode().endswith(b"x\\udfff the end\n")
    assert len(settlement.error) < 2_100


def test_an_exception_outside_the_handler_fails_the_events(harness):
    """Even after an error in the node itself, the events must not be renewed for ever."""
    harness.raised = MemoryError("no more")
    with pytest.raises(MemoryError):
        harness.run()
    (settlement,) = harness.leases.take_settlements()
    assert Verdict.RETRY is settlement.verdict
    assert "MemoryError" in settlement.error
    assert [] == harness.leases.held()


def test_releases_a_batch_once_the_node_leaves(harness):
    """A handler thread may have just taken the batch when the waiting ones are released."""
    harness.dispatcher.release_waiting()
    assert [Verdict.RELEASE] == [s.verdict for s in harness.run()]
    assert [] == harness.handled
