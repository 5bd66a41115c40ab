"""
What a person asks of a namespace and no node does: all of it, who holds what, is it sound.

Whole namespaces are walked in flat memory: nothing is remembered of what was met, so an
event that another process moves meanwhile may be met twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dtimer.errors import OutcomeUnknown, StoreError
from dtimer.model.event import DeadLetter
from dtimer.model.recurrence import Definition, definition_from_json
from dtimer.store import codec
from dtimer.store.replies import pairs
from dtimer.store.store import Store

#: Events in one page of a walk through all of them, about 1 ms of the server's time.
_PAGE = 500

_HEAD = re.compile(rb"(\d{0,17}),(\d{1,7})(?:,[^|]*)?\|")


@dataclass(frozen=True, slots=True)
class Body:
    """What is stored of an event: when it expires, how often it is retried, its payload."""

    expires_us: int | None
    max_retries: int
    payload: bytes


def read_body(raw: bytes) -> Body | None:
    """Read a body; None when it is none."""
    match = _HEAD.match(raw)
    if match is None:
        return None
    expires = int(match[1]) if match[1] else None
    return Body(expires, int(match[2]), raw[match.end() :])


def write_body(body: Body) -> bytes:
    """Write a body as post does."""
    expires = b"" if body.expires_us is None else b"%d" % body.expires_us
    return b"%b,%d|%b" % (expires, body.max_retries, body.payload)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A scheduled event with all that is stored of it, to be taken along."""

    id: str
    due_us: int
    attempt: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Audit:
    """
    Whether the keys of a namespace agree: how many there are of each, and what is wrong.

    ``strays`` are pairs of what is wrong and an id, found in a sample at random.
    """

    due: int
    bodies: int
    dead: int
    graves: int
    leases: int
    schedules: int
    plans: int
    strays: list[tuple[str, str]]

    @property
    def sound(self) -> bool:
        """True when nothing is known to be wrong."""
        return not self.strays and (
            self.due == self.bodies
            and self.dead == self.graves
            and self.leases <= self.due
            and self.schedules == self.plans
        )


class Inventory(Store):
    """A store, and the verbs for people."""

    def waiting(self) -> Iterator[Waiting]:
        """Walk the scheduled events in due order, with all that is stored of them."""
        for id, due, tries, raw in self._walks.upcoming(self._ask, "-inf", "+inf", _PAGE):
            yield Waiting(id, codec.whole(due), codec.whole(tries), raw)

    def definitions(self) -> Iterator[tuple[Definition, bool, str]]:
        """Walk the schedules: definition, whether it is paused, id of what is pending of it."""
        for name in self.schedule_ids():
            if standing := self._ask(codec.read_standing_plan, "schedule", name):
                text, plan, beat, _ = standing
                pending = f"{name}@{beat.get('next', '')}"
                paused = beat.get("paused") == "1"
                yield definition_from_json(name, text, plan), paused, pending

    def died_after(self, last: str, died_us: int) -> Iterator[DeadLetter]:
        """
        Walk the dead letters from one on, the oldest first: itself is passed over.

        Args:
            last: Its id, which need not be there any more.
            died_us: When it died.
        """
        for id, died, letter in self._walks.dead(self._ask, _PAGE, str(died_us), last):
            yield codec.read_letter(id, died, letter)

    def restore(self, letters: Sequence[DeadLetter]) -> int:
        """
        Put dead letters back; those whose id is pending or dead here are left out.

        Returns:
            How many were put back.
        """
        arguments: list[str] = []
        for letter in letters:
            error = letter.error.encode(errors="surrogateescape")
            head = b"%d,%b,%d|" % (letter.attempt, letter.reason.encode(), len(error))
            text = (head + error + letter.raw).decode(errors="surrogateescape")
            arguments += (letter.id, str(round(letter.died * 1000)), text)
        done = True
        try:
            return self._ask(int, "restore", *arguments, named=True)
        except StoreError as e:
            done = isinstance(e, OutcomeUnknown)
            raise
        finally:
            for letter in letters if done else ():
                self._walks.restored(letter.id, round(letter.died * 1000))

    def holders(self, most: int = 500) -> dict[str, int]:
        """Return how many events each incarnation holds, of at most so many looked at."""
        return self._ask(
            lambda flat: {codec.text(node): int(n) for node, n in pairs(flat)}, "holders", str(most)
        )

    def audit(self, most: int = 100) -> Audit:
        """Look whether the keys agree with each other, at a sample of each."""

        def read(reply: Any) -> Audit:
            *sizes, flat = reply
            strays = [(codec.text(what), codec.text(id)) for what, id in pairs(flat)]
            due, bodies, dead, graves, leases, schedules, plans = map(int, sizes)
            return Audit(due, bodies, dead, graves, leases, schedules, plans, strays)

        return self._ask(read, "audit", str(most))

    def command(self, *words: str) -> object:
        """Run one command, on a connection of its own."""
        return self._source.command(*words)
