"""
The middleware of an emitter: context managers around each call of user code.

A context manager is left before the events of its call are settled. So what it raises on its exit,
such as the error of a commit, fails these events, as an exception of the handler does.
"""

from __future__ import annotations

import contextvars
import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from dtimer.errors import OptionError
from dtimer.model.emission import Emission, Middleware, Raised
from dtimer.timer import fork, listeners

M = TypeVar("M", bound=Middleware)


def _check(function: Any) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise OptionError(
            f"a middleware must return a context manager: decorate {function!r:.80} with"
            " contextlib.contextmanager"
        )
    listeners.check_function("a middleware", function, ("an emission",))


def _entered(function: Middleware, emission: Emission) -> AbstractContextManager[Any]:
    manager = function(emission)
    kind = type(manager)
    if not (hasattr(kind, "__enter__") and hasattr(kind, "__exit__")):
        raise TypeError(f"the middleware {function!r} returned no context manager: {manager!r:.80}")
    manager.__enter__()
    return manager


def _cut(error: BaseException, frames: int) -> BaseException:
    """Remove the first frames of a traceback, which are those of this module."""
    trace = error.__traceback__
    for _ in range(frames):
        trace = trace and trace.tb_next
    return error.with_traceback(trace)


def _as_one(raised: Raised) -> BaseException | None:
    """Return the exception that a context manager is given: a group if there are several."""
    if len(raised) > 1:
        return BaseExceptionGroup("several listeners raised", list(raised))
    return raised[0] if raised else None


class MiddlewareChain:
    """The middleware of one emitter. The first that was added is the outermost."""

    def __init__(self) -> None:
        self._functions: list[Middleware] = []

    def __bool__(self) -> bool:
        return bool(self._functions)

    def add(self, function: M) -> M:
        """
        Add and return a middleware.

        Raises:
            OptionError: *function* cannot be one.
        """
        _check(function)
        self._functions.append(function)
        return function

    def around(self, emission: Emission, call: Callable[[Raised], bool]) -> Raised | None:
        """
        Make a call inside the context managers of an emission.

        Args:
            emission: Describes the call.
            call: Adds the exceptions of the call to its argument, and raises none. Returns False
                if it has called no user code.

        Returns:
            The exceptions of the call, as the middleware has left them. None if nothing was called.
        """
        pid = os.getpid()
        managers: list[AbstractContextManager[Any]] = []
        raised, called = Raised(), True
        for function in list(self._functions):
            try:
                managers.append(_entered(function, emission))
                fork.end_child_of_listener(pid, None)
            except BaseException as e:
                fork.end_child_of_listener(pid, e)
                raised.catch(_cut(e, 2))
                break
        else:
            called = call(raised)
        while managers:
            raised = _left(managers.pop(), raised, pid)
        return raised if called or raised else None


def _left(manager: AbstractContextManager[Any], raised: Raised, pid: int) -> Raised:
    """Leave a context manager; return the exceptions after it, which it may have replaced."""
    error = _as_one(raised)
    try:
        # The result is ignored: an exception is never suppressed.
        trace = None if error is None else error.__traceback__
        manager.__exit__(None if error is None else type(error), error, trace)
        fork.end_child_of_listener(pid, error)
    except BaseException as e:
        fork.end_child_of_listener(pid, e)
        if e is error:
            return raised
        replaced = Raised()
        contexts = raised.with_contexts()
        context: contextvars.Context | None = contexts[0][1] if contexts else None
        if e.__context__ is None:
            e.__context__ = error
        replaced.catch(_cut(e, 1), context)
        return replaced
    return raised
