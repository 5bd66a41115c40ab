"""
Check the keys of `RunAt`: each is read once for each time that it was written.

A reader receives only the key, so a read does not tell which write it belongs to. The checker can
still test this: a key is read only if it was written, and only after the time of one of its writes;
a key is read more often than it was written only if a reader died or lost its lease; and no key is
lost.
"""

from __future__ import annotations

from chaos.clock import Clock
from chaos.history import Operation
from chaos.verdict import CheckContext

#: A read may seem earlier than it was by this many ns: the two clocks may drift apart.
_DRIFT = 1_000_000


class KeyChecker:
    """Checks keys for I1, I2, I3 and I4."""

    def __init__(self, context: CheckContext, clock: Clock) -> None:
        self._context = context
        self._clock = clock

    def check(self, key: str, operations: list[Operation]) -> None:
        context, counts = self._context, self._context.verdict.counts
        writes = [op for op in operations if op.op == "write" and op.ph != "no"]
        reads = [op for op in operations if op.op == "read" and op.ph == "ok"]
        reads.sort(key=lambda read: read.end or read.t)
        failed = [op for op in operations if op.op in ("retry", "release") or op.ph == "no"]
        counts["written"] += sum(write.ph == "ok" for write in writes)
        counts["read"] += len(reads)
        self._explain_reads(key, writes, reads, failed)
        for read in reads:
            at = read.end or read.t
            known = [write for write in writes if write.t <= at]
            if not known:
                context.blame("I3", key, "read, but never written", read)
                continue
            if "srv" in read.data and self._clock.shown_us(read) < read.data.get("due", 0):
                context.blame("I1", key, "claimed before it was due", read)
            moments = [w.data.get("at_us") for w in known]
            if None not in moments:
                first = read.data.get("att", 1) == 1
                if first and read.data.get("srv", min(moments)) < min(moments):
                    context.blame(
                        "I1", key, "read before the time that it was written for", *known, read
                    )
                continue
            dues = [w.t + max(0, w.data.get("delay_us") or 0) * 1000 for w in known]
            kept = self._clock.kept_pace(min(write.t for write in known), at)
            if kept and min(dues) - at > _DRIFT + (at - known[0].t) // 1000:
                context.blame("I1", key, "read before any write allows it", *known, read)
        self._check_last_write(key, writes, reads, operations)

    def _explain_reads(
        self,
        key: str,
        writes: list[Operation],
        reads: list[Operation],
        failed: list[Operation],
    ) -> None:
        redelivered = self._context.verdict.redelivered
        tokens: dict[int, Operation] = {}
        again = 0
        for i, read in enumerate(reads):
            if (tok := read.data.get("tok")) is not None:
                if tok in tokens:
                    self._context.blame("I5", key, "one claim was read twice", tokens[tok], read)
                tokens[tok] = read
            # A later attempt never belongs to a new write.
            fresh = read.data.get("att", 1) == 1
            written = sum(write.t <= (read.end or read.t) for write in writes)
            if not written or (fresh and i - again < written):
                continue
            again += 1
            before = reads[i - 1] if i else None
            reason = self._reason_of(before, read, failed) if before else None
            if before is None:
                reason = self._context.troubles.anywhere(writes[0].t, read.end or read.t)
            redelivered[f"read: {reason}" if reason else "unexplained"] += 1
            if reason is None:
                text = "read more often than it was written, and nothing explains why"
                self._context.blame("I4", key, text, *writes, before, read)

    def _reason_of(self, before: Operation, read: Operation, failed: list[Operation]) -> str | None:
        since, until = before.end or before.t, read.end or read.t
        if any(since <= (op.end or op.t) and op.t <= until for op in failed):
            return "failed"
        troubles = self._context.troubles
        # The claim may have been made for another reader of the same consumer.
        return troubles.met(before.p, before.t, until) or troubles.anywhere(before.t, until)

    def _check_last_write(
        self,
        key: str,
        writes: list[Operation],
        reads: list[Operation],
        operations: list[Operation],
    ) -> None:
        acked = [write for write in writes if write.ph == "ok"]
        if not acked or self._context.pending is None or key in self._context.pending:
            return
        last = max(acked, key=lambda write: write.t)
        if any((read.end or read.t) >= last.t for read in reads) or key in self._context.buried:
            return
        if any(op.op in ("dead", "expired") and op.t >= last.t for op in operations):
            return
        if any(op.op == "cancel" and op.ph != "no" for op in operations):
            return
        self._context.verdict.counts["lost"] += 1
        self._context.blame("I2", key, "written, but never read afterwards", last, *reads[-1:])
