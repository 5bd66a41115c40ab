"""The event that a handler receives."""

from __future__ import annotations

import copyreg
from datetime import datetime
from typing import Any, NoReturn, Protocol

from dtimer.epoch import to_datetime
from dtimer.errors import UsageError
from dtimer.model import summary
from dtimer.model.claims import Claim
from dtimer.model.times import Duration
from dtimer.naming import public


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

    def snooze(self, delay: Duration) -> bool:
        """End the lease; the event is delivered after *delay*, and this attempt not counted."""
        ...

    def bury(self, text: str) -> bool:
        """Make the event a dead letter."""
        ...

    def lost(self) -> bool:
        """Return True if the lease is lost, or if the node can no longer rely on it."""
        ...

    def cancelled(self) -> bool:
        """Return True if the node has learned that the event was cancelled or replaced."""
        ...


class _NoLease:
    """The holder of a pickled or deep-copied event, which comes back without a lease."""

    def confirm(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse. So do all other methods of a `Holder`."""
        raise UsageError(
            "this event is a copy and has no lease: settle the event that the handler received"
        )

    retry = extend = snooze = bury = lost = cancelled = confirm


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
        nominal: The nominal time of this occurrence, in ms since the epoch, or None.
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
        self, payload: dict[str, Any], claim: Claim, holder: Holder, *, unread_ms: float = 0.0
    ) -> None:
        """
        Make the event of a claim.

        Args:
            payload: The decoded payload of the claim.
            claim: The claim.
            holder: The node's lease on the event.
            unread_ms: For how long the reply waited unread, which counts as lateness.
        """
        super().__init__(payload)
        self.id: str = claim.id
        self.due: float = claim.due_us / 1000
        self.attempt: int = claim.attempt
        self.max_retries: int = claim.max_retries
        # Not negative: if a claim is sent again after the server's clock was set back, its reply
        # has the new time.
        self.lateness_ms: float = max(0, claim.claimed_us - claim.due_us) / 1000 + unread_ms
        self.token: int = claim.token
        self.schedule: str | None = claim.schedule
        self.nominal: float | None = None if claim.nominal_us is None else claim.nominal_us / 1000
        self.missed: int = claim.missed
        self._holder: Holder = holder

    @property
    def due_at(self) -> datetime:
        """``due`` as an aware datetime in UTC."""
        return to_datetime(self.due)

    @property
    def nominal_at(self) -> datetime | None:
        """``nominal`` as an aware datetime in UTC, or None."""
        return None if self.nominal is None else to_datetime(self.nominal)

    @property
    def lease_lost(self) -> bool:
        """True if another node has, or may have, the event. Stop without any further effect."""
        return self._holder.lost()

    @property
    def cancelled(self) -> bool:
        """
        True if the event was cancelled while its handler runs, or replaced by a later post.

        Its result is no longer wanted, so a long handler may stop. The node learns of it when it
        renews the lease: within a third of ``lease``, if Redis answers.
        """
        return self._holder.cancelled()

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

    def snooze(self, delay: Duration) -> bool:
        """
        Put the event off: it is delivered after *delay*, and this attempt is not counted.

        For an event that cannot be handled yet, through no fault of its own. ``max_retries`` does
        not limit how often it is snoozed. ``expires`` does not move: an event that is not started
        before it becomes a dead letter. An occurrence of a schedule counts as running until it is
        done.

        Args:
            delay: At least 10 ms; a shorter delay, also a negative one, means 10 ms.

        Returns:
            True if the event will be delivered again. False if the lease was lost, the event was
            cancelled, or it was settled before.

        Raises:
            OptionError: *delay* is not a valid duration.
            StoreError: Redis could not be reached.
        """
        return self._holder.snooze(delay)

    def bury(self, text: str) -> bool:
        """
        Make the event a dead letter now, with the reason ``buried``, however many retries are left.

        A handler may raise `SkipRetry` instead.

        Args:
            text: Becomes the ``error`` of the dead letter, which keeps its first 2000 characters.

        Returns:
            True if the event is a dead letter. False if the lease was lost, the event was
            cancelled, or it was settled before.

        Raises:
            OptionError: *text* is not a str.
            StoreError: Redis could not be reached.
        """
        return self._holder.bury(text)

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
        return summary.record(
            "Event",
            self.id,
            (),
            due=summary.moment(self.due),
            attempt=str(self.attempt),
            keys=summary.keys(self),
        )

    def __copy__(self) -> Event:
        """Return the same event in another dict. Both have the same lease."""
        copy = Event.__new__(Event)
        copy.update(self)
        copy.__setstate__(self._fields() | {"_holder": self._holder})
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to rebuild the event, detached from its lease."""
        new = copyreg.__newobj__  # type: ignore[attr-defined]
        return new, (type(self),), self._fields(), None, iter(self.items())

    def __setstate__(self, fields: dict[str, Any]) -> None:
        """Set the attributes of a rebuilt event."""
        self._holder = _NoLease()
        for name, value in fields.items():
            setattr(self, name, value)

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "_holder"}


public(Event)
