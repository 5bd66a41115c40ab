"""Run the demo: post events, kill a node while it handles one, and count."""

from __future__ import annotations

import contextlib
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dtimer import embedded
from dtimer.cli.demo.counts import Counts
from dtimer.cli.demo.node import FATAL
from dtimer.cli.demo.processes import Processes
from dtimer.cli.demo.view import FRAME, View
from dtimer.embedded.location import TREE
from dtimer.errors import StoreError
from dtimer.model.records import Stats
from dtimer.store.connection.sources import source
from dtimer.store.keys import Keys
from dtimer.timer import DTimer

NODES, EVENTS = ("node-1", "node-2", "node-3"), 400

#: The shortest and the longest delay of the events, the delay of the event during which a node is
#: killed, and the lease, in ms. The lease is short, so that the demo does not take long.
MIN_DELAY, MAX_DELAY, FATAL_DELAY, LEASE = 300, 6_500, 2_000, 2_000

#: The longest waits for all nodes to join, all events to be handled and all nodes to leave, in
#: seconds.
_JOINING, _HANDLING, _LEAVING = 10.0, 14.0, 3.0


@dataclass
class Outcome:
    """The result of the demo."""

    counts: Counts
    stats: Stats

    @property
    def pending(self) -> int:
        """The number of events that Redis still holds."""
        return self.stats.scheduled + self.stats.in_flight

    @property
    def ok(self) -> bool:
        """True if no event was lost, and the event of the killed node was delivered again."""
        left = self.counts.lost or self.pending or self.stats.dead
        return self.counts.again_by is not None and not left

    def line(self) -> str:
        """Return the summary in one line."""
        counts = self.counts
        killed = f"{counts.killed} was killed" if counts.killed else "no node was killed"
        return (
            f"posted {len(counts.posted)}, handled {len(counts.handled)},"
            f" redelivered {len(counts.redelivered)} ({killed}), lost {counts.lost}"
        )

    def fields(self) -> dict[str, Any]:
        """Return all results, for programs."""
        counts = self.counts
        return {
            "ok": self.ok,
            "posted": len(counts.posted),
            "handled": len(counts.handled),
            "redelivered": len(counts.redelivered),
            "lost": counts.lost,
            "killed": counts.killed,
            "again_by": counts.again_by,
            "again_after_ms": counts.again_after_ms,
            "lateness_ms": counts.total.late,
            "nodes": [
                {"id": n.name, "state": n.state, "received": n.received, "handled": n.handled}
                for n in counts.nodes
            ],
            "server": {"pending": self.pending, "dead": self.stats.dead, **self.stats.totals},
            "errors": counts.errors,
        }


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
    """Runs the demo once on the server at *url*."""

    def __init__(self, url: str, ns: str, view: View) -> None:
        self._url = url
        self._ns = ns
        self._view = view
        self._processes = Processes()
        self._counts = Counts(NODES)

    def run(self) -> Outcome:
        """
        Run the demo, and end all its processes.

        Raises:
            StoreError: Redis could not be reached, or a node could not join.
        """
        processes, counts = self._processes, self._counts
        timer = DTimer("demo", self._url, ns=self._ns)
        try:
            timer.stats()  # Fail before any node is started if no server answers.
            processes.start(counts.nodes, self._url, self._ns, LEASE)
            self._watch(_JOINING, lambda: "starting" not in {node.state for node in counts.nodes})
            if not all(node.pid for node in counts.nodes):
                raise StoreError(f"a node of the demo did not join: {processes.last_words()}")
            counts.posted = [*timer.post_many(_events())]
            self._view.note(
                f"posted {EVENTS} events, due within {MAX_DELAY / 1000:g} s, to {len(NODES)} node"
                f" processes with a lease of {LEASE / 1000:g} s"
            )
            self._watch(_HANDLING, lambda: not counts.lost)
            processes.tell_to_leave()
            self._watch(_LEAVING, lambda: not counts.running)
            return Outcome(counts, timer.stats())
        finally:
            processes.end()
            timer.leave()

    def _watch(self, patience: float, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + patience
        while not done() and time.monotonic() < deadline:
            for node, report in self._processes.reports(FRAME):
                if report[0] == "fatal":
                    self._processes.kill(node.name)
                if text := self._counts.read(node, report):
                    self._view.note(text)
            self._view.show(self._counts)


def _events() -> Iterator[tuple[dict[str, Any], float]]:
    yield {"n": 0, FATAL: True}, FATAL_DELAY
    for n in range(1, EVENTS):
        yield {"n": n}, random.uniform(MIN_DELAY, MAX_DELAY)
