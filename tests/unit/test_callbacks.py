"""The callback thread: it emits announcements in order, and never blocks the announcing thread."""

import queue
import threading
from types import SimpleNamespace

import pytest
from servers import PATIENCE

from dtimer.engine import callbacks as module
from dtimer.engine.callbacks import CallbackThread

NAME = "dtimer-callbacks"


class Emissions:
    """The emitted announcements, and the name of the thread that emitted each."""

    def __init__(self):
        self._queue = queue.SimpleQueue()

    def emit(self, *announcement):
        if announcement == ("fail",):
            raise RuntimeError("a listener failed")
        self._queue.put((announcement, threading.current_thread().name))

    def next(self):
        return self._queue.get(timeout=PATIENCE)

    @property
    def count(self):
        return self._queue.qsize()


@pytest.fixture
def emissions():
    return Emissions()


@pytest.fixture
def callbacks(emissions):
    """A callback thread that the test starts."""
    callbacks = CallbackThread(NAME, emissions)
    yield callbacks
    stop(callbacks)


def stop(callbacks):
    callbacks.stop()
    assert callbacks.join(PATIENCE)


def test_emits_in_order_on_its_own_thread(callbacks, emissions):
    """A slow listener must not hold up the claimer or a handler thread."""
    callbacks.start()
    for n in range(100):
        callbacks.announce("number", n)
    assert [(("number", n), NAME) for n in range(100)] == [emissions.next() for _ in range(100)]


def test_emits_everything_announced_before_stop_and_nothing_after(callbacks, emissions):
    """Listeners learn of the last events of a node that leaves."""
    for n in range(3):
        callbacks.announce("number", n)
    callbacks.stop()
    callbacks.start()
    callbacks.announce("number", 3)
    stop(callbacks)
    assert 3 == emissions.count


def test_reports_an_emission_that_raises_and_continues(callbacks, emissions):
    """The thread must survive any listener."""
    callbacks.start()
    callbacks.announce("fail")
    callbacks.announce("after")
    (name, error), _ = emissions.next()
    assert ("error", "a listener failed") == (name, str(error))
    assert (("after",), NAME) == emissions.next()


def test_drops_and_counts_announcements_beyond_a_bound_while_a_listener_hangs(
    emissions, monkeypatch
):
    """Announcing never blocks, so a hanging listener would otherwise fill the memory."""
    monkeypatch.setattr(module, "_MOST", 10)
    hanging, go_on = threading.Event(), threading.Event()

    def emit(*announcement):
        hanging.set()
        assert go_on.wait(PATIENCE)
        emissions.emit(*announcement)

    callbacks = CallbackThread(NAME, SimpleNamespace(emit=emit))
    callbacks.start()
    callbacks.announce("first")
    assert hanging.wait(PATIENCE)
    for n in range(1_000):
        callbacks.announce("number", n)
    go_on.set()
    stop(callbacks)
    assert 11 == emissions.count
    assert 990 == callbacks.dropped


def test_emits_one_announcement_a_call_without_a_thread(callbacks, emissions):
    """A caller that drives a node without threads emits on its own thread."""
    assert not callbacks.emit_one()
    callbacks.announce("one")
    callbacks.announce("two")
    assert callbacks.emit_one()
    assert (("one",), threading.current_thread().name) == emissions.next()
    assert callbacks.emit_one()
    assert not callbacks.emit_one()


def test_calls_a_delayed_function_once_on_its_own_thread(callbacks, emissions):
    """The call comes between announcements, never during one."""
    callbacks.start()
    callbacks.later(0.0, lambda: emissions.emit("later"))
    assert (("later",), NAME) == emissions.next()
    callbacks.announce("number", 1)
    assert (("number", 1), NAME) == emissions.next()
    stop(callbacks)
    assert 0 == emissions.count


def test_a_second_delayed_call_replaces_the_first_and_stop_does_not_wait_for_it(
    callbacks, emissions
):
    """There is room for one. A call that is hours away must not keep the thread alive."""
    callbacks.later(0.0, lambda: emissions.emit("replaced"))
    callbacks.later(0.0, lambda: emissions.emit("called"))
    callbacks.start()
    assert (("called",), NAME) == emissions.next()
    callbacks.later(3_600.0, lambda: emissions.emit("never"))
    callbacks.announce("number", 1)
    assert (("number", 1), NAME) == emissions.next()
    stop(callbacks)
    assert 0 == emissions.count


def test_a_delayed_call_is_not_lost_if_it_replaces_one_that_is_due(callbacks, monkeypatch):
    """Another thread may replace the delayed call after this one has looked at the time."""
    called = []
    callbacks.later(0.0, lambda: called.append("first"))
    monotonic = module.time.monotonic

    def read_and_replace():
        now = monotonic()
        if not called:
            called.append("replaced")
            callbacks.later(-1.0, lambda: called.append("second"))
        return now

    monkeypatch.setattr(module.time, "monotonic", read_and_replace)
    assert [(), ()] == [callbacks._next(), callbacks._next()]
    callbacks.stop()
    assert callbacks._next() is None
    assert ["replaced", "second"] == called
