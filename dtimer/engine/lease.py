"""
A lease: this node's temporary, exclusive right to handle one event.

Exactly one party settles a lease: the handler, through `Event.confirm` and its siblings, or the
handler thread after the handler has returned. The second party finds the lease settled.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from dtimer.engine.clock import boottime
from dtimer.engine.error_text import bounded
from dtimer.engine.flag import Flag
from dtimer.engine.ports import LeaseStore
from dtimer.errors import OptionError, OutcomeUnknown, StoreError
from dtimer.faultpoints import armed, reached
from dtimer.model import summary
from dtimer.model.claims import Claim, Outcome, Renewal, Settlement, Verdict
from dtimer.model.event import Event
from dtimer.model.kinds import KindBackoff, kind_wait_us
from dtimer.model.options import Options
from dtimer.model.outcomes import Reason
from dtimer.model.retry import exponential, wait_us
from dtimer.model.times import Duration, duration_us

#: The fraction of a lease that the node relies on. The rest absorbs clock drift and slow replies.
_TRUSTED_FRACTION = 0.9

#: The shortest snooze. An event that is not ready yet must not keep a node busy.
SHORTEST_SNOOZE_US = 10_000


class LeaseOwner(Protocol):
    """Keeps the leases of a node."""

    def ended(self, lease: Lease, outcome: Outcome) -> None:
        """Learn that a call of `Event` has settled *lease*, with this outcome."""
        ...

    def settle(self, settlements: Sequence[Settlement], /) -> None:
        """Have the next claim carry *settlements*."""
        ...


def trusted_until(sent: float, lease_us: int) -> float:
    """
    Return until when the node may rely on a lease, on the clock of `boottime`.

    Args:
        sent: When the request that granted the lease was sent, on the monotonic clock.
        lease_us: The length of the lease.
    """
    # Read this clock first. If the process is suspended between the two reads, the result is
    # too early, which is safe.
    now = boottime()
    age = time.monotonic() - sent
    return now - age + lease_us / 1_000_000 * _TRUSTED_FRACTION


def _remove(moments: list[float], some: list[float]) -> None:
    for moment in some:
        # Another call may have removed it.
        with contextlib.suppress(ValueError):
            moments.remove(moment)


# Stands in where no thread can wait for the end of a settling.
_UNUSED = Flag()


class _End:
    """How a lease is settled, and the *thread* that calls the store to do so, or None."""

    __slots__ = ("over", "thread", "verdict")

    def __init__(self, verdict: Verdict, thread: int | None = None) -> None:
        self.verdict = verdict
        self.thread = thread
        #: Set when the call of the store has returned or failed.
        self.over = _UNUSED if thread is None else Flag()


class Lease:
    """
    Settles, extends and tracks the lease of one claimed event. Safe for any thread.

    Args:
        claim: The claimed event, as the store returned it.
        options: The node's options.
        store: Settles and extends leases immediately.
        owner: Is told when a call of `Event` has settled this lease.
        trusted_until: See the function of that name.
    """

    #: True once the log says that this lease was lost. Set on the instance only then.
    logged_lost = False

    #: The backoff of the event's kind, if a route with one handles it. Set on the instance only
    #: then.
    backoff: KindBackoff | None = None

    def __init__(
        self,
        claim: Claim,
        options: Options,
        store: LeaseStore,
        owner: LeaseOwner,
        trusted_until: float,
    ) -> None:
        self.claim = claim
        self.event: Event | None = None
        self.started: float | None = None
        #: When the event expires, on the clock of `boottime`: it must not start later.
        self.event_expires_at: float = math.inf
        #: True if losing this lease is expected: this process replaced the event, or sent a
        #: settlement whose reply was lost.
        self.superseded: bool = False
        #: False once the handler has returned without settling the event (``auto_confirm=False``).
        self.running = True
        #: True if this node gave up waiting for another party that was settling the lease.
        self.abandoned: bool = False
        self._options = options
        self._store = store
        self._owner = owner
        # Has the one key 'by' once a party settles the lease. A dict, because `setdefault` makes
        # the first party win in one step of the interpreter, without a lock.
        self._end: dict[str, _End] = {}
        self._lost = False
        self._cancelled = False
        # Until when the handler asked to keep the lease: one entry for each call of `extend`,
        # because a call in a signal handler may interrupt another.
        self._wanted_until = [0.0]
        self._trusted_until = trusted_until

    def decode(self, unread_ms: float = 0.0) -> None:
        """
        Make the event of this lease from its claim.

        Args:
            unread_ms: For how long the reply waited unread, which counts as lateness.

        Raises:
            PayloadError: The payload cannot be decoded.
            UnreadablePayload: This node cannot open it.
        """
        payload = self._options.codec.decode(self.claim.payload)
        self.event = Event(payload, self.claim, self, unread_ms=unread_ms)

    @property
    def _longest_wait(self) -> float:
        # Seconds. A call of the store takes less.
        return 2 * self._options.timeout / 1e6

    @property
    def key(self) -> tuple[str, int]:
        """The id and the token, which together identify a lease."""
        return self.claim.id, self.claim.token

    @property
    def verdict(self) -> Verdict | None:
        """How the lease is settled; None while no party has committed to settling it."""
        end = self._end.get("by")
        return None if end is None else end.verdict

    @property
    def settled(self) -> bool:
        """True as soon as one party has committed to settling this lease."""
        return bool(self._end)

    def renewed(self, sent: float, lease_us: int) -> None:
        """Record that the server renewed the lease, in reply to a request sent at *sent*."""
        self._trusted_until = trusted_until(sent, lease_us)

    def distrust(self) -> None:
        """Stop relying on the lease until the server has renewed it."""
        self._trusted_until = 0.0

    @property
    def known_lost(self) -> bool:
        """True if the server has said that this node no longer holds the lease."""
        return self._lost

    def mark_lost(self) -> bool:
        """Record that this node no longer holds the lease; return True the first time."""
        first = not self._lost
        # While this node could rely on the lease, no other node was given the event. So the event
        # was replaced, and its result is not wanted any more. A test's clock proves nothing.
        if first and self._options.now is None and boottime() <= self._trusted_until:
            self._cancelled = True
        self._lost = True
        return first

    def mark_cancelled(self) -> None:
        """Record that the event was cancelled after this node had claimed it."""
        self._cancelled = True

    def lease_us(self, now: float) -> int:
        """Return the length of the next renewal: never less than the handler asked for."""
        return max(self._options.lease, int((max(self._wanted_until) - now) * 1_000_000))

    def reserve(self, verdict: Verdict) -> bool:
        """
        Commit to settling this lease with *verdict*; return False if another party already has.

        Waits while another thread is settling the lease. If that thread fails, this one may try.
        """
        end = _End(verdict)
        # Nearly always this call is the first.
        return self._end.setdefault("by", end) is end or self._reserve(end)

    def _reserve(self, end: _End) -> bool:
        while (by := self._end.setdefault("by", end)) is not end:
            if by.thread in (None, threading.get_ident()):
                return False
            # The wait has a limit: the other thread may be interrupted by a signal handler that
            # waits for this thread. If no party settles the lease, it expires. Give up as well if
            # the entry of a failed settling is still there: an exception prevented its removal.
            over = by.over.wait(self._longest_wait)
            if not over or (self._end.get("by") is by and by.thread is not None):
                self.abandoned = True
                return False
        return True

    def settlement(
        self, verdict: Verdict, *, wait: int = 0, error: str = "", reason: str = ""
    ) -> Settlement:
        """Return the settlement of this lease with *verdict*."""
        return Settlement(self.claim.id, self.claim.token, verdict, wait, error, reason)

    def settle_later(
        self, verdict: Verdict, *, wait: int = 0, error: str = "", reason: str = ""
    ) -> bool:
        """
        Have the next claim settle this lease; return False if another party settles it.

        Args:
            verdict: How to settle it.
            wait: The µs until the next start, for RETRY and SNOOZE.
            error: The text of the dead letter, for RETRY and BURY.
            reason: A `Reason`, for BURY and SNOOZE. The event keeps the time of its first snooze
                for this reason: see `Claim.snoozed_for_us`.
        """
        if not self.reserve(verdict):
            return False
        self._owner.settle([self.settlement(verdict, wait=wait, error=error, reason=reason)])
        return True

    def backoff_us(self, error: BaseException | None = None) -> tuple[int, Exception | None]:
        """
        Return the wait before the next attempt.

        Args:
            error: The exception of the handler; None if it has asked for a retry.

        Returns:
            The wait, and the exception of the user's ``backoff`` function if it raised. The wait
            is then that of the default backoff.
        """
        try:
            if self.backoff is not None:
                return kind_wait_us(self.backoff, self.claim.attempt, error), None
            return wait_us(self._options.backoff, self.claim.attempt), None
        except Exception as e:
            return wait_us(exponential, self.claim.attempt), e

    def _settle(self, settlement: Settlement) -> Outcome | None:
        end = _End(settlement.verdict, threading.get_ident())
        by = self._end.get("by")
        if by is not None and by.thread == end.thread:
            raise OutcomeUnknown("this call interrupts a call that is settling the event already")
        try:
            if not self._reserve(end):
                return None
            if armed:
                reached("settle.sending")
            result = self._store.settle([settlement])[0]
            if result is Outcome.STALE:
                self.mark_lost()
            elif result is Outcome.CANCELLED:
                self.mark_cancelled()
            end.thread = None
        except BaseException as e:
            if self._end.get("by") is end:
                # Allow another attempt. If none is made, the lease expires and the event is
                # delivered again.
                self._end.pop("by")
                refused = isinstance(e, StoreError) and not isinstance(e, OutcomeUnknown)
                self.superseded = self.superseded or not refused
            raise
        finally:
            end.over.set()
        self._owner.ended(self, result)
        return result

    # Called by `Event`

    def confirm(self) -> bool:
        """See `Event.confirm`."""
        result = self._settle(self.settlement(Verdict.CONFIRM))
        if result is None:
            return self.verdict is Verdict.CONFIRM and not self._lost
        return result is Outcome.DONE

    def retry(self, delay: Duration | None) -> bool:
        """See `Event.retry`."""
        wait = self.backoff_us()[0] if delay is None else max(0, duration_us(delay, "delay"))
        retry = self.settlement(Verdict.RETRY, wait=wait, error="the handler asked for a retry")
        return self._settle(retry) is Outcome.DONE

    def snooze(self, delay: Duration) -> bool:
        """See `Event.snooze`."""
        wait = max(SHORTEST_SNOOZE_US, duration_us(delay, "delay"))
        return self._settle(self.settlement(Verdict.SNOOZE, wait=wait)) is Outcome.DONE

    def bury(self, text: str) -> bool:
        """See `Event.bury`."""
        if not isinstance(text, str):
            raise OptionError(f"text must be a str, not {summary.typed(text)}")
        bury = self.settlement(Verdict.BURY, error=bounded(text), reason=Reason.BURIED)
        return self._settle(bury) is Outcome.DEAD

    def extend(self, ms: Duration) -> bool:
        """See `Event.extend`."""
        us = max(0, duration_us(ms, "ms"))
        if self.settled:
            return False
        # While the handler runs, heartbeats renew the lease: the handler can only lengthen it.
        running, wanted, sent = self.running, self._wanted_until, time.monotonic()
        until = sent + us / 1_000_000
        # Before the request is sent: if a heartbeat that is under way shortens the lease, it
        # sees this value with its reply, and renews the lease again.
        if running:
            wanted.append(until)
        else:
            self._wanted_until = [until]
        try:
            held = self._store.extend([self.key], us, at_least=running)[0]
        except OutcomeUnknown:
            raise
        except BaseException:
            if running:
                _remove(wanted, [until])
            elif self._wanted_until == [until]:
                self._wanted_until = wanted
            raise
        if not held:
            self.mark_lost()
            return False
        if held is Renewal.CANCELLED:
            self.mark_cancelled()
        if running:
            _remove(wanted, [moment for moment in wanted[:] if moment < until])
        trusted = trusted_until(sent, us)
        self._trusted_until = max(trusted, self._trusted_until) if running else trusted
        return True

    def lost(self, now: float | None = None) -> bool:
        """See `Event.lease_lost`. *now*, from `boottime`, saves a clock read for each lease."""
        if self._lost or self._end:
            return self._lost
        return (boottime() if now is None else now) > self._trusted_until

    def cancelled(self) -> bool:
        """See `Event.cancelled`."""
        return self._cancelled
