"""How much of a claim the connection is good for, learned from replies that broke off."""

from __future__ import annotations

import time
from collections.abc import Callable

from dtimer.errors import StoreError
from dtimer.model.claims import BrokenReply, Turn, TurnRequest
from dtimer.model.options import Options

# What any connection is asked to carry within a try, and what the store sends unasked.
_LEAST, _USUAL = 10_000, 1_000_000

# A reply that takes a smaller part of the time for a try leaves room for one of twice its size.
_QUICK = 4


class Capacity:
    """
    Bounds the bytes that a turn claims, after the reply to one broke off while bytes arrived.

    The turn is asked again for half of what arrived. If that breaks off as well, its first event
    alone is too large: for the length of a lease larger ones are passed over, so that what comes
    after them is not kept waiting, and other nodes can have them.

    For one thread at a time.

    Args:
        options: The node's.
        announce: Has something emitted soon.
    """

    def __init__(self, options: Options, announce: Callable[..., None]) -> None:
        self._announce = announce
        self._pause = options.lease / 1e6
        # A try lasts about as long while its reply arrives (store/store.py).
        self._longest = min(options.timeout, options.lease / 3) / 1e6
        #: How many bytes to ask for; None as long as nothing is known against the usual.
        self.most: int | None = None
        # Since when larger ones are passed over, and the last turn whose reply broke off.
        self._strict_since: float | None = None
        self._broken = 0
        # Once until it is as good as any: between two failures it may do for a claim or two.
        self._told = False
        #: Why less than the usual is asked for; None again when a claim has arrived whole.
        self.error: Exception | None = None

    def bound(self, request: TurnRequest) -> None:
        """Ask in *request* for no more than the connection is good for."""
        request.most_bytes = self.most
        since = self._strict_since
        request.strict = since is not None and time.monotonic() < since + self._pause

    def broke(self, request: TurnRequest, error: Exception) -> bool:
        """
        Note that *request* was not answered, because of *error*.

        Returns:
            True if less is to be asked for, because the answer had begun to arrive.
        """
        if not isinstance(error, BrokenReply) or not (error.slow or request.asked):
            # A connection that was reset amid a reply says nothing of its speed.
            return False
        self.most = max(_LEAST, error.arrived // 2)
        too_large = self._broken == request.seq or self._strict_since is not None
        self._broken = request.seq
        less = "fewer events are claimed at a time"
        if too_large:
            self._strict_since = time.monotonic()
            less = f"events of more than {self.most} bytes are left to other nodes for a while"
        told = StoreError(f"the connection is too slow for what is claimed; {less}: {error}")
        told.__cause__ = error
        self.error = told
        if not self._told:
            self._told = True
            self._announce("error", told)
        return True

    def received(self, request: TurnRequest, turn: Turn, took: float | None) -> None:
        """
        Note that *turn* has arrived, in so many seconds where that is known.

        Args:
            request: What was asked.
            turn: The answer.
            took: None where the reply lay unread, for nobody knows how long.
        """
        if self.most is None:
            return
        if turn.claims and took is not None and took < self._longest / _QUICK:
            self.most *= 2
        if request.strict or (request.asked and not turn.claims):
            # What was passed over, or handed back, has not arrived.
            return
        self._strict_since = self.error = None
        if self.most >= _USUAL:
            self.most = None
            self._told = False
