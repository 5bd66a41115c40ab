"""
The operations on a namespace.

Most methods call one script. `Store.cancel` may also store more times of a schedule. `Store.purge`
and the iterations work in batches, with one call for each. Times are whole microseconds.

Any thread may call any method. A call ends within the deadline. It raises a `StoreError` if Redis
cannot be reached or refuses the operation, and its subclass `OutcomeUnknown` if the operation may
have taken effect.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from dtimer.errors import EventExists, NotReplicated, OutcomeUnknown, StoreError
from dtimer.model.codecs import PLAIN, Coder
from dtimer.model.ids import schedule_of
from dtimer.model.overviews import DueCount, InFlight, Minute
from dtimer.model.records import Cancelled, Cleared, DeadLetter, NodeInfo, Record, Stats
from dtimer.store import failures, overview, replies
from dtimer.store.claims import Claims
from dtimer.store.connection.sources import Source
from dtimer.store.connection.subscription import Subscription
from dtimer.store.format import Entry, read_history, read_letter, reason_of_letter
from dtimer.store.keys import Keys
from dtimer.store.namespace import SILENT_US, Namespace
from dtimer.store.piped import Piped
from dtimer.store.reply_checks import flag, letters, understood
from dtimer.store.rollback import RollbackDetector
from dtimer.store.schedules import Schedules
from dtimer.store.script_client import ScriptClient
from dtimer.store.scripts import Verb, load, verb
from dtimer.store.server import Server
from dtimer.store.walks import Walks

_PAGE = 100
# One script revives dead letters of about this many bytes.
_MOST_REVIVED_BYTES = 1_000_000
# How many events a call looks at to find the occurrences of one schedule: about a millisecond.
_SEARCHED = 1_000

_AHEAD = verb("ahead", "period", "periods")
_ALONE = verb("alone", "node", "silent_after")
_CANCEL = verb("cancel", "ids...")
_CLEAR = verb("clear")
_DROP = verb("drop", "id")
_HISTORY = verb("history")
_IN_FLIGHT = verb("in_flight", "most")
_JOIN = verb("join", "node", "description", "silent_after")
_LEAVE = verb("leave", "node")
_NODES = verb("nodes", "silent_after")
_PAUSE = verb("pause", "on")
_PEEK = verb("peek", "id")
_POST = verb("post", "policy", "events...")
_POST_NEW = verb("post_new", "events...")
_REPORT = verb("report", "node", "description", "history")
_RESCHEDULE = verb("reschedule", "id", "when")
_REVIVE = verb("revive", "reason", "ids...")
_STATS = verb("stats", "silent_after")
_TRIM = verb("trim", "keep", "age")
_UPDATE = verb("update", "id", "payload")


class Posted(NamedTuple):
    """
    The outcome of a post.

    ``taken`` is ``""``, or the existing id that a generated id collided with; then nothing was
    stored. ``kept`` holds the ids whose existing event was kept.
    """

    taken: str
    kept: frozenset[str]


class Store:
    """
    The state of one namespace, on one Redis.

    Args:
        source: Makes the connections for scripts.
        ns: The name of the namespace.
        timeout: The deadline of a call, in seconds.
        pubsub_source: Makes the connections for pub/sub; None for *source*.
        now: None for the server's clock, or a function giving µs since the epoch.
        coder: Reads the payloads that inspections return.
    """

    def __init__(
        self,
        source: Source,
        ns: str,
        *,
        timeout: float,
        pubsub_source: Source | None = None,
        now: Callable[[], int] | None = None,
        coder: Coder = PLAIN,
    ) -> None:
        self.ns = ns
        self.coder = coder
        self.keys: Keys = Keys.of(ns)
        self.rollback: RollbackDetector = RollbackDetector()
        self._now = now
        self._scripts = ScriptClient(source, self.keys, timeout, now)
        #: The iterations in progress.
        self.walks: Walks = Walks(now, round(timeout * 1e6))
        #: Opens the namespace, and calls scripts on it.
        self.namespace: Namespace = Namespace(ns, self._scripts, self.rollback)
        #: The operations on claims and their leases.
        self.claims: Claims = Claims(self.namespace, self.rollback)
        #: The operations on schedules.
        self.schedules: Schedules = Schedules(self.namespace, self.walks, coder)
        #: The server that has the namespace.
        self.server: Server = Server(source, pubsub_source or source, self.keys, timeout)
        self._piped = Piped()

    # Posting

    @staticmethod
    def _posting(entries: Iterable[Entry], policy: str) -> tuple[Verb, list[str]]:
        """Return the script that stores *entries*, and its arguments."""
        arguments = [] if policy == "post_new" else [policy]
        for e in entries:
            arguments += e  # id, when, body
        return _POST_NEW if policy == "post_new" else _POST, arguments

    def post(self, entries: Sequence[Entry], policy: str, replicas: int = 0) -> Posted:
        """
        Store *entries* with one script, and wait until *replicas* replicas have them.

        Returns:
            The entries that were not stored, and why.

        Raises:
            EventExists: The policy is ``error`` and one of the ids exists; nothing was stored.
            NotReplicated: The events were stored, but on too few replicas.
        """
        # How many posts the server had counted before this one. If it now counts fewer, it may have
        # been rolled back. An era is the time between two rollbacks.
        era = self.rollback.era
        known_total = era.posted
        verb, arguments = self._posting(entries, policy)
        # A digit for each event: 1 if it was stored, 0 if an existing one was kept. With generated
        # ids there is one digit for all. Or ``x`` if nothing was stored.
        replicated, stored_marks = None, b""
        count = 1 if policy == "post_new" else len(entries)
        try:
            if replicas:
                replicated = self.namespace.call_replicated(verb, *arguments, replicas=replicas)
                reply = replicated.reply
            else:
                reply = self.namespace.call(verb, *arguments)
            read = functools.partial(replies.read_posted, count=count)
            stored_marks, total, id = understood(verb, read, reply)
        except StoreError as e:
            # An error with a known outcome means that nothing was stored.
            stored_marks = b"" if isinstance(e, OutcomeUnknown) else b"x"
            raise
        finally:
            if self.walks.under_way and stored_marks != b"x":
                self.walks.posted(entries, stored_marks)
        if total:
            stored = len(entries) if policy == "post_new" else stored_marks.count(b"1")
            if not self.rollback.posted(era, known_total, stored, total):
                self._check_for_rollback()
        if stored_marks == b"x":
            if policy == "error":
                raise EventExists(id)
        elif replicated and replicated.acknowledged < replicas:
            ids = [entry.id for entry in entries]
            raise NotReplicated(ids, replicas, replicated.acknowledged) from replicated.error
        stored_or_not = zip(entries, stored_marks, strict=False)
        return Posted(id, frozenset(e.id for e, mark in stored_or_not if mark == ord("0")))

    def _check_for_rollback(self) -> None:
        """Check the namespace for a rollback, unless a claim will: its error has more details."""
        if self.rollback.known.heard is None:
            self.namespace.reopen()
            # The post has succeeded, so a failure here must not raise. The next call checks again.
            with contextlib.suppress(StoreError):
                self.namespace.open()

    def post_in(self, pipe: Any, entries: Sequence[Entry], policy: str) -> None:
        """
        Add a post of *entries* to the caller's pipeline or MULTI.

        The first such post in a pipeline contains the source of the script. With SHA1s alone, the
        script could be missing on the server, and the rest of a MULTI would run without the post.
        """
        now = "" if self._now is None else str(self._now())
        verb, arguments = self._posting(entries, policy)
        words = self._piped.first_words(pipe, load(verb))
        self.walks.posted(entries)
        if not all(map(str.isascii, arguments)):
            # The client of the pipeline cannot encode the bytes of a codec (see `text`).
            encoded = [a.encode(errors="surrogateescape") for a in arguments]
            pipe.execute_command(*words, len(self.keys), *self.keys, now, "", *encoded)
            return
        pipe.execute_command(*words, len(self.keys), *self.keys, now, "", *arguments)

    # Nodes

    def join(self, incarnation: str, who: str) -> None:
        """Register a node, described by the JSON object *who*. A repetition changes nothing."""
        # A server that has lost all its data has lost the schema version, too.
        self.namespace.reopen()
        self.rollback.registering()
        self.namespace.call(_JOIN, incarnation, who, str(SILENT_US))

    def report(self, incarnation: str, who: str, *, history: bool = False) -> int:
        """
        Replace the description of a node, if it is still registered, and write the history.

        The script is sent once. Returns the time until the next minute begins, in µs.
        """
        flag = "1" if history else ""
        return int(self._scripts.call_once(_REPORT, incarnation, who, flag))

    def leave(self, incarnation: str) -> None:
        """Remove a node from every list of nodes."""
        self.namespace.call(_LEAVE, incarnation)

    def alone(self, incarnation: str) -> bool:
        """
        Return True if no other node is alive and the namespace is not paused.

        The script is sent once: the caller must deal with a failure.
        """
        return bool(self._scripts.call_once(_ALONE, incarnation, str(SILENT_US)))

    def subscription(self, incarnation: str) -> Subscription:
        """Return the node's subscription, not yet opened."""
        channels = self.keys.wake(incarnation), self.keys.echo(incarnation)
        return self.server.subscription(channels)

    # Control

    def cancel(self, id: str) -> Cancelled:
        """See `DTimer.cancel`."""
        until, schedule = self._scripts.deadline(), schedule_of(id)
        while (result := self._cancel([id], until)[0]) is None:
            self.schedules.check_deadline(until, schedule)
            self.schedules.add_times(schedule, until)
            self.schedules.check_deadline(until, schedule)
        return result

    def cancel_some(self, ids: Sequence[str]) -> list[Cancelled]:
        """Cancel at most a few hundred events, if possible with one script."""
        results = self._cancel(ids, self._scripts.deadline())
        return [
            self.cancel(id) if result is None else result
            for id, result in zip(ids, results, strict=True)
        ]

    def _cancel(self, ids: Sequence[str], until: float) -> list[Cancelled | None]:
        """Cancel events; None, without effect, is for one whose schedule needs more times first."""
        return self.namespace.ask(
            lambda reply: replies.read_cancelled(reply, len(ids)), _CANCEL, *ids, until=until
        )

    def reschedule(self, id: str, when: str) -> bool:
        """See `DTimer.reschedule`."""
        return self.namespace.change(lambda: self.walks.moved(id, when), _RESCHEDULE, id, when)

    def update(self, id: str, payload: str) -> bool:
        """See `DTimer.update`; *payload* is in the form that is stored."""
        return self.namespace.ask(flag, _UPDATE, id, payload)

    def peek(self, id: str) -> Record | None:
        """See `DTimer.peek`."""
        return self.namespace.ask(lambda r: replies.read_record(id, r, self.coder), _PEEK, id)

    def upcoming(self, low: str, high: str, schedule: str = "") -> Iterator[Record]:
        """Yield the waiting events between two bounds, in due order; see `Walks`."""
        size = _SEARCHED if schedule else _PAGE
        for stored_event in self.walks.upcoming(self.namespace.ask, low, high, size, schedule):
            yield replies.read_scheduled(*stored_event, self.coder)

    def dead(self, *, newest: bool = False) -> Iterator[DeadLetter]:
        """Yield the dead letters, oldest first, or *newest* first; see `Walks`."""
        for id, died_us, letter in self.walks.dead(self.namespace.ask, _PAGE, newest=newest):
            yield read_letter(id, died_us, letter, self.coder)

    def letter(self, id: str) -> DeadLetter | None:
        """Return the dead letter with this id, or None."""

        def read(reply: Sequence[Any]) -> DeadLetter | None:
            if not reply or reply[0] != b"dead":
                return None
            return read_letter(id, replies.integer(reply[1]), reply[3], self.coder)

        return self.namespace.ask(read, _PEEK, id)

    def revive(self, id: str) -> bool:
        """See `DTimer.revive`."""
        return self.revive_some([id]) == 1

    def revive_some(self, ids: Sequence[str], reason: str = "") -> int:
        """
        Revive at most a few hundred dead letters with one script.

        Args:
            ids: The dead letters.
            reason: Revive only those with this reason; ``""`` for any.

        Returns:
            The number revived.
        """
        revived = [True] * len(ids)
        try:
            read = functools.partial(letters, count=len(ids))
            revived = self.namespace.ask(read, _REVIVE, reason, *ids)
            return sum(revived)
        except StoreError as e:
            if not isinstance(e, OutcomeUnknown):
                revived = []
            raise
        finally:
            for id in itertools.compress(ids, revived):
                self.walks.revived(id)

    def revive_all(self, reason: str) -> int:
        """Revive the present dead letters with this reason, oldest first; ``""`` for any."""
        total, batch, size = 0, list[str](), 0
        for id, _, raw in self.walks.dead(self.namespace.ask, _PAGE):
            if reason in {"", reason_of_letter(raw)}:
                batch.append(id)
                size += len(raw)
            if len(batch) == _PAGE or size > _MOST_REVIVED_BYTES:
                total += self.revive_some(batch, reason)
                batch, size = [], 0
        return total + (self.revive_some(batch, reason) if batch else 0)

    def drop(self, id: str) -> bool:
        """See `DTimer.drop`."""
        return self.namespace.ask(flag, _DROP, id)

    def clear(self) -> Cleared:
        """See `DTimer.clear`."""
        self.schedules.forget()
        return self.namespace.ask(overview.read_cleared, _CLEAR)

    def trim(self, limit: int, age_us: int) -> int:
        """
        Delete a batch of the dead letters beyond *limit* or older than *age_us* (-1: of any age).

        Returns:
            The number deleted. Call again until it is 0.
        """
        return self.namespace.ask(int, _TRIM, str(limit), str(age_us))

    def purge(self) -> int:
        """Delete all present dead letters, oldest first; return how many were deleted."""
        deleted, present = 0, self.stats().dead
        # Stop after this number: a handler that fails all the time adds letters as fast as they
        # are deleted, and the loop would not end.
        while deleted < present and (batch := self.trim(0, -1)) > 0:
            deleted += batch
        return deleted

    def pause(self, *, on: bool) -> bool:
        """Pause or resume the namespace; return True if that changed anything."""
        return self.namespace.ask(flag, _PAUSE, "1" if on else "0")

    def stats(self) -> Stats:
        """See `DTimer.stats`."""
        return self.namespace.ask(overview.read_stats, _STATS, str(SILENT_US))

    def nodes(self) -> list[NodeInfo]:
        """See `DTimer.nodes`."""
        return self.namespace.ask(overview.read_nodes, _NODES, str(SILENT_US))

    def ahead(self, period_us: int, periods: int) -> list[DueCount]:
        """See `DTimer.ahead`."""

        def read(reply: Any) -> list[DueCount]:
            return overview.read_ahead(reply, period_us)

        return self.namespace.ask(read, _AHEAD, str(period_us), str(periods))

    def in_flight(self, most: int) -> list[InFlight]:
        """See `DTimer.in_flight`."""
        return self.namespace.ask(overview.read_in_flight, _IN_FLIGHT, str(most))

    def history(self) -> list[Minute]:
        """See `DTimer.history`."""
        return self.namespace.ask(lambda r: read_history(r[1], int(r[0])), _HISTORY)

    # Closing

    def release(self) -> None:
        """Close the connections, and stop keeping an embedded server alive; a call reopens."""
        # The embedded server may exit now and lose its data, which must not count as a rollback.
        self.rollback.forget()
        self.namespace.reopen()
        self._scripts.close()
        self.server.release()

    def after_fork(self) -> None:
        """Discard, in a forked child, the connections that belong to the parent."""
        self.rollback.after_fork()
        self._scripts.after_fork()
        self.server.after_fork()

    @staticmethod
    def needs_operator(error: BaseException | None) -> bool:
        """Return True if *error* lasts until an operator fixes its cause."""
        return failures.needs_operator(error)
