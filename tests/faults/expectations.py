"""
Assert what every node must do under any fault.

While the fault lasts: the node reports each error, and only once; ``health()`` reports a problem;
no loop spins; connections and calls stay within limits; no thread ends.

After the fault: full service returns in time, through wakes and not only through the poll, on as
many connections as before.

At the end: no event is lost, early, or handled twice without a reason; the keys are sound; no
thread, descriptor, connection or registration is left.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

from chaos.settings import (
    CALL_LIMIT,
    CALLS_ONCE,
    CALLS_PER_EVENT,
    CALLS_PER_SECOND,
    CONNECTS_ONCE,
    CONNECTS_PER_SECOND,
    CPU_ONCE,
    CPU_SHARE,
    MOST_MEMORY,
    PATIENT,
)
from gated import Gated
from leftovers import Leftovers
from servers import LONGEST_CALL, PATIENCE, PROMPT, Running, eventually
from soundness import assert_sound

from dtimer import DTimer
from dtimer.errors import OutcomeUnknown
from dtimer.store.keys import Keys
from faults.gauges import Cost, Gauges, resident
from faults.watched import Fault, Handled, Node

T = TypeVar("T")

#: The keys that may exist after all events are gone.
_KEPT = ("sys", "memo_a", "memo_b")


class Watch:
    """
    Nodes on one server, which the tests observe during a fault.

    A context manager. At its end it asserts what must hold for all nodes.

    Args:
        server: The server of the nodes. The watch itself uses a direct connection.
        ns: The namespace of all nodes.
    """

    def __init__(self, server: Running, ns: str) -> None:
        self.server = server
        self.ns = ns
        self.keys = Keys.of(ns)
        self.nodes: list[Node] = []
        #: The deliveries, in order.
        self.handled: list[Handled] = []
        #: The lateness of each delivery, in ms, by id.
        self.lateness: dict[str, list[float]] = {}
        self.posted: dict[str, dict[str, Any]] = {}
        #: Ids that may be delivered more than once, or never, for a reason that the test knows.
        self.excused: set[str] = set()
        #: Ids whose post has an unknown outcome. They may be delivered once, or never.
        self.perhaps: set[str] = set()
        #: True if the fault may have lost acknowledged writes.
        self.rollback = False
        self._forgotten: set[str] = set()
        self._callers: list[DTimer] = []
        self._numbers = itertools.count(1)
        self.client = server.client(retry_on_error=[ConnectionError])
        self.gauges = Gauges(self.client)
        self._left = Leftovers(self.client)
        self._resident = resident()
        self._poster = DTimer("poster", server.url, ns=ns, timeout=LONGEST_CALL)
        # Without a listener, a rollback would be logged.
        self._poster.on("error", lambda _: None)

    # ---------------------------------------------------------------------- nodes and posts

    def node(self, id: str = "node", url: Any = None, sub: Any = None, **options: Any) -> Node:
        """
        Make a node that handles each event at once, and let it join.

        Args:
            id: The id of the node.
            url: How the node reaches the server: a URL, for example a proxy's, or a client.
            sub: The same for the subscription.
            options: Options besides those of `PATIENT`, or instead of them. ``handler=`` is called
                with each event before the event counts as handled.
        """
        handler = options.pop("handler", None)
        timer = DTimer(id, url or self.server.url, sub, **{"ns": self.ns} | PATIENT | options)
        node = Node(timer)
        self.nodes.append(node)

        def handle(events: list[Any]) -> None:
            for ev in events:
                if handler:
                    handler(ev)
                self.lateness.setdefault(ev.id, []).append(ev.lateness_ms)
                self.handled.append(Handled(ev.id, dict(ev), id, ev.attempt, ev.token))

        timer.on("event", handle)
        node.join()
        self.healthy(node)
        return node

    def busy_node(
        self, id: str = "node", url: Any = None, sub: Any = None, **options: Any
    ) -> tuple[Node, Gated, Any]:
        """Make a node; return it, its handler, and the event that the handler now runs with."""
        handler = Gated()
        node = self.node(id, url, sub, handler=handler, **options)
        self.post()
        (ev,) = handler.begun()
        return node, handler, ev

    def caller(self, id: str = "caller", url: Any = None, **options: Any) -> DTimer:
        """Make a timer that never joins, waits long for each reply, and leaves at the end."""
        options = {"ns": self.ns, "timeout": LONGEST_CALL} | options
        self._callers.append(DTimer(id, url or self.server.url, **options))
        return self._callers[-1]

    def post(
        self, delay: float = 0, timer: DTimer | None = None, *, more: Any = None, **options: Any
    ) -> str:
        """
        Post an event, which must be handled once, on a direct connection or through *timer*.

        If the outcome of the post is unknown, the event may be handled once, or never. The payload
        contains *more*.
        """
        ev = {"n": next(self._numbers)} | (more or {})
        try:
            id = (timer or self._poster).post(ev, delay, **options)
        except OutcomeUnknown:
            if "id" in options:
                self.perhaps.add(options["id"])
                self.posted[options["id"]] = ev
            raise
        self.posted[id] = ev
        return id

    def in_time(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Make a call, and assert that it returns or raises within its deadline."""
        began = time.monotonic()
        try:
            return call(*args, **options)
        finally:
            took = time.monotonic() - began
            assert took <= CALL_LIMIT, f"the call took {took:.2f} s"

    # ------------------------------------------------------------------------ expectations

    def times(self, id: str) -> int:
        """Return how often an event has been delivered."""
        return sum(handled.id == id for handled in list(self.handled))

    def forget(self, node: Node) -> None:
        """Remove a node that left while it could not reach the server, here and on the server."""
        self.nodes.remove(node)
        self._forgotten.add(node.id)
        self._poster._store.leave(node.incarnation)

    def latest(self, *ids: str) -> float:
        """Return the greatest lateness of these events, or of all, in ms."""
        return max(max(self.lateness[id]) for id in ids or self.lateness)

    def wait_handled(self, *ids: str) -> None:
        """Wait until each of these has been handled."""
        eventually(lambda: set(ids) <= {handled.id for handled in list(self.handled)})

    def assert_prompt(self, posts: int = 5) -> None:
        """Post some events, and assert that each is handled promptly."""
        ids = [self.post() for _ in range(posts)]
        self.wait_handled(*ids)
        assert self.latest(*ids) < PROMPT * 1000

    def claims(self) -> int:
        """Return how many claims of all nodes should have reached a handler, once none is open."""
        eventually(lambda: self._poster.stats().in_flight == 0)
        totals = self._poster.stats().totals
        return totals["started"] - totals["released"]

    def healthy(self, *nodes: Node) -> None:
        """Wait until ``health()`` of these nodes, or of all, reports no problem."""
        for node in nodes or self.nodes:
            eventually(lambda timer=node.timer: timer.health().ok)

    @contextlib.contextmanager
    def fault(
        self,
        *nodes: Node,
        degraded: bool = True,
        silent: bool = False,
        recovers: bool = True,
        outages: int = 1,
    ) -> Iterator[Fault]:
        """
        Frame a fault: the block injects it, waits with `Fault.felt`, and ends it.

        Args:
            nodes: The nodes that the fault strikes. By default all.
            degraded: Require that, before the fault ends, these nodes report the error, and their
                ``health()`` a problem.
            silent: Require that these nodes report no error and no outage.
            recovers: Require full service in time afterwards.
            outages: How often the fault may disconnect a node.
        """
        struck = nodes or tuple(self.nodes)
        degraded = degraded and not silent
        before, posted = self.gauges.read(), len(self.posted)
        fault = Fault(struck, degraded)
        yield fault
        if degraded and not fault.was_felt:
            for node in struck:
                eventually(lambda node=node: node.heard("error", before.at))
        if recovers:
            self.assert_recovery(*struck)
            cost = self.gauges.since(before)
            self._cheap(cost, len(self.posted) - posted)
            eventually(lambda: self._connected() <= before.connections + 2 * len(self.nodes) + 1)
        for node in struck:
            assert [] == node.reported_twice(before.at), node.said
            gone = node.heard("disconnected", before.at)
            assert len(gone) <= outages, f"node {node.id} was cut off {len(gone)} times: {gone}"
            if silent:
                assert [] == gone
                assert [] == node.heard("error", before.at)

    def _connected(self) -> int:
        return len(self.client.client_list())

    def _cheap(self, cost: Cost, events: int) -> None:
        nodes, seconds = len(self.nodes), cost.seconds
        limits = {
            # Only threads of nodes count, not those of proxies and of the test.
            "cpu": nodes * (CPU_ONCE + CPU_SHARE * seconds),
            "connects": nodes * (CONNECTS_ONCE + CONNECTS_PER_SECOND * seconds),
            "calls": nodes * (CALLS_ONCE + CALLS_PER_SECOND * seconds) + CALLS_PER_EVENT * events,
        }
        over = {name: getattr(cost, name) for name in limits if getattr(cost, name) > limits[name]}
        assert {} == over, f"{over} in {seconds:.2f} s; the limits are {limits}"
        ended = {t for t in cost.ended if not any(id in t for id in self._forgotten)}
        assert set() == ended, "threads ended, but their nodes have not left"
        # The nodes report everything by events, which have listeners, so nothing is logged.
        assert [] == cost.lines

    def assert_recovery(self, *nodes: Node) -> None:
        """Assert that full service, with wakes, returns within the time for a recovery."""
        ended = time.monotonic()
        self.wait_handled(self.post())
        self.healthy(*nodes)
        # Count only from here: a renewed subscription rings the bell, too.
        rings = [node.rings for node in self.nodes]
        while rings == [node.rings for node in self.nodes]:
            # A post causes no wake if no node is on duty yet, or if that node is awake anyway.
            self.wait_handled(self.post())
            assert time.monotonic() - ended <= PROMPT, "no wake arrives"
        took = time.monotonic() - ended
        assert took <= PROMPT, f"it took {took:.2f} s to recover"

    # ----------------------------------------------------------------------------- the end

    def __enter__(self) -> Self:
        self.gauges.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        patience = 0.0
        try:
            if kind is None:
                self._nothing_lost()
                patience = PATIENCE
        finally:
            self._end(patience)

    def _end(self, patience: float) -> None:
        try:
            for timer in self._callers:
                timer.leave()
            self._leave(patience)
            if patience:
                self._nothing_left()
        finally:
            self.gauges.__exit__()
            self._poster.leave()
            self.client.close()

    def _nothing_lost(self) -> None:
        wanted = {id for id in self.posted if id not in self.excused | self.perhaps}
        if not self.rollback and self.nodes:
            self.wait_handled(*wanted)
        times = Counter(handled.id for handled in self.handled)
        twice = {id: n for id, n in times.items() if n > 1 and id not in self.excused}
        if not self.rollback:
            assert {} == twice, f"handled more than once: {self.handled}"
        for one in self.handled:
            assert self.posted.get(one.id, one.payload) == one.payload, f"another payload: {one}"
        early = {id: late for id, late in self.lateness.items() if min(late) < 0}
        assert {} == early, f"delivered early: {early}"

    def _leave(self, patience: float) -> None:
        for node in self.nodes:
            began = time.monotonic()
            node.timer.leave(patience * 1000)
            took = time.monotonic() - began
            assert took < PATIENCE, f"node {node.id} took {took:.1f} s to leave"

    def _nothing_left(self) -> None:
        self._poster.leave()
        with contextlib.suppress(AssertionError):
            eventually(lambda: not str(self._left))
        left = str(self._left)
        assert not left, f"left behind: {left}"
        grown = resident() - self._resident
        assert grown < MOST_MEMORY, f"the process has grown by {grown} bytes"
        if not self.rollback:
            assert_sound(self.client, self.keys)
        assert [] == self.client.hvals(self.keys.nodes), "registrations left behind"
        if not self.excused and not self.perhaps and not self.rollback:
            kept = {getattr(self.keys, name) for name in _KEPT}
            there = {key for key in self.keys if self.client.exists(key)}
            assert set() == there - kept, f"keys left behind: {there - kept}"
