"""
Iterate over waiting events and dead letters, also while this timer changes them.

An iteration ends at the last (due time, id) that existed when it began. It skips everything that
this timer has posted, moved or revived to a position before that end. So the body of a loop may
post, move or revive the events that it receives. Cancelling the pending occurrence of a schedule
creates the next one, so an iteration yields at most one occurrence of each schedule.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from dtimer.errors import StoreError
from dtimer.model.ids import schedule_of
from dtimer.store import replies
from dtimer.store.format import Entry, text
from dtimer.store.scripts import verb

# The possible error of the estimate of the server's time, in µs. If it is too large, an iteration
# remembers more ids than it needs; if it is too small, it yields some events twice.
_SPARE_US = 1_000_000

_POSITIONS = ("after_score", "after_id", "end_score", "end_id")
_DEAD = verb("dead", "limit", "newest", *_POSITIONS)
_UPCOMING = verb("upcoming", "limit", "low", "high", "schedule", *_POSITIONS)


#: A position in an iteration: a score and an id.
Position = tuple[str, str]


class StoredEvent(NamedTuple):
    """A waiting event as an iteration reads it: its id, and the stored form of the rest."""

    id: str
    due: bytes
    tries: bytes
    body: bytes


class _Found(NamedTuple):
    """
    An entry of a page, with the item that the iteration yields for it.

    ``schedule`` is the schedule of which it is the pending occurrence, or ``""``.
    """

    id: str
    schedule: str
    item: Any


class _Page(NamedTuple):
    """
    The reply for one page of an iteration.

    ``now`` is the server's time. ``end`` and ``last`` are positions (score and id): where the
    iteration ends, and the last entry that was looked at, empty on the final page.
    """

    now: int
    end: Position
    last: Position
    entries: list[_Found]


def _read_events(reply: Any) -> _Page:
    now, end_score, end_id, last_score, last_id, flat = reply
    end, last = (text(end_score), text(end_id)), text(last_score)
    # Raise ValueError here if the score is not a number: `page_read` must not fail.
    float(end[0] or 0)
    return _Page(
        int(now),
        end,
        (last, text(last_id)),
        [_read_event(*flat[i : i + 5]) for i in range(0, len(flat), 5)],
    )


def _read_event(raw: bytes, due: bytes, tries: bytes, body: bytes, mark: bytes) -> _Found:
    id = text(raw)
    return _Found(id, schedule_of(id) if mark else "", StoredEvent(id, due, tries, body))


def _read_letters(reply: Any) -> _Page:
    now, end_score, end_id, more, flat = reply
    end = text(end_score), text(end_id)
    # As in `_read_events`.
    float(end[0] or 0)
    letters = [
        (text(flat[i]), replies.integer(flat[i + 1]), flat[i + 2]) for i in range(0, len(flat), 3)
    ]
    last = (text(flat[-2]), letters[-1][0]) if more else ("", "")
    return _Page(int(now), end, last, [_Found(letter[0], "", letter) for letter in letters])


class Walk:
    """The state of one iteration in progress, a *walk*."""

    def __init__(
        self, clock: Callable[[], int] | None, spare_us: int, *, backwards: bool = False
    ) -> None:
        self._clock = clock
        self._spare = spare_us
        # The next pages of an iteration backwards are before this one.
        self._backwards = backwards
        # The server's time when it read the last page, in µs, and when that page was received, on
        # the monotonic clock.
        self._page_us, self._received = 0, 0.0
        #: The scores at which the iteration ends, and at which the next page begins.
        self.end: float = math.inf
        self.next_page_at: float = -math.inf
        #: The ids of the current page, without those that this timer has moved since.
        self.remaining: set[str] = set()
        #: The ids and the schedules that the iteration must not yield again.
        self.skipped: set[str] = set()
        self.schedules: set[str] = set()

    def page_read(self, page: _Page) -> None:
        """Record a page: its ids, the server's time, the end, and where the next page begins."""
        self._page_us, self._received = page.now, time.monotonic()
        self.remaining = {entry.id for entry in page.entries}
        self.end = float(page.end[0] or 0)
        following = -math.inf if self._backwards else float(page.last[0] or 0)
        self.next_page_at = following if page.last[0] else math.inf

    def moment(self, when: str) -> int:
        """Return the due time, in µs, of an event posted for *when*, in the form scripts read."""
        if self._clock is None:
            now = self._page_us + round((time.monotonic() - self._received) * 1e6)
        else:
            now = self._clock()
        due = when.removeprefix("=").partition(",")[0]
        return now + int(due[1:]) if due.startswith("+") else max(now, int(due))

    def may_yield(self, entry: _Found) -> bool:
        """Return True if neither *entry* nor an occurrence of its schedule was yielded before."""
        if entry.id in self.skipped or entry.id not in self.remaining:
            return False
        if entry.schedule:
            if entry.schedule in self.schedules:
                return False
            self.schedules.add(entry.schedule)
        return True

    def moved(self, id: str, us: int, earliest: int | None = None) -> None:
        """
        Record that this timer has moved *id*: skip it if it is now before the end.

        Args:
            id: The event.
            us: Its new due time, or the latest possible one.
            earliest: The earliest possible due time, if only this range is known.
        """
        if (us if earliest is None else earliest) <= self.end + self._spare:
            self.remaining.discard(id)
            # A position before the next page is not read again. Do not remember it: a caller can
            # keep an iterator without exhausting it, and its memory would grow.
            if us >= self.next_page_at - self._spare:
                self.skipped.add(id)

    def revived(self, id: str) -> None:
        """Record that this timer has revived *id*: skip it if it can be found dead again."""
        # If the event dies again, it dies after now. That is before the end only if the server's
        # clock was set back.
        if self.moment("+0") <= self.end + self._spare:
            self.remaining.discard(id)
            self.skipped.add(id)


