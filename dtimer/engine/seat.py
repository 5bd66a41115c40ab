"""
A seat: all that the claimer keeps for one namespace.

A claimer has one seat today. The handler threads and the bell belong to the process and not to a
namespace, so they are not in it, and one claimer can serve several seats.
"""

from __future__ import annotations

from typing import NamedTuple

from dtimer.engine.capacity import Capacity
from dtimer.engine.clock import ClockJumpDetector
from dtimer.engine.connectivity import Connectivity
from dtimer.engine.heartbeat import Heartbeat
from dtimer.engine.leases import LeaseTable
from dtimer.engine.listener import Listener
from dtimer.engine.lookahead import ahead_us
from dtimer.engine.peers import Peers
from dtimer.engine.pipeline import Pipeline
from dtimer.engine.ports import Announcements, ClaimStore, ContactReports
from dtimer.engine.superseded import SupersededIds
from dtimer.engine.unknown_kinds import UnknownKinds
from dtimer.log import Log
from dtimer.model.claims import ClaimReply, ClaimRequest
from dtimer.model.options import Options


class UnreadReply(NamedTuple):
    """A reply that was received and is still to be applied."""

    request: ClaimRequest
    reply: ClaimReply
    sent: float  # on the monotonic clock, as the next field
    received_at: float
    unread_ms: float  # for how long the reply may have waited before `received_at`


class Seat:
    """
    The state of one namespace. Used by one thread at a time, except `leases` and `superseded_ids`.

    Args:
        options: The node's options.
        store: The store of the namespace.
        leases: The leases that the node holds in the namespace.
        listener: Knows whether wakes reach the node.
        contact: Learns whether Redis answers.
        announcements: Emits errors and buried events.
        log: The node's log.
    """

    def __init__(
        self,
        options: Options,
        *,
        store: ClaimStore,
        leases: LeaseTable,
        listener: Listener,
        contact: ContactReports,
        announcements: Announcements,
        log: Log,
    ) -> None:
        self.options = options
        self.store = store
        self.leases = leases
        self.listener = listener
        self.contact = contact
        self.announcements = announcements
        self.log = log
        #: The ids of claimed events that this process has replaced, and that must not start.
        self.superseded_ids: SupersededIds = SupersededIds()
        #: Decides whether a due event may wait longer, because no other node could start it.
        self.peers: Peers = Peers(store, ahead_us(options) / 1e6)
        self.connectivity: Connectivity = Connectivity(store, contact, log)
        self.capacity: Capacity = Capacity(options, announcements)
        self.pipeline: Pipeline = Pipeline(store, listener, self.capacity, log)
        self.heartbeat: Heartbeat = Heartbeat(store, leases, options.lease)
        #: None if a test sets the server's time, which would look like jumps.
        self.clock_jumps: ClockJumpDetector | None = (
            ClockJumpDetector() if options.now is None else None
        )
        #: Puts off events whose kind no router of this node knows.
        self.unknown_kinds: UnknownKinds = UnknownKinds(announcements)
        #: False from a reply that does not know this node until it has registered again.
        self.registered: bool = True
        #: The schedules to which this node could not add times. Each is reported once.
        self.without_times: set[str] = set()
        #: The reply that was received and could not be applied yet; None if there is none.
        self.unread: UnreadReply | None = None
        #: When to claim next, on the monotonic clock.
        self.next_claim_at: float = 0.0

    @property
    def unfinished(self) -> bool:
        """True while a reply is still to be received or applied."""
        return self.pipeline.request is not None or self.unread is not None
