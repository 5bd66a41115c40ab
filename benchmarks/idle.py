"""
What an idle node costs: commands of its server, and processor time of its own.

A node of default options waits, in an empty namespace and in one with a thousand events
that are due in a year. *calls* are scripts that it asked for, *commands* everything that
the server counts, the inside of scripts included.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench, Report, run
from dtimer import DTimer

_YEAR = 365 * 86_400_000


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--idle-seconds", type=float, default=10.0)


def _processor(pid: int) -> float:
    """Return the seconds of processor time that a process has had so far."""
    # In /proc/<pid>/stat, after the name in parentheses, which may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> float:
    """Return the resident memory of a process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _counted(bench: Bench) -> tuple[int, int]:
    stats: Any = bench.client.info("commandstats")
    calls = sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))
    ours = ("cmdstat_info", "cmdstat_client|setinfo", "cmdstat_client|setname")
    return calls, sum(one["calls"] for name, one in stats.items() if name not in ours)


def measure(bench: Bench) -> list[Report]:
    """Return one table, a namespace a row."""
    seconds = bench.arguments.idle_seconds
    report = Report(
        f"one idle node for {seconds:g} s, default options",
        ("pending", "calls/s", "commands/s", "processor %", "server %", "MB", "threads"),
    )
    poster = DTimer("poster", bench.url, ns=bench.ns)
    info: Any = bench.client.info("server")
    server = info["process_id"]
    for pending in (0, 1_000):
        poster.post_many(({"n": n}, _YEAR) for n in range(pending))
        with bench.node(0) as node:
            pid = node.process.pid
            # The first turns are not those of a node that idles.
            time.sleep(1)
            before = (*_counted(bench), _processor(pid), _processor(server))
            began = time.monotonic()
            time.sleep(seconds)
            elapsed = time.monotonic() - began
            after = (*_counted(bench), _processor(pid), _processor(server))
            memory, threads = _memory(pid), len(os.listdir(f"/proc/{pid}/task"))
        calls, commands, own, servers = (
            (b - a) / elapsed for a, b in zip(before, after, strict=True)
        )
        row = (calls, commands, 100 * own, 100 * servers, memory, threads)
        report.rows.append((pending, *row))
        bench.clear()
    poster.leave()
    return [report]


def main() -> None:
    """Be a program."""
    run(measure, __doc__, _options)


if __name__ == "__main__":
    main()
