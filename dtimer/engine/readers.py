"""
The readers of a `RunAt` queue: the user's threads that wait for a key, and the keys they hold.

A handler thread hands a key to a reader and waits until the reader is done with it. Every change
is one step of the interpreter, without a lock: a signal handler that interrupts a reader may read
itself, or stop the queue, which waits for the handler threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from dtimer.engine.flag import Flag
from dtimer.errors import DTimerError
from dtimer.model.event import Event

#: Seconds between two checks of whether the reader of a key is still alive.
_LOOK = 1.0


class Returned(DTimerError):
    """The reader of a key left with an exception, or its thread ended. The key is retried."""


class Reading:
    """A reader that waits for a key, and then holds it."""

    def __init__(self) -> None:
        self.event: Event | None = None
        self.failure: BaseException | None = None
        #: True if the read was interrupted: its key is released, and no attempt is charged.
        self.abandoned = False
        self.reader: threading.Thread = threading.current_thread()
        self.arrived: Flag = Flag()
        self.done: Flag = Flag()


class Readers:
    """Hands keys to the readers of one queue, and keeps the keys they hold. For any thread."""

    def __init__(self) -> None:
        self._waiting: deque[Reading] = deque()
        self._held: dict[str, Reading] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def read(
        self, reading: Reading, seconds: float | None, begun: Callable[[], object], stopped: Flag
    ) -> None:
        """
        Wait at most *seconds*, or until the queue is *stopped*, for a key.

        If an exception interrupts the wait, for example one from a signal handler, the caller
        must `abandon` the reading. Otherwise it would receive the next key and hold it for ever.

        Args:
            reading: Receives the key.
            seconds: The longest wait; None for no limit.
            begun: Called when a key can be handed over.
            stopped: Is set when the queue stops.
        """
        self._waiting.append(reading)
        begun()
        if not stopped.is_set():
            reading.arrived.wait(seconds)
        if not self._withdraw(reading):
            # A handler thread has chosen this reader, perhaps just now, and hands it a key.
            reading.arrived.wait()

    def abandon(self, reading: Reading) -> None:
        """Abandon a reading: it receives no key any more, and its key is released."""
        reading.abandoned = True
        self._withdraw(reading)
        reading.done.set()

    def _withdraw(self, reading: Reading) -> bool:
        """Remove a reading from those that wait; return False if it does not wait."""
        try:
            self._waiting.remove(reading)
        except ValueError:
            return False
        return True

    def hand_over(self, event: Event, stopped: Flag) -> list[BaseException] | None:
        """
        Hand a key to a reader, and return when the reader is done with it.

        Returns:
            The exceptions that failed the key, or an empty list. None if no reader took the key,
            which is then released.
        """
        try:
            reading = self._waiting.popleft()
        except IndexError:
            return None
        if not stopped.is_set():
            reading.event = event
            self._held[event.id] = reading
            if stopped.is_set():
                # A stop between the two checks has not seen this key. If it runs in a signal
                # handler that interrupts the reader, both would wait for each other.
                self._forget(event.id, reading)
                reading.event = None
        reading.arrived.set()
        if reading.event is None:
            return None
        while not reading.done.wait(_LOOK):
            if not reading.reader.is_alive():
                ended = f"the thread {reading.reader.name!r} ended while it held {event.id!r}"
                reading.failure = Returned(ended)
                break
        self._forget(event.id, reading)
        if reading.abandoned:
            return None
        return [] if reading.failure is None else [reading.failure]

    def confirm(self, key: str) -> bool:
        """Confirm a key that a reader holds; return False if no reader here holds it."""
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

    def end_waits(self) -> None:
        """End the wait of every reader. The caller must have stopped the queue before."""
        for reading in list(self._waiting):
            reading.arrived.set()
        for reading in list(self._held.values()):
            if reading.reader is threading.current_thread() and not reading.done.is_set():
                # A signal handler interrupts this reader, which cannot return its key meanwhile.
                self.abandon(reading)
