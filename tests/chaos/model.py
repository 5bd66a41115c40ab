"""
What the store promises, as plain dictionaries: written from the docs, not from the scripts.

It is told the time and what was asked, and says what has to come of it. The two things
that the docs leave open it is told as well: how many due events are kept for nodes that
were told to come, and which tokens were given out (only that they grow is promised).

Times are µs, ids are str.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

#: After so long a node that did not ask is forgotten by the next that joins.
SILENT = 60_000_000

#: A queued occurrence is looked at again after this, whatever happens.
REMIND = 1_000_000

#: ``misfire="all"`` makes good for so many.
MOST_BEHIND = 1_000


@dataclass
class Event:
    """One pending event; ``token`` is None while it is not in flight."""

    id: str
    due: int
    payload: str
    max_retries: int
    expires: int | None = None
    starts: int = 0
    token: int | None = None
    lease_end: int = 0
    cancelled: bool = False
    missed: int = 0

    @property
    def score(self) -> int:
        """When it is handed out next."""
        return self.due if self.token is None else self.lease_end


@dataclass
class Letter:
    """A dead letter."""

    starts: int
    reason: str
    died: int
    event: Event


@dataclass
class Schedule:
    """An interval; ``next`` is the nominal time of the occurrence that is pending."""

    print: tuple[Any, ...]
    every: int
    misfire: str
    overlap: str
    max_retries: int
    payload: str
    anchor: int
    left: int | None
    next: int | None
    last: int | None = None
    running: int | None = None
    paused: bool = False
    waits: int | None = None

    def after(self, nominal: int) -> int:
        """The nominal time that follows."""
        return self.anchor + ((nominal - self.anchor) // self.every + 1) * self.every


@dataclass
class Model:
    """A namespace."""

    pending: dict[str, Event] = field(default_factory=dict)
    dead: dict[str, Letter] = field(default_factory=dict)
    schedules: dict[str, Schedule] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    asked: dict[str, int] = field(default_factory=dict)
    paused: bool = False
    token: int = 0

    # -------------------------------------------------------------------------------- posting

    def in_line(self, when: int) -> int:
        """Move *when* behind what is due within the same millisecond of it."""
        for _ in range(20):
            within = [e.score for e in self.pending.values() if when <= e.score <= when + 999]
            if not within:
                return when
            if max(within) < when + 999:
                return max(within) + 1
            when += 1_000
        return when

    def post(
        self, now: int, entries: list[tuple[Event, bool]], policy: str
    ) -> tuple[list[bool], str]:
        """Post; returns which were stored, and the id that all of them were refused for."""
        stored: list[Event] = []
        told = []
        for event, behind in entries:
            when = max(event.due, now)
            if behind:
                when = self.in_line(when)
            there = self.pending.get(event.id)
            if there is not None and there.token is not None:
                # An id that we make is new, or it is not taken.
                gone = there.cancelled and policy != "mint"
                # What is in flight has no due time to compare.
                if gone or policy in ("earliest", "latest"):
                    there = None
            if there is not None and policy in ("mint", "error"):
                return [], event.id
            kept = there is not None and (
                policy == "keep"
                or (policy == "earliest" and there.due <= when)
                or (policy == "latest" and there.due >= when)
            )
            told.append(not kept)
            if not kept:
                stored.append(replace(event, due=when))
        for event in stored:
            self.pending[event.id] = event
            self.dead.pop(event.id, None)
        return told, ""

    # ----------------------------------------------------------------------------- one event

    def cancel(self, now: int, id: str) -> str:
        """Cancel; returns what the caller is told."""
        event = self.pending.get(id)
        if event is None:
            return "not_found"
        if event.token is not None:
            event.cancelled = True
            return "in_flight"
        del self.pending[id]
        schedule, nominal = self._scheduled(id)
        if schedule is not None and schedule.next == nominal:
            self._advance(id, schedule, schedule.after(nominal))
        self.ended(now, id)
        return "cancelled"

    def reschedule(self, now: int, id: str, when: int) -> bool:
        """Move a scheduled event."""
        event = self.pending.get(id)
        if event is None or event.token is not None:
            return False
        event.due = max(when, now)
        return True

    def revive(self, now: int, id: str) -> bool:
        """Give a dead letter another life."""
        letter = self.dead.get(id)
        if letter is None or id in self.pending:
            return False
        del self.dead[id]
        self.pending[id] = replace(
            letter.event, due=now, starts=0, token=None, expires=None, cancelled=False
        )
        return True

    def trim(self, now: int, limit: int, age: int) -> int:
        """Drop dead letters, the oldest first."""
        oldest = sorted(self.dead, key=lambda name: (self.dead[name].died, name))
        gone = oldest[: max(0, len(oldest) - limit)]
        if not gone and age >= 0:
            gone = [id for id in oldest if self.dead[id].died <= now - age]
        for id in gone:
            del self.dead[id]
        return len(gone)

    def _bury(self, now: int, event: Event, reason: str) -> None:
        del self.pending[event.id]
        self.dead[event.id] = Letter(event.starts, reason, now, event)

    # ------------------------------------------------------------------------------- settling

    def settle(self, now: int, id: str, token: int, verdict: str, wait: int = 0) -> str:
        """End one claim; returns what the holder is told. See also `ended`."""
        event = self.pending.get(id)
        if event is None or event.token != token:
            return "stale"
        if verdict == "confirm":
            del self.pending[id]
            return "done"
        if event.cancelled:
            del self.pending[id]
            return "cancelled"
        if verdict == "bury":
            self._bury(now, event, "corrupt")
            return "dead"
        if verdict == "release":
            event.token = None
            event.starts -= 1
            return "done"
        if event.starts > event.max_retries:
            self._bury(now, event, "failed")
            return "dead"
        event.token = None
        event.due = now + wait
        return "done"

    def settle_all(self, now: int, settlements: list[tuple[str, int, str, int]]) -> list[str]:
        """End several claims in one script: the confirmed first, as the wire has them."""
        results = [""] * len(settlements)
        first = [i for i, s in enumerate(settlements) if s[2] == "confirm"]
        last = [i for i, s in enumerate(settlements) if s[2] != "confirm"]
        over = []
        for i in first + last:
            id, token, verdict, wait = settlements[i]
            results[i] = self.settle(now, id, token, verdict, wait)
            if id not in self.pending and results[i] != "stale":
                over.append(id)
        for id in over:
            self.ended(now, id)
        return results

    def extend(self, now: int, id: str, token: int, lease: int, *, at_least: bool = False) -> bool:
        """Renew a lease; *at_least*: shorten it not."""
        event = self.pending.get(id)
        if event is None or event.token != token:
            return False
        event.lease_end = max(event.lease_end * at_least, now + lease)
        return True

    # --------------------------------------------------------------------------------- a turn

    def due(self, now: int) -> list[Event]:
        """What is to be handed out now, in order."""
        found = [e for e in self.pending.values() if e.score <= now]
        return sorted(found, key=lambda e: (e.score, e.id.encode()))

    def take(
        self, now: int, node: str, limit: int, lease: int, told: int, *, ahead: int
    ) -> tuple[list[Event], list[tuple[str, str]], bool]:
        """
        Claim; returns the events handed out, the unfit with their reasons, and whether the
        node was known. The caller gives out the tokens, in order.

        What is due within *ahead* is claimed as well, unless it is to be judged when it is due:
        the end of a lease, of an event's life, or an occurrence.
        """
        known = node in self.nodes
        self.asked[node] = now
        if self.paused:
            return [], [], known
        due = self.due(now + ahead)
        claims: list[Event] = []
        buried: list[tuple[str, str]] = []
        for id in [e.id for e in due[: max(0, min(limit, len(due) - told))]]:
            # A schedule may just have put another in its place.
            event = self.pending.get(id)
            if event and (event.score <= now or self._simple(event, now + ahead)):
                self._hand_out(now, event, lease, claims, buried)
        return claims, buried, known

    def _simple(self, event: Event, horizon: int) -> bool:
        """Whether an event is to be handed out when it is due, and that is by the *horizon*."""
        expires = event.expires is not None and event.expires <= event.score
        judged = event.token is not None or expires or self._scheduled(event.id)[0]
        return event.score <= horizon and not judged

    def _hand_out(
        self,
        now: int,
        event: Event,
        lease: int,
        claims: list[Event],
        buried: list[tuple[str, str]],
    ) -> None:
        held = event.token is not None
        if held and event.cancelled:
            del self.pending[event.id]
            self.ended(now, event.id)
        elif held and event.starts > event.max_retries:
            self._bury(now, event, "lease_lost")
            buried.append((event.id, "lease_lost"))
            self.ended(now, event.id)
        elif event.expires is not None and event.expires <= now:
            self._bury(now, event, "expired")
            buried.append((event.id, "expired"))
            if held:
                self.ended(now, event.id)
        elif held or self._meet(now, event):
            event.due = event.score
            event.starts += 1
            event.cancelled = False
            event.lease_end = now + lease
            claims.append(event)

    def join(self, now: int, node: str) -> None:
        """Register a node, and forget the silent."""
        for name, at in list(self.asked.items()):
            if at <= now - SILENT:
                del self.asked[name]
                self.nodes.discard(name)
        self.nodes.add(node)
        self.asked[node] = now

    def leave(self, node: str) -> None:
        """Strike a node off."""
        self.nodes.discard(node)
        self.asked.pop(node, None)

    # ------------------------------------------------------------------------------ schedules

    def _scheduled(self, id: str) -> tuple[Schedule | None, int]:
        name, at, nominal = id.rpartition("@")
        return (self.schedules.get(name), int(nominal)) if at else (None, 0)

    def _put(self, name: str, schedule: Schedule) -> None:
        if schedule.next is not None and not schedule.paused:
            id = f"{name}@{schedule.next}"
            self.dead.pop(id, None)
            self.pending[id] = Event(id, schedule.next, schedule.payload, schedule.max_retries)

    def _advance(self, id: str, schedule: Schedule, after: int | None) -> None:
        if schedule.left is not None:
            schedule.left = max(0, schedule.left - 1)
        schedule.next = None if schedule.left == 0 else after
        schedule.waits = None
        self._put(id.rpartition("@")[0], schedule)

    def _meet(self, now: int, event: Event) -> bool:
        """Whether an occurrence that is due may start; it is moved or dropped otherwise."""
        schedule, nominal = self._scheduled(event.id)
        if schedule is None or schedule.next != nominal:
            return True
        name = event.id.rpartition("@")[0]
        before = self.pending.get(f"{name}@{schedule.running}") if schedule.running else None
        if before is not None and schedule.overlap == "queue":
            event.due = schedule.waits = max(before.score, now) + REMIND
            return False
        dropped = before is not None and schedule.overlap == "skip"
        latest, missed, after = nominal, 0, schedule.after(nominal)
        if after <= now:
            missed = (now - after) // schedule.every + 1
            if schedule.misfire == "all" and not dropped:
                missed = max(0, missed - (MOST_BEHIND - 1))
            latest = nominal if not missed else after + (missed - 1) * schedule.every
            after = schedule.after(latest)
        if dropped:
            del self.pending[event.id]
            self._advance(event.id, schedule, after)
            return False
        if schedule.misfire == "skip" and missed:
            del self.pending[event.id]
            schedule.next, schedule.waits = latest, None
            self._put(name, schedule)
            return False
        event.missed = missed
        schedule.last, schedule.running = latest, nominal
        self._advance(event.id, schedule, after)
        return True

    def ended(self, now: int, id: str) -> None:
        """The occurrence that others may be waiting for is over."""
        schedule, nominal = self._scheduled(id)
        if schedule is None or schedule.running != nominal:
            return
        schedule.running = None
        pending = self.pending.get(f"{id.rpartition('@')[0]}@{schedule.next}")
        if pending is not None and schedule.waits is not None and pending.due == schedule.waits:
            pending.due = now

    def declare(self, now: int, name: str, new: Schedule, start: int | None) -> str:
        """Declare a schedule: new, changed or the same."""
        old = self.schedules.get(name)
        if old is not None and old.print == new.print:
            return "same"
        if old is not None:
            self.pending.pop(f"{name}@{old.next}", None)
            new.last, new.running, new.paused = old.last, old.running, old.paused
        first = old.next if old is not None and old.next is not None and old.next <= now else None
        if start is not None:
            new.anchor = start
        elif old is not None and old.every == new.every:
            new.anchor = old.anchor
        elif old is not None and old.last is not None:
            new.anchor = old.last + new.every
        else:
            new.anchor = now + new.every
        if first is None:
            # What was handed out stays so, also where the clock was set back since.
            reached = max(now, new.last or 0)
            over = old is not None and new.anchor <= reached
            first = new.after(reached) if over else new.anchor
        new.next = None if new.left == 0 else first
        self.schedules[name] = new
        self._put(name, new)
        return "new" if old is None else "changed"

    def unschedule(self, name: str) -> bool:
        """End a schedule."""
        schedule = self.schedules.pop(name, None)
        if schedule is None:
            return False
        self.pending.pop(f"{name}@{schedule.next}", None)
        return True

    def suspend(self, name: str, on: bool) -> bool:
        """Pause one schedule, or let it go on."""
        schedule = self.schedules.get(name)
        if schedule is None or schedule.paused == on:
            return False
        schedule.paused = on
        if on:
            self.pending.pop(f"{name}@{schedule.next}", None)
        else:
            self._put(name, schedule)
        return True

    def run_now(self, now: int, name: str, id: str) -> None:
        """Hand out one occurrence more, of the id that was given to it."""
        schedule = self.schedules[name]
        self.pending[id] = Event(id, now, schedule.payload, schedule.max_retries)
