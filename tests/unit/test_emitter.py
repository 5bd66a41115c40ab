"""The emitter: every listener is called, and none of them harms who emits."""

from __future__ import annotations

import logging
import threading
import traceback

import pytest
from servers import PATIENCE

from dtimer.errors import OptionError
from dtimer.timer.emitter import Emitter


@pytest.fixture
def emitter():
    return Emitter()


def fail(*arguments):
    raise ValueError("no")


class TestRegistering:
    """on, once, and what they refuse."""

    def test_the_ways_to_register(self, emitter):
        """As a decorator and with the function given, all return the function itself."""
        called = []

        @emitter.on("tea")
        def first(n):
            called.append(("first", n))

        def second(n):
            called.append(("second", n))

        def third(n):
            called.append(("third", n))

        @emitter.once("tea")
        def fourth(n):
            called.append(("fourth", n))

        assert second is emitter.on("tea", second)
        assert third is emitter.once("tea", third)
        assert [first, fourth, second, third] == emitter.listeners("tea")
        for n in range(2):
            emitter.emit_guarded("tea", n)
        assert [
            ("first", 0),
            ("fourth", 0),
            ("second", 0),
            ("third", 0),
            ("first", 1),
            ("second", 1),
        ] == called

    @pytest.mark.parametrize("way", ["on", "once", "add_listener"])
    def test_what_is_refused(self, emitter, way):
        """A name that is no str, what cannot be called, and what would have to be awaited."""

        async def later(events):
            pass

        register = getattr(emitter, way)
        for event, f in ((3, fail), ("tea", 3), ("tea", later)):
            with pytest.raises(OptionError):
                register(event, f)
        assert [] == emitter.listeners("tea")

    def test_refused_as_a_decorator(self, emitter):
        """A decorator refuses when it is applied."""
        for decorate in (emitter.on("tea"), emitter.once("tea"), emitter.listens_to("tea")):
            with pytest.raises(OptionError):
                decorate(3)

    def test_removing(self, emitter):
        """A listener can be removed, by on() or by once(); one that is not there is no error."""
        emitter.on("tea", fail)
        emitter.remove_listener("tea", fail)
        emitter.once("tea", fail)
        emitter.remove_listener("tea", fail)
        emitter.remove_listener("tea", fail)
        emitter.remove_listener("egg", fail)
        assert emitter.emit_guarded("tea") is None


class TestEmitting:
    """Our own emissions."""

    def test_who_was_called(self, emitter):
        """None says that nobody was called; a list, what those who were called have raised."""
        assert emitter.emit_guarded("tea") is None
        emitter.on("tea", lambda: None)
        assert [] == emitter.emit_guarded("tea")

    def test_a_traceback_begins_with_the_listener(self, emitter):
        """
        The first frame of what a listener raised is the listener's own, so that its reader meets
        no line of the library, in a log and in a dead letter.
        """
        emitter.on("tea", fail)
        (error,) = emitter.emit_guarded("tea")
        assert ["fail"] == [frame.name for frame in traceback.extract_tb(error.__traceback__)]

    def test_all_are_called(self, emitter):
        """A listener that raises, whatever it is, does not keep the others from theirs."""
        called = []

        def leave():
            raise SystemExit

        emitter.on("tea", fail)
        emitter.on("tea", leave)
        emitter.on("tea", lambda: called.append(1))
        assert [ValueError, SystemExit] == [type(e) for e in emitter.emit_guarded("tea")]
        assert [1] == called

    def test_within_a_listener(self, emitter):
        """What a listener emits itself is the user's own, and raises as pyee does it."""
        told = []

        def listen():
            try:
                emitter.emit("egg")
            except ValueError as e:
                told.append(e)
            raise KeyError

        emitter.on("tea", listen)
        emitter.on("egg", fail)
        assert [KeyError] == [type(e) for e in emitter.emit_guarded("tea")]
        assert 1 == len(told)

    def test_an_emission_within_an_emission(self, emitter):
        """A guarded emission out of a listener does not mix with the one around it."""
        inner = []
        emitter.on("tea", lambda: inner.append(emitter.emit_guarded("egg")))
        emitter.on("tea", fail)
        assert [ValueError] == [type(e) for e in emitter.emit_guarded("tea")]
        emitter.on("egg", fail)
        emitter.emit_guarded("tea")
        assert inner[0] is None
        assert [ValueError] == [type(e) for e in inner[1]]

    def test_of_the_users_own(self, emitter):
        """emit() is pyee's: the first that raises is raised, and so is an unheard 'error'."""
        emitter.on("tea", fail)
        with pytest.raises(ValueError, match="no"):
            emitter.emit("tea")
        with pytest.raises(KeyError):
            emitter.emit("error", KeyError("unheard"))
        called = []
        emitter.once("egg", called.append)
        assert [True, False] == [emitter.emit("egg", n) for n in range(2)]
        assert [0] == called

    def test_announcing(self, emitter, caplog):
        """What a listener of an announcement raises is logged, and so is an unheard error."""
        emitter.announce("ready")
        assert [] == caplog.records
        emitter.announce("error", KeyError("unheard"))
        emitter.on("error", fail)
        emitter.announce("error", KeyError("heard"))
        unheard, raised = caplog.records
        assert (logging.ERROR, "'unheard'") == (unheard.levelno, unheard.message)
        assert unheard.exc_info[0] is KeyError
        assert (logging.ERROR, "a listener of 'error' raised") == (raised.levelno, raised.message)
        assert raised.exc_info[0] is ValueError


class TestOnce:
    """A listener that is called once."""

    def test_by_one_of_many_threads(self, emitter):
        """Of many threads that emit at once one calls it; to the others nobody was there."""
        for _ in range(20):
            called, told = [], []
            start = threading.Barrier(4)

            def emit(told=told, start=start):
                start.wait(PATIENCE)
                told.append(emitter.emit_guarded("tea"))

            emitter.once("tea", lambda called=called: called.append(1))
            crew = [threading.Thread(target=emit) for _ in range(4)]
            for thread in crew:
                thread.start()
            for thread in crew:
                thread.join(PATIENCE)
            assert [1] == called
            assert 1 == told.count([])
            assert 3 == told.count(None)

    def test_taken_while_another_was_about_to(self, emitter):
        """Who finds a listener and then finds it taken has called nobody."""
        emitter.once("tea", fail)
        (found,) = emitter._events["tea"].values()
        assert found.take() is fail
        emitter._events["tea"] = {fail: found}
        assert emitter.emit_guarded("tea") is None

    def test_registering_itself_again(self, emitter):
        """A listener may register itself once more: it is called by the next emission."""
        called = []

        def listen(n):
            called.append(n)
            emitter.once("tea", listen)

        emitter.once("tea", listen)
        for n in range(3):
            assert [] == emitter.emit_guarded("tea", n)
        assert [0, 1, 2] == called
