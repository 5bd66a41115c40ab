"""
The ids of events that this process replaces while a claim's reply is under way.

The reply most likely contains the replaced event, which must not start. So the node releases the
event. That is always safe: the server ignores the release of a replaced event, and an event that
was not replaced is claimed again at once.
"""

from __future__ import annotations

from collections.abc import Collection


class SupersededIds:
    """
    Tracks replaced ids. Claims have ascending numbers, and their replies arrive in that order.

    Safe for any thread, without a lock: every change is one step of the interpreter. So a signal
    handler that interrupts a post here may post itself, or wait for the claimer, which uses this.
    """

    def __init__(self) -> None:
        # The number of the last claim; None while no claim is under way.
        self._last_claim: int | None = None
        # For each id, the last claim that was sent before the id was posted.
        self._ids: dict[str, int] = {}

    def begin(self, seq: int) -> None:
        """Record that claim *seq* is sent. The reply to the claim before may be still unread."""
        self._last_claim = seq
        for id, claim in list(self._ids.items()):
            # Drop ids of older claims, but put back an id that was added again meanwhile.
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
