"""The protocols of the store, the timer and the node, as the engine uses them."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from dtimer.model.claims import ClaimRequest, Outcome, PendingReply, Renewal, Settlement
from dtimer.model.event import Event
from dtimer.model.kinds import KindBackoff, UnknownPolicy

if TYPE_CHECKING:
    from dtimer.engine.lease import Lease

#: The names that a node announces. ``buried`` becomes ``'dead'`` or ``'expired'`` once its dead
#: letter was read (``timer/announcer.py``). The other names are emitted as they are.
Announcement: TypeAlias = Literal[
    "buried", "connected", "disconnected", "error", "lease_lost", "ready", "retry"
]


class ClaimStore(Protocol):
    """The store of one namespace: sends claims, and makes the calls that their replies ask for."""

    def start_claim(self, request: ClaimRequest) -> PendingReply:
        """Send a claim, in one try. Return a callable that waits for the reply and returns it."""
        ...

    @property
    def busy(self) -> bool:
        """True if `start_claim` must first make other calls, which may take long."""
        ...

    def renew(self, held: Sequence[tuple[str, int]], lease_us: int) -> list[Renewal]:
        """
        Renew leases, given as (id, token); return the outcome of each.

        In one try, for the heartbeat. `LeaseStore.extend` is the same call at a handler's request.
        """
        ...

    def alone(self) -> bool:
        """Return True if no other node has joined, and the namespace is not paused."""
        ...

    def register(self) -> None:
        """Register the node again, because the server has lost its registration."""
        ...

    def trim(self) -> None:
        """Drop the dead letters that are too many or too old."""
        ...

    def add_times(self, schedule: str) -> None:
        """Send the server more nominal times of a schedule."""
        ...

    def needs_operator(self, error: BaseException | None) -> bool:
        """Return True if *error* lasts until an operator fixes its cause."""
        ...


class LeaseStore(Protocol):
    """Settles and extends leases immediately, outside the claim cycle."""

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        """Settle leases; return one outcome for each, in order."""
        ...

    def extend(
        self, held: Sequence[tuple[str, int]], lease_us: int, *, at_least: bool = False
    ) -> list[Renewal]:
        """
        Extend leases, given as (id, token); return the outcome of each.

        With *at_least* a lease that already lasts longer is not shortened. Tries again up to the
        deadline of a call, unlike `ClaimStore.renew`.
        """
        ...


class Subscription(Protocol):
    """A pub/sub subscription."""

    def open(self) -> None:
        """Subscribe, or raise."""

    def wait(self, seconds: float, stop_descriptor: int) -> bool:
        """Wait for a message, or until *stop_descriptor* is readable; return True for a message."""
        ...

    def hear(self) -> list[str]:
        """Return the channels of the messages that have arrived."""
        ...

    def close(self) -> None:
        """End the subscription."""


class WakeStore(Protocol):
    """The store of one namespace, as the source of wakes."""

    def subscription(self) -> Subscription:
        """Make a subscription to the node's wakes. The caller opens it."""
        ...

    def needs_operator(self, error: BaseException | None) -> bool:
        """Return True if *error* lasts until an operator fixes its cause."""
        ...


class EventResults(Protocol):
    """Takes the results of the events of one batch, from the thread that runs it."""

    def begin(self, *, alone: bool) -> None:
        """
        Learn that routers are about to report results.

        Args:
            alone: Whether one router is the only listener of the batch.
        """
        ...

    def starts(self, events: Sequence[Event], backoff: KindBackoff | None, /) -> list[Event]:
        """
        Return those of *events* that a route may start now, and release the others.

        An event that waited for other events of its batch may have lost its lease, or expired.

        Args:
            events: The events of one call.
            backoff: The backoff of their kind; None for that of the node.
        """
        ...

    def done(self, events: Sequence[Event], /) -> None:
        """Record that the route of *events* has returned."""
        ...

    def failed(self, events: Sequence[Event], raised: list[BaseException], /) -> None:
        """Record that the route of *events* has raised."""
        ...

    def stop(self) -> None:
        """Record that events which have no result are not started. They are released."""
        ...

    def unknown(self, event: Event, kind: object, policy: UnknownPolicy, /) -> None:
        """Record that no route takes the kind of an event."""
        ...


class Consumer(Protocol):
    """The timer, which has the listeners of ``'event'``."""

    def demand(self) -> int:
        """Return how many events the listeners or readers can take."""
        ...

    def deliver(self, events: list[Event], results: EventResults, /) -> list[BaseException] | None:
        """
        Call each listener; return the exceptions raised, or None if no listener was called.

        A router among the listeners reports *results* of single events. The exceptions do not
        include those of its routes.
        """
        ...


class AnnouncementEmitter(Protocol):
    """Calls the listeners of everything but ``'event'``."""

    def emit(self, event: Announcement, *arguments: Any) -> None:
        """Call the listeners of *event*."""
        ...


class Announcements(Protocol):
    """Emits everything but ``'event'`` to the listeners."""

    def announce(
        self, event: Announcement, *arguments: Any, context: Context | None = None
    ) -> None:
        """
        Queue *event* to be emitted on the callback thread. Never blocks.

        The listeners run in *context*, if it is given: that of the handler that failed.
        """
        ...


class ContactReports(Protocol):
    """Learns whether Redis answers, and whether wakes arrive."""

    #: When the last reply to a claim was received, on the monotonic clock. The claim cycle sets it.
    answered: float | None

    def connectivity_changed(
        self, error: Exception | None, *, claim_answered: bool = False
    ) -> None:
        """
        Learn that the node cannot work, because of *error*; None means that it can.

        With *claim_answered*, Redis answered a claim, but a step after it failed.
        """
        ...

    def hearing_changed(self, error: BaseException | None, deaf_since: float | None) -> None:
        """Learn that wakes have not arrived since *deaf_since*; the error is None if they do."""
        ...


class Host(Protocol):
    """The node that owns the threads of the engine."""

    def quit(self) -> None:
        """Leave, because a handler raised SystemExit or KeyboardInterrupt."""
        ...

    def on_stopped(self) -> None:
        """Stop the other threads. Called once, as the last action of the claimer."""
        ...


class InlineClaims(Protocol):
    """The claimer, as a handler thread knows it."""

    def claim_inline(self) -> None:
        """Claim on the calling thread, a handler thread that has just become free."""
        ...

    def claim_soon(self) -> None:
        """Have the claimer claim now, to carry releases."""
        ...

    def carry_soon(self) -> None:
        """Have a claim carry settlements within 5 ms, although their batch goes on."""
        ...


class DueEvents(Protocol):
    """The dispatcher, as an idle handler thread knows it."""

    def next_due(self) -> float | None:
        """Return when the first waiting event is due, on the monotonic clock; None without one."""
        ...

    def pop_startable(self) -> list[Lease]:
        """Remove and return the next batch that a thread may start now; empty if there is none."""
        ...
