"""
The dispatcher: runs handlers on its hands, and knows what is held.

Rule 1: no more is asked for than free hands can start now.

Rule 2: a claim ends once: by the handler's own word, or else when its hand is done.

Rule 3: a hand never dies. Whatever a handler raises is the handler's failure.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any

from dtimer.engine.hold import Hold, Ledger
from dtimer.engine.service import Service
from dtimer.errors import HandlerError, LeaseLost, PayloadError
from dtimer.model.claims import Claim, Result, Settlement, Verdict
from dtimer.model.event import Event
from dtimer.model.options import MOST_CLAIMS, Options
from dtimer.model.payload import decode

# How much of a traceback is kept in a dead letter: its end, which names the culprit.
_ERROR_TEXT = 2_000

#: Settlements in one turn; a script must stay short.
MOST_SETTLEMENTS = 250


def describe(error: BaseException) -> str:
    """Return the end of the traceback of *error*, in a form that can be stored."""
    text = "".join(traceback.format_exception(error))[-_ERROR_TEXT:]
    # A payload may hold lone surrogates, and with it the error of whoever quotes it.
    return text.encode(errors="backslashreplace").decode()


class Dispatcher:
    """
    Args:
        name: A prefix for the names of the threads.
        node: The node's id, for messages.
        options: The node's.
        handle: Calls every listener of ``'event'`` with a list of events; returns what
            they raised, or None when there was nobody to call.
        announce: Has something emitted soon.
        ring: Rings the claimer's bell: a hand is free, or something is to be settled.
        ledger: Settles outside a turn.
        quit: Called when a handler raised SystemExit or KeyboardInterrupt.
    """

    def __init__(
        self,
        name: str,
        *,
        node: str,
        options: Options,
        handle: Callable[[list[Event]], list[BaseException] | None],
        announce: Callable[..., None],
        ring: Callable[[], None],
        ledger: Ledger,
        quit: Callable[[], None],
    ) -> None:
        self.max_events = options.max_events
        self._node = node
        self._options = options
        self._handle = handle
        self._announce = announce
        self._ring = ring
        self._ledger = ledger
        self._quit = quit
        self._inbox: queue.SimpleQueue[list[Hold] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._busy = 0
        self._returning = False
        self._held: dict[int, Hold] = {}
        self._settlements: list[Settlement] = []
        self._hands = [
            Service(f"{name}-hand-{i + 1}", self._work, lambda e: announce("error", e))
            for i in range(options.concurrency)
        ]

    # The claimer's side

    def start(self) -> None:
        """Start the hands, all of them now: late in a process no thread can be started."""
        for hand in self._hands:
            hand.start()

    def room(self) -> int:
        """Return how many events free hands can start now."""
        free = self._options.concurrency - self._busy
        return max(0, min(free * self.max_events, MOST_CLAIMS))

    def accept(self, claims: Sequence[Claim], sent: float) -> None:
        """Hand *claims*, asked for at the time *sent*, to the hands, oldest first."""
        holds = [hold for claim in claims if (hold := self._hold(claim, sent)) is not None]
        size = self.max_events
        for i in range(0, len(holds), size):
            with self._lock:
                self._busy += 1
            self._inbox.put(holds[i : i + size])

    def _hold(self, claim: Claim, sent: float) -> Hold | None:
        hold = Hold(claim, self._options, self._ledger, self._ended, sent)
        with self._lock:
            self._held[claim.token] = hold
        try:
            payload = decode(claim.payload)
        except PayloadError as e:
            hold.take(Verdict.BURY)
            self._settle(Settlement(*hold.key, Verdict.BURY, error=str(e), reason="corrupt"))
            return None
        hold.event = Event(
            payload,
            id=claim.id,
            due=claim.due_us / 1000,
            attempt=claim.attempt,
            max_retries=claim.max_retries,
            lateness_ms=(claim.claimed_us - claim.due_us) / 1000,
            token=claim.token,
            holder=hold,
            schedule=claim.schedule,
            nominal=None if claim.nominal_us is None else claim.nominal_us / 1000,
            missed=claim.missed,
        )
        return hold

    def take_settlements(self) -> list[Settlement]:
        """Return what is to be settled in the next turn."""
        with self._lock:
            taken = self._settlements[:MOST_SETTLEMENTS]
            del self._settlements[:MOST_SETTLEMENTS]
        return taken

    @property
    def unsettled(self) -> bool:
        """True while something waits for a turn to be settled in."""
        return bool(self._settlements)

    def settled(self, settlements: Sequence[Settlement], results: Sequence[Result]) -> None:
        """Note what a turn made of the settlements that were taken for it."""
        for settlement, result in zip(settlements, results, strict=False):
            with self._lock:
                hold = self._held.get(settlement.token)
            if hold is None:
                continue
            stale = result is Result.STALE and settlement.verdict is not Verdict.RELEASE
            # One that this process has posted anew, it has given up itself.
            if stale and hold.lose() and not hold.superseded:
                self._announce("lease_lost", hold.event)
                lost = LeaseLost(settlement.id, self._node, settlement.token)
                self._announce("error", lost)
            self._ended(hold, result)

    def held(self) -> list[Hold]:
        """Return the holds to be renewed: those of handlers that run, and not for too long."""
        now = time.monotonic()
        with self._lock:
            holds = [h for h in self._held.values() if not h.settled]
        return [h for h in holds if not self._overran(h, now)]

    def _overran(self, hold: Hold, now: float) -> bool:
        limit = self._options.max_run
        return limit is not None and hold.started is not None and now > hold.started + limit / 1e6

    def stuck(self) -> int:
        """Return how many events are in the hands of handlers that overran ``max_run``."""
        now = time.monotonic()
        with self._lock:
            return sum(self._overran(h, now) for h in self._held.values())

    def superseded(self, ids: Collection[str]) -> None:
        """Note that this process has posted events of these ids anew."""
        with self._lock:
            for hold in self._held.values():
                hold.superseded = hold.superseded or hold.claim.id in ids

    def lose(self, hold: Hold) -> None:
        """Note that a lease could not be renewed because it was somebody else's."""
        if hold.lose() and not hold.superseded:
            self._announce("lease_lost", hold.event)

    @property
    def running(self) -> int:
        """How many hands are busy, or about to be."""
        return self._busy

    def hand_back(self) -> None:
        """Release what no hand has started, now and from now on."""
        self._returning = True
        while True:
            try:
                batch = self._inbox.get_nowait()
            except queue.Empty:
                return
            if batch is not None:
                self._release(batch)

    def _release(self, batch: list[Hold]) -> None:
        for hold in batch:
            if hold.take(Verdict.RELEASE):
                self._settle(hold.settlement(Verdict.RELEASE))
        self._free()

    def abandon(self) -> None:
        """Give back what still runs, attempt charged: nobody waits for it any longer."""
        with self._lock:
            holds = list(self._held.values())
        for hold in holds:
            if hold.take(Verdict.RETRY):
                hold.lose()
                error = "the node left while the handler was running"
                self._settle(hold.settlement(Verdict.RETRY, error=error))

    def stop(self) -> None:
        """Send the hands home, each when it has finished what it does."""
        for hand in self._hands:
            hand.stop()
            self._inbox.put(None)

    def join(self, timeout: float | None) -> bool:
        """Wait for the hands to be gone; return whether they are."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for hand in self._hands:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not hand.join(left):
                return False
        return True

    @property
    def current(self) -> bool:
        """True on one of the hands."""
        return any(hand.current for hand in self._hands)

    # The hands' side

    def _settle(self, settlement: Settlement) -> None:
        with self._lock:
            self._settlements.append(settlement)

    def _free(self) -> None:
        with self._lock:
            self._busy -= 1
        self._ring()

    def _ended(self, hold: Hold, result: Result) -> None:
        with self._lock:
            self._held.pop(hold.claim.token, None)
        if result is Result.STALE:
            return
        if result is Result.DEAD:
            self._announce("buried", hold.claim.id)
        elif hold.verdict is Verdict.RETRY and result is Result.DONE:
            self._announce("retry", hold.event)

    def _work(self, stopping: threading.Event) -> None:
        while (batch := self._inbox.get()) is not None:
            if self._returning:
                self._release(batch)
                continue
            try:
                self._run(batch)
            finally:
                self._free()

    def _run(self, batch: list[Hold]) -> None:
        started = time.monotonic()
        for hold in batch:
            hold.started = started
        events: list[Any] = [hold.event for hold in batch]
        raised = self._handle(events)
        if raised is None:
            # The last listener went away after the claim.
            self._end(batch, Verdict.RELEASE)
        elif raised:
            self._fail(batch, raised)
        elif self._options.auto_confirm:
            self._end(batch, Verdict.CONFIRM)
        else:
            # Theirs to confirm now, with the lease as the limit: no more heartbeats.
            with self._lock:
                for hold in batch:
                    self._held.pop(hold.claim.token, None)

    def _end(self, batch: list[Hold], verdict: Verdict) -> None:
        for hold in batch:
            if hold.take(verdict):
                self._settle(hold.settlement(verdict))

    def _fail(self, batch: list[Hold], raised: list[BaseException]) -> None:
        failed = [hold for hold in batch if hold.take(Verdict.RETRY)]
        text = describe(raised[0])
        for hold in failed:
            wait, trouble = hold.backoff_us()
            if trouble is not None:
                self._announce("error", trouble)
            self._settle(hold.settlement(Verdict.RETRY, wait=wait, error=text))
        for error in raised:
            self._announce("error", HandlerError(error, [hold.event for hold in failed]))
            if not isinstance(error, Exception):
                self._quit()
