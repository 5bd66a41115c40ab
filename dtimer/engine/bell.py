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


class _Pipe:
    """Two descriptors, which end with the last reference to them: so no call has a stale one."""

    __slots__ = ("reader", "writer")

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)

    def write(self) -> None:
        # A full pipe is a rung bell; a forked child has closed it.
        with contextlib.suppress(OSError):
            os.write(self.writer, b"\0")

    def close(self) -> None:
        ends, self.reader, self.writer = (self.reader, self.writer), -1, -1
        for descriptor in ends:
            if descriptor >= 0:
                os.close(descriptor)

    __del__ = close


class Bell:
    """
    Keeps a ring until it is cleared; many rings are one.

    Without a lock, because a signal handler that interrupts a ring may leave, and so wait for the
    thread that closes the bell.
    """

    def __init__(self) -> None:
        self._pipe: _Pipe | None = _Pipe()
        self._rung = False

    @property
    def descriptor(self) -> int:
        """Readable while the bell is rung; -1 once it is closed."""
        pipe = self._pipe
        return -1 if pipe is None else pipe.reader

    def ring(self) -> None:
        """Wake whoever waits, now or next; harmless after `close`."""
        if self._rung:
            return
        if (pipe := self._pipe) is not None:
            self._rung = True
            pipe.write()

    def nudge(self) -> None:
        """End a wait that may be too long by now, without a ring; harmless after `close`."""
        if (pipe := self._pipe) is not None:
            pipe.write()

    def clear(self) -> bool:
        """
        Forget the rings so far, and return whether there were any.

        A ring between the steps is forgotten too: whoever clears the bell looks for work
        afterwards, and finds what was rung for.
        """
        pipe = self._pipe
        with contextlib.suppress(BlockingIOError):
            while pipe is not None and len(os.read(pipe.reader, 64)) == 64:
                pass
        rung, self._rung = self._rung, False
        return rung

    def wait(self, seconds: float) -> bool:
        """Wait for a ring or a nudge, at most *seconds*; return whether there was one."""
        seconds = max(0.0, seconds)
        pipe = self._pipe
        if pipe is None:
            return False
        try:
            return bool(select.select([pipe.reader], [], [], seconds)[0])
        except ValueError:
            # A descriptor beyond 1023, which select cannot take.
            poll = select.poll()
            poll.register(pipe.reader, select.POLLIN)
            return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        """Give the descriptors back. Nobody may be waiting."""
        self._rung = True
        self._pipe = None

    def after_fork(self) -> None:
        """Close a forked child's copies, to which frames of its parent's threads refer."""
        pipe = self._pipe
        self.close()
        if pipe is not None:
            pipe.close()
