"""Limit the size of claims on a slow connection, as learned from interrupted replies."""

from __future__ import annotations

import time

from dtimer.engine.ports import Announcements
from dtimer.errors import StoreError
from dtimer.model.claims import BrokenReply, ClaimReply, ClaimRequest
from dtimer.model.options import Options

# Bytes: the lowest limit, which any connection must carry within one try, and the store's default.
_LEAST, _USUAL = 10_000, 1_000_000

# If a reply takes less than this fraction (1/4) of a try's time, the limit is doubled.
_QUICK = 4


class Capacity:
    """
    Limits the bytes that a claim asks for, once a reply has broken off while bytes arrived.

    The claim is sent again, with a limit of half the bytes that arrived. If that reply breaks off
    as well, the first event alone is too large. For the length of a lease, claims then skip
    larger events: the events behind them need not wait, and other nodes can claim the large ones.

    Used by one thread at a time.

    Args:
        options: The node's options.
        announcements: Emits ``'error'`` for a slow connection.
    """

    def __init__(self, options: Options, announcements: Announcements) -> None:
        self._announcements = announcements
        self._strict_seconds = options.lease / 1e6
        # About the longest that a try may take while its reply arrives (store/store.py).
        self._longest = min(options.timeout, options.lease / 3) / 1e6
        #: The limit in bytes; None for the store's default.
        self.most: int | None = None
        # Since when claims skip larger events, and the number of the last interrupted claim.
        self._strict_since: float | None = None
        self._broken = 0
        # Reported once until the default limit is reached again. A claim or two may succeed
        # between two failures, so a success does not reset this flag.
        self._reported = False
        #: Why the limit is low; None again as soon as a claim's reply has arrived completely.
        self.error: Exception | None = None

    def bound(self, request: ClaimRequest) -> None:
        """Put the current limit into *request*."""
        request.most_bytes = self.most
        since = self._strict_since
        request.strict = since is not None and time.monotonic() < since + self._strict_seconds

    def reply_broke_off(self, request: ClaimRequest, error: Exception) -> bool:
        """
        Record that *error* prevented the reply to *request*; lower the limit if necessary.

        Returns:
            True if the limit was lowered, because the reply had begun to arrive.
        """
        if not isinstance(error, BrokenReply) or not (error.timed_out or request.resends):
            # A connection that was reset during its first reply need not be slow.
            return False
        self.most = max(_LEAST, error.arrived // 2)
        too_large = self._broken == request.seq or self._strict_since is not None
        self._broken = request.seq
        less = "fewer events are claimed at a time"
        if too_large:
            self._strict_since = time.monotonic()
            less = f"events of more than {self.most} bytes are left to other nodes for a while"
        report = StoreError(f"the connection is too slow for the claimed events; {less}: {error}")
        report.__cause__ = error
        self.error = report
        if not self._reported:
            self._reported = True
            self._announcements.announce("error", report)
        return True

    def received(self, request: ClaimRequest, reply: ClaimReply, took: float | None) -> None:
        """
        Record that the reply to *request* has arrived completely; raise the limit if it was quick.

        Args:
            request: The claim's request.
            reply: Its reply.
            took: The seconds from sending to receiving. None if the reply waited unread, because
                its arrival time is then unknown.
        """
        if self.most is None:
            return
        if reply.claims and took is not None and took < self._longest / _QUICK:
            self.most *= 2
        if request.strict or (request.resends and not reply.claims):
            # Large events were skipped, or released unread: a small reply proves nothing.
            return
        self._strict_since = self.error = None
        if self.most >= _USUAL:
            self.most = None
            self._reported = False
