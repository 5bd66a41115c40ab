"""The node processes of the demo: started, listened to, killed, and never left behind."""

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
    """One node process, and our ends of its pipes."""

    def __init__(self, tally: NodeTally, words: list[str], stderr: Any) -> None:
        self.tally = tally
        command = [sys.executable, "-m", "dtimer.cli.demo.node", *words]
        # A session of its own: Ctrl-C is for the parent, which sees to the rest.
        self._process = subprocess.Popen(  # noqa: S603 - each word of it is ours
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        self._unread = b""

    @property
    def pipe(self) -> int:
        """The descriptor from which the reports are read."""
        assert self._process.stdout is not None  # noqa: S101 - for the type
        return self._process.stdout.fileno()

    def read(self) -> list[Any] | None:
        """Return the reports that have come; None when there will be no more."""
        data = os.read(self.pipe, 65_536)
        if not data:
            return None
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        """Kill the process: SIGKILL, which nothing in it hears of."""
        self._process.kill()

    def tell_to_leave(self) -> None:
        """Have the node leave."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def end(self) -> None:
        """See to it that nothing is left of the process."""
        self.tell_to_leave()
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Cast:
    """All node processes; a context, after which none of them is left."""

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
        """How many may still report something."""
        return len(self._selector.get_map())

    def reports(self, wait: float) -> Iterator[tuple[NodeProcess, Any]]:
        """Yield what comes within *wait* seconds, as soon as anything does."""
        for key, _ in self._selector.select(wait):
            process: NodeProcess = key.data
            reports = process.read()
            if reports is None:
                self._selector.unregister(process.pipe)
                if process.tally.state != "left":
                    process.tally.state = "killed" if process.tally.state == "killed" else "died"
                # What a dead process held is in nobody's hands.
                process.tally.in_flight.clear()
                continue
            for report in reports:
                yield process, report

    def tell_to_leave(self) -> None:
        """Have all nodes leave."""
        for process in self._processes:
            process.tell_to_leave()

    def last_words(self) -> str:
        """Return the end of what the processes wrote to standard error."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 4_000))
        return self._stderr.read().decode(errors="replace").strip()
