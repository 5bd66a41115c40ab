"""Programs of users, run in processes of their own, and talked with through their pipes."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Self

from servers import PATIENCE

import dtimer

# What every program begins with. What is said is one write: it is whole whoever else speaks.
_PREAMBLE = f"""
import os, sys, threading
from dtimer import DTimer

PATIENCE = {PATIENCE}

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

def heard():
    return sys.stdin.readline().strip()

def timer(id="script", **options):
    return DTimer(id, sys.argv[1], ns=sys.argv[2], **options)
"""


class Script:
    """
    A program that runs, with warnings as errors.

    A context manager; nothing of the program outlives it.

    Args:
        server: Given to the program as its first argument, by its URL.
        ns: Given to it as its second.
        text: The program. It may say things, hear what it is told, and make a timer.
        flags: Of the interpreter.
    """

    def __init__(
        self, server: Any, ns: str, text: str, *, flags: tuple[str, ...] = ("-W", "error")
    ) -> None:
        program = _PREAMBLE + textwrap.dedent(text)
        root = Path(dtimer.__file__).parents[1]
        # Forking with threads is what some of these are about (3.12 and later warn).
        flags += ("-W", "ignore:This process:DeprecationWarning")
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", program, server.url, ns],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(root)},
            start_new_session=True,
        )
        self._rest = b""
        self._complaint = b""

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def hear(self, patience: float = PATIENCE) -> str:
        """Return the next line that the program says."""
        assert self._process.stdout
        deadline = time.monotonic() + patience
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            assert left > 0, f"it does not say a word; before: {self._rest!r}"
            if select.select([self._process.stdout], [], [], left)[0]:
                more = os.read(self._process.stdout.fileno(), 65_536)
                assert more, f"it has ended:\n{self.end(None)}"
                self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def tell(self, word: str = "") -> None:
        """Say a line to the program."""
        assert self._process.stdin
        self._process.stdin.write(word.encode() + b"\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send a signal to the program alone."""
        self._process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait until the program is gone, with nothing told it; return its exit status."""
        return self._process.wait(patience)

    def end(self, status: int | None = 0, patience: float = 2 * PATIENCE) -> str:
        """Wait for its end with this exit status (None: any); return what it complained of."""
        try:
            _, complaint = self._process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self.kill()
            _, complaint = self._process.communicate()
            raise AssertionError(f"it does not end:\n{complaint.decode()}") from None
        text = complaint.decode()
        assert status in (None, self._process.returncode), (self._process.returncode, text)
        return text

    def kill(self) -> None:
        """Kill the program, and its children with it."""
        try:
            os.killpg(self._process.pid, 9)
        except ProcessLookupError:
            self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.communicate()
