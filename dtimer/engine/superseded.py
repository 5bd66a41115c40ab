"""
The ids of events that this process replaces while a claim's reply is under way.

The reply may still contain the old event, which must not start. So the node releases every event
of the reply that has one of these ids. This does no harm. If the post has replaced the event, the
server ignores the release. If the post has failed, the event is still valid, and the next claim
takes it again.
"""

from __future__ import annotations

from collections.abc import Collection


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

    def begin(self, seq: int) -> None:
        """Record that claim *seq* is sent. The reply to the previous claim may still be unread."""
        self._last_claim = seq
        for id, claim in list(self._ids.items()):
            # Drop the ids of claims whose replies were read. Another thread may add an id again
            # between the check and the `pop`. Such an id is put back.
            if claim < seq - 1 and self._ids.pop(id, -1) >= seq - 1:
                self._ids[id] = seq

    def end(self) -> None:
        """Record that no claim is under way any more."""
        self._last_claim = None
        self._ids.clear()

    def add(self, ids: Collection[str]) -> None:
        """Record ids that are about to be posted again."""
        claim = self._last_claim
        if claim is not None:
            self._ids.update(dict.fromkeys(ids, claim))

    def since(self, seq: int) -> set[str]:
        """Return the ids that were posted after claim *seq* was sent."""
        if not self._ids:
            return set()
        return {id for id, claim in list(self._ids.items()) if claim >= seq}
