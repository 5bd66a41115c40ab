"""Recurring events: declared by every process, made by none of them in particular."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from zoneinfo import ZoneInfo

from dtimer.errors import OptionError
from dtimer.model.moments import Duration, Moment
from dtimer.model.names import check_id
from dtimer.model.options import MOST_RETRIES, check_count
from dtimer.model.payload import encode
from dtimer.model.recurrence import Schedule, define
from dtimer.timer.client import Client


class Calendar(Client):
    """The part of `DTimer` that deals in schedules."""

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
        misfire: str = "coalesce",
        overlap: str = "queue",
        max_retries: int | None = None,
    ) -> str:
        """
        Declare an event that recurs at an interval, anchored: it does not drift.

        Every process declares its schedules at its start, again and again: the same
        declaration changes nothing, a changed one changes the schedule of that id. The next
        occurrence is made by the same script that hands one out, from its nominal time.
        Occurrences have retries, leases and dead letters of their own; ``ev.schedule``,
        ``ev.nominal`` and ``ev.missed`` tell where they come from.

        Args:
            interval: 10 ms at least. **A number is milliseconds**: ``every(60, …)`` is not a
                minute but nearly seventeen times a second. Write ``60_000`` or
                ``timedelta(minutes=1)``.
            ev: The payload of each occurrence.
            id: Names the schedule, up to 230 bytes.
            start: The first nominal time; one interval from the first declaration when None.
            end: No nominal time lies after it.
            count: How many occurrences, at most.
            jitter: Each is due up to this much after its nominal time.
            misfire: What becomes of occurrences whose successor is due already, after an
                outage: ``coalesce`` delivers the oldest, which stands for all of them
                (``ev.missed``); ``skip`` delivers the latest, late, and drops those before it;
                ``all`` delivers each, a thousand at most.
            overlap: When the one before still runs: ``queue`` keeps one waiting, ``allow``
                starts it, ``skip`` drops it.
            max_retries: Of each occurrence, instead of the node's.

        Returns:
            ``new``, ``changed`` or ``same``.

        Raises:
            OptionError, PayloadError: bad arguments; before any I/O.
            StoreError: it was not declared.
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
        misfire: str = "coalesce",
        overlap: str = "queue",
        max_retries: int | None = None,
    ) -> str:
        """
        Declare an event that recurs by the calendar. See `every` for the rest.

        Args:
            expression: Five fields (minute, hour, day, month, weekday) or six (seconds
                first), with names, lists, ranges, steps, ``L`` and ``#``, or ``@daily`` and
                its like.
            tz: The time zone that the fields are in: its name, or a ``ZoneInfo``.
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
    ) -> str:
        self._notice_fork()
        retries = self._options.max_retries if max_retries is None else max_retries
        definition = define(
            check_id(id),
            max_retries=check_count(retries, "max_retries", 0, MOST_RETRIES),
            payload=encode(ev, self._options.max_payload),
            stepped=self._options.now is not None,
            **fields,
        )
        return self._store.declare(definition)

    def schedules(self) -> Iterator[Schedule]:
        """Walk the schedules of the namespace, by name."""
        self._notice_fork()
        return self._store.schedules()

    def schedule(self, id: str) -> Schedule | None:
        """Look at one schedule; None when there is none of that id."""
        self._notice_fork()
        return self._store.schedule(check_id(id))

    def unschedule(self, id: str) -> bool:
        """End a schedule; what is in flight of it runs on. False when there was none."""
        self._notice_fork()
        return self._store.unschedule(check_id(id))

    def run_now(self, id: str) -> str | None:
        """
        Hand out one more occurrence of a schedule now, whatever its rules.

        Returns:
            The id of the occurrence, or None when there is no such schedule.
        """
        self._notice_fork()
        return self._store.run_now(check_id(id))

    def pause_schedule(self, id: str) -> bool:
        """Pause one schedule; False when it was paused, or there is none."""
        self._notice_fork()
        return self._store.suspend(check_id(id), on=True)

    def resume_schedule(self, id: str) -> bool:
        """Let one schedule go on; what fell due meanwhile is a misfire."""
        self._notice_fork()
        return self._store.suspend(check_id(id), on=False)
