"""
The pipeline of claims: one request at a time, sent again until its reply arrives.

While the server works on a request, the node may dispatch the events of the previous reply.
"""

from __future__ import annotations

import contextlib
import time

from dtimer.engine.capacity import Capacity
from dtimer.engine.listener import Listener
from dtimer.engine.ports import ClaimStore
from dtimer.log import Log
from dtimer.model.claims import ClaimReply, ClaimRequest, PendingReply, Settlement


class Pipeline:
    """
    Builds and sends the requests of claims and receives their replies.

    Used by one thread at a time.

    Args:
        store: The store, as the engine uses it.
        listener: Waits for the echoes that claims send.
        capacity: Limits the bytes of a claim.
        log: The node's log.
    """

    def __init__(self, store: ClaimStore, listener: Listener, capacity: Capacity, log: Log) -> None:
        self._store = store
        self._listener = listener
        self._capacity = capacity
        self._log = log
        #: The number of the last request.
        self.seq: int = 0
        #: The request whose reply has not been received; None if there is none.
        self.request: ClaimRequest | None = None
        #: Set if that request was sent and its reply, which may have arrived, is still unread.
        self.pending: PendingReply | None = None
        #: When a request was last sent, on the monotonic clock.
        self.sent: float = 0.0

    def new_request(
        self, settlements: list[Settlement], limit: int, ahead_us: int, *, hears: bool
    ) -> ClaimRequest:
        """
        Make the next request. It is not sent yet.

        Args:
            settlements: The settlements that it carries.
            limit: How many events to claim.
            ahead_us: How far ahead of their due time.
            hears: Whether a wake would reach the node and find a free thread.
        """
        self.seq += 1
        request = ClaimRequest(
            seq=self.seq,
            limit=limit,
            ahead_us=ahead_us,
            hears=hears,
            echo=self._listener.echo_wanted,
            settlements=settlements,
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

        The caller clears `request` once it has the reply. Until then, it is sent again.
        """
        read_late = self.pending is not None
        answer, self.pending = self.pending or self._send(request), None
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

    def send_ahead(self, request: ClaimRequest) -> None:
        """
        Send *request* without waiting for its reply.

        An error is ignored here: the request stays, and sending it again shows the error.
        """
        with contextlib.suppress(Exception):
            self.pending = self._send(request)
