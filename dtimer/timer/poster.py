"""Post prepared events: one script call for many, with unique ids, and on replicas if wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from dtimer.errors import OptionError, StoreError
from dtimer.model.arguments import RedisPipeline
from dtimer.model.ids import EventId, IdGenerator, event_ids
from dtimer.model.options import MOST_REPLICAS, Options, check_count
from dtimer.model.times import Moment
from dtimer.model.trace import stored_trace
from dtimer.store.format import Entry
from dtimer.store.store import Store
from dtimer.timer.posting import (
    Posting,
    PostItem,
    PostPair,
    chunks,
    due_argument,
    prepare,
    prepare_item,
)

# How often a post is repeated because a generated id exists. Two generators produce the same id
# about once in 2**30 pairs of one millisecond.
_MOST_COLLISIONS = 20


class NoteSuperseded(Protocol):
    """Learns that this process posts under ids that may be pending."""

    def __call__(self, ids: Collection[str], *, posted: bool) -> None:
        """Learn of a post of *ids*: before it, and with *posted* after it."""


class Poster:
    """
    Posts the events of one timer.

    Args:
        options: The options of the timer.
        store: The store of its namespace.
        note_superseded: Called before and after a post that may replace pending events.
    """

    def __init__(self, options: Options, store: Store, note_superseded: NoteSuperseded) -> None:
        self._options = options
        self._store = store
        self._note_superseded = note_superseded
        #: Makes the ids of events that are posted without one.
        self.new_id: IdGenerator = IdGenerator()
        #: Returns the header ``traceparent`` of the caller's span; None if nothing traces posts.
        self.traceparent: Callable[[], object] | None = None
        self._replicas(options.wait_replicas)  # refused here if the server can have none

    def trace(self) -> str:
        """Return the trace context to store with a post, or ``""``; never raise."""
        if self.traceparent is None:
            return ""
        try:
            return stored_trace(self.traceparent())
        except Exception:
            self.traceparent = None
            return ""

    def post(
        self, posting: Posting, pipe: RedisPipeline | None, wait_replicas: int | None
    ) -> EventId:
        """See `DTimer.post`."""
        if pipe is None:
            replicas = self._replicas(wait_replicas)
            return self._post([posting.entry], posting.policy, replicas)[0]
        if not callable(getattr(pipe, "execute_command", None)):
            given = type(pipe).__name__
            raise OptionError(f"pipe must be a pipeline of a Redis client, not {given}")
        if wait_replicas:
            raise OptionError("wait_replicas cannot wait in a pipe; send WAIT after it")
        self._store.post_in(pipe, [posting.entry], posting.policy)
        return EventId(posting.entry.id, stored=None)

    def post_many(
        self, items: Iterable[PostItem | PostPair], wait_replicas: int | None
    ) -> list[EventId]:
        """See `DTimer.post_many`."""
        replicas = self._replicas(wait_replicas)
        ids: dict[int, EventId] = {}
        try:
            trace = self.trace()
            postings = (prepare_item(self._options, self.new_id, item, trace) for item in items)
            for chunk in chunks(postings):
                posted = self._post(chunk.entries, chunk.policy, replicas)
                ids.update(zip(chunk.places, posted, strict=True))
        except Exception as e:
            e.add_note(f"post_many had posted {len(ids)} events before")
            raise
        return [ids[place] for place in range(len(ids))]

    def post_in_order(self, id: str, at: Moment | None) -> None:
        """Post an event without a payload, ordered after others of the same millisecond."""
        due = due_argument(0, at, stepped=self._options.now is not None, name="runAt")
        entry = prepare(self._options, self.new_id, {}, id=id).entry
        self._store.post([entry._replace(when=f"={due}")], "replace")

    def _replicas(self, given: int | None) -> int:
        """Return how many replicas to wait for, if the caller gave this number, or none."""
        if given is None:
            return self._options.wait_replicas
        check_count(given, "wait_replicas", 0, MOST_REPLICAS)
        if given and not self._store.server.source.replicable:
            raise OptionError("an embedded server has no replicas; leave wait_replicas at 0")
        return given

    def _post(self, entries: list[Entry], policy: str, replicas: int) -> list[EventId]:
        if policy == "post_new":
            taken = ""
            for _ in range(_MOST_COLLISIONS):
                taken = self._store.post(entries, policy, replicas).taken
                if not taken:
                    return event_ids((e.id for e in entries), frozenset())
                # The generated id exists already, and the call has stored nothing.
                entries = [e._replace(id=self.new_id()) if e.id == taken else e for e in entries]
            raise StoreError(f"Redis reports every generated id as taken, the last one {taken!r}")
        kept = self._post_named(entries, policy, replicas)
        return event_ids((e.id for e in entries), kept)

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
