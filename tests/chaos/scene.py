"""
The faults of the nemesis, each by its number in the catalogue.

An injection is a generator. It yields whom it is about to strike and for how many seconds
that is to last, strikes, and yields again; resumed once more it ends what it did, and yields
whether it did strike, or None as long as it has not ended. One that never did strike has not
been tried, and the run says so.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from servers import Server, connect

from chaos.crew import Crew, Member

#: How far the clock of the server may be off, in seconds.
_SLOWEST, _FASTEST = -5, 60

Injection = Iterator[tuple[str, float] | bool | None]


@dataclass
class Scene:
    """Whom there is to strike, and by what."""

    server: Server
    admin: redis.Redis
    crew: Crew
    ns: str
    rng: random.Random
    #: By how many seconds the clock of the server is ahead.
    ahead: float = 0.0
    #: The other servers of its cluster.
    others: Sequence[Server] = ()

    def step(self, seconds: float) -> None:
        """Put the clock of the server on, or back."""
        self.ahead = max(_SLOWEST, min(_FASTEST, self.ahead + seconds))
        self.server.set_clock(self.ahead)

    def anybody(self) -> Member:
        """Choose one of all."""
        return self.rng.choice(self.crew.members)

    def node(self) -> Member:
        """Choose a node."""
        return self.rng.choice(self.crew.of("handling"))

    def mortal(self, program: str | None = None) -> Member:
        """Choose one of those that may be killed."""
        members = self.crew.of(program) if program else self.crew.members
        return self.rng.choice([m for m in members if not m.setting.get("immortal")])

    def for_(self, low: float, high: float) -> float:
        """Choose a duration in seconds."""
        return self.rng.uniform(low, high)

    def shout(self, *command: str) -> socket.socket:
        """Send a command without waiting for its reply; return the connection."""
        line = connect(self.server.url)
        line.sendall((" ".join(command) + "\r\n").encode())
        return line


#: By number: the injection, and whether it strikes the server, which one may do at a time.
INJECTIONS: dict[str, tuple[Callable[[Scene], Injection], bool]] = {}


def injection(number: str, *, server: bool = False) -> Callable[..., Any]:
    """Register an injection under its number in the catalogue."""

    def add(f: Callable[[Scene], Injection]) -> Callable[[Scene], Injection]:
        INJECTIONS[number] = f, server
        return f

    return add
