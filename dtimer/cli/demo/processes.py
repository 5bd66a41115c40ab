"""Start the node processes of the demo, read their reports, and end them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import IO, Any

from dtimer.cli.demo.counts import NodeCounts


class Processes:
    """The node processes, and for each a thread that reads its reports."""

    def __init__(self) -> None:
        self._reports: queue.SimpleQueue[tuple[NodeCounts, list[Any]]] = queue.SimpleQueue()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end

    def start(self, nodes: Iterable[NodeCounts], url: str, ns: str, lease: int) -> None:
        """Start a process for each of *nodes*."""
        for node in nodes:
            words = [url, ns, node.name, str(lease)]
            # A session of its own: Ctrl-C must reach only the parent, which ends the nodes.
            process = subprocess.Popen(  # noqa: S603 - all words are our own
                [sys.executable, "-m", "dtimer.cli.demo.node", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,
            )
            self._processes[node.name] = process
            threading.Thread(target=self._read, args=(node, process.stdout), daemon=True).start()

    def _read(self, node: NodeCounts, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                self._reports.put((node, json.loads(line)))
        self._reports.put((node, ["end"]))

    def reports(self, wait: float) -> Iterator[tuple[NodeCounts, list[Any]]]:
        """Wait up to *wait* seconds for a report, and yield those that have arrived."""
        with contextlib.suppress(queue.Empty):
            yield self._reports.get(timeout=wait)
            while True:
                yield self._reports.get_nowait()

    def kill(self, name: str) -> None:
        """Kill the process of a node with SIGKILL."""
        self._processes[name].kill()

    def tell_to_leave(self) -> None:
        """Tell all nodes to leave."""
        for process in self._processes.values():
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()

    def end(self) -> None:
        """End all processes."""
        self.tell_to_leave()
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._stderr.close()

    def last_words(self) -> str:
        """Return the end of the processes' output to standard error."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 4_000))
        return self._stderr.read().decode(errors="replace").strip()
