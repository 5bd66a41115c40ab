"""
Count the calls of C functions that release the interpreter's lock, on each thread.

A thread acquires the lock again after each of these calls. If other threads compute, it then waits
for up to a switch interval, or for several. So the number of these calls on the way of an event
decides its lateness in a busy process.

A *wait* is a call in which the kernel stopped the thread until something happened. All other calls
are *short*. A lock or a `SimpleQueue` is counted only if the thread had to wait for it. Otherwise
CPython does not release the interpreter's lock. The profiler does not see functions that are called
through ``ctypes``, which release the lock, too.
"""

from __future__ import annotations

import re
import resource
import sys
import threading
import time
from typing import Any

Record = tuple[int, str, str, bool]

#: Functions that release the interpreter's lock in every call.
_ALWAYS = frozenset(
    {
        *("select.select", "poll.poll", "epoll.poll", "time.sleep", "os.read", "os.write"),
        *("os.eventfd_read", "os.eventfd_write"),
        *(f"socket.{name}" for name in ("send", "sendall", "sendmsg", "recv", "recv_into")),
    }
)
#: Functions that release it only if they have to wait.
_IF_WAITING = frozenset({"lock.acquire", "RLock.acquire", "SimpleQueue.get"})
#: Functions that do not wait, because the reader of the pipe or socket keeps up.
_NEVER_WAITS = frozenset({"os.write", "os.eventfd_write", "socket.send", "socket.sendall"})


def name_of(function: Any) -> str:
    """Return a name such as ``select.select``, ``os.read`` or ``socket.recv``."""
    qualified: str = function.__qualname__
    if "." in qualified:
        return qualified
    return f"{function.__module__}.{qualified}".replace("posix.", "os.")


def role_of(thread: str) -> str:
    """Return the part of a thread's name that says what the thread does."""
    return re.sub(r"\W+", " ", re.sub(r"dtimer|\bnode\b|\d", "", thread)).strip() or thread


def _stops() -> int:
    """Return how often the kernel has stopped this thread because it had to wait."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class Counter:
    """
    Records each call that releases the lock.

    A record has the end of the call in µs, the thread, the function, and whether the call waited.
    """

    def __init__(self) -> None:
        self._calls: list[Record] = []

    def start(self) -> None:
        """Count on this thread, and on the threads that are started from now on."""
        threading.setprofile(self._first)
        sys.setprofile(self._of_thread())

    def _first(self, frame: Any, event: str, function: Any) -> None:
        """Give a new thread a profiler of its own."""
        profiler = self._of_thread()
        sys.setprofile(profiler)
        profiler(frame, event, function)

    def _of_thread(self) -> Any:
        calls = self._calls
        before = 0

        def profiler(_frame: Any, event: str, function: Any) -> None:
            nonlocal before
            if not event.startswith("c_"):
                return
            name = name_of(function)
            if name not in _ALWAYS and name not in _IF_WAITING:
                return
            if event == "c_call":
                before = _stops()
                return
            waited = name not in _NEVER_WAITS and _stops() > before
            if waited or name in _ALWAYS:
                role = role_of(threading.current_thread().name)
                calls.append((time.time_ns() // 1000, role, name, waited))

        return profiler

    def told(self) -> list[Record]:
        """Return the calls that were recorded so far."""
        return list(self._calls)
