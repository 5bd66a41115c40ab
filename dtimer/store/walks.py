"""
Walks through events and dead letters: where each ends, and what it passes over.

A walk ends at the last (due, id) that existed when it began. A loop over it may so post, move
and revive what it meets: the walk passes over what this timer has put at a place before that
end. The pending occurrence of a schedule makes the next when it is cancelled, so a walk yields
one of each schedule at most.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from dtimer.errors import StoreError
from dtimer.store import codec

# What a walk remembers needlessly costs memory; what it forgets, it would meet again. So the
# estimate of the server's time may be wrong by this much, in µs.
_SPARE_US = 1_000_000


class Met(NamedTuple):
    """A scheduled event that a walk has met: the id, and the rest as it is stored."""

    id: str
    due: bytes
    tries: bytes
    body: bytes


class _Page(NamedTuple):
    """One page of a walk: the server's time, two places (score and id), and what it has."""

    now: int
    end: tuple[str, str]
    last: tuple[str, str]
    met: list[Any]


def _read_events(reply: Any) -> _Page:
    now, end_score, end_id, last_score, last_id, flat = reply
    end, last = (codec.text(end_score), codec.text(end_id)), codec.text(last_score)
    float(end[0] or 0)
    return _Page(
        int(now),
        end,
        (last, codec.text(last_id)),
        [
            (Met(codec.text(flat[i]), *flat[i + 1 : i + 4]), bool(flat[i + 4]))
            for i in range(0, len(flat), 5)
        ],
    )


def _read_letters(reply: Any) -> _Page:
    now, end_score, end_id, more, flat = reply
    end = codec.text(end_score), codec.text(end_id)
    float(end[0] or 0)
    met = [
        (codec.text(flat[i]), codec.whole(flat[i + 1]), flat[i + 2]) for i in range(0, len(flat), 3)
    ]
    last = (codec.text(flat[-2]), met[-1][0]) if more else ("", "")
    return _Page(int(now), end, last, met)


class Placed(Protocol):
    """An event and where it is put, as a post says it."""

    @property
    def id(self) -> str:
        """Its id."""
        ...

    @property
    def when(self) -> str:
        """Its due time."""
        ...


class Walk:
    """One walk that is under way."""

    def __init__(self, clock: Callable[[], int] | None, spare_us: int) -> None:
        self._clock = clock
        self._spare = spare_us
        self._server, self._mine = 0, 0.0
        #: The score of the place at which the walk ends, and of that at which the next page begins.
        self.end, self.place = math.inf, -math.inf
        #: The ids of the page in hand, but for those that have been moved since.
        self.left: set[str] = set()
        #: What the walk does not yield any more: ids, and names of schedules.
        self.passed: set[str] = set()
        self.schedules: set[str] = set()

    def looked(self, page: _Page, ids: Iterable[str]) -> None:
        """Note what a page tells: the server's time, the end of the walk, and the page's *ids*."""
        self._server, self._mine = page.now, time.monotonic()
        self.left = set(ids)
        self.end = float(page.end[0] or 0)
        self.place = float(page.last[0] or math.inf)

    def moment(self, when: str) -> int:
        """Return the due time, in µs, of an event that is put at *when*, as a post says it."""
        if self._clock is None:
            now = self._server + round((time.monotonic() - self._mine) * 1e6)
        else:
            now = self._clock()
        text = when.removeprefix("=")
        return now + int(text[1:]) if text.startswith("+") else max(now, int(text))

    def put(self, id: str, us: int) -> None:
        """Yield *id* no more, which this timer has put at *us*, if that is within the walk."""
        if us <= self.end + self._spare:
            self.left.discard(id)
            # What lies before the next page is not met again. An iterator that is kept and never
            # exhausted must not remember it.
            if us >= self.place - self._spare:
                self.passed.add(id)

    def revived(self, id: str) -> None:
        """Yield the letter *id* no more, if it may die again within the walk."""
        # That is so only if the server's clock was put back.
        if self.moment("+0") <= self.end + self._spare:
            self.left.discard(id)
            self.passed.add(id)


