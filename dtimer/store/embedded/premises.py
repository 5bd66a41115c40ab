"""
The folder of an embedded server: what lies in it, and who owns it.

==================  ==========================================================
``lock``            flocked by the keeper, and by its server, while they live
``keeper.sock``     the door: an open connection to it is a hold on the server
``server.sock``     where clients reach the server
``keeper.log``      what the keeper and the server have to say
``sockets``         only if the path is too long for sockets: where they are
``appendonlydir``   the data, if it is kept
==================  ==========================================================

Read by both sides, the users of the server and its keeper. It imports the standard
library only, since a keeper must start fast.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import time

if sys.platform != "win32":
    import fcntl

LOCK, DOOR, SERVER, LOG, POINTER = "lock", "keeper.sock", "server.sock", "keeper.log", "sockets"

#: The longest path of a socket that every platform takes: macOS has 104 bytes, with the NUL.
LONGEST = 103

#: In seconds. How long anybody here waits for another's sign of life; only something
#: broken is ever that slow.
PATIENCE = 10.0

PREFIX = "dtimer-"


def private(path: str) -> bool:
    """Return whether *path* is a folder, ours, and closed to everybody else."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    mine = found.st_uid == os.geteuid()
    return stat.S_ISDIR(found.st_mode) and mine and not found.st_mode & 0o077


def home(folder: str) -> str | None:
    """
    Return where the sockets of *folder* are: in it, unless its path is too long for that.

    Then they are in a short private folder that its pointer names. None when there is
    no pointer yet, or what it names is no longer ours alone.
    """
    if _fits(folder):
        return folder
    try:
        with open(os.path.join(folder, POINTER), "rb") as file:
            there = os.fsdecode(file.read())
    except FileNotFoundError:
        return None
    return there if os.path.isabs(there) and private(there) else None


def make_home(folder: str) -> str:
    """Return where the sockets of *folder* shall be. Only the owner of its lock may ask."""
    if where := home(folder):
        return where
    import tempfile  # noqa: PLC0415 - slow to import, and rarely needed

    where = tempfile.mkdtemp(prefix=PREFIX)
    if not _fits(where):
        os.rmdir(where)
        where = tempfile.mkdtemp(prefix=PREFIX, dir="/tmp")
    pointer = os.path.join(folder, POINTER)
    with open(f"{pointer}.new", "wb") as file:
        file.write(os.fsencode(where))
    # Whoever reads it meanwhile finds all of it, or none.
    os.replace(f"{pointer}.new", pointer)
    return where


def knock(folder: str) -> socket.socket | None:
    """Return a hold on the server of *folder*, or None when nobody keeps it."""
    where = home(folder)
    if where is None:
        return None
    hold = socket.socket(socket.AF_UNIX)
    try:
        hold.settimeout(PATIENCE)
        hold.connect(os.path.join(where, DOOR))
    except (FileNotFoundError, ConnectionError, BlockingIOError):
        hold.close()
        return None
    except BaseException:
        hold.close()
        raise
    return hold


def own(folder: str) -> int | None:
    """
    Return the lock of *folder*, or None when a living keeper has it already.

    Waits while a keeper is on its way in or out, or the orphan of one that was killed is.

    Raises:
        TimeoutError: whoever has the lock shows no sign of life.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        lock = os.open(os.path.join(folder, LOCK), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A keeper that left for good may have taken the file along. A lock on that is
            # one that nobody else can see.
            if os.fstat(lock).st_nlink:
                return lock
        except BlockingIOError:
            if hold := knock(folder):
                hold.close()
                os.close(lock)
                return None
            if time.monotonic() > deadline:
                pid = os.pread(lock, 20, 0).decode().strip() or "?"
                raise TimeoutError(
                    f"its lock is held, last by the keeper {pid}, but nobody answers"
                ) from None
            # A flock has neither a timeout nor an event to wait for.
            time.sleep(0.005)
        os.close(lock)


def remove(*paths: str) -> None:
    """Remove what is there of *paths*: files, and folders that are empty."""
    for path in paths:
        with contextlib.suppress(OSError):
            (os.rmdir if os.path.isdir(path) else os.remove)(path)


def _fits(folder: str) -> bool:
    return len(os.fsencode(os.path.join(folder, DOOR))) <= LONGEST
