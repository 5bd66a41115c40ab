"""
When a claim was made, on the monotonic clock of the host that recorded the history.

A record of a run tells the server's time of its claim, and the token, but the handler may
have begun long after. Two things place the claim between two moments, and neither believes
that clocks agree:

* the distance between the server's clock and the monotonic one, as long as nobody steps the
  server's clock: a claim comes before its handler and after its post, and whoever records a
  ``clock`` (its ``srv`` is the server's ``TIME`` in µs) narrows it to a round trip;
* the tokens, which grow with each claim whatever the clock does: a claim is no earlier than
  the post of any event that was claimed under a lower token, and no later than the beginning
  of any handler under a higher one.
"""

from __future__ import annotations

import bisect
import zlib
from itertools import accumulate

from chaos.history import Operation

#: Both ends give way by so much, in ns, for clocks that run at slightly different speeds.
SLACK = 1_000_000

#: A token may be ahead of the server's clock by so much, in µs, where very many are claimed.
_AHEAD = 1_000

#: Posts and runs that are kept to narrow it down.
_MOST = 50_000


class Clock:
    """Gathers posts and runs, and places claims when all have been seen."""

    def __init__(self) -> None:
        self._mask = 0
        self._posts: dict[int, Operation] = {}
        self._runs: dict[int, Operation] = {}
        self._low = -(1 << 62)
        self._high = 1 << 62
        self._ahead: tuple[list[int], list[int]] = ([], [])
        self._behind: tuple[list[int], list[int]] = ([], [])
        #: Whether the server's clock has kept its distance.
        self.steady = False

    def saw(self, op: Operation) -> None:
        """Take note of one operation on an event."""
        if op.op == "run":
            self._low = max(self._low, op.data["srv"] * 1000 - op.t)
        elif op.op == "clock":
            if op.ph == "ok" and op.end is not None:
                self._low = max(self._low, op.data["srv"] * 1000 - op.end)
                self._high = min(self._high, op.data["srv"] * 1000 + 1000 - op.t)
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

    def close(self, *, stepped: bool, ordered: bool) -> None:
        """
        Work out what they come to.

        Args:
            stepped: The server's clock was stepped.
            ordered: Tokens grow, since no acknowledged write was lost.
        """
        known, begun = [], []
        for tok, run in self._runs.items():
            begun.append((tok, run.t))
            post = self._posts.get(run.data["n"])
            if post is None or post.id != run.id:
                continue
            known.append((tok, post.t))
            # Not from what was due: a library that gets that wrong must not hide it here.
            self._high = min(self._high, run.data["srv"] * 1000 + 1000 - post.t)
        self._low -= SLACK
        self._high += SLACK
        self.steady = not stepped and self._low <= self._high
        if ordered:
            known.sort()
            begun.sort(reverse=True)
            self._behind = ([k[0] for k in known], list(accumulate((k[1] for k in known), max)))
            soonest = list(accumulate((b[1] for b in begun), min))
            self._ahead = ([b[0] for b in reversed(begun)], soonest[::-1])

    def claimed(self, run: Operation) -> tuple[int, int]:
        """
        Return the moments between which the event of *run* was claimed, at the widest.

        A claim whose reply was lost is given again under the same token, and ``srv`` is of
        that time. Then it was still held, by the same holder, since it was claimed first.
        """
        latest = run.t
        if self.steady:
            latest = min(latest, run.data["srv"] * 1000 - self._low)
        tokens, begun = self._ahead
        if (i := bisect.bisect_left(tokens, run.data["tok"])) < len(tokens):
            latest = min(latest, begun[i])
        return self._since(run, run.data["srv"]), latest

    def first_claimed(self, run: Operation) -> int:
        """Return the earliest moment at which the event of *run* may have been claimed first."""
        return self._since(run, min(run.data["srv"], run.data["tok"] - _AHEAD))

    def _since(self, run: Operation, srv: int) -> int:
        earliest = srv * 1000 - self._high if self.steady else -(1 << 62)
        tokens, posted = self._behind
        if i := bisect.bisect_right(tokens, run.data["tok"]):
            earliest = max(earliest, posted[i - 1])
        return earliest

    def server_ns(self, t: int) -> tuple[int, int]:
        """Return the server's times, in ns, between which the moment *t* was, at the widest."""
        return t + self._low, t + self._high
