"""
pyee's emitter, changed so that exceptions of listeners cannot harm a node.

pyee stops at the first listener that raises, lets the exception escape to the emitting code, and
raises an ``'error'`` that has no listener. Here every listener is called, no exception reaches a
thread of the node, and an error without a listener is logged.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, TypeVar, cast

from pyee.base import EventEmitter

from dtimer import log
from dtimer.errors import HandlerError, LeaseLost
from dtimer.model.emission import Emission, Raised
from dtimer.model.event import Event
from dtimer.model.records import DeadLetter
from dtimer.timer import fork, listeners
from dtimer.timer.delivery import check_router
from dtimer.timer.middleware import M, MiddlewareChain

F = TypeVar("F", bound=Callable[..., Any])


def typed_like(_: F) -> Callable[[Callable[..., Any]], F]:
    """Return a decorator that gives a method the types of another one, with its overloads."""
    return lambda method: cast("F", method)


def _unawaited(f: Callable[..., Any], result: object) -> TypeError:
    if inspect.iscoroutine(result):
        result.close()
    return TypeError(f"the listener {f!r} returned an awaitable, but listeners are not awaited")


def _events_of(emitted: Iterable[object]) -> list[Event]:
    """Return the events that an emission with these arguments is about."""
    found: list[Event] = []
    for about in emitted:
        if isinstance(about, HandlerError):
            found += about.events
        elif isinstance(about, Event):
            found.append(about)
    return found


def _ids(*emitted: object) -> list[str]:
    """Return the ids of the events that an emission with these arguments is about."""
    others = [about.id for about in emitted if isinstance(about, LeaseLost | DeadLetter)]
    return [event.id for event in _events_of(emitted)] + others


class _Once:
    """A listener that is called once, by the first of several emitting threads."""

    def __init__(self, f: Callable[..., Any], remove: Callable[[], None]) -> None:
        self._left = [f]
        self._remove = remove

    def unwrap(self) -> Callable[..., Any] | None:
        """Return the listener to the first caller, and None to all others."""
        try:
            f = self._left.pop()
        except IndexError:
            return None
        self._remove()
        return f

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if f := self.unwrap():
            f(*args, **kwargs)


class Emitter(EventEmitter):
    """
    Registers and calls listeners, like pyee's emitter, with guarded emissions.

    pyee's lock is not used, because it could deadlock. A signal handler can interrupt a method of
    this class, and then add a listener, or leave, which waits for threads that emit. Instead, every
    change is one step of the interpreter. For this reason a name stays in the table when its last
    listener is removed: pyee removes it in a second step.
    """

    _events: dict[str, dict[Callable[..., Any], Callable[..., Any]]]  # type: ignore[assignment]

    #: The names that are emitted, and the arguments of their listeners; None allows any name.
    _emits: ClassVar[Mapping[str, tuple[str, ...]] | None] = None

    #: The names whose listeners the middleware surrounds; None means all.
    _surrounded: ClassVar[frozenset[str] | None] = None

    def __init__(self) -> None:
        super().__init__()
        self._middleware = MiddlewareChain()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied, with a clearer message than that of an inner lock."""
        name = type(self).__name__
        raise TypeError(
            f"a {name} cannot be pickled or copied: it has connections, locks and threads of its"
            f" own. Make a {name} in each process, or have the process inherit it by a fork"
        )

    def on(self, event: str, f: Any = None) -> Any:
        """
        Register the listener *f*; without *f*, return a decorator that does.

        Raises:
            OptionError: nothing is emitted by that name, or *f* is not callable, is a coroutine
                function, or does not accept the arguments of its calls.
        """
        return self._register(event, f, once=False)

    def listens_to(self, event: str, f: Any = None) -> Any:
        """See `on`."""
        return self.on(event, f)

    def add_listener(self, event: str, f: Any = None) -> Any:
        """See `on`."""
        return self.on(event, f)

    def once(self, event: str, f: Any = None) -> Any:
        """Register a listener that is called once and then removed. See `on`."""
        return self._register(event, f, once=True)

    def middleware(self, function: M) -> M:
        """
        Surround the calls of user code with a context manager. Also a decorator.

        *function* is called with an `Emission` on the thread of the call, and returns a context
        manager. A batch of events has one for all its listeners, a route of a `Router` one for each
        call, and any other emission one for each listener. The context manager is left before any
        of the events is confirmed. An exception that it raises counts as one of the handler, so an
        event whose transaction cannot be committed is retried. Its ``__exit__`` receives the
        exception of the handler, or an ``ExceptionGroup`` if several listeners raised. It may raise
        another one instead, but cannot suppress it. Around other emissions, exceptions are logged.
        The first middleware is the outermost.

        Raises:
            OptionError: *function* is not callable, is a coroutine function or a bare generator
                function, or does not accept one argument.
        """
        return self._middleware.add(function)

    def _register(self, event: str, f: Any, *, once: bool) -> Any:
        listeners.check_name(event, self._emits)

        def register(f: F) -> F:
            listeners.check(event, f, self._emits)
            check_router(event, f, once=once)
            self.emit("new_listener", event, f)
            # pyee's wrapper does not tell whether this thread or another one has called the
            # listener. If another thread has, this thread's events have no listener, and must not
            # count as handled.
            called = _Once(f, lambda: self.remove_listener(event, f)) if once else f
            self._events.setdefault(event, {})[f] = called
            self._listener_changed(event, added=True)
            return f

        return register if f is None else register(f)

    def remove_listener(self, event: str, f: Callable[..., Any]) -> None:
        """Remove a listener. Does nothing if it is not registered."""
        self._listeners_of(event).pop(f, None)
        self._listener_changed(event, added=False)

    def remove_all_listeners(self, event: str | None = None) -> None:
        """Remove all listeners of *event*, or of every event."""
        for name in list(self._events) if event is None else [event]:
            self._listeners_of(name).clear()
            self._listener_changed(name, added=False)

    def listeners(self, event: str) -> list[Callable[..., Any]]:
        """Return the listeners of *event* in the order of their calls."""
        return list(self._listeners_of(event))

    def event_names(self) -> set[str]:
        """Return the names that have at least one listener."""
        return {name for name, found in list(self._events.items()) if found}

    def _listeners_of(self, event: str) -> dict[Callable[..., Any], Callable[..., Any]]:
        return self._events.get(event) or {}

    def _listener_changed(self, event: str, *, added: bool) -> None:
        """Do nothing. Subclasses override this to learn of an added or a removed listener."""

    def _call_handlers(self, event: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        # An emission by the user behaves as in pyee.
        called = False
        for f in list(self._listeners_of(event).values()):
            self._emit_run(f, args, kwargs)
            called = True
        return called

    def _emit_guarded(self, event: str, *args: Any) -> Raised | None:
        """Call each listener of *event*; return their exceptions, or None if none was called."""
        found = self._called_listeners(event)
        if not self._middleware:
            return self._call_all(found, args)
        raised: Raised | None = None
        for f in found:
            of_one = self._call_within([f], event, args, _events_of(args))
            if raised is None:
                raised = of_one
            elif of_one:
                raised.take(of_one)
        return raised

    def _called_listeners(self, event: str) -> list[Callable[..., Any]]:
        """Return the listeners of *event* in the form in which `_call_all` takes them."""
        return list(self._listeners_of(event).values())

    def _call_within(
        self,
        found: Sequence[Callable[..., Any]],
        event: str,
        args: tuple[Any, ...],
        events: list[Event],
        kind: str | None = None,
    ) -> Raised | None:
        """Call listeners, all of them within the middleware; see `_emit_guarded` for the result."""
        names = self._surrounded
        if not (found and self._middleware) or not (names is None or event in names):
            return self._call_all(found, args)

        def call(raised: Raised) -> bool:
            of_call = self._call_all(found, args)
            raised.take(of_call or Raised())
            return of_call is not None

        return self._middleware.around(Emission(event, events, args, kind), call)

    def _call_all(
        self, found: Sequence[Callable[..., Any]], args: tuple[Any, ...]
    ) -> Raised | None:
        """Call listeners; see `_emit_guarded` for the result."""
        raised = Raised()
        called = False
        for f in found:
            called = self._call_guarded(f, args, raised) or called
        return raised if called else None

    def _call_guarded(self, f: Callable[..., Any], args: tuple[Any, ...], raised: Raised) -> bool:
        """Call a listener and add its exception; return False if it was used up elsewhere."""
        listener = f.unwrap() if isinstance(f, _Once) else f
        if listener is None:
            return False
        pid = os.getpid()
        try:
            result = listener(*args)
            fork.end_child_of_listener(pid, None)
            if result is not None and inspect.isawaitable(result):
                raised.catch(_unawaited(listener, result))
        except BaseException as e:
            fork.end_child_of_listener(pid, e)
            # Also SystemExit, which must not silently end a thread of the node. The traceback is
            # cut to begin with the listener, because this frame would only hide the user's own.
            raised.catch(e.with_traceback(e.__traceback__ and e.__traceback__.tb_next))
        return True

    def _announce(self, event: str, *args: Any) -> None:
        """Emit something from within dtimer; log the exceptions of its listeners."""
        raised = self._emit_guarded(event, *args)
        unheard = raised is None and event == "error"
        if not (raised or unheard):
            return
        source, ids = self._log_source(), _ids(*args)
        if unheard:
            log.write(log.UNHEARD, args[0], source=source, ids=ids, error=args[0])
        for error in raised or ():
            log.write(log.LISTENER_RAISED, event, source=source, ids=ids, error=error)

    def _log_source(self) -> log.Source:
        """Return the node that records of the log name; overridden by subclasses."""
        return log.Source()
