"""How each figure depends on the number of pending events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bench import Bench, Cell
from benchmarks.contenders import Contender
from benchmarks.workloads import drain, idle, lateness, memory, posting


class Growth:
    """
    Posting, draining, lateness and idling, while many events are pending that are due later.

    The server is filled once. Then the works run on it one after the other, each with a share of
    its usual size. Only dtimer and the floor "least scripts" are measured, because filling the
    server through most peers takes hours.
    """

    name = "growth"
    title = "growth: the same figures with so many events pending"
    main = "post/s"
    more_is_better = True
    unit = "events/s"
    parts: tuple[str, ...] = ()

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        whole = not {"drain", "memory", "lateness"} & contender.cannot.keys()
        if not whole or not (contender.ours or contender.floor):
            return []
        counts = [count for count in memory.COUNTS if count <= contender.max_pending]
        return [Cell(self.name, contender, {"pending": count}) for count in counts]

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """See `Work.reference`: the smallest number of pending events."""
        return {"pending": memory.COUNTS[0]}

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`."""
        contender = cell.contender
        count = max(100, int(cell.params["pending"] * bench.scale.factor))
        began = time.monotonic()
        # This fills the server. The events stay there during all measurements below.
        bytes_each = memory.measure(bench, contender, count)
        took = time.monotonic() - began
        most = max(contender.batches)
        late = lateness.measure(bench, contender, share=0.4)
        figures = {
            "bytes": bytes_each,
            "filled in s": took,
            "post/s": posting.measure(bench, contender, way="one", share=0.25)["events/s"],
            "late p50": late["p50"],
            "late p99": late["p99"],
            "drain 1/s": drain.measure(bench, contender, share=0.25)["events/s"],
            f"drain {most}/s": drain.measure(bench, contender, batch=most)["events/s"],
        }
        if "bulk" not in contender.cannot:
            figures["bulk/s"] = posting.measure(bench, contender, way="bulk")["events/s"]
        if not contender.floor:
            figures["commands/s"] = idle.measure(bench, contender, share=0.3)["commands/s"]
        return figures
