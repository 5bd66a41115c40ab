"""
Compare the lateness of two checkouts beside threads that compute, in interleaved rounds.

Both checkouts get events at the same moments of a round. A figure is the median of its rounds. A
ratio is the median of the ratios within the rounds.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench import Bench, Scale
from benchmarks.contenders.ours import OURS
from benchmarks.environments import Checkout
from benchmarks.machine import load, said_by
from benchmarks.numbers import ratio
from benchmarks.server import Server
from benchmarks.tables import MISSING, aligned, number
from benchmarks.workloads import busy, locks

#: The figures of each case, by the JSON of its parameters: two sides, each with a figure a round.
Found = dict[str, tuple[list[dict[str, float]], list[dict[str, float]]]]

Tally = dict[tuple[str, str, str], float]


class Counts(NamedTuple):
    """
    The calls that release the interpreter's lock, per event.

    `totals` has the figures of `locks.summary`. `calls` has all calls by their kind, and `way` has
    those between the due moment and the handler.
    """

    totals: dict[str, float]
    calls: Tally
    way: Tally


_OURS = OURS[0]
_TIMES = ("p50", "p90", "p99", "max")
_COUNTS = ("early", "missing")
_SHARE = "busy node %"


def compare_busy(
    base: Path, head: Path, rounds: int, only: Mapping[str, str], scale: Scale
) -> None:
    """
    Measure both checkouts; print a table of lateness, and one of the interpreter's lock.

    Without *rounds*, only the second table is printed.
    """
    began, server = time.monotonic(), Server()
    paths = {"base": base, "head": head}
    print(*_heading(paths, server.version), sep="\n", flush=True)
    benches = [Bench(server, scale, {_OURS.environment: Checkout(path)}) for path in paths.values()]
    try:
        found = _lateness(benches, rounds, only)
        counted = [_locks(bench) for bench in benches]
    finally:
        server.close()
    print(f"{rounds} rounds in {time.monotonic() - began:.0f} s, load {load():.1f}")
    if rounds:
        print("\nlateness beside threads that compute, ms: medians of the rounds, base > head")
        print(*table(found), sep="\n")
    print("\nacquisitions of the interpreter's lock an event, without computing threads")
    print(*table_of_locks(*counted), sep="\n")


def _heading(paths: Mapping[str, Path], server: str) -> list[str]:
    commits = {
        name: said_by("git", "-C", str(path), "describe", "--always", "--dirty")
        for name, path in paths.items()
    }
    return [*(f"{name} {commit}" for name, commit in commits.items()), server]


def _lateness(benches: Sequence[Bench], rounds: int, only: Mapping[str, str]) -> Found:
    cells = busy.Busy().cells(_OURS)
    cases = [
        cell.params
        for cell in cells
        if all(str(cell.params.get(name)) == value for name, value in only.items())
    ]
    found: Found = {json.dumps(params): ([], []) for params in cases}
    for turn in range(rounds):
        for params in cases:
            # The two checkouts take turns in going first.
            for side in (0, 1) if turn % 2 else (1, 0):
                random.seed(str(turn))
                benches[side].server.clear()
                figures = busy.measure(benches[side], _OURS, **params)
                found[json.dumps(params)][side].append(figures)
                _tell(f"round {turn + 1}/{rounds}  {params}  {('base', 'head')[side]}: {figures}")
    return found


def _locks(bench: Bench) -> Counts:
    bench.server.clear()
    calls, handled = locks.observe(bench, _OURS)
    ways = locks.on_the_way(calls, handled)
    way = list(chain.from_iterable(ways))
    return Counts(
        locks.summary(calls, handled),
        locks.tally(calls, len(handled)),
        locks.tally(way, len(ways)),
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(found: Found) -> list[str]:
    """Return the lines of the table of lateness."""
    rows = []
    for params, (old, new) in found.items():
        case = [str(value) for value in json.loads(params).values()]
        figures = [_pair(old, new, name) for name in (*_TIMES, *_COUNTS, _SHARE)]
        rows.append([*case, *figures, number(_ratio(old, new, "p50"))])
    return aligned(("nodes", "busy", "switch ms", *_TIMES, *_COUNTS, _SHARE, "p50 ratio"), rows, 0)


def _pair(old: Sequence[dict[str, float]], new: Sequence[dict[str, float]], name: str) -> str:
    # The worst round counts for what must be zero, so that a single early event is seen.
    pick: Any = max if name == "early" else statistics.median
    values = [[figures[name] for figures in side if name in figures] for side in (old, new)]
    return " > ".join(number(pick(side)) if side else MISSING for side in values)


def _ratio(
    old: Sequence[dict[str, float]], new: Sequence[dict[str, float]], name: str
) -> float | None:
    mine, theirs = (dict(enumerate(one[name] for one in side)) for side in (new, old))
    return ratio(mine, theirs)


def table_of_locks(base: Counts, head: Counts) -> list[str]:
    """Return the lines of the table of the interpreter's lock."""
    sides = base, head
    rows = [
        ["all threads", name, "", *(number(side.totals.get(name)) for side in sides), "", ""]
        for name in {**base.totals, **head.totals}
    ]
    rows += [
        [
            *kind,
            *(number(side.calls.get(kind, 0)) for side in sides),
            *(number(side.way.get(kind, 0)) for side in sides),
        ]
        for kind in sorted({*base.calls, *head.calls})
    ]
    heads = ("base", "head", "base, due to handler", "head, due to handler")
    return aligned(("thread", "call", "", *heads), rows, left=3)
