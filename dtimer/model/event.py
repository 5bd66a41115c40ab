"""The event as a handler meets it, and the records by which events are looked at."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Protocol

from dtimer.model.detached import detached
from dtimer.model.lateness import percentile
from dtimer.model.moments import Duration


class Holder(Protocol):
    """The hold of a node on one event that it claimed."""

    def confirm(self) -> bool:
        """Record the event as done."""
        ...

    def retry(self, delay: Duration | None) -> bool:
        """Give it back, to be handed out again."""
        ...

    def extend(self, ms: Duration) -> bool:
        """Renew its lease."""
        ...

    def lost(self) -> bool:
        """Tell whether the lease is known, or must be feared, to be gone."""
        ...


class Event(dict[str, Any]):
    """
    A payload in hand: a dict that equals what was posted, with what a handler may ask.

    A pickled or deep-copied event comes back detached: it has the payload and the attributes,
    and its verbs raise a `UsageError`, because the lease stays with the event that was given to
    the handler.

    Attributes:
        id: The id under which it was posted.
        due: When this attempt fell due, in ms since the epoch by the server's clock:
            the time asked for, or after a failure the end of the backoff.
        attempt: 1 the first time it is handed out, at most ``max_retries + 1``.
        max_retries: How often it may be handed out again.
        lateness_ms: From ``due`` to the claim, by the server's clock; for one that was claimed
            before, to the moment at which it was given to a hand. Never negative.
        token: Grows with every claim in the namespace. Where an effect must not be
            undone by a holder that was presumed dead, store it and refuse lower ones
            (a *fencing token*: M. Kleppmann, *How to do distributed locking*, 2016).
        schedule: The id of the schedule that it is an occurrence of, else None.
        nominal: When the schedule says it is, in ms since the epoch; None.
        missed: How many more nominal times it stands for, that were over already.
    """

    __slots__ = (
        "_holder",
        "attempt",
        "due",
        "id",
        "lateness_ms",
        "max_retries",
        "missed",
        "nominal",
        "schedule",
        "token",
    )

    def __init__(
        self,
        payload: dict[str, Any],
        *,
        id: str,
        due: float,
        attempt: int,
        max_retries: int,
        lateness_ms: float,
        token: int,
        holder: Holder,
        schedule: str | None = None,
        nominal: float | None = None,
        missed: int = 0,
    ) -> None:
        super().__init__(payload)
        self.schedule = schedule
        self.nominal = nominal
        self.missed = missed
        self.id = id
        self.due = due
        self.attempt = attempt
        self.max_retries = max_retries
        self.lateness_ms = lateness_ms
        self.token = token
        self._holder = holder

    @property
    def lease_lost(self) -> bool:
        """True if another node has the event, or by now may have it. Stop, and leave no trace."""
        return self._holder.lost()

    def confirm(self) -> bool:
        """
        Record the event as done, now; may be called from any thread.

        Returns:
            True when it is recorded, also when it was already, by us. False when the
            lease was lost and somebody else has, or had, the event.

        Raises:
            StoreError: Redis could not be asked. Where the lease runs out meanwhile
                the event is handed out again.
        """
        return self._holder.confirm()

    def retry(self, delay: Duration | None = None) -> bool:
        """
        Give the event back, to be handed out again after *delay* (default: the backoff).

        Returns:
            True if it will be handed out again. False if it will not, because the lease
            was lost, it was cancelled, or its retries are spent and it is a dead
            letter now.

        Raises:
            OptionError: *delay* is no duration.
            StoreError: Redis could not be asked.
        """
        return self._holder.retry(delay)

    def extend(self, ms: Duration) -> bool:
        """
        Hold the event for *ms* from now, for work that outlives its handler.

        While a handler runs its events are renewed without this, and the lease is never
        shortened: the event is held for at least what is left of it. Once the handler has
        returned, with ``auto_confirm=False``, it is held for *ms* exactly.

        Returns:
            False when the lease was lost already.

        Raises:
            OptionError: *ms* is no duration.
            StoreError: Redis could not be asked.
        """
        return self._holder.extend(ms)

    def __repr__(self) -> str:
        return f"<Event {self.id!r} attempt {self.attempt}>"

    def __copy__(self) -> Event:
        """Return the same event in another dict: it holds the same lease."""
        return Event(dict(self), holder=self._holder, **self._fields())

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how the event is made again, detached."""
        return detached, (type(self), dict(self), self._fields())

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "_holder"}


