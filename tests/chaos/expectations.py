"""
What is expected of every node, whatever fault strikes it: asserted once, for all rows.

While the fault lasts: each error is told once, nothing spins, nothing connects in a storm,
``health()`` says that something is wrong. When it is over: full service in time. In the end:
nothing lost, nothing handled twice without a reason, the keys sound, and neither thread nor
descriptor nor connection nor registration left behind.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from leftovers import Left
from servers import PATIENCE, Running, eventually
from soundness import assert_sound

from chaos.settings import (
    CONNECTS_ONCE,
    CONNECTS_PER_SECOND,
    CPU_ONCE,
    CPU_SHARE,
    OPTIONS,
    RECOVERY_LIMIT,
)
from dtimer import DTimer
from dtimer.errors import HandlerError
from dtimer.store.keys import Keys


def cpu_seconds(prefix: str = "dtimer-") -> float:
    """Return the CPU time that the living threads with this prefix have used, or 0 if untold."""
    used = 0.0
    for thread in threading.enumerate():
        if thread.name.startswith(prefix):
            path = Path(f"/proc/self/task/{thread.native_id}/schedstat")
            with contextlib.suppress(OSError):
                used += int(path.read_text().split()[0]) / 1e9
    return used


class Node:
    """A node under watch: what it was handed, and what it said."""

    def __init__(self, timer: DTimer) -> None:
        self.timer = timer
        #: What was emitted, each with its moment on the monotonic clock, in order.
        self.said: list[tuple[float, str, Any]] = []
        for name in ("error", "disconnected", "connected", "lease_lost", "retry", "dead"):
            timer.on(name, lambda what=None, name=name: self._say(name, what))

    def _say(self, name: str, what: Any) -> None:
        self.said.append((time.monotonic(), name, what))

    def heard(self, name: str, since: float = 0.0) -> list[Any]:
        """Return what was emitted under *name* since then."""
        return [what for at, said, what in list(self.said) if said == name and at >= since]

    @property
    def errors(self) -> list[Exception]:
        """The errors emitted that are not a handler's own."""
        return [e for e in self.heard("error") if not isinstance(e, HandlerError)]

    @property
    def id(self) -> str:
        """The node's."""
        return self.timer.id


