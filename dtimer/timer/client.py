"""The calls of a timer that need no join: post, inspect and change events and schedules."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from dtimer.errors import OptionError
from dtimer.model import summary
from dtimer.model.arguments import IfExists, Misfire, Overlap, RedisPipeline
from dtimer.model.event import Event
from dtimer.model.ids import EventId, check_id, is_occurrence
from dtimer.model.options import Options, check_choice, check_count
from dtimer.model.outcomes import Declared, Reason
from dtimer.model.overviews import DueCount, InFlight, Minute, period_us
from dtimer.model.records import (
    Cancelled,
    Cleared,
    DeadLetter,
    NodeInfo,
    Record,
    Schedule,
    Stats,
)
from dtimer.model.times import Duration, Moment
from dtimer.store.store import Store
from dtimer.timer.cancelling import cancel_many
from dtimer.timer.declaring import Declarer, ScheduleBlock
from dtimer.timer.listing import due_bounds, limited
from dtimer.timer.poster import NoteSuperseded, Poster
from dtimer.timer.posting import PostItem, PostPair, due_argument, prepare


class Client:
    """
    Posts, inspects and changes events and schedules. Needs no threads.

    Args:
        options: The options of the timer.
        store: The store of its namespace.
        note_superseded: See `Poster`.
    """

    def __init__(self, options: Options, store: Store, note_superseded: NoteSuperseded) -> None:
        self._options = options
        self._store = store
        self._poster = Poster(options, store, note_superseded)
        self._declarer = Declarer(options)
        self._pid = os.getpid()

    @property
    def _live_store(self) -> Store:
        """The store, reset first if this process was forked."""
        self._notice_fork()
        return self._store

    def _notice_fork(self) -> None:
        if self._pid != (pid := os.getpid()):
            # A server that forks without Python (uWSGI) calls no fork hook.
            if self._pid != -pid:
                self._after_fork()
            self._pid = pid
            self._report_fork()

    def _report_fork(self) -> None:
        """Do nothing. `DTimer` overrides this to log, with the first call in a forked child."""

    def _after_fork(self) -> None:
        """Reset this timer in a forked child, which must not use inherited connections or locks."""
        # Negative until the first call in this process.
        self._pid = -os.getpid()
        self._poster.new_id.after_fork()
        self._store.after_fork()

    # Posting

    def post(
        self,
        ev: Mapping[str, Any],
        delay: Duration = 0,
        *,
        at: Moment | None = None,
        id: str | None = None,
        max_retries: int | None = None,
        expires: Duration | datetime | None = None,
        if_exists: IfExists = "replace",
        max_wait: Duration | None = None,
        pipe: RedisPipeline | None = None,
        wait_replicas: int | None = None,
    ) -> EventId:
        """
        Post an event, to be delivered to one node after *delay*.

        Args:
            ev: The payload, a JSON object of at most ``max_payload`` bytes.
            delay: The time from now, by the server's clock. Zero or less means now.
            at: The due time instead of a delay: ms since the epoch, or an aware datetime.
            id: The event's id; generated if None. Posting an id that is pending replaces that
                event, even while its handler runs.
            max_retries: Replaces the node's ``max_retries``.
            expires: A time from now, or an aware datetime. After it the event is not delivered
                any more, and becomes a dead letter.
            if_exists: What to do if an event of this *id* exists: ``replace`` it, ``keep`` it,
                raise an ``error``, or let the ``earliest`` or ``latest`` due time win. ``keep``
                and ``error`` also find an event in flight. The other three supersede it: its
                confirm is refused, it is not retried, and the new event may start while the
                old handler still runs.
            max_wait: Limits a debounce, that is, a post that is repeated with the same *id* to
                replace the waiting event. The event is due after *delay*, but at most this long
                after the wait began: with the first post of this *id* that found no event waiting
                for its first start. An event that is in flight, waits for a retry, or is dead
                begins a new wait. A post without *max_wait* ends the wait. Goes with *id*, a
                *delay* that is not longer, and ``replace``.
            pipe: Your own pipeline or MULTI. The event exists once you execute it. dtimer then
                does not retry, does not wait, and does not raise `EventExists`. The reply in
                the pipeline is a string. It begins with ``1`` if the event was stored, ``0`` if
                an existing one was kept, and ``x`` if one exists and *if_exists* is ``error``.
            wait_replicas: Replaces the node's ``wait_replicas``: return when this many replicas
                have the event. It then probably, not certainly, survives the loss of the master.

        Returns:
            The id, a ``str``. Its ``stored`` is False if *if_exists* kept an existing event,
            so that this one will not be delivered. It is None for a post in a *pipe*.

        Raises:
            OptionError, PayloadError: an argument is not valid; raised before any I/O.
            EventExists: see *if_exists*.
            NotReplicated: it was posted, but too few replicas have confirmed that they have it.
            OutcomeUnknown: no reply arrived before the deadline. It may have been posted.
            StoreError: it was not posted.
        """
        self._notice_fork()
        posting = prepare(
            self._options,
            self._poster.new_id,
            ev,
            delay,
            at=at,
            id=id,
            max_retries=max_retries,
            expires=expires,
            if_exists=if_exists,
            max_wait=max_wait,
            trace=self._poster.trace(),
        )
        return self._poster.post(posting, pipe, wait_replicas)

    def post_many(
        self, items: Iterable[PostItem | PostPair], *, wait_replicas: int | None = None
    ) -> list[EventId]:
        """
        Post many events, hundreds in one round trip.

        Args:
            items: Pairs ``(ev, delay)``, or mappings of the arguments of `post`. An iterator is
                consumed as the posting proceeds.
            wait_replicas: See `post`. The call waits after each round trip.

        Returns:
            The ids, in order, as `post` returns them.

        Raises:
            As `post`. Some of the other events may have been posted: a note on the exception
            says how many. Events of one id are posted in the order of their items; others may
            not be.
        """
        self._notice_fork()
        return self._poster.post_many(items, wait_replicas)

    def _post_in_order(self, id: str, at: Moment | None) -> None:
        """Post an event without a payload, ordered after others of the same millisecond."""
        self._notice_fork()
        self._poster.post_in_order(id, at)

    def new_id(self) -> str:
        """
        Return an id for a later post, for a caller who must know the id before.

        For example, store it in your own database in the transaction that also posts the event
        with ``pipe``, or post the event after a commit. The id is recognised by its form:
        an event posted with it may be claimed up to ``look_ahead`` before it is due, like an event
        with a generated id, so it starts more precisely than one with an id of your own. In every
        other respect the post is one with an id: *if_exists* applies, and no other id is made in
        its place. If the event is replaced in these last milliseconds, the old one may still
        start. Sends nothing to Redis.
        """
        self._notice_fork()
        return self._poster.new_id.for_caller()

    # Events

    def update(self, id: str, ev: Mapping[str, Any]) -> bool:
        """
        Replace the payload of a waiting event, whether new or to be retried.

        Its due time, its attempts, ``expires`` and ``max_retries`` stay, and so does the limit of
        a debounce. To change these too, post the event again.

        Args:
            id: The id of the event, also a generated one. Not that of an occurrence: its payload
                is that of its schedule.
            ev: The new payload, a JSON object of at most ``max_payload`` bytes.

        Returns:
            True if the payload was replaced. False if no event of that id waits, because it is
            unknown, dead or in flight, perhaps claimed up to ``look_ahead`` before its due time.
            Nothing is then changed.
        """
        payload = self._options.codec.encode(ev, self._options.max_payload)
        if is_occurrence(check_id(id)):
            raise OptionError(
                f"{id!r} is the id of an occurrence of a schedule; to change the payload, declare"
                " the schedule again"
            )
        return self._live_store.update(id, payload)

    def cancel(self, id: str) -> Cancelled:
        """
        Cancel a pending event. If it is already running it finishes, but is not retried.

        Returns:
            ``CANCELLED`` if the event will never start; only this value is true. ``IN_FLIGHT``
            if a node has already claimed it, perhaps up to ``look_ahead`` before its due time:
            it is not retried. ``NOT_FOUND`` if no event of that id is pending.
        """
        return self._live_store.cancel(check_id(id))

    def cancel_many(self, ids: Iterable[str]) -> dict[Cancelled, int]:
        """
        Cancel many events, a hundred in one round trip.

        To cancel by any property, give an iterator that selects events, such as
        ``(r.id for r in timer.upcoming() if r.id.startswith("user-7-"))``. It ends although
        the loop cancels what it visits.

        Args:
            ids: The ids. An iterator is consumed as the cancelling proceeds.

        Returns:
            For each member of `Cancelled`, how many of the ids had this outcome. An id that
            occurs twice counts twice.

        Raises:
            OptionError: *ids* is a single id, or one of them is not valid. Of a list, all are
                checked before any is cancelled.
            StoreError: Some may be cancelled: a note on the exception says how many ids were done.
        """
        return cancel_many(self._live_store, ids)

    def reschedule(
        self, id: str, delay: Duration | None = None, *, at: Moment | None = None
    ) -> bool:
        """
        Move a waiting event, whether new or to be retried, to another due time.

        Returns:
            True if it was moved. False if no event of that id is scheduled, because it is
            unknown, in flight or dead. Nothing is then changed.
        """
        self._notice_fork()
        if delay is None and at is None:
            raise OptionError("reschedule needs a delay or at")
        due = due_argument(0 if delay is None else delay, at, stepped=self._options.now is not None)
        return self._store.reschedule(check_id(id), due)

    def peek(self, id: str) -> Record | None:
        """Return the record of a scheduled, in-flight or dead event; None if none has this id."""
        return self._live_store.peek(check_id(id))

    def upcoming(
        self,
        offset: Duration | None = None,
        duration: Duration | None = None,
        limit: int | None = None,
        *,
        schedule: str | None = None,
    ) -> Iterator[Record]:
        """
        Iterate over the waiting events in due order, a page at a time.

        The first ``next()`` notes which event is the last at that moment, and the iteration ends
        there. So a loop may post, move, cancel and revive events, and still ends. The iteration
        skips the events that this timer itself posts, moves, revives or declares meanwhile. It
        also skips an id that this timer adds to your pipeline, even if the pipeline is never
        executed or an existing event is kept. At most one pending occurrence of each schedule is
        yielded. Events that other processes change meanwhile may or may not appear.

        Args:
            offset: Skip events that are due earlier than this from now. None begins with the
                overdue events.
            duration: Stop this long after the offset, or after now.
            limit: Stop after this many events.
            schedule: Yield only the occurrences of this schedule: the next one, those that wait
                for a retry, and those that `run_now` has posted. The server looks at all events
                within the bounds, a thousand in each call.
        """
        self._notice_fork()
        low, high = due_bounds(offset, duration)
        occurrences_of = "" if schedule is None else check_id(schedule, "schedule")
        return limited(self._store.upcoming(low, high, occurrences_of), limit)

    def confirm(self, ev: Event) -> bool:
        """Confirm an event that a handler received: the same as ``ev.confirm()``."""
        if not isinstance(ev, Event):
            raise OptionError(
                f"confirm takes an event that a handler was given, not {summary.value(ev)}"
            )
        return ev.confirm()

    def ahead(self, span: Duration = 3_600_000, *, periods: int = 60) -> list[DueCount]:
        """
        Count the events that will fall due within *span*, in each of *periods* equal parts of it.

        By default that is each minute of the next hour. Of a schedule only the pending occurrence
        counts. An event in flight counts when its lease ends, and an overdue event does not count.

        Args:
            span: The time from now, at least 1 ms for each period.
            periods: How many, from 1 to 120.
        """
        return self._live_store.ahead(period_us(span, periods), periods)

    def history(self) -> list[Minute]:
        """
        Return what happened in each of the last 1440 minutes, as joined nodes have recorded it.

        The oldest is first. Minutes in which nothing happened and nothing waited are left out, and
        so are minutes without a joined node.
        """
        return self._live_store.history()

    def in_flight(self, limit: int = 200) -> list[InFlight]:
        """
        Return the events that nodes have claimed, those that were claimed first at the beginning.

        If there are more than *limit* (at most 1000), return a random sample of them.
        """
        return self._live_store.in_flight(check_count(limit, "limit", 1, 1_000))

    def dead(self, limit: int | None = None, *, newest: bool = False) -> Iterator[DeadLetter]:
        """
        Iterate over the dead letters, at most *limit*: the oldest first, or the *newest* first.

        Only letters that existed at the beginning are yielded. So a loop may revive the letters
        that it receives.
        """
        self._notice_fork()
        return limited(self._store.dead(newest=newest), limit)

    def revive(self, id: str) -> bool:
        """
        Turn a dead letter back into an event: due now, its attempts reset, without an expiry.

        Returns:
            False if there is no such dead letter, or its content was never an event.
        """
        return self._live_store.revive(check_id(id))

    def revive_dead(self, reason: Reason | str | None = None) -> int:
        """
        Revive all dead letters that exist now, or those with this *reason*, as `revive` does.

        Letters that were never an event stay. A letter whose event dies again during the call is
        not revived again.

        Args:
            reason: A member of `Reason`, or its text.

        Returns:
            The number revived.
        """
        wanted = "" if reason is None else check_choice(reason, "reason", tuple(Reason))
        return self._live_store.revive_all(wanted)

    def drop(self, id: str) -> bool:
        """Delete the dead letter of this id; return False if there is none."""
        return self._live_store.drop(check_id(id))

    def purge_dead(self) -> int:
        """Delete all dead letters; return how many there were."""
        return self._live_store.purge()

    def clear(self) -> Cleared:
        """
        Delete all events, dead letters and schedules of the namespace, at one moment.

        Running handlers finish, their events are not retried, and their nodes report lost leases.
        An event that a node has claimed up to ``look_ahead`` before its due time still starts. The
        totals of `stats` stay, and so do joined nodes and a `pause`. Other processes that declare
        their schedules when they start will declare them again.

        Returns:
            How much was deleted.
        """
        return self._live_store.clear()

    # Recurring events

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
        grace: Duration | None = None,
        expires: Duration | None = None,
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
            grace: Skip an occurrence that has not started this long after it was due. It is
                checked once, when a node claims the occurrence for its first start, and before
                *misfire*. Skipped occurrences are counted in ``stats().totals["skipped"]``, and
                do not count towards *count*. At least 10 ms; longer than a poll makes sense.
            expires: Do not start or retry an occurrence later than this after it was due. It
                becomes a dead letter. If it stands for missed ones, it expires with the latest.

        Returns:
            ``Declared.NEW``, ``CHANGED`` or ``SAME``. They equal ``new``, ``changed`` and ``same``.

        Raises:
            OptionError, PayloadError: an argument is not valid; raised before any I/O.
            StoreError: the schedule was not declared.
        """
        if interval is None:
            raise OptionError("every needs an interval")
        return self._declare(
            id=id,
            ev=ev,
            max_retries=max_retries,
            every=interval,
            start=start,
            end=end,
            count=count,
            jitter=jitter,
            misfire=misfire,
            overlap=overlap,
            grace=grace,
            expires=expires,
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
        grace: Duration | None = None,
        expires: Duration | None = None,
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
            id=id,
            ev=ev,
            max_retries=max_retries,
            cron=expression,
            tz=tz,
            start=start,
            end=end,
            count=count,
            jitter=jitter,
            misfire=misfire,
            overlap=overlap,
            grace=grace,
            expires=expires,
        )

    def _declare(self, **arguments: Any) -> Declared:
        return self._declarer.declare(self._live_store.schedules, **arguments)

    def declare_schedules(
        self, *, owner: str, version: int | str, allow_empty: bool = False
    ) -> ScheduleBlock:
        """
        Begin a block that declares all schedules of a program with one round trip.

        .. code-block:: python

            with dt.declare_schedules(owner="billing", version="1.4.2"):
                dt.every(60_000, {"do": "sweep"}, id="sweep")
                dt.cron("@daily", {"do": "report"}, id="report")

        Within the block, `every` and `cron` of this thread check their arguments and return
        ``Declared.DEFERRED``. The end of the block declares all schedules with one script. If the
        block raises, nothing is declared.

        Redis records the version of the owner. A higher version adds and changes schedules, and
        removes those that the owner no longer declares. The same version adds and changes. A lower
        version changes nothing, and a warning is logged. So in a rolling update, an old process
        that starts again does not bring back a removed schedule. To roll back, declare the old
        schedules with a higher version.

        If a schedule is removed, Redis remembers for a day whether it was paused, and how many
        occurrences were left. If the owner declares the schedule again, it continues with these.

        Args:
            owner: The program or the part of it that declares these schedules: 1 to 100 letters,
                digits and characters of ``_.:/-``.
            version: A number, or whole numbers joined by ``.`` or ``-``, such as ``"1.10.2"`` or
                ``"2026-11-30"``. It must be higher with each release.
            allow_empty: By default, an empty block does nothing. With True, a higher version
                without any schedule removes all schedules of the owner.

        Returns:
            The block. Its ``outcomes``, ``removed`` and ``newer`` say what the end has done.

        Raises:
            OptionError: an argument is not valid.
            UsageError: the block is within another block of this thread.
            StoreError: raised by the end of the block: nothing was declared.
        """
        return self._declarer.block(
            self._live_store.schedules.declare_together, owner, version, empty=allow_empty
        )

    def schedules(self) -> Iterator[Schedule]:
        """Iterate over the schedules of the namespace, ordered by id."""
        return self._live_store.schedules.all()

    def schedule(self, id: str) -> Schedule | None:
        """Return one schedule; None if there is none of that id."""
        return self._live_store.schedules.get(check_id(id))

    def unschedule(self, id: str) -> bool:
        """Delete a schedule; return False if there was none. Running occurrences finish."""
        return self._live_store.schedules.remove(check_id(id))

    def run_now(self, id: str) -> str | None:
        """
        Post one additional occurrence of a schedule, due now, regardless of its rules.

        Returns:
            The id of the occurrence, or None if there is no such schedule.
        """
        return self._live_store.schedules.run_now(check_id(id))

    def pause_schedule(self, id: str) -> bool:
        """Pause one schedule; return False if it was already paused, or there is none."""
        return self._live_store.schedules.pause(check_id(id), on=True)

    def resume_schedule(self, id: str) -> bool:
        """Resume one schedule. Occurrences that fell due meanwhile are misfires: see `every`."""
        return self._live_store.schedules.pause(check_id(id), on=False)

    # The namespace

    def pause(self) -> bool:
        """
        Stop delivering events in the whole namespace. Running handlers finish; posting still works.

        Returns:
            False if the namespace was already paused.
        """
        return self._live_store.pause(on=True)

    def resume(self) -> bool:
        """Resume delivery after `pause`; return False if the namespace was not paused."""
        return self._live_store.pause(on=False)

    def stats(self) -> Stats:
        """Return counts and other figures of the namespace."""
        return self._live_store.stats()

    def nodes(self) -> list[NodeInfo]:
        """Return the nodes that have joined and have contacted the server in the last minute."""
        return self._live_store.nodes()
