"""The error texts of dead letters: bounded, and in a form that can be stored."""

from __future__ import annotations

import traceback

# A dead letter keeps at most this many characters.
_MOST = 2_000


def describe(error: BaseException) -> str:
    """Return the end of the traceback of *error*, which names the cause."""
    return _storable("".join(traceback.format_exception(error))[-_MOST:])


def bounded(text: str) -> str:
    """Return the beginning of a *text* of the user."""
    return _storable(text[:_MOST])


def _storable(text: str) -> str:
    # A payload may contain lone surrogates, and so may an error text that quotes it.
    return text.encode(errors="backslashreplace").decode()
