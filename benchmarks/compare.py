"""
Compare the CPU time an event of two checkouts, as the median of ratios of interleaved rounds.

Both checkouts do the same work one after the other within a round, so that other load on the
machine affects both. A difference inside the spread of the ratios counts as none.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.server import Server

_SPEND = Path(__file__).with_name("peers") / "spend.py"

#: The works, with the number of events in a round. In ``lone``, events come one at a time.
WORKS: dict[str, int] = {
    "drain1": 2_000,
    "drain10": 10_000,
    "drain100": 20_000,
    "post": 2_000,
    "post_many": 20_000,
    "lone": 40,
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the ratios of head to base, with the quartiles."""

    low: float
    median: float
    high: float

    @property
    def none(self) -> bool:
        """True if the spread contains 1, so that no difference is shown."""
        return self.low <= 1 <= self.high

    def __str__(self) -> str:
        verdict = "no difference" if self.none else f"{(self.median - 1) * 100:+.1f} %"
        return f"{self.median:6.3f}  [{self.low:.3f}, {self.high:.3f}]  {verdict}"


def ratio(base: Sequence[float], head: Sequence[float]) -> Ratio:
    """
    Return the median and the spread of the ratios of *head* to *base* in each round.

    Rounds in which the base cost less than the resolution of the clock are left out.

    Raises:
        ValueError: fewer than two rounds are left.
    """
    ratios = [h / b for b, h in zip(base, head, strict=True) if b > 0]
    if len(ratios) < 2:
        raise ValueError("a spread needs at least two rounds")
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(low, median, high)


def _spend(server: Server, checkout: Path, work: str, count: int) -> dict[str, float]:
    server.clear()
    words = [sys.executable, str(_SPEND), server.url, str(server.pid), work, str(count)]
    env = os.environ | {"PYTHONPATH": str(checkout.resolve()), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{work} of {checkout}: {done.stderr.strip()[-1000:]}")
    return dict(json.loads(done.stdout))


def compare(base: Path, head: Path, rounds: int) -> None:
    """Measure two checkouts of the project; print the ratios of *head* to *base*."""
    began = time.monotonic()
    found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    server = Server()
    try:
        for number in range(rounds):
            for work, count in WORKS.items():
                # The two checkouts take turns in going first.
                for side in (0, 1) if number % 2 else (1, 0):
                    for what, cost in _spend(server, (base, head)[side], work, count).items():
                        found.setdefault((work, what), ([], []))[side].append(cost)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    finally:
        server.close()
    print(f"{rounds} rounds in {time.monotonic() - began:.0f} s; µs an event; head / base")
    for (work, what), (old, new) in found.items():
        medians = f"{statistics.median(old):9.1f} {statistics.median(new):9.1f}"
        print(f"{work:10} {what:7} {medians}  {ratio(old, new)}")
