"""The cost of waiting with one far event pending: server commands and CPU time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bench import Bench, Cell
from benchmarks.contenders import Contender
from benchmarks.machine import members, processor_seconds, resident_mb
from benchmarks.server import Monitor

_REST = 3.0  # seconds before the measurement; a node that has just joined is not idle yet


class Idle:
    """
    The commands and the CPU time of one node.

    ``calls/s`` counts the commands that the node sends. ``commands/s`` also counts those that its
    scripts run. ``MONITOR`` counts them, because the server's totals do not separate the two.
    """

    name = "idle"
    title = "idle: cost of one node that waits"
    main = "commands/s"
    more_is_better = False
    unit = "commands/s"
    parts: tuple[str, ...] = ()

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        if self.name in contender.cannot or contender.floor:
            return []
        nodes = (1, 8, 32) if contender.ours else (1,)
        return [Cell(self.name, contender, {"nodes": count}) for count in nodes]

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """See `Work.reference`."""
        return params

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`."""
        return measure(bench, cell.contender, **cell.params)


def measure(
    bench: Bench, contender: Contender, *, nodes: int = 1, share: float = 1.0
) -> dict[str, float]:
    """Measure on the server as it is."""
    seconds = 2 * bench.scale.seconds * share
    bench.fill(contender, 1)
    with bench.team(contender, nodes) as team:
        time.sleep(min(_REST, seconds))
        monitor = Monitor(bench.server.url)
        pids = [pid for first in team.pids for pid in members(first)]
        before = processor_seconds(pids), processor_seconds([bench.server.pid])
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        own, servers = processor_seconds(pids), processor_seconds([bench.server.pid])
        calls, commands = monitor.read()
        monitor.close()
        memory = resident_mb(pids)
    return {
        "calls/s": calls / took / nodes,
        "commands/s": commands / took / nodes,
        "cpu %": 100 * (own - before[0]) / took / nodes,
        "server cpu %": 100 * (servers - before[1]) / took / nodes,
        "MB": memory / nodes,
        "processes": len(pids) / nodes,
    }
