"""The tools of a work: the server, and processes of contenders that live as long as a context."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.driver import Driver, Journal
from benchmarks.environments import ENVIRONMENTS, Home
from benchmarks.server import Server

#: Seconds for consumers to come to rest after they have reported that they consume.
SETTLE = 1.0

#: The name of the scale that is published and that targets are for.
FULL = "full"

_HOUR = 3_600_000_000


def now_us() -> int:
    """Return the wall clock. All processes are on one machine, so it is the same for all."""
    return time.time_ns() // 1000


def far() -> int:
    """Return a moment that is later than the end of any run."""
    return now_us() + 24 * _HOUR


@dataclass
class Team:
    """Running consumers, and the records that their handlers write."""

    drivers: list[Driver]
    journal: Journal
    ready: float

    @property
    def pids(self) -> list[int]:
        """The process id of each driver."""
        return [driver.process.pid for driver in self.drivers]


@dataclass(frozen=True)
class Cell:
    """A work with one contender and parameters. Each round measures every cell once."""

    work: str
    contender: Contender
    params: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        params = " ".join(f"{name}={value}" for name, value in self.params.items())
        return f"{self.work} {params} {self.contender.id}".replace("  ", " ")


@dataclass(frozen=True)
class Scale:
    """The size of a run. The full scale is published; a small one is for trying."""

    factor: float = 1.0
    seconds: float = 10.0

    def of(self, contender: Contender, work: str, standard: int) -> int:
        """Return the number of events for a contender."""
        return max(1, int(contender.events.get(work, standard) * self.factor))


class Bench:
    """
    The server and the size of a run, and the processes of contenders that works start.

    *homes* has the environments of the contenders by name.
    """

    def __init__(
        self, server: Server, scale: Scale, homes: Mapping[str, Home] = ENVIRONMENTS
    ) -> None:
        self.server = server
        self.scale = scale
        self._homes = homes

    @contextlib.contextmanager
    def team(
        self, contender: Contender, count: int = 1, batch: int = 1, **more: Any
    ) -> Iterator[Team]:
        """Run *count* consumers, each in its own process, with *more* settings for the driver."""
        with contextlib.ExitStack() as stack:
            journal = Journal()
            stack.callback(journal.close)
            settings = contender.settings(self.server.url, "consume", batch) | more
            home = self._homes[contender.environment]
            drivers = [
                stack.enter_context(Driver(contender.driver, home, settings, journal.path))
                for _ in range(count)
            ]
            for driver in drivers:
                driver.answer()
            yield Team(drivers, journal, time.time())

    @contextlib.contextmanager
    def poster(self, contender: Contender, team: Team | None = None) -> Iterator[Driver]:
        """Run a process that posts. A contender that posts to itself uses the first consumer."""
        if contender.posts_from_consumer and team is not None:
            yield team.drivers[0]
            return
        with contextlib.ExitStack() as stack:
            journal = Journal()
            stack.callback(journal.close)
            settings = contender.settings(self.server.url, "post", 1)
            home = self._homes[contender.environment]
            driver = Driver(contender.driver, home, settings, journal.path)
            stack.enter_context(driver)
            driver.answer()
            yield driver

    def fill(self, contender: Contender, count: int, size: int = 50) -> None:
        """Make *count* events pending, all due far in the future."""
        if count:
            with self.poster(contender) as poster:
                poster.ask(post(contender, count, far(), size=size))


def way_of(contender: Contender) -> str:
    """Return the fastest way to post that a contender has."""
    return "one" if "bulk" in contender.cannot else "bulk"


def post(
    contender: Contender, count: int, due: int, *, way: str = "", size: int = 50
) -> dict[str, Any]:
    """Return the command to post *count* events that are due at one moment."""
    how = {"way": way or way_of(contender), "size": size}
    return {"do": "post", "count": count, "first": 0, "due": due, **how}
