"""
The handler pool: threads that run handlers and settle the leases afterwards.

To settle a lease is to end it: by a confirm, a retry, a release or a dead letter.

Rule 1: a lease is settled once: by the handler itself, or else by its thread after the handler.

Rule 2: a handler thread survives every exception. An exception of a handler fails that handler.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from dtimer import log as messages
from dtimer.engine.batching import IN_ADVANCE, Batching
from dtimer.engine.flag import Flag
from dtimer.engine.lease import Lease, LeaseStore
from dtimer.engine.leases import LeaseTable
from dtimer.engine.lookahead import LookaheadQueue
from dtimer.engine.peers import Peers
from dtimer.engine.service import Service
from dtimer.engine.superseded import SupersededIds
from dtimer.errors import HandlerError
from dtimer.faultpoints import armed, reached
from dtimer.log import Log
from dtimer.model.claims import Verdict
from dtimer.model.event import Event
from dtimer.model.options import Options

# A dead letter keeps at most this many characters of a traceback: the last, which name the cause.
_ERROR_TEXT = 2_000

# Seconds between two checks of which threads are still alive.
_SLICE = 0.01


def describe(error: BaseException) -> str:
    """Return the end of the traceback of *error* as text that can be stored."""
    text = "".join(traceback.format_exception(error))[-_ERROR_TEXT:]
    # A payload may contain lone surrogates, and so may an error text that quotes it.
    return text.encode(errors="backslashreplace").decode()


class HandlerPool(LeaseTable):
    """
    Runs handlers on threads, and settles the leases of their events.

    Args:
        name: A prefix for the names of the threads.
        node: The node's id, for messages.
        options: The node's options.
        handle: Calls every listener of ``'event'`` with a list of events. Returns the exceptions
            that they raised, or None if no listener was called.
        announce: Queues something to be emitted on the callback thread.
        log: The node's log.
        ring: Called when a thread has become free, or a settlement is ready to be sent.
        alone: Asks the store. Returns True if no other node has joined and the namespace is not
            paused.
        store: Settles and extends leases immediately, outside the claim cycle.
        quit: Called when a handler raised SystemExit or KeyboardInterrupt.
    """

    def __init__(
        self,
        name: str,
        *,
        node: str,
        options: Options,
        handle: Callable[[list[Event]], list[BaseException] | None],
        announce: Callable[..., None],
        log: Log,
        ring: Callable[[], None],
        alone: Callable[[], bool],
        store: LeaseStore,
        quit: Callable[[], None],
    ) -> None:
        super().__init__(node, options, announce, log)
        self.max_events: int = options.max_events
        self._handle = handle
        self._ring = ring
        self._store = store
        self._quit = quit
        self._inbox: queue.SimpleQueue[list[Lease] | None] = queue.SimpleQueue()
        #: The events that wait for their due time, or for a free thread.
        self.lookahead: LookaheadQueue = LookaheadQueue(options)
        #: How many batches a claim takes for each thread. More than one only if a due event may
        #: wait for a thread for at least `IN_ADVANCE` before it is released.
        self.batching: Batching = Batching(allowed=self.lookahead.patience >= IN_ADVANCE)
        #: The ids of claimed events that this process has replaced, and that must not start.
        self.superseded_ids: SupersededIds = SupersededIds()
        # Decides whether a due event may wait longer, because no other node could start it.
        self._peers = Peers(alone, self.lookahead.patience)
        # A single handler thread starts events in the order of their due times.
        self._in_order = options.concurrency == 1
        # With a single thread, True after a release until a claim carries all releases. Meanwhile
        # the node releases all events that wait, because they may be due after the released one.
        self._recalling = False
        # True if an event of the look-ahead queue has waited too long for a thread.
        self._behind = False
        self._busy = 0
        # Guards only the count above. User code never runs while it is held, so a lock is safe.
        self._busy_lock = threading.Lock()
        # True once the node leaves: events that no handler has started are then released.
        self._releasing = False
        #: The handler threads.
        self.threads: list[Service] = [
            Service(f"{name}-handler-{i + 1}", self._work, lambda e: announce("error", e))
            for i in range(options.concurrency)
        ]

    def start(self) -> None:
        """Start all threads now, because Python starts none once the interpreter is ending."""
        for thread in self.threads:
            thread.start()

    def _enqueue(self, batch: list[Lease]) -> None:
        with self._busy_lock:
            self._busy += 1
        try:
            self._inbox.put(batch)
        except BaseException:
            with self._busy_lock:
                self._busy -= 1
            raise

    @property
    def running(self) -> int:
        """How many threads are busy, or have a batch waiting for them."""
        return self._busy

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
        while len(alive := [thread for thread in alive if not thread.join(0)]) > self._busy:
            if time.monotonic() >= deadline:
                return False
            # Wait for any of them, because the pool does not know which threads run handlers.
            alive[-1].join(_SLICE)
        return True

    @property
    def current(self) -> bool:
        """True if the calling thread is a handler thread of this pool."""
        return any(thread.current for thread in self.threads)

    def _thread_is_free(self) -> None:
        with self._busy_lock:
            self._busy -= 1
        self._ring()

    def _work(self, stopping: Flag) -> None:
        while (batch := self._inbox.get()) is not None:
            self._run_or_release(batch)

    def run_one(self) -> bool:
        """
        Run the next waiting batch on the calling thread; return False if there is none.

        For tests that step a node without threads.
        """
        try:
            batch = self._inbox.get_nowait()
        except queue.Empty:
            return False
        if batch is not None:
            self._run_or_release(batch)
        return batch is not None

    def _run_or_release(self, batch: list[Lease]) -> None:
        try:
            if armed:
                reached("loop.handler")
            if self._releasing:
                self._settle_as(batch, Verdict.RELEASE)
            else:
                self._run(batch)
        except BaseException as e:
            self._retry_unsettled(batch, e)
            raise
        finally:
            self._thread_is_free()

    def _retry_unsettled(self, batch: list[Lease], error: BaseException) -> None:
        """Retry the unsettled events of a batch whose thread failed outside the handler."""
        # Reserve all leases first. Then none is renewed any more, even if a later step fails.
        left = self._reserve(batch, Verdict.RETRY)
        text = describe(error)
        for lease in left:
            wait = lease.backoff_us()[0]
            self._settle([lease.settlement(Verdict.RETRY, wait=wait, error=text)])

    def _run(self, batch: list[Lease]) -> None:
        started = time.monotonic()
        for lease in batch:
            lease.started = started
        events: list[Any] = [lease.event for lease in batch]
        if self.log.debugging:
            self.log.add_events(messages.STARTED, [lease.claim.id for lease in batch])
        if armed:
            reached("handler.before")
        raised = self._handle(events)
        self.batching.handler_took(time.monotonic() - started)
        if armed:
            reached("handler.after")
        if raised is None:
            # The last listener was removed after the claim.
            self._settle_as(batch, Verdict.RELEASE)
            # Set the flag after the release. A claim may reset it, and a claim between the two
            # steps would reset it before the release exists. In this order, such a claim carries
            # the release, and the flag only causes some needless releases.
            self._recalling = self._in_order
        elif raised:
            self._fail(batch, raised)
        elif self._options.auto_confirm:
            self._settle_as(batch, Verdict.CONFIRM)
        else:
            # From now on the user's code must settle the events before their leases expire:
            # the heartbeat no longer renews them.
            self._remove(batch)
            for lease in batch:
                lease.running = False

    def _settle_as(self, batch: list[Lease], verdict: Verdict) -> None:
        self._settle([lease.settlement(verdict) for lease in self._reserve(batch, verdict)])

    def _reserve(self, batch: list[Lease], verdict: Verdict) -> list[Lease]:
        """Reserve the leases of *batch* for this caller; return those that it must now settle."""
        taken = [lease for lease in batch if lease.reserve(verdict)]
        if len(taken) < len(batch):
            # Another thread is settling the other leases, through a method of `Event`. This call
            # has given up waiting for it if a lease is `abandoned`. If the other thread then
            # fails, no thread settles the lease. It must expire, so do not renew it.
            self._remove([lease for lease in batch if lease.abandoned])
        return taken

    def _fail(self, batch: list[Lease], raised: list[BaseException]) -> None:
        failed = self._reserve(batch, Verdict.RETRY)
        events = [lease.event for lease in failed if lease.event is not None]
        text = describe(raised[0])
        for lease in failed:
            wait, trouble = lease.backoff_us()
            if trouble is not None:
                self._announce("error", trouble)
            self._settle([lease.settlement(Verdict.RETRY, wait=wait, error=text)])
        for error in raised:
            self._announce("error", HandlerError(error, events))
            if not isinstance(error, Exception):
                self._quit()
