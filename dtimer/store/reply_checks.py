"""Read replies, and raise a `StoreError` for a reply that no script of dtimer returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dtimer.errors import DTimerError, OutcomeUnknown, StoreError
from dtimer.store.scripts import header

T = TypeVar("T")

# The exceptions that reading a reply of an unexpected type or form can raise.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

_FLAGS = {b"0": False, b"1": True}


def understood(verb: str, read: Callable[[Any], T], reply: Any) -> T:
    """
    Read the *reply* to a *verb*.

    Raises:
        OutcomeUnknown: No script of dtimer returns such a reply, and the verb changes data.
        StoreError: The same, for a verb that only reads.
    """
    try:
        return read(reply)
    except DTimerError:
        raise
    except _MALFORMED as e:
        # Do not quote the reply, which may contain payloads.
        name = type(e).__name__
        problem = f"Redis answered {verb} with a reply that no script of dtimer returns ({name})"
        if header(verb).kind == "reads":
            raise StoreError(problem) from e
        raise OutcomeUnknown(f"{problem}: it may or may not have been done") from e


def flag(reply: Any) -> bool:
    """Read a 0 or 1 as a bool."""
    return _FLAGS[b"%d" % reply if isinstance(reply, int) else reply]


def letters(reply: Any, count: int) -> list[bool]:
    """Read a string of *count* zeros and ones."""
    if not isinstance(reply, bytes) or len(reply) != count:
        raise ValueError(f"expected {count} letters, one for each event")
    return [letter == ord("1") for letter in reply]


def pairs(flat: Any) -> list[tuple[bytes, bytes]]:
    """Read a flat list, in which firsts and seconds alternate, as pairs."""
    if not isinstance(flat, list):
        raise TypeError("expected a list")
    return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
