"""The counts of the demo, which come only from the reports of its nodes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


def percentile(values: Sequence[float], part: float) -> float | None:
    """Return the smallest of *values* that *part* of them do not exceed; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


@dataclass
class NodeTally:
    """The counts of one node."""

    name: str
    pid: int = 0
    state: str = "starting"
    received: int = 0
    handled: int = 0
    again: int = 0
    in_flight: set[str] = field(default_factory=set)
    lateness: list[float] = field(default_factory=list)


class Tally:
    """The counts of all nodes, and the ids that were posted."""

    def __init__(self, names: Iterable[str]) -> None:
        self.nodes = [NodeTally(name) for name in names]
        self.posted: list[str] = []
        self.handled: Counter[str] = Counter()
        #: The ids that were delivered again.
        self.redelivered: set[str] = set()
        self.errors: list[str] = []

    def read(self, node: NodeTally, report: Sequence[Any]) -> None:
        """Count one report of *node*."""
        match report:
            case ["ready", pid]:
                node.pid, node.state = pid, "joined"
            case ["start", id, attempt, lateness, _]:
                node.received += 1
                node.in_flight.add(id)
                node.lateness.append(lateness)
                if attempt > 1:
                    node.again += 1
                    self.redelivered.add(id)
            case ["done", id, _]:
                node.handled += 1
                node.in_flight.discard(id)
                self.handled[id] += 1
            case ["left"]:
                node.state = "left"
            case ["error", text]:
                self.errors.append(f"{node.name}: {text}")

    @property
    def lost(self) -> int:
        """The number of posted events that no node has reported as handled."""
        return len(set(self.posted) - set(self.handled))

    @property
    def lateness(self) -> list[float]:
        """The lateness of every start, on all nodes."""
        return [late for node in self.nodes for late in node.lateness]
