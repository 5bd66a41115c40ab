"""Run programs as users would write them, in separate processes, and talk to them by pipes."""

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

# The head of every program. A line is one write, so other writers cannot split it.
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
    A running program, with warnings as errors.

    A context manager. On exit the program and its children are killed.

    Args:
        server: The server whose URL is the program's first argument.
        ns: The program's second argument.
        text: The program. It may call ``say``, ``heard`` and ``timer``.
        flags: Flags of the interpreter.
        root: The folder of the package that the program imports; None for the tested one.
    """

    def __init__(
        self,
        server: Any,
        ns: str,
        text: str,
        *,
        flags: tuple[str, ...] = ("-W", "error"),
        root: Path | None = None,
    ) -> None:
        program = _PREAMBLE + textwrap.dedent(text)
        # The interpreter looks for modules in the working directory first.
        folder, root = root, root or Path(dtimer.__file__).parents[1]
        # Some of these programs fork with threads on purpose; Python 3.12 and later warn.
        flags += ("-W", "ignore:This process:DeprecationWarning")
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", program, server.url, ns],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(root)},
            cwd=folder,
            start_new_session=True,
        )
        self._rest = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self, patience: float = PATIENCE) -> str:
        """Return the next line of the program's output."""
        assert self._process.stdout
        deadline = time.monotonic() + patience
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            assert left > 0, f"the program prints nothing; so far: {self._rest!r}"
            if select.select([self._process.stdout], [], [], left)[0]:
                more = os.read(self._process.stdout.fileno(), 65_536)
                assert more, f"the program has ended:\n{self.end(None)}"
                self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def tell(self, word: str = "") -> None:
        """Send a line to the program's standard input."""
        assert self._process.stdin
        self._process.stdin.write(word.encode() + b"\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send a signal to the program, not to its children."""
        self._process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait until the program ends by itself; return its exit status."""
        return self._process.wait(patience)

    def end(self, status: int | None = 0, patience: float = 2 * PATIENCE) -> str:
        """
        Close standard input and wait for the end of the program; return its standard error.

        Args:
            status: The expected exit status; None accepts any.
            patience: Seconds to wait.
        """
        try:
            _, errors = self._process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            self.kill()
            _, errors = self._process.communicate()
            raise AssertionError(f"the program does not end:\n{errors.decode()}") from None
        text = errors.decode()
        assert status in (None, self._process.returncode), (self._process.returncode, text)
        return text

    def kill(self) -> None:
        try:
            os.killpg(self._process.pid, 9)
        except ProcessLookupError:
            self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.communicate()
