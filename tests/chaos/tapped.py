"""A way to a server on which each script that is sent can be watched, sent twice, or lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

from dtimer.store.connect import source
from dtimer.store.scripts import Script

#: Told the script and its arguments, and how to send them; returns what the caller sees.
Tap = Callable[[Script, list[Any], Callable[[list[Any]], Any]], Any]


class Lost(ConnectionError):
    """What a client sees of a reply that does not come."""


class TappedWire:
    """A real connection, through a tap. Time may be the test's own, so it has no deadline."""

    def __init__(self, wire: Any, tap: Tap, loads: bool) -> None:
        self._wire = wire
        self._tap = tap
        self._loads = loads
        self.sent = False
        self.arrived = 0
        self._reply: tuple[Any, Exception | None] = None, None

    def run(
        self,
        script: Script,
        arguments: Sequence[Any],
        until: float,
        limit: float | None = None,
        *,
        whole: bool = False,
    ) -> Any:
        """See `dtimer.store.wire.Wire`, as for the others."""
        self.send(script, arguments, until, limit, whole=whole)
        return self.receive(until, limit)

    def send(
        self,
        script: Script,
        arguments: Sequence[Any],
        until: float,
        limit: float | None = None,
        *,
        whole: bool = False,
    ) -> None:
        """The server is done before anything else happens, and the reply waits to be read."""
        del until, limit
        self.sent = True
        try:
            self._reply = self._exchange(script, arguments, whole=whole), None
        except Exception as e:
            self._reply = None, e

    def receive(self, until: float, limit: float | None = None) -> Any:
        """What came of it."""
        del until, limit
        reply, error = self._reply
        if error is not None:
            raise error
        return reply

    def _exchange(self, script: Script, arguments: Sequence[Any], *, whole: bool) -> Any:
        def send(words: list[Any]) -> Any:
            until = time.monotonic() + 5
            try:
                return self._wire.run(script, words, until, whole=whole)
            except redis.exceptions.NoScriptError:
                if not self._loads:
                    raise
            return self._wire.run(script, words, until, whole=True)

        return self._tap(script, list(arguments), send)

    def close(self) -> None:
        """Drop the connection."""
        self._wire.close()


class TappedSource:
    """
    Connections to where a client leads, through a tap.

    Args:
        client: A client of it.
        tap: Every script goes through it.
        loads: A script that the server does not know is loaded past the tap, so that it
            comes by once, whatever the server knows.
    """

    def __init__(self, client: Any, tap: Tap, *, loads: bool = False) -> None:
        self._source = source(client, 5.0)
        self._tap = tap
        self._loads = loads

    def wire(self, keys: Any) -> TappedWire:
        """See `dtimer.store.connect.Source`, as for all that is not here."""
        return TappedWire(self._source.wire(keys), self._tap, self._loads)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)
