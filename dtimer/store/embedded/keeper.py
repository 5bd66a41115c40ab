"""
The keeper: a small process that owns one server for as long as somebody holds it.

Rule 1: a hold is an open connection to ``keeper.sock`` and nothing else. The kernel
closes it however its owner ends, so even a user that is killed cannot forget to leave.

Rule 2: the folder belongs to whoever has the flock on ``lock``, and nobody touches
anything in it before that.

Rule 3: the server has one parent, and does not outlive it (see ``process``).

Rule 4: no imports but its siblings and the lighter part of the standard library (pathlib
takes as long as all the rest). It is started without ``dtimer/__init__``, see ``launch``,
and so is up in a few hundredths of a second.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import time

from dtimer.store.embedded.premises import (
    DOOR,
    LOCK,
    LOG,
    PATIENCE,
    POINTER,
    SERVER,
    make_home,
    own,
    remove,
)
from dtimer.store.embedded.process import Process, arguments, ask, say

#: A server that ends this often in a row, each time within so many seconds, stays down.
TOO_OFTEN, TOO_YOUNG = 5, 5.0

#: In bytes; then it starts anew.
LONGEST_LOG = 1024 * 1024


class Keeper:
    """Counts the holds; starts the server, again if it ends, and ends it with the last."""

    def __init__(self, door: socket.socket, server: Process, where: str, kind: str) -> None:
        self._door = door
        self._server = server
        self._where = where
        self._ready = False
        self._greeting = f"ready {kind}\n"
        #: The holds, and whether each was told that the server is ready.
        self._holds: dict[socket.socket, bool] = {}
        # Whoever had us started needs a moment to come in.
        self._alone_until = time.monotonic() + PATIENCE
        self._bell, self._ring = socket.socketpair()
        self._select = selectors.DefaultSelector()
        for ear in (door, self._bell):
            self._select.register(ear, selectors.EVENT_READ)
        for end in (self._bell, self._ring):
            end.setblocking(False)
        # A signal only wakes us, and none but SIGKILL ends a keeper. When a service is
        # stopped all its processes are signalled, and they still need a server to leave.
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._ring.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Keep the server until nobody holds it, or it cannot be kept."""
        young = 0
        while True:
            log, born = os.lseek(2, 0, os.SEEK_END), time.monotonic()
            self._server.start(s.fileno() for s in (self._door, *self._holds))
            trouble = self._until_ready()
            while self._ready and (self._holds or time.monotonic() < self._alone_until):
                self._turn(60.0 if self._holds else 1.0)
            ended = not self._server.pid
            self._stop(0 if trouble else PATIENCE)
            young = young + 1 if ended and time.monotonic() < born + TOO_YOUNG else 0
            if young == TOO_OFTEN:
                trouble = f"the server ended {young} times within {TOO_YOUNG:g} s of its start"
            if trouble:
                say(trouble)
                return self._tell(f"failed {trouble}{_tail(log)}")
            # Whoever came in while the server went down finds it started again.
            self._turn(0)
            if not self._holds:
                return None

    def _turn(self, timeout: float) -> None:
        """Wait for one thing to happen, at most *timeout* seconds, and take note of it."""
        for key, _ in self._select.select(timeout):
            if key.fileobj is self._door:
                self._welcome()
            elif key.fileobj is self._bell:
                self._bell.recv(64)
            elif isinstance(key.fileobj, socket.socket):
                self._hear(key.fileobj)
        if self._server.has_ended():
            self._ready = False
        if os.fstat(2).st_size > LONGEST_LOG:
            os.ftruncate(2, 0)

    def _welcome(self) -> None:
        while True:
            try:
                hold, _ = self._door.accept()
            except BlockingIOError:
                break
            except OSError as e:
                # Out of descriptors. They stay at the door, and we do not spin.
                say(f"cannot let anybody in: {e}")
                time.sleep(0.1)
                break
            hold.setblocking(False)
            self._holds[hold] = False
            self._alone_until = 0.0
            self._select.register(hold, selectors.EVENT_READ)
        if self._ready:
            self._tell(self._greeting)

    def _hear(self, hold: socket.socket) -> None:
        """Let go of *hold* if its other end was closed. It has nothing else to say."""
        with contextlib.suppress(ConnectionError):
            if hold.recv(64):
                return
        self._select.unregister(hold)
        del self._holds[hold]
        hold.close()

    def _tell(self, text: str) -> None:
        """Send *text* to those who still wait for the server."""
        for hold, told in self._holds.items():
            if not told:
                self._holds[hold] = self._ready
                # Whoever left meanwhile is about to be heard to have left.
                with contextlib.suppress(OSError):
                    hold.send(text.encode(errors="replace"))

    def _until_ready(self) -> str:
        """Wait until the server answers. Return what went wrong, or nothing."""
        now = time.monotonic()
        late, still_loading = now + PATIENCE, now + 1.0
        while now < late:
            # The end of the server wakes us at once; the socket, when it is there, does not.
            self._turn(0.002)
            if not self._server.pid:
                return "the server did not start"
            answer = ask(self._where)
            now = time.monotonic()
            if answer.startswith(b"+PONG"):
                self._ready = True
                self._tell(self._greeting)
                return ""
            if answer:
                late = now + PATIENCE
                # However long the data take to load, nobody gives up on them.
                if now > still_loading:
                    still_loading = now + 1.0
                    self._tell("loading\n")
        return "the server does not answer"

    def _stop(self, patience: float) -> None:
        self._ready = False
        deadline = time.monotonic() + patience
        self._server.terminate()
        while self._server.pid and (left := deadline - time.monotonic()) > 0:
            self._turn(left)
        self._server.kill()


def _tail(since: int) -> str:
    """Return the last of what the log has been told from *since* on."""
    end = os.fstat(2).st_size
    since = max(since, end - 2000)
    text = os.pread(2, end - since, since).decode(errors="replace")
    return f"; the end of its log:\n{text}" if text else ""


def main(folder: str, kind: str, binary: str, tied: str = "tied") -> None:
    """
    Keep a server in *folder*, unless somebody does already.

    Returns, or exits, as soon as there is a door to knock at, in the process that was
    started; its child is the keeper. So nobody has to wait for the end of a keeper.
    """
    os.umask(0o077)
    try:
        lock = own(folder)
        if lock is None:
            return
        where = make_home(folder)
        path = os.path.join(where, DOOR)
        remove(path, os.path.join(where, SERVER))  # of a keeper that was killed
        door = socket.socket(socket.AF_UNIX)
        door.setblocking(False)
        door.bind(path)
        door.listen(128)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        log = os.open(os.path.join(folder, LOG), flags, 0o600)
    except FileNotFoundError:
        return  # the folder was removed under our feet; whoever wanted it makes it again
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

    server = Process(arguments(binary, kind, folder, where), lock, leash=tied != "tied")
    Keeper(door, server, where, kind).run()

    # The folder may have been removed behind our back, and be another keeper's by now.
    try:
        if os.stat(path).st_ino != ours:
            return
    except FileNotFoundError:
        return
    remove(path)
    if where != folder:
        remove(os.path.join(folder, POINTER), os.path.join(where, SERVER), where)
    if kind == "memory":
        # The lock last: without it the folder may have another keeper at once.
        remove(*(os.path.join(folder, name) for name in (SERVER, "dump.rdb", LOG, LOCK)), folder)
