"""Codecs that need another package: ``pip install 'dtimer[encrypted]'``."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from dtimer.errors import OptionError, UnreadablePayload
from dtimer.model import sealed
from dtimer.model.codecs import Layer, Stage

try:
    from cryptography.fernet import Fernet, InvalidToken, MultiFernet
except ImportError as _error:
    raise ImportError(
        "dtimer.contrib.codecs needs the package cryptography: pip install 'dtimer[encrypted]'"
    ) from _error

__all__ = ["Encrypted"]


class Encrypted(Layer):
    """
    Encrypts payloads with Fernet: AES in CBC mode, with an HMAC.

    Readers of the Redis see the ids, the times and the lengths, but not the payloads. A payload
    that someone without the key has written or changed is never handled. An encrypted payload can
    still be copied: to another id, and to another namespace that uses the same key.

    Args:
        keys: A key as ``Fernet.generate_key()`` returns it. Of several, the first encrypts, and
            each decrypts: so keys can be rotated.
        stage: ``open`` reads encrypted and plain payloads, and writes plain ones. ``seal`` reads
            both, and writes encrypted ones. ``require`` refuses plain ones. The first two are steps
            of a roll-out.
    """

    tag = sealed.ENCRYPTED

    def __init__(
        self, keys: bytes | str | Sequence[bytes | str], *, stage: Stage = "require"
    ) -> None:
        super().__init__(stage)
        given = [keys] if isinstance(keys, bytes | str) else keys
        if not isinstance(given, list | tuple) or not given:
            kind = type(keys).__name__
            raise OptionError(f"keys must be a Fernet key, or a sequence of them, not {kind}")
        try:
            self._fernet = MultiFernet([Fernet(key) for key in given])
        except (TypeError, ValueError):
            # Without the cause, which may quote the key.
            raise OptionError(
                "a key must be 32 bytes in URL-safe base 64, as Fernet.generate_key() returns it"
            ) from None

    def seal(self, raw: bytes) -> bytes:
        """See `Layer.seal`."""
        # Base 64 would be longer by a third.
        return self.tag + base64.urlsafe_b64decode(self._fernet.encrypt(raw))

    def open(self, raw: bytes) -> bytes:
        """See `Layer.open`."""
        try:
            return self._fernet.decrypt(base64.urlsafe_b64encode(memoryview(raw)[1:]))
        except InvalidToken:
            raise UnreadablePayload(
                "the payload was encrypted with a key that is not given here, or was changed"
            ) from None
