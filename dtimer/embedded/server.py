"""
Runs the server process for its supervisor.

The server does not outlive the supervisor. On Linux, the kernel kills it when the supervisor ends
or is killed. Elsewhere a watchdog does: another child of the supervisor, which waits until the
other end of a pipe is closed, and then kills the server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable

from dtimer.embedded.layout import SERVER


def arguments(binary: str, kind: str, folder: str, where: str) -> list[str]:
    """Return the command line of a server with its data in *folder* and its socket in *where*."""
    command = [binary, "--port", "0", "--daemonize", "no", "--dir", folder]
    command += ["--unixsocket", os.path.join(where, SERVER), "--unixsocketperm", "700"]
    command += ["--loglevel", "notice", "--save", ""]
    if kind == "memory":
        return [*command, "--appendonly", "no"]
    command += ["--appendonly", "yes", "--appendfsync", "everysec"]
    # With the default, 64 MB, most of the file would be events that ended long ago.
    return [*command, "--auto-aof-rewrite-min-size", "16mb"]


def say(text: str) -> None:
    """Write a line to standard error, which is the log of the supervisor and of its server."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervisor {os.getpid()}: {text}\n"
    # A full disk must not end the supervisor.
    with contextlib.suppress(OSError):
        os.write(2, line.encode(errors="replace"))


class ServerProcess:
    """
    Starts and ends the server, and runs at most one at a time.

    The server inherits the *lock* of the folder. While the server of a killed supervisor still
    runs, no other supervisor can acquire the folder and open the same files.
    """

    def __init__(self, command: list[str], lock: int, *, watchdog: bool = False) -> None:
        self._command = command
        self._lock = lock
        self._die_with_parent = None if watchdog else _death_signal()
        self._watchdog = self._pipe = 0
        #: 0 if the server is not running.
        self.pid: int = 0

    def start(self, ours: Iterable[int]) -> None:
        """Start the server. *ours* are descriptors that only the supervisor may have open."""
        supervisor = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            try:
                if self._die_with_parent:
                    self._die_with_parent()
                # If the supervisor ended before that call, this process has another parent, and
                # would not be killed.
                if os.getppid() == supervisor:
                    os.set_inheritable(self._lock, True)
                    os.execv(self._command[0], self._command)  # noqa: S606 - needs no shell
            except OSError as e:
                say(f"cannot run {self._command[0]}: {e}")
            finally:
                os._exit(127)
        say(f"started the server {self.pid}: {self._command}")
        if not self._die_with_parent:
            self._start_watchdog(ours)

    def _start_watchdog(self, ours: Iterable[int]) -> None:
        end, self._pipe = os.pipe()
        self._watchdog = os.fork()
        if not self._watchdog:
            signal.set_wakeup_fd(-1)
            for descriptor in (self._pipe, self._lock, *ours):
                os.close(descriptor)
            os.read(end, 1)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os._exit(0)
        os.close(end)

    def has_ended(self) -> bool:
        """Return True if the server has ended. Returns True only once per run of the server."""
        if not self.pid or not os.waitpid(self.pid, os.WNOHANG)[0]:
            return False
        say(f"the server {self.pid} has ended")
        self._forget()
        return True

    def terminate(self) -> None:
        """Ask the server to end. It writes its data to disk first."""
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server if it is still running."""
        if self.pid:
            say(f"killing the server {self.pid}")
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._forget()

    def _forget(self) -> None:
        self.pid = 0
        if self._watchdog:
            os.kill(self._watchdog, signal.SIGKILL)
            os.waitpid(self._watchdog, 0)
            os.close(self._pipe)
            self._watchdog = 0


def ask(where: str) -> bytes:
    """Send a PING to the server in *where*; return its reply, empty if there is none."""
    with socket.socket(socket.AF_UNIX) as line, contextlib.suppress(OSError):
        line.settimeout(1.0)
        line.connect(os.path.join(where, SERVER))
        line.sendall(b"PING\r\n")
        return line.recv(64)
    return b""


def _death_signal() -> Callable[[], object] | None:
    """Return a function that has the calling process killed when its parent ends; Linux only."""
    if sys.platform != "linux":
        return None
    import ctypes  # noqa: PLC0415 - needed nowhere else

    prctl = ctypes.CDLL(None).prctl
    # PR_SET_PDEATHSIG. The "parent" is the thread that forked; a supervisor has only one thread.
    return lambda: prctl(1, signal.SIGKILL, 0, 0, 0)
