"""Drive dtimer, this project: a node that leases and confirms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from driving import Item, Peer, main, record_all

from dtimer import DTimer, Event


class Ours(Peer):
    """A node, or a timer that only posts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        options = {"max_events": self.batch, **self.options}
        self._timer = DTimer("node", self.url, ns="bench", **options)

    def consume(self, ready: Callable[[], None]) -> None:
        """See `Peer.consume`."""

        @self._timer.on("event")
        def handle(events: list[Event]) -> None:
            record_all((event, round(event.lateness_ms * 1000)) for event in events)

        self._timer.join()
        ready()

    def post(self, body: dict[str, Any], due: int) -> None:
        """See `Peer.post`."""
        self._timer.post(body, at=due / 1000)

    def post_in_bulk(self, items: Sequence[Item]) -> None:
        """See `Peer.post_in_bulk`."""
        self._timer.post_many({"ev": body, "at": due / 1000} for body, due in items)


main(Ours)
