"""Interleaved rounds: each round measures every cell once, in an order that the seed decides."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.bench import Bench, Cell
from benchmarks.contenders import Contender
from benchmarks.machine import load
from benchmarks.workloads import Work


def cells_of(works: Sequence[Work], contenders: Sequence[Contender]) -> list[Cell]:
    """Return all cells of a round."""
    return [cell for work in works for contender in contenders for cell in work.cells(contender)]


def order(cells: Sequence[Cell], seed: int, number: int) -> list[Cell]:
    """Return the cells in the order of a round."""
    shuffled = list(cells)
    random.Random(f"{seed}/{number}").shuffle(shuffled)
    return shuffled


def run(
    bench: Bench, works: Sequence[Work], cells: Sequence[Cell], seed: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """
    Measure all cells; yield a record for each.

    If a contender fails, its record has the error, and the others continue.
    """
    by_name = {work.name: work for work in works}
    for number in range(rounds):
        for place, cell in enumerate(order(cells, seed, number)):
            # All contenders of a round get the same due moments.
            random.seed(f"{seed}/{number}/{cell.work}")
            bench.server.clear()
            began, figures, error = time.monotonic(), None, None
            try:
                figures = by_name[cell.work].measure(bench, cell)
            except Exception as e:
                error = f"{type(e).__name__}: {e}"
            took = time.monotonic() - began
            said = error.splitlines()[-1] if error else _short(figures or {})
            _tell(f"round {number + 1}/{rounds}  {place + 1}/{len(cells)}  {cell}: {said}")
            yield {
                "round": number,
                "work": cell.work,
                "contender": cell.contender.id,
                "params": cell.params,
                "figures": figures,
                "error": error,
                "seconds": round(took, 2),
                "load": round(load(), 2),
            }


def _short(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
