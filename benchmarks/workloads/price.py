"""The price of a node, and of a shorter switch interval, for the threads that compute beside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.bench import SETTLE, Bench, Cell, now_us, way_of
from benchmarks.contenders import Contender
from benchmarks.contenders.contender import DEFAULTS

_SECONDS = 5.0
_RATE = 100  # events a second of a busy node
_LEAD = 1.5  # seconds for posting all events

_NODES, _THREADS, _SWITCHES = ("none", "idle", "busy"), (1, 4), (5, 0.5)


class Price:
    """
    The additions that computing threads do in a second, all threads together, in millions.

    ``threads`` threads run loops of pure Python with the switch interval ``switch`` (ms). Their
    process has no node, an idle node, or a busy node, which gets 100 events a second. The ratio is
    to the same threads without a node at the default interval of 5 ms. ``M/CPU s`` is the same for
    each second of CPU time of the process, the node included: other load on the machine affects it
    less.
    """

    name = "price"
    title = "price: work of threads that compute beside a node"
    main = "M/s"
    more_is_better = True
    unit = "million additions/s"
    parts: tuple[str, ...] = ()

    def cells(self, contender: Contender) -> Sequence[Cell]:
        """See `Work.cells`."""
        if not contender.ours or contender.setting != DEFAULTS:
            return []
        return [
            Cell(self.name, contender, {"node": node, "threads": threads, "switch": switch})
            for node in _NODES
            for threads in _THREADS
            for switch in _SWITCHES
        ]

    def reference(self, params: dict[str, Any]) -> dict[str, Any]:
        """See `Work.reference`: no node, and the default interval."""
        return params | {"node": _NODES[0], "switch": _SWITCHES[0]}

    def measure(self, bench: Bench, cell: Cell) -> dict[str, float]:
        """See `Work.measure`."""
        return measure(bench, cell.contender, **cell.params)


def measure(
    bench: Bench, contender: Contender, *, node: str, threads: int, switch: float
) -> dict[str, float]:
    """Measure on the server as it is."""
    seconds = _SECONDS * bench.scale.seconds / 10
    burn = {"threads": threads, "switch": switch / 1000}
    with contextlib.ExitStack() as stack:
        if node == "none":
            driver = stack.enter_context(bench.poster(contender))
            driver.ask({"do": "burn", **burn})
        else:
            team = stack.enter_context(bench.team(contender, burn=burn))
            driver = team.drivers[0]
        if node == "busy":
            poster = stack.enter_context(bench.poster(contender))
            start, count = now_us() + round(_LEAD * 1e6), int(_RATE * (seconds + SETTLE))
            dues = [start + n * 1_000_000 // _RATE for n in range(count)]
            poster.ask({"do": "post_at", "dues": dues, "way": way_of(contender), "size": 50})
            time.sleep(max(0.0, (start - now_us()) / 1e6))
        time.sleep(SETTLE)
        handled = len(team.journal) if node != "none" else 0
        before = driver.ask({"do": "additions"})
        time.sleep(seconds)
        after = driver.ask({"do": "additions"})
        handled = len(team.journal) - handled if node != "none" else 0
    return summary(before, after, handled)


def summary(before: dict[str, float], after: dict[str, float], handled: int) -> dict[str, float]:
    """Return the figures of two answers of the process that computes."""
    additions, took, cpu = (after[name] - before[name] for name in ("additions", "at", "cpu"))
    return {
        "M/s": additions / took / 1e6,
        "M/CPU s": additions / cpu / 1e6,
        "events/s": handled / took,
    }
