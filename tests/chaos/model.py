"""
A model of the store: its promises in plain dictionaries, written from the docs, not from scripts.

The state machine compares a real store with the model. A rehearsal uses the model as its server.

Each method is one call. It receives the time, and returns the reply that the store must give. The
docs leave two facts open, which the caller provides: how many due events stay unclaimed for nodes
that were woken, and the tokens, of which the docs only promise that they increase.

Times are in µs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

#: If a node has not claimed for this long, the next node that joins removes it.
SILENT = 60_000_000

#: The server looks at a queued occurrence again after this time, even if nothing else happens.
REMIND = 1_000_000

#: For so long, an owner remembers the state of a schedule that was removed.
REMEMBERED = 86_400_000_000

#: ``misfire="all"`` delivers at most this many missed occurrences.
MOST_BEHIND = 1_000


@dataclass
class Event:
    """
    A pending event.

    Attributes:
        starts: How many attempts were counted.
        token: The token of the current claim, None if the event is not in flight.
        late_bound: No node may claim the event before it is due. Either the user chose the id, so
            that the event may be replaced until then, or the event is an occurrence.
        max_wait: How long posts may postpone the event; None for no limit.
        first: When the wait to which *max_wait* applies began.
        snoozed: When it was first snoozed since its last retry, and for which reason; (None, "")
            if it was not.
    """

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
    late_bound: bool = False
    max_wait: int | None = None
    first: int | None = None
    snoozed: tuple[int | None, str] = (None, "")

    @property
    def score(self) -> int:
        """When the event can be claimed next."""
        return self.due if self.token is None else self.lease_end


@dataclass
class DeadLetter:
    """A dead letter. ``died`` is the time of its death."""

    starts: int
    reason: str
    died: int
    event: Event


@dataclass
class Schedule:
    """A schedule with an interval. ``next`` is the nominal time of the pending occurrence."""

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
    grace: int | None = None
    expires: int | None = None
    owner: str = ""

    def after(self, nominal: int) -> int:
        """Return the first nominal time after *nominal*."""
        return self.anchor + ((nominal - self.anchor) // self.every + 1) * self.every


@dataclass
class Owner:
    """
    The record of an owner of schedules.

    ``removed`` has the state of each schedule that a later version has removed, and when.
    """

    version: int
    declared: set[str] = field(default_factory=set)
    removed: dict[str, tuple[int, Schedule]] = field(default_factory=dict)


@dataclass
class Model:
    """The state of one namespace."""

    pending: dict[str, Event] = field(default_factory=dict)
    dead: dict[str, DeadLetter] = field(default_factory=dict)
    schedules: dict[str, Schedule] = field(default_factory=dict)
    owners: dict[str, Owner] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    asked: dict[str, int] = field(default_factory=dict)
    paused: bool = False
    token: int = 0

    # -------------------------------------------------------------------------------- posting

    def in_line(self, when: int) -> int:
        """Return the first moment after the events that are due within a millisecond of *when*."""
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
        """
        Post events.

        Args:
            now: The server's time.
            entries: The events. True puts an event after those of the same millisecond.
            policy: What to do if an id exists.

        Returns:
            For each event whether it was stored, and the id because of which all were refused.
        """
        stored: list[Event] = []
        reply = []
        for event, behind in entries:
            when, first = max(event.due, now), None
            if event.max_wait is not None:
                first = self._wait_began(now, event.id)
                when = max(min(when, first + event.max_wait), now)
            if behind:
                when = self.in_line(when)
            there = self.pending.get(event.id)
            if there is not None and there.token is not None:
                # A generated id must be new, so that not even a cancelled event may have it.
                gone = there.cancelled and policy != "post_new"
                # An event in flight has no due time to compare.
                if gone or policy in ("earliest", "latest"):
                    there = None
            if there is not None and policy in ("post_new", "error"):
                return [], event.id
            kept = there is not None and (
                policy == "keep"
                or (policy == "earliest" and there.due <= when)
                or (policy == "latest" and there.due >= when)
            )
            reply.append(not kept)
            if not kept:
                stored.append(replace(event, due=when, first=first))
        for event in stored:
            self.pending[event.id] = event
            self.dead.pop(event.id, None)
        return reply, ""

    def _wait_began(self, now: int, id: str) -> int:
        """Return when the wait began that a post with a limit continues, or begins."""
        event = self.pending.get(id)
        if event is None or event.token is not None or event.starts or event.first is None:
            return now
        return min(event.first, now)

    # ----------------------------------------------------------------------------- one event

    def cancel(self, now: int, id: str) -> str:
        """Cancel an event; return the outcome."""
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

    def update(self, id: str, payload: str) -> bool:
        """Replace the payload of an event that is not in flight."""
        event = self.pending.get(id)
        if event is None or event.token is not None:
            return False
        event.payload = payload
        return True

    def reschedule(self, now: int, id: str, when: int) -> bool:
        """Move an event that is not in flight."""
        event = self.pending.get(id)
        if event is None or event.token is not None:
            return False
        event.due = max(when, now)
        return True

    def revive(self, now: int, id: str) -> bool:
        """Turn a dead letter into an event that is due now."""
        letter = self.dead.get(id)
        if letter is None or id in self.pending:
            return False
        del self.dead[id]
        self.pending[id] = replace(
            letter.event, due=now, starts=0, token=None, expires=None, cancelled=False, first=None,
            snoozed=(None, ""),
        )  # fmt: skip
        return True

    def drop(self, id: str) -> bool:
        """Delete one dead letter."""
        return self.dead.pop(id, None) is not None

    def clear(self) -> tuple[int, int, int]:
        """Delete everything; return the numbers of events, dead letters and schedules."""
        sizes = len(self.pending), len(self.dead), len(self.schedules)
        self.pending.clear()
        self.dead.clear()
        self.schedules.clear()
        self.owners.clear()
        return sizes

    def trim(self, now: int, limit: int, age: int) -> int:
        """Delete dead letters, the oldest first; return how many."""
        oldest = sorted(self.dead, key=lambda name: (self.dead[name].died, name))
        gone = oldest[: max(0, len(oldest) - limit)]
        if not gone and age >= 0:
            gone = [id for id in oldest if self.dead[id].died <= now - age]
        for id in gone:
            del self.dead[id]
        return len(gone)

    def _bury(self, now: int, event: Event, reason: str) -> None:
        del self.pending[event.id]
        self.dead[event.id] = DeadLetter(event.starts, reason, now, event)

    # ------------------------------------------------------------------------------- settling

    def settle(
        self, now: int, id: str, token: int, verdict: str, wait: int = 0, *, reason: str = ""
    ) -> str:
        """Settle one claim without its schedule; return the result. See `settle_all`."""
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
            self._bury(now, event, reason)
            return "dead"
        if verdict == "release":
            event.token = None
            event.starts -= 1
            return "done"
        if verdict == "snooze":
            event.token = None
            event.starts -= 1
            event.due = now + wait
            if event.snoozed[0] is None or event.snoozed[1] != reason:
                # Its wait for the first start is over.
                event.snoozed, event.first = (now, reason), None
            return "done"
        if event.starts > event.max_retries:
            self._bury(now, event, "failed")
            return "dead"
        event.token = None
        event.due = now + wait
        event.snoozed = None, ""
        return "done"

    def settle_all(self, now: int, settlements: list[tuple[str, int, str, int, str]]) -> list[str]:
        """Settle several claims in one script, confirmations first; return the results."""
        results = [""] * len(settlements)
        first = [i for i, s in enumerate(settlements) if s[2] == "confirm"]
        last = [i for i, s in enumerate(settlements) if s[2] != "confirm"]
        over = []
        for i in first + last:
            id, token, verdict, wait, reason = settlements[i]
            results[i] = self.settle(now, id, token, verdict, wait, reason=reason)
            if id not in self.pending and results[i] != "stale":
                over.append(id)
        for id in over:
            self.ended(now, id)
        return results

    def extend(self, now: int, id: str, token: int, lease: int, *, at_least: bool = False) -> bool:
        """Renew a lease. With *at_least*, the lease never gets shorter."""
        event = self.pending.get(id)
        if event is None or event.token != token:
            return False
        event.lease_end = max(event.lease_end * at_least, now + lease)
        return True

    # -------------------------------------------------------------------------------- claiming

    def due(self, now: int) -> list[Event]:
        """Return the events that can be claimed by *now*, in order."""
        found = [e for e in self.pending.values() if e.score <= now]
        return sorted(found, key=lambda e: (e.score, e.id.encode()))

    def claim(
        self, now: int, node: str, limit: int, lease: int, awaited: int, *, ahead: int
    ) -> tuple[list[Event], list[tuple[str, str]], bool]:
        """
        Claim events for a node. The caller must set their tokens, in order.

        Args:
            now: The server's time.
            node: The name of the node.
            limit: How many events the node wants.
            lease: The length of a lease.
            awaited: How many due events stay for other nodes, which were woken.
            ahead: Events that are due within this time are claimed as well, if nothing need be
                decided when they are due. An expired lease, an expiry and an occurrence need it.

        Returns:
            The claimed events, the buried ids with their reasons, and whether the node was known.
        """
        known = node in self.nodes
        self.asked[node] = now
        if self.paused:
            return [], [], known
        due = self.due(now + ahead)
        claims: list[Event] = []
        buried: list[tuple[str, str]] = []
        for id in [e.id for e in due[: max(0, min(limit, len(due) - awaited))]]:
            # The schedule of an earlier event may have replaced this one.
            event = self.pending.get(id)
            if event and (event.score <= now or self._simple(event, now + ahead)):
                self._claim(now, event, lease, claims, buried)
        return claims, buried, known

    def _simple(self, event: Event, horizon: int) -> bool:
        """Return True if an event is due by *horizon*, and nothing need be decided before."""
        expires = event.expires is not None and event.expires <= event.score
        undecided = event.token is not None or expires or event.late_bound
        return event.score <= horizon and not undecided

    def _claim(
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
        elif not held and not self._meet(now, event):
            pass
        elif event.expires is not None and event.expires <= now:
            self._bury(now, event, "expired")
            buried.append((event.id, "expired"))
            self.ended(now, event.id)
        else:
            event.due = event.score
            event.starts += 1
            event.cancelled = False
            event.lease_end = now + lease
            claims.append(event)

    def join(self, now: int, node: str) -> None:
        """Register a node, and remove the silent ones."""
        for name, at in list(self.asked.items()):
            if at <= now - SILENT:
                del self.asked[name]
                self.nodes.discard(name)
        self.nodes.add(node)
        self.asked[node] = now

    def leave(self, node: str) -> None:
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
            self.pending[id] = _occurrence(id, schedule.next, schedule)

    def _advance(self, id: str, schedule: Schedule, after: int | None) -> None:
        if schedule.left is not None:
            schedule.left = max(0, schedule.left - 1)
        schedule.next = None if schedule.left == 0 else after
        schedule.waits = None
        self._put(id.rpartition("@")[0], schedule)

    def _meet(self, now: int, event: Event) -> bool:
        """Return True if a due occurrence may start; otherwise move or drop it."""
        schedule, nominal = self._scheduled(event.id)
        if schedule is None or schedule.next != nominal:
            return True
        name = event.id.rpartition("@")[0]
        before = self.pending.get(f"{name}@{schedule.running}") if schedule.running else None
        if before is not None and schedule.overlap == "queue":
            event.due = schedule.waits = max(before.score, now) + REMIND
            return False
        due = nominal if event.due == schedule.waits else max(nominal, event.due)
        if before is None and schedule.grace is not None and now > due + schedule.grace:
            # Skip to the first nominal time within the grace.
            del self.pending[event.id]
            schedule.waits = None
            schedule.next = max(schedule.after(nominal), schedule.after(now - schedule.grace - 1))
            self._put(name, schedule)
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
        if event.expires is not None:
            event.expires += latest - nominal
        schedule.last, schedule.running = latest, nominal
        self._advance(event.id, schedule, after)
        return True

    def ended(self, now: int, id: str) -> None:
        """If an occurrence has ended, make the one due that waits for its end."""
        schedule, nominal = self._scheduled(id)
        if schedule is None or schedule.running != nominal:
            return
        schedule.running = None
        pending = self.pending.get(f"{id.rpartition('@')[0]}@{schedule.next}")
        if pending is not None and schedule.waits is not None and pending.due == schedule.waits:
            pending.due = schedule.waits = now

    def declare(
        self, now: int, name: str, new: Schedule, start: int | None, owner: str = ""
    ) -> str:
        """Declare a schedule; return whether it is new, changed or the same."""
        old = self.schedules.get(name)
        if old is not None and not owner:
            owner = old.owner
        new.owner = owner
        if old is not None and old.print == new.print:
            old.owner = owner
            return "same"
        if old is None and owner and name in self.owners[owner].removed:
            _, before = self.owners[owner].removed[name]
            new.paused = before.paused
            if before.print == new.print:
                new.left = before.left
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
            # A time that was delivered is not repeated, even if the clock was set back since.
            reached = max(now, new.last or 0)
            over = old is not None and new.anchor <= reached
            first = new.after(reached) if over else new.anchor
        new.next = None if new.left == 0 else first
        self.schedules[name] = new
        self._put(name, new)
        return "new" if old is None else "changed"

    def declare_together(
        self, now: int, owner: str, version: int, block: dict[str, tuple[Schedule, int | None]]
    ) -> tuple[list[str], list[str]] | None:
        """
        Declare the schedules of a block, each with its start.

        Returns:
            The outcomes and the names of the removed schedules; None if a higher version is known.
        """
        record = self.owners.setdefault(owner, Owner(version))
        if record.version > version:
            return None
        for name, (at, _) in list(record.removed.items()):
            if at + REMEMBERED <= now:
                del record.removed[name]
        outcomes = [self.declare(now, name, *each, owner) for name, each in block.items()]
        owned = {
            name
            for name in record.declared - set(block)
            if name in self.schedules and self.schedules[name].owner == owner
        }
        removed = sorted(owned) if version > record.version else []
        for name in removed:
            before = self.schedules[name]
            if before.paused or before.left is not None:
                record.removed[name] = (now, before)
            self.unschedule(name)
        for name in block:
            record.removed.pop(name, None)
        record.declared = owned - set(removed) | set(block)
        record.version = version
        return outcomes, removed

    def unschedule(self, name: str) -> bool:
        schedule = self.schedules.pop(name, None)
        if schedule is None:
            return False
        self.pending.pop(f"{name}@{schedule.next}", None)
        return True

    def suspend(self, name: str, on: bool) -> bool:
        """Pause one schedule, or resume it; return whether that changed anything."""
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
        """Post an additional occurrence under *id*, which the caller provides."""
        self.pending[id] = _occurrence(id, now, self.schedules[name])


def _occurrence(id: str, due: int, schedule: Schedule) -> Event:
    event = Event(id, due, schedule.payload, schedule.max_retries, late_bound=True)
    if schedule.expires is not None:
        event.expires = int(id.rpartition("@")[2]) + schedule.expires
    return event
