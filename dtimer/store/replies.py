"""A reply that no script of ours gives: an error of our tree, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dtimer.errors import DTimerError, OutcomeUnknown, StoreError
from dtimer.store.line import READS

T = TypeVar("T")

#: The exceptions that reading a reply of another type or form raises.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

_FLAGS = {b"0": False, b"1": True}


def understood(verb: str, read: Callable[[Any], T], reply: Any) -> T:
    """
    Read the *reply* to a *verb*.

    Raises:
        OutcomeUnknown: no script of ours gives such a reply, and the verb changes things.
        StoreError: the same of a verb that only looks.
    """
    try:
        return read(reply)
    except DTimerError:
        raise
    except MALFORMED as e:
        raise not_understood(verb, e) from e


def not_understood(verb: str, error: Exception) -> StoreError:
    """Return the error for a reply to a *verb* whose reading raised *error*, one of `MALFORMED`."""
    # The text does not quote the reply, which may contain payloads.
    words = f"Redis answered {verb} with something that no script of dtimer returns"
    if verb in READS:
        return StoreError(f"{words} ({type(error).__name__})")
    return OutcomeUnknown(f"{words} ({type(error).__name__}): it may or may not have been done")


def flag(reply: Any) -> bool:
    """Read a 0 or a 1."""
    return _FLAGS[b"%d" % reply if isinstance(reply, int) else reply]


def letters(reply: Any, count: int) -> list[bool]:
    """Read so many zeros and ones, written together."""
    if not isinstance(reply, bytes) or len(reply) != count:
        raise ValueError("as many letters as events are expected")
    return [letter == ord("1") for letter in reply]


def pairs(flat: Any) -> list[tuple[bytes, bytes]]:
    """Read pairs that stand in turn."""
    if not isinstance(flat, list):
        raise TypeError("a list is expected")
    return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
