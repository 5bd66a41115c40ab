"""A relay between a client and its server that counts the bytes of both directions."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from pathlib import Path
from typing import Self

from servers import connect


class Relay:
    """
    Counts the bytes that clients, one after the other, send and receive.

    A context manager. A request is counted before the server receives it, and a reply before the
    client does. So a client that has its reply finds all bytes counted.
    """

    def __init__(self, url: str) -> None:
        self._server = url
        self._folder = tempfile.TemporaryDirectory(prefix="dt-", dir="/tmp")
        self._socket = socket.socket(socket.AF_UNIX)
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.sent = self.received = 0

    @property
    def url(self) -> str:
        """The address to which the client connects."""
        return f"unix://{Path(self._folder.name) / 's'}"

    def read(self) -> tuple[int, int]:
        """Return the bytes sent and received since the last reading."""
        counted, self.sent, self.received = (self.sent, self.received), 0, 0
        return counted

    def __enter__(self) -> Self:
        self._socket.bind(self.url.removeprefix("unix://"))
        self._socket.listen()
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for end in [self._socket, *self._ends]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in [self._socket, *self._ends]:
            end.close()
        self._folder.cleanup()

    def _begin(self, work, *args) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                server = connect(self._server)
                server.settimeout(None)
                self._ends += [client, server]
                self._begin(self._pump, client, server, "sent")
                self._begin(self._pump, server, client, "received")

    def _pump(self, source, sink, direction) -> None:
        with contextlib.suppress(OSError):
            while some := source.recv(1 << 16):
                setattr(self, direction, getattr(self, direction) + len(some))
                sink.sendall(some)
