"""
The stored form of payloads that are not plain JSON: the tag that each begins with.

Plain JSON begins with ``{``. The bytes of any other codec (`dtimer.model.codecs`) begin with the
tag of its outermost layer: one byte with which no text in UTF-8 begins. So each node can tell a
payload that it cannot open from bytes that are not a payload.
"""

from __future__ import annotations

import zlib

from dtimer.errors import UnreadablePayload

#: The largest payload that any node writes or reads, in bytes of JSON.
MOST_BYTES = 64 * 1024 * 1024

COMPRESSED = b"\x80"
SIGNED = b"\x81"
ENCRYPTED = b"\x82"

# The bytes of UTF-8 that continue a character. Those from _FIRST_FOREIGN on are for users' codecs.
_FIRST, _FIRST_FOREIGN, _LAST = 0x80, 0xA0, 0xBF

_WORDS = {COMPRESSED: "compressed", SIGNED: "signed", ENCRYPTED: "encrypted"}


def is_tagged(raw: bytes) -> bool:
    """Return whether *raw* begins with the tag of a codec, known or not."""
    return len(raw) > 0 and _FIRST <= raw[0] <= _LAST


def is_foreign(raw: bytes) -> bool:
    """Return whether *raw* begins with one of the tags that are left to users' codecs."""
    return len(raw) > 0 and _FIRST_FOREIGN <= raw[0] <= _LAST


def word(raw: bytes) -> str:
    """Return the kind of a payload, by its tag, such as ``encrypted``."""
    if not is_tagged(raw):
        return "plain"
    return _WORDS.get(raw[:1], f"of a codec with the tag 0x{raw[0]:02x}")


def describe(raw: bytes) -> str:
    """Describe a payload that cannot be opened: ``encrypted, 312 bytes``."""
    return f"{word(raw)}, {len(raw)} bytes"


def inflate(raw: bytes) -> bytes:
    """
    Return the bytes of a compressed payload.

    Raises:
        UnreadablePayload: they are damaged, or more than `MOST_BYTES`.
    """
    stream = zlib.decompressobj()
    try:
        # At most one byte more than is allowed: a few bytes can stand for more than fits into
        # memory.
        inflated = stream.decompress(memoryview(raw)[1:], MOST_BYTES + 1)
    except zlib.error as e:
        raise UnreadablePayload(f"the compressed payload is damaged ({e})") from None
    if len(inflated) > MOST_BYTES:
        raise UnreadablePayload(f"the compressed payload has more than {MOST_BYTES} bytes of JSON")
    if not stream.eof or stream.unused_data:
        raise UnreadablePayload("the compressed payload is damaged (its end is elsewhere)")
    return inflated
