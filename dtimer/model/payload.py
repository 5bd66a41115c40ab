"""
The payload: a JSON object, written once and never looked into on its way.

Redis and Lua keep the bytes as they are, because a round trip through Lua's cjson
would turn ``[]`` into ``{}`` and round integers beyond 2**53.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from json.scanner import make_scanner
from typing import Any, NoReturn

from dtimer.errors import PayloadError, PayloadTooLarge
from dtimer.model import payload_errors

#: Nested deeper than this, a payload is a mistake, or contains itself.
DEEPEST = 100

# One encoder, reused: building one for each call costs a third of the encoding.
# ensure_ascii keeps lone surrogates intact, which UTF-8 could not carry.
_encode = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)
_scan: Callable[[str, int], tuple[Any, int]] = make_scanner(_decoder)  # type: ignore[arg-type]


def _decode(text: str) -> Any:
    try:
        # What its decode does, but for the white space around, of which ours have none.
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except StopIteration:
        pass
    return _decoder.decode(text)


# What holds nothing else.
_SCALARS = {str, int, float, bool, type(None)}


def _check(payload: Mapping[str, Any]) -> bool:
    """
    Refuse what json would quietly bend: keys that are no strings, and endless depth.

    Returns:
        Whether some container is met more than once on one level.
    """
    # Most are like this. A class of somebody's own may be anything, and is looked at below.
    if _SCALARS.issuperset(map(type, payload.values())) and {str}.issuperset(map(type, payload)):
        return False
    level: list[Any] = [payload]
    shared = False
    for _ in range(DEEPEST):
        deeper: list[Any] = []
        # Each container once a level: one that is shared may be met very often.
        once = {id(c): c for c in level}
        shared = shared or len(once) < len(level)
        for container in once.values():
            if isinstance(container, dict):
                for key in container:
                    if not isinstance(key, str):
                        raise payload_errors.bad_key(payload)
                values: Any = container.values()
            else:
                values = container
            deeper.extend(v for v in values if isinstance(v, dict | list | tuple))
        if not deeper:
            return shared
        level = deeper
    raise payload_errors.too_deep(payload, DEEPEST)


def _values(payload: Mapping[str, Any], limit: int) -> int:
    """Count the values that would be written, shared ones each time, until over *limit*."""
    count = 0
    level: dict[int, tuple[Any, int]] = {0: (payload, 1)}
    while level and count <= limit:
        deeper: dict[int, tuple[Any, int]] = {}
        for container, times in level.values():
            count += times * len(container)
            for v in container.values() if isinstance(container, dict) else container:
                if isinstance(v, dict | list | tuple):
                    deeper[id(v)] = v, times + deeper.get(id(v), (v, 0))[1]
        level = deeper
    return count


def encode(payload: object, limit: int) -> str:
    """
    Write *payload* as compact ASCII JSON of at most *limit* bytes.

    Tuples become lists, as in the json module; everything else comes back equal.

    Raises:
        PayloadError: not a dict, a key that is no string, a value that JSON has no
            word for (NaN, infinity, bytes, datetime, set …), or nested too deeply. The text
            names where it is, and its type, never the value.
        PayloadTooLarge: over *limit*.
    """
    if not isinstance(payload, dict):
        # Never the payload itself: it may be what nobody else should read.
        raise PayloadError(f"the payload must be a dict, not {type(payload).__name__}")
    # A few lists, each holding the one before twice, may stand for more than there is memory.
    if _check(payload) and (count := _values(payload, limit)) > limit:
        raise PayloadTooLarge(
            f"the payload has at least {count} values; at most {limit} bytes of JSON are allowed"
            " (max_payload)"
        )
    try:
        text = _encode(payload)
    except (TypeError, ValueError, RecursionError) as e:
        raise payload_errors.bad_value(payload, e) from e
    if len(text) > limit:
        raise PayloadTooLarge(
            f"the payload has {len(text)} bytes of JSON; at most {limit} are allowed (max_payload)"
        )
    return text


def decode(raw: bytes) -> dict[str, Any]:
    """
    Read a payload back.

    Raises:
        PayloadError: the bytes are no JSON object; somebody else wrote them.
    """
    try:
        payload = _decode(raw.decode())
    except (ValueError, RecursionError) as e:
        raise PayloadError(f"the stored payload is not JSON: {e}") from e
    if not isinstance(payload, dict):
        raise PayloadError(f"the stored payload is a {type(payload).__name__}, not a JSON object")
    # So many brackets are needed to be too deep, and each is closed; most payloads have fewer.
    if len(raw) > 2 * DEEPEST and raw.count(b"[") + raw.count(b"{") > DEEPEST:
        _check(payload)
    return payload
