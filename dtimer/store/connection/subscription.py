"""
A pub/sub subscription: a connection that only receives.

A subscription returns the channels of messages and ignores their contents. The library's PubSub is
not used, because it reconnects without telling the caller, and because a thread cannot wait for it
and for a stop signal at the same time.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any


class Subscription:
    """
    A subscription, from `open` to `close`. Only one thread may use it.

    Args:
        make_connection: Returns a connection of the client library that is not connected yet.
        channels: The channels to subscribe to.
    """

    # How often to check a connection to an emulated server (fakeredis), which has no descriptor to
    # wait for, in seconds.
    _SLICE = 0.02

    def __init__(self, make_connection: Callable[[], Any], channels: Sequence[str]) -> None:
        self._make_connection = make_connection
        self._channels = channels
        self._connection: Any = None

    def open(self) -> None:
        """Connect, subscribe, and return after the server has confirmed each channel."""
        # Assign before connecting, so that a child forked meanwhile can close its copy.
        connection = self._connection = self._make_connection()
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

    def wait(self, seconds: float, stop_descriptor: int) -> bool:
        """
        Wait until a message arrives, *stop_descriptor* is readable, or *seconds* have passed.

        Return True if there is something to `hear`.
        """
        descriptor = self._descriptor()
        if descriptor is None:
            seconds = min(seconds, self._SLICE)
        poll = select.poll()
        poll.register(stop_descriptor, select.POLLIN)
        if descriptor is None:
            stopped = poll.poll(seconds * 1000)
            return not stopped and bool(self._connection.can_read(timeout=0))
        poll.register(descriptor, select.POLLIN)
        return any(fd == descriptor for fd, _ in poll.poll(seconds * 1000))

    def hear(self) -> list[str]:
        """
        Return the channels of the messages that have arrived.

        Raises:
            ConnectionError: (of the client library) The subscription has ended.
        """
        heard: list[str] = []
        # Check first: the socket is also readable after TLS messages that contain no reply.
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
