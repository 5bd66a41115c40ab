"""The nodes that a test observes during a fault, and the fault: see `faults.expectations`."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any, NamedTuple

from servers import eventually

from dtimer import DTimer
from dtimer.errors import HandlerError, StateRollback, StoreError


class Handled(NamedTuple):
    """A delivery of an event."""

    id: str
    payload: dict[str, Any]
    node: str
    attempt: int
    token: int


class Node:
    """An observed node, with the events that it emitted."""

    def __init__(self, timer: DTimer) -> None:
        self.timer = timer
        #: The emitted events, in order, each with its moment on the monotonic clock.
        self.said: list[tuple[float, str, Any]] = []
        #: How often a wake, or a renewed subscription, has rung the bell.
        self.rings = 0
        self.incarnation = ""
        for name in ("error", "disconnected", "connected", "lease_lost", "retry", "dead"):
            timer.on(name, lambda what=None, name=name: self._say(name, what))

    def _say(self, name: str, what: Any) -> None:
        self.said.append((time.monotonic(), name, what))

    def join(self) -> None:
        """Let the node join, even on a busy machine, and count the rings of its bell."""
        eventually(self._joined)
        assert self.timer._node
        self.incarnation = self.timer._node.incarnation
        listener = self.timer._node._listener
        ring = listener._bell.ring

        def counted() -> None:
            self.rings += 1
            ring()

        bell: Any = SimpleNamespace(ring=counted)
        listener._bell = bell

    def _joined(self) -> bool:
        with contextlib.suppress(StoreError):
            self.timer.join()
        return self.timer.joined

    def heard(self, name: str, since: float = 0.0) -> list[Any]:
        """Return what the node has emitted as *name* since the moment *since*."""
        return [what for at, said, what in list(self.said) if said == name and at >= since]

    @property
    def errors(self) -> list[Exception]:
        """The emitted errors, without those of handlers."""
        return [e for e in self.heard("error") if not isinstance(e, HandlerError)]

    @property
    def rollbacks(self) -> list[StateRollback]:
        return [e for e in self.errors if isinstance(e, StateRollback)]

    @property
    def id(self) -> str:
        return self.timer.id

    def reported_twice(self, since: float) -> list[str]:
        """Return the reports since *since* that repeat an earlier one without a recovery."""
        reports: Counter[str] = Counter()
        repeated = []
        state = "connected"
        for at, name, what in list(self.said):
            if name == "connected":
                reports.clear()
            if name == "error" and not isinstance(what, HandlerError):
                kind = f"{str(what).partition(':')[0]} ({type(what.__cause__ or what).__name__})"
                reports[kind] += 1
                if reports[kind] > 1 and at >= since:
                    repeated.append(kind)
            if name in ("connected", "disconnected"):
                if name == state == "disconnected" and at >= since:
                    repeated.append(name)
                state = name
        return repeated


class Fault:
    """An active fault: see `Watch.fault`."""

    def __init__(self, struck: tuple[Node, ...], degraded: bool) -> None:
        self.began = time.monotonic()
        self.was_felt = False
        self._struck = struck
        self._degraded = degraded

    def felt(self, seconds: float = 0.5) -> None:
        """
        Wait until the struck nodes report the fault, and until it has lasted for *seconds*.

        The nodes must report an error, and their ``health()`` a problem. After the seconds, a busy
        loop or repeated reports would have shown.
        """
        self.was_felt = True
        if self._degraded:
            for node in self._struck:
                eventually(lambda node=node: self._is_felt(node))
                health = node.timer.health()
                assert health.joined
                assert health.error or health.deaf, health
        eventually(lambda: time.monotonic() >= self.began + seconds)

    def _is_felt(self, node: Node) -> bool:
        return bool(not node.timer.health().ok and node.heard("error", self.began))
