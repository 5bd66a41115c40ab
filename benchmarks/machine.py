"""The machine and its processes, as the kernel describes them."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.environments import ENVIRONMENTS, ROOT


def about() -> dict[str, Any]:
    """Return the facts about this machine and this checkout."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory MB": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 10**6,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "node": said_by("node", "--version"),
        "commit": said_by("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
    }


def versions(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return all packages of these environments."""
    return {name: ENVIRONMENTS[name].installed() for name in sorted(set(names))}


def said_by(*command: str) -> str:
    """Return the output of a program, or ``none`` if it is missing or fails."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "none"


def load() -> float:
    """Return the load average of the last minute: how many threads wanted a core."""
    return os.getloadavg()[0]


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "?"


def _stat(pid: int) -> list[str]:
    # The fields follow the name in parentheses, which may contain any character.
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()


def members(session: int) -> list[int]:
    """Return the processes of a session: a driver and all that it has started."""
    found = []
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        with contextlib.suppress(OSError, IndexError):
            if int(_stat(pid)[3]) == session:
                found.append(pid)
    return found


def processor_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time of these processes and of their children that ended."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(map(int, _stat(pid)[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mb(pids: Iterable[int]) -> float:
    """Return the resident memory of these processes. Shared memory is counted for each."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text("utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
