"""What a work is given: the server, and contenders' processes that begin and end with a block."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.driver import Driver, Journal
from benchmarks.server import Server

#: Seconds that consumers are given after they say that they consume, to come to rest.
SETTLE = 1.0

#: The scale that is published, and that targets are for, by its name.
FULL = "full"

_HOUR = 3_600_000_000


def now_us() -> int:
    """Return the wall clock, which is everybody's: all are on one machine."""
    return time.time_ns() // 1000


def far() -> int:
    """Return a moment that no run lives to see."""
    return now_us() + 24 * _HOUR


@dataclass
class Team:
    """Consumers that run, and what their handlers write."""

    drivers: list[Driver]
    journal: Journal
    ready: float

    @property
    def pids(self) -> list[int]:
        """The processes that a driver is the first of."""
        return [driver.process.pid for driver in self.drivers]


@dataclass(frozen=True)
class Cell:
    """One thing to measure in each round: a contender, and under what circumstances."""

    work: str
    contender: Contender
    params: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        params = " ".join(f"{name}={value}" for name, value in self.params.items())
        return f"{self.work} {params} {self.contender.id}".replace("  ", " ")


@dataclass(frozen=True)
class Scale:
    """How much is done. The full scale is what is published, a small one is for trying."""

    factor: float = 1.0
    seconds: float = 10.0

    def of(self, contender: Contender, work: str, standard: int) -> int:
        """Return how many events a contender is given."""
        return max(1, int(contender.events.get(work, standard) * self.factor))


class Bench:
    """One run."""

    def __init__(self, server: Server, scale: Scale) -> None:
        self.server = server
        self.scale = scale

    @contextlib.contextmanager
    def team(self, contender: Contender, count: int = 1, batch: int = 1) -> Iterator[Team]:
        """Have so many consumers, each a process."""
        with contextlib.ExitStack() as stack:
            journal = Journal()
            stack.callback(journal.close)
            settings = contender.settings(self.server.url, "consume", batch)
            drivers = [
                stack.enter_context(
                    Driver(contender.driver, contender.environment, settings, journal.path)
                )
                for _ in range(count)
            ]
            for driver in drivers:
                driver.answer()
            yield Team(drivers, journal, time.time())

    @contextlib.contextmanager
    def poster(self, contender: Contender, team: Team | None = None) -> Iterator[Driver]:
        """Have a process that posts: one of its own, or for some the first of the team."""
        if contender.inside and team is not None:
            yield team.drivers[0]
            return
        with contextlib.ExitStack() as stack:
            journal = Journal()
            stack.callback(journal.close)
            settings = contender.settings(self.server.url, "post", 1)
            driver = Driver(contender.driver, contender.environment, settings, journal.path)
            stack.enter_context(driver)
            driver.answer()
            yield driver

    def fill(self, contender: Contender, count: int, size: int = 50) -> None:
        """Make so many events pending, all due in far future."""
        if count:
            with self.poster(contender) as poster:
                poster.ask(post(contender, count, far(), size=size))


def way_of(contender: Contender) -> str:
    """Return the fastest way that a contender has to post."""
    return "one" if "bulk" in contender.cannot else "bulk"


def post(
    contender: Contender, count: int, due: int, *, way: str = "", size: int = 50
) -> dict[str, Any]:
    """Return the command to post so many events, all due at one moment."""
    how = {"way": way or way_of(contender), "size": size}
    return {"do": "post", "count": count, "first": 0, "due": due, **how}
