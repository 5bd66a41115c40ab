"""
What was claimed ahead of its time, until that has come; and ahead of a hand's.

A claim takes a round trip, which to an event that is due is lateness. So a turn also claims what
falls due within the next moments, and the node waits for the rest of it here. It cannot be early:
the time that is left was told by a script that had run before its reply came, and is counted from
the reply.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import time
from collections.abc import Container, Sequence

from dtimer.engine.hold import Hold
from dtimer.model.options import Options

# For so many seconds a node without others keeps what is due and finds no handler thread. To
# release it would be to claim it again; but until then it cannot be cancelled or moved.
_ALONE = 1.0

# The part of a lease that may go by before a handler begins.
_OF_A_LEASE = 10


def ahead_us(options: Options) -> int:
    """Return how far ahead a node of these *options* claims, in µs."""
    # A clock that is told by hand does not go on while a thread waits.
    return 0 if options.now else min(options.look_ahead, options.lease // _OF_A_LEASE)


#: When it is due by the server, its id, a number that no other has, when it is to start, and it.
_Entry = tuple[int, str, int, float, Hold]


class Early:
    """
    Holds in the order in which they are due. For any thread, without a lock.

    Each hold is kept and removed by one step of the interpreter, and belongs to the caller that
    has removed it. So a signal handler that interrupts a change may make another.
    """

    def __init__(self, options: Options) -> None:
        self.ahead_us = ahead_us(options)
        #: For how many seconds what is due is kept for a hand; by then another node may have one.
        self.patience = self.ahead_us / 1e6
        #: The same where no other node is there.
        self.alone_patience = max(
            self.patience, min(_ALONE, options.lease / 1e6 / _OF_A_LEASE) if self.ahead_us else 0
        )
        self._order = itertools.count()
        # In the order of their due times, however long the replies that brought them took.
        self._kept: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, holds: Sequence[Hold], came: float) -> None:
        """Keep *holds*, of which an answer told that *came* at that time on the monotonic clock."""
        for hold in holds:
            due = hold.claim.due_us
            left = due - hold.claim.claimed_us
            # More was never asked for: the server's clock was put back since it was claimed.
            at = came + left / 1e6 if 0 < left <= self.ahead_us else came
            bisect.insort(self._kept, (due, hold.claim.id, next(self._order), at, hold))

    @property
    def next(self) -> float | None:
        """When the first of them is to start, on the monotonic clock; None without any."""
        try:
            return self._kept[0][3]
        except IndexError:
            return None

    def take(self, most: int) -> list[Hold]:
        """Return those that are due, at *most* so many, and forget them."""
        taken: list[Hold] = []
        now = time.monotonic()
        while len(taken) < most and (first := self._remove_first(now)):
            _, _, _, at, hold = first
            if hold.event is not None:
                hold.event.lateness_ms += (now - at) * 1000
            taken.append(hold)
        return taken

    def overdue(self, seconds: float) -> bool:
        """Tell whether any has been due for so long."""
        due = self.next
        return due is not None and due <= time.monotonic() - seconds

    def give_up(self, seconds: float) -> list[Hold]:
        """Return those that have been due for so long, and forget them."""
        late = time.monotonic() - seconds
        given: list[Hold] = []
        while first := self._remove_first(late):
            given.append(first[4])
        return given

    def clear(self, ids: Container[str] | None = None) -> list[Hold]:
        """Return those of these *ids*, or all of them, and forget them."""
        wanted = [e for e in list(self._kept) if ids is None or e[1] in ids]
        return [entry[4] for entry in wanted if self._remove(entry)]

    def _remove_first(self, by: float) -> _Entry | None:
        """Remove and return the first entry if it was to start *by* then."""
        while True:
            with contextlib.suppress(IndexError):
                first = self._kept[0]
                if first[3] > by:
                    return None
                if self._remove(first):
                    return first
                # A signal handler, or another thread, has removed it meanwhile.
                continue
            return None

    def _remove(self, entry: _Entry) -> bool:
        """Remove an entry; False if it is not there any more."""
        try:
            # No two entries have the same number, so holds are never compared.
            self._kept.remove(entry)
        except ValueError:
            return False
        return True
