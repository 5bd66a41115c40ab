"""The bytes of Redis that a pending event takes, payload included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.bench import Bench, Cell
from benchmarks.contenders import Contender
from benchmarks.contenders.contender import TUNED

COUNTS = (1_000, 100_000, 1_000_000, 5_000_000)
SIZES = (50, 500)

#: The parameters with which contenders are compared.
STANDARD = {"pending": 100_000, "size": 50}


class Memory:
    """The growth of ``used_memory`` per event, without scripts and connections."""

    name = "memory"
    title = "memory: bytes of Redis per pending event, payload included"
    main = "bytes"
    more_is_better = False
    unit = "bytes"
    parts: tuple[str, ...] = ()

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        # The settings of a peer do not change what it stores.
        if self.name in contender.cannot or (contender.setting == TUNED and not contender.ours):
            return []
        # Filling a slow contender further would take an hour.
        counts = {count for count in COUNTS if count <= contender.max_pending}
        counts.add(min(contender.max_pending, STANDARD["pending"]))
        return [
            Cell(self.name, contender, {"pending": count, "size": size})
            for count in sorted(counts)
            for size in SIZES
            if size == SIZES[0] or count <= STANDARD["pending"] or contender.ours
        ]

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """See `Work.reference`."""
        return {**STANDARD, "size": params["size"]}

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`."""
        contender, size = cell.contender, cell.params["size"]
        count = max(100, int(cell.params["pending"] * bench.scale.factor))
        bytes_each = measure(bench, contender, count, size)
        return {"bytes": bytes_each, "over the payload": bytes_each - size}


def measure(bench: Bench, contender: Contender, count: int, size: int = 50) -> float:
    """Make *count* events pending, and leave them so; return the bytes of each."""
    # One event first, for the scripts and all data that exists once.
    bench.fill(contender, 1, size)
    before = bench.server.used_memory()
    bench.fill(contender, count, size)
    return (bench.server.used_memory() - before) / count
