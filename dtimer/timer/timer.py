"""`DTimer`: a client that can also join a namespace and then receives events."""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

from dtimer import log
from dtimer.engine.ports import EventResults
from dtimer.errors import StateRollback, StoreError
from dtimer.model.arguments import RedisClient
from dtimer.model.event import Event
from dtimer.model.ids import check_node
from dtimer.model.options import ANY_NUMBER, TimerOptions, validate
from dtimer.model.records import Health
from dtimer.model.times import Duration, duration_us, moment_us
from dtimer.naming import public
from dtimer.store.connection.sources import source
from dtimer.store.script_client import TRIES
from dtimer.store.store import Store
from dtimer.timer import delivery, fork
from dtimer.timer.client import Client
from dtimer.timer.membership import Membership
from dtimer.timer.node import Node
from dtimer.timer.signals import Signals
from dtimer.timer.timer_emitter import TimerEmitter
from dtimer.timer.weak import TimerCalls, weakly


class DTimer(Client, TimerEmitter):
    """
    Posts events, and after `join` receives them, as one node of a distributed timer.

    An event is delivered after its delay to exactly one of the nodes that have joined the same
    namespace. It is leased to that node until it is confirmed, and delivered again if the handler
    fails or the node dies. The constructor starts no thread and opens no connection.

    Emits ``'event'`` (a list of `Event`) and ``'error'`` (an exception). Also emits
    ``'ready'``, ``'connected'``, ``'disconnected'`` (the exception), ``'retry'`` and
    ``'lease_lost'`` (the `Event`), ``'dead'`` and ``'expired'`` (the `DeadLetter`).

    Args:
        id: Names the node in logs and lists. Two nodes may share an id, because every join creates
            an incarnation of its own.
        pub: A redis-py or valkey-py client (standalone, of Sentinel, ``RedisCluster``), or a
            URL: ``redis://``, ``rediss://``, ``unix://``, ``embedded:``. None means ``DTIMER_URL``,
            or else ``redis://localhost:6379``. dtimer copies the settings of a client and opens
            its own connections; your client object is never used.
        sub: The same for the pub/sub connection; *pub* by default.
        options: The keyword arguments of `TimerOptions`, such as ``ns``, ``max_events``,
            ``concurrency`` and ``lease``. A number for a time is milliseconds.

    Raises:
        OptionError: an option is unknown or out of range, or *pub* is not a client.
    """

    def __init__(
        self,
        id: str,
        pub: RedisClient | str | None = None,
        sub: RedisClient | str | None = None,
        **options: Unpack[TimerOptions],
    ) -> None:
        self._id = check_node(id)
        valid = validate(options)
        now = valid.now
        timeout = valid.timeout / 1e6
        store = Store(
            source(pub, timeout / TRIES),
            valid.ns,
            timeout=timeout,
            pubsub_source=None if sub is None else source(sub, timeout / TRIES),
            now=None if now is None else lambda: moment_us(now(), "now", stepped=True),
            coder=valid.codec,
        )
        TimerEmitter.__init__(self)
        self._membership = Membership(self._id, valid, store, self._calls(store))
        Client.__init__(self, valid, store, self._membership.note_superseded)
        store.rollback.on_rollback = weakly(self._rolled_back, lambda: None)
        # In a forked child, has one item until the log says that the parent's node is not its own.
        self._has_lost_node: list[bool] = []
        fork.watch(self)

    def _calls(self, store: Store) -> TimerCalls:
        return TimerCalls(
            emit=weakly(self._announce, lambda: None),
            deliver=weakly(self._deliver, lambda: None),
            demand=weakly(self._demand, int),
            listens=weakly(self._listens, lambda: True),
            close_unless_joined=weakly(self._close_unless_joined, store.release),
        )

    @property
    def id(self) -> str:
        """The id that was given to the constructor."""
        return self._id

    @property
    def ns(self) -> str:
        """The namespace."""
        return self._options.ns

    @property
    def max_events(self) -> int:
        """The most events in one call of a handler. Setting it takes effect at once."""
        return self._membership.max_events

    @max_events.setter
    def max_events(self, value: int) -> None:
        self._membership.max_events = validate({"max_events": value}).max_events

    def __repr__(self) -> str:
        node = self._node
        otherwise = "joining" if node is not None and node.joining else "not joined"
        return f"<DTimer {self._id!r} of {self.ns!r}, {'joined' if self.joined else otherwise}>"

    # Joining and leaving

    @property
    def joined(self) -> bool:
        """True between `join` and the end of `leave`."""
        self._notice_fork()
        return self._membership.joined

    def join(self, wait: bool = True) -> None:
        """
        Start receiving. Returns when the node is registered and has made its first claim.

        Joining again changes nothing. A forked child has not joined, and may join. If a signal
        handler interrupts this call and calls `leave`, the node has left when this returns.

        Args:
            wait: If false, return at once, and join in the background as soon as Redis answers.
                Until then `health` says ``joining``, with the error. A failure is emitted once an
                outage, as ``'disconnected'`` and ``'error'``; ``'ready'`` when the node has
                joined. `leave` ends the attempts. A later ``join()`` awaits the next of them, and
                raises its error; the attempts go on. If another thread is in ``join()``, or the
                node still leaves, this call waits for that first.

        Raises:
            StoreError: Redis does not answer. No thread is left running. Not with *wait* false.
            NamespaceCorrupt: the namespace contains keys that dtimer has not written.
            UsageError: called by a handler of this node while it leaves, or in a process that
                cannot run a node: uWSGI before it forks or without threads, eventlet, gevent
                with ``thread=False``, Windows.
        """
        # First, so that each later leave() of a signal handler counts.
        leaves = self._membership.leaves
        self._notice_fork()
        self._membership.join(leaves, wait=wait)

    def leave(self, timeout: Duration | None = None) -> None:
        """
        Stop receiving. Running handlers finish; events that were not started are released.

        May be called at any time, twice, from two threads, by a signal handler, and by a
        handler of events. There it returns at once, and the node leaves after the handler has
        returned. The same holds for a signal handler that interrupts `join`. dtimer also calls
        leave when the interpreter exits.

        Args:
            timeout: How long running handlers may take; None for no limit. Events whose handlers
                still run then are retried, the attempt charged; their threads are abandoned.

        Raises:
            OptionError: *timeout* is not a valid duration.
        """
        seconds = None if timeout is None else max(0, duration_us(timeout, "timeout")) / 1e6
        self._notice_fork()
        self._membership.leave(seconds)

    def __enter__(self) -> Self:
        self.join()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def run(self, drain: Duration | None = None) -> None:
        """
        Join, block until SIGINT or SIGTERM, and leave: the body of a worker script.

        If Redis does not answer at the start, this call raises: systemd, or another supervisor,
        restarts the process. After the first signal, running handlers finish. A second signal
        ends the wait: their events are retried, the attempt charged, and the signal's previous
        handler is called after the node has left. A SIGINT that was ignored before, as in a
        shell's background job, stays ignored. On a thread other than the main thread no signal is
        caught, and this call returns when another thread calls `leave`.

        Args:
            drain: How long running handlers may take after the first signal; None for no limit.
                Choose a little less than the time after which your supervisor kills the process.
                See `leave`.

        Raises:
            OptionError: *drain* is not a valid duration.
            StoreError: see `join`, also for its other errors.
        """
        if drain is not None:
            duration_us(drain, "drain")
        signals = Signals(self._membership.stop_waiting)
        try:
            # Before the join, because a signal may come during it.
            signals.catch()
            try:
                self.join()
            except StoreError as e:
                e.add_note(
                    "run() does not wait for Redis: have a supervisor, such as systemd, restart"
                    " this process. join(wait=False) waits."
                )
                raise
            while self.joined and not signals.wait(0.5):
                pass
        finally:
            try:
                signals.hurry_leave()
                self.leave(drain)
            finally:
                signals.put_back()

    def health(self) -> Health:
        """Return whether this node makes progress. Sends nothing to Redis, and never raises."""
        node = self._node
        if node is None or not (self.joined or node.joining):
            return Health(False, False, False, None, None, 0, 0, None)
        return node.health()

    # Overridden by subclasses

    def _demand(self) -> int:
        """Return how many events the listeners can take. Free threads are another limit."""
        return ANY_NUMBER if self.listeners("event") else 0

    def _listens(self) -> bool:
        """Return whether there is a listener that takes events."""
        return bool(self.listeners("event"))

    def _deliver(self, events: list[Event], results: EventResults) -> list[BaseException] | None:
        """
        Call the listeners of ``'event'`` with *events*; return the exceptions that they raise.

        The events that have none of *results* are confirmed if the list is empty. None means that
        no listener was called: the events are then released, no attempt charged.
        """
        found = self._called_listeners("event")
        return delivery.deliver(found, events, results, self._call_within)

    def _ring(self) -> None:
        """Make the node claim now, because it can take more events."""
        if (node := self._node) is not None:
            node.bell.ring()

    # Internals

    @property
    def _node(self) -> Node | None:
        return self._membership.node

    def _log_source(self) -> log.Source:
        return log.Source(self._id, self.ns, getattr(self._node, "incarnation", None))

    def _close_unless_joined(self) -> None:
        self._membership.close_unless_joined()

    def _rolled_back(self, error: StateRollback) -> None:
        node = self._node
        if node is not None and self.joined:
            node.rolled_back(error)
        else:
            self._announce("error", error)

    def _listener_changed(self, event: str, *, added: bool) -> None:
        if event == "event" and (node := self._node) is not None:
            node.listened(added=added)

    def _after_fork(self) -> None:
        """Reset this timer in a forked child, which has not joined."""
        super()._after_fork()
        if self._membership.after_fork():
            self._has_lost_node[:] = [True]

    def _report_fork(self) -> None:
        # Not in the fork itself: a logging handler may use a lock that a thread of the parent held
        # at that moment, such as that of a `queue.Queue`. The child would never begin to run.
        if self._has_lost_node:
            self._has_lost_node.clear()
            log.write(log.FORKED, repr(self), source=self._log_source())

    def _at_exit(self) -> None:
        self._membership.at_exit()


public(DTimer)
