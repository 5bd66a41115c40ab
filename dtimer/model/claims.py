"""What passes between a node and the store in one turn, as plain data."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dtimer.errors import StoreError


class BrokenReply(StoreError):
    """
    The reply to a turn broke off.

    ``arrived`` bytes of it had come, and it was ``slow`` if the time for it ran out.
    """

    arrived = 0
    slow = False


class Verdict(enum.Enum):
    """How the claim on an event ends."""

    CONFIRM = "confirm"
    RETRY = "retry"
    RELEASE = "release"
    BURY = "bury"


class Result(enum.Enum):
    """What became of a settlement; the values are the letters that the scripts answer."""

    DONE = "1"
    STALE = "0"
    DEAD = "d"
    CANCELLED = "c"


# Not frozen, these two: one of each is made for every event, and frozen ones take thrice as long.
@dataclass(slots=True)
class Settlement:
    """
    The end of one claim.

    ``wait_us`` and ``error`` are for RETRY; ``reason`` and ``error`` for BURY.
    """

    id: str
    token: int
    verdict: Verdict
    wait_us: int = 0
    error: str = ""
    reason: str = ""


@dataclass(slots=True)
class Claim:
    """An event under our lease, its payload still as stored bytes. Times in µs."""

    id: str
    token: int
    attempt: int
    due_us: int
    claimed_us: int
    max_retries: int
    payload: bytes
    schedule: str | None = None
    nominal_us: int | None = None
    missed: int = 0
    expires_us: int | None = None


@dataclass(slots=True)
class TurnRequest:
    """
    What a node asks in one turn. Asked again unchanged, with the same ``seq``, it does
    not act twice: that is how a turn is repeated whose reply was lost. ``asked`` counts
    how often it was asked before. What falls due within ``ahead_us`` may be claimed, too, and
    is to be kept until then.

    ``most_bytes`` is for a slow connection: the stored bytes of all events after the first fit into
    so many, and those of the first too when it is ``strict``. None leaves it to the store. A turn
    that is asked again may ask for fewer: the rest of what it had claimed is released.
    """

    seq: int
    limit: int
    hears: bool
    echo: bool
    settlements: list[Settlement] = field(default_factory=list)
    asked: int = 0
    ahead_us: int = 0
    most_bytes: int | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """
    What a node was answered.

    ``wait_us`` is the time until it is worth asking again, None when only a wake or the
    poll will tell. ``known`` is false when the node's registration is gone. ``results``
    are in the order of the settlements. ``buried`` are the ids, with the reasons, of
    events that were found unfit to be handed out. ``short`` are schedules that run out of
    nominal times. ``came`` is when the answer had arrived, on the monotonic clock. The rest is
    for the witness (store/witness.py); ``token`` is the last that was given out.
    """

    now_us: int
    wait_us: int | None
    known: bool
    results: list[Result]
    claims: Sequence[Claim]
    buried: list[tuple[str, str]]
    short: list[str] = field(default_factory=list)
    heard: int | None = None
    before: int | None = None
    posted: int | None = None
    came: float | None = None
    token: int = 0


class Answer(Protocol):
    """What waits for the answer to a turn that was asked for, and returns it."""

    def __call__(self, *, lay: bool) -> Turn:
        """Return it; *lay* tells whether something else was done since it was asked for."""
        ...
