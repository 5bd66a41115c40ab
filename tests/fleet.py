"""Run nodes in separate processes, and read their reports. Module `node` is the other side."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import node
from servers import LIMIT, PATIENCE

import dtimer

#: Seconds for processes to start; a test may start many at a time.
_STARTING = 2 * LIMIT // 3


@dataclass(frozen=True)
class Report:
    """A report of a node: the node's name, the kind of report, and the other fields by name."""

    node: str
    what: str
    pid: int
    more: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.more[name]
        except KeyError:
            raise AttributeError(name) from None


class Fleet:
    """
    Nodes of one namespace, in separate processes.

    A context manager. On exit all nodes leave, and the test fails if any process wrote to standard
    error, warnings included.

    Args:
        pub: The URL of the server.
        ns: The namespace.
        sub: Another URL for subscriptions.
        options: Options of `DTimer` for all nodes.
    """

    def __init__(self, pub: str, ns: str, *, sub: str | None = None, **options: Any) -> None:
        self._pub = pub
        self._sub = sub
        self._options = {"ns": ns} | options
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        # Reports must not block the nodes while the test does not read.
        if sys.platform == "linux":
            fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._rest = b""
        self._reports: deque[Report] = deque()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the fleet
        #: All reports so far, in order.
        self.log: list[Report] = []

    @property
    def names(self) -> list[str]:
        return list(self._processes)

    def start(self, *names: str, join: bool = True, wait: bool = True, **more: Any) -> None:
        """
        Start one process with one node for each name.

        Args:
            join: Join the namespace. Otherwise the nodes only post.
            wait: Return once all have joined.
            more: Options, or ``sub``, of these nodes only.
        """
        setting = {
            "names": names,
            "join": join,
            "pub": self._pub,
            "sub": more.pop("sub", self._sub),
            "options": self._options | more,
            "descriptor": self._writer,
        }
        process = subprocess.Popen(
            [sys.executable, "-W", "error", node.__file__, json.dumps(setting)],
            stdin=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=[self._writer],
            # Import the package that this test imported, not an installed one.
            env=os.environ | {"PYTHONPATH": str(Path(dtimer.__file__).parents[1])},
        )
        self._processes |= dict.fromkeys(names, process)
        if join and wait:
            self.wait("joined", len(names), patience=_STARTING)

    def kill9(self, name: str) -> None:
        """Kill the process of a node, as a crash would, and wait for its end."""
        process = self._processes[name]
        process.kill()
        self._gone(process)

    def signal(self, name: str, number: int) -> None:
        """Send a signal to the process of a node."""
        self._processes[name].send_signal(number)

    def _gone(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
        self._processes = {n: p for n, p in self._processes.items() if p is not process}

    def tell(self, name: str, do: str, **more: Any) -> None:
        """Send an order to the process of a node."""
        stdin = self._processes[name].stdin
        assert stdin
        stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
        stdin.flush()

    def go_on(self, name: str, times: int = 1) -> None:
        """Let *times* handlers continue that wait at a ``hold``, now or later."""
        self.tell(name, "go on", times=times)

    def leave(self, *names: str) -> list[Report]:
        """Make the processes of these nodes leave; return the last report of each node."""
        ending = {id(self._processes[n]): self._processes[n] for n in names}.values()
        count = sum(p in ending for p in self._processes.values())
        for process in ending:
            assert process.stdin
            process.stdin.close()
        last = self.wait("left", count)
        for process in ending:
            self._gone(process)
        return last

    # -------------------------------------------------------------------------------- reports

    def next(self, what: str, *, patience: float = PATIENCE, **match: Any) -> Report:
        """
        Take the next report of kind *what* whose fields equal *match*.

        Raises:
            AssertionError: no such report came in time.
        """
        deadline = time.monotonic() + patience
        while True:
            for report in self._reports:
                if report.what == what and all(
                    getattr(report, name) == value for name, value in match.items()
                ):
                    self._reports.remove(report)
                    return report
            self._wait_readable(what, deadline)

    def wait(self, what: str, count: int, *, patience: float = PATIENCE) -> list[Report]:
        """Take *count* reports of kind *what*, waiting up to *patience* seconds for each."""
        return [self.next(what, patience=patience) for _ in range(count)]

    def reported(self, what: str) -> list[Report]:
        """Return all reports of kind *what* so far, taken or not."""
        self._read()
        return [report for report in self.log if report.what == what]

    def _wait_readable(self, what: str, deadline: float) -> None:
        left = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([self._reader], [], [], left)
        assert ready or time.monotonic() < deadline, f"no {what!r}; {self._state()}"
        self._read()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reader, 1 << 16):
                *lines, self._rest = (self._rest + data).split(b"\n")
                reports = [_read_report(line) for line in lines]
                self._reports.extend(reports)
                self.log.extend(reports)

    def _state(self) -> str:
        dead = [n for n, p in self._processes.items() if p.poll() is not None]
        reports = [(r.node, r.what, r.more) for r in self.log[-5:]]
        return f"dead: {dead}; last reports: {reports}; stderr: {self._stderr()}"

    def _stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-3000:]

    # -------------------------------------------------------------------------------- the end

    def close(self) -> None:
        for process in set(self._processes.values()):
            process.kill()
            self._gone(process)
        for end in (self._reader, self._writer):
            os.close(end)
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.leave(*self._processes)
                assert "" == self._stderr()
        finally:
            self.close()


def _read_report(line: bytes) -> Report:
    fields = json.loads(line)
    return Report(fields.pop("node"), fields.pop("what"), fields.pop("pid"), fields)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{i + 1}" for i in range(count)]


def start_together(fleet: Fleet, each: Iterable[Sequence[str]], **more: Any) -> None:
    """Start one process for each group of nodes, all at the same time; wait for all to join."""
    count = 0
    for group in each:
        fleet.start(*group, wait=False, **more)
        count += len(group)
    fleet.wait("joined", count, patience=_STARTING)
