"""
The emitter of a stream: type checkers know its events, and the arguments of their listeners.

The overloads accept only names that are emitted. pyee's methods accept any, so type checkers
report an override, which is ignored here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

from dtimer.timer import listeners
from dtimer.timer.emitter import Emitter, typed_like

# The result of a listener is ignored, so it may have any type. A lambda is understood only if its
# parameter is written as a Callable, not as one of the variables below, which decorators need.
T = TypeVar("T")
OnKey = TypeVar("OnKey", bound=Callable[[str], object])
OnError = TypeVar("OnError", bound=Callable[[Exception], object])
OnEnd = TypeVar("OnEnd", bound=Callable[[], object])


class StreamEmitter(Emitter):
    """Emits the events of a `RunAt`."""

    _emits = listeners.STREAM
    _surrounded = frozenset({"data"})

    @overload  # type: ignore[override]
    def on(self, event: Literal["data"], f: None = None) -> Callable[[OnKey], OnKey]: ...
    @overload
    def on(self, event: Literal["data"], f: Callable[[str], T]) -> Callable[[str], T]: ...
    @overload
    def on(self, event: Literal["error"], f: None = None) -> Callable[[OnError], OnError]: ...
    @overload
    def on(
        self, event: Literal["error"], f: Callable[[Exception], T]
    ) -> Callable[[Exception], T]: ...
    @overload
    def on(self, event: Literal["end"], f: None = None) -> Callable[[OnEnd], OnEnd]: ...
    @overload
    def on(self, event: Literal["end"], f: Callable[[], T]) -> Callable[[], T]: ...
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
