"""
The pipeline of claims: one request at a time, sent again until its reply arrives.

While the server works on a request, the node may dispatch the events of the previous reply.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from dtimer.engine.capacity import Capacity
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.listener import Listener
from dtimer.engine.ports import ClaimStore
from dtimer.model.claims import ClaimReply, ClaimRequest, Outcome, PendingReply


class Pipeline:
    """
    Builds and sends the requests of claims and receives their replies.

    Used by one thread at a time.

    Args:
        store: The store, as the engine uses it.
        listener: Waits for the echoes that claims send.
        dispatcher: Decides how much to claim. Has the settlements and the log of the node.
        demand: Returns how many events the listeners or readers can take.
        capacity: Limits the bytes of a claim.
    """

    def __init__(
        self,
        store: ClaimStore,
        listener: Listener,
        dispatcher: Dispatcher,
        demand: Callable[[], int],
        capacity: Capacity,
    ) -> None:
        self._store = store
        self._listener = listener
        self._dispatcher = dispatcher
        self._log = dispatcher.log
        self._demand = demand
        self._capacity = capacity
        self._seq = 0
        self._pending: PendingReply | None = None
        #: The request whose reply has not been received; None if there is none.
        self.request: ClaimRequest | None = None
        #: When a request was last sent, on the monotonic clock.
        self.sent: float = 0.0

    @property
    def reply_outstanding(self) -> bool:
        """True if a request was sent and its reply, which may have arrived, is still unread."""
        return self._pending is not None

    def next_request(self, claiming: bool) -> ClaimRequest:
        """Return the request that still has no reply or, if there is none, a new unsent one."""
        if self.request is not None:
            if not (claiming or self.reply_outstanding):
                # The node leaves. With this limit the server releases the events of this claim, and
                # does not send them again.
                self.request.most_bytes, self.request.strict = 0, True
            return self.request
        limit, ahead_us = self._dispatcher.claim_size(self._demand()) if claiming else (0, 0)
        return self._new(limit, ahead_us, hears=self._listener.hears and claiming)

    def _new(self, limit: int, ahead_us: int = 0, *, hears: bool) -> ClaimRequest:
        self._seq += 1
        request = ClaimRequest(
            seq=self._seq,
            limit=limit,
            ahead_us=ahead_us,
            hears=hears,
            echo=self._listener.echo_wanted,
            settlements=self._dispatcher.take_settlements(),
        )
        if self._capacity.most is not None:
            self._capacity.bound(request)
        return request

    def _send(self, request: ClaimRequest) -> PendingReply:
        if request is self.request:
            request.resends += 1
        self.request = request
        self.sent = time.monotonic()
        if self.sent >= self._log.fresh_until:
            self._log.refresh()
        if request.echo and not request.resends:
            # Before the request is sent, because the echo may be heard before this thread runs
            # again. Only for the first try: if its reply alone was lost, the server sends no
            # second echo.
            self._listener.echo_sent()
        try:
            return self._store.start_claim(request)
        except BaseException:
            self._listener.echo_failed()
            raise

    def receive(self, request: ClaimRequest) -> ClaimReply:
        """
        Wait for the reply to *request*, and send the request first unless it is under way.

        Until `done` is called, `next_request` returns the same request, to be sent again.
        """
        read_late = self._pending is not None
        answer, self._pending = self._pending or self._send(request), None
        try:
            reply = answer(read_late=read_late)
        except BaseException:
            self._listener.echo_failed()
            raise
        if self._capacity.most is not None:
            took = None if read_late else time.monotonic() - self.sent
            self._capacity.received(request, reply, took)
        return reply

    def reply_broke_off(self, request: ClaimRequest, error: Exception) -> bool:
        """If the reply broke off while it arrived, lower the limit of *request* and return True."""
        broke_off = self._capacity.reply_broke_off(request, error)
        if broke_off:
            self._capacity.bound(request)
        return broke_off

    def done(self) -> None:
        """Record that the reply was received, so that the request is not sent again."""
        self.request = None

    def next_limit(self, request: ClaimRequest, reply: ClaimReply) -> int:
        """Return how many events to claim before the events of *reply* are dispatched."""
        count = len(reply.claims)
        # If the claim did not look ahead, all its events were due, and no claim is parsed here.
        overdue = count > 0 and (not request.ahead_us or reply.claims[-1].due_us <= reply.now_us)
        self._dispatcher.batching.claim_answered(request.limit, count, overdue=overdue)
        if (
            self._store.busy
            or not reply.known
            or reply.buried
            or reply.short
            or Outcome.DEAD in reply.results
        ):
            # Each of these needs a call to the store first.
            return 0
        return self._dispatcher.next_claim_size(request.limit, count, self._demand())

    def send_next(self, limit: int) -> None:
        """
        Send the next request, so that the server works on it while events are dispatched.

        An error is ignored here: `next_request` returns the request again, and sending it again
        shows the error.
        """
        # Send `hears=False`: all threads are busy, so a wake would find none free. Start tracking
        # re-posts first, because this reply will wait unread.
        self._dispatcher.superseded_ids.begin(self._seq + 1)
        request = self._new(limit, hears=False)
        with contextlib.suppress(Exception):
            self._pending = self._send(request)
