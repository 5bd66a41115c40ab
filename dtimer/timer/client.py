"""The operations of a timer that need no join: post, inspect and change events."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from dtimer.errors import OptionError, StateRollback, StoreError
from dtimer.model import summary
from dtimer.model.arguments import IfExists, PostItem, PostPair, RedisPipeline
from dtimer.model.event import Event
from dtimer.model.ids import EventId, IdGenerator, check_id, event_ids
from dtimer.model.options import MOST_REPLICAS, Options, check_count
from dtimer.model.records import Cancelled, DeadLetter, NodeInfo, Record, Stats
from dtimer.model.times import Duration, Moment, duration_us
from dtimer.store.store import Entry, Store
from dtimer.timer.posting import chunks, due_argument, prepare, prepare_item
from dtimer.timer.timer_emitter import TimerEmitter

# How often a post is repeated because a generated id exists. Two generators produce the same id
# about once in 2**30 pairs of one millisecond.
_MOST_COLLISIONS = 20


class Client(TimerEmitter):
    """Posts, inspects and changes events. The part of `DTimer` that needs no threads."""

    def __init__(self, options: Options, store: Store) -> None:
        super().__init__()
        self._options = options
        self._store = store
        self._replicas(options.wait_replicas)
        # A weak reference: the store must not keep a timer alive that the user has dropped.
        reference = weakref.WeakMethod(self._rolled_back)
        store.rollback.on_rollback = lambda error: (report := reference()) and report(error)
        self._new_id = IdGenerator()
        self._pid = os.getpid()

    def _rolled_back(self, error: StateRollback) -> None:
        self._announce("error", error)

    def _notice_fork(self) -> None:
        # A server that forks without Python (uWSGI) calls no fork hook.
        if self._pid != os.getpid():
            self._after_fork()

    def _after_fork(self) -> None:
        """Reset this timer in a forked child, which must not use inherited connections or locks."""
        self._pid = os.getpid()
        self._new_id.after_fork()
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
            self._new_id,
            ev,
            delay,
            at=at,
            id=id,
            max_retries=max_retries,
            expires=expires,
            if_exists=if_exists,
        )
        if pipe is not None:
            if not callable(getattr(pipe, "execute_command", None)):
                given = type(pipe).__name__
                raise OptionError(f"pipe must be a pipeline of a Redis client, not {given}")
            if wait_replicas:
                raise OptionError("wait_replicas cannot wait in a pipe; send WAIT after it")
            self._store.post_in(pipe, [posting.entry], posting.policy)
            return EventId(posting.entry.id, stored=None)
        replicas = self._replicas(wait_replicas)
        return self._post([posting.entry], posting.policy, replicas)[0]

    def _post_in_order(self, id: str, at: Moment | None) -> None:
        """Post an event without a payload, ordered after others of the same millisecond."""
        self._notice_fork()
        due = due_argument(0, at, stepped=self._options.now is not None, name="runAt")
        entry = prepare(self._options, self._new_id, {}, id=id).entry
        self._store.post([entry._replace(when=f"={due}")], "replace")

    def _note_superseded(self, ids: Collection[str], *, posted: bool) -> None:
        """Hook, called before and after a post under ids that may be pending."""

    def _replicas(self, given: int | None) -> int:
        if given is None:
            return self._options.wait_replicas
        check_count(given, "wait_replicas", 0, MOST_REPLICAS)
        if given and not self._store.replicable:
            raise OptionError("an embedded server has no replicas; leave wait_replicas at 0")
        return given

    def _post(self, entries: list[Entry], policy: str, replicas: int) -> list[EventId]:
        if policy == "post_new":
            taken = ""
            for _ in range(_MOST_COLLISIONS):
                taken = self._store.post(entries, policy, replicas).taken
                if not taken:
                    return event_ids(entries, frozenset())
                # The generated id exists already, and the call has stored nothing.
                entries = [e._replace(id=self._new_id()) if e.id == taken else e for e in entries]
            raise StoreError(f"Redis reports every generated id as taken, the last one {taken!r}")
        return event_ids(entries, self._post_named(entries, policy, replicas))

    def _post_named(self, entries: list[Entry], policy: str, replicas: int) -> frozenset[str]:
        if policy in {"replace", "latest", "earliest"}:
            ids = {e.id for e in entries}
            self._note_superseded(ids, posted=False)
            try:
                return self._store.post(entries, policy, replicas).kept
            finally:
                # Also after an error, because the events may have been posted nevertheless.
                self._note_superseded(ids, posted=True)
        # Existing events of these ids stay as they are.
        return self._store.post(entries, policy, replicas).kept

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
        replicas = self._replicas(wait_replicas)
        ids: dict[int, EventId] = {}
        try:
            postings = (prepare_item(self._options, self._new_id, item) for item in items)
            for chunk in chunks(postings):
                posted = self._post(chunk.entries, chunk.policy, replicas)
                ids.update(zip(chunk.places, posted, strict=True))
        except Exception as e:
            e.add_note(f"post_many had posted {len(ids)} events before")
            raise
        return [ids[place] for place in range(len(ids))]

    # Control

    def cancel(self, id: str) -> Cancelled:
        """
        Cancel a pending event. If it is already running it finishes, but is not retried.

        Returns:
            ``CANCELLED`` if the event will never start; only this value is true. ``IN_FLIGHT``
            if a node has already claimed it, perhaps up to ``look_ahead`` before its due time:
            it is not retried. ``NOT_FOUND`` if no event of that id is pending.
        """
        self._notice_fork()
        return self._store.cancel(check_id(id))

    def reschedule(
        self, id: str, delay: Duration | None = None, *, at: Moment | None = None
    ) -> bool:
        """
        Move a scheduled event, whether new or waiting for a retry, to another due time.

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
        self._notice_fork()
        return self._store.peek(check_id(id))

    def upcoming(
        self,
        offset: Duration | None = None,
        duration: Duration | None = None,
        limit: int | None = None,
    ) -> Iterator[Record]:
        """
        Iterate over the scheduled events in due order, a page at a time.

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
        """
        self._notice_fork()
        start = None if offset is None else duration_us(offset, "offset")
        high = "+inf"
        if duration is not None:
            high = f"+{(start or 0) + duration_us(duration, 'duration')}"
        if limit is not None:
            check_count(limit, "limit", 0, 2**53)
        records = self._store.upcoming("-inf" if start is None else f"+{start}", high)
        return itertools.islice(records, limit)

    def confirm(self, ev: Event) -> bool:
        """Confirm an event that a handler received: the same as ``ev.confirm()``."""
        if not isinstance(ev, Event):
            raise OptionError(
                f"confirm takes an event that a handler was given, not {summary.value(ev)}"
            )
        return ev.confirm()

    def dead(self, limit: int | None = None) -> Iterator[DeadLetter]:
        """
        Iterate over the dead letters, the oldest first, at most *limit* of them.

        The iteration ends at the last dead letter that existed at its beginning. So a loop may
        revive the letters that it receives.
        """
        self._notice_fork()
        if limit is not None:
            check_count(limit, "limit", 0, 2**53)
        return itertools.islice(self._store.dead(), limit)

    def revive(self, id: str) -> bool:
        """
        Turn a dead letter back into an event: due now, its attempts reset, without an expiry.

        Returns:
            False if there is no such dead letter, or its content was never an event.
        """
        self._notice_fork()
        return self._store.revive(check_id(id))

    def purge_dead(self) -> int:
        """Delete all dead letters; return how many there were."""
        self._notice_fork()
        return self._store.purge()

    def pause(self) -> bool:
        """
        Stop delivering events in the whole namespace. Running handlers finish; posting still works.

        Returns:
            False if the namespace was already paused.
        """
        self._notice_fork()
        return self._store.pause(on=True)

    def resume(self) -> bool:
        """Resume delivery after `pause`; return False if the namespace was not paused."""
        self._notice_fork()
        return self._store.pause(on=False)

    def stats(self) -> Stats:
        """Return counts and other figures of the namespace."""
        self._notice_fork()
        return self._store.stats()

    def nodes(self) -> list[NodeInfo]:
        """Return the nodes that have joined and have contacted the server in the last minute."""
        self._notice_fork()
        return self._store.nodes()
