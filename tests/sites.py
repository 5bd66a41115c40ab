"""Ask a web site that listens on a unix socket."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

from servers import PATIENCE


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


def ask(path: Path, method: str, page: str) -> tuple[int, str]:
    """Send a request to the site at the unix socket *path*; return the status and the body."""
    connection = _Unix(str(path))
    try:
        connection.request(method, page)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
