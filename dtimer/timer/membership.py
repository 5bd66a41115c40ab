"""Join and leave: which node a timer has, and who may begin or end it."""

from __future__ import annotations

import dataclasses
import threading
import warnings
import weakref
from collections.abc import Collection
from typing import Any

from dtimer.errors import UsageError
from dtimer.model.options import Options
from dtimer.store.store import Store
from dtimer.timer import fork
from dtimer.timer.node import Node
from dtimer.timer.weak import TimerCalls


class Membership:
    """
    Owns the node of a timer: none before the first join, and a new one for each join.

    Args:
        id: The node's id.
        options: The options of the timer.
        store: The store of its namespace.
        calls: Calls the timer. The node must not keep it alive.
    """

    def __init__(self, id: str, options: Options, store: Store, calls: TimerCalls) -> None:
        self._id = id
        self._options = options
        self._store = store
        self._calls = calls
        #: The node of the last join. It may have ended.
        self.node: Node | None = None
        self._finalizer: Any = None
        # Re-entrant, because a signal handler that interrupts a leave may call leave itself.
        self._lock = threading.RLock()
        # Held by the thread that joins. A lock, because an exception always releases it. If a join
        # interrupts a join, the interrupted one serves both.
        self._joining = threading.RLock()
        # How often each thread has called leave(). A leave that interrupts a join cannot wait for
        # its end, because both run on the same thread. So the join ends once it continues.
        self._by_thread = threading.local()

    @property
    def joined(self) -> bool:
        """True between `join` and the end of `leave`."""
        return self.node is not None and self.node.begun and not self.node.ended

    @property
    def joining_here(self) -> bool:
        """True in a signal handler that interrupts a join on this thread."""
        return bool(self._joining._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001

    @property
    def leaves(self) -> int:
        """How often this thread has called leave()."""
        found: int = getattr(self._by_thread, "leaves", 0)
        return found

    @property
    def max_events(self) -> int:
        """The most events in one call of a handler."""
        return self._options.max_events

    @max_events.setter
    def max_events(self, value: int) -> None:
        self._options = dataclasses.replace(self._options, max_events=value)
        if self.node is not None:
            self.node.max_events = value

    def join(self, leaves: int, *, wait: bool) -> None:
        """
        See `DTimer.join`.

        Args:
            wait: Whether to wait until the node has joined.
            leaves: `leaves` when the caller began. If it has grown meanwhile, a signal handler has
                interrupted the call and called leave().
        """
        while True:
            with self._lock:
                if self.joining_here:
                    return
                with self._joining:
                    node = self.node
                    if node is None or node.ended:
                        node = self._begin(leaves, wait=wait)
                        break
                if not node.leaving:
                    if node.begun or not wait:
                        return
                    break
            # Without the lock, because a handler that still runs may call leave itself.
            if not node.wait(None):
                raise UsageError("join() was called by a handler while its node leaves")
        # Without the lock, because this wait must not delay a leave.
        if wait:
            node.await_start()
        if node.leaving:
            node.wait(None)

    def _begin(self, leaves: int, *, wait: bool) -> Node:
        if reason := fork.why_no_node():
            raise UsageError(f"no node can join in this process: {reason}")
        if self._finalizer is not None:
            self._finalizer.detach()
        node = Node(self._id, self._options, self._store, self._calls)
        # Assigned before the start, so that a leave() that interrupts the start finds it.
        self.node = node
        try:
            begin = node.start if wait else node.start_soon
            begin(leaving=self.leaves != leaves)
            self._finalizer = weakref.finalize(self, _end_forgotten, node, self._id)
            self._finalizer.atexit = False
            # The option may have been set during the start. Setting it also rings the bell, in case
            # a listener was added during the start.
            node.max_events = self._options.max_events
        except BaseException:
            node.abort()
            raise
        return node

    def leave(self, seconds: float | None) -> None:
        """See `DTimer.leave`. Running handlers may take this many *seconds*."""
        self._by_thread.leaves = self.leaves + 1
        with self._lock:
            node = self.node
            if node is None or node.ended:
                self.close_unless_joined()
                return
        self._end(node, seconds)

    def _end(self, node: Node, seconds: float | None) -> None:
        node.stop(seconds)
        node.wait(None if seconds is None else seconds + 2 * self._options.timeout / 1e6 + 1)

    def close_unless_joined(self) -> None:
        """Close the connections that calls have opened while the node has not joined."""
        with self._lock:
            if self.node is None or self.node.ended:
                self._store.release()

    def stop_waiting(self) -> None:
        """End the wait of a running `leave` for handlers."""
        if self.node is not None:
            self.node.stop(0)

    def note_superseded(self, ids: Collection[str], *, posted: bool) -> None:
        """See `dtimer.timer.poster.NoteSuperseded`."""
        if self.node is not None and not self.node.ended:
            self.node.note_superseded(ids, posted=posted)

    def after_fork(self) -> bool:
        """Forget the node in a forked child, which has not joined; return whether there was one."""
        self._lock = threading.RLock()
        self._joining = threading.RLock()
        node, self.node = self.node, None
        if self._finalizer is not None:
            self._finalizer.detach()
        if node is None or node.ended:
            return False
        node.after_fork()
        return True

    def at_exit(self) -> None:
        """Leave within ``exit_timeout``, because the interpreter is about to exit."""
        node = self.node
        if node is not None and not node.ended:
            # Without the lock, which another thread may hold for an unlimited time.
            self._end(node, self._options.exit_timeout / 1e6)


def _end_forgotten(node: Node, id: str) -> None:
    """End the node of a timer that was dropped while joined, and warn about it."""
    if node.leaving:
        # A handler called leave, so the node ends by itself.
        return
    node.stop(0)
    warnings.warn(
        f"the node {id!r} was dropped while joined; call leave()", ResourceWarning, stacklevel=2
    )