class Watch:
    """
    Nodes on one server, watched through a fault.

    A context manager, whose end asserts what is expected of all.

    Args:
        server: Theirs, reached directly by the watch itself.
        ns: The namespace of all of them.
    """

    def __init__(self, server: Running, ns: str) -> None:
        self.server = server
        self.ns = ns
        self.keys = Keys.of(ns)
        self.nodes: list[Node] = []
        #: Every handing out: id, payload, node, attempt, token, in order.
        self.handled: list[tuple[str, dict[str, Any], str, int, int]] = []
        self.posted: dict[str, dict[str, Any]] = {}
        #: Ids that may be handed out more than once, or never, for a reason of the test's.
        self.excused: set[str] = set()
        #: True when the fault may have lost acknowledged writes.
        self.rollback = False
        self._numbers = itertools.count(1)
        self._client = server.client(retry_on_error=[ConnectionError])
        self._left = Left(self._client)
        self._poster = DTimer("poster", server.url, ns=ns, timeout=PATIENCE * 1000)

    # ------------------------------------------------------------------------ the players

    def node(
        self, id: str = "node", url: str | None = None, sub: str | None = None, **options: Any
    ) -> Node:
        """
        Make a node that handles at once whatever it is handed, and have it join.

        Args:
            url: Its way to the server, for example a proxy's.
            sub: Another way for its subscription.
            options: More than, or other than, `OPTIONS`. ``handler=`` is called with each
                event before it counts as handled.
        """
        handler = options.pop("handler", None)
        timer = DTimer(id, url or self.server.url, sub, **{"ns": self.ns} | OPTIONS | options)
        node = Node(timer)
        self.nodes.append(node)

        def handle(events: list[Any]) -> None:
            for ev in events:
                if handler:
                    handler(ev)
                self.handled.append((ev.id, dict(ev), id, ev.attempt, ev.token))

        timer.on("event", handle)
        timer.join()
        self.healthy(node)
        return node

    def post(self, delay: float = 0, timer: DTimer | None = None, **options: Any) -> str:
        """Post an event that must be handled once, past the fault or through *timer*."""
        ev = {"n": next(self._numbers)}
        id = (timer or self._poster).post(ev, delay, **options)
        self.posted[id] = ev
        return id

    # ------------------------------------------------------------------------ expectations

    def wait_handled(self, *ids: str) -> None:
        """Wait until each of these has been handled."""
        eventually(lambda: set(ids) <= {handled[0] for handled in self.handled})

    def healthy(self, *nodes: Node) -> None:
        """Wait until these nodes, or all of them, say that they are well."""
        for node in nodes or self.nodes:
            eventually(lambda timer=node.timer: timer.health().ok)

    @contextlib.contextmanager
    def fault(self, *nodes: Node, degraded: bool = True, recovers: bool = True) -> Iterator[None]:
        """
        Inject a fault inside of this, and end it by the end of it.

        Args:
            nodes: Those that it strikes; all by default.
            degraded: Their ``health()`` must say so before the fault ends.
            recovers: Full service is demanded in time afterwards.
        """
        struck = nodes or tuple(self.nodes)
        began, used = time.monotonic(), cpu_seconds()
        connects = self._connects()
        yield
        if degraded:
            for node in struck:
                eventually(lambda timer=node.timer: not timer.health().ok)
        lasted = time.monotonic() - began
        # What proxies and the test itself use is not counted: other threads.
        spent = cpu_seconds() - used
        assert spent <= CPU_ONCE + CPU_SHARE * lasted * len(self.nodes), (
            f"the nodes used {spent:.2f} s of CPU in {lasted:.2f} s"
        )
        self._told_once(struck, began)
        if recovers:
            self.recovered(*struck)
            made = self._connects() - connects
            seconds = time.monotonic() - began
            limit = len(self.nodes) * (CONNECTS_ONCE + CONNECTS_PER_SECOND * seconds)
            # A server that restarted counts anew.
            assert made <= limit, f"{made} connections in {seconds:.2f} s"

    def recovered(self, *nodes: Node) -> None:
        """Assert full service within the time that a recovery may take from now on."""
        ended = time.monotonic()
        id = self.post()
        self.wait_handled(id)
        self.healthy(*nodes)
        took = time.monotonic() - ended
        assert took <= RECOVERY_LIMIT, f"it took {took:.2f} s to recover"

    def _told_once(self, nodes: tuple[Node, ...], since: float) -> None:
        for node in nodes:
            said = Counter(
                type(e) for e in node.heard("error", since) if not isinstance(e, HandlerError)
            )
            again = {kind.__name__: n for kind, n in said.items() if n > 2}
            assert {} == again, f"node {node.id} said the same again and again"
            assert len(node.heard("disconnected", since)) <= 2, node.said

    def _connects(self) -> int:
        with contextlib.suppress(Exception):
            return int(self._client.info("stats")["total_connections_received"])
        return 0

    # ----------------------------------------------------------------------------- the end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._nothing_lost()
            self._leave()
            if kind is None:
                self._nothing_left()
        finally:
            self._poster.leave()
            self._client.close()

    def _nothing_lost(self) -> None:
        wanted = {id: ev for id, ev in self.posted.items() if id not in self.excused}
        if not self.rollback and self.nodes:
            self.wait_handled(*wanted)
        times = Counter(handled[0] for handled in self.handled)
        twice = {id: n for id, n in times.items() if n > 1 and id in wanted}
        if not self.rollback:
            assert {} == twice, f"handled more than once: {self.handled}"
        for id, ev, *_ in self.handled:
            assert self.posted.get(id, ev) == ev, f"{id} was handed out with another payload"

    def _leave(self) -> None:
        for node in self.nodes:
            asked = time.monotonic()
            node.timer.leave(PATIENCE * 1000)
            took = time.monotonic() - asked
            assert took < PATIENCE, f"node {node.id} took {took:.1f} s to leave"

    def _nothing_left(self) -> None:
        self._poster.leave()
        with contextlib.suppress(AssertionError):
            eventually(lambda: not str(self._left))
        left = str(self._left)
        assert not left, f"left behind: {left}"
        if not self.rollback:
            assert_sound(self._client, self.keys)
        assert [] == self._client.hvals(self.keys.nodes), "registrations left behind"
