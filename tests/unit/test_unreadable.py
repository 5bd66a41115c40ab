"""Events whose payloads a node cannot open."""

import pytest
from seats import Announced, FakeLeaseStore, claim, make_leases

from dtimer.engine import unreadable
from dtimer.engine.unreadable import LONGEST_US, MOST_US, SHORTEST_US, UnreadableEvents
from dtimer.errors import UnreadablePayload
from dtimer.model.claims import Verdict
from dtimer.model.outcomes import Reason

ERROR = UnreadablePayload("no key")


@pytest.fixture
def announced():
    return Announced()


@pytest.fixture
def events(announced):
    return UnreadableEvents(announced)


@pytest.fixture
def seconds(monkeypatch):
    """The monotonic clock of the reports, as a list of one number."""
    seconds = [1_000.0]
    monkeypatch.setattr(unreadable.time, "monotonic", lambda: seconds[0])
    return seconds


def snoozed(us, reason=Reason.UNREADABLE):
    """Return the claim of an event that was first snoozed this long ago."""
    found = claim(b"\x82secret", id="tea")
    found.snoozed_us, found.snooze_reason = found.claimed_us - us, reason
    return found


def reports(announced):
    """Return the texts of the emitted errors."""
    return [str(arguments[0]) for event, *arguments in announced.all() if event == "error"]


class TestPauses:
    """The pause before the event is tried again."""

    def test_begin_with_a_second(self, events):
        """During a deployment the other nodes can open the event."""
        settlement = events.settlement(claim(b"\x82"), ERROR)
        assert (Verdict.SNOOZE, SHORTEST_US) == (settlement.verdict, settlement.wait_us)
        assert Reason.UNREADABLE == settlement.reason

    def test_double_up_to_five_minutes(self, events):
        """Thousands of such events must not keep a node busy."""
        age, waits = 0, []
        while age < 3_000_000_000:
            waits.append(events.settlement(snoozed(age), ERROR).wait_us)
            age += waits[-1]
        doubled = [SHORTEST_US, *(SHORTEST_US * 2**n for n in range(9))]
        assert doubled == waits[:10]
        assert {LONGEST_US} == set(waits[10:])

    def test_end_after_a_day(self, events):
        """The letter says why, and keeps the bytes."""
        assert Verdict.SNOOZE is events.settlement(snoozed(MOST_US - 1), ERROR).verdict
        settlement = events.settlement(snoozed(MOST_US), ERROR)
        assert (Verdict.BURY, Reason.UNREADABLE) == (settlement.verdict, settlement.reason)
        assert "no key" == settlement.error

    def test_do_not_count_a_snooze_for_another_reason(self, events):
        """A handler that has snoozed the event for days must not make it a dead letter."""
        settlement = events.settlement(snoozed(MOST_US, reason=""), ERROR)
        assert (Verdict.SNOOZE, SHORTEST_US) == (settlement.verdict, settlement.wait_us)


class TestReports:
    """The errors that the node emits."""

    def test_come_once_a_minute(self, events, announced, seconds):
        """A deployment of a thousand events must not make a thousand alarms."""
        for _ in range(5):
            events.settlement(snoozed(0), ERROR)
        seconds[0] += 59
        events.settlement(snoozed(0), ERROR)
        (first,) = reports(announced)
        seconds[0] += 2
        events.settlement(snoozed(0), ERROR)
        (second,) = reports(announced)
        assert "'tea' cannot be opened here: no key" in first
        assert "nor 5 others since the last report: no key" in second
        assert 7 == events.count

    def test_do_not_quote_the_payload(self, events, announced):
        """Errors are logged."""
        events.settlement(snoozed(0), ERROR)
        assert "secret" not in reports(announced)[0]


def test_a_node_snoozes_such_an_event_and_grants_the_rest(announced):
    """The events of one claim do not affect each other, and no handler gets the bytes."""
    table = make_leases(FakeLeaseStore(), announced)
    closed, good = claim(b"\x82secret", id="closed"), claim(b"{}", id="good")
    assert ["good"] == [lease.claim.id for lease in table.grant([closed, good], 0.0)]
    assert ["good"] == [lease.claim.id for lease in table.held()]
    (settlement,) = table.take_settlements()
    assert ("closed", Verdict.SNOOZE) == (settlement.id, settlement.verdict)
    assert 1 == table.unreadable.count
