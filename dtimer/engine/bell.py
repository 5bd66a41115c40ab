"""
The bell: rung by anybody, waited for by one.

A pipe and ``select``, because the wait is the library's punctuality: of the waits that
CPython has, ``select`` overshoots least, and ``poll``, ``epoll`` and socket timeouts
round up to whole milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading


class Bell:
    """Keeps a ring until it is cleared; many rings are one."""

    def __init__(self) -> None:
        # Reentrant, for a ring out of a signal handler that interrupted a ring.
        self._lock = threading.RLock()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._rung = False
        self._open = True

    @property
    def descriptor(self) -> int:
        """Readable while the bell is rung."""
        return self._reader

    def ring(self) -> None:
        """Wake whoever waits, now or next; harmless after `close`."""
        if self._rung:
            return
        with self._lock:
            if self._open:
                self._rung = True
                # A full pipe is a rung bell.
                with contextlib.suppress(BlockingIOError):
                    os.write(self._writer, b"\0")

    def nudge(self) -> None:
        """End a wait that may be too long by now, without a ring; harmless after `close`."""
        with self._lock:
            if self._open:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._writer, b"\0")

    def clear(self) -> bool:
        """
        Forget the rings so far, and return whether there were any.

        A ring between the steps is forgotten too: whoever clears the bell looks for work
        afterwards, and finds what was rung for.
        """
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._reader, 64)) == 64:
                pass
        rung, self._rung = self._rung, False
        return rung

    def wait(self, seconds: float) -> bool:
        """Wait for a ring or a nudge, at most *seconds*; return whether there was one."""
        seconds = max(0.0, seconds)
        try:
            return bool(select.select([self._reader], [], [], seconds)[0])
        except ValueError:
            # A descriptor beyond 1023, which select cannot take.
            poll = select.poll()
            poll.register(self._reader, select.POLLIN)
            return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        """Give the descriptors back. Nobody may be waiting."""
        with self._lock:
            if self._open:
                self._open = False
                self._rung = True
                os.close(self._reader)
                os.close(self._writer)

    def after_fork(self) -> None:
        """Close a forked child's copies, whatever its parent's threads were doing here."""
        self._lock = threading.RLock()
        self.close()

    def __del__(self) -> None:
        # Without the lock: nobody is left to be kept out, and in a forked child a thread
        # may hold it that is not there.
        if getattr(self, "_open", False):
            self.after_fork()
