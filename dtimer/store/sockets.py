"""
Our hand between the library and its socket: a deadline, and a short way for short replies.

Nearly all replies that matter are one string of bytes, and to read that takes no parser: the
library's, in Python, costs as much as all else that a client does for a call. What is anything
else, or comes with anything else, is left to the library as if nobody had looked at it.
"""

from __future__ import annotations

import socket
import time
from typing import Any

# A time-out that is set differs from the one that is meant by no more than this, in seconds:
# to set it costs a system call, and nearly all calls have the same.
_NEAR = 0.001
# What is asked of the socket at first, and then.
_AT_FIRST, _MORE = 65_536, 262_144
# A request of so many bytes may take long to send; one that is smaller fits into the buffers of
# any system.
LARGE = 65_536
# No more than $, the digits of a size, and the end of the line.
_LONGEST_HEAD = 16

_NOTHING = memoryview(b"")


class Socket:
    """
    A socket whose every step ends when the deadline of its connection does.

    While bytes are on the move in either direction the deadline is a later one, the limit of the
    connection: what arrives slowly would arrive no sooner if it was asked for again. Silence is
    waited out for no longer than before.
    """

    def __init__(self, sock: socket.socket, connection: Any) -> None:
        self._sock = sock
        self._connection = connection
        self._timeout = -1.0
        # What has come already, and how it ended: for the library to find.
        self._back = _NOTHING
        self._failure: OSError | None = None
        #: How many bytes of the reply to what was last sent have arrived, where it took several
        #: reads.
        self.arrived = 0
        self._moving = False
        #: False once something came that nobody had asked for: the library may keep some of
        #: it, and only the library can read what comes next.
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

    # For us

    def bulk(self) -> bytes | None:
        """
        Read a reply, and return it where it is a string of bytes and nothing comes behind it.

        Where it is anything else, None: the library has to read it, from its beginning.
        """
        data = self._more(_AT_FIRST)
        while (begin := data.find(b"\r\n", 0, _LONGEST_HEAD) + 2) < 2:
            # A line that is longer, or is no head at all, is the library's.
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
            # A push of a newer protocol. The reply follows, and more may.
            self.straight = False
        self._came(len(data))
        self._back = memoryview(data)
        return None

    def _rest(self, data: bytes, missing: int) -> bytes:
        """Read on until nothing is missing, or the server has hung up."""
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
        """Have the library meet *error*, which we have met: it has classes and words for it."""
        self._failure = error

    # For the library, too

    def sendall(self, data: bytes, *flags: int) -> None:
        """See `socket.socket`, as for the others."""
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
        """First of all what we have left to the library."""
        if self._back:
            data, self._back = bytes(self._back[:size]), self._back[size:]
            return data
        self._arm()
        data = self._sock.recv(size, *flags)
        self._came(len(data))
        return data

    def recv_into(self, buffer: Any, *args: int) -> int:
        """First of all what we have left to the library."""
        if self._back:
            size = min(len(buffer), len(self._back))
            memoryview(buffer)[:size], self._back = self._back[:size], self._back[size:]
            return size
        self._arm()
        size = self._sock.recv_into(buffer, *args)
        self._came(size)
        return size

    def settimeout(self, seconds: float | None) -> None:
        """Until the next step, which has one of its own."""
        self._timeout = -1.0
        self._sock.settimeout(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)
