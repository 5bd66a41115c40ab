"""
The base of a rehearsal: its clock, its server, its processes, and calls that may fail.

`chaos.history` explains the fields of the records.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chaos.cases import MONO, SERVER
from chaos.model import DeadLetter, Event, Model, Schedule
from chaos.occurrences import OCCURRENCE

MS = 1_000_000
TIMEOUT = 300 * MS

#: How long before its due time, in µs, a node may claim an event with a generated id.
AHEAD = 20_000

Record = dict[str, Any]


@dataclass(eq=False)
class Process:
    """A process, which may be stopped for a while, or dead."""

    p: str
    alive: bool = True
    stopped_until: int = 0
    settling: list[tuple[Record, str]] = field(default_factory=list)
    busy: bool = False


class Server:
    """
    The server of a rehearsal: a model that issues tokens, and returns what a process records.

    Each method is one script. Times are in µs.
    """

    def __init__(self) -> None:
        self.model = Model()

    def post(self, now: int, id: str, says: Record) -> Record | None:
        """Post an event; return None if the post is refused."""
        expires = says.get("expires_us")
        event = Event(
            id,
            now + max(0, says["delay_us"]),
            json.dumps({"n": says["n"], "crc": says["crc"]}),
            says["max_retries"],
            None if expires is None else now + expires,
            late_bound=not says.get("generated"),
            max_wait=says.get("max_wait_us"),
        )
        stored, refused = self.model.post(now, [(event, False)], says["if_exists"])
        return None if refused else {"stored": stored[0]}

    def cancel(self, now: int, id: str) -> Record:
        return {"outcome": self.model.cancel(now, id).upper()}

    def update(self, id: str, says: Record) -> Record:
        payload = json.dumps({"n": says["n"], "crc": says["crc"]})
        return {"updated": self.model.update(id, payload)}

    def drop(self, id: str) -> Record:
        return {"dropped": self.model.drop(id)}

    def reschedule(self, now: int, id: str, delay: int) -> Record:
        return {"moved": self.model.reschedule(now, id, now + delay)}

    def revive(self, now: int, id: str) -> Record:
        return {"revived": self.model.revive(now, id)}

    def settle(self, now: int, id: str, token: int, verdict: str, wait: int = 0) -> str:
        (result,) = self.model.settle_all(now, [(id, token, verdict, wait, "")])
        return result

    def extend(self, now: int, id: str, token: int, lease: int) -> bool:
        return self.model.extend(now, id, token, lease)

    def claim(self, now: int, lease: int, limit: int = 1) -> tuple[list[Record], list[Record]]:
        """Claim events; return the claims, and the dead letters of events that could not start."""
        events, buried, _ = self.model.claim(now, "node", limit, lease, 0, ahead=AHEAD)
        for event in events:
            self.model.token = event.token = max(self.model.token + 1, now)
        letters = [_letter(self.model.dead[id]) for id, _ in buried]
        return [_claim(now, event) for event in events], letters

    def again(self, now: int, claims: list[Record], lease: int) -> list[Record]:
        """Repeat the reply to a claim: return the events that are still held, with new leases."""
        held = [c["id"] for c in claims if self.extend(now, c["id"], c["tok"], lease)]
        return [_claim(now, self.model.pending[id]) for id in held]

    def declare(self, now: int, name: str, says: Record) -> Record:
        """Declare a schedule, which must equal an existing one of this name."""
        payload = json.dumps({"n": None, "crc": says["crc"]})
        every, max_retries = says["every_us"], says["max_retries"]
        new = Schedule(
            (), every, "coalesce", "queue", max_retries, payload, anchor=0, left=None, next=None
        )
        self.model.declare(now, name, new, None)
        return {}

    def unschedule(self, name: str) -> Record:
        self.model.unschedule(name)
        return {}

    def letters(self) -> list[Record]:
        return [_letter(letter) for letter in self.model.dead.values()]


def _letter(letter: DeadLetter) -> Record:
    n = json.loads(letter.event.payload)["n"]
    return {"id": letter.event.id, "n": n, "attempt": letter.starts, "reason": letter.reason}


def _claim(now: int, event: Event) -> Record:
    about: Record = {"id": event.id, "tok": event.token, "att": event.starts, "due": event.due}
    about |= {"srv": now, **json.loads(event.payload)}
    return about | {"missed": event.missed} if OCCURRENCE.match(event.id) else about


class Simulation:
    """
    Keeps the time and the records.

    Attributes:
        now: The monotonic clock, in ns.
        away_until: The server does not answer until this moment.
        trouble: True if calls may fail.
        records: The records of each process.
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
        """Carry out all planned actions, in the order of time."""
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
        """Plan *act* for the moment *t*, unless *process* is dead by then."""
        heapq.heappush(self._heap, (t, next(self._order), process, act))

    def after(self, ms: float, process: Process | None, act: Callable[[], None]) -> None:
        """Plan *act* for *ms* milliseconds from now."""
        self.at(self.now + round(ms * MS), process, act)

    def some(self, low: float, high: float) -> int:
        """Return a random time between *low* and *high* ms, in ns."""
        return round(self.random.uniform(low, high) * MS)

    def chance(self, share: float) -> bool:
        """Return True with the probability *share*."""
        return self.random.random() < share

    def us(self) -> int:
        return SERVER + (self.now - MONO) // 1000

    def say(self, process: Process | None, op: str, ph: str = "ok", **fields: Any) -> None:
        """Add a record of *process*, or of the runner if *process* is None."""
        p = process.p if process else "runner.9"
        self.records[p].append({"t": self.now, "p": p, "op": op, "ph": ph} | fields)

    def ask_the_time(self) -> None:
        """Let the runner ask for the server's time, and record it."""
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
        """
        Make a call.

        With ``trouble``, the server may execute the call late, after its caller has given up, or
        never.
        """
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
    """Ignore the reply to a call whose caller has given up."""
