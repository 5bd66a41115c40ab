"""
The supervisor: a small process that runs one server as long as any process uses it.

Rule 1: a handle is an open connection to ``supervisor.sock``, and nothing else. The kernel closes
the connection when the user's process ends, even if that is killed.

Rule 2: the folder belongs to the process that has the lock on the file ``lock``. Only that process
may change other files in it.

Rule 3: the server has one parent, the supervisor, and does not outlive it (see
`dtimer.embedded.server`).

Rule 4: a supervisor imports only its siblings and the faster modules of the standard library;
pathlib alone would take as long as all of them. It is started without ``dtimer/__init__`` (see
`dtimer.embedded.launch`). So it starts in a few hundredths of a second.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time

from dtimer.embedded.layout import (
    LOCK,
    LOG,
    POINTER,
    RESPONSE_TIMEOUT,
    SERVER,
    SOCKET,
    acquire,
    make_socket_folder,
    remove,
)
from dtimer.embedded.server import ServerProcess, arguments, ask, say

#: A server that ends TOO_OFTEN times in a row, each time within TOO_YOUNG seconds of its start, is
#: not restarted.
TOO_OFTEN, TOO_YOUNG = 5, 5.0

#: The limit for the log, in bytes. A longer log is truncated to zero.
LONGEST_LOG = 1024 * 1024


class Supervisor:
    """Runs the server while there are handles, and restarts it if it ends."""

    def __init__(
        self, socket_file: socket.socket, server: ServerProcess, where: str, kind: str
    ) -> None:
        self._socket = socket_file
        self._server = server
        self._where = where
        self._ready = False
        self._greeting = f"ready {kind}\n"
        #: The handles. The value is True once the handle was sent the greeting.
        self._handles: dict[socket.socket, bool] = {}
        # Give the process that started this supervisor time to connect.
        self._alone_until = time.monotonic() + RESPONSE_TIMEOUT
        self._signal_reader, self._signal_writer = socket.socketpair()
        self._select = selectors.DefaultSelector()
        for source in (socket_file, self._signal_reader):
            self._select.register(source, selectors.EVENT_READ)
        for end in (self._signal_reader, self._signal_writer):
            end.setblocking(False)
        # A signal only wakes the supervisor; only SIGKILL ends it. When a service is stopped, all
        # of its processes get a signal, and still need the server to leave the namespace.
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._signal_writer.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Run the server until the last handle is closed, or the server cannot be started."""
        quick_ends = 0
        while True:
            log, started_at = os.lseek(2, 0, os.SEEK_END), time.monotonic()
            self._server.start(s.fileno() for s in (self._socket, *self._handles))
            trouble = self._until_ready()
            while self._ready and (self._handles or time.monotonic() < self._alone_until):
                self._run_once(60.0 if self._handles else 1.0)
            ended = not self._server.pid
            self._stop(0 if trouble else RESPONSE_TIMEOUT)
            ended_early = ended and time.monotonic() < started_at + TOO_YOUNG
            quick_ends = quick_ends + 1 if ended_early else 0
            if quick_ends == TOO_OFTEN:
                trouble = f"the server ended {quick_ends} times within {TOO_YOUNG:g} s of its start"
            if trouble:
                say(trouble)
                return self._send(f"failed {trouble}{_tail(log)}")
            # If a process has connected while the server ended, start the server again.
            self._run_once(0)
            if not self._handles:
                return None

    def _run_once(self, timeout: float) -> None:
        """Wait up to *timeout* seconds for a connection, a signal or the end of a handle."""
        for key, _ in self._select.select(timeout):
            if key.fileobj is self._socket:
                self._accept()
            elif key.fileobj is self._signal_reader:
                self._signal_reader.recv(64)
            elif isinstance(key.fileobj, socket.socket):
                self._receive(key.fileobj)
        if self._server.has_ended():
            self._ready = False
        if os.fstat(2).st_size > LONGEST_LOG:
            os.ftruncate(2, 0)

    def _accept(self) -> None:
        while True:
            try:
                handle, _ = self._socket.accept()
            except BlockingIOError:
                break
            except OSError as e:
                # Out of descriptors. The connections stay in the backlog; sleep, or the loop spins.
                say(f"cannot accept connections: {e}")
                time.sleep(0.1)
                break
            handle.setblocking(False)
            self._handles[handle] = False
            self._alone_until = 0.0
            self._select.register(handle, selectors.EVENT_READ)
        if self._ready:
            self._send(self._greeting)

    def _receive(self, handle: socket.socket) -> None:
        """Remove *handle* if its other end was closed. Ignore anything that it sends."""
        with contextlib.suppress(ConnectionError):
            if handle.recv(64):
                return
        self._select.unregister(handle)
        del self._handles[handle]
        handle.close()

    def _send(self, text: str) -> None:
        """Send *text* to each handle that still waits for the server."""
        for handle, greeted in self._handles.items():
            if not greeted:
                self._handles[handle] = self._ready
                # After an error, the next read finds that the other end was closed.
                with contextlib.suppress(OSError):
                    handle.send(text.encode(errors="replace"))

    def _until_ready(self) -> str:
        """Wait until the server answers. Return what went wrong, or an empty text."""
        now = time.monotonic()
        late, still_loading = now + RESPONSE_TIMEOUT, now + 1.0
        while now < late:
            # The end of the server wakes this call at once; the creation of its socket does not.
            self._run_once(0.002)
            if not self._server.pid:
                return "the server did not start"
            answer = ask(self._where)
            now = time.monotonic()
            if answer.startswith(b"+PONG"):
                self._ready = True
                self._send(self._greeting)
                return ""
            if answer:
                late = now + RESPONSE_TIMEOUT
                # Loading the data may take any time. Report it, so that no process gives up.
                if now > still_loading:
                    still_loading = now + 1.0
                    self._send("loading\n")
        return "the server does not answer"

    def _stop(self, grace: float) -> None:
        self._ready = False
        deadline = time.monotonic() + grace
        self._server.terminate()
        while self._server.pid and (left := deadline - time.monotonic()) > 0:
            self._run_once(left)
        self._server.kill()


