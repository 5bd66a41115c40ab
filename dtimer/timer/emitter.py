"""
The emitter: pyee's, with every emission of ours in one guarded place.

pyee stops at the first listener that raises, throws into the emitter, and raises an
``'error'`` that nobody listens to. Here each listener is called, none throws into a
thread of ours, and an error without a listener is logged.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar, overload

from pyee.base import EventEmitter

from dtimer.timer import listeners

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


class _Guard(threading.local):
    """What the guarded emission of this thread has come to; None outside of one."""

    raised: list[BaseException] | None = None
    called = False


class Emitter(EventEmitter):
    """pyee's emitter, with guarded emissions. See the module."""

    #: What is emitted, and with which arguments; None: whatever a user likes.
    emits: ClassVar[Mapping[str, tuple[str, ...]] | None] = None

    def __init__(self) -> None:
        super().__init__()
        self._guard = _Guard()

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
        try:
            super().remove_listener(event, f)
        except KeyError:
            # pyee up to 13 raises, from 14 on it does not.
            return
        self._listening(event, more=False)

    def _listening(self, event: str, *, more: bool) -> None:
        """Called when *event* has one *more* listener, or one less."""

    def _emit_run(
        self, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        raised = self._guard.raised
        if raised is None:
            # An emission of the user's own: as pyee does it.
            super()._emit_run(f, args, kwargs)
            return
        listener = f.take() if isinstance(f, _Once) else f
        if listener is None:
            return
        self._guard.raised = None
        try:
            if inspect.isawaitable(result := listener(*args, **kwargs)):
                raised.append(_unawaited(listener, result))
        except BaseException as e:
            # Also SystemExit: it must not end a thread of ours unseen. Its traceback begins with
            # the listener: this frame would only hide the user's own.
            raised.append(e.with_traceback(e.__traceback__ and e.__traceback__.tb_next))
        finally:
            self._guard.raised = raised
            self._guard.called = True

    def emit_guarded(self, event: str, *args: Any) -> list[BaseException] | None:
        """Call each listener of *event*; return what they raised, None if none was called."""
        raised: list[BaseException] = []
        self._guard.raised, self._guard.called = raised, False
        try:
            self._call_handlers(event, args, {})
        finally:
            self._guard.raised = None
        return raised if self._guard.called else None

    def announce(self, event: str, *args: Any) -> None:
        """Emit something of ours; what a listener of it raises is logged."""
        raised = self.emit_guarded(event, *args)
        if raised is None and event == "error":
            log.error("%s", args[0], exc_info=args[0])
        for error in raised or ():
            log.error("a listener of %r raised", event, exc_info=error)

    def _fresh_lock(self) -> None:
        """Replace, in a forked child, the lock that a thread of the parent may hold."""
        self._lock = threading.Lock()
        self._guard = _Guard()
