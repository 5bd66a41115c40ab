"""
Wrap the client library's socket, to add deadlines and a fast path for simple replies.

Nearly all replies on the hot path are one byte string, which can be read without a parser. The
library's parser, which is written in Python, costs as much as all other work of a client for a
call. A reply of any other form is left to the library, from its first byte.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from typing import Any

from dtimer import syscalls

# The socket's timeout is set again only if it is wrong by this many seconds or more. Setting it
# costs a system call, and nearly all calls need the same timeout.
_TOLERANCE = 0.001
# How many bytes to read at first, and in each further read of a large reply.
_AT_FIRST, _MORE = 65_536, 262_144
# The size in bytes from which sending a request may take long. A smaller request fits into the
# socket buffers of any system.
LARGE = 65_536
# The longest head of a byte string: $, the digits of the size, and the line end.
_LONGEST_HEAD = 16

# The reply to a TIME: the seconds and the microseconds.
_TIME_REPLY = re.compile(rb"\*2\r\n\$\d+\r\n(\d+)\r\n\$\d+\r\n(\d+)\r\n")
_LONGEST_TIME = 64

# The class of the standard library, even if gevent has replaced the name.
_PLAIN: Any = socket.socket if socket.socket.__module__ == "socket" else None

_NOTHING = memoryview(b"")


def wait_readable(sock: socket.socket, seconds: float) -> bool:
    """Wait at most *seconds* until *sock* can be read; return whether it can."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class Socket:
    """
    A socket that applies the deadline of its connection to every operation.

    While bytes are moving in either direction, a later deadline applies, the ``limit`` of the
    connection: a slow reply would not arrive sooner if the call was repeated. But no pause between
    bytes may be longer than the last timeout was.
    """

    def __init__(self, sock: socket.socket, connection: Any) -> None:
        self._sock = sock
        self._connection = connection
        self._timeout = -1.0
        # The bytes and the error that dtimer has received, and the library must receive again.
        self._unread = _NOTHING
        self._failure: OSError | None = None
        #: How many bytes of the reply to the last request have arrived, if it took several reads.
        self.arrived: int = 0
        self._moving = False
        #: True to keep the interpreter's lock in system calls that do not wait.
        self.keeps_lock: bool = False
        #: See `Connection.ended_us`.
        self.ended_us: int | None = None
        #: False for TLS, and for a socket of a library such as gevent, which replaces the waits.
        self.can_keep_lock: bool = syscalls.AVAILABLE and type(sock) is _PLAIN
        #: False once unrequested bytes have arrived. The library may have buffered some of them, so
        #: only the library can read the following replies.
        self.fast: bool = True

    def _apply_deadline(self) -> None:
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
            if not -_TOLERANCE < left - self._timeout < _TOLERANCE:
                self._sock.settimeout(left)
                self._timeout = left

    def _recv_more(self, size: int) -> bytes:
        self._apply_deadline()
        if self.keeps_lock:
            # Release the lock once, for the wait.
            with contextlib.suppress(BlockingIOError):
                if not wait_readable(self._sock, self._timeout):
                    raise TimeoutError("timed out")
                return syscalls.recv(self._sock.fileno(), size)
        return self._sock.recv(size)

    # For dtimer's own calls

    def bulk(self, *, with_time: bool = False) -> bytes | None:
        """
        Read a reply and return it if it is one byte string that no further bytes follow.

        With *with_time*, the reply to a TIME must follow, and `ended_us` is set.

        Otherwise return None; the library must then read the reply, from its first byte.
        """
        data = self._recv_more(_AT_FIRST)
        while (begin := data.find(b"\r\n", 0, _LONGEST_HEAD) + 2) < 2:
            # Leave a longer line, or a reply of another type, to the library.
            wanted = len(data) < _LONGEST_HEAD and data.startswith(b"$")
            self._record(len(data))
            if not (wanted and (more := self._recv_more(_AT_FIRST))):
                self._unread = memoryview(data)
                return None
            data += more
        if data.startswith(b"$") and (size := data[1 : begin - 2]).isdigit():
            end = begin + int(size)
            if len(data) < end + 2:
                data = self._recv_rest(data, end + 2 - len(data))
            if with_time:
                data, time = self._recv_time(data, end + 2)
                if time and data.endswith(b"\r\n", 0, end + 2):
                    self.ended_us = int(time[1]) * 1_000_000 + int(time[2])
                    return data[begin:end]
            elif len(data) == end + 2 and data.endswith(b"\r\n"):
                return data[begin:end]
            self.fast = False
        elif data.startswith(b">"):
            # A push message (RESP3). The reply follows, and further pushes may.
            self.fast = False
        self._record(len(data))
        self._unread = memoryview(data)
        return None

    def _recv_time(self, data: bytes, begin: int) -> tuple[bytes, re.Match[bytes] | None]:
        """Read on until *data* has the reply to a TIME from *begin* on; return both."""
        while not (time := _TIME_REPLY.fullmatch(data, begin)):
            other = len(data) > begin + _LONGEST_TIME or data[begin : begin + 1] not in (b"", b"*")
            if other or not (more := self._recv_more(_AT_FIRST)):
                break
            data += more
        return data, time

    def _recv_rest(self, data: bytes, missing: int) -> bytes:
        """Read *missing* more bytes, or fewer if the server closes the connection."""
        pieces = [data]
        self._record(len(data))
        while missing and (more := self._recv_more(min(missing, _MORE))):
            pieces.append(more)
            missing -= len(more)
            self._record(len(more))
        return b"".join(pieces)

    def _record(self, size: int) -> None:
        self._moving = size > 0
        self.arrived += size

    def raise_next(self, error: OSError) -> None:
        """Raise *error* again in the library's next operation, which has its own class for it."""
        self._failure = error

    # For the library and for dtimer's own calls

    def sendall(self, data: bytes, *flags: int) -> None:
        """Send all of *data*; see `socket.socket.sendall`."""
        self.arrived, self._moving = 0, False
        self._apply_deadline()
        if len(data) < LARGE:
            if self.keeps_lock:
                with contextlib.suppress(BlockingIOError):
                    data = data[syscalls.send(self._sock.fileno(), data) :]
            if data:
                self._sock.sendall(data, *flags)
            return
        rest = memoryview(data)
        while rest := rest[self._sock.send(rest[:_MORE], *flags) :]:
            self._moving = True
            self._apply_deadline()
        self._moving = False

    def recv(self, size: int, *flags: int) -> bytes:
        """Return the bytes that `bulk` left to the library; then read from the socket."""
        if self._unread:
            data, self._unread = bytes(self._unread[:size]), self._unread[size:]
            return data
        self._apply_deadline()
        data = self._sock.recv(size, *flags)
        self._record(len(data))
        return data

    def recv_into(self, buffer: Any, *args: int) -> int:
        """Fill *buffer* like `recv`."""
        if self._unread:
            size = min(len(buffer), len(self._unread))
            memoryview(buffer)[:size], self._unread = self._unread[:size], self._unread[size:]
            return size
        self._apply_deadline()
        size = self._sock.recv_into(buffer, *args)
        self._record(size)
        return size

    def settimeout(self, seconds: float | None) -> None:
        """Set the timeout of the socket, until the next operation of this class sets its own."""
        self._timeout = -1.0
        self._sock.settimeout(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)
