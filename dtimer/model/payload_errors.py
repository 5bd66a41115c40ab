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
    depth: int = 0
    step: _Step = None
    above: _Found | None = None

    def path(self) -> list[_Step]:
        """Return the steps from the payload to this container."""
        steps = []
        found: _Found | None = self
        while found is not None and found.above is not None:
            steps.append(found.step)
            found = found.above
        return steps[::-1]


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
        deeper = []
        for step, value in _members(found.container):
            if isinstance(value, dict | list | tuple) and id(value) not in met:
                met.add(id(value))
                deeper.append(_Found(value, found.depth + 1, step, found))
        stack += reversed(deeper)


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
    if (steps := _circle(payload)) is not None:
        return PayloadError(f"{_spell(steps) if steps else 'the payload'} contains itself")
    found = next((found for found in _walk(payload) if found.depth >= deepest), _Found(payload))
    where = _spell(found.path())
    return PayloadError(f"the payload is nested deeper than {deepest} levels, at {where}")


def _circle(payload: Any) -> list[_Step] | None:
    """Return the path of a container that contains itself, or None if there is none."""
    # The depth of each container on the current path, by its id.
    depths = {id(payload): 0}
    done: set[int] = set()
    # For each container from the payload to the current one: the container, the step to it, and an
    # iterator over its remaining members.
    path = [(payload, None, _members(payload))]
    while path:
        container, _, members = path[-1]
        for step, value in members:
            if not isinstance(value, dict | list | tuple) or id(value) in done:
                continue
            if id(value) in depths:
                return [step for _, step, _ in path[1 : depths[id(value)] + 1]]
            depths[id(value)] = len(path)
            path.append((value, step, _members(value)))
            break
        else:
            path.pop()
            del depths[id(container)]
            done.add(id(container))
    return None
