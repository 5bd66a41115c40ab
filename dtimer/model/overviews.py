"""The records about many events: those that fall due, those in flight, and the history."""

# Without `from __future__ import annotations`, as in ``dtimer.model.records``.

from dataclasses import dataclass
from datetime import datetime

from dtimer.epoch import to_datetime
from dtimer.errors import OptionError
from dtimer.model import summary
from dtimer.model.options import check_count
from dtimer.model.times import Duration, duration_us
from dtimer.naming import public


@dataclass(frozen=True, slots=True)
class DueCount:
    """
    How many events fall due within a period.

    Attributes:
        begins: When the period begins, in ms since the epoch.
        count: How many events fall due in it.
    """

    begins: float
    count: int

    @property
    def begins_at(self) -> datetime:
        """``begins`` as an aware datetime in UTC."""
        return to_datetime(self.begins)


@dataclass(frozen=True, slots=True)
class InFlight:
    """
    An event that a node has claimed.

    Attributes:
        id: The id of the event.
        node: The id of the node; ``""`` if the node is not registered any more.
        incarnation: The incarnation of the node.
        attempt: 1 for the first delivery.
        due: When this attempt became due, in ms since the epoch.
        claimed: When the node claimed it, in ms since the epoch.
        lease_ends: When its lease ends, in ms since the epoch, unless the node renews it.
        cancelled: True if it was cancelled meanwhile, so that it is not retried.
    """

    id: str
    node: str
    incarnation: str
    attempt: int
    due: float
    claimed: float
    lease_ends: float
    cancelled: bool

    @property
    def due_at(self) -> datetime:
        """``due`` as an aware datetime in UTC."""
        return to_datetime(self.due)

    @property
    def claimed_at(self) -> datetime:
        """``claimed`` as an aware datetime in UTC."""
        return to_datetime(self.claimed)

    @property
    def lease_ends_at(self) -> datetime:
        """``lease_ends`` as an aware datetime in UTC."""
        return to_datetime(self.lease_ends)

    def __repr__(self) -> str:
        return summary.record(
            "InFlight",
            self.id,
            ["cancelled"] if self.cancelled else [],
            node=repr(self.node),
            claimed=summary.moment(self.claimed),
            attempt=str(self.attempt),
        )


@dataclass(frozen=True, slots=True)
class Minute:
    """
    The counts of one minute, and the numbers at its end.

    A joined node writes the row of a minute when the minute has ended. There is none for a minute
    in which nothing happened and nothing waited, nor for one in which no node had joined.

    Attributes:
        begins: When the minute begins, in ms since the epoch.
        minutes: The number of minutes since the last row: the counts are for all of them.
        posted: How many events were posted.
        started: How many attempts were started.
        confirmed: How many events were confirmed.
        retried: How many attempts failed and are retried.
        died: How many events became dead letters.
        scheduled: How many events waited at the end.
        in_flight: How many were in flight.
        overdue: How many were due, or had a lease that had run out.
        dead: How many dead letters there were.
        late_p50_ms: The lateness that half of the deliveries did not exceed; None without any.
        late_p99_ms: The lateness that 99 % of them did not exceed.
    """

    begins: float
    minutes: int
    posted: int
    started: int
    confirmed: int
    retried: int
    died: int
    scheduled: int
    in_flight: int
    overdue: int
    dead: int
    late_p50_ms: float | None
    late_p99_ms: float | None

    @property
    def begins_at(self) -> datetime:
        """``begins`` as an aware datetime in UTC."""
        return to_datetime(self.begins)


def period_us(span: Duration, periods: int) -> int:
    """
    Return the length of one of *periods* equal parts of *span*, in µs.

    Raises:
        OptionError: *periods* is not a number from 1 to 120, or a part is shorter than 1 ms.
    """
    check_count(periods, "periods", 1, 120)
    span_us = duration_us(span, "span")
    if span_us < 1_000 * periods:
        raise OptionError(
            f"span must be at least 1 ms for each of the {periods} periods, not {span!r:.80}"
        )
    return span_us // periods


public(DueCount, InFlight, Minute)
