"""
A pub/sub subscription: a connection that only receives.

It returns the channels of messages and ignores their contents. The library's PubSub is not used,
because it reconnects without telling the caller, and because a thread cannot wait for it and for
a stop signal at the same time.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any


class Subscription:
    """A subscription, from `open` to `close`. Only one thread may use it."""

    # How often to check a connection that has no descriptor (an emulation), in seconds.
    _SLICE = 0.02

    def __init__(self, connect: Callable[[], Any], channels: Sequence[str]) -> None:
        self._make = connect
        self._channels = channels
        self._connection: Any = None

    def open(self) -> None:
        """Connect, subscribe, and return after the server has confirmed each channel."""
        # Assign before connecting, so that a child forked meanwhile can close its copy.
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
        Wait until a message arrives, the descriptor *also* is readable, or *seconds* have passed.

        Return True if there is something to `hear`.
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
        Return the channels of the messages that have arrived.

        Raises:
            ConnectionError: (of the client library) The subscription has ended.
        """
        heard: list[str] = []
        # Check first: the readable bytes may have belonged to TLS only.
        while self._connection.can_read(timeout=0):
            reply = self._connection.read_response(disable_decoding=True)
            if reply[0] == b"message":
                heard.append(reply[1].decode())
        return heard

    def close(self) -> None:
        """End the subscription, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.disconnect()
