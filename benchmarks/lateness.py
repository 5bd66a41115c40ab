"""
How late events are: 300 of them, due at random moments of 10 s, on one node.

The node and the poster are processes of their own, the options are the defaults. An event
is late by the time from the moment it was due to the call of its handler (*handler*), and
part of that is the time to its claim by the server's clock (*claim*, what ``lateness_ms``
says). Early is what no event may be.

Meanwhile this process waits for as many random moments of its own, by a bare ``select``, and
is late itself (*bare wait*): that much is the machine's. Where its p99 is above a millisecond
or two the machine is not quiet, and the p99 of the events says little about dtimer.

With ``--live`` each event is posted a quarter of a second before it is due, and not all of
them at the beginning; then there is no bare wait.
"""

from __future__ import annotations

import argparse
import random
import select
import time
from collections.abc import Sequence

from benchmarks.harness import Bench, Report, quantiles, run
from dtimer import DTimer

_AHEAD = 0.25  # seconds, with --live


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--live", action="store_true", help="post each event just before")


def _wait(start: float, moments: Sequence[float]) -> list[float]:
    """Wait for each of the moments, and return by how many ms that took too long."""
    late = []
    for moment in moments:
        select.select([], [], [], max(0.0, start + moment - time.time()))
        late.append((time.time() - start - moment) * 1000)
    return late


def _post(poster: DTimer, start: float, moments: Sequence[float], *, live: bool) -> None:
    if not live:
        poster.post_many({"ev": {"n": n}, "at": (start + m) * 1000} for n, m in enumerate(moments))
        return
    for n, moment in enumerate(moments):
        time.sleep(max(0.0, start + moment - _AHEAD - time.time()))
        poster.post({"n": n}, at=(start + moment) * 1000)


def measure(bench: Bench) -> list[Report]:
    """Return one table, a run a row and the two kinds of lateness in turn."""
    given = bench.arguments
    report = Report(
        f"lateness in ms: {given.events} events in {given.seconds:g} s, default options"
        + (", posted live" if given.live else ""),
        ("to", "min", "p50", "p90", "p99", "max", "early", "events"),
    )
    poster = DTimer("poster", bench.url, ns=bench.ns)
    dice = random.Random(1)
    for number in range(given.runs):
        moments, others = (
            sorted(dice.uniform(0, given.seconds) for _ in range(given.events)) for _ in range(2)
        )
        with bench.node(given.events) as node:
            start = time.time() + 0.5
            _post(poster, start, moments, live=given.live)
            bare = [] if given.live else _wait(start, others)
            handled = node.read()
        for name, late in (
            ("handler", [at - due for at, due, _, _ in handled]),
            ("claim", [by for _, _, by, _ in handled]),
            ("bare wait", bare),
        ):
            if not late:
                continue
            parts = quantiles(late, 0.5, 0.9, 0.99)
            early = sum(by < 0 for by in late)
            row = (min(late), *parts, max(late), early, len(late))
            report.rows.append((f"{name} {number + 1}", *row))
        bench.clear()
    poster.leave()
    return [report]


def main() -> None:
    """Be a program."""
    run(measure, __doc__, _options)


if __name__ == "__main__":
    main()
