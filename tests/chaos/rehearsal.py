"""
Simulate a run: correct processes and a correct server, on a simulated clock.

The simulation has faults of every kind: replies are lost, calls give up and act later, processes
are stopped and killed, and the server does not answer. The processes record what real ones would.
So the checker must accept the history for every seed, and must reject it after a wrong change.
`chaos.history` explains the fields of the records.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from chaos.simulation import AHEAD, MS, TIMEOUT, Process, Record, Simulation

LEASE = 600 * MS


class Rehearsal(Simulation):
    """
    A simulated run.

    Args:
        seed: Decides everything.
        posts: About how many events are posted.
        nodes: The number of nodes.
        trouble: Inject faults.
        pace: The mean time between two calls of the poster, in ms.
    """

    def __init__(
        self, seed: int, *, posts: int = 40, nodes: int = 2, trouble: bool = True, pace: float = 20
    ) -> None:
        super().__init__(seed, trouble=trouble)
        self._left = posts
        self._pace = pace
        self._pids = itertools.count(100)
        self._serial = itertools.count(1)
        self._draining = False
        self._names = [f"node-{i + 1}" for i in range(nodes)]
        self._ids = [f"e{i}" for i in range(max(4, posts // 3))]
        # Generated ids, each of which is posted once.
        self._generated: list[str] = []
        # The serials of their posts.
        self._posted: dict[str, int] = {}
        self._poster = Process("poster.10")
        self._nodes: dict[str, Process] = {}

    def play(self) -> dict[str, list[Record]]:
        """Simulate the run to its end, and return the records of each process."""
        self.ask_the_time()
        for name in self._names:
            self._start(name)
        self.after(1, self._poster, self._post_on)
        if self.trouble:
            self.after(self.random.uniform(50, 300), None, self._strike)
        self.run()
        self.say(None, "final", pending=[], dead=self.server.letters(), sound=True)
        return self.records

    # --------------------------------------------------------------------------------- poster

    def _post_on(self) -> None:
        if self._left <= 0:
            self._drain()
            return
        pick = self.random.random()
        id = self.random.choice(self._ids + self._generated[-4:])
        again = self._post_later
        if pick < 0.25:
            self._generated.append(f"generated-{len(self._generated)}")
            self._post(self._poster, self._generated[-1], again, generated=True)
        elif pick < 0.62:
            self._post(self._poster, self.random.choice(self._ids), again)
        elif pick < 0.7:
            self._post(self._poster, f"debounced-{self.random.randrange(2)}", again, limited=True)
        elif pick < 0.82:
            cancel = lambda: self.server.cancel(self.us(), id)  # noqa: E731
            self.call(self._poster, "cancel", cancel, again, id=id)
        elif pick < 0.86 and self._generated:
            self._update(self.random.choice(self._generated[-4:]), again)
        elif pick < 0.88:
            drop = lambda: self.server.drop(id)  # noqa: E731
            self.call(self._poster, "drop", drop, again, id=id)
        elif pick < 0.94:
            delay = self._delay()
            move = lambda: self.server.reschedule(self.us(), id, delay)  # noqa: E731
            self.call(self._poster, "reschedule", move, again, id=id, delay_us=delay)
        else:
            revive = lambda: self.server.revive(self.us(), id)  # noqa: E731
            self.call(self._poster, "revive", revive, again, id=id)

    def _update(self, id: str, then: Callable[[Record | None], None]) -> None:
        says: Record = {"n": self._posted[id], "crc": 10_000 + next(self._serial)}
        update = lambda: self.server.update(id, says)  # noqa: E731
        self.call(self._poster, "update", update, then, id=id, **says)

    def _post_later(self, _: Record | None) -> None:
        self.after(self.random.expovariate(1 / self._pace), self._poster, self._post_on)

    def _delay(self) -> int:
        return self.random.choice([-5, 0, 0, 5, 50, 300]) * 1000

    def _post(
        self,
        process: Process,
        id: str,
        then: Callable[[Record | None], None] | None,
        *,
        limited: bool = False,
        **more: bool,
    ) -> None:
        self._left -= 1
        n = self._posted[id] = next(self._serial)
        says: Record = {"n": n, "crc": n * 7, "delay_us": self._delay(), **more}
        says["max_retries"] = self.random.choice([0, 1, 3, 3])
        says["if_exists"] = self.random.choice(
            ["replace"] * 8 + ["keep", "error", "earliest", "latest"]
        )
        if limited:
            says |= {"delay_us": 100_000, "max_wait_us": 150_000, "if_exists": "replace"}
        if self.chance(0.1):
            says["expires_us"] = self.random.choice([20_000, 400_000])
        post = lambda: self.server.post(self.us(), id, says)  # noqa: E731
        self.call(process, "post", post, then, id=id, **says)

    def _drain(self) -> None:
        def unscheduled(said: Record | None) -> None:
            if said is None:
                self._drain()
            self._draining = True

        self.trouble = False
        end = lambda: self.server.unschedule("beat")  # noqa: E731
        # By then, all late requests have acted.
        self.after(
            8_000,
            self._poster,
            lambda: self.call(self._poster, "unschedule", end, unscheduled, id="beat"),
        )

    # ---------------------------------------------------------------------------------- nodes

    def _start(self, name: str) -> None:
        node = self._nodes[name] = Process(f"{name}.{next(self._pids)}")
        self.say(node, "node", phase="begin", timeout_ms=TIMEOUT // MS)
        says: Record = {"every_us": 70_000, "max_retries": 2, "crc": 5}
        if not self._draining and self._left > 0:
            declare = lambda: self.server.declare(self.us(), "beat", says)  # noqa: E731
            self.call(node, "schedule", declare, id="beat", **says)
        self.after(1, node, lambda: self._claim(node))

    def _claim(self, node: Process) -> None:
        """Settle and claim, and plan what follows; a claim is sent again until it is answered."""
        if node.busy:
            return
        settling, node.settling = node.settling, []
        node.busy = True

        def act() -> None:
            if self.away_until > self.now:
                self.at(self.away_until + self.some(0, 400), node, act)
                return
            results = [
                self.server.settle(self.us(), run["id"], run["tok"], verdict, 50_000)
                for run, verdict in settling
            ]
            claims, letters = self.server.claim(self.us(), LEASE // 1000)
            if self.trouble and self.chance(0.05):
                self.at(self.now + self.some(60, 150), node, lambda: again(results, claims))
                return
            answer(results, claims, letters)

        def again(results: list[str], claims: list[Record]) -> None:
            if self.away_until > self.now:
                wait = self.away_until + self.some(0, 400)
                self.at(wait, node, lambda: again(results, claims))
                return
            answer(results, self.server.again(self.us(), claims, LEASE // 1000), [])

        def answer(results: list[str], claims: list[Record], letters: list[Record]) -> None:
            self.at(
                self.now + self.some(0.05, 0.5),
                node,
                lambda: self._answered(node, settling, results, claims, letters),
            )

        self.at(self.now + self.some(0.05, 0.3), node, act)

    def _answered(
        self,
        node: Process,
        settling: list[tuple[Record, str]],
        results: list[str],
        claims: list[Record],
        letters: list[Record],
    ) -> None:
        for (run, _), result in zip(settling, results, strict=True):
            if result == "stale":
                which = {name: run[name] for name in ("id", "n", "tok")}
                self.say(node, "auto", accepted=False, **which)
        for letter in letters:
            self.say(node, "expired" if letter["reason"] == "expired" else "dead", **letter)
        if claims:
            # The node waits, from the reply on, for the time that was left when the server replied.
            left = max(0, claims[0]["due"] - claims[0]["srv"]) / 1000
            wait = left + self.random.uniform(0, 1)
            self.after(wait, node, lambda: self._handle(node, claims[0]))
            return
        node.busy = False
        if not (self._draining and not self.server.model.pending and not node.settling):
            self.after(self.random.uniform(2, 20), node, lambda: self._claim(node))
        else:
            self.say(node, "node", phase="end")
            node.alive = False

    def _handle(self, node: Process, run: Record) -> None:
        k = next(self.k)
        self.say(node, "run", "inv", k=k, lease_us=LEASE // 1000, ahead_us=AHEAD, **run)
        took = self.random.choice([0, 1, 5, 20, 20, 100, 900])
        held = {"settled": False}
        which = {name: run[name] for name in ("id", "n", "tok")}

        def beat() -> None:
            if held["settled"]:
                return
            if self.away_until > self.now:
                self.at(self.away_until + self.some(0, 400), node, beat)
                return
            self.server.extend(self.us(), run["id"], run["tok"], LEASE // 1000)
            self.at(self.now + LEASE // 3, node, beat)

        def word(op: str, verdict: str) -> None:
            def settle() -> Record:
                result = self.server.settle(self.us(), run["id"], run["tok"], verdict, 20_000)
                return {"accepted": result == "done"}

            def said(said: Record | None) -> None:
                held["settled"] = said is not None
                end()

            self.call(node, op, settle, said, **which)

        def end() -> None:
            failed = self.chance(0.15)
            self.say(node, "run", "no" if failed else "ok", k=k)
            node.busy = False
            if not held["settled"]:
                held["settled"] = True
                node.settling.append((run, "retry" if failed else "confirm"))
            self._claim(node)

        def middle() -> None:
            pick = self.random.random() if self.trouble else 1.0
            if pick < 0.08:
                word("confirm", "confirm")
            elif pick < 0.12:
                word("retry", "retry")
            elif pick < 0.18 and run["n"] is not None and run["id"] not in self._generated:
                self._post(node, run["id"], lambda _: end())
            elif pick < 0.21:
                self._kill(node.p.partition(".")[0])
            else:
                end()

        self.at(self.now + LEASE // 3, node, beat)
        self.after(took, node, middle)

    # --------------------------------------------------------------------------------- trouble

    def _strike(self) -> None:
        if not self.trouble:
            return
        name = self.random.choice(self._names)
        lasts = self.random.choice([50, 300, 1500])
        kind = self.random.choice(["kill", "pause", "away"])
        if kind == "kill":
            self._kill(name)
        else:
            # A process is stopped, or the server freezes (chaos/catalogue.py).
            what, target = ("F52", name) if kind == "pause" else ("F22", "srv")
            self.say(None, "fault", name=what, target=target, phase="begin")
            if kind == "pause":
                self._nodes[name].stopped_until = self.now + lasts * MS
            else:
                self.away_until = max(self.away_until, self.now + lasts * MS)
            over = {"name": what, "target": target, "phase": "end"}
            self.after(lasts, None, lambda: self.say(None, "fault", **over))
        self.after(lasts + self.random.uniform(100, 800), None, self._strike)

    def _kill(self, name: str) -> None:
        node = self._nodes[name]
        if node.alive:
            node.alive = False
            self.say(None, "kill", pid=int(node.p.partition(".")[2]))
            self.after(self.random.uniform(20, 100), None, lambda: self._start(name))
