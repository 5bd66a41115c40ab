"""
Short texts about records and values, for people: a ``repr``, and a value in an error text.

A payload may be confidential. So a text names at most its keys, and never a value.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from datetime import date, timedelta, tzinfo
from typing import Any

from dtimer.epoch import to_datetime

# The most keys of a payload in one text, and the most characters of a key and of a value.
_KEYS, _KEY, _VALUE = 8, 40, 80

# An error may quote a value of these types. A value of another type may be or contain a payload.
_QUOTED = (str, bytes, int, float, complex, type(None), date, timedelta, tzinfo, enum.Enum, type)


def record(kind: str, id: str | None, words: Iterable[str], **fields: str | None) -> str:
    """
    Return the repr of a record.

    Args:
        kind: The name of its class.
        id: Its id, if it has one.
        words: States that need no name, such as ``scheduled``.
        fields: Texts by the names of the attributes. None omits a field.
    """
    parts = [kind, *([] if id is None else [repr(id)]), *words]
    parts += [f"{name}={text}" for name, text in fields.items() if text is not None]
    return f"<{' '.join(parts)}>"


def moment(ms: float | None) -> str:
    """Return a moment in ISO 8601, to the millisecond; ``None`` if there is none."""
    if ms is None:
        return "None"
    return to_datetime(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def number(ms: float) -> str:
    """Return a number of milliseconds to the microsecond, without trailing zeros."""
    return f"{round(ms, 3):.12g}"


def keys(payload: Mapping[Any, Any] | None) -> str:
    """Return the keys of a payload as a list of at most eight; ``None`` without a payload."""
    if payload is None:
        return "None"
    shown = [key(k) if isinstance(k, str) else type(k).__name__ for k in list(payload)[:_KEYS]]
    if len(payload) > len(shown):
        shown.append(f"… {len(payload) - len(shown)} more")
    return f"[{', '.join(shown)}]"


def key(step: object) -> str:
    """Return the repr of a key or an index of a payload. A long key loses its end."""
    text = repr(step)
    return text if len(text) <= _KEY else f"{text[: _KEY - 2]}…{text[-1]}"


def value(given: object) -> str:
    """Return the start of the repr of an argument; only its type if it may contain a payload."""
    return repr(given)[:_VALUE] if isinstance(given, _QUOTED) else f"a {type(given).__name__}"


def typed(given: object) -> str:
    """Return an argument as `value` does, followed by its type in parentheses."""
    name = type(given).__name__
    return f"{value(given)} ({name})" if isinstance(given, _QUOTED) else f"a {name}"
