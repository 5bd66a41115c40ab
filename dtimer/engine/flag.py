"""
A flag that any thread waits for and any code sets: also a signal handler that interrupts either.

``threading.Event`` keeps a lock of Python code. A signal handler that interrupts ``set`` and calls
it again waits for its own thread, and an exception out of a handler leaves the lock taken. Here
every change is one step of the interpreter.
"""

from __future__ import annotations

import contextlib
import threading
import time

# Python handles a signal that comes just before its main thread blocks only when that thread
# wakes again; and a `set` that was interrupted by an exception may have missed somebody.
_SLICE = 0.5


class Flag:
    """Set once, and never cleared."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[threading.Lock] = []

    def is_set(self) -> bool:
        """Return whether it has been set."""
        return self._set

    def set(self) -> None:
        """Set it, and wake every thread that waits."""
        self._set = True
        for waiter in list(self._waiters):
            # Released already: by another call of this.
            with contextlib.suppress(RuntimeError):
                waiter.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most *timeout* seconds; return whether it is."""
        if self._set or (timeout is not None and timeout <= 0):
            return self._set
        end = None if timeout is None else time.monotonic() + timeout
        waiter = threading.Lock()
        waiter.acquire()
        try:
            self._waiters.append(waiter)
            while not self._set:
                left = _SLICE if end is None else min(_SLICE, end - time.monotonic())
                if left <= 0:
                    break
                waiter.acquire(timeout=left)
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)
        return self._set
