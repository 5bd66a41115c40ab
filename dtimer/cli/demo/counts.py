"""The counts of the demo, which come only from the reports of its nodes, and its outcome."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dtimer.model.records import Stats


@dataclass
class NodeCounts:
    """
    The counts of one node, or of all nodes together.

    ``again`` is how many of the received events had been delivered before.
    """

    name: str
    pid: int = 0
    state: str = "starting"
    received: int = 0
    handled: int = 0
    again: int = 0
    in_flight: set[str] = field(default_factory=set)
    lateness: list[float] = field(default_factory=list)

    @property
    def late(self) -> dict[str, float | None]:
        """The lateness in ms that half, 99 % and all of the received events did not exceed."""
        ranked = sorted(self.lateness)
        ranks = {"p50": 0.5, "p99": 0.99, "max": 1}
        return {
            name: ranked[math.ceil(share * len(ranked)) - 1] if ranked else None
            for name, share in ranks.items()
        }


class Counts:
    """The counts of all nodes, and the ids that were posted."""

    def __init__(self, names: Sequence[str]) -> None:
        self.nodes: list[NodeCounts] = [NodeCounts(name) for name in names]
        self.total: NodeCounts = NodeCounts("all", state="")
        self.posted: list[str] = []
        self.handled: Counter[str] = Counter()
        #: The ids that were delivered again.
        self.redelivered: set[str] = set()
        self.errors: list[str] = []
        #: The name of the node that was killed.
        self.killed: str | None = None
        # The id of the event that this node was handling, and when it was killed.
        self._fatal, self._killed_at = "", 0.0
        #: The name of the node that received this event again, and how long after the kill.
        self.again_by: str | None = None
        self.again_after_ms: float | None = None

    def read(self, node: NodeCounts, report: Sequence[Any]) -> str | None:
        """Count one report of *node*. Return a text if the user should know of it."""
        match report:
            case ["ready", pid]:
                node.pid, node.state = pid, "joined"
            case ["start", id, attempt, lateness]:
                if attempt > 1:
                    self.redelivered.add(id)
                for counts in (node, self.total):
                    counts.received += 1
                    counts.again += attempt > 1
                    counts.in_flight.add(id)
                    counts.lateness.append(lateness)
                if id == self._fatal and self.again_by is None:
                    after = time.monotonic() - self._killed_at
                    self.again_by, self.again_after_ms = node.name, after * 1000
                    return f"{node.name} received it again, {after:.2f} s after the kill"
            case ["fatal", id]:
                node.state, self.killed = "killed", node.name
                self._fatal, self._killed_at = id, time.monotonic()
                return f"{node.name} (pid {node.pid}) killed by SIGKILL while it handled {id}"
            case ["done", id]:
                self.handled[id] += 1
                for counts in (node, self.total):
                    counts.handled += 1
                    counts.in_flight.discard(id)
            case ["error", text]:
                self.errors.append(f"{node.name}: {text}")
            case ["left"]:
                node.state = "left"
            case ["end"]:
                if node.state not in ("left", "killed"):
                    node.state = "died"
                # A dead process handles no events.
                self.total.in_flight -= node.in_flight
                node.in_flight.clear()
        return None

    @property
    def lost(self) -> int:
        """The number of posted events that no node has reported as handled."""
        return len(set(self.posted) - set(self.handled))


@dataclass
class Outcome:
    """The result of the demo: the counts of its nodes, and the numbers of Redis."""

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
