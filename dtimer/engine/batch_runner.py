"""
The batch runner: calls the handlers of a batch, and settles its leases afterwards.

To settle a lease is to end it: by a confirm, a retry, a release or a dead letter. A lease is
settled once: by the handler itself, or else by its thread after the handler.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from dtimer import log as messages
from dtimer.engine.batch_results import BatchResults
from dtimer.engine.batching import Batching
from dtimer.engine.error_text import bounded, describe
from dtimer.engine.lease import Lease
from dtimer.engine.ports import Consumer, Host
from dtimer.engine.seat import Seat
from dtimer.errors import HandlerError, SkipRetry
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import Verdict
from dtimer.model.emission import with_contexts
from dtimer.model.outcomes import Reason


def _skips(error: BaseException) -> Iterator[SkipRetry]:
    """Yield *error*, or those of a group, which a task group raises."""
    if isinstance(error, SkipRetry):
        yield error
    elif isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _skips(each)


class BatchRunner:
    """
    Runs batches on the threads that call it.

    Args:
        seat: The namespace of the events.
        batching: Learns how long handlers take.
        consumer: Has the handlers.
        host: Quits if a handler raises SystemExit or KeyboardInterrupt.
    """

    def __init__(self, seat: Seat, batching: Batching, consumer: Consumer, host: Host) -> None:
        self._seat = seat
        self._leases = seat.leases
        self._announcements = seat.announcements
        self._log = seat.log
        self._auto_confirm = seat.options.auto_confirm
        self._batching = batching
        self._consumer = consumer
        self._host = host
        #: True once the node leaves: batches that no handler has started are then released.
        self.releasing: bool = False

    def run(self, batch: list[Lease]) -> None:
        """Run the handlers of *batch* and settle it. Any exception retries what is unsettled."""
        try:
            if armed:
                reached("loop.handler")
            if self.releasing:
                self._leases.settle_as(batch, Verdict.RELEASE)
                return
            results = BatchResults(batch, self._seat, self._fail)
            raised = self._handle(batch, results)
            if raised is None:
                # The last listener was removed after the claim.
                self._leases.release(batch)
                return
            rest = results.rest(failed=bool(raised)) if results.begun else batch
            if raised:
                self._fail(rest, raised)
            elif self._auto_confirm:
                self._leases.settle_as(rest, Verdict.CONFIRM)
            else:
                self._hand_over(rest)
        except BaseException as e:
            self._retry_unsettled(batch, e)
            raise

    def _handle(self, batch: list[Lease], results: BatchResults) -> list[BaseException] | None:
        started = time.monotonic()
        for lease in batch:
            lease.started = started
        events: list[Any] = [lease.event for lease in batch]
        if self._log.debugging:
            self._log.add_events(messages.STARTED, [lease.claim.id for lease in batch])
        if armed:
            reached("handler.before")
        raised = self._consumer.deliver(events, results)
        self._batching.handler_took(time.monotonic() - started)
        if armed:
            reached("handler.after")
        return raised

    def _hand_over(self, batch: list[Lease]) -> None:
        """Leave the events to the user's code, which settles them before the leases expire."""
        # From now on the heartbeat does not renew them.
        self._leases.drop(batch)
        for lease in batch:
            lease.running = False

    def _retry_unsettled(self, batch: list[Lease], error: BaseException) -> None:
        """Retry the unsettled events of a batch whose thread failed outside the handler."""
        # Reserve all leases first. Then none is renewed any more, even if a later step fails.
        left = self._leases.reserve(batch, Verdict.RETRY)
        text = describe(error)
        for lease in left:
            wait = lease.backoff_us()[0]
            self._leases.settle([lease.settlement(Verdict.RETRY, wait=wait, error=text)])

    def _fail(self, batch: Sequence[Lease], raised: list[BaseException]) -> None:
        done = [error for error in raised if self._skip(batch, error)]
        failed = self._leases.reserve(batch, Verdict.RETRY)
        events = [lease.event for lease in failed if lease.event is not None]
        text = describe(raised[0])
        for lease in failed:
            wait, trouble = lease.backoff_us(raised[0])
            if trouble is not None:
                self._announcements.announce("error", trouble)
            self._leases.settle([lease.settlement(Verdict.RETRY, wait=wait, error=text)])
        for error, context in with_contexts(raised):
            if error in done and not failed:
                continue
            # A listener of 'error' may report what the handler has put into context variables.
            self._announcements.announce("error", HandlerError(error, events), context=context)
            if not isinstance(error, Exception):
                self._host.quit()

    def _skip(self, batch: Sequence[Lease], error: BaseException) -> bool:
        """Bury the events that `SkipRetry` names; return True if *error* asks for nothing else."""
        buried = False
        for skip in _skips(error):
            left = [lease for lease in batch if not lease.settled]
            tokens = {ev.token for ev in skip.events}
            if tokens:
                left = [lease for lease in left if lease.claim.token in tokens]
            elif len(left) > 1:
                # It may mean any of them. All are retried, because a retry loses nothing.
                left = []
            for lease in left:
                text = bounded(skip.text)
                buried |= lease.settle_later(Verdict.BURY, error=text, reason=Reason.BURIED)
        only = isinstance(error, SkipRetry) or (
            isinstance(error, BaseExceptionGroup) and error.split(SkipRetry)[1] is None
        )
        return buried and only
