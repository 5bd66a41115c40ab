"""A namespace as it was, to be put back: what a failover that loses writes comes to."""

from __future__ import annotations

from typing import Any

from dtimer.store.keys import Keys


class Snapshot:
    """
    The keys of a namespace as they are when this is made.

    Writes are lost from a moment on, and never one in the middle: so is it here.
    """

    def __init__(self, client: Any, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        with client.pipeline() as pipe:
            for key in keys:
                pipe.dump(key)
            self._values = pipe.execute()

    def restore(self) -> None:
        """Put everything back, all at once."""
        with self._client.pipeline() as pipe:
            for key, value in zip(self._keys, self._values, strict=True):
                if value is None:
                    pipe.delete(key)
                else:
                    pipe.restore(key, 0, value, replace=True)
            pipe.execute()
