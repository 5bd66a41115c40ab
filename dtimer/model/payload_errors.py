"""
Where in a payload the thing is that JSON cannot hold: ``payload['order']['at']``.

Looked for when an encoding has failed, and never before. Messages name the path and the type, and
never the value: it may be what nobody else should read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dtimer.errors import PayloadError

# A path is a hint: a longer one is cut, and so is a longer key.
_STEPS, _KEY = 8, 40

# By the name of the class: to import them all for this would be a waste.
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
    """A container, and how it was reached: a link each, or deep ones would cost their square."""

    container: Any
    depth: int = 0
    step: _Step = None
    above: _Found | None = None

    def path(self) -> list[_Step]:
        """Return the steps that lead to it."""
        steps = []
        found: _Found | None = self
        while found is not None and found.above is not None:
            steps.append(found.step)
            found = found.above
        return steps[::-1]


def _spell(steps: Sequence[_Step]) -> str:
    shown = "".join(f"[{_cut(step)}]" for step in steps[:_STEPS])
    return f"payload{shown}{'…' if len(steps) > _STEPS else ''}"


def _cut(step: _Step) -> str:
    text = repr(step)
    return text if len(text) <= _KEY else f"{text[: _KEY - 2]}…{text[-1]}"


def _members(container: Any) -> Iterator[tuple[_Step, Any]]:
    return iter(container.items() if isinstance(container, dict) else enumerate(container))


def _walk(payload: Any) -> Iterator[_Found]:
    """Walk the containers, each once: one that is shared may be met very often."""
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
    """Return the error of the first key that is not a string."""
    for found in _walk(payload):
        for key in found.container if isinstance(found.container, dict) else ():
            if not isinstance(key, str):
                return PayloadError(
                    f"payload keys must be strings, not {type(key).__name__}, in"
                    f" {_spell(found.path())}; write str(key)"
                )
    return PayloadError("payload keys must be strings")


def bad_value(payload: Any, error: BaseException) -> PayloadError:
    """Return the error of the first value that JSON has no word for, of which *error* tells."""
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
        return "NaN or infinite, which JSON has no word for; write None"
    advice = next((_ADVICE[c.__name__] for c in type(value).__mro__ if c.__name__ in _ADVICE), None)
    hint = f"; {advice}" if advice else ""
    return f"of type {type(value).__name__}, which JSON has no word for{hint}"


def too_deep(payload: Any, deepest: int) -> PayloadError:
    """Return the error of a payload that is nested deeper than so many levels."""
    if (steps := _circle(payload)) is not None:
        return PayloadError(f"{_spell(steps) if steps else 'the payload'} contains itself")
    found = next((found for found in _walk(payload) if found.depth >= deepest), _Found(payload))
    where = _spell(found.path())
    return PayloadError(f"the payload is nested deeper than {deepest} levels, at {where}")


def _circle(payload: Any) -> list[_Step] | None:
    """Return the path of a container that contains itself; None when there is none."""
    above = {id(payload): 0}
    done: set[int] = set()
    # Each container between the payload and this one, the step to it, and what is left of it.
    path = [(payload, None, _members(payload))]
    while path:
        container, _, members = path[-1]
        for step, value in members:
            if not isinstance(value, dict | list | tuple) or id(value) in done:
                continue
            if id(value) in above:
                return [step for _, step, _ in path[1 : above[id(value)] + 1]]
            above[id(value)] = len(path)
            path.append((value, step, _members(value)))
            break
        else:
            path.pop()
            del above[id(container)]
            done.add(id(container))
    return None
