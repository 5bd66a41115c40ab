"""
How fast one node gets through a backlog: 20 000 events, all due at one moment.

Measured from the first handler to the last, with 1, 10 and 100 events handed to a handler
at a time. Before and after each drain the floor is measured, a loop of bare EVALSHA calls
of redis-py: the ratio is to the mean of the two.
"""

from __future__ import annotations

import argparse
import time

from benchmarks.harness import Bench, Report, each_second, median, run
from dtimer import DTimer

_FLOOR = 2_000


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 10, 100])
    parser.add_argument("--runs", type=int, default=3)


def measure(bench: Bench) -> list[Report]:
    """Return one table, a size of batch a row."""
    given = bench.arguments
    report = Report(
        f"drain, events/s of one node: {given.events} due at once, {given.runs} runs",
        (
            "batch",
            "median",
            "lowest",
            "highest",
            "floor",
            "of the floor",
            "first after ms",
            "twice",
        ),
    )
    poster = DTimer("poster", bench.url, ns=bench.ns)
    floor = bench.evalsha_floor()
    for batch in given.batches:
        speeds, floors, firsts, twice = [], [], [], 0
        for _ in range(given.runs):
            before = each_second(_FLOOR, lambda: floor(_FLOOR))
            with bench.node(given.events, max_events=batch) as node:
                # Far enough ahead for all of them to be there by then.
                due = time.time() * 1000 + 1_000 + given.events / 10
                poster.post_many({"ev": {"i": i}, "at": due} for i in range(given.events))
                handled = node.read()
                bench.eventually(lambda: not poster.stats().in_flight)
            after = each_second(_FLOOR, lambda: floor(_FLOOR))
            began, ended = handled[0][0], handled[-1][0]
            speeds.append(len(handled) * 1000 / (ended - began))
            floors.append((before + after) / 2)
            firsts.append(began - due)
            twice += sum(attempt > 1 for *_, attempt in handled)
            bench.clear()
        ratios = [speed / bare for speed, bare in zip(speeds, floors, strict=True)]
        row = (median(speeds), min(speeds), max(speeds), median(floors), median(ratios))
        report.rows.append((batch, *row, median(firsts), twice))
    poster.leave()
    return [report]


def main() -> None:
    """Be a program."""
    run(measure, __doc__, _options)


if __name__ == "__main__":
    main()
