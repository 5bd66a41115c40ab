"""The records that inspection calls return: stored events, schedules, nodes and numbers."""

# Without `from __future__ import annotations`: programs that resolve the annotations of a class,
# such as pydantic, look names up in the module that the class names, which is `dtimer`.

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dtimer.epoch import to_datetime
from dtimer.model import summary
from dtimer.model.arguments import Misfire, Overlap
from dtimer.model.histogram import percentile
from dtimer.model.outcomes import Reason
from dtimer.naming import public


class State(enum.StrEnum):
    """The state of a stored event. A confirmed or cancelled event has no record and no state."""

    SCHEDULED = "scheduled"
    """Waiting for its due time, or for that of a retry."""

    IN_FLIGHT = "in_flight"
    """Claimed by a node, which has a lease on it."""

    DEAD = "dead"
    """Moved to the dead letters."""


class Cancelled(enum.StrEnum):
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
class Cleared:
    """
    The numbers of what ``clear`` has deleted.

    Attributes:
        events: The number of events, waiting and in flight, with the pending occurrences.
        dead: The number of dead letters.
        schedules: The number of schedules.
    """

    events: int
    dead: int
    schedules: int


@dataclass(frozen=True, slots=True)
class Record:
    """
    A stored event.

    Attributes:
        id: The id of the event.
        event: The payload; None if the stored bytes are not a valid payload, or the codec of this
            timer cannot open them.
        due: The due time in ms since the epoch; in flight, that of the current attempt.
        state: The state.
        attempt: How many times the event has been started.
        max_retries: How often it may be delivered again; None if the stored bytes are not valid.
        expires: When it expires, in ms since the epoch; None if it does not.
        sealed: If the codec cannot open the payload, its kind and length: ``encrypted, 312 bytes``.
    """

    id: str
    event: dict[str, Any] | None
    due: float
    state: State
    attempt: int
    max_retries: int | None = None
    expires: float | None = None
    sealed: str | None = None

    @property
    def expires_at(self) -> datetime | None:
        """``expires`` as an aware datetime in UTC, or None."""
        return None if self.expires is None else to_datetime(self.expires)

    @property
    def due_at(self) -> datetime:
        """``due`` as an aware datetime in UTC."""
        return to_datetime(self.due)

    def __repr__(self) -> str:
        return summary.record(
            "Record",
            self.id,
            (self.state.value,),
            due=summary.moment(self.due),
            attempt=str(self.attempt),
            keys=summary.keys(self.event),
        )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """
    An event that dtimer gave up, and why.

    Attributes:
        id: The id of the event.
        event: The payload; None if the stored bytes are not a valid payload, or the codec of this
            timer cannot open them.
        attempt: How many times the event was started.
        reason: A `Reason`; a plain string if this version of dtimer does not know it.
        error: The text of the last failure, with its traceback if a handler raised.
        died: When the event became a dead letter, in ms since the epoch.
        raw: The stored bytes, even if they are not a valid payload.
        sealed: If the codec cannot open the payload, its kind and length: ``encrypted, 312 bytes``.
    """

    id: str
    event: dict[str, Any] | None
    attempt: int
    reason: Reason | str
    error: str
    died: float
    raw: bytes
    sealed: str | None = None

    @property
    def died_at(self) -> datetime:
        """``died`` as an aware datetime in UTC."""
        return to_datetime(self.died)

    def __repr__(self) -> str:
        # Without the error: a handler may have put a value of the payload into its text.
        return summary.record(
            "DeadLetter",
            self.id,
            (self.reason,),
            died=summary.moment(self.died),
            attempt=str(self.attempt),
            keys=summary.keys(self.event),
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """
    A stored schedule. Durations are in ms, moments in ms since the epoch.

    Attributes:
        id: The id of the schedule.
        event: The payload of its occurrences; None if the codec of this timer cannot open it.
        interval: The time between two occurrences; None for a cron schedule.
        cron: The cron expression; None for an interval.
        tz: The time zone of the cron expression.
        misfire: The policy for occurrences that were missed.
        overlap: The policy for an occurrence that becomes due while the previous one runs.
        jitter: The longest random delay of an occurrence after its nominal time.
        due: When the next occurrence is due. None if the schedule is paused, or has no further
            occurrence.
        last: The nominal time of the last occurrence that was delivered, or None.
        left: How many occurrences are left, or None if their number is not limited.
        paused: True if the schedule is paused.
        grace: How late an occurrence may start, or None if that is not limited.
        expires: How long after its due time an occurrence expires, or None.
        owner: The owner of the block that declares it (``declare_schedules``), or None.
        sealed: If the codec cannot open the payload, its kind and length: ``encrypted, 312 bytes``.
    """

    id: str
    event: dict[str, Any] | None
    interval: float | None
    cron: str | None
    tz: str
    misfire: Misfire
    overlap: Overlap
    jitter: float
    due: float | None
    last: float | None
    left: int | None
    paused: bool
    grace: float | None = None
    expires: float | None = None
    owner: str | None = None
    sealed: str | None = None

    @property
    def due_at(self) -> datetime | None:
        """``due`` as an aware datetime in UTC, or None."""
        return None if self.due is None else to_datetime(self.due)

    @property
    def last_at(self) -> datetime | None:
        """``last`` as an aware datetime in UTC, or None."""
        return None if self.last is None else to_datetime(self.last)

    def __repr__(self) -> str:
        cron = self.cron is not None
        return summary.record(
            "Schedule",
            self.id,
            ("paused",) if self.paused else (),
            cron=repr(self.cron) if cron else None,
            tz=repr(self.tz) if cron else None,
            interval=None if self.interval is None else summary.number(self.interval),
            due=summary.moment(self.due),
            left=None if self.left is None else str(self.left),
            keys=summary.keys(self.event),
        )


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
        version: The version of its dtimer, or ``""``.
        threads: How many handler threads it may have.
        used: How many of them run a handler.
        deaf: True if wakes do not reach it, so that it finds events by polling.
        stuck: How many of its handlers have run longer than ``max_run``.
        restarts: How often it had to restart one of its threads.
        rss: The resident memory of its process in bytes; None if it is not known.
        rtt_ms: How long its last report took, there and back; None before the first report. A node
            reports once a minute, and at most 5 s after one of the other values has changed.
    """

    id: str
    incarnation: str
    host: str
    pid: int
    joined: float
    idle_ms: float
    waiting: bool
    listening: bool = True
    version: str = ""
    threads: int = 0
    used: int = 0
    deaf: bool = False
    stuck: int = 0
    restarts: int = 0
    rss: int | None = None
    rtt_ms: float | None = None

    @property
    def joined_at(self) -> datetime:
        """``joined`` as an aware datetime in UTC."""
        return to_datetime(self.joined)

    def __repr__(self) -> str:
        words = ["waiting"] if self.waiting else []
        words += [] if self.listening else ["not listening"]
        words += ["deaf"] if self.deaf else []
        return summary.record(
            "NodeInfo",
            self.id,
            words,
            host=repr(self.host),
            pid=str(self.pid),
            joined=summary.moment(self.joined),
            idle_ms=summary.number(self.idle_ms),
        )


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
        totals: Counts since the namespace was created. Of events: ``posted``, ``started``,
            ``confirmed``, ``retried``, ``snoozed``, ``released``, ``cancelled``, ``superseded`` by
            a later post, ``moved`` by a reschedule, ``cleared``, ``revived``, ``died``, and
            ``died:`` with each
            `Reason` (``expired`` equals ``died:expired``). Of occurrences: ``coalesced`` and
            ``skipped``. Of leases that ran out: ``lapsed``. Of deliveries to a node that did not
            know the kind of the event: ``unknown``.
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

    def __repr__(self) -> str:
        # Without the buckets of the histogram.
        now = ("scheduled", "in_flight", "overdue", "dead", "nodes")
        counts = {name: getattr(self, name) for name in now}
        counts |= {name: self.totals.get(name, 0) for name in ("posted", "confirmed")}
        late = {f"late({share})": self.late(share) for share in (0.5, 0.99)}
        return summary.record(
            "Stats",
            None,
            ["paused"] if self.paused else [],
            **{name: str(count) for name, count in counts.items()},
            **{name: summary.number(ms) for name, ms in late.items() if ms is not None},
        )


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
            connection is too slow for the claimed events; None if all is well. While the node
            joins, why it has not joined yet.
        restarts: How often a thread was restarted after an unexpected exception.
        listening: False while ``'event'`` has no listener. The node then claims nothing.
        dropped: How many emissions other than ``'event'`` were dropped because listeners were
            10 000 behind. Dead letters are not lost by this: ``dead()`` still returns them.
        joining: True while ``join(wait=False)`` keeps trying, and during any other `join`.
        unreadable: How often this node could not open the payload of an event, because it lacks the
            codec or the key. The event then waits for another node.
        unknown: How many deliveries to this node had a kind that its `Router` does not know.
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
    joining: bool = False
    unreadable: int = 0
    unknown: int = 0

    def __repr__(self) -> str:
        words = ["ok"] if self.ok else ["not ok"]
        words += [] if self.joined else ["joining" if self.joining else "not joined"]
        words += ["deaf"] if self.deaf else []
        words += [] if self.listening else ["not listening"]
        ages = {"claim_age_ms": self.claim_age_ms, "heard_age_ms": self.heard_age_ms}
        names = ("stuck", "restarts", "dropped", "unreadable", "unknown")
        counts = {name: getattr(self, name) for name in names}
        return summary.record(
            "Health",
            None,
            words,
            **{name: "None" if ms is None else summary.number(ms) for name, ms in ages.items()},
            handlers=str(self.handlers),
            **{name: str(count) for name, count in counts.items() if count},
            error=None if self.error is None else f"{self.error!r:.80}",
        )


public(Cancelled, Cleared, DeadLetter, Health, NodeInfo, Record, Schedule, State, Stats)
