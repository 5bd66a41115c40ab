"""The reports of a joined node: the times at which it sends them, and failures."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from dtimer import Health, StoreError
from dtimer.timer import reports
from dtimer.timer.reports import Reports

IDLE = Health(True, True, False, 0.0, 0.0, handlers=0, stuck=0, error=None)
MINUTE_US = 60_000_000


class World:
    """A node whose time and delayed calls the test runs."""

    def __init__(self, monkeypatch):
        self.now = 1_000.0
        self.health = IDLE
        self.answers = True
        self.left_us = MINUTE_US
        self.sent = []
        self.waits = []
        self._known = IDLE
        clock = SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
        monkeypatch.setattr(reports, "time", clock)
        self.presence = SimpleNamespace(outdated=self._outdated, entry=lambda: "{}", rtt=0)
        callbacks = SimpleNamespace(later=lambda seconds, _: self.waits.append(seconds))
        self.reports = Reports(
            SimpleNamespace(report=self._report),
            "incarnation",
            self.presence,
            callbacks,
            health=lambda: self.health,
            answers=lambda: self.answers,
            history=True,
        )

    def _outdated(self, health):
        outdated, self._known = health != self._known, health
        return outdated

    def _report(self, incarnation, entry, *, history):
        self.now += 0.002
        if self.left_us is None:
            raise StoreError("no reply")
        self.sent.append((incarnation, entry, history))
        return self.left_us

    def look(self, after=0.0):
        """Have the node look at its state; return how many reports it has sent so far."""
        self.now += after
        self.reports._look()
        return len(self.sent)


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_a_node_that_does_not_change_reports_once_a_minute(world):
    """An idle node costs one call a minute more than its polls."""
    assert [0] * 11 == [world.look(5) for _ in range(11)]
    assert 1 == world.look(5)
    assert 1 == world.look(5)
    assert ("incarnation", "{}", True) == world.sent[0]


def test_a_change_is_reported_at_the_next_look(world):
    """The list of nodes shows a deaf node within 5 s."""
    assert 0 == world.look()
    world.health = replace(IDLE, deaf=True)
    assert 1 == world.look(5)
    assert 1 == world.look(5)
    assert [5.0] * 3 == world.waits


def test_the_next_report_follows_the_begin_of_a_minute(world):
    """The history then has a row for each minute, whenever the node has joined."""
    world.left_us = 7_000_000
    world.look(60)
    assert 1 == world.look(5)
    assert 2 < world.waits[-1] < 2.1
    assert 2 == world.look(2.1)


def test_the_duration_of_a_report_is_measured(world):
    """The next entry has it."""
    world.look(60)
    assert 2_000 == world.presence.rtt


def test_nothing_is_sent_during_an_outage(world):
    """The callback thread must not wait for a reply while it reports the outage."""
    world.health, world.answers = replace(IDLE, handlers=1), False
    assert 0 == world.look(60)
    world.answers = True
    assert 1 == world.look(5)


def test_a_report_that_failed_is_sent_again(world):
    """A change must reach the list although its first report was lost."""
    world.health, world.left_us = replace(IDLE, handlers=1), None
    assert 0 == world.look()
    world.left_us = MINUTE_US
    assert 1 == world.look(5)


def test_a_node_that_leaves_reports_no_more(world):
    """A report after it has left would be a call for nothing."""
    world.health = None
    world.look(60)
    assert ([], []) == (world.sent, world.waits)
