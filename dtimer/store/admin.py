"""
Operations for people who administer a namespace: export, restore, list holders, audit.

An iteration over a whole namespace takes constant memory, because it does not remember the ids that
it has yielded. So an event that another process moves meanwhile may be yielded twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dtimer.errors import OutcomeUnknown, StoreError
from dtimer.model.records import DeadLetter
from dtimer.model.schedules import ScheduleSpec
from dtimer.store import replies
from dtimer.store.format import read_letter, read_spec, text, write_letter
from dtimer.store.namespace import SILENT_US
from dtimer.store.reply_checks import pairs
from dtimer.store.schedules import SCHEDULE
from dtimer.store.scripts import verb
from dtimer.store.store import Store

#: The number of events in one page when iterating over all events: about 1 ms of server time.
_PAGE = 500

_AUDIT = verb("audit", "sample")
_HOLDERS = verb("holders", "most")
_RESTORE = verb("restore", "letters...")
_UPGRADE = verb("upgrade", "silent_after")


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """A waiting event with everything that is stored about it, for an export."""

    id: str
    due_us: int
    attempt: int
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Audit:
    """
    The result of checking the keys of a namespace against each other.

    The numbers are the sizes of the keys that ``store/lua/parts/prelude.lua`` describes. ``due``,
    ``dead``, ``graves`` (the dead letters by time) and ``plans`` (the templates of the schedules)
    have the names of their keys. ``bodies``, ``leases`` and ``schedules`` are the sizes of
    ``body``, ``lease`` and ``beats`` (the states of the schedules). ``strays`` are pairs of a
    problem and the id that has it, found in a random sample.
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
        """True if the check has found no problem."""
        return not self.strays and (
            self.due == self.bodies
            and self.dead == self.graves
            and self.leases <= self.due
            and self.schedules == self.plans
        )


class AdminStore:
    """The operations for people who administer the namespace of a *store*."""

    def __init__(self, store: Store) -> None:
        self.store: Store = store
        self._ask = store.namespace.ask

    def waiting(self) -> Iterator[PendingEvent]:
        """Yield the waiting events in due order, with everything that is stored about them."""
        for id, due, tries, raw in self.store.walks.upcoming(self._ask, "-inf", "+inf", _PAGE):
            yield PendingEvent(id, replies.integer(due), replies.integer(tries), raw)

    def specs(self) -> Iterator[tuple[ScheduleSpec, bool, str]]:
        """Yield the schedules: definition, True if it is paused, id of the pending occurrence."""
        for name in self.store.schedules.ids():
            if stored := self._ask(replies.read_stored_schedule, SCHEDULE, name):
                definition, template, schedule_state, _ = stored
                pending = f"{name}@{schedule_state.get('next', '')}"
                paused = schedule_state.get("paused") == "1"
                yield read_spec(name, definition, template), paused, pending

    def died_after(self, last: str, died_us: int) -> Iterator[DeadLetter]:
        """
        Yield the dead letters that follow a given one, oldest first.

        Args:
            last: The id of the given letter, which may have been deleted.
            died_us: Its time of death.
        """
        for id, died, letter in self.store.walks.dead(self._ask, _PAGE, str(died_us), last):
            yield read_letter(id, died, letter, self.store.coder)

    def restore(self, letters: Sequence[DeadLetter]) -> int:
        """
        Restore dead letters, except those whose id is pending or dead in this namespace.

        Returns:
            The number restored.
        """
        arguments: list[str] = []
        for letter in letters:
            arguments += (letter.id, str(round(letter.died * 1000)), write_letter(letter))
        may_exist = True
        try:
            return self._ask(int, _RESTORE, *arguments)
        except StoreError as e:
            may_exist = isinstance(e, OutcomeUnknown)
            raise
        finally:
            # An iteration of this timer that is in progress must not yield the letters that were
            # stored just now, or may have been.
            for letter in letters if may_exist else ():
                self.store.walks.restored(letter.id, round(letter.died * 1000))

    def holders(self, most: int = 500) -> dict[str, int]:
        """Return the number of leases of each incarnation, counting at most *most* leases."""
        return self._ask(
            lambda flat: {text(node): int(n) for node, n in pairs(flat)},
            _HOLDERS,
            str(most),
        )

    def upgrade(self) -> tuple[str, int]:
        """
        Raise the version of the namespace, unless an older node was heard of in the last minute.

        Returns:
            The version before, ``""`` without a namespace; and how many older nodes prevent it.
        """
        return self._ask(lambda r: (text(r[0]), int(r[1])), _UPGRADE, str(SILENT_US))

    def audit(self, most: int = 100) -> Audit:
        """Check whether the keys agree with each other, on at most *most* members of each key."""

        def read(reply: Any) -> Audit:
            *sizes, flat = reply
            strays = [(text(what), text(id)) for what, id in pairs(flat)]
            due, bodies, dead, graves, leases, schedules, plans = map(int, sizes)
            return Audit(due, bodies, dead, graves, leases, schedules, plans, strays)

        return self._ask(read, _AUDIT, str(most))
