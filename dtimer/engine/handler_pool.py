"""
The handler pool: the threads on which handlers run.

A handler thread receives a batch that is due already. While events wait for their due time, one
idle thread also watches the time, and takes the batch itself when it is due. So no other thread
must be woken at that moment, which would cost a wait for the interpreter's lock.

A handler thread survives every exception: its service reports it and continues.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time

from dtimer.engine.batch_runner import BatchRunner
from dtimer.engine.flag import Flag
from dtimer.engine.lag import Lag, wait_exactly
from dtimer.engine.lease import Lease
from dtimer.engine.ports import Announcements, DueEvents, InlineClaims
from dtimer.engine.service import Service

# Seconds between two checks of which threads are still alive.
_SLICE = 0.01

# A thread that woke this many seconds early, or fewer, keeps the interpreter's lock until the due
# time. If it waited once more, it could lose the lock for a whole switch interval.
_SPIN = 0.0005

# Stand in for a batch. An idle thread that receives the first looks for the next due time; the
# second means that this time has come.
_LOOK: list[Lease] = []
_DUE: list[Lease] = []


class HandlerPool:
    """
    Runs batches on threads, each batch on one of them.

    Args:
        name: A prefix for the names of the threads.
        size: The number of threads.
        runner: Runs one batch.
        events: The events that wait for their due time.
        lag: Learns how late the waits of the threads end.
        announcements: Emits the exceptions of the threads.
    """

    def __init__(
        self,
        name: str,
        size: int,
        *,
        runner: BatchRunner,
        events: DueEvents,
        lag: Lag,
        announcements: Announcements,
    ) -> None:
        #: The number of threads.
        self.size: int = size
        self._runner = runner
        self._events = events
        self._lag = lag
        self._announcements = announcements
        #: Claims for a thread that has become free. The claimer sets it.
        self.claimer: InlineClaims | None = None
        self._inbox: queue.SimpleQueue[list[Lease] | None] = queue.SimpleQueue()
        # The due times that idle threads watch.
        self._watched: list[float] = []
        #: How many threads are busy, or have a batch waiting for them.
        self.busy: int = 0
        # Guards only the count above. User code never runs while it is held, so a lock is safe.
        self._busy_lock = threading.Lock()
        #: The handler threads.
        self.threads: list[Service] = [
            Service(f"{name}-handler-{i + 1}", self._work, self._report) for i in range(size)
        ]

    def _report(self, error: BaseException) -> None:
        self._announcements.announce("error", error)

    def start(self) -> None:
        """
        Start all threads now, because Python starts none once the interpreter is ending.

        May be called again if it raised, and then starts those that are missing.
        """
        for thread in self.threads:
            if not thread.started:
                thread.start()

    def run(self, batch: list[Lease]) -> None:
        """Have a free thread run *batch*. Does not wait for it."""
        with self._busy_lock:
            self.busy += 1
        try:
            self._inbox.put(batch)
        except BaseException:
            with self._busy_lock:
                self.busy -= 1
            raise

    def take_back(self) -> list[Lease] | None:
        """
        Remove and return a batch that waits for its thread; None if there is none.

        The caller must call `thread_is_free` afterwards.
        """
        with contextlib.suppress(queue.Empty):
            while (batch := self._inbox.get_nowait()) is not None:
                if batch:
                    return batch
        return None

    def thread_is_free(self) -> None:
        """Record that a thread has no batch any more, and claim for it."""
        with self._busy_lock:
            self.busy -= 1
        if self.claimer is not None:
            self.claimer.claim_inline()

    def watch(self) -> None:
        """Have an idle thread watch the first due time, unless one does so already."""
        due = self._events.next_due()
        if due is not None and self.busy < self.size and due < min(self._watched, default=math.inf):
            self._inbox.put(_LOOK)

    def _work(self, stopping: Flag) -> None:
        wait_exactly()
        while (batch := self._next_batch()) is not None:
            try:
                self._runner.run(batch)
            finally:
                self.thread_is_free()

    def _next_batch(self) -> list[Lease] | None:
        """Wait until the calling thread has a batch; return None if it must end."""
        while True:
            # In a backlog, the next batch is there already.
            due = self._events.next_due() if self._inbox.empty() else None
            if due is None or due >= min(self._watched, default=math.inf):
                batch = self._inbox.get()
            else:
                self._watched.append(due)
                try:
                    batch = self._get_until(due)
                finally:
                    self._watched.remove(due)
                if batch is _DUE:
                    # If this thread may not take them, another thread gives it a batch.
                    batch = self._take_due() or self._inbox.get()
                if batch is not _LOOK:
                    self.watch()
            if batch is None or batch:
                return batch

    def _get_until(self, due: float) -> list[Lease] | None:
        """Wait for a batch until *due*, on the monotonic clock; return `_DUE` then."""
        lead = self._lag.lead
        while (left := due - time.monotonic()) > 0:
            if lead and left <= _SPIN:
                continue
            wait = left - lead if left > lead else left
            try:
                return self._inbox.get(timeout=wait)
            except queue.Empty:
                # Positive if the wait ended late.
                self._lag.waited(left - wait - (due - time.monotonic()))
                lead = lead and _SPIN
        return _DUE

    def _take_due(self) -> list[Lease] | None:
        """Reserve the calling thread for events that are due now; return them, None if none."""
        with self._busy_lock:
            if self.busy == self.size:
                # A batch for this thread is in the inbox.
                return None
            self.busy += 1
        batch = None
        try:
            batch = self._events.pop_startable()
        finally:
            if not batch:
                with self._busy_lock:
                    self.busy -= 1
        return batch

    def run_one(self) -> bool:
        """
        Run the next waiting batch on the calling thread; return False if there is none.

        For tests that step a node without threads.
        """
        batch = self.take_back()
        if batch is None:
            return False
        try:
            self._runner.run(batch)
        finally:
            self.thread_is_free()
        return True

    def stop(self) -> None:
        """Ask every thread to end after the batches that wait for it. Does not wait."""
        for thread in self.threads:
            thread.stop()
            self._inbox.put(None)

    def join(self, timeout: float | None) -> bool:
        """Wait at most *timeout* seconds for all threads to end; return whether they have."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self.threads:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not thread.join(left):
                return False
        return True

    def join_idle(self, timeout: float) -> bool:
        """
        Wait until all threads have ended, except those that run a handler.

        Returns:
            False if that takes longer than *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        alive = self.threads
        while len(alive := [thread for thread in alive if not thread.join(0)]) > self.busy:
            if time.monotonic() >= deadline:
                return False
            # Wait for any of them, because the pool does not know which threads run handlers.
            alive[-1].join(_SLICE)
        return True

    @property
    def current(self) -> bool:
        """True if the calling thread is a handler thread of this pool."""
        return any(thread.current for thread in self.threads)
