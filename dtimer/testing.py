"""
Helpers for tests of programs that use dtimer: a clock that a test moves, and a collector.

.. code-block:: python

    def test_reminder(redis_client):
        clock = Clock()
        timer = DTimer("test", redis_client, ns="test", now=clock)
        caught = Catch(timer, "event")
        with timer:
            timer.post({"remind": "me"}, 86_400_000)
            clock.tick(86_400_000)
            assert {"remind": "me"} == caught.next()[0]
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from pyee.base import EventEmitter

from dtimer.model.times import Duration, Moment, moment_us


class Clock:
    """
    A clock for the option ``now``. The time changes only when a test moves it.

    dtimer uses it instead of the server's clock, so give it to every node of the namespace.
    Moving it wakes the joined nodes.

    Args:
        start: Milliseconds since the epoch, or an aware datetime; the current time by default.

    Raises:
        OptionError: *start* is not a moment.
    """

    def __init__(self, start: Moment | None = None) -> None:
        self._lock = threading.Lock()
        if isinstance(start, datetime):
            start = moment_us(start, "start") / 1000
        self._ms: float = round(time.time() * 1000) if start is None else start
        self._rings: list[weakref.WeakMethod[Callable[[], None]]] = []

    def __call__(self) -> float:
        """Return the time, in ms since the epoch."""
        return self._ms

    def tick(self, ms: Duration) -> None:
        """Move the clock by *ms*, or a timedelta, and wake the nodes that use it."""
        if isinstance(ms, timedelta):
            ms /= timedelta(milliseconds=1)
        with self._lock:
            self._ms += ms
            rings = [ring for reference in self._rings if (ring := reference()) is not None]
        for ring in rings:
            ring()

    def attach(self, ring: Callable[[], None]) -> None:
        """Call *ring*, a bound method, after each move of the clock. Nodes attach themselves."""
        with self._lock:
            self._rings = [r for r in self._rings if r() is not None]
            self._rings.append(weakref.WeakMethod(ring))


class Catch:
    """
    Collects the calls of a listener, so that a test can take them in order.

    Args:
        emitter: A `DTimer`, or any pyee emitter.
        event: The name of the event to listen to.
        patience: Seconds after which `next` gives up. Only a failing test waits that long.
    """

    def __init__(self, emitter: EventEmitter, event: str, patience: float = 10) -> None:
        self._caught: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._event = event
        self._patience = patience
        emitter.on(event, self._catch)

    def _catch(self, *args: Any) -> None:
        self._caught.put(args)

    def next(self) -> Any:
        """
        Return the argument of the next emitted event, or a tuple if there are several.

        Raises:
            AssertionError: no event was emitted in time.
        """
        try:
            args = self._caught.get(timeout=self._patience)
        except queue.Empty:
            raise AssertionError(f"no {self._event!r} within {self._patience} s") from None
        return args[0] if len(args) == 1 else args

    def empty(self) -> bool:
        """Return True if all collected events have been taken."""
        return self._caught.empty()
