"""
Errors for values that JSON cannot represent, with the path of the value in the payload.

A path reads like ``payload['order']['at']``. The payload is searched for the value only after the
encoding has failed.
Error texts contain the path and the type, and never the value, which may be confidential.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dtimer.errors import PayloadError
from dtimer.model import summary

# The most steps of a path in an error text.
_STEPS = 8

# By class name, because importing all these modules for an error text would be wasteful.
_ADVICE = {
    "Decimal": "write str(value)",
    "Enum": "write value.value",
    "UUID": "write str(value)",
    "bytearray": "write value.decode(), or base64",
    "bytes": "write value.decode(), or base64",
    "date": "write value.isoformat()",
    "datetime": "write value.isoformat(), or milliseconds since the epoch",
    "frozenset": "write sorted(value)",
    "memoryview": "write base64",
    "set": "write sorted(value)",
    "time": "write value.isoformat()",
    "timedelta": "write value.total_seconds()",
}

# A step is a key or an index.
_Step = Any


class _Found(NamedTuple):
    """
    A container, with a link to the container that it was found in.

    Copying the whole path into each would take quadratic memory in a deeply nested payload.
    """

    container: Any
    step: _Step = None
    above: _Found | None = None

    def chain(self) -> list[_Found]:
        """Return all containers from the payload to this one."""
        found = [self]
        while (above := found[-1].above) is not None:
            found.append(above)
        return found[::-1]

    def path(self) -> list[_Step]:
        """Return the steps from the payload to this container."""
        return [found.step for found in self.chain()[1:]]

    def inner(self) -> Iterator[_Found]:
        """Yield the containers in this one."""
        for step, value in _members(self.container):
            if isinstance(value, dict | list | tuple):
                yield _Found(value, step, self)


def _spell(steps: Sequence[_Step]) -> str:
    shown = "".join(f"[{summary.key(step)}]" for step in steps[:_STEPS])
    return f"payload{shown}{'…' if len(steps) > _STEPS else ''}"


def _members(container: Any) -> Iterator[tuple[_Step, Any]]:
    return iter(container.items() if isinstance(container, dict) else enumerate(container))


def _walk(payload: Any) -> Iterator[_Found]:
    """Yield every container once, because a shared container may occur very often."""
    met = {id(payload)}
    stack = [_Found(payload)]
    while stack:
        found = stack.pop()
        yield found
        deeper = {id(inner.container): inner for inner in found.inner()}
        stack += [deeper[n] for n in reversed(deeper) if n not in met]
        met.update(deeper)


def bad_key(payload: Any) -> PayloadError:
    """Return the error for the first key that is not a string."""
    for found in _walk(payload):
        for key in found.container if isinstance(found.container, dict) else ():
            if not isinstance(key, str):
                return PayloadError(
                    f"payload keys must be strings, not {type(key).__name__}, in"
                    f" {_spell(found.path())}; write str(key)"
                )
    return PayloadError("payload keys must be strings")


def bad_value(payload: Any, error: BaseException) -> PayloadError:
    """
    Return the error for the first value that JSON cannot represent.

    Args:
        payload: The payload whose encoding failed.
        error: The exception of the json module, which the text quotes if the search finds nothing.
    """
    for found in _walk(payload):
        for step, value in _members(found.container):
            if (wrong := _wrong(value)) is not None:
                return PayloadError(f"{_spell([*found.path(), step])} is {wrong}")
    return PayloadError(f"the payload cannot be written as JSON: {error}")


def _wrong(value: Any) -> str | None:
    if value is None or isinstance(value, str | int | dict | list | tuple):
        return None
    if isinstance(value, float):
        if math.isfinite(value):
            return None
        return "NaN or infinite, which JSON cannot represent; write None"
    advice = next((_ADVICE[c.__name__] for c in type(value).__mro__ if c.__name__ in _ADVICE), None)
    hint = f"; {advice}" if advice else ""
    return f"of type {type(value).__name__}, which JSON cannot represent{hint}"


def too_deep(payload: Any, deepest: int) -> PayloadError:
    """Return the error for a payload that is nested deeper than *deepest* levels."""
    # As the check does, level by level, with each container once a level.
    level = {id(payload): _Found(payload)}
    for _ in range(deepest):
        level = {id(inner.container): inner for found in level.values() for inner in found.inner()}
    deep = next(iter(level.values()))
    passed: dict[int, _Found] = {}
    for found in deep.chain():
        first = passed.setdefault(id(found.container), found)
        if first is not found:
            where = _spell(first.path()) if first.above else "the payload"
            return PayloadError(f"{where} contains itself")
    where = _spell(deep.path())
    return PayloadError(f"the payload is nested deeper than {deepest} levels, at {where}")
