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
from typing import NamedTuple

from dtimer.engine.answers import Answers
from dtimer.engine.bell import Bell
from dtimer.engine.capacity import Capacity
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.exchange import Exchange
from dtimer.engine.flag import Flag
from dtimer.engine.heart import Heart
from dtimer.engine.listener import Listener
from dtimer.engine.prefetch import IN_ADVANCE
from dtimer.engine.reach import Reach
from dtimer.engine.service import Service
from dtimer.engine.turns import Turns
from dtimer.faultpoints import armed, reached
from dtimer.model.claims import Turn, TurnRequest
from dtimer.model.jitter import between
from dtimer.model.options import Options

# The longest nap, whatever is asked for: a wait of ten years is many short ones.
_LONGEST_NAP = 30.0


class _Unread(NamedTuple):
    """An answer: to what, sent when, here since when, and whether it lay before it was read."""

    request: TurnRequest
    turn: Turn
    sent: float
    came: float
    lay: bool


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
        #: Whether the store answers.
        self.reach = Reach(turns.slow, changed)
        self._pid = os.getpid()
        #: How much the connection is good for.
        self.capacity = Capacity(options, announce)
        self._exchange = Exchange(turns, listener, dispatcher, appetite, self.capacity)
        # What was answered, and is still to be handed out.
        self._unread: _Unread | None = None
        self._heart = Heart(turns, dispatcher, options.lease)
        self._answers = Answers(
            turns=turns,
            dispatcher=dispatcher,
            heart=self._heart,
            announce=announce,
            paced=options.now is None,
        )
        self._give_up_at: float | None = None
        # Set by a hand that has become free while a turn was taken.
        self._freed = False
        # Held by whoever takes a turn.
        self._turning = threading.Lock()
        # When the next turn is to be taken, and until when the claimer sleeps.
        self._next_turn = self._asleep_until = 0.0
        #: When a turn was last answered, on the monotonic clock.
        self.answered: float | None = None

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

    def _loop(self, stopping: Flag) -> None:
        abandoned = False
        self._next_turn = 0.0
        while True:
            rung = self._bell.clear()
            if armed:
                reached("loop.claimer")
            with self._turning:
                # Read once a round: a stop that comes later, during a claim, is obeyed by the
                # next round, which first gives back what that claim brought.
                leaving = stopping.is_set()
                # Not while a hand takes a turn: what it claims would be given back by nobody.
                if leaving:
                    self._dispatcher.hand_back()
                    if not abandoned and self._overdue():
                        abandoned = True
                        self._dispatcher.abandon()
                back = self._dispatcher.start_due()
                freed, self._freed = self._freed, False
                if rung or back or leaving:
                    self._take_turns(claiming=not leaving, fresh=True)
                elif freed:
                    self._go_on()
                elif time.monotonic() >= self._next_turn:
                    # A nudge moves the hour, and is no reason to ask at once.
                    self._take_turns()
                if leaving:
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
        if os.getpid() != self._pid:
            self._bell.ring()
            return
        if not self._turning.acquire(blocking=False):
            self._freed = True
            self._bell.nudge()
            return
        try:
            # At the end everything may have been given back already.
            early = self.stopping
            if not early:
                self._dispatcher.start_due()
                self._go_on()
                early = self._next_step() < self._asleep_until
        finally:
            self._turning.release()
        if early:
            self._bell.nudge()

    def _go_on(self) -> None:
        """Take a turn for a hand that has become free, unless there is something left for it."""
        wait = self._dispatcher.linger()
        if wait is None:
            self._take_turns()
        else:
            self._next_turn = min(self._next_turn, time.monotonic() + wait)

    def _take_turns(self, *, claiming: bool = True, fresh: bool = False) -> None:
        """
        Take a turn: the one that is under way, where there is one.

        Where it has to be *fresh*, or leaves something to do at once, another after that.
        """
        early = self._exchange.under_way or self._unread is not None
        nap = self._take_turn(claiming)
        if early and self._exchange.request is None and (fresh or nap <= 0):
            nap = self._take_turn(claiming)
        self._next_turn = time.monotonic() + nap

    def _overdue(self) -> bool:
        return self._give_up_at is not None and time.monotonic() >= self._give_up_at

    def _done(self, abandoned: bool) -> bool:
        """Tell whether nothing is left to do, or, past the deadline, to be waited for."""
        # First of all: a handler that returns is settled before it counts as ended.
        if self._dispatcher.running and not abandoned:
            return False
        asked = self._exchange.request is not None or self._unread is not None
        settled = not (asked or self._dispatcher.unsettled or self._dispatcher.early)
        return settled or (self.reach.error is not None and self._patience() <= 0)

    def _patience(self) -> float:
        """
        Return for how many seconds a server that does not answer is still waited for.

        Not past the deadline, nor for longer than one call may take where none was given.
        """
        limit = self._give_up_at or (self.answered or 0.0) + self._options.timeout / 1e6
        return limit - time.monotonic()

    def _take_turn(self, claiming: bool) -> float:
        """Take one turn, and return how many seconds to nap after it."""
        if self._unread is not None:
            return self._hand_out(self._unread, claiming)
        exchange = self._exchange
        lay = exchange.under_way
        request = exchange.next(claiming)
        try:
            turn = exchange.answer(request)
            more = exchange.wanted_meanwhile(request, turn) if claiming else 0
            if not more:
                # While it can be asked for again.
                turn.claims[:]
        except Exception as e:
            # What runs keeps its lease, also where no turn can be had.
            with contextlib.suppress(Exception):
                self._heart.beat()
            if exchange.broke(request, e):
                # Redis is there: a join need not wait until all that was claimed has arrived.
                self.reach.answered()
                return 0.0
            if not request.asked and not self._turns.slow(e):
                # A connection that was closed while it lay idle is nobody's business.
                return 0.0
            return self.reach.failed(e)
        self.answered = time.monotonic()
        self._unread = _Unread(request, turn, exchange.sent, turn.came or self.answered, lay)
        exchange.done()
        if armed:
            reached("claim.answered")
        if more:
            exchange.ask_meanwhile(more)
        return self._hand_out(self._unread, claiming)

    def _hand_out(self, answer: _Unread, claiming: bool) -> float:
        """See to what was answered, and return how many seconds to nap after that."""
        request, turn, sent, came, lay = answer
        under_way = self._exchange.under_way
        try:
            turn.claims[:]
            # Where that has failed, it is read the next time.
            self._unread = None
            try:
                self._answers.take(request, turn, sent, came, lay=lay)
            finally:
                self._heart.beat()
        except Exception as e:
            if self._unread is not None:
                with contextlib.suppress(Exception):
                    self._heart.beat()
            pause = self.reach.failed(e)
            return min(pause, IN_ADVANCE) if under_way else pause
        self.reach.answered()
        if under_way:
            return IN_ADVANCE
        if self._exchange.request is not None:
            # It could not be sent: what is wrong will be seen when it is asked again.
            return 0.0
        self._dispatcher.reposts.end()
        return self._nap(request, turn, sent, claiming)

    def _nap(self, request: TurnRequest, turn: Turn, sent: float, claiming: bool) -> float:
        if self._dispatcher.unsettled:
            return self._dispatcher.linger() or 0.0
        spare = self._dispatcher.room() - len(self._dispatcher.early)
        if claiming and 0 < request.limit == len(turn.claims) and spare > 0:
            return 0.0
        if claiming and spare > 0 and self._listener.hears and not request.hears:
            # It has not offered its hands yet: nobody would wake it.
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
