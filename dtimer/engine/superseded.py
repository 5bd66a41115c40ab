"""
The ids of events that this process replaces while a claim's reply is under way.

The reply may still contain the old event, which must not start. So the node releases every event
of the reply that has one of these ids. This does no harm. If the post has replaced the event, the
server ignores the release. If the post has failed, the event is still valid, and the next claim
takes it again.

An event that was released in this way starts from the next claim that has it, even if a post has
overtaken this claim too. Otherwise an event that is posted again during each claim would not start
before these posts end.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dtimer.engine.lease import Lease

# The most ids to remember. While claims fail for hours, posts may succeed, or fail at once.
_MOST_IDS = 10_000


class SupersededIds:
    """
    Tracks replaced ids. Claims have ascending numbers, and their replies arrive in that order.

    Any thread may use it. It takes no lock, because every change is one step of the interpreter. A
    lock could deadlock: a signal handler can interrupt one of these methods, and then post, or wait
    for the claimer, which calls these methods too.
    """

    def __init__(self) -> None:
        # The number of the last claim; None while no claim is under way.
        self._last_claim: int | None = None
        # For each id, the last claim that was sent before the id was posted.
        self._ids: dict[str, int] = {}
        # The last claim for which there were too many ids. Any event of it may be replaced.
        self._overflowed_at: int = -1
        # The ids that were released and not claimed since, the oldest first. A dict keeps order.
        # Used by one thread at a time.
        self._released: dict[str, None] = {}

    def begin(self, seq: int) -> None:
        """Record that claim *seq* is sent. The reply to the previous claim may still be unread."""
        self._last_claim = seq
        self._drop_before(seq - 1)

    def _drop_before(self, seq: int) -> None:
        """Drop the ids of the claims before *seq*."""
        for id, claim in list(self._ids.items()):
            # Another thread may add an id again between the check and the `pop`. Such an id is put
            # back, for the last claim, because it may have been added for that one meanwhile.
            if claim < seq and (added := self._ids.pop(id, -1)) >= seq:
                self._ids[id] = max(added, self._last_claim or 0)

    def end(self) -> None:
        """Record that no claim is under way any more."""
        self._last_claim = None
        self._ids.clear()

    def add(self, ids: Collection[str]) -> None:
        """Record ids that are about to be posted again."""
        claim = self._last_claim
        if claim is not None:
            self._ids.update(dict.fromkeys(ids, claim))
            if len(self._ids) > _MOST_IDS:
                # First the claim, so that each id is found by one or the other.
                self._overflowed_at = claim
                self._drop_before(claim + 1)

    def since(self, seq: int) -> set[str]:
        """Return the ids that were posted after claim *seq* was sent."""
        if not self._ids:
            return set()
        return {id for id, claim in list(self._ids.items()) if claim >= seq}

    def to_release(self, seq: int, leases: Sequence[Lease]) -> set[str]:
        """Return the ids of the events to release when the *leases* of claim *seq* have arrived."""
        if not (self._ids or self._released or self._overflowed_at >= seq):
            return set()
        claimed = {lease.claim.id for lease in leases}
        again = claimed & self._released.keys()
        for id in again:
            del self._released[id]
        ids = self.since(seq)
        if self._overflowed_at >= seq:
            ids |= claimed
        ids -= again
        self._released.update(dict.fromkeys(ids & claimed))
        # Another node may have claimed the oldest.
        while len(self._released) > _MOST_IDS:
            del self._released[next(iter(self._released))]
        return ids
