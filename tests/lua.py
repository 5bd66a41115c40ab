"""
Run scripts outside the server, in the same version of Lua, to count their instructions.

Only Lua runs here: each Redis command of a script goes to the real server. Such a run is slow and
not atomic, but the count is exact.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from lupa.lua51 import LuaRuntime, lua_type
from servers import Running, connect

from dtimer.store.connection.connection import Connection
from dtimer.store.keys import Keys

# Lua calls the hook before each instruction of its virtual machine. Work inside C functions
# is not counted.
_COUNT = b"""
local sethook = debug.sethook
local n = 0
return function(text)
  local run = assert(loadstring(text))
  n = 0
  sethook(function() n = n + 1 end, '', 1)
  local reply = run()
  sethook()
  return reply, n
end
"""


class Counter:
    """Counts the Lua instructions that scripts run."""

    def __init__(self, server: Running) -> None:
        self._line = connect(server.url)
        self._file = self._line.makefile("rb")
        self._instructions = 0

    def read(self) -> int:
        """Return the instructions since the last reading."""
        counted, self._instructions = self._instructions, 0
        return counted

    def run(self, source: bytes, keys: list[bytes], arguments: list[bytes]) -> Any:
        """Run a script as a server does; return its reply as a client receives it."""
        lua = LuaRuntime(encoding=None, unpack_returned_tuples=True)
        lua.globals()[b"KEYS"] = lua.table_from(keys)
        lua.globals()[b"ARGV"] = lua.table_from(arguments)
        lua.globals()[b"redis"] = lua.table_from(
            {
                b"call": lambda *words: self._command(lua, words),
                b"pcall": lambda *words: self._guarded(lua, words),
                b"error_reply": lambda text: lua.table_from({b"err": text}),
            }
        )
        reply, count = lua.execute(_COUNT)(source)
        self._instructions += count
        return _as_client_value(reply)

    def _command(self, lua: LuaRuntime, words: tuple[Any, ...]) -> Any:
        raw = [_argument(word) for word in words]
        pieces = [b"$%d\r\n%b\r\n" % (len(word), word) for word in raw]
        self._line.sendall(b"*%d\r\n" % len(raw) + b"".join(pieces))
        return self._reply(lua)

    def _reply(self, lua: LuaRuntime) -> Any:
        """Read a reply; return it as the value that a script receives."""
        line = self._file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise redis.ResponseError(rest.decode())
        if kind == b"+":
            return lua.table_from({b"ok": rest})
        number = int(rest)
        if kind == b":":
            return number
        if number < 0:
            return False
        if kind == b"*":
            return lua.table_from([self._reply(lua) for _ in range(number)])
        return self._file.read(number + 2)[:-2]

    def _guarded(self, lua: LuaRuntime, words: tuple[Any, ...]) -> Any:
        try:
            return self._command(lua, words)
        except redis.ResponseError as e:
            return lua.table_from({b"err": str(e).encode()})

    def close(self) -> None:
        self._file.close()
        self._line.close()


def _argument(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else b"%.17g" % value


def _as_client_value(reply: Any) -> Any:
    """Convert the reply of a script to the value that a client receives."""
    if lua_type(reply) != "table":
        return int(reply) if isinstance(reply, int | float) and reply is not False else reply
    if error := reply[b"err"]:
        raise redis.ResponseError(error.decode())
    return [_as_client_value(reply[n]) for n in range(1, len(reply) + 1)]


@contextlib.contextmanager
def interpreted(server: Running, keys: Keys) -> Iterator[Counter]:
    """Run the scripts of a namespace in this process during the context; yield the counter."""
    counter = Counter(server)
    names = [key.encode() for key in keys]

    replies: dict[Connection, Any] = {}

    def send(
        connection,
        script,
        arguments,
        until,
        limit=None,
        *,
        with_source=False,
        with_time=False,
        keep_lock=False,
    ):
        connection.sent = True
        words = [_argument(part) for part in arguments]
        replies[connection] = functools.partial(counter.run, script.source, names, words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "send", send)
        patch.setattr(
            Connection, "receive", lambda connection, until, limit=None: replies.pop(connection)()
        )
        patch.setattr(Connection, "_receive", lambda connection: replies.pop(connection)())
        try:
            yield counter
        finally:
            counter.close()
