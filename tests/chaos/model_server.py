"""
A correct server of events in a few lines: what the scripts do, without Redis, time given.

It is no copy of them: it knows nothing of nodes, wakes or duty. Histories that the checker
must accept are made with it, however odd.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

from chaos.occurrences import OCCURRENCE

_REMIND = 1_000_000

#: How far ahead it is claimed, in µs, what is to be handed out whatever comes.
AHEAD = 20_000


@dataclass(slots=True)
class Stored:
    """An event as the server has it; times in µs."""

    n: int | None
    crc: int
    max_retries: int
    score: int
    expires: int | None = None
    tries: int = 0
    missed: int | None = None
    token: int | None = None
    attempt: int = 0
    due: int = 0
    cancelled: bool = False
    minted: bool = False


@dataclass(slots=True)
class Beat:
    """A schedule: ``coalesce`` and ``queue``."""

    every: int
    next: int
    max_retries: int
    crc: int
    running: str | None = None
    waits: int | None = None


@dataclass(slots=True)
class Server:
    """The state of one namespace. Each verb is one script."""

    events: dict[str, Stored] = field(default_factory=dict)
    dead: dict[str, dict[str, Any]] = field(default_factory=dict)
    beats: dict[str, Beat] = field(default_factory=dict)
    bodies: dict[str, Stored] = field(default_factory=dict)
    token: int = 0
    queue: list[tuple[int, str]] = field(default_factory=list)

    def _put(self, id: str, event: Stored, score: int) -> None:
        event.score = score
        self.events[id] = event
        heapq.heappush(self.queue, (score, id))

    def post(self, now: int, id: str, says: dict[str, Any]) -> dict[str, Any] | None:
        """Store an event; None when it is refused."""
        there = self.events.get(id)
        due = now + max(0, says["delay_us"])
        if there is not None and not there.cancelled:
            policy = says["if_exists"]
            if policy == "error":
                return None
            # What is in flight has no due time to compare.
            waits = there.token is None
            sooner = waits and policy == "earliest" and there.score <= due
            later = waits and policy == "latest" and there.score >= due
            if policy == "keep" or sooner or later:
                return {"stored": False}
        expires = says.get("expires_us")
        event = Stored(says["n"], says["crc"], says["max_retries"], 0)
        event.minted = says.get("minted", False)
        event.expires = None if expires is None else now + expires
        self._put(id, event, due)
        self.dead.pop(id, None)
        return {"stored": True}

    def cancel(self, now: int, id: str) -> dict[str, Any]:
        """See to it that an event does not start."""
        event = self.events.get(id)
        if event is None:
            return {"outcome": "NOT_FOUND"}
        if event.token is not None:
            event.cancelled = True
            return {"outcome": "IN_FLIGHT"}
        del self.events[id]
        name, beat = self._beat_of(id)
        if beat is not None and id == f"{name}@{beat.next}":
            beat.next += beat.every
            self._make(name, beat)
        self._ended(now, id)
        return {"outcome": "CANCELLED"}

    def reschedule(self, now: int, id: str, delay: int) -> dict[str, Any]:
        """Move an event that is not in hand."""
        event = self.events.get(id)
        if event is None or event.token is not None:
            return {"moved": False}
        self._put(id, event, now + max(0, delay))
        return {"moved": True}

    def revive(self, now: int, id: str) -> dict[str, Any]:
        """Give a dead letter another life."""
        if id not in self.dead:
            return {"revived": False}
        letter = self.dead.pop(id)
        old = self.bodies[id]
        event = Stored(letter["n"], old.crc, old.max_retries, 0, minted=old.minted)
        self._put(id, event, now)
        return {"revived": True}

    def _bury(self, id: str, event: Stored, attempt: int, reason: str) -> dict[str, Any]:
        del self.events[id]
        letter = {"id": id, "n": event.n, "attempt": attempt, "reason": reason}
        self.dead[id] = letter
        self.bodies[id] = event
        return letter

    def settle(self, now: int, id: str, token: int, verdict: str, wait: int = 0) -> str:
        """End a claim: confirm it, or have it handed out again. Returns a letter."""
        event = self.events.get(id)
        if event is None or event.token != token:
            return "0"
        if verdict == "confirm" or event.cancelled:
            del self.events[id]
            self._ended(now, id)
            return "1" if verdict == "confirm" else "c"
        if event.attempt > event.max_retries:
            self._bury(id, event, event.attempt, "failed")
            self._ended(now, id)
            return "d"
        event.token, event.tries = None, event.attempt
        self._put(id, event, now + wait)
        return "1"

    def extend(self, now: int, id: str, token: int, lease: int) -> bool:
        """Renew a lease."""
        event = self.events.get(id)
        if event is None or event.token != token:
            return False
        self._put(id, event, now + lease)
        return True

    def claim(
        self, now: int, lease: int, limit: int = 1
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Lease what is due, or soon is; return the claims, and the letters of what was unfit."""
        claims: list[dict[str, Any]] = []
        letters: list[dict[str, Any]] = []
        left: list[tuple[int, str]] = []
        while self.queue and self.queue[0][0] <= now + AHEAD and len(claims) < limit:
            score, id = heapq.heappop(self.queue)
            event = self.events.get(id)
            if event is None or event.score != score:
                continue
            if score > now and not self._simple(event, score):
                left.append((score, id))
                continue
            attempt = event.tries if event.token is None else event.attempt
            unfit = None
            if event.token is not None and attempt > event.max_retries:
                unfit = "lease_lost"
            elif event.expires is not None and event.expires <= now:
                unfit = "expired"
            fresh = event.missed is not None and event.token is None
            if fresh and not (event.cancelled or unfit) and not self._meet(now, id, event):
                continue
            if event.cancelled:
                del self.events[id]
                self._ended(now, id)
            elif unfit:
                letters.append(self._bury(id, event, attempt, unfit))
                self._ended(now, id)
            else:
                self.token = max(self.token + 1, now)
                event.token, event.attempt, event.due = self.token, attempt + 1, score
                self._put(id, event, now + lease)
                claims.append(self._as_claim(now, id, event))
        for waiting in left:
            heapq.heappush(self.queue, waiting)
        return claims, letters

    @staticmethod
    def _simple(event: Stored, score: int) -> bool:
        """Tell whether there is nothing to be decided when the event is due."""
        lives = event.expires is None or event.expires > score
        return event.minted and event.token is None and lives

    @staticmethod
    def _as_claim(now: int, id: str, event: Stored) -> dict[str, Any]:
        says = {"id": id, "n": event.n, "tok": event.token, "att": event.attempt}
        says |= {"due": event.due, "srv": now, "crc": event.crc}
        return says if event.missed is None else says | {"missed": event.missed}

    def again(self, now: int, claims: list[dict[str, Any]], lease: int) -> list[dict[str, Any]]:
        """Answer a turn whose reply was lost: what is still held, leased anew."""
        held = [(c["id"], self.events.get(c["id"]), c["tok"]) for c in claims]
        given = []
        for id, event, token in held:
            if event is not None and event.token == token:
                self._put(id, event, now + lease)
                given.append(self._as_claim(now, id, event))
        return given

    # Schedules

    def declare(self, now: int, name: str, says: dict[str, Any]) -> dict[str, Any]:
        """Make a schedule, unless it is there."""
        if name not in self.beats:
            every = says["every_us"]
            beat = Beat(every, now + every, says["max_retries"], says["crc"])
            self.beats[name] = beat
            self._make(name, beat)
        return {}

    def unschedule(self, name: str) -> dict[str, Any]:
        """End a schedule."""
        beat = self.beats.pop(name, None)
        if beat is not None:
            self.events.pop(f"{name}@{beat.next}", None)
        return {}

    def _beat_of(self, id: str) -> tuple[str, Beat | None]:
        match = OCCURRENCE.match(id)
        return (match[1], self.beats.get(match[1])) if match else ("", None)

    def _make(self, name: str, beat: Beat) -> None:
        event = Stored(None, beat.crc, beat.max_retries, 0, missed=0)
        beat.waits = None
        self._put(f"{name}@{beat.next}", event, beat.next)

    def _meet(self, now: int, id: str, event: Stored) -> bool:
        name, beat = self._beat_of(id)
        if beat is None or id != f"{name}@{beat.next}":
            return True
        running = self.events.get(beat.running or "")
        if running is not None:
            beat.waits = max(running.score, now) + _REMIND
            self._put(id, event, beat.waits)
            return False
        event.missed = max(0, (now - beat.next) // beat.every)
        beat.running = id
        beat.next += (event.missed + 1) * beat.every
        self._make(name, beat)
        return True

    def _ended(self, now: int, id: str) -> None:
        name, beat = self._beat_of(id)
        if beat is None or beat.running != id:
            return
        beat.running = None
        waiting = self.events.get(f"{name}@{beat.next}")
        if waiting is not None and beat.waits is not None and waiting.score == beat.waits:
            self._put(f"{name}@{beat.next}", waiting, now)
