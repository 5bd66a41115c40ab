"""Call the store on behalf of one node."""

from __future__ import annotations

from collections.abc import Sequence

from dtimer.engine.ports import Subscription
from dtimer.errors import StateRollback
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import ClaimRequest, PendingReply, Renewal
from dtimer.model.options import Options
from dtimer.store.store import Store
from dtimer.timer.presence import Presence

# Seconds added to the period that a rollback has lost. The server's clock may have jumped, so the
# period may be longer than the clock says.
_MARGIN = 2.0


class NodeStore:
    """
    Passes the calls of a node's claimer and listener to the store.

    Args:
        store: The store.
        incarnation: The node's incarnation.
        presence: Has the node's entry for the list of nodes.
        options: The node's options.
    """

    def __init__(
        self, store: Store, incarnation: str, presence: Presence, options: Options
    ) -> None:
        self._store = store
        self._incarnation = incarnation
        self._presence = presence
        self._options = options
        # For each rollback that is not repaired yet: how many seconds back schedules may be
        # lost. None means all of them.
        self._rollbacks: list[float | None] = []

    def rolled_back(self, error: StateRollback) -> None:
        """Before the next claim, declare again the schedules of this process that were lost."""
        since = None if error.wiped else error.since
        self._rollbacks.append(None if since is None else (error.until - since) / 1000 + _MARGIN)

    def start_claim(self, request: ClaimRequest) -> PendingReply:
        """See `dtimer.engine.ports.ClaimStore`, also for the other methods."""
        if armed:
            self._reach_fault_points(request)
        while self._rollbacks:
            # A failure counts as a failure of the claim, and is retried with it.
            self._store.schedules.redeclare(self._rollbacks[0])
            self._rollbacks.pop(0)
        return self._store.claims.start(self._incarnation, request, self._options.lease)

    @property
    def busy(self) -> bool:
        """True if lost schedules must first be declared again."""
        return bool(self._rollbacks)

    @staticmethod
    def _reach_fault_points(request: ClaimRequest) -> None:
        if request.resends:
            reached("retry.sending")
        if request.settlements:
            reached("settle.sending")
        reached("claim.asking")

    def renew(self, held: Sequence[tuple[str, int]], lease_us: int) -> list[Renewal]:
        """Renew leases; return the outcome of each."""
        return self._store.claims.renew(held, lease_us)

    def needs_operator(self, error: BaseException | None) -> bool:
        """Return True if *error* lasts until an operator fixes its cause."""
        return self._store.needs_operator(error)

    def subscription(self) -> Subscription:
        """Make a subscription to the wakes of this node."""
        return self._store.subscription(self._incarnation)

    def alone(self) -> bool:
        """Return whether no other node has joined, and the namespace is not paused."""
        return self._store.alone(self._incarnation)

    def register(self) -> None:
        """Register the node."""
        self._store.join(self._incarnation, self._presence.entry())

    def add_times(self, schedule: str) -> None:
        """Send the server more nominal times of a schedule."""
        self._store.schedules.add_times(schedule)

    def trim(self) -> None:
        """Drop the dead letters that are too many or too old."""
        self._store.trim(self._options.dead_limit, self._options.dead_age)
