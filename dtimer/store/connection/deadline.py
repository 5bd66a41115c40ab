"""
Give a connection a deadline for a whole call, where a socket only has a timeout for each read.

Without it, a server or proxy that sends a byte now and then could keep a call waiting forever,
because the timeout of a socket starts over with each byte.
"""

from __future__ import annotations

import functools
import re
import socket
import ssl
import time
from typing import Any

from dtimer.store.connection import tls
from dtimer.store.connection.sockets import Socket

# A server that does not know a command quotes its arguments in the error.
_QUOTED = re.compile(r",? with args beginning with")


@functools.cache
def with_deadline(connection_class: type) -> type:
    """
    Return a subclass of *connection_class* that obeys `set_deadline`.

    Its errors hint at a TLS mismatch if connecting fails, and never quote a password.
    """
    # The fast path needs the library's own methods. A user's subclass may replace them.
    steps = (getattr(connection_class, name) for name in ("send_packed_command", "read_response"))
    plain = all(step.__module__.startswith(("redis.", "valkey.")) for step in steps)

    class Connection(connection_class):  # type: ignore[misc]
        until: float | None = None
        limit: float | None = None
        #: The socket once connected, and the same if dtimer may bypass the library on it. None for
        #: an emulation.
        wrapped: Socket | None = None
        fast_socket: Socket | None = None
        socket_timeout: float | None

        def connect(self) -> None:
            try:
                super().connect()
            except Exception as e:
                quoted = _QUOTED.search(str(e))
                if quoted:
                    # The arguments of AUTH include the password.
                    raise type(e)(str(e)[: quoted.start()]) from None
                if tls.hung_up(self, e):
                    raise type(e)(f"{e} ({tls.PLAIN})") from e
                raise

        def _connect(self) -> Any:
            if self.until is None:
                return self._open()
            # Set both: `socket_timeout` applies to the TLS handshake.
            timeout = self.socket_timeout
            left = max(0.001, self.until - time.monotonic())
            self.socket_connect_timeout = self.socket_timeout = left
            try:
                sock = self._open()
            finally:
                self.socket_timeout = timeout
            # An emulation has neither a socket nor a deadline.
            if not isinstance(sock, socket.socket):
                return sock
            self.wrapped = Socket(sock, self)
            self.fast_socket = self.wrapped if plain else None
            return self.wrapped

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
    Make operations of *connection* time out at *until*, on the monotonic clock.

    While bytes are moving, they time out at *limit* instead.
    """
    connection.until = until
    connection.limit = until if limit is None else limit


def run_command(connection: Any, *words: str) -> Any:
    """Connect *connection*, run one command on it, and disconnect; return the undecoded reply."""
    try:
        connection.connect()
        connection.send_command(*words, check_health=False)
        return connection.read_response(disable_decoding=True)
    finally:
        connection.disconnect()
