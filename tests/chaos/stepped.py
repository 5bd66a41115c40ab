"""
Drive nodes without threads, step by step, against a real server, in an order that a seed decides.

Each node is a whole `Node` of the library that was never started. The scheduler sends its claims,
runs its handlers, moves the clock, loses replies, delivers requests twice or late, and kills nodes
at fault points. While one handler runs, the scheduler takes steps with the other nodes.

`Truth` reads the server after every script, even if the reply is lost, and asserts the promises.
The seed decides everything: no step depends on real time or on another source of chance.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import sys
from collections.abc import Iterator
from typing import Any, Self

from chaos.tapped import Lost, TappedSource
from dtimer import faultpoints
from dtimer.errors import StoreError
from dtimer.model.options import validate
from dtimer.store.format import Entry
from dtimer.store.keys import Keys
from dtimer.store.store import Store
from dtimer.timer.node import Node

#: In milliseconds, like the options in `chaos.settings`.
OPTIONS: dict[str, Any] = {"lease": 600, "poll_interval": 100, "timeout": 300, "backoff": 40}
IDS = ["tea", "egg", "bell", "post"]
NODES = 3

#: The fault points at which a node may die. `SteppedNode.tap` adds one between sending and reading.
CRASHES = [
    *("claim.asking", "claim.answered", "claim.handed", "handler.before", "handler.after"),
    *("settle.sending", "heartbeat.sending", "retry.sending", "loop.handler", "loop.callbacks"),
]


class Crashed(BaseException):
    """The process of a node has ended. No code of the node may catch this and continue."""


class Clock:
    """The only clock: the server's time, and the stand-in for the module ``time``."""

    CLOCK_BOOTTIME = 7

    def __init__(self) -> None:
        self.us = 1_800_000_000_000_000

    def monotonic(self) -> float:
        return (self.us - 1_799_999_000_000_000) / 1e6

    def clock_gettime(self, which: int) -> float:
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        self.us += round(seconds * 1e6)

    def tick(self, ms: float) -> None:
        self.us += round(ms * 1000)


def read_lease(text: bytes) -> tuple[int, int, bool]:
    """Return the token, the attempt, and True if the event is cancelled."""
    token, attempt, _, flags, _ = text.split(b",", 4)
    return int(token), int(attempt), b"c" in flags


class Truth:
    """Follow the server's state from script to script, and assert the promises."""

    def __init__(self, client: Any, keys: Keys, clock: Clock) -> None:
        self._client = client
        self._keys = keys
        self._clock = clock
        self.scores: dict[str, int] = {}
        self.leases: dict[str, tuple[int, int, bool]] = {}
        self.bodies: dict[str, tuple[int, int]] = {}
        self.dead: dict[str, bytes] = {}
        #: For each token: the id, its generation, and the attempt.
        self.claims: dict[int, tuple[str, int, int]] = {}
        #: For each token: the state of its handler.
        self.outcomes: dict[int, str] = {}
        #: How each generation ended.
        self.ends: dict[int, str] = {}
        self.cancelled: set[int] = set()

    def look(self, script: str, arguments: list[Any]) -> None:
        """Read the server's state, and compare it with the state before *script* ran."""
        keys, now = self._keys, self._clock.us
        with self._client.pipeline(transaction=False) as pipe:
            pipe.zrange(keys.due, 0, -1, withscores=True)
            for key in (keys.lease, keys.body, keys.dead):
                pipe.hgetall(key)
            due, lease, body, dead = pipe.execute()
        words = {w.decode() if isinstance(w, bytes) else w for w in arguments}
        scores = {id.decode(): int(score) for id, score in due}
        leases = {id.decode(): read_lease(text) for id, text in lease.items()}
        bodies = {id.decode(): _body(text) for id, text in body.items()}
        dead_letters = {id.decode(): text for id, text in dead.items()}
        for id, held in sorted(leases.items(), key=lambda item: item[1]):
            if held[0] not in self.claims:
                self._claimed(id, held, bodies[id], words, now)
        for id, (n, _) in self.bodies.items():
            if id in bodies and bodies[id][0] != n:
                assert script == "post", f"{id} was replaced by {script}"
                self.ends.setdefault(n, "superseded")
            elif id in dead_letters and dead_letters[id] != self.dead.get(id):
                self.ends.setdefault(n, "dead")
            elif id not in bodies:
                self.ends.setdefault(n, self._end(script, id, n, words))
        self.scores, self.leases, self.bodies, self.dead = scores, leases, bodies, dead_letters

    def _claimed(
        self,
        id: str,
        held: tuple[int, int, bool],
        body: tuple[int, int],
        words: set[str],
        now: int,
    ) -> None:
        token, attempt, _ = held
        n, max_retries = body
        before = self.leases.get(id)
        settled = before is not None and str(before[0]) in words
        if not settled and n == self.bodies[id][0]:
            assert self.scores[id] <= now, f"{id} was claimed early, or while a lease was valid"
        assert token > max(self.claims, default=0), "a token is not higher than all before it"
        assert attempt <= max_retries + 1, f"{id} was started too often"
        assert n not in self.cancelled, f"{id} was cancelled, and then claimed"
        assert n not in self.ends, f"{id} was {self.ends.get(n)}, and then claimed"
        self.claims[token] = (id, n, attempt)

    def _end(self, script: str, id: str, n: int, words: set[str]) -> str:
        if script == "cancel":
            assert id in words, f"{id} was removed when another id was cancelled"
            self.cancelled.add(n)
            return "cancelled"
        token, _, cancelled = self.leases.get(id, (0, 0, False))
        assert token, f"{script} removed {id}, which no node had claimed"
        if cancelled:
            return "cancelled"
        assert str(token) in words, f"{script} removed {id}, but not at its holder's request"
        outcome = self.outcomes.get(token)
        assert outcome in ("ok", "confirmed"), f"{id} is confirmed, but its handler: {outcome}"
        return "confirmed"

    def holds(self, id: str, token: int) -> bool:
        """Return True if *token* belongs to the current holder and its lease has not expired."""
        held = self.leases.get(id)
        return held is not None and held[0] == token and self.scores[id] > self._clock.us


