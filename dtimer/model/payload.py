"""
The payload: a JSON object that dtimer encodes once, and decodes when it delivers the event.

Redis and Lua store the bytes unchanged. Lua's cjson would turn ``[]`` into ``{}`` and round
integers beyond 2**53.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from json.scanner import make_scanner
from typing import Any, NoReturn

from dtimer.errors import PayloadError, PayloadTooLarge, UnreadablePayload
from dtimer.model import payload_errors, sealed

#: A payload that is nested more deeply than this is a mistake, or contains itself.
DEEPEST = 100

# One encoder for all calls: making one per call would take a third of the encoding time.
# ensure_ascii preserves lone surrogates, which UTF-8 cannot encode.
_encode = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not valid JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)
_scan: Callable[[str, int], tuple[Any, int]] = make_scanner(_decoder)  # type: ignore[arg-type]


def parse(text: str) -> Any:
    """
    Parse JSON, and refuse NaN and the infinities.

    Raises:
        ValueError, RecursionError: *text* is not JSON, or is nested too deeply.
    """
    try:
        # Like JSONDecoder.decode, but without the search for surrounding white space, which
        # payloads written by dtimer do not have.
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except StopIteration:
        pass
    return _decoder.decode(text)


# The types of values that contain no other values.
_SCALARS = {str, int, float, bool, type(None)}


def _check(payload: Mapping[str, Any]) -> bool:
    """
    Reject keys that are not strings, which json would convert silently, and excessive depth.

    Returns:
        True if a container occurs more than once on one level.
    """
    # The fast path: most payloads are flat. A subclass may be a container, so it is checked below.
    if _SCALARS.issuperset(map(type, payload.values())) and {str}.issuperset(map(type, payload)):
        return False
    level: list[Any] = [payload]
    shared = False
    for _ in range(DEEPEST):
        deeper: list[Any] = []
        # Visit each container once per level: a shared container may occur very often.
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


def _count_values(payload: Mapping[str, Any], limit: int) -> int:
    """Count the values that json would write, each occurrence separately, up to about *limit*."""
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
    Return *payload* as compact ASCII JSON of at most *limit* bytes.

    Tuples become lists, as in the json module. Every other value is equal after decoding.

    Raises:
        PayloadError: *payload* is not a dict, has a key that is not a string, has a value that JSON
            cannot represent (NaN, infinity, bytes, datetime, set …), or is nested too deeply. The
            text contains the path and the type, and never the value.
        PayloadTooLarge: the JSON is longer than *limit*.
    """
    if not isinstance(payload, dict):
        # Do not quote the payload: it may be confidential.
        raise PayloadError(f"the payload must be a dict, not {type(payload).__name__}")
    # Count before encoding: a few lists, each with two references to the previous one, can stand
    # for more JSON than fits into memory.
    if _check(payload) and (count := _count_values(payload, limit)) > limit:
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
    Decode the stored bytes of a payload, which may be compressed.

    Raises:
        PayloadError: the bytes are not a JSON object, so dtimer has not written them.
        UnreadablePayload: another codec has written them, or they are damaged.
    """
    try:
        payload = parse(raw.decode())
    except (ValueError, RecursionError) as e:
        if sealed.is_tagged(raw):
            return _decode_tagged(raw)
        raise PayloadError(f"the stored payload is not JSON: {e}") from e
    if not isinstance(payload, dict):
        raise PayloadError(f"the stored payload is a {type(payload).__name__}, not a JSON object")
    # A payload that is too deep has more opening brackets than DEEPEST, and as many closing ones.
    # Most payloads have fewer, and need no check.
    if len(raw) > 2 * DEEPEST and raw.count(b"[") + raw.count(b"{") > DEEPEST:
        _check(payload)
    return payload


def _decode_tagged(raw: bytes) -> dict[str, Any]:
    inner = sealed.inflate(raw) if raw.startswith(sealed.COMPRESSED) else raw
    if sealed.is_tagged(inner):
        raise UnreadablePayload(
            f"the payload is {sealed.word(inner)}: this process needs the option codec that"
            " the others have"
        )
    return decode(inner)
