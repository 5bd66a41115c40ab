"""The data that a node and the store exchange in one claim."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dtimer.errors import StoreError


class BrokenReply(StoreError):
    """
    The connection ended, or the deadline passed, in the middle of the reply to a claim.

    ``arrived`` is the number of bytes received. ``timed_out`` is True if the deadline passed.
    """

    arrived = 0
    timed_out = False


class Verdict(enum.Enum):
    """How a lease is settled."""

    CONFIRM = "confirm"
    RETRY = "retry"
    RELEASE = "release"
    SNOOZE = "snooze"
    BURY = "bury"


class Outcome(enum.Enum):
    """The outcome of a settlement. The values are the characters that the scripts return."""

    DONE = "1"
    STALE = "0"
    DEAD = "d"
    CANCELLED = "c"


class Renewal(enum.Enum):
    """
    The outcome of the renewal of a lease. The values are the characters that the script returns.

    It is true if this node still holds the lease.
    """

    HELD = "1"
    CANCELLED = "c"
    """This node holds the lease, but the event was cancelled meanwhile."""
    LOST = "0"

    def __bool__(self) -> bool:
        return self is not Renewal.LOST


# Settlement and Claim are not frozen: one of each is made per event, and making a frozen dataclass
# takes three times as long.
@dataclass(slots=True)
class Settlement:
    """
    A request to end one lease.

    ``wait_us`` and ``error`` apply to RETRY, ``wait_us`` and ``reason`` to SNOOZE, ``reason`` and
    ``error`` to BURY. The reason of a snooze is empty if the handler has asked for it.
    """

    id: str
    token: int
    verdict: Verdict
    wait_us: int = 0
    error: str = ""
    reason: str = ""


@dataclass(slots=True)
class Claim:
    """
    An event that this node has claimed, with the payload as stored bytes and times in µs.

    ``snoozed_us`` is when the event was first snoozed for ``snooze_reason``, after its last retry.
    """

    id: str
    token: int
    attempt: int
    due_us: int
    claimed_us: int
    max_retries: int
    payload: bytes = field(repr=False)
    schedule: str | None = None
    nominal_us: int | None = None
    missed: int = 0
    expires_us: int | None = None
    trace: str = ""
    snoozed_us: int | None = None
    snooze_reason: str = ""

    def snoozed_for_us(self, reason: str) -> int:
        """
        Return for how long the event was snoozed for *reason* when it was claimed.

        The time since the first of these snoozes, by the server's clock; 0 if there was none.
        """
        if self.snoozed_us is None or self.snooze_reason != reason:
            return 0
        return max(0, self.claimed_us - self.snoozed_us)


@dataclass(slots=True)
class ClaimRequest:
    """
    A claim, as a node requests it.

    If the reply is lost, the node sends the request again with the same ``seq``, and the server
    returns the same claim instead of claiming twice. ``resends`` counts how often the request was
    sent again. The server may also claim events that become due within ``ahead_us``; the node
    keeps those until they are due. ``hears`` is True if a wake would reach the node and find a
    free thread. ``lags`` is True if the node's waits end late; the server then prefers other nodes
    for duty, until a claim of this node without it. ``echo`` asks the server to send the node a
    wake, as a test of its subscription.

    ``most_bytes`` limits the reply for a slow connection: the stored bytes of its events, together.
    A first event that is larger than the limit is returned alone. With ``strict``, every event
    that is larger than the limit is left for other nodes. None leaves the limit to the store. A
    request that is sent again may lower the limit; the server then releases
    the claimed events that no longer fit.
    """

    seq: int
    limit: int
    hears: bool
    echo: bool
    settlements: list[Settlement] = field(default_factory=list)
    resends: int = 0
    ahead_us: int = 0
    most_bytes: int | None = None
    strict: bool = False
    lags: bool = False


@dataclass(frozen=True, slots=True)
class ClaimReply:
    """
    The server's reply to a claim.

    ``wait_us`` is the time until the next claim can find an event. None means that only a wake
    or the poll can tell. ``known`` is False if the server no longer has the node's registration.
    ``results`` are in the order of the settlements. ``buried`` lists the events that the claim
    moved to the dead letters, as (id, reason) pairs. ``short`` lists the cron schedules for which
    the server has only few nominal times left. ``received_at`` is on the monotonic clock.

    The rollback detector reads the other fields. ``heard`` is the time of this claim by the
    server's clock. The next claim sends it back, and the server compares it with the time that it
    has recorded. ``before`` is None if the two are equal; otherwise it is the recorded time, or 0
    if there is none. ``posted`` is the number of events ever posted, and ``token`` is the last
    token that the server issued.
    """

    now_us: int
    wait_us: int | None
    known: bool
    results: list[Outcome]
    claims: Sequence[Claim]
    buried: list[tuple[str, str]]
    short: list[str] = field(default_factory=list)
    heard: int | None = None
    before: int | None = None
    posted: int | None = None
    received_at: float | None = None
    token: int = 0
    script_us: int = 0


class PendingReply(Protocol):
    """Waits for the reply to a claim that was sent before."""

    def __call__(self, *, read_late: bool) -> ClaimReply:
        """
        Wait for the reply.

        The timeout counts from the sending. Pass *read_late* as True if the node has done other
        work since then: the timeout then counts from now.
        """
        ...
