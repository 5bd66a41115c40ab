"""
The works: what every contender is given to do, each in a module.

A work names its cells (a contender, and under what circumstances), and measures one cell on
an empty server. Its figures are a plain dict; `main` is the one that contenders are compared by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from benchmarks.bench import Bench, Cell
from benchmarks.contenders import Contender


class Work(Protocol):
    """One kind of measurement."""

    name: str
    title: str
    main: str
    more_is_better: bool
    unit: str
    #: What of it a contender may be unable to do by itself.
    parts: tuple[str, ...]

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """Return what is measured of a contender; nothing when it cannot do the work."""
        ...

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """Measure one cell."""
        ...

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the circumstances under which dtimer is what a cell is compared with."""
        ...
