"""
A connection that runs scripts, with the client library's socket and parser.

dtimer encodes each call itself. The keys of a namespace never change, so they are encoded once,
which saves a third of the cost of a round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dtimer.faultpoints import armed, reached
from dtimer.store.connection.deadline import set_deadline
from dtimer.store.connection.sockets import LARGE, Socket
from dtimer.store.keys import Keys
from dtimer.store.scripts import Script

Argument = str | bytes

_TIME = b"*1\r\n$4\r\nTIME\r\n"


def _raw(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        # The text of a handler's error may contain lone surrogates, quoted from a payload.
        return text.encode(errors="backslashreplace")


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def is_a_reply(error: BaseException) -> bool:
    """Return True if *error* is a complete error reply, after which the connection is usable."""
    return any(c.__name__ == "ResponseError" for c in type(error).__mro__)


def _read_time(connection: Any) -> int | None:
    """Read the reply to a TIME; return the time in µs, or None if the server refuses."""
    try:
        seconds, us = connection.read_response(disable_decoding=True)
    except Exception as e:
        if not is_a_reply(e):
            raise
        return None
    return int(seconds) * 1_000_000 + int(us)


class Packer:
    """Encodes calls of scripts on the keys of one namespace in the Redis protocol (RESP)."""

    def __init__(self, keys: Keys) -> None:
        self._count = len(keys)
        self._keys = _bulk(b"%d" % len(keys)) + b"".join(_bulk(key.encode()) for key in keys)
        self._heads: dict[tuple[str, bool], bytes] = {}

    def pack(self, script: Script, arguments: Sequence[Argument], *, with_source: bool) -> bytes:
        """Encode a call of *script*, by its SHA1 or, if *with_source*, with its source."""
        head = self._heads.get((script.name, with_source))
        if head is None:
            verb, text = (b"EVAL", script.source) if with_source else (b"EVALSHA", script.sha)
            head = _bulk(verb) + _bulk(text) + self._keys
            self._heads[script.name, with_source] = head
        return b"".join((b"*%d\r\n" % (3 + self._count + len(arguments)), head, _pack(arguments)))


def _pack(arguments: Sequence[Argument]) -> bytes:
    pieces: list[Any] = []
    for argument in arguments:
        pieces += (f"${len(argument)}\r\n", argument, "\r\n")
    try:
        # Nearly all calls are ASCII, in which the length in bytes is the length of the string.
        return "".join(pieces).encode("ascii")
    except (UnicodeEncodeError, TypeError):
        raw = (_raw(a) if isinstance(a, str) else a for a in arguments)
        return b"".join(map(_bulk, raw))


class Connection:
    """
    A connection, made on first use, that records whether a command may have been sent on it.

    Only one thread may use it at a time.
    """

    def __init__(self, connect: Callable[[], Any], packer: Packer) -> None:
        self._make_connection = connect
        self._packer = packer
        self._connection: Any = None
        self._socket: Socket | None = None
        # The later deadline of a large request; it also applies to its reply. 0 for other requests.
        self._large_until = 0.0
        # True until the reply to a TIME behind the last script was read.
        self._asked_time = False
        self.sent: bool = False
        #: How many bytes of an incomplete reply arrived before the failure; 0 if none.
        self.arrived: int = 0
        #: The server's time after the last script, in µs; None if it was not asked for.
        self.ended_us: int | None = None

    def run(
        self,
        script: Script,
        arguments: Sequence[Argument],
        until: float,
        limit: float | None = None,
        *,
        with_source: bool = False,
    ) -> Any:
        """
        Send *script* and return its reply, with byte strings undecoded.

        The call ends at *until*, on the monotonic clock. While bytes are moving, however slowly,
        it ends at *limit* instead.

        Errors of the client library pass through; ``sent`` then says whether the command may
        have reached the server. Every error other than an error reply closes the connection, so
        that the next call cannot read a late reply.
        """
        try:
            self.send(script, arguments, until, limit, with_source=with_source)
            # The deadline that `send` has set still applies.
            return self._receive()
        except BaseException as e:
            # A signal handler can also raise between the two calls.
            if not (self.sent and is_a_reply(e)):
                self.close()
            raise

    def send(
        self,
        script: Script,
        arguments: Sequence[Argument],
        until: float,
        limit: float | None = None,
        *,
        with_source: bool = False,
        with_time: bool = False,
        keep_lock: bool = False,
    ) -> None:
        """
        Send *script*. The caller must receive its reply before sending anything else.

        With *with_time*, `ended_us` is set with the reply. With *keep_lock*, this thread keeps the
        interpreter's lock in each system call that does not wait (`dtimer.syscalls`).
        """
        self.sent = False
        self.arrived = 0
        self.ended_us = None
        packed = self._packer.pack(script, arguments, with_source=with_source)
        self._asked_time = with_time
        if with_time:
            packed += _TIME
        self._large_until = 0.0
        if limit is not None and len(packed) >= LARGE:
            # When `sendall` returns, much of a large request may still be in this machine's
            # buffers. So the whole call, with the wait for its reply, has a later deadline: half
            # way between *until* and *limit*.
            until = self._large_until = (until + limit) / 2
        clean = False
        try:
            connection = self._connection
            if connection is None:
                connection = self._connection = self._make_connection()
                set_deadline(connection, until, limit)
                connection.connect()
                self._socket = connection.fast_socket
            else:
                set_deadline(connection, until, limit)
            self.sent = True
            sock = self._socket
            if sock is not None:
                sock.keeps_lock = keep_lock and sock.can_keep_lock
            if sock is None or not sock.fast:
                connection.send_packed_command([packed], check_health=False)
            else:
                try:
                    sock.sendall(packed)
                except OSError as e:
                    sock.raise_next(e)
                    connection.send_packed_command([packed], check_health=False)
            clean = True
        finally:
            if not clean:
                self.close()

    def receive(self, until: float, limit: float | None = None) -> Any:
        """Return the reply to the script that was sent last."""
        set_deadline(self._connection, max(until, self._large_until), limit)
        return self._receive()

    def _receive(self) -> Any:
        clean = False
        connection, sock = self._connection, self._socket
        try:
            if armed:
                reached("reply.reading")
            reply = None
            if sock is not None and sock.fast:
                try:
                    reply = sock.bulk(with_time=self._asked_time)
                except OSError as e:
                    sock.raise_next(e)
            if reply is None:
                reply = self._read_by_library(connection)
            elif self._asked_time and sock is not None:
                self.ended_us = sock.ended_us
            clean = True
            return reply
        except Exception as e:
            clean = is_a_reply(e)
            if not clean and connection.wrapped is not None:
                self.arrived = connection.wrapped.arrived
            raise
        finally:
            if not clean:
                self.close()

    def _read_by_library(self, connection: Any) -> Any:
        try:
            return connection.read_response(disable_decoding=True)
        except Exception as e:
            self._asked_time = self._asked_time and is_a_reply(e)
            raise
        finally:
            if self._asked_time:
                # Also after an error reply, or the next call would read it as its own.
                self.ended_us = _read_time(connection)

    def wait(self, replicas: int, ms: int, until: float) -> int:
        """
        Wait until *replicas* replicas have everything this connection has written, at most *ms*.

        Returns:
            The number of replicas that have it.
        """
        clean = False
        try:
            set_deadline(self._connection, until)
            self._connection.send_command("WAIT", replicas, ms, check_health=False)
            count = int(self._connection.read_response(disable_decoding=True))
            clean = True
            return count
        finally:
            if not clean:
                self.close()

    def close(self) -> None:
        """Close the connection; the next call makes another."""
        connection, self._connection, self._socket = self._connection, None, None
        if connection is not None:
            connection.disconnect()
