"""What the nodes of this process cost, read at the beginning and at the end of a fault."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

PREFIX = "dtimer-"


def node_threads() -> set[threading.Thread]:
    """Return the threads of nodes that live."""
    return {t for t in threading.enumerate() if t.name.startswith(PREFIX)}


def _cpu(threads: set[threading.Thread]) -> float:
    """Return the seconds of CPU that these have used; 0 where the kernel does not tell."""
    used = 0.0
    for thread in threads:
        with contextlib.suppress(OSError):
            path = Path(f"/proc/self/task/{thread.native_id}/schedstat")
            used += int(path.read_text().split()[0]) / 1e9
    return used


def resident() -> int:
    """Return the bytes of memory that this process has; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    return 0


class _Lines(logging.Handler):
    """Keeps what is logged as a warning or worse by us or by the client library."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(f"{record.name}: {record.getMessage()}"[:300])


@dataclass(frozen=True)
class Reading:
    """What had been used up by then. ``run`` names the server's process."""

    at: float
    threads: set[threading.Thread]
    cpu: float
    connects: int
    lines: int
    run: str
    calls: int
    connections: int


@dataclass(frozen=True)
class Cost:
    """What was used between two readings: see `Gauges.since`."""

    seconds: float
    cpu: float
    connects: int
    lines: list[str]
    calls: int
    connections: int
    ended: set[str]


class Gauges:
    """
    Counts what is tried, by whom it costs: the threads of nodes, and their server.

    A context manager. Connections are counted where they are tried, because a server that
    is not there counts nothing.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        #: How many connections threads of nodes have tried to make.
        self.connects = 0
        self._lines = _Lines()
        self._before: Callable[..., Any] | None = None

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self._lines)
        self._before = before = socket.socket.connect

        def connect(sock: socket.socket, address: Any) -> None:
            if threading.current_thread().name.startswith(PREFIX):
                self.connects += 1
            before(sock, address)

        socket.socket.connect = connect  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        socket.socket.connect = self._before  # type: ignore[method-assign, assignment]
        logging.getLogger().removeHandler(self._lines)

    @property
    def lines(self) -> list[str]:
        """What was logged as a warning or worse."""
        return list(self._lines.kept)

    def read(self) -> Reading:
        """Read everything; the server must answer."""
        stats = self._client.info("commandstats")
        # Those that the server refused as well: it was asked.
        calls = sum(
            stats[name]["calls"] + stats[name].get("rejected_calls", 0)
            for name in ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_subscribe")
            if name in stats
        )
        threads = node_threads()
        return Reading(
            at=time.monotonic(),
            threads=threads,
            cpu=_cpu(threads),
            connects=self.connects,
            lines=len(self._lines.kept),
            run=self._client.info("server")["run_id"],
            calls=calls,
            connections=len(self._client.client_list()),
        )

    def since(self, before: Reading) -> Cost:
        """Return what was used since then; the server must answer."""
        now = self.read()
        return Cost(
            seconds=now.at - before.at,
            cpu=_cpu(before.threads) - before.cpu,
            connects=now.connects - before.connects,
            lines=self._lines.kept[before.lines :],
            # A server that was started again counts from nothing.
            calls=now.calls - (before.calls if now.run == before.run else 0),
            connections=now.connections,
            ended={t.name for t in before.threads if not t.is_alive()},
        )
