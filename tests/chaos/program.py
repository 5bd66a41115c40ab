"""
The base of the soak's programs: a name, a seed, a history, and orders.

Each program is a process of its own, run as ``python -m chaos.<program> <setting>``. The setting is
a JSON object. Orders arrive on standard input, one JSON object a line. If standard input ends, the
program must end properly. A program writes nothing to its standard error: a single byte fails the
soak.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import queue
import random
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from leftovers import descriptors, threads

from chaos import cluster
from chaos.history import Writer
from chaos.starvation import StarvationMonitor
from dtimer.errors import HandlerError, LeaseLost


class Program:
    """
    A process of the soak.

    The setting has ``name``, ``start`` (the number of this start, counting all programs), ``seed``,
    ``folder`` (of the history), ``url``, ``options`` (of timers), and more that the program needs.
    In a cluster, it has ``home_port``, the port of the server.
    """

    def __init__(self, text: str) -> None:
        # The runner sends this signal if the process does not end.
        faulthandler.register(signal.SIGUSR1)
        logging.getLogger("dtimer").addHandler(_Log(self))
        self.setting: dict[str, Any] = json.loads(text)
        self.name: str = self.setting["name"]
        self.start: int = self.setting["start"]
        self.rng = random.Random(f"{self.setting['seed']} {self.name} {self.start}")
        self.writer = Writer(self.setting["folder"], self.name)
        self._serial = self.start * 10_000_000
        self._lock = threading.Lock()
        self._rest = b""
        #: Set when standard input has ended.
        self.ended = threading.Event()
        self._before = descriptors()
        self.writer.note("node", phase="begin", start=self.start, rss=rss(), **self._limits())
        self._starvation = StarvationMonitor(self.writer)
        self._starvation.__enter__()
        self._clients: list[Any] = []
        #: How timers reach the server: a URL, or a client of the cluster.
        self.client_or_url: Any = self.setting["url"]
        if "home_port" in self.setting:
            self.client_or_url = cluster.client(
                self.client_or_url, self.setting["home_port"], self.ended
            )
            self._clients.append(self.client_or_url)

    def _limits(self) -> dict[str, Any]:
        options = self.setting["options"]
        names = [name for name in ("timeout", "max_run") if name in options]
        return {f"{name}_ms": options[name] for name in names}

    def note_error(self, error: BaseException) -> None:
        """Record an error that a timer emitted, unless a handler or a lost lease caused it."""
        if not isinstance(error, HandlerError | LeaseLost):
            self.writer.note("error", kind=type(error).__name__, text=str(error)[:300])

    def serial(self) -> int:
        """Return a number that is unique in the run."""
        with self._lock:
            self._serial += 1
            return self._serial

    def orders(self, seconds: float) -> list[dict[str, Any]]:
        """Wait for orders for some seconds, and return them; sets `ended` if the input ends."""
        if not select.select([sys.stdin], [], [], max(0.0, seconds))[0]:
            return []
        data = os.read(sys.stdin.fileno(), 65_536)
        if not data:
            self.ended.set()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def finish(self) -> None:
        """Record the end of the program, and the threads and descriptors that are left."""
        self._starvation.__exit__()
        for client in self._clients:
            client.close()
        deadline = time.monotonic() + 5
        pause = threading.Event()
        while (threads() or descriptors() - self._before) and time.monotonic() < deadline:
            pause.wait(0.01)
        # The file of the history is not among them, because it was open before.
        left = sorted(descriptors() - self._before)
        self.writer.note("node", phase="end", threads=threads(), descriptors=left, rss=rss())
        self.writer.close()


class _Log(logging.Handler):
    """Writes what the library logs to the history, because standard error must stay empty."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program

    def emit(self, record: logging.LogRecord) -> None:
        self._program.writer.note("log", level=record.levelname, text=record.getMessage()[:300])


class Thread(threading.Thread):
    """A thread whose exception `result` raises, so that it ends the program."""

    def __init__(self, name: str, body: Callable[[], None]) -> None:
        super().__init__(name=name)
        self._body = body
        self._failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def run(self) -> None:
        try:
            self._body()
        except BaseException as e:
            self._failures.put(e)

    def result(self) -> None:
        """Wait for the end of the thread, and raise its exception."""
        self.join()
        if not self._failures.empty():
            raise self._failures.get()


def rss() -> int:
    """Return the resident memory of this process, in KiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024
