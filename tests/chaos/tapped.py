"""A connection on which a test can watch each script, send it twice, or lose it or its reply."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

from dtimer.store.connection.sources import source
from dtimer.store.scripts import Script

#: Takes the script, its arguments, and a function that sends them; returns what the caller sees.
Tap = Callable[[Script, list[Any], Callable[[list[Any]], Any]], Any]


class Lost(ConnectionError):
    """Raised to the client for a reply that does not arrive."""


class TappedConnection:
    """
    A real connection whose scripts pass through a tap.

    The caller's deadlines are ignored, because the caller may read a test's clock.
    """

    def __init__(self, connection: Any, tap: Tap, loads: bool) -> None:
        self._connection = connection
        self._tap = tap
        self._loads = loads
        self.sent = False
        self.arrived = 0
        self.ended_us = None
        self._reply: tuple[Any, Exception | None] = None, None

    def run(
        self,
        script: Script,
        arguments: Sequence[Any],
        until: float,
        limit: float | None = None,
        *,
        with_source: bool = False,
    ) -> Any:
        """Run a script, as `dtimer.store.connection.connection.Connection` does."""
        self.send(script, arguments, until, limit, with_source=with_source)
        return self.receive(until, limit)

    def send(
        self,
        script: Script,
        arguments: Sequence[Any],
        until: float,
        limit: float | None = None,
        *,
        with_source: bool = False,
        with_time: bool = False,
        keep_lock: bool = False,
    ) -> None:
        """Run the script at once, and keep the reply until `receive` is called; give no time."""
        del until, limit, with_time, keep_lock
        self.sent = True
        try:
            self._reply = self._exchange(script, arguments, with_source=with_source), None
        except Exception as e:
            self._reply = None, e

    def receive(self, until: float, limit: float | None = None) -> Any:
        """Return the reply that `send` kept, or raise its error."""
        del until, limit
        reply, error = self._reply
        if error is not None:
            raise error
        return reply

    def _exchange(self, script: Script, arguments: Sequence[Any], *, with_source: bool) -> Any:
        def send(words: list[Any]) -> Any:
            until = time.monotonic() + 5
            try:
                return self._connection.run(script, words, until, with_source=with_source)
            except redis.exceptions.NoScriptError:
                if not self._loads:
                    raise
            return self._connection.run(script, words, until, with_source=True)

        return self._tap(script, list(arguments), send)

    def close(self) -> None:
        self._connection.close()


class TappedSource:
    """
    A source of connections whose scripts pass through a tap.

    Args:
        client: A client of the server to connect to.
        tap: Called for every script.
        loads: Load a script that the server does not know without calling the tap again. The tap
            then sees each script once, whether or not the server has it.
    """

    def __init__(self, client: Any, tap: Tap, *, loads: bool = False) -> None:
        self._source = source(client, 5.0)
        self._tap = tap
        self._loads = loads

    def connection(self, keys: Any) -> TappedConnection:
        """
        Return a tapped connection; `dtimer.store.connection.sources.Source` provides all the
        rest.
        """
        return TappedConnection(self._source.connection(keys), self._tap, self._loads)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)
