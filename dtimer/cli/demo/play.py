"""Run the demo: post events, kill a node while it handles one, and count."""

from __future__ import annotations

import contextlib
import os
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dtimer.cli.demo.node import FATAL
from dtimer.cli.demo.process import Cast, NodeProcess
from dtimer.cli.demo.tally import Tally, percentile
from dtimer.cli.demo.view import FRAME, View, since
from dtimer.errors import StoreError
from dtimer.model.event import Stats
from dtimer.store import embedded
from dtimer.store.connect import source
from dtimer.store.embedded.folder import TREE
from dtimer.store.keys import Keys
from dtimer.timer import DTimer

NODES, EVENTS = 3, 400

#: In milliseconds. The lease is short, so that the demo does not take long.
FIRST, LAST, FATAL_DELAY, LEASE = 300, 6_500, 2_000, 2_000

#: The longest waits for all nodes to join, all events to be handled and all nodes to leave, in
#: seconds.
_JOINING, _HANDLING, _LEAVING = 10.0, 14.0, 3.0


@dataclass
class Outcome:
    """The result of the demo."""

    tally: Tally
    stats: Stats
    seconds: float
    killed: str | None
    again_by: str | None
    again_after_ms: float | None

    @property
    def pending(self) -> int:
        """The number of events that Redis still holds."""
        return self.stats.scheduled + self.stats.in_flight

    @property
    def ok(self) -> bool:
        """True if no event was lost, and the event of the killed node was delivered again."""
        seen = self.again_after_ms is not None
        return seen and not self.tally.lost and not self.pending and not self.stats.dead

    def line(self) -> str:
        """Return the summary in one line."""
        killed = f"{self.killed} was killed" if self.killed else "no node was killed"
        tally = self.tally
        return (
            f"posted {len(tally.posted)}, handled {len(tally.handled)},"
            f" redelivered {len(tally.redelivered)} ({killed}), lost {tally.lost}"
        )

    def fields(self) -> dict[str, Any]:
        """Return all results, for programs."""
        tally = self.tally
        late = {f"p{part}": percentile(tally.lateness, part / 100) for part in (50, 99)}
        return {
            "ok": self.ok,
            "posted": len(tally.posted),
            "handled": len(tally.handled),
            "handled_twice": sum(count > 1 for count in tally.handled.values()),
            "redelivered": len(tally.redelivered),
            "lost": tally.lost,
            "killed": self.killed,
            "again_by": self.again_by,
            "again_after_ms": self.again_after_ms,
            "lease_ms": LEASE,
            "lateness_ms": late | {"max": max(tally.lateness, default=None)},
            "nodes": [
                {"id": n.name, "state": n.state, "received": n.received, "handled": n.handled}
                for n in tally.nodes
            ],
            "server": {"pending": self.pending, "dead": self.stats.dead, **self.stats.totals},
            "errors": tally.errors,
            "seconds": round(self.seconds, 2),
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
    """Yield a unique namespace, and delete its keys when the block ends."""
    ns = f"demo-{uuid.uuid4().hex[:8]}"
    try:
        yield ns
    finally:
        # Errors are ignored: only a few small keys would remain.
        with contextlib.suppress(Exception):
            server = source(url, 1.0)
            server.command("DEL", *Keys.of(ns))
            server.close()


class Play:
    """Runs the demo once on the server at *url*."""

    def __init__(self, url: str, ns: str, view: View) -> None:
        self._url = url
        self._ns = ns
        self._view = view
        self._tally = Tally(f"node-{i + 1}" for i in range(NODES))
        self._began = time.monotonic()
        self._killed: str | None = None
        self._fatal = ""
        self._killed_at = 0.0
        self._again_by: str | None = None
        self._again_after_ms: float | None = None

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def run(self) -> Outcome:
        """
        Run the demo, and end all its processes.

        Raises:
            StoreError: Redis could not be reached, or a node could not join.
        """
        timer = DTimer("demo", self._url, ns=self._ns)
        try:
            timer.stats()  # Fail before any node is started if no server answers.
            with Cast(self._tally.nodes, self._url, self._ns, LEASE) as cast:
                self._await_nodes(cast)
                self._tally.posted = [*timer.post_many(_events())]
                self._view.note(
                    f"{since(self._seconds)}posted {EVENTS} events, due within"
                    f" {LAST / 1000:g} s, to {NODES} node processes"
                )
                self._watch(cast, _HANDLING, lambda: not self._tally.lost)
                cast.tell_to_leave()
                self._watch(cast, _LEAVING, lambda: not cast.alive)
            stats = timer.stats()
        finally:
            timer.leave()
        return Outcome(
            self._tally,
            stats,
            self._seconds,
            self._killed,
            self._again_by,
            self._again_after_ms,
        )

    def _await_nodes(self, cast: Cast) -> None:
        def all_joined() -> bool:
            return all(node.pid for node in self._tally.nodes)

        self._watch(cast, _JOINING, lambda: all_joined() or cast.alive < NODES)
        if not all_joined():
            raise StoreError(f"a node of the demo did not join: {cast.last_words()}")

    def _watch(self, cast: Cast, patience: float, done: Any) -> None:
        deadline = time.monotonic() + patience
        while not done() and time.monotonic() < deadline:
            for process, report in cast.reports(FRAME):
                self._tally.read(process.tally, report)
                self._act(process, report)
            self._view.show(self._tally, self._seconds)

    def _act(self, process: NodeProcess, report: Any) -> None:
        match report:
            case ["start", id, 1, _, True]:
                process.kill()
                self._killed_at = time.monotonic()
                self._fatal, self._killed = id, process.tally.name
                process.tally.state = "killed"
                self._view.note(
                    f"{since(self._seconds)}{self._killed} (pid {process.tally.pid}) killed by"
                    f" SIGKILL while it handled {id}"
                )
            case ["start", id, attempt, *_] if id == self._fatal and self._again_by is None:
                self._again_by = process.tally.name
                self._again_after_ms = (time.monotonic() - self._killed_at) * 1000
                self._view.note(
                    f"{since(self._seconds)}{self._again_by} received it again: attempt {attempt},"
                    f" {self._again_after_ms / 1000:.2f} s after the kill, lease {LEASE / 1000:g} s"
                )


def _events() -> Iterator[tuple[dict[str, Any], float]]:
    yield {"n": 0, FATAL: True}, FATAL_DELAY
    for n in range(1, EVENTS):
        yield {"n": n}, random.uniform(FIRST, LAST)
