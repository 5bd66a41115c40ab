"""
The results of single events: how routers have handled each event of a batch.

If one router is the only listener, each event is settled when its route has returned, and the next
claim carries the settlement. Otherwise the results wait until all listeners of the batch have
returned, because another listener may still fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from dtimer.engine.clock import boottime
from dtimer.engine.lease import Lease
from dtimer.engine.seat import Seat
from dtimer.model.claims import Verdict
from dtimer.model.event import Event
from dtimer.model.kinds import KindBackoff, UnknownPolicy

#: Fails leases whose handler has raised.
Fail = Callable[[Sequence[Lease], list[BaseException]], None]


class BatchResults:
    """
    Takes the results of the events of one batch, on the thread that runs it. See `EventResults`.

    Args:
        batch: The leases of the batch.
        seat: The namespace of the events.
        fail: Fails leases whose handler has raised.
    """

    __slots__ = (
        *("_batch", "_by_token", "_early", "_fail", "_handled", "_later", "_left", "_seat"),
        *("_stopped", "_unknown", "begun"),
    )

    def __init__(self, batch: Sequence[Lease], seat: Seat, fail: Fail) -> None:
        self._batch = batch
        self._seat = seat
        self._fail = fail
        self._early = False
        #: True once a router takes part. `begin` then sets the other fields.
        self.begun: bool = False

    def begin(self, *, alone: bool) -> None:
        """See `EventResults`."""
        self.begun = True
        self._early = alone and self._seat.options.auto_confirm
        self._by_token: dict[int, Lease] = {lease.claim.token: lease for lease in self._batch}
        # How many events of the batch have no result.
        self._left = len(self._batch)
        self._stopped = False
        # If nothing is settled early: the tokens of the events that a route has handled, the calls
        # that settle others, with their tokens, and those that put off events of unknown kinds.
        self._handled: set[int] = set()
        self._later: list[tuple[set[int], Callable[[], None]]] = []
        self._unknown: list[tuple[int, Callable[[], None]]] = []

    def starts(self, events: Sequence[Event], backoff: KindBackoff | None) -> list[Event]:
        """See `EventResults`."""
        now, started = boottime(), time.monotonic()
        startable: list[Event] = []
        for event in events:
            lease = self._by_token[event.token]
            if lease.settled:
                self._left -= 1
            elif now > lease.event_expires_at or lease.lost(now):
                lease.started = None
                self._do([event], partial(self._release, [lease]))
            else:
                lease.started, lease.backoff = started, backoff
                startable.append(event)
        return startable

    def done(self, events: Sequence[Event]) -> None:
        """See `EventResults`."""
        if self._early:
            leases = [self._by_token[event.token] for event in events]
            self._seat.leases.settle_as(leases, Verdict.CONFIRM)
            self._settled_early(len(events))
        else:
            self._handled.update(event.token for event in events)

    def failed(self, events: Sequence[Event], raised: list[BaseException]) -> None:
        """See `EventResults`."""
        leases = [self._by_token[event.token] for event in events]
        self._do(events, partial(self._fail, leases, raised))

    def stop(self) -> None:
        """See `EventResults`."""
        self._stopped = True
        if self._early:
            self._release([lease for lease in self._batch if not lease.settled])

    def unknown(self, event: Event, kind: object, policy: UnknownPolicy) -> None:
        """See `EventResults`."""
        lease = self._by_token[event.token]
        lease.started = None
        put_off = partial(self._seat.unknown_kinds.put_off, lease, kind, policy)
        if self._early:
            self._do([event], put_off)
        else:
            self._unknown.append((event.token, put_off))

    def rest(self, *, failed: bool) -> list[Lease]:
        """
        Settle the results that have waited, and return the leases that the results do not settle.

        All listeners of the batch have returned.

        Args:
            failed: Whether a plain listener has raised. This fails the events that a route has
                handled, and those of unknown kinds.
        """
        if self._early:
            return []
        settled: set[int] = set()
        for tokens, settle in self._later:
            settle()
            settled |= tokens
        # Another router may have handled an event whose kind this one does not know.
        for token, put_off in () if failed else self._unknown:
            if token not in self._handled:
                put_off()
                settled.add(token)
        left = [lease for lease in self._batch if lease.claim.token not in settled]
        if self._stopped and not failed:
            self._release([lease for lease in left if lease.claim.token not in self._handled])
            left = [lease for lease in left if lease.claim.token in self._handled]
        return left

    def _release(self, leases: Sequence[Lease]) -> None:
        self._seat.leases.settle_as(leases, Verdict.RELEASE)

    def _do(self, events: Sequence[Event], settle: Callable[[], None]) -> None:
        if self._early:
            settle()
            self._settled_early(len(events))
        else:
            self._later.append(({event.token for event in events}, settle))

    def _settled_early(self, count: int) -> None:
        self._left -= count
        # After its last event this thread claims itself.
        if self._left > 0:
            self._seat.leases.carry_soon()
