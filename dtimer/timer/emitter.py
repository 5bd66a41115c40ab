"""
The emitter: pyee's, with every emission of ours in one guarded place.

pyee stops at the first listener that raises, throws into the emitter, and raises an
``'error'`` that nobody listens to. Here each listener is called, none throws into a
thread of ours, and an error without a listener is logged.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar, overload

from pyee.base import EventEmitter

from dtimer.timer import listeners, process

log = logging.getLogger("dtimer")

F = TypeVar("F", bound=Callable[..., Any])


def _unawaited(f: Callable[..., Any], result: object) -> TypeError:
    if inspect.iscoroutine(result):
        result.close()
    return TypeError(f"the listener {f!r} gave an awaitable, and nobody awaits it")


class _Once:
    """A listener to be called once, by whichever of many emitting threads comes first."""

    def __init__(self, f: Callable[..., Any], remove: Callable[[], None]) -> None:
        self._left = [f]
        self._remove = remove

    def take(self) -> Callable[..., Any] | None:
        """Return the listener to the first who asks, and None to everybody else."""
        try:
            f = self._left.pop()
        except IndexError:
            return None
        self._remove()
        return f

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        if f := self.take():
            f(*args, **kwargs)


class Emitter(EventEmitter):
    """
    pyee's emitter, with guarded emissions. See the module.

    pyee's lock is not used: a signal handler that interrupts a call of this one may add a listener,
    or leave, which waits for threads that emit. Each change is one step of the interpreter
    instead, and the listeners of an event name are never dropped together with the name.
    """

    _events: dict[str, dict[Callable[..., Any], Callable[..., Any]]]  # type: ignore[assignment]

    #: What is emitted, and with which arguments; None: whatever a user likes.
    emits: ClassVar[Mapping[str, tuple[str, ...]] | None] = None

    def __reduce__(self) -> NoReturn:
        """Say that it cannot be pickled or copied, before something within it says so."""
        name = type(self).__name__
        raise TypeError(
            f"a {name} cannot be pickled or copied: it has connections, locks and threads of its"
            f" own. Make a {name} in each process, or have the process inherit it by a fork"
        )

    @overload
    def on(self, event: str) -> Callable[[F], F]: ...
    @overload
    def on(self, event: str, f: F) -> F: ...
    def on(self, event: str, f: F | None = None) -> F | Callable[[F], F]:
        """
        Register a listener, as a decorator or with the function given.

        Raises:
            OptionError: nothing is emitted by that name, or *f* is not callable, is a coroutine
                function, or cannot take the arguments that it would be called with.
        """
        return self.listens_to(event) if f is None else self.add_listener(event, f)

    def listens_to(self, event: str) -> Callable[[F], F]:
        """Return a decorator that registers a listener of *event*. See `on`."""
        listeners.check_name(event, self.emits)

        def register(f: F) -> F:
            return self.add_listener(event, f)

        return register

    def add_listener(self, event: str, f: F) -> F:
        """Register *f* as a listener of *event*. See `on`."""
        listeners.check(event, f, self.emits)
        super().add_listener(event, f)
        self._listening(event, more=True)
        return f

    def once(self, event: str, f: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """Register a listener that is removed when it is called. See `on`."""
        listeners.check_name(event, self.emits)

        def register(f: F) -> F:
            listeners.check(event, f, self.emits)
            # Not pyee's: it does not tell whether it was called, so a batch of events would
            # pass for handled where another hand had taken the only listener.
            once = _Once(f, lambda: self.remove_listener(event, f))
            self._add_event_handler(event, f, once)
            self._listening(event, more=True)
            return f

        return register if f is None else register(f)

    def remove_listener(self, event: str, f: Callable[..., Any]) -> None:
        """Remove a listener; one that is not registered is no error."""
        self._of(event).pop(f, None)
        self._listening(event, more=False)

    def remove_all_listeners(self, event: str | None = None) -> None:
        """Remove all listeners of *event*, or of every event."""
        for name in list(self._events) if event is None else [event]:
            self._of(name).clear()
            self._listening(name, more=False)

    def listeners(self, event: str) -> list[Callable[..., Any]]:
        """Return the listeners of *event*, in the order in which they are called."""
        return list(self._of(event))

    def event_names(self) -> set[str]:
        """Return the names that have a listener."""
        return {name for name, found in list(self._events.items()) if found}

    def _of(self, event: str) -> dict[Callable[..., Any], Callable[..., Any]]:
        return self._events.get(event) or {}

    def _add_event_handler(self, event: str, k: Callable[..., Any], v: Callable[..., Any]) -> None:
        self.emit("new_listener", event, k)
        self._events.setdefault(event, {})[k] = v

    def _listening(self, event: str, *, more: bool) -> None:
        """Called when *event* has one *more* listener, or one less."""

    def _call_handlers(self, event: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        # An emission of the user's own: as pyee does it.
        called = False
        for f in list(self._of(event).values()):
            self._emit_run(f, args, kwargs)
            called = True
        return called

    def emit_guarded(self, event: str, *args: Any) -> list[BaseException] | None:
        """Call each listener of *event*; return what they raised, None if none was called."""
        raised: list[BaseException] = []
        called = False
        for f in list(self._of(event).values()):
            called = self._call_guarded(f, args, raised) or called
        return raised if called else None

    def _call_guarded(
        self, f: Callable[..., Any], args: tuple[Any, ...], raised: list[BaseException]
    ) -> bool:
        """Call a listener, note what it raises, and return False if another thread has taken it."""
        listener = f.take() if isinstance(f, _Once) else f
        if listener is None:
            return False
        pid = os.getpid()
        try:
            result = listener(*args)
            if os.getpid() != pid:
                process.end_child(None)
            if inspect.isawaitable(result):
                raised.append(_unawaited(listener, result))
        except BaseException as e:
            if os.getpid() != pid:
                process.end_child(e)
            # Also SystemExit: it must not end a thread of ours unseen. Its traceback begins with
            # the listener: this frame would only hide the user's own.
            raised.append(e.with_traceback(e.__traceback__ and e.__traceback__.tb_next))
        return True

    def announce(self, event: str, *args: Any) -> None:
        """Emit something of ours; what a listener of it raises is logged."""
        raised = self.emit_guarded(event, *args)
        if raised is None and event == "error":
            log.error("%s", args[0], exc_info=args[0])
        for error in raised or ():
            log.error("a listener of %r raised", event, exc_info=error)
