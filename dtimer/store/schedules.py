"""The operations on schedules, which compute nominal times here and store them in Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator

from dtimer.errors import NamespaceCorrupt, OutcomeUnknown, StoreError
from dtimer.model.outcomes import Declared
from dtimer.model.records import Schedule
from dtimer.model.schedules import (
    MISFIRES,
    OVERLAPS,
    STORED_TIMES,
    ScheduleSpec,
    check_cron,
    next_times,
    times_to_add,
)
from dtimer.model.zones import zone
from dtimer.store import replies
from dtimer.store.format import read_spec, text, write_template
from dtimer.store.namespace import Namespace
from dtimer.store.reply_checks import flag
from dtimer.store.scripts import verb
from dtimer.store.walks import Walks

#: The script that reads one schedule.
SCHEDULE = verb("schedule", "schedule")

_ADD_TIMES = verb("add_times", "schedule", "fingerprint", "after", "times", "left_out", "final")
_DECLARE = verb(
    "declare",
    *("schedule", "fingerprint", "definition", "template"),
    *("every", "misfire", "overlap", "jitter", "grace", "expires"),
    *("start", "stop", "left", "times", "final"),
)
_PAUSE_SCHEDULE = verb("pause_schedule", "schedule", "on")
_RUN_NOW = verb("run_now", "schedule")
_SCHEDULES = verb("schedules")
_UNSCHEDULE = verb("unschedule", "schedule")


class Schedules:
    """
    The operations on the schedules of a namespace; most methods call one or two scripts.

    Args:
        namespace: Calls the scripts.
        walks: The iterations in progress, which must not yield an occurrence that a change here
            creates.
    """

    def __init__(self, namespace: Namespace, walks: Walks) -> None:
        self._namespace = namespace
        self._walks = walks
        # The schedules that this timer has declared, and when, on the monotonic clock.
        self._declared: dict[str, tuple[ScheduleSpec, float]] = {}

    def declare(self, spec: ScheduleSpec) -> Declared:
        """Declare a schedule; return what that has changed."""
        result = ""
        try:
            result = self._declare(spec)
        except StoreError as e:
            result = "" if isinstance(e, OutcomeUnknown) else "same"
            raise
        finally:
            if result != "same":
                self._walks.declared(spec.id)
        self._declared[spec.id] = (spec, time.monotonic())
        return Declared(result)

    def redeclare(self, seconds: float | None) -> None:
        """
        Declare the schedules again that a rollback has removed.

        Only schedules that this timer declared in the last *seconds* are considered; with None,
        all that it declared. An older schedule was stored before the lost period. If it is missing,
        a process has removed it on purpose.
        """
        horizon = None if seconds is None else time.monotonic() - seconds
        for id, (spec, declared) in list(self._declared.items()):
            is_recent = horizon is None or declared >= horizon
            if is_recent and not self._namespace.call(SCHEDULE, id):
                self._declare(spec)

    def _declare(self, spec: ScheduleSpec) -> str:
        until = self._namespace.scripts.deadline()
        if spec.every is not None:
            return self._declare_with(spec, [], until)
        result = self._declare_with(
            spec, next_times(spec, self._namespace.server_now(until)), until
        )
        while result.startswith("behind:"):
            # The server's clock was set back: occurrences were already made for these times.
            self.check_deadline(until, spec.id)
            latest = int(result.partition(":")[2])
            result = self._declare_with(spec, next_times(spec, latest), until)
        return result

    def _declare_with(self, d: ScheduleSpec, times: list[int], until: float | None = None) -> str:
        first = ""
        if d.every is not None:
            first = f"+{d.every}" if d.start is None else str(d.start)
        arguments = _DECLARE.in_order(
            schedule=d.id,
            fingerprint=d.fingerprint,
            definition=d.to_json(),
            template=write_template(d),
            every="" if d.every is None else str(d.every),
            misfire=MISFIRES[d.misfire],
            overlap=OVERLAPS[d.overlap],
            jitter=str(d.jitter),
            grace="" if d.grace is None else str(d.grace),
            expires="" if d.expires is None else str(d.expires),
            start=first,
            stop="" if d.stop is None else str(d.stop),
            left="" if d.count is None else str(d.count),
            times=",".join(map(str, times)),
            final="1" if d.every is None and len(times) < STORED_TIMES else "",
        )
        return self._namespace.ask(replies.read_declared, _DECLARE, *arguments, until=until)

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
        return self._namespace.ask(lambda reply: replies.read_schedule(id, reply), SCHEDULE, id)

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
        self._declared.pop(id, None)
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
