"""
Compute when a claim was made, on the monotonic clock of the host that recorded the history.

The record of a run has the server's time of the claim, and the token. But the handler may have
begun long after the claim. Two facts give the earliest and the latest moment of the claim, without
relying on equal clocks:

* The distance between the server's clock and the monotonic clock. A claim comes before its handler
  and after its post. A ``clock`` record, whose ``srv`` is the server's ``TIME`` in µs, gives the
  distance to within a round trip. If the server's clock is set during the run, each interval
  between two steps has a distance of its own, which only the ``clock`` records give.
* The tokens, which increase with each claim, even if the clock is set back. A claim came after the
  post of every event that was claimed under a lower token, and before the start of every handler
  under a higher token.
"""

from __future__ import annotations

import bisect
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from chaos.history import Operation

#: The tolerance, in ns, for clocks that run at slightly different speeds.
SLACK = 1_000_000

#: How far, in µs, a token may be ahead of the server's clock if very many events are claimed.
_AHEAD = 1_000

#: The longest time, in ns, between a step of the clock and its record.
_NEAR = 1_000_000_000

#: How many posts and runs are kept for the estimates.
_MOST = 50_000

_ALWAYS = 1 << 62


@dataclass(slots=True)
class Epoch:
    """An interval without a step, and bounds of the server's clock minus the monotonic clock."""

    begin: int
    end: int
    low: int = -_ALWAYS
    high: int = _ALWAYS


