"""Let a joined node call its timer without keeping the timer alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from dtimer.engine.ports import EventResults
from dtimer.model.event import Event

P = ParamSpec("P")
T = TypeVar("T")


def weakly(method: Callable[P, T], otherwise: Callable[[], T]) -> Callable[P, T]:
    """
    Return a function that calls *method*, or *otherwise* once the object of *method* is gone.

    Args:
        method: A bound method. Only a weak reference to its object is kept.
        otherwise: Returns the result in that case. It must not refer to the object.
    """
    reference = weakref.WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        found = reference()
        return otherwise() if found is None else found(*args, **kwargs)

    return call


@dataclass(frozen=True, slots=True)
class TimerCalls:
    """
    The methods of a timer that its joined node calls, each through a weak reference.

    Attributes:
        emit: Emits something other than events; logs the exceptions of listeners.
        deliver: Calls the listeners of events; returns their exceptions, or None if there is none.
        demand: Returns how many events the listeners can take.
        listens: Returns whether there is a listener that takes events.
        close_unless_joined: Closes the connections of a timer that has not joined.
    """

    emit: Callable[..., None]
    deliver: Callable[[list[Event], EventResults], list[BaseException] | None]
    demand: Callable[[], int]
    listens: Callable[[], bool]
    close_unless_joined: Callable[[], None]
