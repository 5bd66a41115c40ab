"""
A flag that threads wait for, and that any code may set, even a signal handler.

``threading.Event`` holds a lock while it runs Python code. If a signal handler interrupts ``set``
and calls it again, it waits for its own thread. If the handler raises, the lock stays locked.
Here every change is one step of the interpreter.
"""

from __future__ import annotations

import contextlib
import threading
import time

# Waits are cut into slices of this many seconds. If a signal comes just before the main thread
# blocks, Python handles it only when that thread wakes. And a `set` that an exception interrupted
# may have left a thread waiting.
_SLICE = 0.5


class Flag:
    """Can be set, and is never cleared."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[threading.Lock] = []

    def is_set(self) -> bool:
        """Return whether the flag has been set."""
        return self._set

    def set(self) -> None:
        """Set the flag, and wake every thread that waits for it."""
        self._set = True
        for waiter in list(self._waiters):
            # Another call of `set` has already released this waiter.
            with contextlib.suppress(RuntimeError):
                waiter.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most *timeout* seconds for the flag to be set; return whether it is."""
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