def _tail(since: int) -> str:
    """Return the end of the log, at most 2000 bytes, beginning at *since* at the earliest."""
    end = os.fstat(2).st_size
    since = max(since, end - 2000)
    text = os.pread(2, end - since, since).decode(errors="replace")
    return f"; the end of its log:\n{text}" if text else ""


def main(folder: str, kind: str, binary: str, guard: str = "kernel") -> None:
    """
    Start a supervisor for *folder*, unless it already has one.

    The supervisor is a child of the started process. That process returns or exits as soon as the
    supervisor's socket accepts connections, so its caller never waits for the supervisor to end.

    Args:
        folder: The folder of the server.
        kind: ``memory`` or ``disk``.
        binary: The path of the server program.
        guard: How the server is killed if the supervisor is killed: by the ``kernel`` where that is
            possible, or by a ``watchdog``.
    """
    os.umask(0o077)
    try:
        lock = acquire(folder)
        if lock is None:
            return
        where = make_socket_folder(folder)
        path = os.path.join(where, SOCKET)
        remove(path, os.path.join(where, SERVER))  # left by a supervisor that was killed
        socket_file = socket.socket(socket.AF_UNIX)
        socket_file.setblocking(False)
        socket_file.bind(path)
        socket_file.listen(128)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        log = os.open(os.path.join(folder, LOG), flags, 0o600)
    except FileNotFoundError:
        return  # the folder was removed in the meantime; the caller makes it again
    except OSError as e:
        sys.exit(str(e))
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    ours = os.stat(path).st_ino

    command = arguments(binary, kind, folder, where)
    server = ServerProcess(command, lock, watchdog=guard == "watchdog")
    Supervisor(socket_file, server, where, kind).run()

    # The folder may have been removed in the meantime, and now belong to another supervisor.
    try:
        if os.stat(path).st_ino != ours:
            return
    except FileNotFoundError:
        return
    remove(path)
    if where != folder:
        remove(os.path.join(folder, POINTER), os.path.join(where, SERVER), where)
    if kind == "memory":
        # Remove the lock last: without it, another supervisor could acquire the folder at once.
        remove(*(os.path.join(folder, name) for name in (SERVER, "dump.rdb", LOG, LOCK)), folder)
