"""
The hands: threads that run handlers, and settle what comes of them.

Rule 1: a claim ends once: by the handler's own word, or else when its hand is done.

Rule 2: a hand never dies. Whatever a handler raises is the handler's failure.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from dtimer.engine.book import Book
from dtimer.engine.early import Early
from dtimer.engine.flag import Flag
from dtimer.engine.hold import Hold, Ledger
from dtimer.engine.peers import Peers
from dtimer.engine.prefetch import IN_ADVANCE, Prefetch
from dtimer.engine.reposts import Reposts
from dtimer.engine.service import Service
from dtimer.errors import HandlerError
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import Verdict
from dtimer.model.event import Event
from dtimer.model.options import Options

# How much of a traceback is kept in a dead letter: its end, which names the culprit.
_ERROR_TEXT = 2_000

# Seconds between two looks at which hands are left.
_SLICE = 0.01


def describe(error: BaseException) -> str:
    """Return the end of the traceback of *error*, in a form that can be stored."""
    text = "".join(traceback.format_exception(error))[-_ERROR_TEXT:]
    # A payload may hold lone surrogates, and with it the error of whoever quotes it.
    return text.encode(errors="backslashreplace").decode()


class Hands(Book):
    """
    Args:
        name: A prefix for the names of the threads.
        node: The node's id, for messages.
        options: The node's.
        handle: Calls every listener of ``'event'`` with a list of events; returns what
            they raised, or None when there was nobody to call.
        announce: Has something emitted soon.
        ring: Rings the claimer's bell: a hand is free, or something is to be settled.
        alone: Asks whether no other node has joined.
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
        alone: Callable[[], bool],
        ledger: Ledger,
        quit: Callable[[], None],
    ) -> None:
        super().__init__(node, options, announce)
        self.max_events = options.max_events
        self._handle = handle
        self._ring = ring
        self._ledger = ledger
        self._quit = quit
        self._inbox: queue.SimpleQueue[list[Hold] | None] = queue.SimpleQueue()
        #: What was claimed ahead of its time, or of a hand's.
        self.early = Early(options)
        #: How much of that may be.
        self.prefetch = Prefetch(allowed=self.early.patience >= IN_ADVANCE)
        #: What is not to be handed out though it was claimed.
        self.reposts = Reposts()
        self._peers = Peers(alone)
        # One thread starts events in the order of their due times.
        self._in_order = options.concurrency == 1
        # True from a release by that thread until a turn carries all that was claimed before it.
        self._calling_back = False
        # Whether what is kept has waited too long for a hand.
        self._behind = False
        self._busy = 0
        # Only for that: no code of a user's waits for it, nor for a thread that does.
        self._counting = threading.Lock()
        self._returning = False
        #: One thread each.
        self.hands = [
            Service(f"{name}-hand-{i + 1}", self._work, lambda e: announce("error", e))
            for i in range(options.concurrency)
        ]

    def start(self) -> None:
        """Start the hands, all of them now: late in a process no thread can be started."""
        for hand in self.hands:
            hand.start()

    def _put(self, batch: list[Hold]) -> None:
        with self._counting:
            self._busy += 1
        try:
            self._inbox.put(batch)
        except BaseException:
            with self._counting:
                self._busy -= 1
            raise

    @property
    def running(self) -> int:
        """How many hands are busy, or about to be."""
        return self._busy

    def stop(self) -> None:
        """Send the hands home, each when it has finished what it does."""
        for hand in self.hands:
            hand.stop()
            self._inbox.put(None)

    def join(self, timeout: float | None) -> bool:
        """Wait for the hands to be gone; return whether they are."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for hand in self.hands:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not hand.join(left):
                return False
        return True

    def join_idle(self, timeout: float) -> bool:
        """Wait until no hand is left but those that still run a handler; return whether so."""
        deadline = time.monotonic() + timeout
        alive = self.hands
        while len(alive := [hand for hand in alive if not hand.join(0)]) > self._busy:
            if time.monotonic() >= deadline:
                return False
            # Any of them: which one runs a handler is not known.
            alive[-1].join(_SLICE)
        return True

    @property
    def current(self) -> bool:
        """True on one of the hands."""
        return any(hand.current for hand in self.hands)

    def _free(self) -> None:
        with self._counting:
            self._busy -= 1
        self._ring()

    def _work(self, stopping: Flag) -> None:
        while (batch := self._inbox.get()) is not None:
            self._take_up(batch)

    def lend_a_hand(self) -> bool:
        """
        Run the next batch that waits for a hand, on the caller's own thread; False for none.

        For whoever drives a node without threads, and steps it as he likes.
        """
        try:
            batch = self._inbox.get_nowait()
        except queue.Empty:
            return False
        if batch is not None:
            self._take_up(batch)
        return batch is not None

    def _take_up(self, batch: list[Hold]) -> None:
        try:
            if armed:
                reached("loop.hand")
            if self._returning:
                self._end(batch, Verdict.RELEASE)
            else:
                self._run(batch)
        except BaseException as e:
            self._drop(batch, e)
            raise
        finally:
            self._free()

    def _drop(self, batch: list[Hold], error: BaseException) -> None:
        """Give back what a hand that failed, and not its handler, has not settled."""
        # Taken, their leases are renewed no more, whatever happens here.
        left = [hold for hold in batch if hold.take(Verdict.RETRY)]
        text = describe(error)
        for hold in left:
            wait = hold.backoff_us()[0]
            self._settle([hold.settlement(Verdict.RETRY, wait=wait, error=text)])

    def _run(self, batch: list[Hold]) -> None:
        started = time.monotonic()
        for hold in batch:
            hold.started = started
        events: list[Any] = [hold.event for hold in batch]
        if armed:
            reached("handler.before")
        raised = self._handle(events)
        self.prefetch.took(time.monotonic() - started)
        if armed:
            reached("handler.after")
        if raised is None:
            # The last listener went away after the claim.
            self._end(batch, Verdict.RELEASE)
            # In this order: a turn may carry it in between, and then too much is called back.
            self._calling_back = self._in_order
        elif raised:
            self._fail(batch, raised)
        elif self._options.auto_confirm:
            self._end(batch, Verdict.CONFIRM)
        else:
            # Theirs to confirm now, with the lease as the limit: no more heartbeats.
            self._forget(batch)
            for hold in batch:
                hold.running = False

    def _end(self, batch: list[Hold], verdict: Verdict) -> None:
        self._settle([hold.settlement(verdict) for hold in batch if hold.take(verdict)])

    def _fail(self, batch: list[Hold], raised: list[BaseException]) -> None:
        failed = [hold for hold in batch if hold.take(Verdict.RETRY)]
        text = describe(raised[0])
        for hold in failed:
            wait, trouble = hold.backoff_us()
            if trouble is not None:
                self._announce("error", trouble)
            self._settle([hold.settlement(Verdict.RETRY, wait=wait, error=text)])
        for error in raised:
            self._announce("error", HandlerError(error, [hold.event for hold in failed]))
            if not isinstance(error, Exception):
                self._quit()
