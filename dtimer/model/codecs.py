"""
Codecs: how a payload is written as bytes, and read back.

`Json` writes the payload itself. A layer writes and reads the bytes of the codec on its left:
``Zlib() | Signed(key)`` compresses, and then signs. The bytes of each layer begin with its tag
(`dtimer.model.sealed`).

The codec that encrypts needs another package, and is in ``dtimer.contrib.codecs``.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, cast, get_args

from dtimer.errors import OptionError, PayloadError, PayloadTooLarge, UnreadablePayload
from dtimer.model import payload as json_payload
from dtimer.model import sealed, summary
from dtimer.naming import public

#: How far a new layer is rolled out; see `Signed`.
Stage = Literal["open", "seal", "require"]

# A shorter key can be found by trying.
_SHORTEST_KEY = 16

_DIGEST = "sha256"
_DIGEST_BYTES = hashlib.new(_DIGEST).digest_size


class Codec(Protocol):
    """
    Writes a payload as bytes, and reads it back.

    The bytes of your own codec begin with ``{`` if they are JSON, and otherwise with a byte from
    0xA0 to 0xBF, its tag. Without the tag, a node that lacks the codec would take the event for a
    corrupt event.
    """

    def encode(self, payload: dict[str, Any], /) -> bytes:
        """Return the bytes of *payload*."""
        ...

    def decode(self, raw: bytes, /) -> dict[str, Any]:
        """
        Return the payload of *raw*.

        Raises:
            PayloadError: the bytes are not a payload. The event becomes a dead letter, `corrupt`.
            UnreadablePayload: this process cannot open them, and another may. The event waits.
                Any other exception counts as this one.
        """
        ...


class Json:
    """The default codec: compact JSON, in ASCII. It also opens the bytes of `Zlib`."""

    @staticmethod
    def encode(payload: dict[str, Any], /) -> bytes:
        """See `Codec.encode`."""
        return json_payload.encode(payload, sealed.MOST_BYTES).encode()

    @staticmethod
    def decode(raw: bytes, /) -> dict[str, Any]:
        """See `Codec.decode`."""
        return json_payload.decode(raw)

    def __or__(self, outer: Layer) -> Layers:
        return Layers(self, outer)

    def __repr__(self) -> str:
        return "Json()"


class Layer:
    """
    A codec that writes and reads the bytes of another one, on its left; alone, those of `Json`.

    Args:
        stage: See `Signed`.
    """

    #: The first byte of all that it writes.
    tag: ClassVar[bytes]

    def __init__(self, stage: Stage) -> None:
        stages = get_args(Stage)
        if stage not in stages:
            given = summary.value(stage)
            raise OptionError(f"stage must be one of {', '.join(stages)}, not {given}")
        #: True if it writes, and does not only read.
        self.seals: bool = stage != "open"
        #: True if it refuses a payload without its tag.
        self.required: bool = stage == "require"

    def seal(self, raw: bytes) -> bytes:
        """Return *raw* in the form of this layer, with its tag."""
        raise NotImplementedError

    def open(self, raw: bytes) -> bytes:
        """
        Return the bytes that were sealed; *raw* begins with the tag.

        Raises:
            UnreadablePayload: they cannot be opened.
        """
        raise NotImplementedError

    def encode(self, payload: dict[str, Any], /) -> bytes:
        """See `Codec.encode`."""
        return Layers(self).encode(payload)

    def decode(self, raw: bytes, /) -> dict[str, Any]:
        """See `Codec.decode`."""
        return Layers(self).decode(raw)

    def __or__(self, outer: Layer) -> Layers:
        return Layers(self, outer)

    def __ror__(self, inner: Codec) -> Layers:
        return Layers(inner, self)

    def __repr__(self) -> str:
        # Without the arguments, which may be keys.
        return f"{type(self).__name__}(…)"


class Zlib(Layer):
    """
    Compresses payloads.

    Each node opens them, also one without this codec.

    Args:
        threshold: Smaller payloads, in bytes, stay as they are. So does a payload that compression
            does not make smaller.
        level: From 1, fast, to 9, small.
    """

    tag = sealed.COMPRESSED

    def __init__(self, threshold: int = 512, *, level: int = 6) -> None:
        super().__init__("seal")
        rows: list[tuple[str, Any, int]] = [
            ("threshold", threshold, sealed.MOST_BYTES),
            ("level", level, 9),
        ]
        for name, value, most in rows:
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                given = summary.value(value)
                raise OptionError(f"{name} must be a whole number from 1 to {most}, not {given}")
        self._threshold = threshold
        self._level = level

    def seal(self, raw: bytes) -> bytes:
        """See `Layer.seal`."""
        if len(raw) < self._threshold:
            return raw
        smaller = self.tag + zlib.compress(raw, self._level)
        return smaller if len(smaller) < len(raw) else raw

    def open(self, raw: bytes) -> bytes:
        """See `Layer.open`."""
        return sealed.inflate(raw)

    def __repr__(self) -> str:
        return f"Zlib({self._threshold}, level={self._level})"


class Signed(Layer):
    """
    Signs payloads with HMAC-SHA256. Readers of the Redis can still read them.

    A payload that someone without the key has written or changed is never handled. A signed
    payload can still be copied: to another id, and to a namespace of the same *context*.

    Args:
        key: The key, at least 16 random bytes. Of several, the first signs, and each opens: so
            keys can be rotated.
        context: Where the payload belongs, such as the name of the application. A payload that was
            signed for another context is not opened.
        stage: ``open`` reads signed and plain payloads, and writes plain ones. ``seal`` reads both,
            and writes signed ones. ``require`` refuses plain ones. The first two are steps of
            a roll-out.
    """

    tag = sealed.SIGNED

    def __init__(
        self,
        key: bytes | str | Sequence[bytes | str],
        context: str = "",
        *,
        stage: Stage = "require",
    ) -> None:
        super().__init__(stage)
        if not isinstance(context, str):
            raise OptionError(f"context must be a str, not {type(context).__name__}")
        about = context.encode(errors="surrogatepass")
        # The length keeps the end of the context apart from the beginning of the payload.
        head = b"dtimer payload %d:%b" % (len(about), about)
        self._keys = [hmac.new(key, head, _DIGEST) for key in keys_of(key)]

    @staticmethod
    def _sign(key: hmac.HMAC, raw: bytes) -> bytes:
        mac = key.copy()
        mac.update(raw)
        return mac.digest()

    def seal(self, raw: bytes) -> bytes:
        """See `Layer.seal`."""
        return self.tag + self._sign(self._keys[0], raw) + raw

    def open(self, raw: bytes) -> bytes:
        """See `Layer.open`."""
        signature, content = raw[1 : 1 + _DIGEST_BYTES], raw[1 + _DIGEST_BYTES :]
        for key in self._keys:
            if hmac.compare_digest(signature, self._sign(key, content)):
                return content
        raise UnreadablePayload(
            "the signature of the payload is not of one of the given keys and this context,"
            " or the payload was changed"
        )


def keys_of(given: object) -> list[bytes]:
    """
    Return the keys in the form of bytes: one, or a sequence of them.

    Raises:
        OptionError: there is none, or one of them is not a key. The text does not quote it.
    """
    keys = [given] if isinstance(given, bytes | str) else given
    if not isinstance(keys, list | tuple) or not keys:
        kind = type(given).__name__
        raise OptionError(f"key must be bytes or a str, or a sequence of them, not {kind}")
    raw: list[bytes] = []
    for key in keys:
        if not isinstance(key, bytes | str):
            raise OptionError(f"a key must be bytes or a str, not {type(key).__name__}")
        raw.append(key if isinstance(key, bytes) else key.encode(errors="surrogatepass"))
        if len(raw[-1]) < _SHORTEST_KEY:
            raise OptionError(f"a key must have at least {_SHORTEST_KEY} bytes, not {len(raw[-1])}")
    return raw


class Layers:
    """A codec and the layers around it, the innermost first."""

    def __init__(self, inner: Codec, *outer: Layer) -> None:
        base, layers = inner, outer
        if isinstance(inner, Layers):
            base, layers = inner.base, (*inner.layers, *outer)
        elif isinstance(inner, Layer):
            base, layers = JSON, (inner, *outer)
        for layer in layers:
            if not isinstance(cast("object", layer), Layer):
                given = summary.value(layer)
                raise OptionError(f"on the right of | must be a layer, such as Zlib(), not {given}")
        if len({layer.tag for layer in layers}) < len(layers):
            raise OptionError(f"a codec has each layer once, not {layers!r:.80}")
        self.base: Codec = base
        self.layers: tuple[Layer, ...] = layers

    def __or__(self, outer: Layer) -> Layers:
        return Layers(self, outer)

    def __repr__(self) -> str:
        return " | ".join(map(repr, (self.base, *self.layers)))

    def encode(self, payload: dict[str, Any], /) -> bytes:
        """See `Codec.encode`."""
        return self.seal(self.base.encode(payload))

    def seal(self, raw: bytes) -> bytes:
        """Return what the base has written in the form of all layers that write."""
        for layer in self.layers:
            if layer.seals:
                raw = layer.seal(raw)
        return raw

    def open(self, raw: bytes) -> bytes:
        """
        Return what the base has written. Each layer opens at most once, so the work is bounded.

        Raises:
            UnreadablePayload: a layer cannot be opened, or is missing although it is required.
        """
        for layer in reversed(self.layers):
            if raw[:1] == layer.tag:
                raw = layer.open(raw)
            elif layer.required:
                needed = sealed.word(layer.tag)
                raise UnreadablePayload(f"the payload is {sealed.word(raw)}, and must be {needed}")
        return raw

    def decode(self, raw: bytes, /) -> dict[str, Any]:
        """See `Codec.decode`."""
        return self.base.decode(self.open(raw))


#: The default codec.
JSON = Json()


class Coder:
    """
    A codec as dtimer calls it: with a limit, and with definite errors.

    For the default codec, the methods are the functions of `dtimer.model.payload` themselves.
    """

    __slots__ = ("codec", "decode", "encode", "identify")

    def __init__(self, codec: Codec) -> None:
        self.codec: Codec = codec
        #: Return the payload in stored form. Bytes that are not UTF-8 become lone surrogates.
        self.encode: Callable[[object, int], str] = json_payload.encode
        #: Return a payload from its stored form; see `Codec.decode`.
        self.decode: Callable[[bytes], dict[str, Any]] = json_payload.decode
        #: Return a text that equal payloads have in common, for the fingerprint of a schedule.
        self.identify: Callable[[object, int], str] = json_payload.encode
        if isinstance(codec, Json):
            return
        layers = Layers(codec)
        coder = _LayersCoder(layers)
        self.encode, self.decode = coder.encode, coder.decode
        if not isinstance(layers.base, Json):
            self.identify = coder.identify

    def __repr__(self) -> str:
        return repr(self.codec)


class _LayersCoder:
    """The functions of a `Coder` whose codec is not the default."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self._is_json = isinstance(layers.base, Json)

    def encode(self, payload: object, limit: int) -> str:
        if self._is_json:
            raw = json_payload.encode(payload, limit).encode()
        else:
            raw = self._encode_foreign(payload, limit)
        return self._layers.seal(raw).decode(errors="surrogateescape")

    def _encode_foreign(self, payload: object, limit: int) -> bytes:
        if not isinstance(payload, dict):
            raise PayloadError(f"the payload must be a dict, not {type(payload).__name__}")
        name = type(self._layers.base).__name__
        try:
            raw = self._layers.base.encode(payload)
        except PayloadError:
            raise
        except Exception as e:
            # Do not quote the exception: it may contain a value of the payload.
            raise PayloadError(f"the codec {name} raised {type(e).__name__}") from e
        if not isinstance(raw, bytes):
            raise PayloadError(f"the codec {name} must return bytes, not {type(raw).__name__}")
        if not raw.startswith(b"{") and not sealed.is_foreign(raw):
            raise PayloadError(
                f"what the codec {name} writes must begin with {{ or with a tag from 0xA0 to 0xBF"
            )
        if len(raw) > limit:
            raise PayloadTooLarge(
                f"the payload has {len(raw)} bytes; at most {limit} are allowed (max_payload)"
            )
        return raw

    def identify(self, payload: object, limit: int) -> str:
        try:
            return json_payload.encode(payload, limit)
        except PayloadError:
            return self._encode_foreign(payload, limit).decode(errors="surrogateescape")

    def decode(self, raw: bytes) -> dict[str, Any]:
        opened = self._layers.open(raw)
        if self._is_json:
            return json_payload.decode(opened)
        name = type(self._layers.base).__name__
        try:
            payload = self._layers.base.decode(opened)
        except PayloadError:
            raise
        except Exception as e:
            raise UnreadablePayload(f"the codec {name} raised {type(e).__name__}") from e
        if not isinstance(payload, dict):
            raise PayloadError(f"the codec {name} returned a {type(payload).__name__}, not a dict")
        return payload


#: The coder of the default codec.
PLAIN = Coder(JSON)


def check_codec(value: Any, name: str) -> Coder:
    """
    Return the coder of a codec.

    Raises:
        OptionError: *value* is not a codec.
    """
    if isinstance(value, Json):
        return PLAIN
    methods = getattr(value, "encode", None), getattr(value, "decode", None)
    if isinstance(value, type | str | bytes | Mapping) or not all(map(callable, methods)):
        raise OptionError(
            f"{name} must be a codec, such as Json(), Zlib() or Signed(key), not"
            f" {summary.value(value)}"
        )
    return Coder(value)


public(Codec, Json, Signed, Zlib)
