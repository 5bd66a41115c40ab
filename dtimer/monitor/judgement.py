"""Judge from its numbers whether a namespace is healthy."""

from __future__ import annotations

from dataclasses import dataclass

from dtimer.model.records import NodeInfo, Stats
from dtimer.model.times import format_duration

#: An event that is overdue for longer than this many ms needs attention: twice the default poll
#: interval, so a lost wake alone never causes it.
LATE_MS = 2_000


@dataclass(frozen=True)
class Check:
    """The result of checking one condition of a healthy namespace."""

    name: str
    ok: bool
    text: str
    #: The name for programs, if it differs.
    key: str = ""


def judge(stats: Stats, least_nodes: int, most_overdue_ms: float) -> list[Check]:
    """Check a namespace by its numbers."""
    late = overdue_ms(stats)
    oldest = f"the oldest for {format_duration(late)}" if stats.overdue else "none"
    return [
        Check("paused", not stats.paused, "yes" if stats.paused else "no", "not_paused"),
        Check("nodes", stats.nodes >= least_nodes, f"{stats.nodes}, at least {least_nodes} needed"),
        Check(
            "overdue",
            late <= most_overdue_ms,
            f"{oldest}, at most {format_duration(most_overdue_ms)} allowed",
        ),
    ]


def overdue_ms(stats: Stats) -> float:
    """Return how long the oldest overdue event has been due, in ms; 0 if no event is overdue."""
    return stats.oldest_overdue_ms if stats.overdue else 0.0


def node_state(node: NodeInfo) -> str:
    """Return what a node does: it waits for events, is busy or deaf, or has no listener."""
    if not node.listening:
        return "no listener"
    if node.deaf:
        return "deaf"
    return "waiting" if node.waiting else "busy"
