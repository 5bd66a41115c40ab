"""
Clocks that are wrong: a preloaded library tells a process, and it alone, another time.

Of the server it is the wall clock that decides, and of a node the monotonic one. The wait of
a process for a time to pass is the kernel's, and stays true.
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
_FIELDS = struct.Struct("=qqq")  # as the source says


@functools.cache
def preloaded(name: str) -> str:
    """Return the path of a library of ours, compiled once a process."""
    if shutil.which("cc") is None and os.environ.get("CI", "false") in ("", "0", "false"):
        pytest.skip("what is preloaded has to be compiled, and there is no cc")
    folder = tempfile.mkdtemp(prefix="dt-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = f"{folder}/{name}.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", path, str(_SOURCES / f"{name}.c")]
    subprocess.run(command, check=True)
    return path


class WrongClock:
    """
    The clock of the processes that are started with `env`: right, until it is set.

    A context manager; processes that have been started keep the time they had last.
    """

    def __init__(self) -> None:
        self._library = preloaded("clock")
        file, self._path = tempfile.mkstemp(prefix="dt-clock-")
        try:
            os.ftruncate(file, _FIELDS.size)
            self._fields = mmap.mmap(file, _FIELDS.size)
        finally:
            os.close(file)
        #: What the environment of such a process has to hold.
        self.env = {"LD_PRELOAD": self._library, "DTIMER_TEST_CLOCK": self._path}

    def set(self, seconds: float = 0.0, *, slow: float = 0.0) -> None:
        """
        Set it from here on.

        Args:
            seconds: By which the wall clock is ahead; negative when it is behind.
            slow: The part of each second that passes unseen on all clocks, the monotonic
                one included; negative for a clock that runs fast.
        """
        fields = (round(seconds * 1e9), round(slow * 1e9), time.monotonic_ns())
        _FIELDS.pack_into(self._fields, 0, *fields)

    def close(self) -> None:
        """Have nothing left of it."""
        self._fields.close()
        Path(self._path).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
