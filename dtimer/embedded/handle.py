"""
A process's handle on an embedded server: a connection that keeps the server running.

A process has at most one handle on a folder, however often it attaches. The handle is a plain
descriptor that is only closed and never shut down. A forked child has a copy of it, and the server
runs until the last copy is closed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dtimer.embedded.binary import find_binary, missing, supported
from dtimer.embedded.layout import RESPONSE_TIMEOUT, SERVER, connect, socket_folder
from dtimer.embedded.location import make_private
from dtimer.errors import StoreError


class Handle:
    """The handle of this process on the server of one folder, and its users in this process."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind
        self.users: set[object] = set()
        self._descriptor = -1

    @property
    def address(self) -> str:
        """The path of the server's socket, for clients."""
        return str(Path(socket_folder(str(self.folder)) or self.folder) / SERVER)

    def is_alive(self) -> bool:
        """Return True if the supervisor still has this handle. Costs one system call."""
        if self._descriptor < 0:
            return False
        # The supervisor sends nothing after its greeting, so anything to read is the end of the
        # connection.
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return not poll.poll(0)

    def acquire(self) -> None:
        """
        Connect to the supervisor, starting it if necessary, and return once the server answers.

        Raises:
            StoreError: the server could not be started. The text says why.
        """
        self.close()
        deadline = time.monotonic() + 2 * RESPONSE_TIMEOUT
        while time.monotonic() < deadline:
            make_private(self.folder)
            try:
                handle = connect(str(self.folder))
                if handle is None:
                    self._launch()
                    continue
                with handle:
                    if self._read_greeting(handle):
                        # A signal handler that interrupted this call may have connected, too.
                        self.close()
                        self._descriptor = handle.detach()
                        return
            except OSError as e:
                raise self.error(f"{e.strerror or e}") from e
        raise self.error("each supervisor ended before the server answered")

    def close(self) -> None:
        """Close this process's copy of the handle. Copies in other processes stay open."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _read_greeting(self, handle: socket.socket) -> bool:
        """
        Wait until the supervisor reports that the server is ready.

        Returns:
            False if the supervisor ended instead, because its last user had just left.

        Raises:
            StoreError: the supervisor reports a failure, or does not answer.
        """
        # Longer than the supervisor ever takes to report anything, including a failure.
        handle.settimeout(1.5 * RESPONSE_TIMEOUT)
        heard = b""
        while True:
            try:
                data = handle.recv(4096)
            except ConnectionError:
                data = b""
            except TimeoutError as e:
                raise self.error("its supervisor does not answer") from e
            heard = (heard + data).replace(b"loading\n", b"")
            if heard.startswith(b"ready") and heard.endswith(b"\n"):
                kind = heard.decode().split()[1]
                if kind != self.kind:
                    raise self.error(f"the folder already has a server of the other kind, {kind}")
                return True
            if not data and heard:
                raise self.error(heard.decode(errors="replace").removeprefix("failed "))
            if not data:
                return False

    def _launch(self) -> None:
        """Start a supervisor, and wait until it accepts connections."""
        binary = find_binary() if supported() else None
        if binary is None:
            raise missing()
        launch = Path(__file__).with_name("launch.py")
        options = [str(self.folder), self.kind, str(binary)]
        command = [_interpreter(), "-I", "-S", str(launch), *options]
        try:
            # In a session of its own, so that Ctrl-C in the terminal does not reach the server.
            ran = subprocess.run(  # noqa: S603 - no argument comes from outside
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                timeout=2 * RESPONSE_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as e:
            raise self.error("its supervisor does not start") from e
        # Not the exit status, which a process that ignores SIGCHLD does not receive.
        if ran.stderr:
            raise self.error(ran.stderr.decode(errors="replace").strip())

    def error(self, why: str) -> StoreError:
        """Return the error for a server that could not be started, with the reason."""
        return StoreError(f"no embedded server in {str(self.folder)!r}: {why}")


class Registry:
    """All handles of this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._handles: dict[Path, Handle] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def acquire(self, folder: Path, kind: str, user: object) -> Handle:
        """Return the handle on *folder* with *user* added to its users. The server is running."""
        with self._locked():
            handle = self._handles.setdefault(folder, Handle(folder, kind))
            if handle.kind != kind:
                raise handle.error(
                    f"the folder already has a server of the other kind, {handle.kind}"
                )
            handle.users.add(user)
            try:
                if not handle.is_alive():
                    handle.acquire()
            except BaseException:
                self._remove_user(handle, user)
                raise
            return handle

    def renew(self, handle: Handle) -> bool:
        """Connect again if the supervisor has ended. Return True if it had ended."""
        if handle.is_alive():
            return False
        with self._locked():
            if handle.is_alive():
                return False
            handle.acquire()
            return True

    def release(self, handle: Handle, user: object) -> None:
        """Remove *user*, and close the handle with its last user. Further calls do nothing."""
        with self._locked():
            self._remove_user(handle, user)

    def _remove_user(self, handle: Handle, user: object) -> None:
        handle.users.discard(user)
        if not handle.users and self._handles.get(handle.folder) is handle:
            handle.close()
            self._handles.pop(handle.folder, None)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """
        Acquire the lock, which is reentrant, or raise a `StoreError` after a while.

        Waiting without a limit could deadlock: the thread that has the lock may have been
        interrupted by a signal handler that waits for the calling thread.
        """
        if not self._lock.acquire(timeout=4 * RESPONSE_TIMEOUT):
            raise StoreError("no embedded server: another thread takes too long to start one")
        try:
            yield
        finally:
            self._lock.release()

    def _after_fork(self) -> None:
        # Another thread of the parent may have had the lock. This process has no such thread, so
        # the lock would never be released.
        self._lock = threading.RLock()


def _interpreter() -> str:
    """Return a Python interpreter. sys.executable may be another program, such as uwsgi."""
    bins = (Path(prefix, "bin", "python3") for prefix in (sys.exec_prefix, sys.base_exec_prefix))
    for path in (Path(sys.executable or "."), *bins):
        if path.name.startswith(("python", "pypy")) and os.access(path, os.X_OK):
            return str(path)
    if found := shutil.which("python3"):
        return found
    raise StoreError("an embedded server needs a Python interpreter to start, and none was found")
