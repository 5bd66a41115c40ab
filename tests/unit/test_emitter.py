"""The emitter: every listener is called, and no listener harms the caller."""

import logging
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

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
    """on(), once(), and their checks."""

    def test_on_and_once_work_as_decorators_and_with_a_function(self, emitter):
        """The function is returned, so that it can still be called and removed by its name."""
        called = []

        def listener(name):
            return lambda n: called.append((n, name))

        listeners = [listener(name) for name in ("@on", "@once", "on", "once")]
        assert listeners == [
            *(emitter.on("tea")(listeners[0]), emitter.once("tea")(listeners[1])),
            *(emitter.on("tea", listeners[2]), emitter.once("tea", listeners[3])),
        ]
        assert listeners == emitter.listeners("tea")
        for n in range(2):
            emitter._emit_guarded("tea", n)
        assert [(0, "@on"), (0, "@once"), (0, "on"), (0, "once"), (1, "@on"), (1, "on")] == called

    @pytest.mark.parametrize("way", ["on", "once", "add_listener"])
    def test_refuses_bad_names_uncallable_objects_and_coroutine_functions(self, emitter, way):
        """A coroutine function would never be awaited."""

        async def coroutine_function(events):
            pass

        for event, listener in ((3, fail), ("tea", 3), ("tea", coroutine_function)):
            with pytest.raises(OptionError):
                getattr(emitter, way)(event, listener)
        assert [] == emitter.listeners("tea")

    def test_a_decorator_refuses_an_uncallable_object(self, emitter):
        """The error points at the decorated object."""
        for decorate in (emitter.on("tea"), emitter.once("tea"), emitter.listens_to("tea")):
            with pytest.raises(OptionError):
                decorate(3)

    def test_removes_listeners_and_ignores_unknown_ones(self, emitter):
        """A listener of once() is wrapped, and must be found all the same."""
        emitter.on("tea", fail)
        emitter.remove_listener("tea", fail)
        emitter.once("tea", fail)
        emitter.remove_listener("tea", fail)
        emitter.remove_listener("tea", fail)
        emitter.remove_listener("egg", fail)
        assert emitter._emit_guarded("tea") is None


class TestEmitting:
    """Emissions of the node itself."""

    def test_emit_guarded_returns_none_without_listeners_and_otherwise_the_errors(self, emitter):
        """The node releases an event that no listener has received."""
        assert emitter._emit_guarded("tea") is None
        emitter.on("tea", lambda: None)
        assert [] == emitter._emit_guarded("tea")

    def test_a_traceback_begins_in_the_listener(self, emitter):
        """Readers of a log or a dead letter see no line of the library."""
        emitter.on("tea", fail)
        (error,) = emitter._emit_guarded("tea")
        assert ["fail"] == [frame.name for frame in traceback.extract_tb(error.__traceback__)]

    def test_calls_all_listeners_even_if_some_raise(self, emitter):
        """A listener must not prevent another, even by SystemExit."""
        called = []
        emitter.on("tea", fail)
        emitter.on("tea", sys.exit)
        emitter.on("tea", lambda: called.append(1))
        assert [ValueError, SystemExit] == [type(e) for e in emitter._emit_guarded("tea")]
        assert [1] == called

    def test_an_emission_of_a_listener_raises_in_the_listener(self, emitter):
        """The emission belongs to the user, who can catch the error, as with pyee."""
        caught = []

        def listen():
            try:
                emitter.emit("egg")
            except ValueError as e:
                caught.append(e)
            raise KeyError

        emitter.on("tea", listen)
        emitter.on("egg", fail)
        assert [KeyError] == [type(e) for e in emitter._emit_guarded("tea")]
        assert 1 == len(caught)

    def test_nested_guarded_emissions_report_their_own_errors(self, emitter):
        """A mixed report would fail the wrong events."""
        inner = []
        emitter.on("tea", lambda: inner.append(emitter._emit_guarded("egg")))
        emitter.on("tea", fail)
        assert [ValueError] == [type(e) for e in emitter._emit_guarded("tea")]
        assert [None] == inner
        emitter.on("egg", fail)
        emitter._emit_guarded("tea")
        assert [ValueError] == [type(e) for e in inner[1]]

    def test_emit_behaves_like_pyee(self, emitter):
        """The first error is raised, and so is an 'error' without a listener."""
        emitter.on("tea", fail)
        with pytest.raises(ValueError, match="no"):
            emitter.emit("tea")
        with pytest.raises(KeyError):
            emitter.emit("error", KeyError("unheard"))
        called = []
        emitter.once("egg", called.append)
        assert [True, False] == [emitter.emit("egg", n) for n in range(2)]
        assert [0] == called

    def test_logs_errors_of_listeners_and_errors_without_a_listener(self, emitter, caplog):
        """An announcement never raises in the node."""
        emitter._announce("ready")
        assert [] == caplog.records
        emitter._announce("error", KeyError("unheard"))
        emitter.on("error", fail)
        emitter._announce("error", KeyError("heard"))
        unheard, raised = caplog.records
        assert (logging.ERROR, "'unheard'") == (unheard.levelno, unheard.message)
        assert unheard.exc_info[0] is KeyError
        assert (logging.ERROR, "a listener of 'error' raised") == (raised.levelno, raised.message)
        assert raised.exc_info[0] is ValueError


class TestOnce:
    """A listener that is called once."""

    def test_exactly_one_of_many_threads_calls_it(self, emitter):
        """The other threads find no listener."""
        for _ in range(20):
            called, start = [], threading.Barrier(4)

            def emit(_, start=start):
                start.wait(PATIENCE)
                return emitter._emit_guarded("tea")

            emitter.once("tea", lambda called=called: called.append(1))
            with ThreadPoolExecutor(4) as pool:
                results = list(pool.map(emit, range(4)))
            assert [1] == called
            assert (1, 3) == (results.count([]), results.count(None))

    def test_reports_no_listener_if_another_thread_has_taken_it_since_the_lookup(self, emitter):
        """The event is then released, as without a listener."""
        emitter.once("tea", fail)
        (found,) = emitter._events["tea"].values()
        assert found.unwrap() is fail
        emitter._events["tea"] = {fail: found}
        assert emitter._emit_guarded("tea") is None

    def test_may_register_itself_again_for_the_next_emission(self, emitter):
        """If it took part in the same emission, it would run for ever."""
        called = []

        def listen(n):
            called.append(n)
            emitter.once("tea", listen)

        emitter.once("tea", listen)
        for n in range(3):
            assert [] == emitter._emit_guarded("tea", n)
        assert [0, 1, 2] == called
