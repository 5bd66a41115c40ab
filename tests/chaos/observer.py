"""Read the state of a namespace on a direct connection, which no fault affects."""

from __future__ import annotations

from typing import Any, Self

from servers import Server
from soundness import assert_sound

from chaos.workload import codec
from dtimer import DTimer
from dtimer.store.keys import Keys

#: The drain waits for events that are due within this time, in ms. Others are due after the run.
_NEAR = 300_000


class Observer(DTimer):
    """Reads the state of a namespace, with a direct connection to the server."""

    def __init__(self, server: Server, ns: str) -> None:
        super().__init__("observer", server.url, ns=ns, timeout=10_000, codec=codec(0))
        self._client = server.client()
        self._keys = Keys.of(ns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        self._client.close()

    def left(self) -> int:
        """Return how many events are in flight or due soon."""
        return self.stats().in_flight + sum(1 for _ in self.upcoming(duration=_NEAR))

    def pending(self) -> list[str]:
        return [member.decode() for member, _ in self._client.zscan_iter(self._keys.due)]

    def letters(self) -> list[dict[str, Any]]:
        """Return the dead letters, as fields of a ``final`` record."""
        return [
            {
                "id": letter.id,
                "n": letter.event.get("n") if letter.event else None,
                "attempt": letter.attempt,
                "reason": letter.reason,
                "error": letter.error[:300],
            }
            for letter in self.dead()
        ]

    def sound(self) -> str | None:
        """Return the contradiction between the keys, or None."""
        try:
            assert_sound(self._client, self._keys)
        except AssertionError as e:
            return str(e)[:2000]
        return None