def _body(text: bytes) -> tuple[int, int]:
    head, _, payload = text.partition(b"|")
    return json.loads(payload)["n"], int(head.split(b",")[1])


class SteppedNode:
    """A node without threads, whose parts the scheduler runs one at a time."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        source: Any = TappedSource(world.client, self.tap, loads=True)
        options = validate(
            OPTIONS
            | {
                "ns": world.ns,
                "max_events": world.rng.choice([1, 2]),
                "concurrency": world.rng.choice([1, 2]),
                "now": lambda: world.clock.us / 1000,
            }
        )
        self.store = Store(source, world.ns, timeout=0.3, now=lambda: world.clock.us)
        timer: Any = self
        self.node = Node(name, options, self.store, timer)
        self.node._listener.hears = world.rng.random() < 0.7
        self.node._dispatcher.lag.late = world.rng.random() < 0.2
        self.running = 0

    def tap(self, script: Any, arguments: list[Any], send: Any) -> Any:
        """Send a script through the faulty network, and perhaps kill the process afterwards."""
        if self.dead:
            raise Crashed
        reply = self.world.network(script, arguments, send)
        if self.world.crashing is self and self.world.crash_at == "reply.reading":
            self.die()
        return reply

    def die(self) -> None:
        """End the process at once."""
        self.dead = True
        self.world.crashing = None
        raise Crashed

    def close(self) -> None:
        """Close what the node has open in the process of the test."""
        self.store.release()
        self.node.bell.close()
        self.node._listener.close()

    # -------------------------------------------------------------- what the scheduler calls

    def claim(self) -> None:
        """Send one claim, unless a handler thread of this node is sending one."""
        self.node._claimer.claim_inline()

    def work(self) -> None:
        """Run one batch to its end; the other nodes take steps in the meantime."""
        if self.running < self.node._dispatcher.pool.size:
            self.running += 1
            try:
                self.node._dispatcher.pool.run_one()
            finally:
                self.running -= 1

    def emit_one(self) -> None:
        """Call the listeners of the next emission that waits."""
        self.node._callbacks.emit_one()

    def leave(self) -> None:
        """
        Release the waiting events, settle the finished ones, and leave.

        Events whose handlers still run stay claimed until their leases expire.
        """
        try:
            self.node._dispatcher.release_waiting()
            self.node._claimer._cycle.run(claiming=False, fresh=True)
            self.store.leave(self.node.incarnation)
        finally:
            self.dead = True

    # ------------------------------------------------------------------- the node's timer

    def emit(self, event: str, *what: Any) -> None:
        """Record what the node emits."""
        self.world.said.append((self.name, event, what))

    def demand(self) -> int:
        """Accept any number of events."""
        return 100

    def listens(self) -> bool:
        """Have a listener."""
        return True

    # --------------------------------------------------------------------------- the handler

    def deliver(self, events: list[Any], results: Any) -> list[BaseException] | None:
        """
        Handle a batch, as a plain listener or as a router, and return the errors.

        A router handles and settles each event on its own.
        """
        if self.world.rng.random() < 0.5:
            return self._handle(events)
        results.begin(alone=True)
        for ev in events:
            if not results.starts([ev], None):
                continue
            if raised := self._handle([ev]):
                results.failed([ev], raised)
            else:
                results.done([ev])
        return []

    def _handle(self, events: list[Any]) -> list[BaseException]:
        """
        Handle events: let other nodes take steps, act on the events, and return the errors.

        The seed decides how many steps, which actions, and whether the handler fails.
        """
        world, truth = self.world, self.world.truth
        for ev in events:
            assert ev.token in truth.claims, "started, but never claimed"
            assert (ev.id, ev["n"], ev.attempt) == truth.claims[ev.token]
            assert ev.token not in truth.outcomes, "the same claim was started twice"
            truth.outcomes[ev.token] = "running"
        for _ in range(0 if world.draining else world.rng.choice([0, 0, 1, 2, 5])):
            world.step(within=self)
            if self.dead:
                raise Crashed
        for ev in events:
            self._check_lease(ev)
        raised = not world.draining and world.rng.random() < 0.25
        for ev in events:
            truth.outcomes[ev.token] = "raised" if raised else "ok"
            if not world.draining:
                self._act_on(ev)
        return [RuntimeError("the scheduler chose this failure")] if raised else []

    def _check_lease(self, ev: Any) -> None:
        superseded = self.world.truth.bodies.get(ev.id, (None,))[0] != ev["n"]
        if not ev.lease_lost and not superseded:
            text = f"{ev.id}: the node relies on a lease that it does not hold"
            assert self.world.truth.holds(ev.id, ev.token), text

    def _act_on(self, ev: Any) -> None:
        world, truth = self.world, self.world.truth
        kind = world.rng.choice(
            ["", "", "", "", "confirm", "retry", "extend", "cancel", "again", "snooze"]
        )
        before = truth.outcomes[ev.token]
        with contextlib.suppress(StoreError):
            if kind == "confirm":
                truth.outcomes[ev.token] = "confirmed"
                ev.confirm()
            elif kind == "retry":
                # If the retry's outcome is unknown, the end of the handler decides.
                truth.outcomes[ev.token] = "raised"
                if not ev.retry(30):
                    truth.outcomes[ev.token] = before
            elif kind == "snooze":
                truth.outcomes[ev.token] = "raised"
                if not ev.snooze(30):
                    truth.outcomes[ev.token] = before
            elif kind == "extend":
                ev.extend(world.rng.choice([300, 1_500]))
            elif kind == "cancel":
                world.cancel(self.store, ev.id)
            elif kind == "again":
                world.post(self.store, ev.id)
            return
        truth.outcomes[ev.token] = before


class World:
    """
    Hold three nodes, a poster, a network and a clock, and choose each step by a seed.

    While this context manager is entered, the library reads the time from this clock.

    Args:
        client: A client of a real server.
        ns: A namespace for this world alone.
        seed: Decides every step, fault and delay.
    """

    def __init__(self, client: Any, ns: str, seed: int) -> None:
        self.client = client
        self.ns = ns
        self.seed = seed
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.keys = Keys.of(ns)
        self.truth = Truth(client, self.keys, self.clock)
        self.said: list[tuple[str, str, tuple[Any, ...]]] = []
        self.log: list[str] = []
        self.draining = False
        self.depth = 0
        self.crashing: SteppedNode | None = None
        self.crash_at = ""
        #: Requests that the network has not delivered yet.
        self.late: list[tuple[Any, list[Any]]] = []
        self.acked: dict[int, str] = {}
        self.violations: list[AssertionError] = []
        self.counts = dict.fromkeys(("lost", "twice", "late", "crash", "leave"), 0)
        self._serials = itertools.count(1)
        self._names = itertools.count(1)
        self._stack = contextlib.ExitStack()
        self.nodes: list[SteppedNode] = []

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            # A patched clock that stays would make all later tests of this process fail.
            self._stack.close()
            raise
        return self

    def _set_up(self) -> None:
        from dtimer.engine import (
            claim_cycle,
            claimer,
            clock,
            connectivity,
            heartbeat,
            lease,
            leases,
            pipeline,
        )
        from dtimer.engine import service as services
        from dtimer.store import calls, schedules, script_client
        from dtimer.timer import health, node

        names = itertools.count(1)
        engine = (leases, claimer, claim_cycle, pipeline, heartbeat, lease, clock, services)
        for module in (*engine, script_client, schedules, calls, health):
            self._patch(module, "time", self.clock)
        for module in (script_client, node):
            self._patch(module, "incarnation", lambda: f"i{next(names):011d}")
        for module in (script_client, claim_cycle, connectivity):
            self._patch(module, "between", lambda low, high: (low + high) / 2)
        self._stack.callback(faultpoints.armed.clear)
        for point in CRASHES:
            faultpoints.armed[point] = lambda point=point: self._point(point)
        source: Any = TappedSource(self.client, self.network, loads=True)
        self.poster = Store(source, self.ns, timeout=0.3, now=lambda: self.clock.us)
        self._stack.callback(self.poster.release)
        # Late requests need a connection of their own. The sender's may be closed by then. If it
        # were opened again, nothing would close it.
        astray: Any = TappedSource(self.client, lambda _, words, send: send(words), loads=True)
        self.astray = astray.connection(self.keys)
        self._stack.callback(self.astray.close)
        self.current: SteppedNode | None = None
        for _ in range(NODES):
            self._begin()

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.close()
        self._stack.close()

    def _patch(self, module: Any, name: str, value: Any) -> None:
        self._stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)

    def _begin(self) -> None:
        node = SteppedNode(self, f"node-{next(self._names)}")
        self.nodes.append(node)
        self.do(node, node.node._node_store.register)

    # ------------------------------------------------------------------------------- faults

    def network(self, script: Any, arguments: list[Any], send: Any) -> Any:
        """Deliver a request once, twice, late or never; deliver or lose its reply."""
        luck = 1.0 if self.draining else self.rng.random()
        if luck < 0.04:
            self.counts["late"] += 1
            self.late.append((script, arguments))
            self._give_up()
        reply = self._deliver(script.name, arguments, send)
        if luck < 0.12:
            self.counts["lost"] += 1
            self._give_up()
        if luck < 0.15:
            self.counts["twice"] += 1
            with contextlib.suppress(Exception):
                self._deliver(script.name, arguments, send)
        return reply

    def _deliver(self, name: str, arguments: list[Any], send: Any) -> Any:
        try:
            return send([str(self.clock.us), *arguments[1:]])
        finally:
            try:
                self.truth.look(name, arguments)
            except AssertionError as e:
                # The engine catches what its store raises, so keep the error for `do` and `step`.
                self.violations.append(e)

    def _give_up(self) -> None:
        # The client notices a reset at once, and silence after a third of its timeout.
        self.clock.tick(self.rng.choice([0, 100]))
        raise Lost("the scheduler lost this reply")

    def _point(self, point: str) -> None:
        if self.crashing is not None and self.crashing is self.current and self.crash_at == point:
            self.log.append(f"{self.crashing.name} dies at {point}")
            self.crashing.die()

    # -------------------------------------------------------------------------------- steps

    def do(self, node: SteppedNode, what: Any) -> None:
        """Let a node do something; if it dies of that, the other nodes go on."""
        before, self.current = self.current, node
        try:
            what()
        except Crashed:
            assert node.dead, "a crash of another node was raised in this one"
        except StoreError:
            pass
        finally:
            self.current = before
            if self.violations:
                raise self.violations[0]
            if node.dead and node.running == 0 and node in self.nodes:
                self.nodes.remove(node)
                node.close()

    def step(self, within: SteppedNode | None = None) -> None:
        """Take one step: choose a node or the poster, and what happens to it."""
        self.depth += 1
        try:
            self._step()
        finally:
            self.depth -= 1
        if self.violations:
            raise self.violations[0]

    def _step(self) -> None:
        alive = [node for node in self.nodes if not node.dead]
        while len(alive) < NODES:
            self._begin()
            alive = [node for node in self.nodes if not node.dead]
        node = self.rng.choice(alive)
        luck = self.rng.random()
        if luck < 0.34:
            self._log(node, "claim")
            self.do(node, node.claim)
        elif luck < 0.56:
            if self.depth < 4:
                self._log(node, "work")
                self.do(node, node.work)
        elif luck < 0.60:
            self.do(node, node.emit_one)
        elif luck < 0.76:
            ms = self.rng.choice([0.001, 1, 20, 50, 100, 200, 300, 599, 601, 700])
            self.log.append(f"{ms} ms pass")
            self.clock.tick(ms)
        elif luck < 0.90:
            self._use_poster()
        elif luck < 0.94:
            self._late()
        elif luck < 0.98:
            self.crashing = node
            self.crash_at = self.rng.choice([*CRASHES, "reply.reading"])
            self.counts["crash"] += 1
            self.log.append(f"{node.name} will die at {self.crash_at}")
        elif node.running == 0:
            self.counts["leave"] += 1
            self._log(node, "leave")
            self.do(node, node.leave)

    def _log(self, node: SteppedNode, what: str) -> None:
        self.log.append(f"{node.name} {what}")

    def _late(self) -> None:
        if self.late:
            script, arguments = self.late.pop(self.rng.randrange(len(self.late)))
            self.log.append(f"a {script.name} arrives late")
            # A later request of the same session has arrived, so the server refuses this one.
            with contextlib.suppress(Exception):
                self._deliver(
                    script.name, arguments, lambda words: self.astray.run(script, words, 0.0)
                )

    def _use_poster(self) -> None:
        id = self.rng.choice(IDS)
        luck = self.rng.random()
        with contextlib.suppress(StoreError):
            if luck < 0.7:
                self.post(self.poster, id)
            elif luck < 0.85:
                self.cancel(self.poster, id)
            else:
                self.log.append(f"reschedule {id}")
                self.poster.reschedule(id, f"+{self.rng.choice([0, 50_000, 400_000])}")

    def post(self, store: Store, id: str) -> None:
        """Post a new generation; if this returns, `drain` requires that it comes to an end."""
        n = next(self._serials)
        delay = self.rng.choice([0, 0, 1_000, 40_000, 300_000])
        retries = self.rng.choice([0, 1, 3])
        self.log.append(f"post {id} n={n} in {delay} us, {retries} retries")
        store.post([Entry(id, f"+{delay}", f',{retries}|{{"n":{n}}}')], "replace")
        self.acked[n] = id

    def cancel(self, store: Store, id: str) -> None:
        """Cancel an event; assert that an event reported as cancelled has ended."""
        there = self.truth.bodies.get(id)
        self.log.append(f"cancel {id}")
        if store.cancel(id).value == "cancelled" and there is not None:
            assert self.truth.ends.get(there[0]) in ("cancelled", "superseded")

    # ---------------------------------------------------------------------------------- end

    def drain(self) -> None:
        """Stop all faults, take steps until no event is left, and check how each one ended."""
        self.draining, self.crashing = True, None
        self.late.clear()
        for node in [n for n in self.nodes if n.dead]:
            self.nodes.remove(node)
            node.close()
        self._begin()
        for _ in range(400):
            for node in list(self.nodes):
                self.do(node, node.claim)
                self.do(node, node.work)
                self.do(node, node.emit_one)
            if not self.truth.bodies and not any(n.node._dispatcher.pool.busy for n in self.nodes):
                break
            self.clock.tick(20)
        assert {} == self.truth.bodies, f"left: {self.truth.bodies} {self.truth.leases}"
        for node in self.nodes:
            self.do(node, node.claim)
            assert not node.node._leases.held(), "the node holds an event that is gone"
        unaccounted = {n: id for n, id in self.acked.items() if n not in self.truth.ends}
        assert {} == unaccounted, "acknowledged, but lost"


@contextlib.contextmanager
def log_on_failure(world: World) -> Iterator[None]:
    """Print the last steps of *world* if the block fails."""
    try:
        yield
    except BaseException:
        sys.stderr.write("\n".join([*world.log[-60:], ""]))
        raise
