"""The herald: what is announced is said, in order, and holds nobody up."""

from __future__ import annotations

import queue
import threading

from servers import PATIENCE

from dtimer.engine import herald as module
from dtimer.engine.herald import Herald


class Heard:
    """What was emitted, and by which thread."""

    def __init__(self):
        self.said = queue.SimpleQueue()

    def emit(self, *said):
        if said == ("fail",):
            raise RuntimeError("cannot be said")
        self.said.put((said, threading.current_thread().name))

    def next(self):
        return self.said.get(timeout=PATIENCE)[0]


def test_in_order_and_by_its_own_thread():
    """Announcements are emitted in order, all by the herald's thread."""
    heard = Heard()
    herald = Herald("dtimer-herald", heard.emit)
    herald.start()
    for n in range(100):
        herald.announce("number", n)
    for n in range(100):
        assert (("number", n), "dtimer-herald") == heard.said.get(timeout=PATIENCE)
    herald.stop()
    assert herald.join(PATIENCE)


def test_before_the_end_all_is_said():
    """What was announced before stop() is said before the thread ends; nothing after."""
    heard = Heard()
    herald = Herald("dtimer-herald", heard.emit)
    for n in range(3):
        herald.announce("number", n)
    herald.stop()
    herald.start()
    herald.announce("number", 3)
    assert herald.join(PATIENCE)
    assert 3 == heard.said.qsize()


def test_an_emission_that_raises():
    """One that raises is told to 'error', and what follows is said."""
    heard = Heard()
    herald = Herald("dtimer-herald", heard.emit)
    herald.start()
    herald.announce("fail")
    herald.announce("after")
    said = heard.next()
    assert "error" == said[0]
    assert "cannot be said" == str(said[1])
    assert ("after",) == heard.next()
    herald.stop()
    assert herald.join(PATIENCE)


def test_a_listener_that_hangs_fills_no_memory(monkeypatch):
    """Announcing never blocks, and beyond a bound what nobody hears is dropped, and counted."""
    monkeypatch.setattr(module, "_MOST", 10)
    hanging, go_on = threading.Event(), threading.Event()
    heard = Heard()

    def emit(*said):
        hanging.set()
        assert go_on.wait(PATIENCE)
        heard.emit(*said)

    herald = Herald("dtimer-herald", emit)
    herald.start()
    herald.announce("first")
    assert hanging.wait(PATIENCE)
    for n in range(1_000):
        herald.announce("number", n)
    go_on.set()
    herald.stop()
    assert herald.join(PATIENCE)
    assert 11 == heard.said.qsize()
    assert 990 == herald.dropped


def test_without_its_thread():
    """Whoever drives a node without threads has it say one thing at a time, on his own."""
    heard = Heard()
    herald = Herald("dtimer-herald", heard.emit)
    assert not herald.speak_up()
    herald.announce("one")
    herald.announce("two")
    assert herald.speak_up()
    assert (("one",), threading.current_thread().name) == heard.said.get(timeout=PATIENCE)
    assert herald.speak_up()
    assert not herald.speak_up()


def test_what_is_called_later_is_called_by_its_own_thread():
    """A call that was put off comes on the herald's thread, between announcements, and once."""
    heard = Heard()
    herald = Herald("dtimer-herald", heard.emit)
    herald.start()
    herald.later(0.0, lambda: heard.emit("later"))
    assert (("later",), "dtimer-herald") == heard.said.get(timeout=PATIENCE)
    herald.announce("number", 1)
    assert ("number", 1) == heard.next()
    herald.stop()
    assert herald.join(PATIENCE)
    assert heard.said.empty()


def test_the_last_that_is_put_off_replaces_the_one_before():
    """Only the last call that was put off comes, and none keeps the thread from its end."""
    heard = Heard()
    herald = Herald("dtimer-herald", heard.emit)
    herald.later(0.0, lambda: heard.emit("replaced"))
    herald.later(0.0, lambda: heard.emit("called"))
    herald.start()
    assert ("called",) == heard.next()
    herald.later(3_600.0, lambda: heard.emit("never"))
    herald.announce("number", 1)
    assert ("number", 1) == heard.next()
    herald.stop()
    assert herald.join(PATIENCE)
    assert heard.said.empty()
