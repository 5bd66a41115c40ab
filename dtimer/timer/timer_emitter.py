"""
The emitter of a timer: type checkers know its events, and the arguments of their listeners.

The overloads accept only names that are emitted. pyee's methods accept any, so type checkers
report an override, which is ignored here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar, overload

from dtimer.model.event import Event
from dtimer.model.records import DeadLetter
from dtimer.timer import listeners
from dtimer.timer.emitter import Emitter, typed_like

# The result of a listener is ignored, so it may have any type. A lambda is understood only if its
# parameter is written as a Callable, not as one of the variables below, which decorators need.
T = TypeVar("T")
OnEvents = TypeVar("OnEvents", bound=Callable[[list[Event]], object])
OnError = TypeVar("OnError", bound=Callable[[Exception], object])
OnEvent = TypeVar("OnEvent", bound=Callable[[Event], object])
OnDeadLetter = TypeVar("OnDeadLetter", bound=Callable[[DeadLetter], object])
OnChange = TypeVar("OnChange", bound=Callable[[], object])

# The names that are emitted, in groups with the same arguments (`listeners.TIMER`).
BatchName: TypeAlias = Literal["event"]
FailureName: TypeAlias = Literal["error", "disconnected"]
IncidentName: TypeAlias = Literal["retry", "lease_lost"]
DeathName: TypeAlias = Literal["dead", "expired"]
ChangeName: TypeAlias = Literal["ready", "connected"]


class TimerEmitter(Emitter):
    """Emits the events of a `DTimer`."""

    _emits = listeners.TIMER

    @overload  # type: ignore[override]
    def on(self, event: BatchName, f: None = None) -> Callable[[OnEvents], OnEvents]: ...
    @overload
    def on(self, event: BatchName, f: Callable[[list[Event]], T]) -> Callable[[list[Event]], T]: ...
    @overload
    def on(self, event: FailureName, f: None = None) -> Callable[[OnError], OnError]: ...
    @overload
    def on(self, event: FailureName, f: Callable[[Exception], T]) -> Callable[[Exception], T]: ...
    @overload
    def on(self, event: IncidentName, f: None = None) -> Callable[[OnEvent], OnEvent]: ...
    @overload
    def on(self, event: IncidentName, f: Callable[[Event], T]) -> Callable[[Event], T]: ...
    @overload
    def on(self, event: DeathName, f: None = None) -> Callable[[OnDeadLetter], OnDeadLetter]: ...
    @overload
    def on(self, event: DeathName, f: Callable[[DeadLetter], T]) -> Callable[[DeadLetter], T]: ...
    @overload
    def on(self, event: ChangeName, f: None = None) -> Callable[[OnChange], OnChange]: ...
    @overload
    def on(self, event: ChangeName, f: Callable[[], T]) -> Callable[[], T]: ...
    def on(self, event: str, f: Any = None) -> Any:
        """
        Register the listener *f*; without *f*, return a decorator that does.

        Raises:
            OptionError: nothing is emitted by that name, or *f* is not callable, is a coroutine
                function, or does not accept the arguments of its calls.
        """
        return super().on(event, f)

    @typed_like(on)
    def once(self, event: str, f: Any = None) -> Any:  # type: ignore[override]
        """Register a listener that is called once and then removed. See `on`."""
        return super().once(event, f)

    @typed_like(on)
    def listens_to(self, event: str, f: Any = None) -> Any:  # type: ignore[override]
        """See `on`."""
        return super().on(event, f)

    @typed_like(on)
    def add_listener(self, event: str, f: Any = None) -> Any:  # type: ignore[override]
        """See `on`."""
        return super().on(event, f)
