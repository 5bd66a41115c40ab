"""
The dispatcher: gives the hands what was claimed, when it is due and they are free.

Rule 1: no more is asked for than free hands can start now, or soon where they are quick.

Rule 2: what was claimed ahead of its time, or of a hand's, takes no hand until then. If no hand
is free then, it is released soon, or, without another node, after a second.

Rule 3: one thread starts events in the order of their due times. If one of them is released,
everything that was claimed after it is released too, and claimed again by the turn that does so.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Collection, Sequence

from dtimer.engine.book import MOST_SETTLEMENTS
from dtimer.engine.hands import Hands
from dtimer.engine.hold import Hold, believed_until
from dtimer.engine.pace import lasting
from dtimer.engine.prefetch import IN_ADVANCE
from dtimer.errors import PayloadError
from dtimer.model.claims import Claim, Settlement, Verdict
from dtimer.model.event import Event
from dtimer.model.options import MOST_CLAIMS
from dtimer.model.payload import decode


class Dispatcher(Hands):
    """What the claimer asks of the hands."""

    def room(self) -> int:
        """Return how many events free hands can start now."""
        free = self._options.concurrency - self._busy
        return max(0, min(free * self.max_events, MOST_CLAIMS))

    def wanted(self, appetite: int) -> tuple[int, int]:
        """
        Return how many events to claim, and how many µs ahead.

        Args:
            appetite: How many there is anybody to hand to.
        """
        if self._calling_back and len(self._settlements) > MOST_SETTLEMENTS:
            # What is not released by this turn must not be overtaken by what it claims.
            return 0, 0
        room = min(self.room(), appetite)
        # Each of those that wait for their time will want a hand. Until then the hands are free
        # for what is due before.
        spare = room - len(self.early)
        if spare <= 0:
            return room, 0
        batches = self.prefetch.batches
        if batches > 1:
            return min(spare * batches, appetite - len(self.early), MOST_CLAIMS), 0
        return spare, self.early.ahead_us

    def wanted_meanwhile(self, asked: int, claimed: int, appetite: int) -> int:
        """
        Return how many events to claim while the hands are busy with those just claimed.

        Args:
            asked: How many were asked for, and
            claimed: were claimed.
            appetite: How many there is anybody to hand to.
        """
        if self._calling_back:
            return 0
        # Not that many for each hand: what is quick is at work in the interpreter, all of the time.
        most = self.max_events * self.prefetch.meanwhile
        left = appetite - self._busy * self.max_events - claimed
        return max(0, min(min(most, left) - len(self.early), 2 * asked, MOST_CLAIMS))

    def accept(
        self, seq: int, claims: Sequence[Claim], sent: float, came: float, *, lay: bool = False
    ) -> None:
        """
        Hand *claims* to the hands, oldest first, or keep them until they are due.

        They were asked for by the turn *seq*, at the time *sent*, and the answer *came* when it
        did. Where it *lay* unread it was here before.
        """
        believed = believed_until(sent, self._options.lease)
        # Not held before all are made: of what nobody starts leases would be renewed for ever.
        holds = [hold for claim in claims if (hold := self._hold(claim, believed))]
        for hold in holds if lay else ():
            if hold.event is not None:
                hold.event.lateness_ms += (came - sent) * 1000
        self._hold_on(holds)
        if self._returning:
            self._end(holds, Verdict.RELEASE)
            return
        self.early.add(holds, came)
        if gone := self.reposts.since(seq):
            # Now that whoever posts finds them here: one of the two sees the other.
            self._end(self.early.clear(gone), Verdict.RELEASE)
        self.start_due()

    def start_due(self) -> bool:
        """
        Hand to free hands what was kept and is due now; give back what finds none.

        Returns:
            Whether something is given back, by a turn that is to be taken at once.
        """
        # Also what an answer has just brought that was on its way.
        back = self._call_back() if self._calling_back else False
        while self.early and self._busy < self._options.concurrency:
            batch = self.early.take(self.max_events)
            if not batch:
                return back
            # The machine may have been suspended meanwhile.
            now = lasting()
            if any(hold.lost(now) for hold in batch):
                self._release(batch)
                back = True
                continue
            try:
                self._put(batch)
            except BaseException:
                # Renewed no more, whatever happens here; and no other node waits for the lease.
                self._forget(batch)
                self._end(batch, Verdict.RELEASE)
                raise
        if not (self.early and self.early.overdue(self.early.patience)):
            self._behind = False
            return back
        if not self._behind:
            self._behind = True
            self.prefetch.too_much()
        if late := self.early.give_up(self._patience(ask=True)):
            self._release(late)
            back = True
        return back

    def _patience(self, *, ask: bool) -> float:
        """Return for how many seconds what is due is kept for a hand; *ask* if others are there."""
        early = self.early
        if early.alone_patience == early.patience:
            return early.patience
        alone = self._peers.none() if ask else self._peers.known_none
        return early.alone_patience if alone else early.patience

    def _release(self, holds: list[Hold]) -> None:
        """Release the oldest of what is kept; on one thread all the rest with it."""
        self._end(holds, Verdict.RELEASE)
        if self._in_order:
            self._calling_back = True
            self._call_back()

    def _call_back(self) -> bool:
        """Release all that is kept; return whether there was any."""
        gone = self.early.clear()
        self._end(gone, Verdict.RELEASE)
        return bool(gone)

    def take_settlements(self) -> list[Settlement]:
        """See `Book.take_settlements`."""
        taken = super().take_settlements()
        if not self._left_over:
            self._calling_back = False
        return taken

    def linger(self) -> float | None:
        """
        Return for how many seconds what is settled may wait for more of it; None for not at all.

        While hands go on with what they have, a turn for each event would cost more than the event.
        """
        waited = time.monotonic() - self._unsettled_since
        busy = self._busy == self._options.concurrency
        if busy and waited < IN_ADVANCE and len(self._settlements) < MOST_SETTLEMENTS:
            return IN_ADVANCE - waited
        return None

    def next_start(self) -> float | None:
        """Return when to call that next, on the monotonic clock; None for not at all."""
        due = self.early.next
        if due is None or self._busy < self._options.concurrency:
            return due
        # A hand that becomes free calls it, too.
        return due + self._patience(ask=False)

    def drop(self, ids: Collection[str]) -> bool:
        """
        Give back what was kept of these ids: this process has posted them anew.

        Not before it has: given back, it may be claimed again at once.

        Returns:
            Whether there was any, and a turn is to be taken soon.
        """
        gone = self.early.clear(ids) if self.early else []
        self._end(gone, Verdict.RELEASE)
        return bool(gone)

    def _hold(self, claim: Claim, believed: float) -> Hold | None:
        hold = Hold(claim, self._options, self._ledger, self._ended, believed)
        try:
            payload = decode(claim.payload)
        except PayloadError as e:
            hold.take(Verdict.BURY)
            self._hold_on([hold])
            self._settle([Settlement(*hold.key, Verdict.BURY, error=str(e), reason="corrupt")])
            return None
        hold.event = Event(
            payload,
            id=claim.id,
            due=claim.due_us / 1000,
            attempt=claim.attempt,
            max_retries=claim.max_retries,
            # A claim that is answered anew after the clock was put back tells the new time.
            lateness_ms=max(0, claim.claimed_us - claim.due_us) / 1000,
            token=claim.token,
            holder=hold,
            schedule=claim.schedule,
            nominal=None if claim.nominal_us is None else claim.nominal_us / 1000,
            missed=claim.missed,
        )
        return hold

    def hand_back(self) -> None:
        """Release what no hand has started, now and from now on."""
        self._returning = True
        self._end(self.early.clear(), Verdict.RELEASE)
        while True:
            try:
                batch = self._inbox.get_nowait()
            except queue.Empty:
                return
            if batch is not None:
                self._end(batch, Verdict.RELEASE)
                self._free()

    def abandon(self) -> None:
        """Give back what still runs, attempt charged: nobody waits for it any longer."""
        for hold in list(self._held.values()):
            if hold.take(Verdict.RETRY):
                hold.lose()
                error = "the node left while the handler was running"
                self._settle([hold.settlement(Verdict.RETRY, error=error)])
