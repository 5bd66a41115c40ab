"""
The claimer: the poll-fallback thread. Wait, take a turn, dispatch, repeat.

Rule 1: turns are taken here, one at a time. Whoever wants a claim rings the bell; only a
hand that has just become free may take the turn itself that it would ring for (`relay`).

Rule 2: this file does not know why it was woken. A wake, a poll, a freed hand and a
leave all look alike, so none of them can be special.

Rule 3: clear the bell, then claim. A ring that arrives during the claim is kept for the
next turn; the other order loses it.

Rule 4: a turn that was not answered is asked again as it was, until it is, and the first
time at once. So a lost reply delays its events by a try, and not by a lease.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from dtimer.engine.bell import Bell
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.heart import Heart
from dtimer.engine.listener import Listener
from dtimer.engine.pace import Pace
from dtimer.engine.service import Service
from dtimer.engine.turns import Turns
from dtimer.errors import ClockJump, NamespaceCorrupt, OptionError
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import Turn, TurnRequest
from dtimer.model.jitter import between
from dtimer.model.options import Options

_FIRST_PAUSE, _LONGEST_PAUSE, _SLOW_PAUSE = 0.05, 0.5, 5.0

# The longest nap, whatever is asked for: a wait of ten years is many short ones.
_LONGEST_NAP = 30.0


class Claimer(Service):
    """
    Args:
        name: The thread's.
        turns: Asks the store.
        bell: Waited for between turns.
        listener: Tells whether the node hears.
        dispatcher: Takes the claims.
        options: The node's.
        appetite: How many events there is anybody to hand to.
        changed: Told with None that Redis answers, or with the error that it does not.
        announce: Has something emitted soon.
        farewell: Called once, on this thread, as the last thing it does.
    """

    def __init__(
        self,
        name: str,
        *,
        turns: Turns,
        bell: Bell,
        listener: Listener,
        dispatcher: Dispatcher,
        options: Options,
        appetite: Callable[[], int],
        changed: Callable[[Exception | None], None],
        announce: Callable[..., None],
        farewell: Callable[[], None],
    ) -> None:
        super().__init__(name, self._loop, lambda e: announce("error", e), farewell)
        self._turns = turns
        self._bell = bell
        self._listener = listener
        self._dispatcher = dispatcher
        self._options = options
        self._appetite = appetite
        self._changed = changed
        self._announce = announce
        self._pace = Pace()
        self._pid = os.getpid()
        self._seq = 0
        self._request: TurnRequest | None = None
        self._pause = _FIRST_PAUSE
        self._told: set[type] = set()
        self._unsupplied: set[str] = set()
        self._registered = True
        self._heart = Heart(turns, dispatcher, options.lease)
        self._give_up_at: float | None = None
        # Held by whoever takes a turn.
        self._turning = threading.Lock()
        # When the next turn is to be taken, and until when the claimer sleeps.
        self._next_turn = self._asleep_until = 0.0
        #: Set when the first turn has been answered, or refused.
        self.tried = threading.Event()
        #: When a turn was last answered, on the monotonic clock.
        self.answered: float | None = None
        #: Why the last turn was not.
        self.error: Exception | None = None

    def stop_within(self, seconds: float | None) -> None:
        """
        Ask for the end: no new claims, running handlers end, all is settled.

        What still runs after *seconds* is given back as it is; None waits for it.
        """
        if seconds is not None:
            at = time.monotonic() + seconds
            self._give_up_at = at if self._give_up_at is None else min(at, self._give_up_at)
        self.stop()
        self._bell.ring()

    def _loop(self, stopping: threading.Event) -> None:
        abandoned = False
        self._next_turn = 0.0
        while True:
            rung = self._bell.clear()
            if armed:
                reached("loop.claimer")
            with self._turning:
                # Not while a hand takes a turn: what it claims would be given back by nobody.
                if stopping.is_set():
                    self._dispatcher.hand_back()
                    if not abandoned and self._overdue():
                        abandoned = True
                        self._dispatcher.abandon()
                back = self._dispatcher.start_due()
                # A nudge moves the hour, and is no reason to ask at once.
                if rung or back or stopping.is_set() or time.monotonic() >= self._next_turn:
                    nap = self._take_turn(claiming=not stopping.is_set())
                    self._next_turn = time.monotonic() + nap
                if stopping.is_set():
                    if self._done(abandoned):
                        return
                    if (patience := self._patience()) > 0:
                        self._next_turn = min(self._next_turn, time.monotonic() + patience)
                self._asleep_until = self._next_step()
            self._bell.wait(self._asleep_until - time.monotonic())

    def _next_step(self) -> float:
        """Return when there is something to do: a turn, or to start what was claimed ahead."""
        due = self._dispatcher.next_start()
        return self._next_turn if due is None else min(due, self._next_turn)

    def relay(self) -> None:
        """
        Take a turn on the hand that has just become free, when nobody else takes one.

        To wake the claimer, and be woken by it, would cost more than the turn itself.
        """
        # In a child that a handler has forked, this hand is the parent's no more.
        if os.getpid() != self._pid or not self._turning.acquire(blocking=False):
            self._bell.ring()
            return
        try:
            # At the end everything may have been given back already.
            early = self.stopping
            if not early:
                self._dispatcher.start_due()
                wait = self._dispatcher.linger()
                if wait is None:
                    wait = self._take_turn(claiming=True)
                    self._next_turn = time.monotonic() + wait
                else:
                    self._next_turn = min(self._next_turn, time.monotonic() + wait)
                early = self._next_step() < self._asleep_until
        finally:
            self._turning.release()
        if early:
            self._bell.nudge()

    def _overdue(self) -> bool:
        return self._give_up_at is not None and time.monotonic() >= self._give_up_at

    def _done(self, abandoned: bool) -> bool:
        """Tell whether nothing is left to do, or, past the deadline, to be waited for."""
        settled = not self._dispatcher.unsettled and self._request is None
        if self._dispatcher.running and not abandoned:
            return False
        return settled or (self.error is not None and self._patience() <= 0)

    def _patience(self) -> float:
        """
        Return for how many seconds a server that does not answer is still waited for.

        Not past the deadline, nor for longer than one call may take where none was given.
        """
        limit = self._give_up_at or (self.answered or 0.0) + self._options.timeout / 1e6
        return limit - time.monotonic()

    def _take_turn(self, claiming: bool) -> float:
        """Take one turn, and return how many seconds to nap after it."""
        if self._request is None:
            self._request = self._next_request(claiming)
        else:
            self._request.asked += 1
        request = self._request
        sent = time.monotonic()
        if request.echo and not request.asked:
            # Before it is sent: it may be heard before this thread runs again. Where the
            # first try got through, and only its reply was lost, no other echo will come.
            self._listener.echo_sent()
        try:
            turn = self._turns.turn(request)
        except Exception as e:
            self._listener.echo_failed()
            # What runs keeps its lease, also where no turn can be had.
            with contextlib.suppress(Exception):
                self._heart.beat()
            if not request.asked and not self._turns.slow(e):
                # A connection that was closed while it lay idle is nobody's business.
                return 0.0
            return self._unanswered(e)
        if armed:
            reached("claim.answered")
        self._request = None
        try:
            try:
                self._answered(request, turn, sent)
            finally:
                self._heart.beat()
        except Exception as e:
            return self._unanswered(e)
        self._well()
        return self._nap(request, turn, sent, claiming)

    def _next_request(self, claiming: bool) -> TurnRequest:
        self._seq += 1
        wanted = self._dispatcher.wanted(self._appetite()) if claiming else (0, 0)
        return TurnRequest(
            seq=self._seq,
            limit=wanted[0],
            ahead_us=wanted[1],
            hears=self._listener.hears and claiming,
            echo=self._listener.echo_due() <= 0,
            settlements=self._dispatcher.take_settlements(),
        )

    def _answered(self, request: TurnRequest, turn: Turn, sent: float) -> None:
        self.answered = time.monotonic()
        self._mind_the_clock(turn, sent)
        overdue = bool(turn.claims) and turn.claims[-1].due_us <= turn.now_us
        self._dispatcher.prefetch.answered(request.limit, len(turn.claims), overdue=overdue)
        if turn.claims:
            self._heart.begin(sent)
            # Not later than need be: what was claimed ahead is as late as this.
            self._dispatcher.accept(turn.claims, sent, turn.came or self.answered)
            if armed:
                reached("claim.handed")
        self._dispatcher.settled(request.settlements, turn.results)
        for id, _ in turn.buried:
            self._announce("buried", id)
        self._registered = self._registered and turn.known  # until it is done
        if not self._registered:
            self._turns.register()
            self._registered = True
        for schedule in turn.short:
            try:
                self._turns.supply(schedule)
                self._unsupplied.discard(schedule)
            except (OptionError, NamespaceCorrupt) as e:
                # A time zone that is not known here, or a definition that somebody else has
                # written. Another node may know better; it is asked for again every second.
                if schedule not in self._unsupplied:
                    self._unsupplied.add(schedule)
                    self._announce("error", e)
        if turn.buried or any(result.value == "d" for result in turn.results):
            self._turns.trim()

    def _mind_the_clock(self, turn: Turn, sent: float) -> None:
        jump = self._pace.jumped(turn.now_us / 1e6, sent)
        if not jump or self._options.now is not None:
            return
        # Leases now end sooner than is believed here, or would last for too long: they are
        # renewed at once. The server's word alone counts until they are.
        for hold in self._dispatcher.held() if jump > 0 else ():
            hold.doubt()
        self._heart.hasten()
        self._announce("error", ClockJump(jump))

    def _well(self) -> None:
        """Note that a turn and all that followed from it was done."""
        self._pause = _FIRST_PAUSE
        if self.error is not None or not self.tried.is_set():
            self.error = None
            self._told.clear()
            self._changed(None)
        self.tried.set()

    def _unanswered(self, error: Exception) -> float:
        if type(error) not in self._told:
            # Each kind once in an outage, however they take turns.
            self._told.add(type(error))
            self._changed(error)
        self.error = error
        self.tried.set()
        if self._turns.slow(error):
            return _SLOW_PAUSE
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        return between(self._pause / 2, self._pause)

    def _nap(self, request: TurnRequest, turn: Turn, sent: float, claiming: bool) -> float:
        if self._dispatcher.unsettled:
            return 0.0
        spare = self._dispatcher.room() - len(self._dispatcher.early)
        if claiming and 0 < request.limit == len(turn.claims) and spare > 0:
            return 0.0
        now = time.monotonic()
        # Jitter, that nodes do not poll together; downwards: the interval is a promise.
        nap = min(self._options.poll_interval / 1e6, _LONGEST_NAP) * between(0.8, 0.95)
        if turn.wait_us is not None:
            # Counted from the question: the next will be on its way for as long.
            wait = turn.wait_us / 1e6 - (now - sent)
            # Who asks for nothing ahead is told when it is due; perhaps the next turn will.
            ahead_us = self._dispatcher.wanted(self._appetite())[1]
            wait -= max(0, ahead_us - request.ahead_us) / 2e6
            nap = min(nap, max(0.0, wait))
        nap = min(nap, max(0.0, self._listener.echo_due()))
        if self._dispatcher.running or self._dispatcher.early:
            nap = min(nap, max(0.0, self._heart.due - now))
        if not claiming and self._give_up_at is not None:
            nap = min(nap, max(0.0, self._give_up_at - now))
        return nap
