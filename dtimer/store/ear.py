"""
The subscription: a connection that only listens.

Of what it hears it tells only on which channel something came, and never what. The
library's PubSub is not used: it reconnects in hiding, and cannot be waited for together
with the signal to stop.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any


class Ear:
    """One subscription, from `open` to `close`. For one thread, but for `interrupt`."""

    # Where the connection has no descriptor (an emulation), look this often.
    _SLICE = 0.02

    def __init__(self, connect: Callable[[], Any], channels: Sequence[str]) -> None:
        self._make = connect
        self._channels = channels
        self._connection: Any = None

    def open(self) -> None:
        """Connect, subscribe, and return once the server has confirmed each channel."""
        # Assigned first: a child that is forked meanwhile closes its copy.
        connection = self._connection = self._make()
        try:
            connection.connect()
            connection.send_command("SUBSCRIBE", *self._channels, check_health=False)
            for _ in self._channels:
                connection.read_response(disable_decoding=True)
        except BaseException:
            self.close()
            raise

    def _descriptor(self) -> int | None:
        sock = getattr(self._connection, "_sock", None)
        return sock.fileno() if isinstance(sock, socket.socket) else None

    def wait(self, seconds: float, also: int) -> bool:
        """
        Wait until something can be heard, at most *seconds*, or until the descriptor
        *also* can be read. Return whether there is something to `hear`.
        """
        descriptor = self._descriptor()
        if descriptor is None:
            seconds = min(seconds, self._SLICE)
        poll = select.poll()
        poll.register(also, select.POLLIN)
        if descriptor is None:
            interrupted = poll.poll(seconds * 1000)
            return not interrupted and bool(self._connection.can_read(timeout=0))
        poll.register(descriptor, select.POLLIN)
        return any(fd == descriptor for fd, _ in poll.poll(seconds * 1000))

    def hear(self) -> list[str]:
        """
        Return the channels on which something came.

        Raises:
            ConnectionError: (the library's) the subscription is over.
        """
        heard: list[str] = []
        # What could be read may have been TLS's own business.
        while self._connection.can_read(timeout=0):
            reply = self._connection.read_response(disable_decoding=True)
            if reply[0] == b"message":
                heard.append(reply[1].decode())
        return heard

    def close(self) -> None:
        """End the subscription; harmless when there is none."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.disconnect()
