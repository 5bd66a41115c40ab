"""Let a joined node call its timer without keeping the timer alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import ParamSpec, TypeVar

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
