"""Measure the load of nodes on a server and their wakes, by its counters and by pub/sub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from servers import PATIENCE, Running

from dtimer.store.keys import Keys


@dataclass(frozen=True)
class Count:
    """
    The activity between two readings of a `Meter`.

    ``calls`` is the number of scripts that clients called. ``inside`` counts the commands that
    scripts ran, by name. ``wakes`` lists the nodes that were woken, in order; ``echoes`` lists the
    nodes that were sent an echo.
    """

    calls: int
    inside: dict[str, int]
    wakes: list[str]
    echoes: list[str]
    seconds: float


class Meter:
    """
    Reads the counters of a server, and receives all messages published in a namespace.

    A context manager. The server must have no other users.
    """

    def __init__(self, server: Running, ns: str) -> None:
        self._client = server.client()
        self._prefix = Keys.of(ns).due[:-3]
        self._pubsub = self._client.pubsub()
        self._pubsub.psubscribe(f"{self._prefix}*")
        self._message()
        self._last = self._stats()
        self._since = self._now()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pubsub.close()
        self._client.close()

    def read(self) -> Count:
        """Return the activity since the last reading."""
        stats, now = self._stats(), self._now()
        grown = {name: n - self._last.get(name, 0) for name, n in stats.items()}
        grown = {name: n for name, n in grown.items() if n}
        heard = self._heard()
        count = Count(
            calls=sum(grown.pop(name, 0) for name in ("evalsha", "eval")),
            inside=grown,
            wakes=[name for kind, name in heard if kind == "wake"],
            echoes=[name for kind, name in heard if kind == "echo"],
            seconds=now - self._since,
        )
        self._last, self._since = self._stats(), now
        return count

    def _now(self) -> float:
        seconds, micros = self._client.time()
        return float(seconds) + float(micros) / 1e6

    def _stats(self) -> dict[str, int]:
        stats: Any = self._client.info("commandstats")
        # Commands of this meter, which no script runs.
        ours = {"info", "time", "ping", "psubscribe", "client", "select"}
        names = {name: name.removeprefix("cmdstat_") for name in stats}
        return {names[n]: stats[n]["calls"] for n in stats if names[n] not in ours}

    def _message(self) -> Any:
        message = self._pubsub.get_message(timeout=PATIENCE)
        assert message, "nothing was heard"
        return message

    def _heard(self) -> list[tuple[str, str]]:
        # Pub/sub keeps the order: everything published before the end mark arrives before it.
        self._client.publish(f"{self._prefix}end:", "")
        heard: list[tuple[str, str]] = []
        while True:
            kind, _, node = self._message()["channel"].decode()[len(self._prefix) :].partition(":")
            if kind == "end":
                return heard
            heard.append((kind, node))
