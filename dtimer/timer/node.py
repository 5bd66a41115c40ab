"""
A joined node, from join to leave: connects the engine to the store.

If the timer joins again, it creates a new node, with a new incarnation, threads and bell.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

from dtimer.engine.bell import Bell
from dtimer.engine.callbacks import CallbackThread
from dtimer.engine.claimer import Claimer
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.flag import Flag
from dtimer.engine.leases import LeaseTable
from dtimer.engine.listener import Listener
from dtimer.engine.seat import Seat
from dtimer.errors import StateRollback, StoreError, UsageError
from dtimer.log import Log, Source
from dtimer.model.ids import incarnation
from dtimer.model.options import Options
from dtimer.model.records import Health
from dtimer.store.store import Store
from dtimer.timer.announcer import Announcer
from dtimer.timer.contact import Contact
from dtimer.timer.health import examine
from dtimer.timer.joiner import Joiner
from dtimer.timer.ledger import Ledger
from dtimer.timer.node_store import NodeStore
from dtimer.timer.presence import PATIENCE, Presence
from dtimer.timer.registration import Registration
from dtimer.timer.reports import Reports
from dtimer.timer.weak import TimerCalls

# Ask for an echo after this many seconds without a message, or after five polls if that is less.
_ECHO_EVERY = 5.0


class Node:
    """
    Owns the threads of a joined node, and its registration in the namespace.

    Args:
        id: The node's id.
        options: The node's options.
        store: The store, whose calls and subscription the node uses.
        timer: Calls the timer that has joined. The node does not keep it alive.
    """

    def __init__(self, id: str, options: Options, store: Store, timer: TimerCalls) -> None:
        self.incarnation: str = incarnation()
        self._options = options
        self._store = store
        self._timer = timer
        self._end = Flag()
        # The thread that runs start() or start_soon(), which cannot wait for the end meanwhile.
        self._starter: int | None = threading.get_ident()
        # True until start() has ended, which may run on the joiner's thread.
        self._starting = True
        #: Whether the start has succeeded, and whether a stop was requested.
        self.begun: bool = False
        self.leaving: bool = False
        announcer = Announcer(store, timer)
        self._callbacks = CallbackThread(f"dtimer-callbacks-{id}", announcer)
        self._log = Log(self._callbacks.call, Source(id, options.ns, self.incarnation))
        self._presence = Presence(id, timer, self._log, options.concurrency)
        self._node_store = NodeStore(store, self.incarnation, self._presence, options)
        self.bell: Bell = Bell()
        self._registration = Registration(self.incarnation, store, self._node_store, self._log)
        self._contact = Contact(store, self._callbacks, self._log, self._answered)
        self._listener = Listener(
            f"dtimer-listener-{id}",
            store=self._node_store,
            bell=self.bell,
            contact=self._contact,
            echo_every=max(0.25, min(_ECHO_EVERY, 5 * options.poll_interval / 1e6)),
            timeout=options.timeout / 1e6,
            log=self._log,
        )
        ledger = Ledger(store, self._end, timer)
        self._leases = LeaseTable(id, options, ledger, self._callbacks, self._log)
        self._seat = Seat(
            options,
            store=self._node_store,
            leases=self._leases,
            listener=self._listener,
            contact=self._contact,
            announcements=self._callbacks,
            log=self._log,
        )
        self._joiner = Joiner(
            f"dtimer-joiner-{id}",
            lambda: self.start(leaving=self.leaving),
            self._seat.connectivity,
            self._callbacks,
        )
        self._dispatcher = Dispatcher(f"dtimer-{id}", self._seat, timer, self)
        self._reports = Reports(
            store,
            self.incarnation,
            self._presence,
            self._callbacks,
            # A node that is still joining is not registered, so it has nothing to report.
            health=lambda: self.health() if self.begun and not self.leaving else None,
            answers=lambda: self._seat.connectivity.error is None,
            history=options.history,
        )
        self._claimer = Claimer(
            f"dtimer-claimer-{id}",
            bell=self.bell,
            seat=self._seat,
            dispatcher=self._dispatcher,
            consumer=timer,
            host=self,
        )

    def rolled_back(self, error: StateRollback) -> None:
        """Report a rollback, and have this timer's lost schedules declared again soon."""
        self._node_store.rolled_back(error)
        self._callbacks.announce("error", error)
        self.bell.ring()

    def note_superseded(self, ids: Collection[str], *, posted: bool) -> None:
        """Record that this process is about to replace, or has replaced, events of these ids."""
        if not posted:
            self._leases.superseded(ids)
            self._seat.superseded_ids.add(ids)
            return
        # Again, because the node may have sent further claims since, before the server posted.
        self._seat.superseded_ids.add(ids)
        if self._dispatcher.release_superseded(ids):
            # Ring, do not claim here: this thread belongs to the caller that posts.
            self.bell.ring()

    # Beginning

    def start_soon(self, *, leaving: bool) -> None:
        """
        Begin `start` on a thread of its own, where each step is repeated until it succeeds.

        Raises:
            RuntimeError: the process can start no more threads.
        """
        if leaving or self.leaving:
            self.start(leaving=True)
            return
        self._joiner.start()
        self._starter = None

    def await_start(self) -> None:
        """
        Wait until a node that `start_soon` has begun is joined, or has failed to join.

        Raises:
            StoreError: Redis does not answer. The node keeps trying.
        """
        if self.joining:
            self._joiner.wait(self._options.timeout / 1e6)

    def start(self, *, leaving: bool) -> None:
        """
        Register, subscribe, and wait for the first claim. If *leaving* is true, only end the node.

        Ends early if a stop is requested meanwhile, for example by an interrupting signal handler.

        Raises:
            StoreError: Redis does not answer. No thread is left running.
        """
        try:
            if leaving:
                # Never set to False here: an interrupting signal handler may have called leave().
                self.leaving = True
            # First the thread that writes the log: registering may log warnings.
            steps = (
                self._callbacks.start,
                *self._registration.steps,
                self._start_threads,
                self._first_claim,
            )
            for step in steps:
                if self.leaving:
                    break
                self._joiner.take(step, lambda: self.leaving, lambda: self._claimer.started)
            if self.leaving and not self._claimer.started:
                self.on_stopped()
        except BaseException:
            # Also for a KeyboardInterrupt, or if the process can start no more threads.
            self.stop(0)
            if self._claimer.started:
                self._claimer.join(2 * self._options.timeout / 1e6)
            else:
                self.on_stopped()
            raise
        finally:
            self._starter, self._starting = None, False
        if not self.leaving:
            self.begun = True
            self._log.joined()
            self._callbacks.announce("ready")
            self._reports.look_in(PATIENCE)

    def _answered(self) -> None:
        # The joiner may wait for this.
        self._joiner.wake()

    def listened(self, *, added: bool) -> None:
        """Record that a listener of ``'event'`` was added or, if not *added*, removed."""
        self.bell.ring()
        if not added or not self._presence.listening:
            self._reports.look_in(0.0 if added else PATIENCE)

    def _start_threads(self) -> None:
        # A test's clock rings the bell when the test advances it.
        if attach := getattr(self._options.now, "attach", None):
            attach(self.bell.ring)
        self._dispatcher.pool.start()
        if not self._listener.started:
            self._listener.start()
        # Subscribe before the first claim, or a wake between the two would be missed. If the
        # subscription fails, the node polls, and reports that.
        self._listener.tried.wait(2 * self._options.timeout / 1e6)

    def _first_claim(self) -> None:
        # The joiner may take this step again.
        if not self._claimer.started:
            self._seat.connectivity.expect_first()
            self._claimer.start()
        if self.leaving:
            # The stop was requested before the thread existed, and had no effect on it.
            self._claimer.stop()
            return
        self._seat.connectivity.tried.wait(2 * self._options.timeout / 1e6)
        reached = self._contact.answered is not None or self._seat.capacity.error is not None
        if not (reached or self.leaving):
            error = self._seat.connectivity.error
            if error is None:
                raise UsageError(
                    "the first claim was not made in time: the node's threads are stuck or starved"
                )
            raise StoreError(f"Redis went away while joining: {error}") from error
        self._contact.report_if_deaf()

    # End

    def quit(self) -> None:
        """Leave, because a handler raised SystemExit or KeyboardInterrupt."""
        self.stop(None)

    def stop(self, timeout: float | None) -> None:
        """Request the end; running handlers have *timeout* seconds. Does not wait for it."""
        self._claimer.stop_within(timeout)
        # Set this after the request. In the other order, a signal handler between the two lines
        # could call join(), which would wait for ever.
        self.leaving = True
        self._joiner.wake()
        if self._starting:
            self._claimer.stop_within(None)  # The thread may have been started meanwhile.
        else:
            self.abort()

    def abort(self) -> None:
        """End a node whose start was interrupted. Does not wait for a claimer that has started."""
        # Without this, `DTimer.leave` and the next join would wait for ever.
        self._starter, self._starting, self.leaving = None, False, True
        if self._claimer.started:
            if not self._claimer.stopping:
                self._claimer.stop_within(0)
        elif self._joiner.started:
            self._joiner.wake()
        elif not self.ended:
            self.on_stopped()

    def wait(self, timeout: float | None = None) -> bool:
        """
        Wait at most *timeout* seconds for the node to end; return whether it has.

        Returns at once on a thread of the node, and on the thread that runs `start`: the node
        ends only after these have returned.
        """
        own = (self._claimer, self._dispatcher.pool, self._callbacks, self._listener, self._joiner)
        if self._starter == threading.get_ident() or any(part.current for part in own):
            return self._end.is_set()
        return self._end.wait(timeout)

    def _deregister(self) -> None:
        self._registration.remove(answered=self._seat.connectivity.error is None)

    def on_stopped(self) -> None:
        """Stop all other threads. Runs last on the claimer's thread, or on the caller's if none."""
        try:
            self._deregister()
            self._listener.stop()
            self._dispatcher.pool.stop()
            if self.begun:
                self._log.left()
            self._callbacks.stop()
            self._listener.join(self._options.timeout / 1e6)
            # After the deadline some handlers may still run. All other handler threads end now.
            self._dispatcher.pool.join_idle(max(1.0, self._options.timeout / 1e6))
            self._callbacks.join(1.0)
            # The joiner may wait for a claim that is not made any more.
            self._seat.connectivity.tried.set()
            self._joiner.wake()
            self._joiner.join(self._options.timeout / 1e6)
            # Last, because listeners may post until the callback thread has ended.
            self._store.release()
        finally:
            # Again, because an exception may have interrupted these steps above.
            self._deregister()
            self._listener.stop()
            self._dispatcher.pool.stop()
            self._callbacks.stop()
            if not self._listener.started:
                self._listener.close()
            self.bell.close()
            self._end.set()
            # Again, because a handler's confirm may have left its connection idle since. From now
            # on a confirm closes its connection itself (timer/ledger.py).
            self._store.release()

    def after_fork(self) -> None:
        """Close, in a forked child, the descriptors of the threads that the child lacks."""
        self.bell.after_fork()
        self._listener.after_fork()

    # Inspection

    @property
    def max_events(self) -> int:
        """The most events in one call of a handler, from the next batch on."""
        return self._dispatcher.max_events

    @max_events.setter
    def max_events(self, value: int) -> None:
        self._dispatcher.max_events = value
        self.bell.ring()

    @property
    def ended(self) -> bool:
        """True when the node has ended."""
        return self._end.is_set()

    @property
    def joining(self) -> bool:
        """True from the beginning of the start until it has succeeded, or the node leaves."""
        return not (self.begun or self.leaving or self.ended)

    def health(self) -> Health:
        """See `DTimer.health`."""
        return examine(
            self._claimer,
            self._seat,
            self._callbacks,
            self._dispatcher,
            self._joiner,
            joined=self.begun,
            listening=self._timer.listens(),
        )
