"""
When a claim was made, on the monotonic clock of the host that recorded the history.

A record of a run tells the server's time of its claim, and the token, but the handler may
have begun long after. Two things place the claim between two moments, and neither believes
that clocks agree:

* the distance between the server's clock and the monotonic one: a claim comes before its
  handler and after its post, and whoever records a ``clock`` (its ``srv`` is the server's
  ``TIME`` in µs) narrows it to a round trip. Where the server's clock is stepped there is
  a distance for each time between two steps, and only who asked for the time knows it;
* the tokens, which grow with each claim whatever the clock does: a claim is no earlier than
  the post of any event that was claimed under a lower token, and no later than the beginning
  of any handler under a higher one.
"""

from __future__ import annotations

import bisect
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from chaos.history import Operation

#: Both ends give way by so much, in ns, for clocks that run at slightly different speeds.
SLACK = 1_000_000

#: A token may be ahead of the server's clock by so much, in µs, where very many are claimed.
_AHEAD = 1_000

#: A step lies so close to the record of it, in ns, on either side.
_NEAR = 1_000_000_000

#: Posts and runs that are kept to narrow it down.
_MOST = 50_000

_ALWAYS = 1 << 62


@dataclass(slots=True)
class Epoch:
    """A time without a step: the server's clock less the monotonic one, at the least and most."""

    begin: int
    end: int
    low: int = -_ALWAYS
    high: int = _ALWAYS


class Clock:
    """Gathers posts and runs, and places claims when all have been seen."""

    def __init__(self) -> None:
        self._mask = 0
        self._posts: dict[int, Operation] = {}
        self._runs: dict[int, Operation] = {}
        self._asked: list[Operation] = []
        self._low = -_ALWAYS
        self._ahead: tuple[list[int], list[int]] = ([], [])
        self._behind: tuple[list[int], list[int]] = ([], [])
        self._epochs: list[Epoch] = []
        self._begins: list[int] = []
        #: Whether the server's clock has kept its distance, but for the steps that are known.
        self.steady = False

    def saw(self, op: Operation) -> None:
        """Take note of one operation on an event."""
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
        Work out what they come to.

        Args:
            steps: When the server's clock was stepped, in order.
            ordered: Tokens grow, since no acknowledged write was lost.
        """
        known, begun, high = [], [], _ALWAYS
        for tok, run in self._runs.items():
            begun.append((tok, run.t))
            post = self._posts.get(run.data["n"])
            if post is not None and post.id == run.id:
                known.append((tok, post.t))
                # Not from what was due: a library that gets that wrong must not hide it here.
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
            self._behind = ([k[0] for k in known], list(accumulate((k[1] for k in known), max)))
            soonest = list(accumulate((b[1] for b in begun), min))
            self._ahead = ([b[0] for b in reversed(begun)], soonest[::-1])

    def _narrow(self, op: Operation) -> None:
        end = op.t if op.end is None else op.end
        if (epoch := self._within(op.t, end)) is not None:
            epoch.low = max(epoch.low, op.data["srv"] * 1000 - end)
            epoch.high = min(epoch.high, op.data["srv"] * 1000 + 1000 - op.t)

    def _within(self, t0: int, t1: int) -> Epoch | None:
        """Return the time without a step that the interval is in; None when there may be one."""
        epoch = self._epochs[bisect.bisect_right(self._begins, t0) - 1]
        return epoch if epoch.begin + 2 * _NEAR <= t0 and t1 <= epoch.end - 2 * _NEAR else None

    def kept_pace(self, t0: int, t1: int) -> bool:
        """Tell whether the server's clock went on as the monotonic one did, all the time."""
        return self.steady and self._within(t0, t1) is not None

    def claimed(self, run: Operation) -> tuple[int, int]:
        """
        Return the moments between which the event of *run* was claimed, at the widest.

        A claim whose reply was lost is given again under the same token, and ``srv`` is of
        that time. Then it was still held, by the same holder, since it was claimed first.
        """
        earliest, placed = self._placed(run.data["srv"] * 1000, run.t)
        latest = min(run.t, placed)
        tokens, begun = self._ahead
        if (i := bisect.bisect_left(tokens, run.data["tok"])) < len(tokens):
            latest = min(latest, begun[i])
        return max(earliest, self._after(run)), latest

    def first_claimed(self, run: Operation) -> int:
        """Return the earliest moment at which the event of *run* may have been claimed first."""
        srv = min(run.data["srv"], run.data["tok"] - _AHEAD)
        return max(self._placed(srv * 1000, run.t)[0], self._after(run))

    def shown_us(self, run: Operation) -> int:
        """
        Return the latest that the server's clock can have shown when a run was claimed first.

        That is ``srv``, or less. But where a clock was put back, and the reply was lost, the
        answer that was given again tells a time before that of the claim: the token has that.
        """
        srv: int = run.data["srv"]
        # A read is told when it is over.
        until = run.t if run.op == "run" else run.end or run.t
        stepped = bisect.bisect_right(self._begins, until) > 1
        return max(srv, run.data.get("tok", srv)) if stepped else srv

    def _after(self, run: Operation) -> int:
        tokens, posted = self._behind
        i = bisect.bisect_right(tokens, run.data["tok"])
        return posted[i - 1] if i else -_ALWAYS

    def _placed(self, srv: int, until: int) -> tuple[int, int]:
        """Return between which moments the server's clock showed this, before *until*."""
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
        """Return the latest that the server's clock can have shown at *t*, in ns."""
        epoch = self._within(t, t)
        return t + (epoch.high if epoch else _ALWAYS)
