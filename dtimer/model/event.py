"""The event that a handler receives, and the records that inspection calls return."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Protocol

from dtimer.model.detached import detached
from dtimer.model.histogram import percentile
from dtimer.model.times import Duration


class Holder(Protocol):
    """The node's lease on one event that it claimed."""

    def confirm(self) -> bool:
        """Record the event as done."""
        ...

    def retry(self, delay: Duration | None) -> bool:
        """End the lease; the event is delivered again after *delay*."""
        ...

    def extend(self, ms: Duration) -> bool:
        """Extend the lease."""
        ...

    def lost(self) -> bool:
        """Return True if the lease is lost, or if the node can no longer rely on it."""
        ...


class Event(dict[str, Any]):
    """
    An event that was delivered to a handler.

    A dict that equals the posted payload, with attributes about this delivery and methods that
    settle it. A pickled or deep-copied event comes back detached: it has the payload and the
    attributes, but its methods raise `UsageError`, because the lease stays with the event that the
    handler received.

    Attributes:
        id: The id of the event.
        due: When this attempt became due, in ms since the epoch by the server's clock. This is
            the posted due time or, after a failure, the end of the backoff.
        attempt: 1 for the first delivery, at most ``max_retries + 1``.
        max_retries: How often the event may be delivered again.
        lateness_ms: Milliseconds from ``due`` until the claim, by the server's clock. If the claim
            was before ``due``: until a handler thread received the event. Never negative.
        token: A number that grows with every claim in the namespace. To protect an effect from a
            node that lost its lease, store the token with the effect and refuse lower ones (a
            *fencing token*: M. Kleppmann, *How to do distributed locking*, 2016).
        schedule: The id of the schedule if the event is an occurrence of one, else None.
        nominal: The time that the schedule gives for this occurrence, in ms since the epoch; None
            if the event is not an occurrence.
        missed: How many other occurrences, all missed, this one replaces.
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
        """True if another node has, or may have, the event. Stop without any further effect."""
        return self._holder.lost()

    def confirm(self) -> bool:
        """
        Record the event as done, immediately. Any thread may call this.

        Returns:
            True if the event is confirmed, including by an earlier call of this node. False if
            the lease was lost, so another node has or had the event.

        Raises:
            StoreError: Redis could not be reached. If the lease expires before a later attempt
                succeeds, the event is delivered again.
        """
        return self._holder.confirm()

    def retry(self, delay: Duration | None = None) -> bool:
        """
        End the lease; the event is delivered again after *delay*, by default the backoff.

        Returns:
            True if the event will be delivered again. False if the lease was lost, the event
            was cancelled, or it had no retries left and is now a dead letter.

        Raises:
            OptionError: *delay* is not a valid duration.
            StoreError: Redis could not be reached.
        """
        return self._holder.retry(delay)

    def extend(self, ms: Duration) -> bool:
        """
        Extend the lease to *ms* from now, for work that goes on after the handler has returned.

        While a handler runs, the node renews the leases of its events anyway, and this call never
        shortens them. After the handler has returned, with ``auto_confirm=False``, the lease
        ends exactly *ms* from now, which may be earlier than before.

        Returns:
            False if the lease was already lost.

        Raises:
            OptionError: *ms* is not a valid duration.
            StoreError: Redis could not be reached.
        """
        return self._holder.extend(ms)

    def __repr__(self) -> str:
        return f"<Event {self.id!r} attempt {self.attempt}>"

    def __copy__(self) -> Event:
        """Return the same event in another dict. Both have the same lease."""
        return Event(dict(self), holder=self._holder, **self._fields())

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to rebuild the event, detached from its lease."""
        return detached, (type(self), dict(self), self._fields())

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "_holder"}


class State(enum.Enum):
    """The state of a stored event. A confirmed or cancelled event has no record and no state."""

    SCHEDULED = "scheduled"
    """Waiting for its due time, or for that of a retry."""

    IN_FLIGHT = "in_flight"
    """Claimed by a node, which has a lease on it."""

    DEAD = "dead"
    """Moved to the dead letters."""


class Cancelled(enum.Enum):
    """
    The result of ``cancel``. It is true if the event will never start.

    ``IN_FLIGHT`` is false: a node has already claimed the event. It will not be retried.
    """

    CANCELLED = "cancelled"
    IN_FLIGHT = "in_flight"
    NOT_FOUND = "not_found"

    def __bool__(self) -> bool:
        return self is Cancelled.CANCELLED


@dataclass(frozen=True, slots=True)
class Record:
    """
    A stored event.

    Attributes:
        id: The id of the event.
        event: The payload; None if the stored bytes are not a valid payload.
        due: The due time in ms since the epoch; in flight, that of the current attempt.
        state: The state.
        attempt: How many times the event has been started.
    """

    id: str
    event: dict[str, Any] | None
    due: float
    state: State
    attempt: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """
    An event that dtimer gave up, and why.

    Attributes:
        id: The id of the event.
        event: The payload; None if the stored bytes are not a valid payload.
        attempt: How many times the event was started.
        reason: ``failed``, ``lease_lost``, ``expired``, ``corrupt`` or ``payload_missing``.
        error: The text of the last failure, with its traceback if a handler raised.
        died: When the event became a dead letter, in ms since the epoch.
        raw: The stored bytes, even if they are not a valid payload.
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
        id: The id that its constructor was given, for people to read.
        incarnation: The unique id of this membership, from join to leave.
        host: The name of its machine.
        pid: Its process id.
        joined: When it joined, in ms since the epoch.
        idle_ms: The time since the server last heard from it.
        waiting: True if it has a free handler thread, so that it can be woken for the next event.
        listening: False after a second without a listener of ``'event'``; it then gets no events.
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
    Numbers about a namespace.

    Attributes:
        scheduled: Events that wait for their due time.
        in_flight: Events that a node has claimed.
        overdue: Events that are due but that no node has claimed.
        oldest_overdue_ms: How long the oldest of the overdue events has been due.
        dead: Dead letters.
        nodes: Nodes that have joined.
        paused: True if delivery is paused.
        totals: Counts since the namespace was created, of posted, started, confirmed, retried,
            released, cancelled, died, expired and revived events, and of coalesced and skipped
            occurrences.
        lateness: A histogram of how late events were delivered. Read it with `late`.
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
        """Return the lateness in ms that a *share* (0 to 1) of all deliveries did not exceed."""
        return percentile(self.lateness, share)


@dataclass(frozen=True, slots=True)
class Health:
    """
    The health of this node: whether it makes progress, not just whether its threads are alive.

    Attributes:
        ok: True if the node has joined and is not deaf, its last successful claim is recent, and
            none of its threads has just failed.
        joined: True if the node has joined.
        deaf: True if wakes do not arrive, so that only the poll finds events.
        claim_age_ms: Milliseconds since the last successful claim; None if there was none.
        heard_age_ms: Milliseconds since the last message on its channel; None if there was none.
        handlers: How many handlers are running.
        stuck: How many of these have run longer than ``max_run``.
        error: The last error of Redis or of a thread of the node, or a text that says that the
            connection is too slow for the claimed events; None if all is well.
        restarts: How often a thread was restarted after an unexpected exception.
        listening: False while ``'event'`` has no listener. The node then claims nothing.
        dropped: How many emissions other than ``'event'`` were dropped because listeners were
            10 000 behind. Dead letters are not lost by this: ``dead()`` still returns them.
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
