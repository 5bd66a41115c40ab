"""What a timer can do without joining: post events, look at them and change them."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from dtimer.errors import OptionError, StateRollback, StoreError
from dtimer.model.event import Cancelled, DeadLetter, Event, NodeInfo, Record, Stats
from dtimer.model.moments import Duration, Moment, duration_us
from dtimer.model.names import EventId, Mint, check_id, event_ids
from dtimer.model.options import MOST_REPLICAS, Options, check_count
from dtimer.store.store import Entry, Store
from dtimer.timer.emitter import Emitter
from dtimer.timer.posting import chunks, prepare, prepare_item, when

# Two mints meet in one id about once in 2**30 pairs of the same millisecond.
_MOST_MEETINGS = 20


class Client(Emitter):
    """The half of `DTimer` that needs no threads."""

    def __init__(self, options: Options, store: Store) -> None:
        super().__init__()
        self._options = options
        self._store = store
        if options.wait_replicas and not store.replicable:
            raise OptionError("an embedded server has no replicas, for wait_replicas to wait for")
        # Weakly: a store must not keep alive the timer that is to be found forgotten.
        tell = weakref.WeakMethod(self._rolled_back)
        store.witness.tell = lambda error: (told := tell()) and told(error)
        self._mint = Mint()
        self._pid = os.getpid()

    def _rolled_back(self, error: StateRollback) -> None:
        self.announce("error", error)

    def _notice_fork(self) -> None:
        # Where a server forks past Python (uWSGI), no hook is called.
        if self._pid != os.getpid():
            self.after_fork()

    def after_fork(self) -> None:
        """Start anew in a forked child: connections and locks of its own, nothing inherited."""
        self._pid = os.getpid()
        self._mint.after_fork()
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
        if_exists: str = "replace",
        pipe: Any = None,
        wait_replicas: int | None = None,
    ) -> EventId:
        """
        Post an event, to be handed to one node after *delay*.

        Args:
            ev: The payload, a JSON object of at most ``max_payload`` bytes.
            delay: From now, by the server's clock; what is not positive means now.
            at: A moment instead, in ms since the epoch or an aware datetime.
            id: Names the event; made by us when None. Posting an id that is pending
                replaces that event, even while it is being handled.
            max_retries: Instead of the node's.
            expires: From now, or an aware datetime: past it the event is not handed out
                any more, and becomes a dead letter.
            if_exists: What to do about an existing event of this *id*: ``replace`` it,
                ``keep`` it, raise an ``error``, or let the ``earliest`` or the ``latest``
                due time win. An event in flight exists for ``keep`` and ``error``. The
                other three supersede it: its confirm is refused, it is not retried, and the
                new event may start while the old handler still runs.
            pipe: A pipeline or MULTI of yours to post in: the event exists when that is
                executed. Nothing is retried there, and nothing waited for, nor is
                `EventExists` raised. The reply in its place is a string, which begins with
                ``1`` when the event was stored, ``0`` when the pending one was kept, and
                ``x`` when *if_exists* is ``error`` and one is pending.
            wait_replicas: Return when so many replicas have the event, instead of the node's.
                That makes it likely to survive the loss of the master, and not certain.

        Returns:
            The id, a ``str``. Its ``stored`` is False if *if_exists* kept an existing event,
            and this one will not be delivered; None if it was posted in a *pipe*.

        Raises:
            OptionError, PayloadError: bad arguments; before any I/O.
            EventExists: see *if_exists*.
            NotReplicated: it was posted, and is not known to be on enough replicas.
            OutcomeUnknown: no reply within the deadline.
            StoreError: it was not posted.
        """
        self._notice_fork()
        posting = prepare(
            self._options,
            self._mint,
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
                raise OptionError(
                    f"pipe must be a pipeline of a Redis client, not {type(pipe).__name__}"
                )
            if wait_replicas:
                raise OptionError("wait_replicas cannot wait in a pipe; send WAIT after it")
            self._store.post_in(pipe, [posting.entry], posting.policy)
            return EventId(posting.entry.id, stored=None)
        replicas = self._replicas(wait_replicas)
        return self._post([posting.entry], posting.policy, replicas)[0]

    def post_in_line(self, id: str, at: Moment | None) -> None:
        """Post an event without a payload, behind those of the same millisecond."""
        self._notice_fork()
        due = when(0, at, stepped=self._options.now is not None, name="runAt")
        entry = prepare(self._options, self._mint, {}, id=id).entry
        self._store.post([entry._replace(when=f"={due}")], "replace")

    def _superseding(self, ids: Collection[str], *, posted: bool) -> None:
        """Called before events are posted under ids that may be pending, and after that."""

    def _replicas(self, given: int | None) -> int:
        if given is None:
            return self._options.wait_replicas
        check_count(given, "wait_replicas", 0, MOST_REPLICAS)
        if given and not self._store.replicable:
            raise OptionError("an embedded server has no replicas, for wait_replicas to wait for")
        return given

    def _post(self, entries: list[Entry], policy: str, replicas: int) -> list[EventId]:
        if policy == "mint":
            taken = ""
            for _ in range(_MOST_MEETINGS):
                taken = self._store.post(entries, policy, replicas).taken
                if not taken:
                    return event_ids((e.id for e in entries), frozenset())
                # Two mints met in one id; nothing of this call was stored.
                entries = [e._replace(id=self._mint()) if e.id == taken else e for e in entries]
            raise StoreError(f"Redis says of each new id that it is taken, at last of {taken!r}")
        kept = self._post_named(entries, policy, replicas)
        return event_ids((e.id for e in entries), kept)

    def _post_named(self, entries: list[Entry], policy: str, replicas: int) -> frozenset[str]:
        if policy in {"replace", "latest", "earliest"}:
            ids = {e.id for e in entries}
            self._superseding(ids, posted=False)
            try:
                return self._store.post(entries, policy, replicas).kept
            finally:
                # Also where it is not known whether they were.
                self._superseding(ids, posted=True)
        # What exists under these ids stays as it is.
        return self._store.post(entries, policy, replicas).kept

    def post_many(self, items: Iterable[Any], *, wait_replicas: int | None = None) -> list[EventId]:
        """
        Post many events, hundreds to a round trip.

        Args:
            items: Pairs ``(ev, delay)``, or mappings of the arguments of `post`. Read as
                it goes, never the whole of it at once.
            wait_replicas: See `post`; waited for after each round trip.

        Returns:
            The ids, in order, as `post` returns them.

        Raises:
            As `post`. Some of the other events have been posted then; a note on the
            exception says how many. Events of one id go out in the order of their items;
            others may not.
        """
        self._notice_fork()
        replicas = self._replicas(wait_replicas)
        ids: dict[int, EventId] = {}
        try:
            postings = (prepare_item(self._options, self._mint, item) for item in items)
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
        See to it that an event never starts, or never again.

        Returns:
            ``CANCELLED``, which alone is true, if it will never start. ``IN_FLIGHT`` if it has
            been handed out, up to ``look_ahead`` before it is due; no retry will follow.
            ``NOT_FOUND`` if nothing is pending under that id.
        """
        self._notice_fork()
        return self._store.cancel(check_id(id))

    def reschedule(
        self, id: str, delay: Duration | None = None, *, at: Moment | None = None
    ) -> bool:
        """
        Move a scheduled event, first time or retry, to another due time.

        Returns:
            True if it was moved. False, and nothing is changed, if no event of that id is
            scheduled, because it is unknown, in flight or dead.
        """
        self._notice_fork()
        if delay is None and at is None:
            raise OptionError("reschedule needs a delay or at")
        due = when(0 if delay is None else delay, at, stepped=self._options.now is not None)
        return self._store.reschedule(check_id(id), due)

    def peek(self, id: str) -> Record | None:
        """Look at one event, scheduled, in flight or dead; None when there is none."""
        self._notice_fork()
        return self._store.peek(check_id(id))

    def upcoming(
        self,
        offset: Duration | None = None,
        duration: Duration | None = None,
        limit: int | None = None,
    ) -> Iterator[Record]:
        """
        Walk the scheduled events in due order, a page at a time.

        The walk begins with the first ``next()``, and ends at the last (due, id) that exists then.
        So a loop may post, move, cancel and revive. What this timer posts, moves, revives or
        declares meanwhile, to a place before that end, is passed over. So is an id that it adds
        to a pipeline of yours, even if the pipeline is never executed or an existing event is
        kept. At most one pending occurrence of each schedule is yielded. Events that other
        processes change meanwhile may or may not appear.

        Args:
            offset: Pass over what is due sooner than this from now. None begins with
                what is overdue.
            duration: Stop this long after the offset, or after now.
            limit: Stop after so many.
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
        """Confirm an event in hand: the same as ``ev.confirm()``."""
        if not isinstance(ev, Event):
            raise OptionError(f"confirm takes an event that a handler was given, not {ev!r:.80}")
        return ev.confirm()

    def dead(self, limit: int | None = None) -> Iterator[DeadLetter]:
        """
        Walk the dead letters, the oldest first, at most *limit* of them.

        The walk ends at the last letter that exists when it begins, so a loop may revive what
        it meets.
        """
        self._notice_fork()
        if limit is not None:
            check_count(limit, "limit", 0, 2**53)
        return itertools.islice(self._store.dead(), limit)

    def revive(self, id: str) -> bool:
        """
        Give a dead letter another life: due now, attempts counted anew, no expiry.

        Returns:
            False when there is no such letter, or what it holds was never an event.
        """
        self._notice_fork()
        return self._store.revive(check_id(id))

    def purge_dead(self) -> int:
        """Drop all dead letters; return how many."""
        self._notice_fork()
        return self._store.purge()

    def pause(self) -> bool:
        """
        Hand out nothing any more, in the whole namespace; what is in hand goes on.

        Returns:
            False when it was paused already.
        """
        self._notice_fork()
        return self._store.pause(on=True)

    def resume(self) -> bool:
        """Go on after `pause`; False when it was not paused."""
        self._notice_fork()
        return self._store.pause(on=False)

    def stats(self) -> Stats:
        """Return the namespace in numbers."""
        self._notice_fork()
        return self._store.stats()

    def nodes(self) -> list[NodeInfo]:
        """Return the nodes that have joined and were heard of in the last minute."""
        self._notice_fork()
        return self._store.nodes()
