"""A clock that the test moves, and a node as the store sees it."""

from __future__ import annotations

import dataclasses
from typing import Any

from dtimer.model.claims import Claim, ClaimReply, ClaimRequest, Outcome, Settlement, Verdict
from dtimer.model.schedules import ScheduleSpec, make_spec
from dtimer.store.format import Entry
from dtimer.store.store import Store

LEASE = 30_000


class Now:
    """A clock: microseconds since the epoch, moved by the test in milliseconds."""

    def __init__(self) -> None:
        self.us = 1_800_000_000_000_000

    def __call__(self) -> int:
        return self.us

    def tick(self, ms: float) -> None:
        self.us += round(ms * 1000)


class Peer:
    """A node as the store sees it: an incarnation that claims. It has no threads."""

    def __init__(
        self, store: Store, name: str, *, hears: bool = True, join: bool = True, lags: bool = False
    ) -> None:
        self.store = store
        self.name = name
        self.hears = hears
        self.lags = lags
        self.seq = 0
        self.resends = 0
        if join:
            store.join(name, "{}")

    def claim_reply(
        self,
        limit: int = 1,
        *settlements: Settlement,
        lease: int = LEASE,
        again: bool = False,
        ahead: float = 0,
        most: int | None = None,
        strict: bool = False,
    ) -> ClaimReply:
        """
        Claim once.

        Args:
            again: Send the last claim again, as after a lost reply.
            ahead: How far ahead of its due time an event may be claimed, in ms.
            most: The largest reply, in bytes, for a slow connection.
            strict: Apply *most* to the first event too.
        """
        self.seq += not again
        self.resends = self.resends + 1 if again else 0
        request = ClaimRequest(
            self.seq, limit, self.hears, False, list(settlements), self.resends,
            round(ahead * 1000), most, strict, self.lags,
        )  # fmt: skip
        reply = self.store.claims.start(self.name, request, lease * 1000)(read_late=False)
        return dataclasses.replace(reply, claims=list(reply.claims))

    def claim(self, limit: int = 1, **options: Any) -> list[Claim]:
        """Claim once; return the claimed events."""
        return self.claim_reply(limit, **options).claims

    def confirm(self, claim: Claim) -> Outcome:
        """Confirm an event by a claim for nothing."""
        return self.claim_reply(0, Settlement(claim.id, claim.token, Verdict.CONFIRM)).results[0]

    def fail(self, claim: Claim, wait: float = 0, error: str = "boom") -> Outcome:
        """Fail an event, with a retry after *wait* ms."""
        verdict = Settlement(claim.id, claim.token, Verdict.RETRY, round(wait * 1000), error)
        return self.claim_reply(0, verdict).results[0]

    def snooze(self, claim: Claim, wait: float = 1_000, reason: str = "") -> Outcome:
        """Snooze an event for *wait* ms."""
        us = round(wait * 1000)
        verdict = Settlement(claim.id, claim.token, Verdict.SNOOZE, us, reason=reason)
        return self.claim_reply(0, verdict).results[0]

    def bury(self, claim: Claim, text: str = "no", reason: str = "buried") -> Outcome:
        """Bury an event."""
        verdict = Settlement(claim.id, claim.token, Verdict.BURY, error=text, reason=reason)
        return self.claim_reply(0, verdict).results[0]

    def release(self, claim: Claim) -> Outcome:
        return self.claim_reply(0, Settlement(claim.id, claim.token, Verdict.RELEASE)).results[0]


def post(
    store: Store,
    id: str,
    delay: float = 0,
    payload: str = "{}",
    *,
    policy: str = "replace",
    expires: str = "",
    max_retries: int = 3,
) -> bool:
    """Post one event with a delay in ms; return True if it was stored."""
    entry = Entry(id, f"+{round(delay * 1000)}", f"{expires},{max_retries}|{payload}")
    return not store.post([entry], policy).kept


def definition(id: str = "beat", **options: Any) -> ScheduleSpec:
    """Return a schedule's specification; every second, unless ``every`` or ``cron`` is given."""
    defaults = {
        "every": None if "cron" in options else 1_000,
        "start": None,
        "end": None,
        "count": None,
        "jitter": 0,
        "misfire": "coalesce",
        "overlap": "queue",
        "max_retries": 3,
        "payload": "{}",
    }
    return make_spec(id, **defaults | options)


def add_missing_times(store: Store, reply: ClaimReply) -> None:
    """Add nominal times to the schedules that need them according to a reply, as a node does."""
    for schedule in reply.short:
        store.schedules.add_times(schedule)
