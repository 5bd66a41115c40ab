"""
The handler pool: the threads on which handlers run.

A handler thread survives every exception: its service reports it and continues.
"""

from __future__ import annotations

import queue
import threading
import time

from dtimer.engine.batch_runner import BatchRunner
from dtimer.engine.flag import Flag
from dtimer.engine.lease import Lease
from dtimer.engine.ports import Announcements, InlineClaims
from dtimer.engine.service import Service

# Seconds between two checks of which threads are still alive.
_SLICE = 0.01


class HandlerPool:
    """
    Runs batches on threads, each batch on one of them.

    Args:
        name: A prefix for the names of the threads.
        size: The number of threads.
        runner: Runs one batch.
        announcements: Emits the exceptions of the threads.
    """

    def __init__(
        self, name: str, size: int, runner: BatchRunner, announcements: Announcements
    ) -> None:
        #: The number of threads.
        self.size: int = size
        self._runner = runner
        self._announcements = announcements
        #: Claims for a thread that has become free. The claimer sets it.
        self.claimer: InlineClaims | None = None
        self._inbox: queue.SimpleQueue[list[Lease] | None] = queue.SimpleQueue()
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
        """Start all threads now, because Python starts none once the interpreter is ending."""
        for thread in self.threads:
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
        try:
            return self._inbox.get_nowait()
        except queue.Empty:
            return None

    def thread_is_free(self) -> None:
        """Record that a thread has no batch any more, and claim for it."""
        with self._busy_lock:
            self.busy -= 1
        if self.claimer is not None:
            self.claimer.claim_inline()

    def _work(self, stopping: Flag) -> None:
        while (batch := self._inbox.get()) is not None:
            try:
                self._runner.run(batch)
            finally:
                self.thread_is_free()

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
