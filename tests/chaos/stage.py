"""Where a rehearsal takes place: a time of its own, processes, and calls that may go wrong."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chaos.model_server import Server
from chaos.story import MONO, SERVER

MS = 1_000_000
TIMEOUT = 300 * MS

Record = dict[str, Any]


@dataclass(eq=False)
class Process:
    """One process: alive, stopped, or gone."""

    p: str
    alive: bool = True
    stopped_until: int = 0
    settling: list[tuple[Record, str]] = field(default_factory=list)
    busy: bool = False


class Stage:
    """
    Keeps the time and the records.

    Attributes:
        now: On the monotonic clock, in ns.
        away_until: Until then the server does not answer.
        trouble: Whether calls go wrong.
        records: What each process recorded.
    """

    def __init__(self, seed: int, *, trouble: bool) -> None:
        self.random = random.Random(seed)
        self.server = Server()
        self.now = MONO
        self.trouble = trouble
        self.away_until = 0
        self.k = itertools.count(1)
        self.records: dict[str, list[Record]] = defaultdict(list)
        self._heap: list[tuple[int, int, Process | None, Callable[[], None]]] = []
        self._order = itertools.count()

    def run(self) -> None:
        """Do all that is to be done, in the order of time."""
        while self._heap:
            t, _, process, act = heapq.heappop(self._heap)
            self.now = max(self.now, t)
            if process is None:
                act()
            elif process.alive and process.stopped_until > self.now:
                self.at(process.stopped_until + self.some(0, 2), process, act)
            elif process.alive:
                act()

    def at(self, t: int, process: Process | None, act: Callable[[], None]) -> None:
        """Have *act* done at a moment, by a process that lives then, or by none."""
        heapq.heappush(self._heap, (t, next(self._order), process, act))

    def after(self, ms: float, process: Process | None, act: Callable[[], None]) -> None:
        """Have *act* done so many ms from now."""
        self.at(self.now + round(ms * MS), process, act)

    def some(self, low: float, high: float) -> int:
        """Return so many ms, at random, in ns."""
        return round(self.random.uniform(low, high) * MS)

    def chance(self, share: float) -> bool:
        """Return True this often."""
        return self.random.random() < share

    def us(self) -> int:
        """Return the server's time."""
        return SERVER + (self.now - MONO) // 1000

    def say(self, process: Process | None, op: str, ph: str = "ok", **fields: Any) -> None:
        """Record something; by the supervisor where there is no process."""
        p = process.p if process else "supervisor.9"
        self.records[p].append({"t": self.now, "p": p, "op": op, "ph": ph} | fields)

    def ask_the_time(self) -> None:
        """Have the supervisor ask the server for the time."""
        k = next(self.k)
        self.say(None, "clock", "inv", k=k)
        us = self.us()
        self.now += MS // 10
        self.say(None, "clock", k=k, srv=us)

    # ---------------------------------------------------------------------------------- calls

    def call(
        self,
        process: Process,
        op: str,
        verb: Callable[[], Record | None],
        then: Callable[[Record | None], None] | None = None,
        **fields: Any,
    ) -> None:
        """Make a call: done once, or perhaps not, or later than anybody waits for."""
        k = next(self.k)
        self.say(process, op, "inv", k=k, **fields)

        def end(ph: str, said: Record | None = None) -> None:
            self.say(process, op, ph, k=k, **(said or {}))
            if then:
                then(said if ph == "ok" else None)

        def act() -> None:
            said = verb()
            slow = self.some(90, 120) if self.trouble and self.chance(0.05) else 0
            ph = "no" if said is None else "ok"
            self.at(self.now + slow + self.some(0.05, 0.5), process, lambda: end(ph, said))

        away = self.away_until > self.now
        if self.trouble and (away or self.chance(0.06)):
            fate = self.random.choice(["done", "late", "lost", "refused"])
            if fate in ("done", "late"):
                wait = self.some(0.1, 250) if fate == "done" else self.some(250, 900)
                self.at(max(self.now + wait, self.away_until), None, lambda: void(verb()))
            ph = "no" if fate == "refused" else "info"
            self.at(self.now + TIMEOUT, process, lambda: end(ph))
            return
        self.at(self.now + self.some(0.05, 0.5), None, act)


def void(_: object) -> None:
    """Nobody waits for it."""
