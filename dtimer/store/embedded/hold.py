"""
Holds: how a process takes part in a server, and has one started if there is none.

A process has at most one hold on a folder, however often it attaches. The hold is a
bare descriptor, and it is never shut down, only closed: a forked child has a copy of it,
and the server goes on until the last copy is closed.
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

from dtimer.errors import StoreError
from dtimer.store.embedded.binary import find_binary, missing, supported
from dtimer.store.embedded.folder import make_private
from dtimer.store.embedded.premises import PATIENCE, SERVER, home, knock


class Hold:
    """The hold of this process on the server of one folder, and who needs it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind
        self.users: set[object] = set()
        self._descriptor = -1

    @property
    def address(self) -> str:
        """Where clients reach the server: the path of its socket."""
        return str(Path(home(str(self.folder)) or self.folder) / SERVER)

    def is_alive(self) -> bool:
        """Return whether the keeper still knows of us. Costs a system call."""
        if self._descriptor < 0:
            return False
        # Once it has said that it is ready a keeper says nothing more, so whatever there
        # is to read is its end.
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return not poll.poll(0)

    def take(self) -> None:
        """
        Hold the server, and return when it answers. Starts it if nobody did.

        Raises:
            StoreError: there is no server to be had, and why.
        """
        self.drop()
        deadline = time.monotonic() + 2 * PATIENCE
        while time.monotonic() < deadline:
            make_private(self.folder)
            try:
                hold = knock(str(self.folder))
                if hold is None:
                    self._launch()
                    continue
                with hold:
                    if self._hear_out(hold):
                        # A signal handler that interrupted this may have taken hold, too.
                        self.drop()
                        self._descriptor = hold.detach()
                        return
            except OSError as e:
                raise self.error(f"{e.strerror or e}") from e
        raise self.error("its keepers come and go, and none of them stays")

    def drop(self) -> None:
        """Let go of the server. Copies of the hold in other processes remain."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _hear_out(self, hold: socket.socket) -> bool:
        """Wait for the keeper's word. False when it left instead, as the last before us did."""
        # More than a keeper ever needs for a word, be it that there is no server to be had.
        hold.settimeout(1.5 * PATIENCE)
        heard = b""
        while True:
            try:
                data = hold.recv(4096)
            except ConnectionError:
                data = b""
            except TimeoutError as e:
                raise self.error("its keeper does not answer") from e
            heard = (heard + data).replace(b"loading\n", b"")
            if heard.startswith(b"ready") and heard.endswith(b"\n"):
                kind = heard.decode().split()[1]
                if kind != self.kind:
                    raise self.error(f"there is one of the other kind, {kind}")
                return True
            if not data and heard:
                raise self.error(heard.decode(errors="replace").removeprefix("failed "))
            if not data:
                return False

    def _launch(self) -> None:
        """Start a keeper, and wait until there is a door to knock at."""
        binary = find_binary() if supported() else None
        if binary is None:
            raise missing()
        launch = Path(__file__).with_name("launch.py")
        options = [str(self.folder), self.kind, str(binary)]
        command = [_interpreter(), "-I", "-S", str(launch), *options]
        try:
            # A session of its own: Ctrl-C in the terminal is for us, not for the server.
            ran = subprocess.run(  # noqa: S603 - each word of it is ours
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                timeout=2 * PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired as e:
            raise self.error("its keeper does not start") from e
        # Not the exit status: a process that ignores SIGCHLD never learns it.
        if ran.stderr:
            raise self.error(ran.stderr.decode(errors="replace").strip())

    def error(self, why: str) -> StoreError:
        """Return the error that says why there is no server."""
        return StoreError(f"no embedded server in {str(self.folder)!r}: {why}")


class Registry:
    """Every hold of this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holds: dict[Path, Hold] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def take(self, folder: Path, kind: str, user: object) -> Hold:
        """Return the hold on *folder*, its server up, with *user* among those who need it."""
        with self._locked():
            hold = self._holds.setdefault(folder, Hold(folder, kind))
            if hold.kind != kind:
                raise hold.error(f"there is one of the other kind, {hold.kind}")
            hold.users.add(user)
            try:
                if not hold.is_alive():
                    hold.take()
            except BaseException:
                self._strike_out(hold, user)
                raise
            return hold

    def renew(self, hold: Hold) -> bool:
        """Hold the server again if its keeper is gone; return whether it was."""
        if hold.is_alive():
            return False
        with self._locked():
            if hold.is_alive():
                return False
            hold.take()
            return True

    def release(self, hold: Hold, user: object) -> None:
        """Strike out *user*, and let go with the last of them. Idempotent."""
        with self._locked():
            self._strike_out(hold, user)

    def _strike_out(self, hold: Hold, user: object) -> None:
        hold.users.discard(user)
        if not hold.users and self._holds.get(hold.folder) is hold:
            hold.drop()
            self._holds.pop(hold.folder, None)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """
        Take the lock, which is reentrant, or raise a `StoreError`.

        Not for ever: a signal handler may have interrupted the thread that has it, and wait for
        the one that calls.
        """
        if not self._lock.acquire(timeout=4 * PATIENCE):
            raise StoreError("no embedded server: another thread starts one, and it takes too long")
        try:
            yield
        finally:
            self._lock.release()

    def _after_fork(self) -> None:
        # Another thread may have had it when we were forked, and there are none here.
        self._lock = threading.RLock()


def _interpreter() -> str:
    """Return the Python to run a keeper with. In uWSGI, for one, sys.executable is uwsgi."""
    bins = (Path(prefix, "bin", "python3") for prefix in (sys.exec_prefix, sys.base_exec_prefix))
    for path in (Path(sys.executable or "."), *bins):
        if path.name.startswith(("python", "pypy")) and os.access(path, os.X_OK):
            return str(path)
    if found := shutil.which("python3"):
        return found
    raise StoreError("an embedded server needs a Python interpreter to start, and none was found")
