"""Middleware: context managers around each call of user code."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import queue
import threading

import pytest
from servers import LATER, PATIENCE, eventually

from dtimer import HandlerError, OptionError, RunAt, State
from dtimer.testing import Catch

REQUEST = contextvars.ContextVar("REQUEST", default="none")


class Boom(Exception):
    """The exception of a handler."""


class CannotCommit(Exception):
    """The exception of a middleware."""


def boom(_):
    raise Boom("no")


def middleware(timer, steps, *, fails=None):
    """Add a middleware that records its steps; it raises on its exit if *fails* is given."""

    @timer.middleware
    @contextlib.contextmanager
    def record(emission):
        steps.append(("enter", emission.name, [ev.id for ev in emission.events]))
        try:
            yield
        except BaseException as e:
            steps.append(("exit", type(e)))
            raise
        steps.append(("exit", None))
        if fails is not None:
            raise fails


class TestAroundEvents:
    """All listeners of a batch are inside one context manager."""

    def test_the_event_is_confirmed_after_the_middleware_was_left(self, make):
        """A transaction must be committed before the event is gone."""
        timer = make()
        states = queue.SimpleQueue()

        @timer.middleware
        @contextlib.contextmanager
        def look(emission):
            yield
            states.put(timer.peek(emission.events[0].id).state)

        timer.on("event", lambda events: None)
        with timer:
            id = timer.post({})
            assert State.IN_FLIGHT is states.get(timeout=PATIENCE)
            eventually(lambda: timer.peek(id) is None)

    def test_runs_on_the_thread_of_the_handler_once_for_all_listeners_of_a_batch(self, make):
        """A database connection that it opens belongs to the thread that uses it."""
        timer = make(max_events=2)
        threads, steps = [], []

        @timer.middleware
        @contextlib.contextmanager
        def note(emission):
            threads.append(threading.get_ident())
            yield

        middleware(timer, steps)
        timer.on("event", lambda events: threads.append(threading.get_ident()))
        timer.on("event", lambda events: steps.append("handled"))
        ids = timer.post_many([({}, 0), ({}, 0)])
        with timer:
            eventually(lambda: not timer.stats().in_flight and not timer.stats().scheduled)
        assert [("enter", "event", ids), "handled", ("exit", None)] == steps
        assert 1 == len(set(threads))

    def test_an_exception_on_exit_fails_the_event(self, make):
        """A COMMIT that fails must not confirm: the event is retried."""
        timer = make(backoff=LATER)
        errors, retries = Catch(timer, "error"), Catch(timer, "retry")
        timer.on("event", lambda events: None)

        @timer.middleware
        @contextlib.contextmanager
        def commit(emission):
            yield
            if emission.name == "event":
                raise CannotCommit

        with timer:
            id = timer.post({})
            assert isinstance(errors.next().__cause__, CannotCommit)
            assert id == retries.next().id

    @pytest.mark.parametrize("error", [CannotCommit(), SystemExit()])
    def test_an_exception_on_entry_fails_the_event_before_its_handler(self, make, error):
        """A handler without its transaction must not run. Each entered middleware is left."""
        timer = make(backoff=LATER)
        steps, handled = [], []
        middleware(timer, steps)

        @timer.middleware
        def refuse(emission):
            if emission.name == "event":
                raise error
            return contextlib.nullcontext()

        retries, errors = Catch(timer, "retry"), Catch(timer, "error")
        timer.on("event", handled.append)
        with timer:
            id = timer.post({})
            assert id == retries.next().id
            assert error is errors.next().__cause__
        assert [] == handled
        assert [("enter", "event", [id]), ("exit", type(error))] == [
            step for step in steps if step[1] in {"event", type(error)}
        ]

    def test_receives_the_exception_and_cannot_suppress_it(self, make):
        """An event whose handler failed is never confirmed."""
        timer = make(backoff=LATER)
        errors, seen = Catch(timer, "error"), []

        @timer.middleware
        @contextlib.contextmanager
        def suppress(emission):
            try:
                yield
            except Boom as e:
                seen.append(e)

        timer.on("event", boom)
        with timer:
            id = timer.post({})
            error = errors.next()
            eventually(lambda: timer.peek(id).state is State.SCHEDULED)
        assert [error.__cause__] == seen

    def test_may_replace_the_exception(self, make):
        """The dead letter then has the text of the new one, and of its cause."""
        timer = make(max_retries=0)
        dead, errors = Catch(timer, "dead"), Catch(timer, "error")

        @timer.middleware
        @contextlib.contextmanager
        def replace(emission):
            try:
                yield
            except Boom as e:
                raise CannotCommit("instead") from e

        timer.on("event", boom)
        with timer:
            timer.post({})
            letter = dead.next()
            assert isinstance(errors.next().__cause__, CannotCommit)
        assert "Boom: no" in letter.error
        assert letter.error.endswith("CannotCommit: instead\n")

    def test_receives_a_group_if_several_listeners_raised(self, make):
        """'error' is emitted for each of them, as without middleware."""
        timer = make(backoff=LATER)
        errors, steps = Catch(timer, "error"), []
        middleware(timer, steps)
        timer.on("event", boom)
        timer.on("event", lambda events: 1 / 0)
        with timer:
            timer.post({})
            raised = {type(errors.next().__cause__) for _ in range(2)}
        assert {Boom, ZeroDivisionError} == raised
        assert ("exit", ExceptionGroup) in steps

    def test_the_first_middleware_is_the_outermost(self, make):
        """So a transaction can be inside the span that measures it."""
        timer, steps = make(), []
        for name in ("outer", "inner"):

            @timer.middleware
            @contextlib.contextmanager
            def note(emission, name=name):
                steps.append(f"enter {name}")
                yield
                steps.append(f"exit {name}")

        timer.on("event", lambda events: steps.append("handler"))
        with timer:
            id = timer.post({})
            eventually(lambda: timer.peek(id) is None)
        inside = ["enter inner", "handler", "exit inner"]
        assert ["enter outer", *inside, "exit outer"] == steps

    def test_a_result_that_is_not_a_context_manager_fails_the_event(self, make):
        """The mistake shows at the first event, and not as an event that was never handled."""
        timer = make(backoff=LATER)
        errors = Catch(timer, "error")
        nothing = {"event": None}
        timer.middleware(lambda emission: nothing.get(emission.name, contextlib.nullcontext()))
        timer.on("event", lambda events: None)
        with timer:
            timer.post({})
            assert "returned no context manager: None" in str(errors.next())


class TestOtherEmissions:
    """Each listener of another emission has a context manager of its own."""

    def test_surrounds_each_listener_of_another_emission(self, make):
        """A listener of 'error' may write to the same database."""
        timer = make(backoff=LATER)
        steps, done = [], threading.Event()
        middleware(timer, steps)
        timer.on("event", boom)
        timer.on("error", lambda error: None)
        timer.on("error", lambda error: done.set())
        with timer:
            id = timer.post({})
            assert done.wait(PATIENCE)
        assert 2 == steps.count(("enter", "error", [id]))

    def test_its_exceptions_around_another_emission_are_logged(self, make, caplog):
        """They fail no event, and the other listeners are called."""
        timer = make()
        ready = Catch(timer, "ready")

        @timer.middleware
        @contextlib.contextmanager
        def fail(emission):
            yield
            raise CannotCommit

        with timer:
            ready.next()
        (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert "a listener of 'ready' raised" == record.message
        assert CannotCommit is record.exc_info[0]

    def test_surrounds_only_the_keys_of_a_stream(self, server, namespace, clean):
        """Its 'error' and 'end' come from the library itself, without a key."""
        steps, keys = [], queue.SimpleQueue()
        stream = RunAt(f"{namespace}", redis=server.url)
        middleware(stream, steps)
        stream.on("data", keys.put)
        stream.on("end", lambda: None)
        stream.write("tea")
        assert "tea" == keys.get(timeout=PATIENCE)
        stream.stop()
        assert [("enter", "data", ["tea"]), ("exit", None)] == steps


class TestContextOfErrors:
    """A listener of 'error' runs in the context of the handler that failed."""

    def test_error_listeners_see_the_context_variables_of_the_failed_handler(self, make):
        """An error report then names the request or the span of its handler."""
        timer = make(backoff=LATER)
        seen = queue.SimpleQueue()

        @timer.middleware
        @contextlib.contextmanager
        def set_request(emission):
            if emission.name != "event":
                yield
                return
            token = REQUEST.set(emission.events[0]["request"])
            try:
                yield
            finally:
                REQUEST.reset(token)

        timer.on("event", boom)
        timer.on("error", lambda error: seen.put((error.event["request"], REQUEST.get())))
        with timer:
            for n in range(2):
                timer.post({"request": f"r-{n}"})
            pairs = [seen.get(timeout=PATIENCE) for _ in range(2)]
        assert [("r-0", "r-0"), ("r-1", "r-1")] == sorted(pairs)

    def test_other_errors_run_outside_of_it(self, make):
        """The context of one failure must not leak into the next emission."""
        timer = make(backoff=LATER)
        seen = queue.SimpleQueue()

        def fail(events):
            REQUEST.set("r")
            raise Boom

        timer.on("event", fail)
        timer.on("error", lambda error: seen.put((type(error), REQUEST.get())))
        with timer:
            timer.post({})
            assert (HandlerError, "r") == seen.get(timeout=PATIENCE)
            timer._node._callbacks.announce("error", Boom())
            assert (Boom, "none") == seen.get(timeout=PATIENCE)


async def coroutine(emission):
    """Return nothing, later."""


def generator(emission):
    """Yield once, without `contextlib.contextmanager`."""
    yield


@pytest.mark.parametrize("function", [3, coroutine, generator, lambda: None])
def test_refuses_what_cannot_be_a_middleware(make, function):
    """The mistake shows where it is made, not at the first event."""
    with pytest.raises(OptionError, match="middleware"):
        make().middleware(function)


def test_the_repr_of_an_emission_has_no_payload(make):
    """Payloads may be confidential, and reprs are logged."""
    timer, reprs = make(), queue.SimpleQueue()

    @timer.middleware
    @contextlib.contextmanager
    def note(emission):
        reprs.put(repr(emission))
        yield

    timer.on("event", lambda events: None)
    with timer:
        timer.post({"secret": 1})
        assert "<Emission event events=1>" == reprs.get(timeout=PATIENCE)
