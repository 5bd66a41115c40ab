"""A seat of the engine with fakes around it, for tests without a server."""

from __future__ import annotations

import queue
from types import SimpleNamespace

from logged import Logged

from dtimer.engine.leases import LeaseTable
from dtimer.engine.seat import Seat
from dtimer.model.options import validate


class Announced:
    """Keeps what the engine announces."""

    def __init__(self):
        self._queue = queue.SimpleQueue()

    def announce(self, *what):
        self._queue.put(what)

    def next(self, patience=0.0):
        """Return the next announcement, which must come within *patience* seconds."""
        return self._queue.get(timeout=patience)

    def all(self):
        """Return what was announced since the last call."""
        return [self._queue.get() for _ in range(self._queue.qsize())]


class FakeContact:
    """Keeps the changes of the connectivity."""

    def __init__(self):
        self.answered = None
        self._changes = queue.SimpleQueue()
        self.connectivity_changed = self._changes.put

    def reported(self):
        """Return the changes since the last call: an error, or None if Redis answers."""
        return [self._changes.get() for _ in range(self._changes.qsize())]


class FakeListener:
    """A listener that hears, or does not, as the test says."""

    def __init__(self, due=3_600.0):
        self.hears = True
        self.due = due
        self.echoes = []

    def echo_due(self):
        return self.due

    @property
    def echo_wanted(self):
        return self.due <= 0

    def echo_sent(self):
        self.echoes.append("sent")

    def echo_failed(self):
        self.echoes.append("failed")


def make_leases(lease_store=None, announced=None, logged=None, **options):
    """Return a table of leases. Its announcements and records are kept in the given objects."""
    return LeaseTable(
        "test",
        validate(options),
        lease_store or SimpleNamespace(),
        announced or Announced(),
        (logged or Logged()).log,
    )


def make_seat(store, *, leases=None, lease_store=None, announced=None, logged=None, **options):
    """Return a seat around a fake store, with a fake listener and a fake contact."""
    announced, logged = announced or Announced(), logged or Logged()
    return Seat(
        validate(options),
        store=store,
        leases=leases or make_leases(lease_store, announced, logged, **options),
        listener=FakeListener(),
        contact=FakeContact(),
        announcements=announced,
        log=logged.log,
    )
