"""The server of a run: real, on the loopback interface, and empty before each measurement."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import redis

from dtimer.embedded.binary import find_binary, missing

# Becomes the server, after asking the kernel to kill it when the tool ends, even by a kill.
_TIED = """
import ctypes, os, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""

_PATIENCE = 10


class Server:
    """
    A server without persistence, with one thread and otherwise default settings.

    ``DTIMER_SERVER`` names its path. By default it is the server that an embedded store would find
    first.
    """

    def __init__(self) -> None:
        binary = find_binary()
        if binary is None:
            raise missing()
        self._folder = Path(tempfile.mkdtemp(prefix="bench-"))
        port = _free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", str(self._folder)]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self.close)
        # Removing five million events takes longer than the default timeout.
        self.client: Any = redis.Redis.from_url(self.url, socket_timeout=120)
        self._wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def version(self) -> str:
        """Its name and version."""
        info = self.client.info("server")
        name = info.get("server_name", "redis")
        return f"{name} {info.get(f'{name}_version', info['redis_version'])}"

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(redis.ConnectionError):
                self.client.ping()
                return
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self._folder / "log").read_text("utf-8", "replace"))
            time.sleep(0.01)

    def clear(self) -> None:
        """Remove all keys, scripts and functions, and reset the counters."""
        self.client.flushall()
        self.client.script_flush()
        self.client.execute_command("FUNCTION", "FLUSH")
        self.client.config_resetstat()
        with contextlib.suppress(redis.ResponseError):
            self.client.memory_purge()

    def used_memory(self) -> int:
        """Return the bytes that the data take, once only this tool is connected."""
        deadline = time.monotonic() + _PATIENCE
        while self.client.info("clients")["connected_clients"] > 1:
            if time.monotonic() > deadline:
                raise RuntimeError("another client is still connected")
            time.sleep(0.01)
        return int(self.client.info("memory")["used_memory"])

    def close(self) -> None:
        """Kill the server, and remove its folder."""
        self.client.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.close)


class Monitor:
    """
    Counts every command that the server runs, separately for clients and scripts.

    Use it for idle contenders only: MONITOR costs a busy server time.
    """

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("redis://").partition("/")[0].partition(":")
        self._line = socket.create_connection((host, int(port)), _PATIENCE)
        self._line.sendall(b"MONITOR\r\n")
        self._line.recv(16)

    def read(self) -> tuple[int, int]:
        """Return the commands of clients, and all commands, since the last reading."""
        self._line.setblocking(False)
        text = b""
        with contextlib.suppress(BlockingIOError):
            while some := self._line.recv(1 << 20):
                text += some
        return tally(text)

    def close(self) -> None:
        """Stop listening."""
        self._line.close()


def tally(text: bytes) -> tuple[int, int]:
    """Count the lines of a MONITOR: the commands of clients, and all commands."""
    lines = [line for line in text.split(b"\r\n") if line.startswith(b"+")]
    inside = sum(b" lua]" in line.partition(b'"')[0] for line in lines)
    return len(lines) - inside, len(lines)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
