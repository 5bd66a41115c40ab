"""
The verbs: each method is one script, or a bounded number of calls of one.

Times are whole microseconds. Every method may be called from any thread, ends within the
deadline, and raises a `StoreError` when Redis could not be asked, an `OutcomeUnknown`
when it may have been done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from dtimer.errors import EventExists, NotReplicated, OutcomeUnknown, StoreError
from dtimer.model.claims import Answer, Result, Settlement, Turn, TurnRequest
from dtimer.model.event import Cancelled, DeadLetter, NodeInfo, Record, Stats
from dtimer.store import codec, overview
from dtimer.store.ear import Ear
from dtimer.store.faults import Fate, broken_reply, fate, overtaken
from dtimer.store.namespace import SILENT_US
from dtimer.store.piped import Piped
from dtimer.store.plans import Plans
from dtimer.store.replies import flag, letters, understood
from dtimer.store.scripts import load

_PAGE = 100


class Entry(NamedTuple):
    """
    One event to be stored: ``when`` and ``expires`` as the scripts read them, ``rest`` its
    max_retries and payload.
    """

    id: str
    when: str
    expires: str
    rest: str


class Posted(NamedTuple):
    """
    What a post came to.

    ``taken`` is the id that an id of our making collided with, and then nothing was stored, or
    ``""``. ``kept`` are the ids whose existing event was kept instead.
    """

    taken: str
    kept: frozenset[str]


_NONE_KEPT: frozenset[str] = frozenset()


class Store(Plans):
    """The state of one namespace, on one Redis."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._piped = Piped()
        # Under which name the turns of a node are remembered, where not under its own.
        self._lanes: dict[str, str] = {}

    # Posting

    @staticmethod
    def _posting(entries: Iterable[Entry], policy: str) -> tuple[str, list[str]]:
        """Return the script that stores *entries*, and its arguments."""
        arguments = [] if policy == "mint" else [policy]
        for e in entries:
            arguments += (e.id, e.when, f"{e.expires},{e.rest}")
        return "mint" if policy == "mint" else "post", arguments

    def post(self, entries: Sequence[Entry], policy: str, replicas: int = 0) -> Posted:
        """
        Store *entries*, all in one script, and on so many *replicas*.

        Returns:
            Which were kept from being stored.

        Raises:
            EventExists: the policy is ``error`` and one exists; nothing was stored.
            NotReplicated: they were stored, on too few replicas.
        """
        known = self.witness.known
        verb, arguments = self._posting(entries, policy)
        copied, marks = None, b""
        # One letter stands for all events whose ids we generate.
        read = partial(codec.read_posted, count=1 if policy == "mint" else len(entries))
        try:
            if replicas:
                copied = self._call_copied(verb, *arguments, replicas=replicas)
                marks, total, id = understood(verb, read, copied.reply)
            else:
                marks, total, id = self._ask(read, verb, *arguments, named=True)
        except StoreError as e:
            # Refused: nothing was stored.
            marks = b"" if isinstance(e, OutcomeUnknown) else b"x"
            raise
        finally:
            if self._walks.under_way and marks != b"x":
                self._walks.posted(entries, marks)
        if total:
            stored = len(entries) if policy == "mint" else marks.count(b"1")
            if not self.witness.posted(known, stored, total):
                self._look_again()
        if marks == b"x":
            if policy == "error":
                raise EventExists(id)
        elif copied and copied.acknowledged < replicas:
            ids = [entry.id for entry in entries]
            raise NotReplicated(ids, replicas, copied.acknowledged) from copied.error
        kept = _NONE_KEPT
        if b"0" in marks:
            stored_or_not = zip(entries, marks, strict=False)
            kept = frozenset(e.id for e, mark in stored_or_not if mark == ord("0"))
        return Posted(id, kept)

    def _look_again(self) -> None:
        """Find out what became of the namespace, unless a turn will, which can tell more."""
        if self.witness.known.heard is None:
            self.reopen()
            # The post was done. Where this cannot be, the next call does it.
            with contextlib.suppress(StoreError):
                self.open()

    def post_in(self, pipe: Any, entries: Sequence[Entry], policy: str) -> None:
        """
        Add the posting of *entries* to a pipeline or MULTI of the caller's.

        With its source where it is the first of its kind in the pipeline, and by its SHA1 after
        that. By SHA1 alone it might be missing half way through a MULTI, which nobody could make
        good.
        """
        now = "" if self._now is None else str(self._now())
        verb, arguments = self._posting(entries, policy)
        words = self._piped.words(pipe, load(verb))
        self._walks.posted(entries)
        pipe.execute_command(*words, len(self.keys), *self.keys, now, "", *arguments)

    # A node's turn

    def turn(self, incarnation: str, request: TurnRequest, lease_us: int) -> Turn:
        """Return the answer to `ask`."""
        return self.ask(incarnation, request, lease_us)(lay=False)

    def ask(self, incarnation: str, request: TurnRequest, lease_us: int) -> Answer:
        """
        Have the server settle, claim and tell when to ask again, in one try.

        Returns:
            What waits for the answer, and returns it. To be called once, and told whether
            something else was done first: then the wait begins now.

        Raises:
            Exception: of the client library or ours, here or there. The same request may be,
                and has to be, asked again until it is answered.
        """
        settled, order = codec.settlement_arguments(request.settlements)
        known = self.witness.known
        flags = ("h" if request.hears else "") + ("e" if request.echo else "")
        flags += str(request.asked or "")
        if request.most_bytes is not None:
            flags += f",{request.most_bytes}{'!' if request.strict else ''}"
        arguments = (
            incarnation,
            str(request.limit),
            str(lease_us),
            flags + ("p" if self.witness.curious else ""),
            "" if known.heard is None else str(known.heard),
            str(request.ahead_us),
            *settled,
        )
        lane = self._lanes.get(incarnation, incarnation)
        # No longer than until leases are to be renewed, which the same thread does.
        longest = lease_us / 3e6
        asked = self._line.ask("turn", *arguments, op=f"{lane}:{request.seq}", longest=longest)

        def answer(*, lay: bool) -> Turn:
            try:
                reply = asked.answer(lay=lay)
            except Exception as e:
                # An error that the server has replied arrived whole: the connection is not slow.
                if asked.arrived and fate(e, sent=True) is Fate.UNKNOWN:
                    raise broken_reply(e, asked.arrived) from e
                if not overtaken(e):
                    raise
                # A node has one turn at a time, and this is its latest: what is remembered
                # under its name is somebody else's, and would keep it from its turns for minutes.
                own = self._lanes[incarnation] = f"{incarnation}-{request.seq}"
                reply = self._line.once("turn", *arguments, op=f"{own}:{request.seq}")
            came = time.monotonic()
            turn = understood("turn", lambda r: codec.read_turn(r, order, came), reply)
            self.witness.turned(known, turn)
            return turn

        return answer

    def settle(self, settlements: Sequence[Settlement]) -> list[Result]:
        """End claims at once, and tell what became of each."""
        arguments, order = codec.settlement_arguments(settlements)
        return self._ask(lambda r: codec.read_results(r, order), "settle", *arguments, named=True)

    def extend(
        self, held: Sequence[tuple[str, int]], lease_us: int, *, at_least: bool = False
    ) -> list[bool]:
        """
        Renew leases, given as id and token, and tell which are still held.

        With *at_least* a lease that lasts longer is left as it is.
        """
        arguments = [str(word) for claim in held for word in claim]
        sign = "+" if at_least else ""
        return self._ask(lambda r: letters(r, len(held)), "extend", f"{sign}{lease_us}", *arguments)

    def renew(self, held: Sequence[tuple[str, int]], lease_us: int) -> list[bool]:
        """Renew leases in one try, as `turn`: for a loop that will ask again."""
        arguments = [str(word) for claim in held for word in claim]
        reply = self._line.once("extend", str(lease_us), *arguments)
        return understood("extend", lambda r: letters(r, len(held)), reply)

    def join(self, incarnation: str, who: str) -> None:
        """Register a node; *who* is a JSON object. Doing it again changes nothing."""
        self.reopen()  # A server that lost everything has lost the schema too.
        self.witness.registering()
        self._call("join", incarnation, who, str(SILENT_US))

    def describe(self, incarnation: str, who: str) -> None:
        """Change what a registered node says of itself; one that has left stays away."""
        self._call("join", incarnation, who, str(SILENT_US), "1")

    def leave(self, incarnation: str) -> None:
        """Take a node off every list."""
        self._call("leave", incarnation)

    def ear(self, incarnation: str) -> Ear:
        """Return the node's subscription, not opened yet."""
        return self._ears.ear(self.keys, (self.keys.wake(incarnation), self.keys.echo(incarnation)))

    # Control

    def cancel(self, id: str) -> Cancelled:
        """See `DTimer.cancel`."""
        until, schedule = self._line.deadline(), id.rpartition("@")[0]
        while (result := self._cancel(id, until)) is None:
            self._in_time(until, schedule)
            self.supply(schedule, until)
            self._in_time(until, schedule)
        return result

    def _cancel(self, id: str, until: float) -> Cancelled | None:
        """Cancel an event; None, and nothing is done, if its schedule lacks nominal times."""

        def read(reply: bytes) -> Cancelled | None:
            return None if reply == b"short" else Cancelled(codec.text(reply))

        return self._ask(read, "cancel", id, named=True, until=until)

    def reschedule(self, id: str, when: str) -> bool:
        """See `DTimer.reschedule`."""
        return self._change(lambda: self._walks.put(id, when), "reschedule", id, when)

    def peek(self, id: str) -> Record | None:
        """See `DTimer.peek`."""
        return self._ask(lambda r: codec.read_record(id, r), "peek", id)

    def upcoming(self, low: str, high: str) -> Iterator[Record]:
        """Walk the scheduled events between two bounds, in due order. See `Walks`."""
        for met in self._walks.upcoming(self._ask, low, high, _PAGE):
            yield codec.read_scheduled(*met)

    def dead(self) -> Iterator[DeadLetter]:
        """Walk the dead letters, the oldest first. See `Walks`."""
        for id, died_us, letter in self._walks.dead(self._ask, _PAGE):
            yield codec.read_letter(id, died_us, letter)

    def letter(self, id: str) -> DeadLetter | None:
        """Return one dead letter; None when there is none of that id."""

        def read(reply: Sequence[Any]) -> DeadLetter | None:
            if not reply or reply[0] != b"dead":
                return None
            return codec.read_letter(id, codec.whole(reply[1]), reply[3])

        return self._ask(read, "peek", id)

    def revive(self, id: str) -> bool:
        """See `DTimer.revive`."""
        return self._change(lambda: self._walks.revived(id), "revive", id)

    def trim(self, limit: int, age_us: int) -> int:
        """
        Drop some of the dead letters beyond *limit* or older than *age_us* (-1: of any age).

        Returns:
            How many were dropped: ask again while it is not 0.
        """
        return self._ask(int, "trim", str(limit), str(age_us), named=True)

    def purge(self) -> int:
        """Drop all dead letters that are there, the oldest first; return how many were dropped."""
        total, there = 0, self.stats().dead
        # Letters that die meanwhile may stay. Otherwise a fast failing handler would keep us here.
        while total < there and (dropped := self.trim(0, -1)) > 0:
            total += dropped
        return total

    def pause(self, *, on: bool) -> bool:
        """Pause or resume the namespace; return whether that changed anything."""
        return self._ask(flag, "pause", "1" if on else "0", named=True)

    def stats(self) -> Stats:
        """See `DTimer.stats`."""
        return self._ask(overview.read_stats, "stats", str(SILENT_US))

    def nodes(self) -> list[NodeInfo]:
        """See `DTimer.nodes`."""
        return self._ask(overview.read_nodes, "nodes", str(SILENT_US))
