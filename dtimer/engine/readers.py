"""
Readers of a queue: threads that wait for a key, and the keys in their hands.

A thread of the node hands a key to a reader and holds it until the reader is done with it.
Everything changes by single steps of the interpreter, without a lock: a signal handler may
interrupt a reader and read, or stop, which waits for the threads that hand keys over.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from dtimer.engine.flag import Flag
from dtimer.errors import DTimerError
from dtimer.model.event import Event

#: How often, in seconds, a hand looks whether the reader of its key still lives.
_LOOK = 1.0


class Returned(DTimerError):
    """A reader left by an exception, or its thread ended: its key is handed out again."""


class Reading:
    """A key in the hands of a reader, or, before it has come, the wait for it."""

    def __init__(self) -> None:
        self.event: Event | None = None
        self.failure: BaseException | None = None
        #: True if the wait was interrupted: the key is released as if it had never come.
        self.forsaken = False
        self.reader = threading.current_thread()
        self.arrived = Flag()
        self.done = Flag()


class Readers:
    """The readers of one queue, and the keys that they hold. For any thread."""

    def __init__(self) -> None:
        self._waiting: deque[Reading] = deque()
        self._held: dict[str, Reading] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def read(
        self, reading: Reading, seconds: float | None, begun: Callable[[], object], stopped: Flag
    ) -> None:
        """
        Wait for a key, at most *seconds* or until the queue is *stopped*.

        If it is interrupted by an exception, as out of a signal handler, the caller has to
        `forsake` this reader, or it would be handed the next key, and hold it for ever.

        Args:
            begun: Called when a key can be handed over.
        """
        self._waiting.append(reading)
        begun()
        if not stopped.is_set():
            reading.arrived.wait(seconds)
        if not self._withdraw(reading):
            # A thread has taken this reader, perhaps just now: it hands it a key.
            reading.arrived.wait()

    def forsake(self, reading: Reading) -> None:
        """Hand no key to this reader any more, and release the one that it was handed."""
        reading.forsaken = True
        self._withdraw(reading)
        reading.done.set()

    def _withdraw(self, reading: Reading) -> bool:
        """Remove a reader from those that wait; False if it does not, or no longer, wait."""
        try:
            self._waiting.remove(reading)
        except ValueError:
            return False
        return True

    def hand_over(self, event: Event, stopped: Flag) -> list[BaseException] | None:
        """Hand a key to a reader, and return when it is done with it; None if nobody has it."""
        try:
            reading = self._waiting.popleft()
        except IndexError:
            return None
        if not stopped.is_set():
            reading.event = event
            self._held[event.id] = reading
        reading.arrived.set()
        if reading.event is None:
            return None
        while not reading.done.wait(_LOOK):
            if not reading.reader.is_alive():
                ended = f"the thread {reading.reader.name!r} ended with {event.id!r}"
                reading.failure = Returned(ended)
                break
        self._forget(event.id, reading)
        if reading.forsaken:
            return None
        return [] if reading.failure is None else [reading.failure]

    def confirm(self, key: str) -> bool:
        """Confirm a key in hand; False when it is not, or no longer, held here."""
        reading = self._held.get(key)
        if reading is None or reading.event is None:
            return False
        confirmed = reading.event.confirm()
        self._forget(key, reading)
        reading.done.set()
        return confirmed

    def _forget(self, key: str, reading: Reading) -> None:
        if self._held.get(key) is reading:
            self._held.pop(key, None)

    def send_away(self) -> None:
        """End the wait of each reader. The queue has to be stopped before."""
        for reading in list(self._waiting):
            reading.arrived.set()
        for reading in list(self._held.values()):
            if reading.reader is threading.current_thread() and not reading.done.is_set():
                # A signal handler interrupts this reader, which cannot take its key meanwhile.
                self.forsake(reading)
