"""
Register the faults of the nemesis by their numbers in the catalogue.

An injection is a generator, which the nemesis resumes step by step:

1. The injection yields its target and for how many seconds it should last.
2. The injection begins, and yields.
3. The injection ends, and yields True if it had an effect, or False. Until it has ended, it yields
   None.

A run fails if an injection never had an effect.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from servers import Server, connect

from chaos.processes import Member, Processes

#: How far the clock of the server may be off, in seconds.
_SLOWEST, _FASTEST = -5, 60

Injection = Iterator[tuple[str, float] | bool | None]


@dataclass
class FaultContext:
    """The possible targets of faults, and the means to strike them."""

    server: Server
    admin: redis.Redis
    processes: Processes
    ns: str
    rng: random.Random
    #: How many seconds the server's clock is ahead.
    ahead: float = 0.0
    #: The other servers of the cluster.
    others: Sequence[Server] = ()

    def move_clock(self, seconds: float) -> None:
        """Move the clock of the server forward, or back, by *seconds*."""
        self.ahead = max(_SLOWEST, min(_FASTEST, self.ahead + seconds))
        self.server.set_clock(self.ahead)

    def any_member(self) -> Member:
        return self.rng.choice(self.processes.members)

    def node(self) -> Member:
        return self.rng.choice(self.processes.of("handling"))

    def killable(self, program: str | None = None) -> Member:
        """Choose one of the processes that may be killed."""
        members = self.processes.of(program) if program else self.processes.members
        return self.rng.choice([m for m in members if not m.setting.get("immortal")])

    def seconds(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def send(self, *command: str) -> socket.socket:
        """Send a command without waiting for its reply; return the connection."""
        line = connect(self.server.url)
        line.sendall((" ".join(command) + "\r\n").encode())
        return line


#: For each number: the injection, and whether it strikes the server. At most one active fault may.
INJECTIONS: dict[str, tuple[Callable[[FaultContext], Injection], bool]] = {}


def injection(number: str, *, server: bool = False) -> Callable[..., Any]:
    """Register an injection under its number in the catalogue."""

    def add(f: Callable[[FaultContext], Injection]) -> Callable[[FaultContext], Injection]:
        INJECTIONS[number] = f, server
        return f

    return add
