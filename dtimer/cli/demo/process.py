"""Start the node processes of the demo, read their reports, and end them."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from dtimer.cli.demo.tally import NodeTally


class NodeProcess:
    """A node process, and the parent's ends of its pipes."""

    def __init__(self, tally: NodeTally, words: list[str], stderr: Any) -> None:
        self.tally = tally
        command = [sys.executable, "-m", "dtimer.cli.demo.node", *words]
        # A session of its own: Ctrl-C must reach only the parent, which ends the nodes.
        self._process = subprocess.Popen(  # noqa: S603 - all words are our own
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        self._unread = b""

    @property
    def pipe(self) -> int:
        """The descriptor of the pipe with the reports."""
        assert self._process.stdout is not None  # noqa: S101 - for the type
        return self._process.stdout.fileno()

    def read(self) -> list[Any] | None:
        """Return the reports that have arrived, or None at the end of the pipe."""
        data = os.read(self.pipe, 65_536)
        if not data:
            return None
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        self._process.kill()

    def tell_to_leave(self) -> None:
        """Tell the node to leave."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def end(self) -> None:
        """End the process, and close its pipes."""
        self.tell_to_leave()
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Cast:
    """All node processes, as a context that ends them."""

    def __init__(self, tallies: list[NodeTally], url: str, ns: str, lease: int) -> None:
        self._tallies = tallies
        self._words = (url, ns, lease)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._selector = selectors.DefaultSelector()
        self._processes: list[NodeProcess] = []

    def __enter__(self) -> Self:
        url, ns, lease = self._words
        try:
            for tally in self._tallies:
                words = [url, ns, tally.name, str(lease)]
                process = NodeProcess(tally, words, self._stderr)
                self._processes.append(process)
                self._selector.register(process.pipe, selectors.EVENT_READ, process)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.end()
        self._selector.close()
        self._stderr.close()

    @property
    def alive(self) -> int:
        """The number of processes that may still report."""
        return len(self._selector.get_map())

    def reports(self, wait: float) -> Iterator[tuple[NodeProcess, Any]]:
        """Wait up to *wait* seconds for reports, and yield those that have arrived."""
        for key, _ in self._selector.select(wait):
            process: NodeProcess = key.data
            reports = process.read()
            if reports is None:
                self._selector.unregister(process.pipe)
                if process.tally.state != "left":
                    process.tally.state = "killed" if process.tally.state == "killed" else "died"
                # A dead process handles no events.
                process.tally.in_flight.clear()
                continue
            for report in reports:
                yield process, report

    def tell_to_leave(self) -> None:
        """Tell all nodes to leave."""
        for process in self._processes:
            process.tell_to_leave()

    def last_words(self) -> str:
        """Return the end of the processes' output to standard error."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 4_000))
        return self._stderr.read().decode(errors="replace").strip()
