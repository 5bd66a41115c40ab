"""
The nemesis: inject one fault after another, up to three at a time, in an order that a seed decides.

The nemesis deals the faults from a shuffled deck that has each of them once, and adds another deck
before the last cards are dealt. So a run of sufficient length has every fault. A shorter run
reports which faults are missing.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chaos import network_faults, process_faults, server_faults
from chaos.history import Writer
from chaos.injections import INJECTIONS, FaultContext, Injection

#: The modules of the faults, which register their injections when they are imported.
BOOKS = (network_faults, process_faults, server_faults)

#: How many faults may be active at a time, and the seconds between two of them.
_MOST_ACTIVE = 3
_PAUSE = (0.7, 1.9)


@dataclass
class _Active:
    name: str
    target: str
    server: bool
    until: float
    injection: Injection


class Nemesis:
    """
    Injects and ends faults, each time that `act` is called.

    Args:
        context: The possible targets, and the means to strike them.
        writer: Records the beginning and the end of each fault.
        rng: Decides the faults, their times, their targets and their lengths.
        faults: The numbers of the faults.
        weights: How often a fault is in the deck, if not once.
    """

    def __init__(
        self,
        context: FaultContext,
        writer: Writer,
        rng: random.Random,
        faults: Sequence[str] = tuple(INJECTIONS),
        weights: dict[str, int] | None = None,
    ) -> None:
        self._context = context
        self._writer = writer
        self._rng = rng
        self._cards = [name for name in faults for _ in range((weights or {}).get(name, 1))]
        self._deck: deque[str] = deque()
        self._active: list[_Active] = []
        self._next = 0.0
        #: How often each fault had an effect, and how often it had none.
        self.struck: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()

    def act(self) -> None:
        """End the faults whose time is over, and inject another one if it is time."""
        now = time.monotonic()
        for active in [a for a in self._active if a.until <= now]:
            self._end(active)
        if now >= self._next:
            if len(self._active) < _MOST_ACTIVE:
                self._strike()
            self._next = time.monotonic() + self._rng.uniform(*_PAUSE)

    def _deal(self) -> str | None:
        """Return the next fault of the deck that may be active together with the current ones."""
        if len(self._deck) < max(3, len(self._cards) // 4):
            more = self._rng.sample(self._cards, len(self._cards))
            self._deck.extend(more)
        names = {active.name for active in self._active}
        occupied = any(active.server for active in self._active)
        for name in self._deck:
            if name not in names and not (occupied and INJECTIONS[name][1]):
                self._deck.remove(name)
                return name
        return None

    def _strike(self) -> None:
        name = self._deal()
        if name is None:
            return
        injection, server = INJECTIONS[name]
        running = injection(self._context)
        said: Any = next(running)
        target, seconds = said
        self._writer.note("fault", name=name, target=target, phase="begin")
        next(running)
        self._active.append(_Active(name, target, server, time.monotonic() + seconds, running))

    def _end(self, active: _Active) -> None:
        struck = next(active.injection)
        if struck is None:
            # The fault has not ended yet. Try again at the next call.
            return
        self._active.remove(active)
        self._writer.note(
            "fault", name=active.name, target=active.target, phase="end", struck=struck
        )
        (self.struck if struck else self.missed)[active.name] += 1
        if not struck:
            # Try this fault again soon: its target may have been down already.
            self._deck.insert(3, active.name)

    def heal(self) -> None:
        pause = threading.Event()
        while self._active:
            for active in list(self._active):
                self._end(active)
            pause.wait(0.01)

    @property
    def never(self) -> list[str]:
        """The faults of the deck that have never had an effect."""
        return sorted(set(self._cards) - set(self.struck))
