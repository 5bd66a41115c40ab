"""A hold on one event in hand: who settles it, once, and until when it may be believed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from dtimer.engine.flag import Flag
from dtimer.engine.pace import lasting
from dtimer.errors import OutcomeUnknown, StoreError
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import Claim, Result, Settlement, Verdict
from dtimer.model.event import Event
from dtimer.model.moments import Duration, duration_us
from dtimer.model.options import Options
from dtimer.model.retry import exponential, wait_us

#: The part of a lease that is believed: the rest is for clocks that drift and for replies
#: that take their time.
_BELIEVED = 0.9


class Ledger(Protocol):
    """Where claims are settled at once, outside a turn."""

    def settle(self, settlements: Sequence[Settlement]) -> list[Result]:
        """End claims, and tell what became of each."""
        ...

    def extend(
        self, held: Sequence[tuple[str, int]], lease_us: int, *, at_least: bool = False
    ) -> list[bool]:
        """Renew leases, and tell which are still held; *at_least*: shorten none."""
        ...


def believed_until(sent: float, lease_us: int) -> float:
    """Return until when to believe in a lease that was asked for at *sent*."""
    # In this order: a process that is stopped in between believes too little.
    now = lasting()
    age = time.monotonic() - sent
    return now - age + lease_us / 1_000_000 * _BELIEVED


_UNUSED = Flag()


class _End:
    """Who settles a claim, and how; with the *thread* while that asks the store, or without."""

    __slots__ = ("over", "thread", "verdict")

    def __init__(self, verdict: Verdict, thread: int | None = None) -> None:
        self.verdict = verdict
        self.thread = thread
        #: Set when the store has answered, or has not.
        self.over = _UNUSED if thread is None else Flag()


class Hold:
    """
    The hold on one claimed event: what `Event` asks, and what the dispatcher knows of it.

    An event is settled by whoever comes first: the handler by asking, or the hand when
    the handler has ended. The other finds it settled.
    """

    def __init__(
        self,
        claim: Claim,
        options: Options,
        ledger: Ledger,
        ended: Callable[[Hold, Result], None],
        believed_until: float,
    ) -> None:
        self.claim = claim
        self.event: Event | None = None
        self.started: float | None = None
        #: True once this process has posted the id anew, or may have ended the claim without
        #: hearing of it: then to lose it is no surprise.
        self.superseded = False
        #: True until the handler has returned and left the settling to others.
        self.running = True
        self._options = options
        self._ledger = ledger
        self._ended = ended
        # Under its only key, who settles the claim: whoever comes first, in one step.
        self._end: dict[str, _End] = {}
        self._lost = False
        self._extended_until = 0.0
        self._believed_until = believed_until

    @property
    def _patience(self) -> float:
        # A call of the store ends before.
        return 2 * self._options.timeout / 1e6

    @property
    def key(self) -> tuple[str, int]:
        """The id and the token, which together name a claim."""
        return self.claim.id, self.claim.token

    @property
    def verdict(self) -> Verdict | None:
        """How the claim ends, once somebody has taken it on himself to end it."""
        end = self._end.get("by")
        return None if end is None else end.verdict

    @property
    def settled(self) -> bool:
        """True once somebody has taken it on himself to end the claim."""
        return bool(self._end)

    def renewed(self, sent: float, lease_us: int) -> None:
        """Note that a lease was granted by a request that went out at *sent*."""
        self._believed_until = believed_until(sent, lease_us)

    def doubt(self) -> None:
        """Believe in the lease no more until it has been renewed."""
        self._believed_until = 0.0

    def lose(self) -> bool:
        """Note that the server no longer counts us as the holder; True the first time."""
        first = not self._lost
        self._lost = True
        return first

    def lease_us(self, now: float) -> int:
        """Return how long to renew the lease for: never for less than the handler asked."""
        return max(self._options.lease, int((self._extended_until - now) * 1_000_000))

    def take(self, verdict: Verdict) -> bool:
        """
        Reserve the settling of this claim; False when somebody else has.

        Waits while another thread is at it: if that fails, this one may.
        """
        return self._reserve(_End(verdict))

    def _reserve(self, end: _End) -> bool:
        while (by := self._end.setdefault("by", end)) is not end:
            # Not for ever: a signal handler may have interrupted that thread, and wait for this
            # one. The lease decides then.
            if by.thread in (None, threading.get_ident()) or not by.over.wait(self._patience):
                return False
        return True

    def settlement(self, verdict: Verdict, *, wait: int = 0, error: str = "") -> Settlement:
        """Write down how this claim ends."""
        return Settlement(self.claim.id, self.claim.token, verdict, wait, error)

    def backoff_us(self) -> tuple[int, Exception | None]:
        """Return the wait before the next attempt, and what went wrong in asking for it."""
        try:
            return wait_us(self._options.backoff, self.claim.attempt), None
        except Exception as e:
            return wait_us(exponential, self.claim.attempt), e

    def _settle(self, settlement: Settlement) -> Result | None:
        end = _End(settlement.verdict, threading.get_ident())
        by = self._end.get("by")
        if by is not None and by.thread == end.thread:
            raise OutcomeUnknown("the call that this one interrupts is settling the event")
        try:
            if not self._reserve(end):
                return None
            if armed:
                reached("settle.sending")
            result = self._ledger.settle([settlement])[0]
            if result is Result.STALE:
                self.lose()
            end.thread = None
        except BaseException as e:
            if self._end.get("by") is end:
                # It may be asked again; the lease decides when nobody does.
                self._end.pop("by")
                refused = isinstance(e, StoreError) and not isinstance(e, OutcomeUnknown)
                self.superseded = self.superseded or not refused
            raise
        finally:
            end.over.set()
        self._ended(self, result)
        return result

    # What `Event` asks

    def confirm(self) -> bool:
        """See `Event.confirm`."""
        result = self._settle(self.settlement(Verdict.CONFIRM))
        if result is None:
            return self.verdict is Verdict.CONFIRM and not self._lost
        return result is Result.DONE

    def retry(self, delay: Duration | None) -> bool:
        """See `Event.retry`."""
        wait = self.backoff_us()[0] if delay is None else max(0, duration_us(delay, "delay"))
        asked = self.settlement(Verdict.RETRY, wait=wait, error="the handler asked for a retry")
        return self._settle(asked) is Result.DONE

    def extend(self, ms: Duration) -> bool:
        """See `Event.extend`."""
        us = max(0, duration_us(ms, "ms"))
        if self.settled:
            return False
        # While a handler runs its heartbeats hold the event: it may ask for more, not for less.
        running, before, sent = self.running, self._extended_until, time.monotonic()
        until = sent + us / 1_000_000
        # Before it is sent: a heartbeat that is on its way meanwhile finds the wish when it
        # is answered, and is sent again.
        wish = self._extended_until = max(before, until) if running else until
        try:
            held = self._ledger.extend([self.key], us, at_least=running)[0]
        except OutcomeUnknown:
            raise
        except BaseException:
            if self._extended_until == wish:
                self._extended_until = before
            raise
        if not held:
            self.lose()
            return False
        believed = believed_until(sent, us)
        self._believed_until = max(believed, self._believed_until) if running else believed
        return True

    def lost(self, now: float | None = None) -> bool:
        """See `Event.lease_lost`; *now* is that of `lasting`, for who asks of many at once."""
        if self._lost or self._end:
            return self._lost
        return (lasting() if now is None else now) > self._believed_until
