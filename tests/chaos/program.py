"""
What the programs of the soak have in common: a name, a seed, a record, and orders.

Each is a process of its own, run as ``python -m chaos.<program> <setting>``. The setting is
a JSON object; orders come on standard input, one JSON object a line, and its end means to
finish in good order. Nothing is ever said on standard error: the soak fails on a single byte.
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
from chaos.pulse import Pulse


class Program:
    """
    One process of the soak.

    Its setting has ``name``, ``start`` (how often a program was started before, over all of
    them), ``seed``, ``folder`` (of the history), ``url``, ``ns`` and ``options`` (of timers),
    and whatever else the program wants; in a cluster ``home``, the port of the server there.
    """

    def __init__(self, text: str) -> None:
        # Asked for by the supervisor when a process does not end.
        faulthandler.register(signal.SIGUSR1)
        logging.getLogger("dtimer").addHandler(_Log(self))
        self.setting: dict[str, Any] = json.loads(text)
        self.name: str = self.setting["name"]
        self.start: int = self.setting["start"]
        self.rng = random.Random(f"{self.setting['seed']} {self.name} {self.start}")
        self.pen = Writer(self.setting["folder"], self.name)
        self._serial = self.start * 10_000_000
        self._lock = threading.Lock()
        self._rest = b""
        #: Set when standard input has ended.
        self.ended = threading.Event()
        self._before = descriptors()
        self.pen.note("node", phase="begin", start=self.start, rss=rss(), **self._limits())
        self._pulse = Pulse(self.pen)
        self._pulse.__enter__()
        self._clients: list[Any] = []
        #: What timers are given: a URL, or a client of the cluster.
        self.way: Any = self.setting["url"]
        if "home" in self.setting:
            self.way = cluster.client(self.way, self.setting["home"], self.ended)
            self._clients.append(self.way)

    def _limits(self) -> dict[str, Any]:
        options = self.setting["options"]
        names = [name for name in ("timeout", "max_run") if name in options]
        return {f"{name}_ms": options[name] for name in names}

    def serial(self) -> int:
        """Return a number that nobody else in the run uses."""
        with self._lock:
            self._serial += 1
            return self._serial

    def orders(self, seconds: float) -> list[dict[str, Any]]:
        """Wait so long for orders, and return those that came; see `ended`."""
        if not select.select([sys.stdin], [], [], max(0.0, seconds))[0]:
            return []
        data = os.read(sys.stdin.fileno(), 65_536)
        if not data:
            self.ended.set()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def finish(self) -> None:
        """Record the end, and what is left of a program that has closed all it had opened."""
        self._pulse.__exit__()
        for client in self._clients:
            client.close()
        deadline = time.monotonic() + 5
        pause = threading.Event()
        while (threads() or descriptors() - self._before) and time.monotonic() < deadline:
            pause.wait(0.01)
        # The record's own file is among those that were open before.
        left = sorted(descriptors() - self._before)
        self.pen.note("node", phase="end", threads=threads(), descriptors=left, rss=rss())
        self.pen.close()


class _Log(logging.Handler):
    """Has what the library logs recorded: it is no complaint of the program's."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program

    def emit(self, record: logging.LogRecord) -> None:
        """Record it."""
        self._program.pen.note("log", level=record.levelname, text=record.getMessage()[:300])


class Thread(threading.Thread):
    """A thread whose failure is the failure of its program."""

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
        """Wait for its end, and raise what it raised."""
        self.join()
        if not self._failures.empty():
            raise self._failures.get()


def rss() -> int:
    """Return the memory of this process that is resident, in KiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024
