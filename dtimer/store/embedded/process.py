"""
The server process, as its keeper sees it.

The server does not outlive the keeper. On Linux the kernel kills it when the keeper
ends, however that ends. Elsewhere a leash does: a child of the keeper that waits for the
other end of a pipe to close, and then kills the server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable

from dtimer.store.embedded.premises import SERVER


def arguments(binary: str, kind: str, folder: str, where: str) -> list[str]:
    """Return the command line of a server in *folder* with its socket in *where*."""
    command = [binary, "--port", "0", "--daemonize", "no", "--dir", folder]
    command += ["--unixsocket", os.path.join(where, SERVER), "--unixsocketperm", "700"]
    command += ["--loglevel", "notice", "--save", ""]
    if kind == "memory":
        return [*command, "--appendonly", "no"]
    command += ["--appendonly", "yes", "--appendfsync", "everysec"]
    # Of the default, 64 MB, most would be events that ended long ago.
    return [*command, "--auto-aof-rewrite-min-size", "16mb"]


def say(text: str) -> None:
    """Write a line to the log: the standard error, of the keeper and of its server."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} keeper {os.getpid()}: {text}\n"
    # A full disk is no reason to end.
    with contextlib.suppress(OSError):
        os.write(2, line.encode(errors="replace"))


class Process:
    """
    One run of the server after another, never two at a time.

    The *lock* of the folder is inherited by the server. While an orphan of a keeper that
    was killed still breathes, nobody else can own the folder and open the same files.
    """

    def __init__(self, command: list[str], lock: int, *, leash: bool = False) -> None:
        self._command = command
        self._lock = lock
        self._tie = None if leash else _tie()
        self._leash = self._rope = 0
        #: 0 when there is no server.
        self.pid = 0

    def start(self, ours: Iterable[int]) -> None:
        """Start the server; *ours* are descriptors that die with the keeper."""
        keeper = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            try:
                if self._tie:
                    self._tie()
                # It may be too late to be tied: then we have another parent already.
                if os.getppid() == keeper:
                    os.set_inheritable(self._lock, True)
                    os.execv(self._command[0], self._command)  # noqa: S606 - no shell wanted
            except OSError as e:
                say(f"cannot run {self._command[0]}: {e}")
            finally:
                os._exit(127)
        say(f"started the server {self.pid}: {self._command}")
        if not self._tie:
            self._put_on_leash(ours)

    def _put_on_leash(self, ours: Iterable[int]) -> None:
        end, self._rope = os.pipe()
        self._leash = os.fork()
        if not self._leash:
            signal.set_wakeup_fd(-1)
            for descriptor in (self._rope, self._lock, *ours):
                os.close(descriptor)
            os.read(end, 1)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os._exit(0)
        os.close(end)

    def has_ended(self) -> bool:
        """Return whether the server ended since it was started; tells so once."""
        if not self.pid or not os.waitpid(self.pid, os.WNOHANG)[0]:
            return False
        say(f"the server {self.pid} has ended")
        self._forget()
        return True

    def terminate(self) -> None:
        """Ask the server to end; it brings its data to the disk first."""
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the server now, if it has not ended yet."""
        if self.pid:
            say(f"killing the server {self.pid}")
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._forget()

    def _forget(self) -> None:
        self.pid = 0
        if self._leash:
            os.kill(self._leash, signal.SIGKILL)
            os.waitpid(self._leash, 0)
            os.close(self._rope)
            self._leash = 0


def ask(where: str) -> bytes:
    """Return the answer of the server in *where* to a PING; empty when it gives none."""
    with socket.socket(socket.AF_UNIX) as line, contextlib.suppress(OSError):
        line.settimeout(1.0)
        line.connect(os.path.join(where, SERVER))
        line.sendall(b"PING\r\n")
        return line.recv(64)
    return b""


def _tie() -> Callable[[], object] | None:
    """Return what a child calls to be killed with its parent, where the kernel can do that."""
    if sys.platform != "linux":
        return None
    import ctypes  # noqa: PLC0415 - needed nowhere else

    prctl = ctypes.CDLL(None).prctl
    # PR_SET_PDEATHSIG. The "parent" is the thread that forked, and a keeper has but one.
    return lambda: prctl(1, signal.SIGKILL, 0, 0, 0)
