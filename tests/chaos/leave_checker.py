"""Check that a node which left properly released the events that it had not started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.clock import Clock
from chaos.history import Operation
from chaos.verdict import CheckContext

if TYPE_CHECKING:
    from chaos.lease_checker import Generation


class LeaveChecker:
    """Checks the claims of nodes that left with a ``leave`` without a time-out: I17."""

    def __init__(self, context: CheckContext, clock: Clock) -> None:
        self._context = context
        self._clock = clock
        self._troubles = context.troubles

    def check(self, gen: Generation) -> None:
        """Check the claims of one generation, whose runs are sorted by token."""
        for claim in gen.claims:
            leave = self._undisturbed_leave(claim)
            tokens = [run.data["tok"] for run in gen.runs]
            if leave is None or gen.revived or claim.data["tok"] in tokens:
                continue
            self._context.verdict.counts["left unstarted"] += 1
            later = next((run for run in gen.runs if run.data["tok"] > claim.data["tok"]), None)
            if later is not None and self._waited_for_lease(claim, leave, later):
                late = (later.data["due"] - claim.data["due"]) / 1000
                text = f"{late:.0f} ms late: a node that had left still held its lease"
                self._context.blame("I17", gen.id, text, gen.origin, claim, leave, later)
            for letter in gen.letters:
                if claim.data["by"] in str(letter.data.get("error")):
                    text = "dead and never started: a node that had left still held its lease"
                    self._context.blame("I17", gen.id, text, gen.origin, claim, leave, letter)

    def _undisturbed_leave(self, claim: Operation) -> Operation | None:
        """Return the undisturbed ``leave`` of the node that made a claim, or None."""
        leaves = self._troubles.lifetimes[claim.p].leaves
        later = [leave for leave in leaves if leave.end is None or leave.end > claim.t]
        leave = min(later, key=lambda leave: leave.t, default=None)
        if leave is None or leave.end is None or leave.ph != "ok":
            return None
        if leave.data.get("timeout") is not None:
            return None
        met = self._troubles.met(claim.p, claim.t, leave.end)
        return leave if met in (None, "left") else None

    def _waited_for_lease(self, claim: Operation, leave: Operation, later: Operation) -> bool:
        """Return True if a run waited for the end of the claim's lease, and its attempt counted."""
        assert leave.end is not None
        if later.data["att"] <= claim.data["att"]:
            return False
        if self._troubles.stepped_in(claim.t, later.t):
            return False
        # The lease was granted by the claim, and perhaps renewed until the node had left.
        lease = claim.data["lease_us"]
        last = self._clock.latest_ns(leave.end) // 1000 + lease
        return bool(claim.data["srv"] + lease <= later.data["due"] <= last)
