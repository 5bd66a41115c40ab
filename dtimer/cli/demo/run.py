"""Run the demo: start the nodes, post events, kill a node while it handles one, and count."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any
from urllib.parse import quote

from dtimer import embedded
from dtimer.cli.demo.counts import Counts, NodeCounts, Outcome
from dtimer.cli.demo.node import FATAL
from dtimer.cli.demo.view import View
from dtimer.embedded.location import TREE
from dtimer.errors import StoreError
from dtimer.store.connection.sources import source
from dtimer.store.keys import Keys
from dtimer.timer import DTimer

NODES, EVENTS = ("node-1", "node-2", "node-3"), 400

#: The shortest and the longest delay of the events, the delay of the event during which a node is
#: killed, and the lease, in ms. The lease is short, so that the demo does not take long.
MIN_DELAY, MAX_DELAY, FATAL_DELAY, LEASE = 300, 6_500, 2_000, 2_000

#: The longest waits for all nodes to join, all events to be handled and all nodes to leave, and the
#: time between two frames of the table, in seconds. The waits are long enough for a busy machine.
_JOINING, _HANDLING, _LEAVING, _FRAME = 20.0, 30.0, 10.0, 0.1


@contextlib.contextmanager
def private_server() -> Iterator[str]:
    """
    Yield the URL of a private embedded server, which ends with the block.

    Raises:
        StoreError: no embedded server can be started.
    """
    # Do not use the server of this process tree: it belongs to another program.
    before = os.environ.pop(TREE, None)
    try:
        with embedded.attach("embedded:") as attachment:
            yield f"unix://{quote(attachment.socket)}"
    finally:
        os.environ.pop(TREE, None)
        if before is not None:
            os.environ[TREE] = before


@contextlib.contextmanager
def swept(url: str) -> Iterator[str]:
    """Yield the name of a new namespace, and delete its keys when the block ends."""
    ns = f"demo-{uuid.uuid4().hex[:8]}"
    try:
        yield ns
    finally:
        # Errors are ignored: only a few small keys would remain.
        with contextlib.suppress(Exception):
            server = source(url, 1.0)
            server.command("DEL", *Keys.of(ns))
            server.close()


class Run:
    """
    Runs the demo once on the server at *url*.

    A thread for each node process reads its reports, and passes them to the thread that counts.
    """

    def __init__(self, url: str, ns: str, view: View) -> None:
        self._url = url
        self._ns = ns
        self._view = view
        self._counts = Counts(NODES)
        self._reports: queue.SimpleQueue[tuple[NodeCounts, list[Any]]] = queue.SimpleQueue()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by run

    def run(self) -> Outcome:
        """
        Run the demo, and end all its processes.

        Raises:
            StoreError: Redis could not be reached, or a node could not join.
        """
        counts = self._counts
        timer = DTimer("demo", self._url, ns=self._ns)
        try:
            timer.stats()  # Fail before any node is started if no server answers.
            for node in counts.nodes:
                self._start(node)
            self._watch(_JOINING, lambda: "starting" not in {node.state for node in counts.nodes})
            if not all(node.pid for node in counts.nodes):
                raise StoreError(f"a node of the demo did not join: {self._last_words()}")
            counts.posted = [*timer.post_many(_events())]
            self._view.note(
                f"posted {EVENTS} events, due within {MAX_DELAY / 1000:g} s, to {len(NODES)} node"
                f" processes with a lease of {LEASE / 1000:g} s"
            )
            self._watch(_HANDLING, lambda: not counts.lost)
            self._tell_to_leave()
            self._watch(_LEAVING, lambda: "joined" not in {node.state for node in counts.nodes})
            return Outcome(counts, timer.stats())
        finally:
            self._tell_to_leave()
            for process in self._processes.values():
                process.kill()
                process.wait()
            self._stderr.close()
            timer.leave()

    def _start(self, node: NodeCounts) -> None:
        words = [self._url, self._ns, node.name, str(LEASE)]
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

    def _watch(self, patience: float, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + patience
        while not done() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._count(*self._reports.get(timeout=_FRAME))
                while True:
                    self._count(*self._reports.get_nowait())
            self._view.show(self._counts)

    def _count(self, node: NodeCounts, report: list[Any]) -> None:
        if report[0] == "fatal":
            self._processes[node.name].kill()
        if text := self._counts.read(node, report):
            self._view.note(text)

    def _tell_to_leave(self) -> None:
        for process in self._processes.values():
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()

    def _last_words(self) -> str:
        """Return the end of the processes' output to standard error."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 4_000))
        return self._stderr.read().decode(errors="replace").strip()


def _events() -> Iterator[tuple[dict[str, Any], float]]:
    yield {"n": 0, FATAL: True}, FATAL_DELAY
    for n in range(1, EVENTS):
        yield {"n": n}, random.uniform(MIN_DELAY, MAX_DELAY)
