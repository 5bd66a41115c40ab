"""Let a joined node call its timer without keeping the timer alive."""

from __future__ import annotations

import weakref
from typing import Protocol

from dtimer.model.event import Event


class Voice(Protocol):
    """The calls from a node to its timer."""

    def handle(self, events: list[Event]) -> list[BaseException] | None:
        """Call the listeners of ``'event'``."""
        ...

    def announce(self, event: str, *arguments: object) -> None:
        """Emit something."""
        ...

    def appetite(self) -> int:
        """Return how many events the listeners can take now."""
        ...

    def listens(self) -> bool:
        """Return whether there is a listener that takes events."""
        ...

    def close_unless_joined(self) -> bool:
        """Close the connections of a timer that has not joined; return False if it is gone."""
        ...


class Timer(Protocol):
    """The timer that a node calls."""

    def deliver(self, events: list[Event]) -> list[BaseException] | None:
        """Call the listeners of ``'event'``."""
        ...

    def announce(self, event: str, *arguments: object) -> None:
        """Emit something."""
        ...

    def appetite(self) -> int:
        """Return how many events the listeners can take now."""
        ...

    def listens(self) -> bool:
        """Return whether there is a listener that takes events."""
        ...

    def close_unless_joined(self) -> None:
        """Close the connections, unless the timer has joined."""
        ...


class WeakVoice:
    """Passes the calls of `Voice` to a timer, or does nothing once the timer is gone."""

    def __init__(self, timer: Timer) -> None:
        self._timer = weakref.ref(timer)

    def handle(self, events: list[Event]) -> list[BaseException] | None:
        """See `Voice.handle`."""
        timer = self._timer()
        return None if timer is None else timer.deliver(events)

    def announce(self, event: str, *arguments: object) -> None:
        """See `Voice.announce`."""
        timer = self._timer()
        if timer is not None:
            timer.announce(event, *arguments)

    def appetite(self) -> int:
        """See `Voice.appetite`."""
        timer = self._timer()
        return 0 if timer is None else timer.appetite()

    def listens(self) -> bool:
        """See `Voice.listens`."""
        timer = self._timer()
        return timer is None or timer.listens()

    def close_unless_joined(self) -> bool:
        """See `Voice.close_unless_joined`."""
        timer = self._timer()
        if timer is not None:
            timer.close_unless_joined()
        return timer is not None
