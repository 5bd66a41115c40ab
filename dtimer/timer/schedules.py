"""Recurring events: every process declares its schedules, and the server creates occurrences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from zoneinfo import ZoneInfo

from dtimer.errors import OptionError
from dtimer.model.arguments import Misfire, Overlap
from dtimer.model.ids import check_id
from dtimer.model.options import MOST_RETRIES, check_count
from dtimer.model.outcomes import Declared
from dtimer.model.payload import encode
from dtimer.model.records import Schedule
from dtimer.model.schedules import make_spec
from dtimer.model.times import Duration, Moment
from dtimer.timer.client import Client


class ScheduleClient(Client):
    """Declares, inspects and controls schedules. The part of `DTimer` for recurring events."""

    def every(
        self,
        interval: Duration,
        ev: Mapping[str, Any],
        *,
        id: str,
        start: Moment | None = None,
        end: Moment | None = None,
        count: int | None = None,
        jitter: Duration = 0,
        misfire: Misfire = "coalesce",
        overlap: Overlap = "queue",
        max_retries: int | None = None,
    ) -> Declared:
        """
        Declare an event that recurs at an interval. The occurrences do not drift.

        Every process may declare its schedules each time it starts. Declaring the same again
        changes nothing; a different declaration of the same id changes the schedule. When an
        occurrence is claimed, the server creates the next one, computed from the nominal time.
        Occurrences have their own retries, leases and dead letters. ``ev.schedule``,
        ``ev.nominal`` and ``ev.missed`` describe their origin.

        Args:
            interval: At least 10 ms. **A number is milliseconds**: ``every(60, …)`` is not a
                minute but nearly seventeen times a second. Write ``60_000`` or
                ``timedelta(minutes=1)``.
            ev: The payload of each occurrence.
            id: The id of the schedule, up to 230 bytes.
            start: The first nominal time; one interval after the first declaration if None.
            end: The schedule ends at this time: no later nominal time is delivered.
            count: The most occurrences.
            jitter: Each occurrence is due at a random moment up to this long after its nominal
                time.
            misfire: What to do if several occurrences became due during an outage.
                ``coalesce`` delivers the oldest, and ``ev.missed`` counts the others. ``skip``
                delivers the latest and drops the others. ``all`` delivers each of them, at
                most a thousand.
            overlap: What to do if the previous occurrence is still running: ``queue`` keeps one
                waiting until that ends, ``allow`` starts the next, ``skip`` drops the next.
            max_retries: Replaces the node's ``max_retries`` for each occurrence.

        Returns:
            ``Declared.NEW``, ``CHANGED`` or ``SAME``. They equal ``new``, ``changed`` and ``same``.

        Raises:
            OptionError, PayloadError: an argument is not valid; raised before any I/O.
            StoreError: the schedule was not declared.
        """
        if interval is None:
            raise OptionError("every needs an interval")
        return self._declare(
            id,
            ev,
            max_retries,
            every=interval,
            start=start,
            end=end,
            count=count,
            jitter=jitter,
            misfire=misfire,
            overlap=overlap,
        )

    def cron(
        self,
        expression: str,
        ev: Mapping[str, Any],
        *,
        id: str,
        tz: str | ZoneInfo = "UTC",
        start: Moment | None = None,
        end: Moment | None = None,
        count: int | None = None,
        jitter: Duration = 0,
        misfire: Misfire = "coalesce",
        overlap: Overlap = "queue",
        max_retries: int | None = None,
    ) -> Declared:
        """
        Declare an event that recurs at times of the calendar.

        The other arguments, the return value and the errors are those of `every`.

        Args:
            expression: Five fields (minute, hour, day, month, weekday) or six (seconds first),
                with names, lists, ranges, steps, ``L`` and ``#``; or a nickname such as ``@daily``.
            tz: The time zone of the fields, as a name or a ``ZoneInfo``.
        """
        if expression is None:
            raise OptionError("cron needs an expression")
        return self._declare(
            id,
            ev,
            max_retries,
            cron=expression,
            tz=tz,
            start=start,
            end=end,
            count=count,
            jitter=jitter,
            misfire=misfire,
            overlap=overlap,
        )

    def _declare(
        self, id: str, ev: Mapping[str, Any], max_retries: int | None, **fields: Any
    ) -> Declared:
        self._notice_fork()
        retries = self._options.max_retries if max_retries is None else max_retries
        spec = make_spec(
            check_id(id),
            max_retries=check_count(retries, "max_retries", 0, MOST_RETRIES),
            payload=encode(ev, self._options.max_payload),
            stepped=self._options.now is not None,
            **fields,
        )
        return self._store.declare(spec)

    def schedules(self) -> Iterator[Schedule]:
        """Iterate over the schedules of the namespace, ordered by id."""
        self._notice_fork()
        return self._store.schedules()

    def schedule(self, id: str) -> Schedule | None:
        """Return one schedule; None if there is none of that id."""
        self._notice_fork()
        return self._store.schedule(check_id(id))

    def unschedule(self, id: str) -> bool:
        """Delete a schedule; return False if there was none. Running occurrences finish."""
        self._notice_fork()
        return self._store.unschedule(check_id(id))

    def run_now(self, id: str) -> str | None:
        """
        Post one additional occurrence of a schedule, due now, regardless of its rules.

        Returns:
            The id of the occurrence, or None if there is no such schedule.
        """
        self._notice_fork()
        return self._store.run_now(check_id(id))

    def pause_schedule(self, id: str) -> bool:
        """Pause one schedule; return False if it was already paused, or there is none."""
        self._notice_fork()
        return self._store.pause_schedule(check_id(id), on=True)

    def resume_schedule(self, id: str) -> bool:
        """Resume one schedule. Occurrences that fell due meanwhile are misfires: see `every`."""
        self._notice_fork()
        return self._store.pause_schedule(check_id(id), on=False)
