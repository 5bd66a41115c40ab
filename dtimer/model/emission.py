"""The emission: a call of listeners, as a middleware sees it, and the exceptions that it raises."""

# Without `from __future__ import annotations`, for the same reason as in `records`.

import contextvars
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from dtimer.model import summary
from dtimer.model.event import Event
from dtimer.naming import public


@dataclass(frozen=True, slots=True)
class Emission:
    """
    A call of user code, as a middleware sees it.

    Attributes:
        name: The name that is emitted, such as ``event`` or ``error``.
        events: The events that the call is about. Empty if it is not about events.
        arguments: The arguments of the call.
        kind: The kind of the route that is called. None if a listener is called.
    """

    name: str
    events: list[Event]
    arguments: tuple[Any, ...]
    kind: str | None = None

    def __repr__(self) -> str:
        # Without the arguments: a payload may hold confidential values.
        words = [self.name] if self.kind is None else [self.name, f"{self.kind!r:.80}"]
        return summary.record("Emission", None, words, events=str(len(self.events)))


#: Returns a context manager that surrounds a call of user code.
Middleware = Callable[[Emission], AbstractContextManager[Any]]


class Raised(list[BaseException]):
    """The exceptions of one emission, each with the context (contextvars) of its listener."""

    def __init__(self) -> None:
        super().__init__()
        self._contexts: list[contextvars.Context] = []

    def catch(self, error: BaseException, context: contextvars.Context | None = None) -> None:
        """Add an exception, with the *context* that it comes from, by default the current one."""
        self.append(error)
        self._contexts.append(contextvars.copy_context() if context is None else context)

    def take(self, others: "Raised") -> None:
        """Add the exceptions of another emission."""
        for error, context in others.with_contexts():
            self.catch(error, context)

    def with_contexts(self) -> list[tuple[BaseException, contextvars.Context]]:
        """Return each exception with its context."""
        return list(zip(self, self._contexts, strict=True))


def with_contexts(
    raised: list[BaseException],
) -> list[tuple[BaseException, contextvars.Context | None]]:
    """Return each exception with its context; None if its context is not known."""
    if isinstance(raised, Raised):
        return [*raised.with_contexts()]
    return [(error, None) for error in raised]


public(Emission)