class Clock:
    """Collects posts and runs with `saw`, and computes the moments of claims after `close`."""

    def __init__(self) -> None:
        # Only ids whose checksum has none of these bits are kept, so that memory is bounded.
        self._mask = 0
        self._posts: dict[int, Operation] = {}
        self._runs: dict[int, Operation] = {}
        self._asked: list[Operation] = []
        self._low = -_ALWAYS
        # Sorted tokens, and for each the first start of a handler under this or a higher token.
        self._first_starts: tuple[list[int], list[int]] = ([], [])
        # Sorted tokens, and for each the last post whose event has this or a lower token.
        self._last_posts: tuple[list[int], list[int]] = ([], [])
        self._epochs: list[Epoch] = []
        self._begins: list[int] = []
        #: True if the distance between the clocks was constant, except at the recorded steps.
        self.steady = False

    def saw(self, op: Operation) -> None:
        """Take in one operation."""
        if op.op == "run":
            self._low = max(self._low, op.data["srv"] * 1000 - op.t)
        elif op.op == "clock":
            if op.ph == "ok":
                self._asked.append(op)
            return
        if op.id is None or zlib.crc32(op.id.encode(errors="replace")) & self._mask:
            return
        if op.op == "run" and op.data.get("n") is not None:
            self._runs[op.data["tok"]] = op
        elif op.op == "post" and op.data.get("n") is not None:
            self._posts[op.data["n"]] = op
        if len(self._posts) + len(self._runs) > _MOST:
            self._thin_out()

    def _thin_out(self) -> None:
        self._mask = 2 * self._mask + 1
        for kept in (self._posts, self._runs):
            for name in [
                name
                for name, op in kept.items()
                if zlib.crc32((op.id or "").encode(errors="replace")) & self._mask
            ]:
                del kept[name]

    def close(self, *, steps: Sequence[int], ordered: bool) -> None:
        """
        Compute the distance of the clocks in each interval, and the order of the tokens.

        Args:
            steps: The moments at which the server's clock was set, sorted.
            ordered: Rely on increasing tokens: no acknowledged write was lost.
        """
        known, begun, high = [], [], _ALWAYS
        for tok, run in self._runs.items():
            begun.append((tok, run.t))
            post = self._posts.get(run.data["n"])
            if post is not None and post.id == run.id:
                known.append((tok, post.t))
                # From the post, not from the due time: a wrong due time must not hide itself.
                high = min(high, run.data["srv"] * 1000 + 1000 - post.t)
        edges = [-_ALWAYS, *steps, _ALWAYS]
        self._epochs = [
            Epoch(begin - _NEAR, end + _NEAR) for begin, end in itertools.pairwise(edges)
        ]
        self._begins = edges[:-1]
        if not steps:
            self._epochs[0].low, self._epochs[0].high = self._low, high
        for op in self._asked:
            self._narrow(op)
        for epoch in self._epochs:
            epoch.low -= SLACK
            epoch.high += SLACK
        self.steady = all(epoch.low <= epoch.high for epoch in self._epochs)
        if ordered:
            known.sort()
            begun.sort(reverse=True)
            self._last_posts = ([k[0] for k in known], list(accumulate((k[1] for k in known), max)))
            soonest = list(accumulate((b[1] for b in begun), min))
            self._first_starts = ([b[0] for b in reversed(begun)], soonest[::-1])

    def _narrow(self, op: Operation) -> None:
        end = op.t if op.end is None else op.end
        if (epoch := self._within(op.t, end)) is not None:
            epoch.low = max(epoch.low, op.data["srv"] * 1000 - end)
            epoch.high = min(epoch.high, op.data["srv"] * 1000 + 1000 - op.t)

    def _within(self, t0: int, t1: int) -> Epoch | None:
        """Return the epoch that contains the interval; None if a step may lie within it."""
        epoch = self._epochs[bisect.bisect_right(self._begins, t0) - 1]
        return epoch if epoch.begin + 2 * _NEAR <= t0 and t1 <= epoch.end - 2 * _NEAR else None

    def kept_pace(self, t0: int, t1: int) -> bool:
        """Return True if the server's clock was certainly not set within the interval."""
        return self.steady and self._within(t0, t1) is not None

    def claimed(self, run: Operation) -> tuple[int, int]:
        """
        Return the earliest and the latest moment at which the event of *run* was claimed.

        If the reply to a claim was lost, the server sends it again with the same token and a later
        ``srv``. The same node has then held the event since the first reply.
        """
        earliest, placed = self._placed(run.data["srv"] * 1000, run.t)
        latest = min(run.t, placed)
        tokens, begun = self._first_starts
        if (i := bisect.bisect_left(tokens, run.data["tok"])) < len(tokens):
            latest = min(latest, begun[i])
        return max(earliest, self._after(run)), latest

    def first_claimed(self, run: Operation) -> int:
        """Return the earliest moment of the first reply to the claim of *run*."""
        srv = min(run.data["srv"], run.data["tok"] - _AHEAD)
        return max(self._placed(srv * 1000, run.t)[0], self._after(run))

    def shown_us(self, run: Operation) -> int:
        """
        Return the latest time that the server's clock can have shown at the first reply to a claim.

        This is ``srv`` or less. If the clock was set back and the reply was sent again, ``srv`` may
        be less than the time of the first reply, which the token has.
        """
        srv: int = run.data["srv"]
        # A read is recorded with its claim when it ends.
        until = run.t if run.op == "run" else run.end or run.t
        stepped = bisect.bisect_right(self._begins, until) > 1
        return max(srv, run.data.get("tok", srv)) if stepped else srv

    def _after(self, run: Operation) -> int:
        tokens, posted = self._last_posts
        i = bisect.bisect_right(tokens, run.data["tok"])
        return posted[i - 1] if i else -_ALWAYS

    def _placed(self, srv: int, until: int) -> tuple[int, int]:
        """Return the earliest and latest moment before *until* at which the clock showed *srv*."""
        if not self.steady:
            return -_ALWAYS, until
        if len(self._epochs) == 1:
            return srv - self._epochs[0].high, srv - self._epochs[0].low
        earliest, latest = _ALWAYS, -_ALWAYS
        for epoch in self._epochs:
            if epoch.begin > until:
                break
            first, last = max(srv - epoch.high, epoch.begin), min(srv - epoch.low, epoch.end)
            if first <= last:
                earliest, latest = min(earliest, first), max(latest, last)
        return (earliest, latest) if earliest <= latest else (-_ALWAYS, until)

    def latest_ns(self, t: int) -> int:
        """Return the latest time, in ns, that the server's clock can have shown at *t*."""
        epoch = self._within(t, t)
        return t + (epoch.high if epoch else _ALWAYS)
