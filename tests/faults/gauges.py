"""Measure what the nodes of this process use during a fault: CPU, connections, calls, log lines."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dtimer.store.connection.connection import Connection
from dtimer.store.connection.subscription import Subscription

PREFIX = "dtimer-"


def node_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith(PREFIX)}


def _cpu(threads: set[threading.Thread]) -> float:
    """Return the CPU seconds that *threads* have used; 0 if the kernel does not report them."""
    used = 0.0
    for thread in threads:
        with contextlib.suppress(OSError):
            path = Path(f"/proc/self/task/{thread.native_id}/schedstat")
            used += int(path.read_text().split()[0]) / 1e9
    return used


def resident() -> int:
    """Return the resident memory of this process, in bytes; 0 if the kernel does not report it."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    return 0


class _Lines(logging.Handler):
    """Keeps the warnings and errors that any library logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(f"{record.name}: {record.getMessage()}"[:300])


@dataclass(frozen=True)
class Reading:
    """The totals at one moment."""

    at: float
    threads: set[threading.Thread]
    cpu: float
    connects: int
    lines: int
    calls: int
    connections: int


@dataclass(frozen=True)
class Cost:
    """The difference between two readings: see `Gauges.since`."""

    seconds: float
    cpu: float
    connects: int
    lines: list[str]
    calls: int
    connections: int
    ended: set[str]


class Gauges:
    """
    Measures what the threads of nodes use, and counts their connections and calls.

    A context manager. Calls are counted in this process, not by the server. A server that is down
    counts nothing, and a running one also counts the calls of the test.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        #: How often threads of nodes have tried to connect.
        self.connects = 0
        #: How often they have tried to call a script or to subscribe.
        self.calls = 0
        self._lines = _Lines()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self._lines)
        self._count(socket.socket, "connect", "connects")
        self._count(Connection, "send", "calls")
        self._count(Subscription, "open", "calls")
        return self

    def _count(self, owner: type, name: str, what: str) -> None:
        """Replace a method so that calls by threads of nodes are counted."""
        before = getattr(owner, name)
        inherited = name not in vars(owner)

        @functools.wraps(before)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name.startswith(PREFIX):
                setattr(self, what, getattr(self, what) + 1)
            return before(*args, **kwargs)

        setattr(owner, name, counted)
        if inherited:
            self._undo.callback(delattr, owner, name)
        else:
            self._undo.callback(setattr, owner, name, before)

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        logging.getLogger().removeHandler(self._lines)

    @property
    def lines(self) -> list[str]:
        """The logged warnings and errors."""
        return list(self._lines.kept)

    def read(self) -> Reading:
        """Return the totals; the server must answer."""
        threads = node_threads()
        return Reading(
            at=time.monotonic(),
            threads=threads,
            cpu=_cpu(threads),
            connects=self.connects,
            lines=len(self._lines.kept),
            calls=self.calls,
            connections=len(self._client.client_list()),
        )

    def since(self, before: Reading) -> Cost:
        """Return the difference to an earlier reading; the server must answer."""
        now = self.read()
        return Cost(
            seconds=now.at - before.at,
            cpu=_cpu(before.threads) - before.cpu,
            connects=now.connects - before.connects,
            lines=self._lines.kept[before.lines :],
            calls=now.calls - before.calls,
            connections=now.connections,
            ended={t.name for t in before.threads if not t.is_alive()},
        )
