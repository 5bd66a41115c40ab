"""
A node of the soak: one joined timer, whose handlers do as the payload says.

What a payload says, in ``do``: ``ok`` (after ``ms``), ``raise`` and ``retry`` and ``die`` (on
the first ``times`` attempts), ``confirm`` (and work on), ``extend``, ``nap`` (past the lease,
which is renewed), ``hang`` (past ``max_run``, so that it is not), ``again`` (posts its own id
anew, ``times`` times), ``cancel`` and ``reschedule`` (``whom``), ``fork``.

A run is recorded before anything of it is done. Also recorded is what the node makes known,
and what the server made of each claim that the library settled by itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from chaos.calls import Calls
from chaos.history import run_of
from chaos.mix import AHEAD, LEASE, MAX_RUN
from chaos.program import Program
from dtimer import DTimer
from dtimer.errors import HandlerError, LeaseLost, StoreError
from dtimer.faultpoints import armed
from dtimer.model.claims import Claim, Result, Settlement, Verdict
from dtimer.model.event import DeadLetter, Event
from dtimer.model.payload import decode


class Handling(Program):
    """
    See the module.

    Its setting has besides: ``sub``, the URL of the subscription; ``restless``, after how many
    seconds it leaves and joins again; ``graceful``, to leave without a time-out, mostly during a
    claim, and to record what it claims; and ``immortal``.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.calls = Calls(self.pen)
        self._lease: int = self.setting["options"]["lease"]
        self.timer = self._make()

    def _make(self) -> DTimer:
        setting = self.setting
        timer = DTimer(self.name, self.way, setting["sub"], **setting["options"])
        timer.on("event", self.handle)
        timer.on("error", self._error)
        timer.on("lease_lost", lambda ev: self._note("lost", ev))
        timer.on("retry", lambda ev: self._note("retried", ev))
        timer.on("dead", lambda letter: self._letter("dead", letter))
        timer.on("expired", lambda letter: self._letter("expired", letter))
        return timer

    # ---------------------------------------------------------------------- what it says

    def _note(self, op: str, ev: Event) -> None:
        self.pen.note(op, id=ev.id, n=ev.get("n"), tok=ev.token)

    def _letter(self, op: str, letter: DeadLetter) -> None:
        n = letter.event.get("n") if letter.event else None
        about = {"att": letter.attempt, "reason": letter.reason, "error": letter.error[:300]}
        self.pen.note(op, id=letter.id, n=n, **about)

    def _error(self, error: BaseException) -> None:
        if not isinstance(error, HandlerError | LeaseLost):
            self.pen.note("error", kind=type(error).__name__, text=str(error)[:300])

    def _watch_settlements(self) -> None:
        """Have recorded how the library ends claims by itself, and what the server says to it."""
        dispatcher: Any = self.timer._life._dispatcher
        take, settled = dispatcher.take_settlements, dispatcher.settled
        asked: dict[int, tuple[dict[str, Any], int | None]] = {}

        def taken() -> list[Settlement]:
            settlements: list[Settlement] = take()
            for s in settlements:
                hold = dispatcher._held.get(s.token)
                # Where no handler has begun there is no run that this would be a word about.
                if hold is not None and hold.started is not None:
                    about = {"id": s.id, "n": hold.event.get("n"), "tok": s.token}
                    k = None
                    if s.verdict is Verdict.RETRY:
                        # It takes as long as it takes, and no call waits for it.
                        k = self.pen.inv("retry", burst=True, **about)
                    asked[s.token] = about, k
            return settlements

        def answered(settlements: Sequence[Settlement], results: Sequence[Result]) -> None:
            for s, result in zip(settlements, results, strict=False):
                about, k = asked.pop(s.token, (None, None))
                accepted = result is not Result.STALE
                if k is not None:
                    self.pen.end("retry", k, accepted=accepted, result=result.name)
                elif about:
                    self.pen.note("auto", accepted=accepted, result=result.name, **about)
            settled(settlements, results)

        dispatcher.take_settlements, dispatcher.settled = taken, answered

    def _watch_claims(self) -> None:
        """Have recorded what is claimed, whether or not a handler is given it."""
        life: Any = self.timer._life
        accept, lease_us = life._dispatcher.accept, round(self._lease * 1000)

        def accepted(seq: int, claims: Sequence[Claim], *rest: Any, **more: Any) -> None:
            for c in claims:
                n = decode(c.payload).get("n")
                about = {"id": c.id, "n": n, "tok": c.token, "att": c.attempt, "due": c.due_us}
                about |= {"srv": c.claimed_us, "lease_us": lease_us, "by": life.incarnation}
                self.pen.note("claim", **about)
            accept(seq, claims, *rest, **more)

        life._dispatcher.accept = accepted

    # ---------------------------------------------------------------------- what it does

    def handle(self, events: list[Event]) -> None:
        """Handle a batch, as its payloads say."""
        runs = [
            self.pen.inv("run", **run_of(ev, self._lease * 1000, AHEAD * 1000)) for ev in events
        ]
        ended = "no"
        try:
            for ev in events:
                getattr(self, f"do_{ev.get('do', 'ok')}")(ev)
            ended = "ok"
        finally:
            for k in runs:
                self.pen.end("run", k, ended)

    @staticmethod
    def _wait(ms: float) -> None:
        if ms > 0:
            threading.Event().wait(ms / 1000)

    def do_ok(self, ev: Event) -> None:
        """Take a moment."""
        self._wait(ev.get("ms", 0))

    def do_raise(self, ev: Event) -> None:
        """Fail."""
        if ev.attempt <= ev["times"]:
            raise RuntimeError("as the payload says")

    def do_retry(self, ev: Event) -> None:
        """Ask for another attempt."""
        if ev.attempt <= ev["times"]:
            self.calls.settle("retry", ev, lambda: ev.retry(20))

    def do_confirm(self, ev: Event) -> None:
        """Confirm, and work on."""
        self.calls.settle("confirm", ev, ev.confirm)
        self._wait(30)

    def do_extend(self, ev: Event) -> None:
        """Hold it for longer, or for less than is left, and need it for longer than a lease."""
        self.calls.settle("extend", ev, lambda: ev.extend(ev["of"]), ms=ev["of"])
        self._wait(1.5 * LEASE)

    def do_nap(self, ev: Event) -> None:
        """Work for longer than a lease."""
        self._wait(2 * LEASE)

    def do_hang(self, ev: Event) -> None:
        """Work for so long that somebody else is given it."""
        if ev.attempt == 1:
            self._wait(MAX_RUN + 2.5 * LEASE)

    def do_again(self, ev: Event) -> None:
        """Post the own id anew, and return as if nothing had been."""
        if ev["times"] > 0:
            payload = {**ev, "n": self.serial(), "times": ev["times"] - 1}
            self.calls.post(self.timer, payload, 50, id=ev.id)

    def do_cancel(self, ev: Event) -> None:
        """Cancel somebody else."""
        self.calls.cancel(self.timer, ev["whom"])

    def do_reschedule(self, ev: Event) -> None:
        """Move somebody else."""
        self.calls.reschedule(self.timer, ev["whom"], 100)

    def do_die(self, ev: Event) -> None:
        """Take the whole process along, unless it is the one whose memory is watched."""
        if ev.attempt <= ev["times"]:
            if self.setting["immortal"]:
                raise RuntimeError("not this one")
            os.kill(os.getpid(), signal.SIGKILL)

    def do_fork(self, ev: Event) -> None:
        """Fork a child, which posts, and ends."""
        n = self.serial()
        child = os.fork()
        if not child:
            self._be_a_child(n)
        _, status = os.waitpid(child, 0)
        if status:
            raise AssertionError(f"the child ended with status {status}")

    def _be_a_child(self, n: int) -> None:
        status = 1
        try:
            assert not self.timer.joined
            self.calls.post(self.timer, {"n": n, "do": "ok"}, 20, id=f"{self.name}-c{n}")
            self.timer.leave()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    # ---------------------------------------------------------------------------- orders

    def order(self, order: dict[str, Any]) -> None:
        """Do as the nemesis says."""
        point = order["point"]
        if order["do"] == "die":
            armed[point] = lambda: os.kill(os.getpid(), signal.SIGKILL)
        elif order["do"] == "fail":
            armed[point] = lambda: self._fail(point)
        else:
            raise ValueError(order)

    def _fail(self, point: str) -> None:
        """Fail once, as anything may that cannot get memory."""
        if armed.pop(point, None):
            self.pen.note("broken", point=point)
            raise MemoryError("injected")

    def join(self) -> None:
        """Join, however long that takes."""
        while not self.ended.is_set():
            try:
                self.timer.join()
            except StoreError:
                self.listen(0.1)
            else:
                self._watch_settlements()
                if self.setting["graceful"]:
                    self._watch_claims()
                return

    def leave(self, timeout: float | None) -> None:
        """Leave."""
        with self.pen.call("leave", timeout=timeout):
            self.timer.leave(timeout)

    def _be_told_to_leave(self) -> None:
        """Have the node told so at some moment of its next claim, or at none in particular."""
        point = self.rng.choice(["turn.asking", "claim.answered", "claim.handed", None])
        life = self.timer._life
        if point is None or life is None:
            return

        def stop() -> None:
            if armed.pop(point, None):
                life.stop(None)

        armed[point] = stop
        until = time.monotonic() + 1
        while not (life.leaving or self.ended.is_set()) and time.monotonic() < until:
            self.listen(0.005)
        armed.pop(point, None)

    def listen(self, seconds: float) -> None:
        """Obey for so long."""
        until = time.monotonic() + seconds
        while not self.ended.is_set() and (left := until - time.monotonic()) > 0:
            for order in self.orders(left):
                self.order(order)

    def run(self) -> None:
        """Live until standard input ends."""
        while not self.ended.is_set():
            self.join()
            restless = self.setting["restless"]
            self.listen(self.rng.uniform(0.5, 1.5) * restless if restless else 1e6)
            if self.ended.is_set():
                break
            if self.setting["graceful"]:
                self._be_told_to_leave()
                self.leave(None)
            else:
                self.leave(self.rng.choice([None, 300]))
        self.leave(None)
        self.finish()


if __name__ == "__main__":
    Handling(sys.argv[1]).run()
