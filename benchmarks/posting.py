"""
How fast one process posts: one by one, many at a time, and beside the floor.

The floor is a loop of bare EVALSHA calls of redis-py with as many keys and words as a post
has, on a script that does nothing. The rounds take turns, so that a machine that slows
down slows them all; the ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks.harness import Bench, Report, each_second, median, run
from dtimer import DTimer

_FAR = 3_600_000


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--number", type=int, default=2_000, help="of posts in a round")


def measure(bench: Bench) -> list[Report]:
    """Return one table, a way of posting a row."""
    number = bench.arguments.number
    timer = DTimer("poster", bench.url, ns=bench.ns)
    floor = bench.evalsha_floor()

    def one_by_one(count: int) -> None:
        for n in range(count):
            timer.post({"i": n, "k": "abcdefghij"}, _FAR)

    def many(count: int) -> None:
        timer.post_many(({"i": n, "k": "abcdefghij"}, _FAR) for n in range(count))

    ways: dict[str, tuple[int, Callable[[int], None]]] = {
        "bare EVALSHA": (number, floor),
        "post": (number, one_by_one),
        "post_many": (5 * number, many),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    one_by_one(200)
    for _ in range(bench.arguments.rounds):
        for name, (count, work) in ways.items():
            speeds[name].append(each_second(count, lambda work=work, count=count: work(count)))  # type: ignore[misc]
        bench.clear()
        timer.leave()  # and its connection with it: every round begins alike
    report = Report(
        f"posting, events/s of one process: {bench.arguments.rounds} rounds of {number}",
        ("way", "median", "lowest", "highest", "of the floor"),
    )
    for name, found in speeds.items():
        ratios = [one / bare for one, bare in zip(found, speeds["bare EVALSHA"], strict=True)]
        report.rows.append((name, median(found), min(found), max(found), median(ratios)))
    return [report]


def main() -> None:
    """Be a program."""
    run(measure, __doc__, _options)


if __name__ == "__main__":
    main()
