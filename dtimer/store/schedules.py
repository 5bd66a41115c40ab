"""The operations on schedules, which compute nominal times here and store them in Redis."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator

from dtimer.errors import NamespaceCorrupt, OutcomeUnknown, StoreError
from dtimer.model.codecs import Coder
from dtimer.model.outcomes import Declared
from dtimer.model.records import Schedule
from dtimer.model.schedules import (
    MISFIRES,
    OVERLAPS,
    STORED_TIMES,
    Declaration,
    ScheduleSpec,
    check_cron,
    next_times,
    times_to_add,
)
from dtimer.model.zones import zone
from dtimer.store import replies
from dtimer.store.format import read_spec, text, write_template
from dtimer.store.namespace import Namespace
from dtimer.store.replies import Declaring
from dtimer.store.reply_checks import flag
from dtimer.store.scripts import verb
from dtimer.store.walks import Walks

#: The script that reads one schedule.
SCHEDULE = verb("schedule", "schedule")

_ADD_TIMES = verb("add_times", "schedule", "fingerprint", "after", "times", "left_out", "final")
_DECLARE = verb("declare", "owner", "version", "definitions...")
_PAUSE_SCHEDULE = verb("pause_schedule", "schedule", "on")
_RUN_NOW = verb("run_now", "schedule")
_SCHEDULES = verb("schedules")
_UNSCHEDULE = verb("unschedule", "schedule")


def _definition(d: ScheduleSpec, times: list[int]) -> tuple[str, ...]:
    """Return a schedule and its next times in the form of ``lua/parts/declare.lua``."""
    first = ""
    if d.every is not None:
        first = f"+{d.every}" if d.start is None else str(d.start)
    return (
        *(d.id, d.fingerprint, d.to_json(), write_template(d)),
        *(_optional(d.every), MISFIRES[d.misfire], OVERLAPS[d.overlap], str(d.jitter)),
        *(_optional(d.grace), _optional(d.expires)),
        *(first, _optional(d.stop), _optional(d.count), ",".join(map(str, times))),
        "1" if d.every is None and len(times) < STORED_TIMES else "",
    )


def _optional(number: int | None) -> str:
    return "" if number is None else str(number)


class Schedules:
    """
    The operations on the schedules of a namespace; most methods call one or two scripts.

    Args:
        namespace: Calls the scripts.
        walks: The iterations in progress, which must not yield an occurrence that a change here
            creates.
        coder: Reads the payloads of the occurrences.
    """

    def __init__(self, namespace: Namespace, walks: Walks, coder: Coder) -> None:
        self._namespace = namespace
        self._coder = coder
        self._walks = walks
        # The declarations of this timer, and when it made them, on the monotonic clock. The key is
        # the owner and "", or "" and the schedule.
        self._declared: dict[tuple[str, str], tuple[Declaration, float]] = {}

    def declare(self, spec: ScheduleSpec) -> Declared:
        """Declare a schedule; return what that has changed."""
        return self.declare_together(Declaration((spec,))).outcomes[0]

    def declare_together(self, declaration: Declaration) -> Declaring:
        """Declare schedules with one script; return what that has changed."""
        specs, declaring = declaration.specs, None
        is_unknown = True
        try:
            declaring = self._declare(declaration)
        except StoreError as e:
            is_unknown = isinstance(e, OutcomeUnknown)
            raise
        finally:
            outcomes = [None] * len(specs) if declaring is None else declaring.outcomes
            for spec, outcome in zip(specs, outcomes, strict=False):
                if outcome is not Declared.SAME and (outcome or is_unknown):
                    self._walks.declared(spec.id)
        if declaring.lower_than is None and specs:
            key = (declaration.owner, "" if declaration.owner else specs[0].id)
            self._declared[key] = (declaration, time.monotonic())
        return declaring

    def redeclare(self, seconds: float | None) -> None:
        """
        Declare the schedules again that a rollback has removed.

        Only schedules that this timer declared in the last *seconds* are considered; with None,
        all that it declared. An older schedule was stored before the lost period. If it is missing,
        a process has removed it on purpose.
        """
        horizon = None if seconds is None else time.monotonic() - seconds
        for declaration, declared in list(self._declared.values()):
            if horizon is not None and declared < horizon:
                continue
            if not all(self._namespace.call(SCHEDULE, spec.id) for spec in declaration.specs):
                self._declare(declaration)

    def _declare(self, declaration: Declaration) -> Declaring:
        until, specs = self._namespace.scripts.deadline(), declaration.specs
        times: list[list[int]] = [[] for _ in specs]
        if any(spec.every is None for spec in specs):
            now = self._namespace.server_now(until)
            times = [[] if spec.every is not None else next_times(spec, now) for spec in specs]
        while True:
            words = [word for pair in zip(specs, times, strict=True) for word in _definition(*pair)]
            declaring = self._namespace.ask(
                functools.partial(replies.read_declaring, len(specs)),
                _DECLARE,
                *(declaration.owner, declaration.version, *words),
                until=until,
            )
            if declaring.behind is None:
                return declaring
            # The server's clock was set back: occurrences were already made for these times.
            at, latest = declaring.behind
            self.check_deadline(until, specs[at].id)
            times[at] = next_times(specs[at], latest)

    def add_times(self, id: str, until: float | None = None) -> bool:
        """
        Add nominal times to a cron schedule; return True if the server accepted them.

        Args:
            id: The name of the schedule.
            until: The deadline of all calls together. With None, each call has its own.

        Raises:
            OptionError: This machine does not know the time zone, or the expression is invalid.
            NamespaceCorrupt: The stored definition cannot be read, or does not match the state.
        """
        stored = self._namespace.ask(replies.read_stored_schedule, SCHEDULE, id, until=until)
        if stored is None:
            return False
        definition, template, schedule_state, state_is_readable = stored
        spec = read_spec(id, definition, template)
        if not state_is_readable:
            return False
        known = schedule_state["ahead"].rpartition(",")[2] or schedule_state["next"]
        if not known or schedule_state["every"]:
            # A schedule with an interval has no list of nominal times.
            return False
        if spec.cron is None:
            raise NamespaceCorrupt(
                f"the stored state of the schedule {id!r} does not match its definition:"
                " declare it again, or remove it"
            )
        zone(spec.tz)
        check_cron(spec.cron, spec.tz)
        left_out, times, final = times_to_add(spec, int(known), self._namespace.server_now(until))
        arguments = _ADD_TIMES.in_order(
            schedule=id,
            fingerprint=schedule_state["print"],
            after=known,
            times=",".join(map(str, times)),
            left_out=str(left_out),
            final="1" if final else "",
        )
        return self._namespace.ask(flag, _ADD_TIMES, *arguments, until=until)

    def check_deadline(self, until: float, id: str) -> None:
        """Raise a `StoreError`, which says that nothing was done, if *until* has passed."""
        if time.monotonic() >= until:
            raise StoreError(
                f"the next times of the schedule {id!r} could not be computed within"
                f" {self._namespace.scripts.timeout * 1000:.0f} ms: nothing was done"
            )

    def get(self, id: str) -> Schedule | None:
        """Return the schedule of this name, or None."""
        return self._namespace.ask(
            lambda reply: replies.read_schedule(id, reply, self._coder), SCHEDULE, id
        )

    def ids(self) -> list[str]:
        """Return the names of all schedules, sorted."""
        return self._namespace.ask(lambda flat: sorted(map(text, flat)), _SCHEDULES)

    def all(self) -> Iterator[Schedule]:
        """
        Yield the schedules, sorted by name.

        Raises:
            NamespaceCorrupt: The next schedule cannot be read.
        """
        for id in self.ids():
            if (schedule := self.get(id)) is not None:
                yield schedule

    def forget(self) -> None:
        """Do not declare any schedule again after a rollback, because all are about to end."""
        self._declared.clear()

    def remove(self, id: str) -> bool:
        """See `DTimer.unschedule`."""
        for key, (declaration, declared) in list(self._declared.items()):
            rest = tuple(spec for spec in declaration.specs if spec.id != id)
            if not rest:
                self._declared.pop(key, None)
            elif len(rest) < len(declaration.specs):
                self._declared[key] = (dataclasses.replace(declaration, specs=rest), declared)
        return self._namespace.ask(flag, _UNSCHEDULE, id)

    def pause(self, id: str, *, on: bool) -> bool:
        """Pause or resume one schedule; return True if that changed anything."""

        def on_change() -> None:
            if not on:
                self._walks.declared(id)

        return self._namespace.change(on_change, _PAUSE_SCHEDULE, id, "1" if on else "0")

    def run_now(self, id: str) -> str | None:
        """See `DTimer.run_now`."""
        made = self._namespace.ask(text, _RUN_NOW, id)
        self._walks.moved(made, "+0")
        return made or None
