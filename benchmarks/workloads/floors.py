"""The limits of the machine, the client and the language, measured in the same rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.bench import Bench, Cell
from benchmarks.contenders import Contender
from benchmarks.driver import Driver, Journal
from benchmarks.environments import ENVIRONMENTS


class Floors:
    """
    Round trips and scripts of redis-py, and the overshoot of Python's waits, in µs.

    Measured in each of the two environments of dtimer: ``dtimer``, without hiredis, and
    ``dtimer-hiredis``.
    """

    name = "floors"
    title = "floors: round trips and waits, µs"
    main = "PING p50"
    more_is_better = False
    unit = "µs"
    parts: tuple[str, ...] = ()

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        return [Cell(self.name, contender)] if contender.ours else []

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """See `Work.reference`."""
        return params

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`."""
        settings = {"url": bench.server.url, "count": max(20, int(2_000 * bench.scale.factor))}
        home, journal = ENVIRONMENTS[cell.contender.environment], Journal()
        try:
            with Driver("measure_floors.py", home, settings, journal.path) as driver:
                return driver.answer()
        finally:
            journal.close()