class Walks:
    """
    The walks of one timer: its iterations that are in progress, and the changes it makes meanwhile.

    The code takes no lock, because a signal handler may post at any point of it.

    Args:
        clock: None for the server's clock, or a function giving µs since the epoch.
        timeout_us: The deadline of a call, in µs.
    """

    def __init__(self, clock: Callable[[], int] | None, timeout_us: int) -> None:
        self._clock = clock
        # A call is recorded when it returns, but the server may have run it as soon as it began.
        self._spare = _SPARE_US + timeout_us
        self._events: dict[int, Walk] = {}
        self._letters: dict[int, Walk] = {}

    def upcoming(
        self, ask: Callable[..., Any], low: str, high: str, size: int, schedule: str = ""
    ) -> Iterator[StoredEvent]:
        """
        Yield the waiting events between two bounds, in due order, a page at a time.

        Args:
            ask: Runs a script and reads its reply.
            low: The lowest score, in the form that the script reads.
            high: The highest score.
            size: The number of events to look at in one call.
            schedule: Yield only the occurrences of this schedule; ``""`` yields all events.
        """
        page = functools.partial(ask, _read_events, _UPCOMING, str(size), low, high, schedule)
        return self._iterate(self._events, page, ("", ""))

    def dead(
        self,
        ask: Callable[..., Any],
        size: int,
        died: str = "",
        last: str = "",
        *,
        newest: bool = False,
    ) -> Iterator[tuple[str, int, bytes]]:
        """
        Yield the dead letters, oldest first: id, time of death in µs, and stored form.

        Args:
            ask: Runs a script and reads its reply.
            size: The number of letters to read in one call.
            died: Begin after the letter with this time of death; ``""`` begins with the first.
            last: Begin after the letter with this id.
            newest: Yield the newest first.
        """
        page = functools.partial(ask, _read_letters, _DEAD, str(size), "1" if newest else "")
        return self._iterate(self._letters, page, (died, last), backwards=newest)

    def _iterate(
        self,
        walks: dict[int, Walk],
        read_page: Callable[..., _Page],
        position: Position,
        *,
        backwards: bool = False,
    ) -> Iterator[Any]:
        """Yield the entries of one page after the other, from *position*."""
        walk, end = Walk(self._clock, self._spare, backwards=backwards), ("", "")
        # Register before the first page is read: a signal handler may post in between.
        walks[id(walk)] = walk
        try:
            while True:
                page = read_page(*position, *end)
                walk.page_read(page)
                end, position = page.end, _next_position(position, page.last)
                for entry in page.entries:
                    if walk.may_yield(entry):
                        yield entry.item
                if not position[0]:
                    return
        finally:
            walks.pop(id(walk), None)

    @property
    def under_way(self) -> bool:
        """True if an iteration over waiting events is in progress."""
        return bool(self._events)

    def posted(self, entries: Iterable[Entry], stored_marks: bytes = b"") -> None:
        """
        Record that this timer has, or may have, posted *entries*.

        Args:
            entries: The events.
            stored_marks: A byte of the server's reply for each event: ``0`` if it was not stored.
                Empty if the reply was lost.
        """
        for i, entry in enumerate(entries):
            if stored_marks[i : i + 1] != b"0":
                self.moved(entry.id, entry.when)

    def moved(self, event: str, when: str) -> None:
        """Record that this timer has, or may have, posted or moved an event to *when*."""
        for walk in list(self._events.values()):
            due = walk.moment(when)
            if "," in when:
                # A post with max_wait: the event may be due at any time until then.
                walk.moved(event, due, earliest=walk.moment("+0"))
            else:
                walk.moved(event, due)

    def declared(self, schedule: str) -> None:
        """Record that this timer has, or may have, created the pending occurrence of *schedule*."""
        for walk in list(self._events.values()):
            walk.schedules.add(schedule)

    def revived(self, letter: str) -> None:
        """Record that this timer has, or may have, revived the dead letter."""
        self.moved(letter, "+0")
        for walk in list(self._letters.values()):
            walk.revived(letter)

    def restored(self, letter: str, died_us: int) -> None:
        """Record that this timer has, or may have, stored an exported dead letter again."""
        for walk in list(self._letters.values()):
            # A restored letter is placed at its original time of death, which may be long ago.
            walk.moved(letter, died_us)


def _next_position(previous: Position, last: Position) -> Position:
    """Return *last*, or raise if it equals *previous*: the same page would be read forever."""
    if last[0] and last == previous:
        raise StoreError("Redis returned a page of an iteration that ends where the last one ended")
    return last
