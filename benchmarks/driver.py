"""The tool's side of the protocol of `benchmarks.peers.driving`: run a driver and talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.environments import Home

PEERS = Path(__file__).with_name("peers")

#: Seconds to wait for an answer.
PATIENCE = 180

_RECORD = struct.Struct("<qqqq")
_UNKNOWN = -(1 << 62)


class DriverError(Exception):
    """A driver ended or did not answer in time. The message has the end of its standard error."""


class NothingHandled(Exception):
    """A contender called no handler, so a rate cannot be computed."""


@dataclass(frozen=True, slots=True)
class Handled:
    """A call of a handler for one event. All times are in µs since the epoch."""

    number: int
    at: int
    due: int
    claim_late: int | None

    @property
    def late_ms(self) -> float:
        """The time from the due moment to the handler, in ms."""
        return (self.at - self.due) / 1000


def unpack(data: bytes) -> list[Handled]:
    """Decode the records of handlers. An incomplete last record is left out."""
    whole = len(data) - len(data) % _RECORD.size
    return [
        Handled(number, at, due, None if late == _UNKNOWN else late)
        for number, at, due, late in _RECORD.iter_unpack(data[:whole])
    ]


class Journal:
    """The file in memory to which the handlers of one measurement write."""

    def __init__(self) -> None:
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        number, name = tempfile.mkstemp(prefix="bench-", dir=folder)
        os.close(number)
        self.path = Path(name)

    def __len__(self) -> int:
        return self.path.stat().st_size // _RECORD.size

    def read(self) -> list[Handled]:
        """Return all records in the order of writing."""
        return unpack(self.path.read_bytes())

    def wait(self, count: int, patience: float = PATIENCE) -> bool:
        """
        Wait until *count* handlers were called; return False if no more come.

        *patience* is the time for the next call, not for all of them. The size of the file is read
        twenty times a second, which does not disturb the measured processes.
        """
        seen, since = len(self), time.monotonic()
        while seen < count:
            if time.monotonic() - since > patience:
                return False
            time.sleep(0.05)
            if (now := len(self)) != seen:
                seen, since = now, time.monotonic()
        return True

    def close(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


class Driver:
    """A running driver: one process of a contender, and all that it starts."""

    def __init__(
        self,
        program: str,
        home: Home,
        settings: dict[str, Any],
        journal: Path,
        folder: Path = PEERS,
    ) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - until `close`
        # A session of its own, so that all its processes can be found and killed.
        self.process = subprocess.Popen(
            [*home.command, str(folder / program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, **home.variables, "BENCHMARK_LOG": str(journal)},
            cwd=folder,
            start_new_session=True,
        )
        self._buffer = b""
        self.tell(settings)

    def tell(self, what: dict[str, Any]) -> None:
        """Send a command without waiting for its answer."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # `answer` will report the end
            self.process.stdin.write(json.dumps(what).encode() + b"\n")
            self.process.stdin.flush()

    def answer(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait for the next answer."""
        assert self.process.stdout
        deadline = time.monotonic() + patience
        while b"\n" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise DriverError(f"no answer within {patience} s: {self.complaint()}")
            some = os.read(self.process.stdout.fileno(), 1 << 16)
            if not some:
                raise DriverError(f"the driver ended: {self.complaint()}")
            self._buffer += some
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.tell(what)
        return self.answer()

    def complaint(self) -> str:
        """Return the end of the driver's standard error."""
        self._said.seek(0)
        return self._said.read()[-2000:].decode(errors="replace").strip()

    def close(self) -> None:
        """Kill the driver and all processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self._said.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
