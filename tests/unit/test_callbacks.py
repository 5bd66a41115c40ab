"""The callback thread: it emits announcements in order, and never blocks the announcing thread."""

from __future__ import annotations

import queue
import threading

from servers import PATIENCE

from dtimer.engine import callbacks as module
from dtimer.engine.callbacks import CallbackThread


class Heard:
    """The emitted announcements, and the thread that emitted each."""

    def __init__(self):
        self.emitted = queue.SimpleQueue()

    def emit(self, *event):
        if event == ("fail",):
            raise RuntimeError("cannot be said")
        self.emitted.put((event, threading.current_thread().name))

    def next(self):
        return self.emitted.get(timeout=PATIENCE)[0]


def test_emits_in_order_on_its_own_thread():
    """A slow listener must not hold up the claimer or a handler thread."""
    heard = Heard()
    callbacks = CallbackThread("dtimer-callbacks", heard.emit)
    callbacks.start()
    for n in range(100):
        callbacks.announce("number", n)
    for n in range(100):
        assert (("number", n), "dtimer-callbacks") == heard.emitted.get(timeout=PATIENCE)
    callbacks.stop()
    assert callbacks.join(PATIENCE)


def test_emits_everything_announced_before_stop_and_nothing_after():
    """Listeners learn of the last events of a node that leaves."""
    heard = Heard()
    callbacks = CallbackThread("dtimer-callbacks", heard.emit)
    for n in range(3):
        callbacks.announce("number", n)
    callbacks.stop()
    callbacks.start()
    callbacks.announce("number", 3)
    assert callbacks.join(PATIENCE)
    assert 3 == heard.emitted.qsize()


def test_reports_an_emission_that_raises_and_continues():
    """The thread must survive any listener."""
    heard = Heard()
    callbacks = CallbackThread("dtimer-callbacks", heard.emit)
    callbacks.start()
    callbacks.announce("fail")
    callbacks.announce("after")
    event = heard.next()
    assert "error" == event[0]
    assert "cannot be said" == str(event[1])
    assert ("after",) == heard.next()
    callbacks.stop()
    assert callbacks.join(PATIENCE)


def test_drops_and_counts_announcements_beyond_a_bound_while_a_listener_hangs(monkeypatch):
    """Announcing never blocks, so a hanging listener would otherwise fill the memory."""
    monkeypatch.setattr(module, "_MOST", 10)
    hanging, go_on = threading.Event(), threading.Event()
    heard = Heard()

    def emit(*event):
        hanging.set()
        assert go_on.wait(PATIENCE)
        heard.emit(*event)

    callbacks = CallbackThread("dtimer-callbacks", emit)
    callbacks.start()
    callbacks.announce("first")
    assert hanging.wait(PATIENCE)
    for n in range(1_000):
        callbacks.announce("number", n)
    go_on.set()
    callbacks.stop()
    assert callbacks.join(PATIENCE)
    assert 11 == heard.emitted.qsize()
    assert 990 == callbacks.dropped


def test_emits_one_announcement_a_call_without_a_thread():
    """A caller that drives a node without threads emits on its own thread."""
    heard = Heard()
    callbacks = CallbackThread("dtimer-callbacks", heard.emit)
    assert not callbacks.emit_one()
    callbacks.announce("one")
    callbacks.announce("two")
    assert callbacks.emit_one()
    assert (("one",), threading.current_thread().name) == heard.emitted.get(timeout=PATIENCE)
    assert callbacks.emit_one()
    assert not callbacks.emit_one()


def test_calls_a_delayed_function_once_on_its_own_thread():
    """The call comes between announcements, never during one."""
    heard = Heard()
    callbacks = CallbackThread("dtimer-callbacks", heard.emit)
    callbacks.start()
    callbacks.later(0.0, lambda: heard.emit("later"))
    assert (("later",), "dtimer-callbacks") == heard.emitted.get(timeout=PATIENCE)
    callbacks.announce("number", 1)
    assert ("number", 1) == heard.next()
    callbacks.stop()
    assert callbacks.join(PATIENCE)
    assert heard.emitted.empty()


def test_a_second_delayed_call_replaces_the_first_and_stop_does_not_wait_for_it():
    """
    There is room for one delayed call.

    A call that is hours away must not keep the thread alive.
    """
    heard = Heard()
    callbacks = CallbackThread("dtimer-callbacks", heard.emit)
    callbacks.later(0.0, lambda: heard.emit("replaced"))
    callbacks.later(0.0, lambda: heard.emit("called"))
    callbacks.start()
    assert ("called",) == heard.next()
    callbacks.later(3_600.0, lambda: heard.emit("never"))
    callbacks.announce("number", 1)
    assert ("number", 1) == heard.next()
    callbacks.stop()
    assert callbacks.join(PATIENCE)
    assert heard.emitted.empty()


def test_a_delayed_call_that_comes_while_another_is_due_is_not_lost(monkeypatch):
    """Another thread may replace the delayed call after this one has looked at the time."""
    callbacks, called = CallbackThread("dtimer-callbacks", lambda *event: None), []
    callbacks.later(0.0, lambda: called.append("first"))
    monotonic = module.time.monotonic

    def replaced():
        now = monotonic()
        if not called:
            called.append("looked")
            callbacks.later(-1.0, lambda: called.append("second"))
        return now

    monkeypatch.setattr(module.time, "monotonic", replaced)
    assert () == callbacks._next()
    assert () == callbacks._next()
    callbacks.stop()
    assert callbacks._next() is None
    assert ["looked", "second"] == called
