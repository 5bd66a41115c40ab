"""Looks at a namespace from outside, straight through to the server."""

from __future__ import annotations

from typing import Any, Self

from servers import Server
from soundness import assert_sound

from dtimer import DTimer
from dtimer.store.keys import Keys

#: What falls due within so many ms is near; the rest is far off on purpose.
_NEAR = 300_000


class Looker(DTimer):
    """Looks at a namespace, straight through to the server."""

    def __init__(self, server: Server, ns: str) -> None:
        super().__init__("looker", server.url, ns=ns, timeout=10_000)
        self._client = server.client()
        self._keys = Keys.of(ns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        self._client.close()

    def left(self) -> int:
        """Return how many events there are in flight, or due before long."""
        return self.stats().in_flight + sum(1 for _ in self.upcoming(duration=_NEAR))

    def pending(self) -> list[str]:
        """Return the ids of all that is pending."""
        return [member.decode() for member, _ in self._client.zscan_iter(self._keys.due)]

    def letters(self) -> list[dict[str, Any]]:
        """Return the dead letters."""
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
        """Return what is wrong with the keys, or None."""
        try:
            assert_sound(self._client, self._keys)
        except AssertionError as e:
            return str(e)[:2000]
        return None
