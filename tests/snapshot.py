"""Restore a namespace to an earlier state: the effect of a failover that loses writes."""

from __future__ import annotations

from typing import Any

from dtimer.store.keys import Keys


class Snapshot:
    """
    The keys of a namespace at the moment this object is made.

    As in a real failover, `restore` loses all writes after that moment and none before it.
    """

    def __init__(self, client: Any, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        with client.pipeline() as pipe:
            for key in keys:
                pipe.dump(key)
            self._values = pipe.execute()

    def restore(self) -> None:
        """Restore all keys in one transaction."""
        with self._client.pipeline() as pipe:
            for key, value in zip(self._keys, self._values, strict=True):
                if value is None:
                    pipe.delete(key)
                else:
                    pipe.restore(key, 0, value, replace=True)
            pipe.execute()
