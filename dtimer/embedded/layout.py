"""
The folder of an embedded server: its files, and the lock that gives it to one supervisor.

===================  ===========================================================================
``lock``             the supervisor and its server have a lock on it (flock) while they run
``supervisor.sock``  the supervisor's socket: each open connection to it keeps the server running
``server.sock``      the server's socket, for clients
``supervisor.log``   the log of the supervisor and of the server
``sockets``          the path of the folder with the sockets, if that of this folder is too long
``appendonlydir``    the data, if the server keeps them
===================  ===========================================================================

The users of a server and its supervisor both import this module. It imports only the standard
library, because a supervisor must start fast.
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

LOCK = "lock"
SOCKET = "supervisor.sock"
SERVER = "server.sock"
LOG = "supervisor.log"
POINTER = "sockets"

#: The longest path of a socket that all platforms accept. macOS has 104 bytes, including the NUL.
LONGEST = 103

#: How many seconds a process waits for another one to respond. Only a broken process is that slow.
RESPONSE_TIMEOUT = 10.0

PREFIX = "dtimer-"


def private(path: str) -> bool:
    """Return True if *path* is a folder of this user that no other user can access."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    mine = found.st_uid == os.geteuid()
    return stat.S_ISDIR(found.st_mode) and mine and not found.st_mode & 0o077


def socket_folder(folder: str) -> str | None:
    """
    Return the folder with the sockets of *folder*, which is usually *folder* itself.

    If the path of *folder* is too long for sockets, they are in a private folder with a short path,
    which the file ``sockets`` names.

    Returns:
        None if that file does not exist yet, or names a folder that is not private.
    """
    if _fits(folder):
        return folder
    try:
        with open(os.path.join(folder, POINTER), "rb") as file:
            there = os.fsdecode(file.read())
    except FileNotFoundError:
        return None
    return there if os.path.isabs(there) and private(there) else None


def make_socket_folder(folder: str) -> str:
    """Return the folder for the sockets of *folder*, and make it. The caller must have the lock."""
    if where := socket_folder(folder):
        return where
    import tempfile  # noqa: PLC0415 - slow to import, and rarely needed

    where = tempfile.mkdtemp(prefix=PREFIX)
    if not _fits(where):
        os.rmdir(where)
        where = tempfile.mkdtemp(prefix=PREFIX, dir="/tmp")
    pointer = os.path.join(folder, POINTER)
    with open(f"{pointer}.new", "wb") as file:
        file.write(os.fsencode(where))
    # Replace the file in one step, so that no reader gets half a path.
    os.replace(f"{pointer}.new", pointer)
    return where


def connect(folder: str) -> socket.socket | None:
    """Return a connection to the supervisor of *folder*, or None if it has no supervisor."""
    where = socket_folder(folder)
    if where is None:
        return None
    handle = socket.socket(socket.AF_UNIX)
    try:
        handle.settimeout(RESPONSE_TIMEOUT)
        handle.connect(os.path.join(where, SOCKET))
    except (FileNotFoundError, ConnectionError, BlockingIOError):
        handle.close()
        return None
    except BaseException:
        handle.close()
        raise
    return handle


def acquire(folder: str) -> int | None:
    """
    Acquire the lock of *folder*, and return its descriptor.

    Waits while another supervisor starts or ends, or while the server of a killed supervisor ends.

    Returns:
        None if a running supervisor has the lock.

    Raises:
        TimeoutError: another process has the lock, but does not accept connections.
    """
    deadline = time.monotonic() + RESPONSE_TIMEOUT
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        lock = os.open(os.path.join(folder, LOCK), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A supervisor that has just ended may have removed the file. Other processes would
            # not see a lock on a removed file, so try again.
            if os.fstat(lock).st_nlink:
                return lock
        except BlockingIOError:
            if handle := connect(folder):
                handle.close()
                os.close(lock)
                return None
            if time.monotonic() > deadline:
                pid = os.pread(lock, 20, 0).decode().strip() or "?"
                raise TimeoutError(
                    f"its lock is held, last by the supervisor {pid}, which does not answer"
                ) from None
            # Polling, because flock has no timeout.
            time.sleep(0.005)
        os.close(lock)


def remove(*paths: str) -> None:
    """Remove those of *paths* that exist: files, and empty folders."""
    for path in paths:
        with contextlib.suppress(OSError):
            (os.rmdir if os.path.isdir(path) else os.remove)(path)


def _fits(folder: str) -> bool:
    return len(os.fsencode(os.path.join(folder, SOCKET))) <= LONGEST
