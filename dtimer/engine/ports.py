"""The operations of the store that the engine uses."""

from __future__ import annotations

from typing import Protocol

from dtimer.engine.heartbeat import LeaseRenewal
from dtimer.model.claims import ClaimRequest, PendingReply


class ClaimStore(LeaseRenewal, Protocol):
    """Sends claims, and makes the calls that follow from their replies."""

    def start_claim(self, request: ClaimRequest) -> PendingReply:
        """Send a claim, in one try. Return a callable that waits for the reply and returns it."""
        ...

    @property
    def busy(self) -> bool:
        """True if `start_claim` must first make other calls, which may take long."""
        ...

    def register(self) -> None:
        """Register the node again, because the server has lost its registration."""
        ...

    def trim(self) -> None:
        """Drop the dead letters that are too many or too old."""
        ...

    def add_times(self, schedule: str) -> None:
        """Send the server more nominal times of a schedule."""
        ...

    def needs_operator(self, error: BaseException | None) -> bool:
        """Return True if *error* lasts until an operator fixes its cause."""
        ...
