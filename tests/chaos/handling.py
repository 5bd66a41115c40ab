"""
Run one node of the soak, whose handlers do what the payload says.

The values of ``do`` in a payload:

``ok``
    Return after ``ms``.
``raise``, ``retry``, ``die``
    Fail, ask for a retry, or kill the process, on the first ``times`` attempts.
``snooze``
    Put the event off, at random.
``bury``, ``skip``
    Make the event a dead letter, by a call or by `SkipRetry`, on the attempt ``times``.
``confirm``
    Confirm, and continue to work.
``extend``
    Extend the lease.
``nap``
    Work for longer than a lease, which the node renews.
``hang``
    Work for longer than ``max_run``, after which the node no longer renews the lease.
``again``
    Post the event's own id again, ``times`` times.
``cancel``, ``reschedule``
    Change the event ``whom``.
``fork``
    Fork a child, which posts.

A run is recorded before its handler does anything. The program also records the events that the
node emits, and the server's reply for each claim that the library settles by itself.
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
from chaos.program import Program
from chaos.workload import AHEAD, LEASE, MAX_RUN, codec
from dtimer import DTimer, Router
from dtimer.errors import SkipRetry, StoreError
from dtimer.faultpoints import POINTS, armed
from dtimer.model.claims import Claim, Outcome, Settlement, Verdict
from dtimer.model.event import Event
from dtimer.model.records import DeadLetter

#: The points of `dtimer.faultpoints` at which a node may stop during a claim.
STOPS = ["claim.asking", "claim.answered", "claim.handed"]


class Handling(Program):
    """
    The program of a node.

    Further settings: ``sub``, the URL of the subscription; ``restless``, the seconds after which
    the node leaves and joins again; ``graceful``, to leave without a time-out, mostly during a
    claim, and to record all claims; ``immortal``, to survive ``die``.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.calls = Calls(self.writer)
        self._lease: int = self.setting["options"]["lease"]
        self.timer = self._make()

    def _make(self) -> DTimer:
        setting = self.setting
        options = setting["options"] | {"codec": codec(self.start)}
        timer = DTimer(self.name, self.client_or_url, setting["sub"], **options)
        # Every second process has a router, which handles and settles each event on its own.
        timer.on("event", self._router() if self.start % 2 else self.handle)
        timer.on("error", self.note_error)
        timer.on("lease_lost", lambda ev: self._note("lost", ev))
        timer.on("retry", lambda ev: self._note("retried", ev))
        timer.on("dead", lambda letter: self._letter("dead", letter))
        timer.on("expired", lambda letter: self._letter("expired", letter))
        return timer

    def _router(self) -> Router:
        router = Router("do")
        for name in dir(self):
            if name.startswith("do_"):
                router.route(name.removeprefix("do_"))(lambda ev: self.handle([ev]))
        return router

    # -------------------------------------------------------------------------- records

    def _note(self, op: str, ev: Event) -> None:
        self.writer.note(op, id=ev.id, n=ev.get("n"), tok=ev.token)

    def _letter(self, op: str, letter: DeadLetter) -> None:
        n = letter.event.get("n") if letter.event else None
        about = {"att": letter.attempt, "reason": letter.reason, "error": letter.error[:300]}
        self.writer.note(op, id=letter.id, n=n, **about)

    def _watch_settlements(self) -> None:
        """Record each claim that the library settles by itself, and the server's reply."""
        leases: Any = self.timer._node._leases
        take, settled = leases.take_settlements, leases.settled
        asked: dict[int, tuple[dict[str, Any], int | None]] = {}

        def taken() -> list[Settlement]:
            settlements: list[Settlement] = take()
            for s in settlements:
                lease = leases._leases.get(s.token)
                # Without a started handler, the history has no run that this could refer to.
                if lease is not None and lease.started is not None:
                    about = {"id": s.id, "n": lease.event.get("n"), "tok": s.token}
                    k = None
                    if s.verdict in (Verdict.RETRY, Verdict.SNOOZE):
                        # No call waits for it, so it has no deadline: record it as a burst.
                        k = self.writer.inv(s.verdict.value, burst=True, **about)
                    asked[s.token] = about | {"op": s.verdict.value}, k
            return settlements

        def answered(settlements: Sequence[Settlement], results: Sequence[Outcome]) -> None:
            for s, result in zip(settlements, results, strict=False):
                about, k = asked.pop(s.token, (None, None))
                accepted = result is not Outcome.STALE
                op = about and about.pop("op")
                if k is not None:
                    self.writer.end(op, k, accepted=accepted, result=result.name)
                elif about:
                    self.writer.note("auto", accepted=accepted, result=result.name, **about)
            settled(settlements, results)

        leases.take_settlements, leases.settled = taken, answered

    def _watch_claims(self) -> None:
        """Record each claim, whether or not a handler receives the event."""
        node: Any = self.timer._node
        grant, lease_us = node._leases.grant, round(self._lease * 1000)

        def granted(claims: Sequence[Claim], *rest: Any) -> Any:
            for c in claims:
                n = codec(0).decode(c.payload).get("n")
                about = {"id": c.id, "n": n, "tok": c.token, "att": c.attempt, "due": c.due_us}
                about |= {"srv": c.claimed_us, "lease_us": lease_us, "by": node.incarnation}
                self.writer.note("claim", **about)
            return grant(claims, *rest)

        node._leases.grant = granted

    # -------------------------------------------------------------------------- handlers

    def handle(self, events: list[Event]) -> None:
        """Handle a batch: do what each payload says."""
        runs = [
            self.writer.inv("run", **run_of(ev, self._lease * 1000, AHEAD * 1000)) for ev in events
        ]
        ended = "no"
        try:
            for ev in events:
                getattr(self, f"do_{ev.get('do', 'ok')}")(ev)
            ended = "ok"
        finally:
            for k in runs:
                self.writer.end("run", k, ended)

    @staticmethod
    def _wait(ms: float) -> None:
        if ms > 0:
            threading.Event().wait(ms / 1000)

    def do_ok(self, ev: Event) -> None:
        """Return after ``ms``."""
        self._wait(ev.get("ms", 0))

    def do_raise(self, ev: Event) -> None:
        """Raise, on the first attempts."""
        if ev.attempt <= ev["times"]:
            raise RuntimeError("as the payload says")

    def do_retry(self, ev: Event) -> None:
        """Ask for a retry, on the first attempts."""
        if ev.attempt <= ev["times"]:
            self.calls.settle("retry", ev, lambda: ev.retry(20))

    def do_snooze(self, ev: Event) -> None:
        """Put the event off. No attempt is counted, so chance must end this."""
        if self.rng.random() < 0.6:
            self.calls.settle("snooze", ev, lambda: ev.snooze(20))

    def do_bury(self, ev: Event) -> None:
        """Make the event a dead letter."""
        if ev.attempt == ev["times"]:
            self.calls.settle("bury", ev, lambda: ev.bury("as the payload says"))

    def do_skip(self, ev: Event) -> None:
        """Raise, so that this event of the batch becomes a dead letter."""
        if ev.attempt == ev["times"]:
            raise SkipRetry("as the payload says", ev)

    def do_confirm(self, ev: Event) -> None:
        """Confirm, and continue to work."""
        self.calls.settle("confirm", ev, ev.confirm)
        self._wait(30)

    def do_extend(self, ev: Event) -> None:
        """Extend the lease, perhaps by less than is left, and work for longer than a lease."""
        self.calls.settle("extend", ev, lambda: ev.extend(ev["of"]), ms=ev["of"])
        self._wait(1.5 * LEASE)

    def do_nap(self, ev: Event) -> None:
        """Work for longer than a lease."""
        self._wait(2 * LEASE)

    def do_hang(self, ev: Event) -> None:
        """Work on the first attempt for so long that the event is delivered again."""
        if ev.attempt == 1:
            self._wait(MAX_RUN + 2.5 * LEASE)

    def do_again(self, ev: Event) -> None:
        """Post the event's own id again, and return."""
        if ev["times"] > 0:
            payload = {**ev, "n": self.serial(), "times": ev["times"] - 1}
            self.calls.post(self.timer, payload, 50, id=ev.id)

    def do_cancel(self, ev: Event) -> None:
        """Cancel another event."""
        self.calls.cancel(self.timer, ev["whom"])

    def do_reschedule(self, ev: Event) -> None:
        """Move another event."""
        self.calls.reschedule(self.timer, ev["whom"], 100)

    def do_die(self, ev: Event) -> None:
        """Kill the process, on the first attempts. An immortal node raises instead."""
        if ev.attempt <= ev["times"]:
            if self.setting["immortal"]:
                raise RuntimeError("this node is immortal")
            os.kill(os.getpid(), signal.SIGKILL)

    def do_fork(self, ev: Event) -> None:
        """Fork a child that posts and ends, and wait for it."""
        n = self.serial()
        child = os.fork()
        if not child:
            self._run_child(n)
        _, status = os.waitpid(child, 0)
        if status:
            raise AssertionError(f"the child ended with status {status}")

    def _run_child(self, n: int) -> None:
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
        """Carry out an order of the nemesis: fail or die at a fault point."""
        point = order["point"]
        if point not in POINTS:
            raise ValueError(f"unknown fault point {point!r}")
        if order["do"] == "die":
            armed[point] = lambda: os.kill(os.getpid(), signal.SIGKILL)
        elif order["do"] == "fail":
            armed[point] = lambda: self._fail(point)
        else:
            raise ValueError(order)

    def _fail(self, point: str) -> None:
        """Raise a memory error, once. Any code may get one."""
        if armed.pop(point, None):
            self.writer.note("broken", point=point)
            raise MemoryError("injected")

    def join(self) -> None:
        """
        Join, or try until standard input ends.

        Half of the time the timer tries in the background. It may then leave while it joins.
        """
        in_background = self.rng.random() < 0.5
        while not self.ended.is_set():
            try:
                if in_background:
                    self.timer.join(wait=False)
                    self.listen(0.1)
                    if not self.timer.joined:
                        continue
                else:
                    self.timer.join()
            except StoreError:
                self.listen(0.1)
            else:
                self._watch_settlements()
                if self.setting["graceful"]:
                    self._watch_claims()
                return

    def leave(self, timeout: float | None) -> None:
        """Leave, and record the call."""
        with self.writer.call("leave", timeout=timeout):
            self.timer.leave(timeout)

    def _stop_during_claim(self) -> None:
        """Stop the node at some fault point of its next claim, or at no particular moment."""
        point = self.rng.choice([*STOPS, None])
        node = self.timer._node
        if point is None or node is None:
            return

        def stop() -> None:
            if armed.pop(point, None):
                node.stop(None)

        armed[point] = stop
        until = time.monotonic() + 1
        while not (node.leaving or self.ended.is_set()) and time.monotonic() < until:
            self.listen(0.005)
        armed.pop(point, None)

    def listen(self, seconds: float) -> None:
        """Wait for some seconds, and carry out the orders that arrive."""
        until = time.monotonic() + seconds
        while not self.ended.is_set() and (left := until - time.monotonic()) > 0:
            for order in self.orders(left):
                self.order(order)

    def run(self) -> None:
        """Join, work and leave, again and again, until standard input ends."""
        while not self.ended.is_set():
            self.join()
            restless = self.setting["restless"]
            self.listen(self.rng.uniform(0.5, 1.5) * restless if restless else 1e6)
            if self.ended.is_set():
                break
            if self.setting["graceful"]:
                self._stop_during_claim()
                self.leave(None)
            else:
                self.leave(self.rng.choice([None, 300]))
        self.leave(None)
        self.finish()


if __name__ == "__main__":
    Handling(sys.argv[1]).run()
