"""Listen for the wakes that the scripts send."""

from __future__ import annotations

from typing import Any

from servers import PATIENCE


class Wakes:
    """A subscriber to the wakes of all nodes of a namespace."""

    def __init__(self, client: Any, store: Any) -> None:
        self._client = client
        self._pubsub = client.pubsub()
        self._prefix = store.keys.wake("")
        self._pubsub.psubscribe(self._prefix + "*")
        assert self._pubsub.get_message(timeout=PATIENCE)["type"] == "psubscribe"

    def heard(self) -> list[str]:
        """Return the nodes that were woken since the last call, in order."""
        # The server sends in order: when the end mark arrives, all earlier wakes have arrived.
        self._client.publish(self._prefix + "end", "")
        names = []
        while True:
            message = self._pubsub.get_message(timeout=PATIENCE)
            name = message["channel"].decode().removeprefix(self._prefix)
            if name == "end":
                return names
            names.append(name)

    def close(self) -> None:
        self._pubsub.close()
