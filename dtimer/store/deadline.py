"""
A deadline for a whole exchange, where a socket has one for each read.

A server, or a proxy before it, that sends a byte now and then would otherwise keep a call
for ever: the time-out of a socket begins anew with each byte.
"""

from __future__ import annotations

import functools
import re
import socket
import ssl
import time
from typing import Any

from dtimer.store import tls
from dtimer.store.sockets import Socket

# A server that does not know a command quotes its arguments.
_QUOTED = re.compile(r",? with args beginning with")


@functools.cache
def with_deadline(connection_class: type) -> type:
    """
    Return the same class of connection, with a deadline: see `set_deadline`.

    And with words for what may be wrong when it cannot be made.
    """
    # What somebody has made of the library's class may read or write in a way of its own.
    steps = (getattr(connection_class, name) for name in ("send_packed_command", "read_response"))
    plain = all(step.__module__.startswith(("redis.", "valkey.")) for step in steps)

    class Connection(connection_class):  # type: ignore[misc]
        until: float | None = None
        limit: float | None = None
        ours: Socket | None = None
        straight: Socket | None = None
        socket_timeout: float | None

        def connect(self) -> None:
            try:
                super().connect()
            except Exception as e:
                quoted = _QUOTED.search(str(e))
                if quoted:
                    # What AUTH was called with.
                    raise type(e)(str(e)[: quoted.start()]) from None
                if tls.hung_up(self, e):
                    raise type(e)(f"{e} ({tls.PLAIN})") from e
                raise

        def _connect(self) -> Any:
            if self.until is None:
                return self._open()
            # The second is for the handshake of TLS.
            timeout = self.socket_timeout
            left = max(0.001, self.until - time.monotonic())
            self.socket_connect_timeout = self.socket_timeout = left
            try:
                sock = self._open()
            finally:
                self.socket_timeout = timeout
            # An emulation has no socket, and no deadline either.
            if not isinstance(sock, socket.socket):
                return sock
            self.ours = Socket(sock, self)
            self.straight = self.ours if plain else None
            return self.ours

        def _open(self) -> Any:
            try:
                return super()._connect()
            except TimeoutError as e:
                if tls.speaks_tls(self):
                    raise ssl.SSLError(1, tls.SILENT) from e
                raise

    Connection.__name__ = Connection.__qualname__ = connection_class.__name__
    return Connection


def set_deadline(connection: Any, until: float, limit: float | None = None) -> None:
    """
    Have *connection* give up at the moment *until*, on the monotonic clock.

    Or, while bytes are on the move, at the moment *limit*.
    """
    connection.until = until
    connection.limit = until if limit is None else limit


def straight(connection: Any) -> Socket | None:
    """Return the socket of *connection*, where calls may be made on it past the library."""
    found: Socket | None = getattr(connection, "straight", None)
    return found


def arrived(connection: Any) -> int:
    """Return how many bytes of a reply that took several reads have arrived on *connection*."""
    ours: Socket | None = getattr(connection, "ours", None)
    return 0 if ours is None else ours.arrived
