"""
Wrap the client library's socket, to add deadlines and a fast path for simple replies.

Nearly all replies on the hot path are one byte string, which can be read without a parser. The
library's parser, which is written in Python, costs as much as all other work of a client for a
call. A reply of any other form is left to the library, from its first byte.
"""

from __future__ import annotations

import socket
import time
from typing import Any

# The socket's timeout is set again only if it is wrong by this many seconds or more. Setting it
# costs a system call, and nearly all calls need the same timeout.
_NEAR = 0.001
# How many bytes to read at first, and in each further read of a large reply.
_AT_FIRST, _MORE = 65_536, 262_144
# The size in bytes from which sending a request may take long. A smaller request fits into the
# socket buffers of any system.
LARGE = 65_536
# The longest head of a byte string: $, the digits of the size, and the line end.
_LONGEST_HEAD = 16

_NOTHING = memoryview(b"")


class Socket:
    """
    A socket that applies the deadline of its connection to every operation.

    While bytes are moving in either direction, a later deadline applies, the ``limit`` of the
    connection: a slow reply would not arrive sooner if the call was repeated. Even then, one pause
    between bytes may not last longer than the timeout that was set before.
    """

    def __init__(self, sock: socket.socket, connection: Any) -> None:
        self._sock = sock
        self._connection = connection
        self._timeout = -1.0
        # The bytes that were received, and the error, which the library is to receive again.
        self._back = _NOTHING
        self._failure: OSError | None = None
        #: How many bytes of the reply to the last request have arrived, if it took several reads.
        self.arrived = 0
        self._moving = False
        #: False once unrequested bytes have arrived. The library may have buffered some of them, so
        #: only the library can read the following replies.
        self.straight = True

    def _arm(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        until = self._connection.until
        if until is not None:
            now = time.monotonic()
            left = until - now
            if self._moving:
                left = max(left, min(self._connection.limit - now, self._timeout))
            if left <= 0:
                raise TimeoutError("timed out")
            if not -_NEAR < left - self._timeout < _NEAR:
                self._sock.settimeout(left)
                self._timeout = left

    def _more(self, size: int) -> bytes:
        self._arm()
        return self._sock.recv(size)

    # For dtimer's own calls

    def bulk(self) -> bytes | None:
        """
        Read a reply and return it if it is one byte string that no further bytes follow.

        Otherwise return None; the library must then read the reply, from its first byte.
        """
        data = self._more(_AT_FIRST)
        while (begin := data.find(b"\r\n", 0, _LONGEST_HEAD) + 2) < 2:
            # Leave a longer line, or a reply of another type, to the library.
            wanted = len(data) < _LONGEST_HEAD and data.startswith(b"$")
            self._came(len(data))
            if not (wanted and (more := self._more(_AT_FIRST))):
                self._back = memoryview(data)
                return None
            data += more
        if data.startswith(b"$") and (size := data[1 : begin - 2]).isdigit():
            end = begin + int(size)
            if len(data) < end + 2:
                data = self._rest(data, end + 2 - len(data))
            if len(data) == end + 2 and data.endswith(b"\r\n"):
                return data[begin:end]
            self.straight = False
        elif data.startswith(b">"):
            # A push message (RESP3). The reply follows, and further pushes may.
            self.straight = False
        self._came(len(data))
        self._back = memoryview(data)
        return None

    def _rest(self, data: bytes, missing: int) -> bytes:
        """Read *missing* more bytes, or fewer if the server closes the connection."""
        pieces = [data]
        self._came(len(data))
        while missing and (more := self._more(min(missing, _MORE))):
            pieces.append(more)
            missing -= len(more)
            self._came(len(more))
        return b"".join(pieces)

    def _came(self, size: int) -> None:
        self._moving = size > 0
        self.arrived += size

    def fail(self, error: OSError) -> None:
        """Raise *error* again in the library's next operation, which has its own class for it."""
        self._failure = error

    # For the library and for dtimer's own calls

    def sendall(self, data: bytes, *flags: int) -> None:
        """Send all of *data*; see `socket.socket.sendall`."""
        self.arrived, self._moving = 0, False
        self._arm()
        if len(data) < LARGE:
            self._sock.sendall(data, *flags)
            return
        rest = memoryview(data)
        while rest := rest[self._sock.send(rest[:_MORE], *flags) :]:
            self._moving = True
            self._arm()
        self._moving = False

    def recv(self, size: int, *flags: int) -> bytes:
        """Return the bytes that `bulk` left to the library; then read from the socket."""
        if self._back:
            data, self._back = bytes(self._back[:size]), self._back[size:]
            return data
        self._arm()
        data = self._sock.recv(size, *flags)
        self._came(len(data))
        return data

    def recv_into(self, buffer: Any, *args: int) -> int:
        """Fill *buffer* like `recv`."""
        if self._back:
            size = min(len(buffer), len(self._back))
            memoryview(buffer)[:size], self._back = self._back[:size], self._back[size:]
            return size
        self._arm()
        size = self._sock.recv_into(buffer, *args)
        self._came(size)
        return size

    def settimeout(self, seconds: float | None) -> None:
        """Set the timeout of the socket, until the next operation of this class sets its own."""
        self._timeout = -1.0
        self._sock.settimeout(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)
