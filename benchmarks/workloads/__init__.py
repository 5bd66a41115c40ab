"""
The works: the measurements that every contender goes through, one module each.

A work lists its cells (a contender with parameters) and measures one cell on an empty server. Its
figures are a plain dict; contenders are compared by `main`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from benchmarks.bench import Bench, Cell
from benchmarks.contenders import Contender


class Work(Protocol):
    """A kind of measurement."""

    name: str
    title: str
    main: str
    more_is_better: bool
    unit: str
    #: The parts of the work that a contender may be unable to do.
    parts: tuple[str, ...]

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """Return the cells of a contender; empty if it cannot do the work."""
        ...

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """Measure one cell."""
        ...

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of the dtimer cell with which a cell is compared."""
        ...
