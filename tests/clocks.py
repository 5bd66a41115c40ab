"""
Make the clock of a process wrong: a preloaded library reports another time to that process only.

The server decides by its wall clock, a node by its monotonic clock. Waits are timed by the kernel,
so they keep their true length.
"""

from __future__ import annotations

import atexit
import functools
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import pytest

_SOURCES = Path(__file__).parent / "chaos" / "shim"
_FIELDS = struct.Struct("=qqq")  # the layout in clock.c


@functools.cache
def preloaded(name: str) -> str:
    """Return the path of a library of the test suite, compiled once a process."""
    if shutil.which("cc") is None and os.environ.get("CI", "false") in ("", "0", "false"):
        pytest.skip("the preloaded library must be compiled, and there is no cc")
    folder = tempfile.mkdtemp(prefix="dt-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = f"{folder}/{name}.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", path, str(_SOURCES / f"{name}.c")]
    subprocess.run(command, check=True)
    return path


class WrongClock:
    """
    The clock of all processes started with `env`: right, until it is set.

    A context manager. Processes that outlive it keep the offset that was set last.
    """

    def __init__(self) -> None:
        self._library = preloaded("clock")
        file, self._path = tempfile.mkstemp(prefix="dt-clock-")
        try:
            os.ftruncate(file, _FIELDS.size)
            self._fields = mmap.mmap(file, _FIELDS.size)
        finally:
            os.close(file)
        #: Variables for the environment of such a process.
        self.env = {"LD_PRELOAD": self._library, "DTIMER_TEST_CLOCK": self._path}

    def set(self, seconds: float = 0.0, *, slow: float = 0.0) -> None:
        """
        Set the clock, from now on.

        Args:
            seconds: How far the wall clock is ahead; negative if it is behind.
            slow: By how many seconds each clock, also the monotonic one, falls behind in a second;
                negative for clocks that run fast.
        """
        fields = (round(seconds * 1e9), round(slow * 1e9), time.monotonic_ns())
        _FIELDS.pack_into(self._fields, 0, *fields)

    def close(self) -> None:
        self._fields.close()
        Path(self._path).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
