"""What the measurements share: a server, nodes in processes, rounds, and the printing."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redis

import dtimer
from dtimer.store import embedded

#: Seconds after which something that must have come is not waited for any more.
PATIENCE = 120

ROOT = Path(dtimer.__file__).parents[1]


@dataclass
class Report:
    """The outcome of one measurement: what was measured, how, and the rows of a table."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def print(self, about: dict[str, Any]) -> None:
        """Print the table, and what it is of."""
        cells = [list(self.columns), *([_cell(value) for value in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        print(self.title)
        for number, row in enumerate(cells):
            first, *rest = (cell.rjust(w) for cell, w in zip(row, widths, strict=True))
            print("  " + "  ".join([row[0].ljust(len(first)), *rest]))
            if number == 0:
                print("  " + "  ".join("-" * width for width in widths))
        for note in self.notes:
            print(f"  {note}")
        print("  " + ", ".join(f"{name} {value}" for name, value in about.items()))

    def as_dict(self, about: dict[str, Any]) -> dict[str, Any]:
        """Return all of it for ``--json``."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows, "notes": self.notes, "about": about}


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def about(client: Any) -> dict[str, Any]:
    """Return the machine, and the versions of everything that takes part."""
    info: Any = client.info("server")
    return {
        "dtimer": dtimer.__version__,
        "server": f"{info.get('server_name', 'redis')} "
        + info.get("valkey_version", info["redis_version"]),
        "redis-py": redis.__version__,
        "hiredis": _version("hiredis"),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "cpu": _cpu(),
        "kernel": platform.release(),
        "load before": round(os.getloadavg()[0], 2),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "?"


def quantiles(values: Sequence[float], *parts: float) -> list[float]:
    """Return these quantiles, each of them a value that occurred (the nearest rank)."""
    ordered = sorted(values)
    return [ordered[min(len(ordered) - 1, int(part * len(ordered)))] for part in parts]


def median(values: Sequence[float]) -> float:
    """Return the middle one."""
    return statistics.median(values)


def each_second(number: int, work: Callable[[], object]) -> float:
    """Return how many of *number* things are done in a second by *work*, which does them all."""
    began = time.perf_counter()
    work()
    return number / (time.perf_counter() - began)


class Bench:
    """One run: the arguments, the server, a client of it and a namespace."""

    def __init__(self, url: str, arguments: argparse.Namespace) -> None:
        self.url = url
        self.arguments = arguments
        self.client = redis.Redis.from_url(url)
        self.ns = f"bench-{os.getpid()}"
        self.about = about(self.client)

    def clear(self) -> None:
        """Remove the namespace, and no other key."""
        for key in self.client.scan_iter(match=f"dtimer:{{{self.ns}}}:*", count=1000):
            self.client.delete(key)

    def eventually(self, condition: Callable[[], object]) -> None:
        """Wait for *condition*, without taking much of the processor from what it is about."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {PATIENCE} s")
            time.sleep(0.02)

    @contextlib.contextmanager
    def node(self, count: int, **options: Any) -> Iterator[Node]:
        """Run a node in a process of its own, which expects *count* events."""
        with Node(self.url, self.ns, count, options) as node:
            yield node

    def evalsha_floor(self) -> Callable[[int], None]:
        """
        Return what makes so many bare calls of redis-py, each with as much to say as a post.

        The script does nothing: it is the price of asking, and of nothing else.
        """
        client: Any = self.client
        sha = client.script_load("return 1")
        keys = [f"dtimer:{{{self.ns}}}:{name}" for name in "abcdefghijklm"]
        words = ["", "abcdefghijkl:1", "mint", "abcdefghijkl", "+0", "", '3|{"msg":"hello"}']

        def work(number: int) -> None:
            for _ in range(number):
                client.evalsha(sha, 13, *keys, *words)

        work(100)
        return work


class Node:
    """A node in a process of its own (`benchmarks.node`), from this side."""

    def __init__(self, url: str, ns: str, count: int, options: dict[str, Any]) -> None:
        setting = {"url": url, "ns": ns, "count": count, "options": options}
        command = [sys.executable, "-m", "benchmarks.node", json.dumps(setting)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        self.read()

    def read(self) -> Any:
        """Return what the node says next."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the node ended before its time")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=PATIENCE)


def run(
    measure: Callable[[Bench], Sequence[Report]],
    description: str | None,
    options: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> None:
    """Be the program of one measurement: read the arguments, measure, and print."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--url", help="a server that runs already (default: one of our own)")
    options(parser)
    arguments, _ = parser.parse_known_args()
    with contextlib.ExitStack() as stack:
        url = arguments.url
        if url is None:
            url = f"unix://{stack.enter_context(embedded.attach('embedded:')).socket}"
        bench = Bench(url, arguments)
        stack.callback(bench.client.close)
        stack.callback(bench.clear)
        bench.clear()
        reports = measure(bench)
        bench.about["load after"] = round(os.getloadavg()[0], 2)
    if arguments.json:
        print(json.dumps([report.as_dict(bench.about) for report in reports]))
    else:
        for report in reports:
            report.print(bench.about)
