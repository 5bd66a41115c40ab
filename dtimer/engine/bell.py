"""
The bell: any thread rings it, one thread waits for it.

The bell is a pipe, and the wait is a ``select``, because the accuracy of this wait limits the
punctuality of all events. Of CPython's waits, ``select`` overshoots least; ``poll``, ``epoll``
and socket timeouts round up to whole milliseconds.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import select

from dtimer import syscalls


class _Pipe:
    """
    The two descriptors of a pipe. They are closed with the last reference to this object.

    So a call that still uses a descriptor cannot meet another file that got the same number.
    """

    __slots__ = ("_open", "reader", "writer")

    def __init__(self) -> None:
        self.reader = self.writer = -1
        self._open: list[int] = []
        # Open and record the descriptors in one step of the interpreter. Otherwise an exception
        # from a signal handler could come in between and leak them. `close` does the same.
        self._open.extend(itertools.chain.from_iterable(itertools.starmap(os.pipe, [()])))
        self.reader, self.writer = self._open
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)

    def write(self, *, keeps_lock: bool) -> None:
        # A full pipe already wakes the waiting thread. In a forked child the pipe is closed.
        with contextlib.suppress(OSError):
            (syscalls if keeps_lock else os).write(self.writer, b"\0")

    def close(self) -> None:
        self.reader = self.writer = -1
        with contextlib.suppress(IndexError):
            collections.deque(map(os.close, iter(self._open.pop, None)), maxlen=0)

    def __del__(self) -> None:
        self.close()


class Bell:
    """
    Keeps a ring until the bell is cleared. Many rings count as one.

    The bell has no lock. A signal handler may interrupt `ring` and leave the namespace. It then
    waits for the thread that closes the bell. If `ring` held a lock, that thread would wait for
    the lock, and both would wait for ever.
    """

    def __init__(self) -> None:
        self._pipe: _Pipe | None = _Pipe()
        self._rung = False
        #: True to keep the interpreter's lock in the system calls (`dtimer.syscalls`).
        self.keeps_lock: bool = False

    @property
    def descriptor(self) -> int:
        """The descriptor that is readable while the bell is rung; -1 after `close`."""
        pipe = self._pipe
        return -1 if pipe is None else pipe.reader

    def ring(self) -> None:
        """
        End the current wait, or the next one. Does nothing after `close`.

        Writes even if the bell is rung already: the call that rang it may not have written yet, and
        a signal handler that interrupts that call may wait for the effect of its own ring.
        """
        if (pipe := self._pipe) is not None:
            self._rung = True
            pipe.write(keeps_lock=self.keeps_lock)

    def nudge(self) -> None:
        """
        End the current wait without ringing, so that its length is computed again.

        Does nothing after `close`.
        """
        if (pipe := self._pipe) is not None:
            pipe.write(keeps_lock=self.keeps_lock)

    def clear(self) -> bool:
        """
        Forget the rings so far; return whether there were any.

        A ring between the steps of this call is forgotten, too. That is safe, because the caller
        looks for work after it has cleared the bell, and finds the work of that ring.
        """
        pipe = self._pipe
        read = (syscalls if self.keeps_lock else os).read
        with contextlib.suppress(BlockingIOError):
            while pipe is not None and len(read(pipe.reader, 64)) == 64:
                pass
        rung, self._rung = self._rung, False
        return rung

    def wait(self, seconds: float) -> bool:
        """Wait at most *seconds* for a ring or a nudge; return whether one came."""
        seconds = max(0.0, seconds)
        pipe = self._pipe
        if pipe is None:
            return False
        try:
            return bool(select.select([pipe.reader], [], [], seconds)[0])
        except ValueError:
            # The descriptor is above 1023, the highest that select accepts.
            poll = select.poll()
            poll.register(pipe.reader, select.POLLIN)
            return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        """Close the descriptors. Must not be called while a thread waits."""
        self._rung = True
        self._pipe = None

    def after_fork(self) -> None:
        """
        Close a forked child's copies of the descriptors.

        `close` only drops a reference. In the child, copied frames of the parent's threads also
        refer to the pipe, and would keep it open.
        """
        pipe = self._pipe
        self.close()
        if pipe is not None:
            pipe.close()
