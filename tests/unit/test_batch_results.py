"""The results of single events that a router reports: when and how each lease is settled."""

from __future__ import annotations

import pytest
from seats import CycleHarness, claim

from dtimer.engine.clock import boottime
from dtimer.errors import HandlerError, UnknownKind
from dtimer.model.claims import Verdict
from dtimer.model.kinds import UnknownPolicy

POLICY = UnknownPolicy("type", 60_000_000)


class RoutingHarness(CycleHarness):
    """A runner whose only listener is a router that the test has written."""

    def __init__(self, **options):
        super().__init__(**options)
        self.leases.carrier = self
        self.carried = 0  # how often a claim was asked to carry settlements early
        self.alone = True
        self.raised = []  # the exceptions of the plain listeners
        self.route = None

    def carry_soon(self):
        self.carried += 1

    def deliver(self, events, results):
        results.begin(alone=self.alone)
        self.route(events, results)
        return self.raised

    def run(self, route, *claims):
        """Run a batch of *claims*; return the verdict of each settlement, by the id."""
        self.route = route
        leases = self.leases.grant(claims, 0.0)
        for lease in leases:
            lease.renewed(0.0, 10**15)
        self.dispatcher._runner.run(leases)
        return {s.id: s.verdict for s in self.leases.take_settlements()}


@pytest.fixture
def harness():
    return RoutingHarness()


def run_each(events, results):
    """Handle one event after the other."""
    for event in events:
        if results.starts([event], None):
            results.done([event])


def test_an_event_is_settled_before_the_next_one_starts(harness):
    """A node that dies during a long batch then repeats only the event that was running."""
    waiting = []

    def route(events, results):
        for event in events:
            waiting.append(len(harness.leases._settlements))
            results.starts([event], None)
            results.done([event])

    assert [Verdict.CONFIRM] * 3 == [*harness.run(route, claim(), claim(), claim()).values()]
    assert [0, 1, 2] == waiting


def test_asks_for_a_claim_after_each_event_but_the_last(harness):
    """The thread itself claims after its batch, so a batch of one event costs nothing more."""
    harness.run(run_each, claim())
    assert 0 == harness.carried
    harness.run(run_each, claim(), claim(), claim())
    assert 2 == harness.carried


@pytest.mark.parametrize(("alone", "auto_confirm"), [(False, True), (True, False)])
def test_nothing_is_settled_early_if_another_party_decides(alone, auto_confirm):
    """Another listener may fail the event, and without auto_confirm the user's code settles it."""
    harness = RoutingHarness(auto_confirm=auto_confirm)
    harness.alone = alone
    waiting = []

    def route(events, results):
        run_each(events[:1], results)
        results.starts(events[1:], None)
        results.failed(events[1:], [ValueError()])
        waiting.append(harness.leases.unsettled)

    first, second = claim(), claim()
    verdicts = harness.run(route, first, second)
    assert [False] == waiting
    assert 0 == harness.carried
    assert Verdict.RETRY is verdicts.pop(second.id)
    assert ({first.id: Verdict.CONFIRM} if auto_confirm else {}) == verdicts


def test_an_exception_of_a_plain_listener_fails_the_events_without_a_failure(harness):
    """An event that its route has failed keeps the error and the backoff of its kind."""
    harness.alone = False
    harness.raised = [ValueError("plain")]

    def route(events, results):
        good, bad, new = events
        results.starts([good, bad], None)
        results.done([good])
        results.failed([bad], [KeyError("its own")])
        results.unknown(new, "new", POLICY)

    harness.run(route, claim(id="good"), claim(id="bad"), claim(id="new"))
    errors = [error for _, error in harness.announced.all()]
    assert [HandlerError] * 2 == [type(error) for error in errors]
    assert [["bad"], ["good", "new"]] == [[ev.id for ev in error.events] for error in errors]


def test_does_not_start_an_event_whose_lease_was_lost_or_that_has_expired(harness):
    """While it waited for the events before it, another node may have started it."""
    started = []

    def route(events, results):
        lost, expired, good = events
        lost._holder.mark_lost()
        expired._holder.event_expires_at = boottime() - 1
        for event in (lost, expired, good):
            started.extend(results.starts([event], None))
        results.done([good])

    verdicts = harness.run(route, claim(id="lost"), claim(id="expired"), claim(id="good"))
    assert ["good"] == [event.id for event in started]
    released = dict.fromkeys(("lost", "expired"), Verdict.RELEASE)
    assert released | {"good": Verdict.CONFIRM} == verdicts


@pytest.mark.parametrize("alone", [True, False])
def test_releases_what_was_not_started_when_the_router_stops(alone):
    """A confirm would lose the events that no handler has seen."""
    harness = RoutingHarness()
    harness.alone = alone

    def route(events, results):
        run_each(events[:1], results)
        results.stop()

    first, second = claim(), claim()
    verdicts = harness.run(route, first, second)
    assert {first.id: Verdict.CONFIRM, second.id: Verdict.RELEASE} == verdicts


def test_an_event_that_one_router_has_handled_is_not_put_off_by_another(harness):
    """The order of the two routers does not matter."""
    harness.alone = False

    def route(events, results):
        results.unknown(events[0], "new", POLICY)
        run_each(events, results)

    (event,) = [claim()]
    assert {event.id: Verdict.CONFIRM} == harness.run(route, event)
    assert 0 == harness.seat.unknown_kinds.count


def test_reports_each_unknown_kind_once_a_minute(harness, monkeypatch):
    """A backlog of a new kind must not flood the log. Each delivery is counted."""
    now = [0.0]
    monkeypatch.setattr("dtimer.engine.unknown_kinds.time.monotonic", lambda: now[0])

    def route(events, results):
        for event in events:
            results.unknown(event, event["type"], POLICY)

    def batch(*kinds):
        claims = [claim(b'{"type":"%b"}' % kind.encode()) for kind in kinds]
        harness.run(route, *claims)
        return [error.kind for _, error in harness.announced.all()]

    assert ["a", "b"] == batch("a", "b", "a")
    now[0] = 59.0
    assert [] == batch("a", "b")
    now[0] = 61.0
    assert ["a"] == batch("a")
    assert 6 == harness.seat.unknown_kinds.count


def test_remembers_a_limited_number_of_kinds(harness):
    """Any text may be a kind, and a node runs for months."""

    def route(events, results):
        for n in range(1_000):
            results.unknown(events[0], f"kind-{n}", POLICY)

    harness.run(route, claim())
    assert len(harness.seat.unknown_kinds._quiet_until) <= 100
    assert {UnknownKind} == {type(error) for _, error in harness.announced.all()}


@pytest.mark.parametrize(
    ("snoozed_for_s", "pause_s"), [(0, 1), (1, 2), (3, 4), (255, 256), (511, 300), (86_400, None)]
)
def test_each_pause_of_an_unknown_kind_is_about_twice_the_one_before(snoozed_for_s, pause_s):
    """A deploy ends within minutes, and a mistake must not keep the nodes busy for a day."""
    policy = UnknownPolicy("type", 86_400_000_000)
    pause_us = policy.pause_us(snoozed_for_s * 1_000_000)
    assert pause_s == (None if pause_us is None else pause_us / 1_000_000)
