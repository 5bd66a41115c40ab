"""
The nemesis: has one thing after the other go wrong, by seed, and several at a time.

It deals from a deck in which each fault is once, shuffled anew whenever it is used up. So
a run that lasts long enough has had all of them, and one that has not says which.
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
from chaos.scene import INJECTIONS, Injection, Scene

#: Where they are; to be imported is to be registered.
BOOKS = (network_faults, process_faults, server_faults)

#: Faults that may last at a time, and the seconds between two strikes.
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
    Strikes when it is given the chance.

    Args:
        scene: Whom, and by what.
        pen: Records each fault's beginning and end.
        rng: Decides what, when, whom and for how long.
        faults: Their numbers.
        weights: How often some of them are in the deck, instead of once.
    """

    def __init__(
        self,
        scene: Scene,
        pen: Writer,
        rng: random.Random,
        faults: Sequence[str] = tuple(INJECTIONS),
        weights: dict[str, int] | None = None,
    ) -> None:
        self._scene = scene
        self._pen = pen
        self._rng = rng
        self._cards = [name for name in faults for _ in range((weights or {}).get(name, 1))]
        self._deck: deque[str] = deque()
        self._active: list[_Active] = []
        self._next = 0.0
        #: How often each has struck, and how often it tried to and did not.
        self.struck: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()

    def act(self) -> None:
        """End what has lasted long enough, and strike if it is time."""
        now = time.monotonic()
        for active in [a for a in self._active if a.until <= now]:
            self._end(active)
        if now >= self._next:
            if len(self._active) < _MOST_ACTIVE:
                self._strike()
            self._next = time.monotonic() + self._rng.uniform(*_PAUSE)

    def _deal(self) -> str | None:
        """Return the next card, of those that may be played beside what is active."""
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
        running = injection(self._scene)
        said: Any = next(running)
        target, seconds = said
        self._pen.note("fault", name=name, target=target, phase="begin")
        next(running)
        self._active.append(_Active(name, target, server, time.monotonic() + seconds, running))

    def _end(self, active: _Active) -> None:
        struck = next(active.injection)
        if struck is None:
            # It takes its time to end.
            return
        self._active.remove(active)
        self._pen.note("fault", name=active.name, target=active.target, phase="end", struck=struck)
        (self.struck if struck else self.missed)[active.name] += 1
        if not struck:
            # Once more, before long: whom it was to strike may have been down already.
            self._deck.insert(3, active.name)

    def heal(self) -> None:
        """End all that lasts."""
        pause = threading.Event()
        while self._active:
            for active in list(self._active):
                self._end(active)
            pause.wait(0.01)

    @property
    def never(self) -> list[str]:
        """The faults that have not struck, of those that there are."""
        return sorted(set(self._cards) - set(self.struck))