class Walks:
    """
    The walks of one timer that are under way, and what it changes meanwhile.

    No lock is taken: a signal handler may post in the middle of anything here.

    Args:
        clock: None for the server's clock, or a function giving µs since the epoch.
        timeout_us: The longest that a call may take, in µs.
    """

    def __init__(self, clock: Callable[[], int] | None, timeout_us: int) -> None:
        self._clock = clock
        # A call is noted when it returns. The server may have run it as early as the call began.
        self._spare = _SPARE_US + timeout_us
        self._events: dict[int, Walk] = {}
        self._letters: dict[int, Walk] = {}

    def upcoming(self, ask: Callable[..., Any], low: str, high: str, page: int) -> Iterator[Met]:
        """
        Walk the scheduled events between two bounds, in due order, a page at a time.

        Args:
            ask: Run a script and read its reply.
            low: The least score, as the script reads it.
            high: The greatest.
            page: How many events to look at in one call.
        """
        walk = Walk(self._clock, self._spare)
        end, last = ("", ""), ("", "")
        # Register before the first page is read: a signal handler may post in between.
        self._events[id(walk)] = walk
        try:
            while True:
                size = str(page)
                seen: _Page = ask(_read_events, "upcoming", size, low, high, *last, *end)
                walk.looked(seen, (event.id for event, _ in seen.met))
                end, last = seen.end, _further(last, seen.last)
                for event, pending in seen.met:
                    if _is_new(walk, event.id, pending=pending):
                        yield event
                if not last[0]:
                    return
        finally:
            self._events.pop(id(walk), None)

    def dead(
        self, ask: Callable[..., Any], page: int, died: str = "", last: str = ""
    ) -> Iterator[tuple[str, int, bytes]]:
        """
        Walk the dead letters, the oldest first: id, when it died in µs, and the letter.

        Args:
            ask: Run a script and read its reply.
            page: How many letters to ask for in one call.
            died: Begin after the letter that died then; ``""`` for the first.
            last: And has this id.
        """
        walk = Walk(self._clock, self._spare)
        end, place = ("", ""), (died, last)
        self._letters[id(walk)] = walk
        try:
            while True:
                seen: _Page = ask(_read_letters, "dead", str(page), *place, *end)
                walk.looked(seen, (letter[0] for letter in seen.met))
                end, place = seen.end, _further(place, seen.last)
                for letter in seen.met:
                    if letter[0] in walk.left and letter[0] not in walk.passed:
                        yield letter
                if not place[0]:
                    return
        finally:
            self._letters.pop(id(walk), None)

    @property
    def under_way(self) -> bool:
        """Whether a walk through scheduled events is under way."""
        return bool(self._events)

    def posted(self, entries: Iterable[Placed], letters: bytes = b"") -> None:
        """Note what this timer has posted: all of *entries* unless *letters* say otherwise."""
        for i, entry in enumerate(entries):
            if letters[i : i + 1] != b"0":
                self.put(entry.id, entry.when)

    def put(self, event: str, when: str) -> None:
        """Note that this timer has posted or moved an event to *when*, or may have."""
        for walk in list(self._events.values()):
            walk.put(event, walk.moment(when))

    def declared(self, schedule: str) -> None:
        """Note that this timer has made the pending occurrence of a schedule, or may have."""
        for walk in list(self._events.values()):
            walk.schedules.add(schedule)

    def revived(self, letter: str) -> None:
        """Note that this timer has revived a letter, or may have."""
        self.put(letter, "+0")
        for walk in list(self._letters.values()):
            walk.revived(letter)

    def restored(self, letter: str, died_us: int) -> None:
        """Note that this timer has put a dead letter back, or may have."""
        for walk in list(self._letters.values()):
            # A letter is put at the time of its death, also where that is long ago.
            walk.put(letter, died_us)


def _further(place: tuple[str, str], last: tuple[str, str]) -> tuple[str, str]:
    """Return where a page has ended; what ends where it began would be asked for for ever."""
    if last[0] and last == place:
        raise StoreError("Redis answered a walk with a page that does not go on from the last one")
    return last


def _is_new(walk: Walk, event: str, *, pending: bool) -> bool:
    if event in walk.passed:
        return False
    if event not in walk.left:
        return False
    if pending:
        schedule = event.rpartition("@")[0]
        if schedule in walk.schedules:
            return False
        walk.schedules.add(schedule)
    return True
