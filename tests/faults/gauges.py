"""What the nodes of this process cost, read at the beginning and at the end of a fault."""

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

from dtimer.store.ear import Ear
from dtimer.store.wire import Wire

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
    """What had been used up by then."""

    at: float
    threads: set[threading.Thread]
    cpu: float
    connects: int
    lines: int
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
    Counts what the threads of nodes use, and what they ask of their server.

    A context manager. What is asked is counted where it is asked: a server that is not
    there counts nothing, and one that is counts what the test itself asks as well.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        #: How many connections threads of nodes have tried to make.
        self.connects = 0
        #: How many scripts they have called, and subscriptions made, or tried to.
        self.calls = 0
        self._lines = _Lines()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self._lines)
        self._count(socket.socket, "connect", "connects")
        self._count(Wire, "send", "calls")
        self._count(Ear, "open", "calls")
        return self

    def _count(self, owner: type, name: str, what: str) -> None:
        """Have the calls of a method counted, those by threads of nodes."""
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
        """What was logged as a warning or worse."""
        return list(self._lines.kept)

    def read(self) -> Reading:
        """Read everything; the server must answer."""
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
        """Return what was used since then; the server must answer."""
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