class State(enum.Enum):
    """Where an event stands. An event that is gone has no record and no state."""

    SCHEDULED = "scheduled"
    """Waiting for its due time, the first one or that of a retry."""

    IN_FLIGHT = "in_flight"
    """Claimed by a node, which holds a lease on it."""

    DEAD = "dead"
    """Given up, and among the dead letters."""


class Cancelled(enum.Enum):
    """
    What ``cancel`` did. True means: this event will never start.

    ``IN_FLIGHT`` is false because it has started; no retry of it will follow.
    """

    CANCELLED = "cancelled"
    IN_FLIGHT = "in_flight"
    NOT_FOUND = "not_found"

    def __bool__(self) -> bool:
        return self is Cancelled.CANCELLED


@dataclass(frozen=True, slots=True)
class Record:
    """
    One event as it stands in Redis.

    Attributes:
        id: The id under which it was posted.
        event: The payload; None if the stored bytes are not one.
        due: In ms since the epoch; for an event in flight that of the running attempt.
        state: Where it stands.
        attempt: How many times it has been started so far.
    """

    id: str
    event: dict[str, Any] | None
    due: float
    state: State
    attempt: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """
    An event that was given up, and why.

    Attributes:
        id: The id under which it was posted.
        event: The payload; None if the stored bytes are not one.
        attempt: How many times it was started.
        reason: ``failed``, ``lease_lost``, ``expired``, ``corrupt`` or ``payload_missing``.
        error: The text of the last failure, with its traceback if a handler raised.
        died: When it was given up, in ms since the epoch.
        raw: The stored bytes, also if they are not a payload.
    """

    id: str
    event: dict[str, Any] | None
    attempt: int
    reason: str
    error: str
    died: float
    raw: bytes


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """
    A node that has joined.

    Attributes:
        id: The id given to its constructor, for people.
        incarnation: Names this one life of it, from join to leave.
        host: The name of its machine.
        pid: Its process.
        joined: Since when, in ms since the epoch.
        idle_ms: The time since it was last heard of.
        waiting: Whether it has a free thread, and would be woken for the next event.
        listening: False if it has had no listener of ``'event'`` for a second, and so receives
            nothing.
    """

    id: str
    incarnation: str
    host: str
    pid: int
    joined: float
    idle_ms: float
    waiting: bool
    listening: bool = True


@dataclass(frozen=True, slots=True)
class Stats:
    """
    The namespace in numbers.

    Attributes:
        scheduled: Events that wait for their due time.
        in_flight: Events that a node has claimed.
        overdue: Events that are due and that no node has claimed.
        oldest_overdue_ms: How late the latest of these is already.
        dead: Dead letters.
        nodes: Nodes that have joined.
        paused: Whether delivery is paused.
        totals: Counts since the namespace was made, of posted, started, confirmed, retried,
            released, cancelled, died, expired and revived events, and of coalesced and skipped
            occurrences.
        lateness: A histogram of how late events were handed out, which `late` reads.
    """

    scheduled: int
    in_flight: int
    overdue: int
    oldest_overdue_ms: float
    dead: int
    nodes: int
    paused: bool
    totals: dict[str, int]
    lateness: tuple[int, ...] = ()

    def late(self, share: float) -> float | None:
        """Return the lateness in ms that *share* (0 to 1) of all starts did not exceed."""
        return percentile(self.lateness, share)


@dataclass(frozen=True, slots=True)
class Health:
    """
    Whether this node makes progress, which a living thread alone does not prove.

    Attributes:
        ok: The node has joined, its last good claim is recent, no thread failed a moment ago,
            and it is not deaf.
        joined: Whether it has joined.
        deaf: Wakes do not arrive, so events come by the poll.
        claim_age_ms: The age of the last good claim; None for never.
        heard_age_ms: The age of the last message on its channel; None for never.
        handlers: How many handlers run.
        stuck: How many of these have run longer than ``max_run``.
        error: What Redis, or a thread of the node, last failed with, or that the connection is too
            slow for what was claimed; None if all is well.
        restarts: How often a thread was started again because something had escaped it.
        listening: False while there is no listener of ``'event'``. The node then claims nothing.
        dropped: How many emissions other than ``'event'`` were dropped, because listeners were
            10 000 behind. ``dead()`` still has the dead letters.
    """

    ok: bool
    joined: bool
    deaf: bool
    claim_age_ms: float | None
    heard_age_ms: float | None
    handlers: int
    stuck: int
    error: str | None
    restarts: int = 0
    listening: bool = True
    dropped: int = 0
