"""`DTimer`: a client that can also join, and then receives."""

from __future__ import annotations

import dataclasses
import logging
import threading
import weakref
from collections.abc import Collection
from types import TracebackType
from typing import Any, Self

from dtimer.errors import StateRollback, UsageError
from dtimer.model.event import Event, Health
from dtimer.model.moments import Duration, duration_us, moment_us
from dtimer.model.names import check_node
from dtimer.model.options import ANY_NUMBER, check_max_events, validate
from dtimer.store.connect import source
from dtimer.store.line import TRIES
from dtimer.store.store import Store
from dtimer.timer import listeners, process, signals
from dtimer.timer.calendar import Calendar
from dtimer.timer.life import Life
from dtimer.timer.nesting import Nesting
from dtimer.timer.voice import WeakVoice

log = logging.getLogger("dtimer")


class DTimer(Calendar):
    """
    A node of a distributed timer: posts events, and after `join` receives them.

    An event posted now is handed, once its delay is over, to exactly one of the nodes
    that have joined the same namespace. It is leased to that node until it is confirmed,
    and handed out again when the node fails it or dies. The constructor starts nothing
    and connects to nothing.

    Emits ``'event'`` (a list of `Event`), ``'error'`` (an exception), and besides:
    ``'ready'``, ``'connected'``, ``'disconnected'`` (the exception), ``'retry'`` and
    ``'lease_lost'`` (the `Event`), ``'dead'`` and ``'expired'`` (the `DeadLetter`).

    Args:
        id: Names the node for people. Two nodes may share it: each life of a node has an
            incarnation of its own.
        pub: A redis-py or valkey-py client (standalone, of Sentinel, ``RedisCluster``),
            or a URL: ``redis://``, ``rediss://``, ``unix://``, ``embedded:``. None takes
            ``DTIMER_URL``, or else ``redis://localhost:6379``. Its settings are used, and
            connections of our own are made.
        sub: The same for the subscription; *pub* by default.
        options: By keyword. Times are milliseconds or timedeltas.

            ``ns="dt"``
                The namespace: nodes share events with those of the same one.
            ``max_events=1``
                The most events handed to a handler at a time, up to 100.
            ``concurrency=1``
                How many handlers run at a time, each on a thread, up to 1000.
            ``max_retries=3``
                How often an event posted by this node is handed out again. With 0 an
                event is never started twice; unconfirmed it ends as a dead letter.
            ``backoff``
                The wait before a retry: ms, or a function of the attempt that failed.
                By default 1 s, doubled each time up to an hour, half of it random.
            ``lease=30_000``
                How long a claim lasts unrenewed: the wait for the events of a node that
                was killed. Running handlers renew theirs.
            ``look_ahead=20``
                How long before it is due an event without an id of your own may be claimed
                and kept: it is hardly late, but cannot be cancelled any more. 0: never.
            ``auto_confirm=True``
                Confirm when the handler returns. Otherwise call ``ev.confirm()`` within
                the lease, from any thread.
            ``poll_interval=1_000``
                How late an event may be when wakes are lost.
            ``timeout=2_000``
                The deadline of any one call.
            ``max_run=None``
                A handler that runs longer no longer renews its leases.
            ``max_payload=262_144``
                The largest payload, in bytes of JSON.
            ``dead_limit=10_000``, ``dead_age=30 days``
                How many dead letters are kept, and for how long.
            ``exit_timeout=5_000``
                How long the end of the interpreter waits for running handlers.
            ``wait_replicas=0``
                How many replicas must have a post before it returns. See `post`.
            ``now=None``
                For tests: a function giving epoch ms, in place of the server's clock.

    Raises:
        OptionError: an option is unknown or out of range, or *pub* is no client.
    """

    emits = listeners.TIMER

    def __init__(self, id: str, pub: Any = None, sub: Any = None, **options: Any) -> None:
        self._id = check_node(id)
        valid = validate(options)
        now = valid.now
        timeout = valid.timeout / 1e6
        store = Store(
            source(pub, timeout / TRIES),
            valid.ns,
            timeout=timeout,
            ears=None if sub is None else source(sub, timeout / TRIES),
            now=None if now is None else lambda: moment_us(now(), "now", stepped=True),
        )
        super().__init__(valid, store)
        self._life: Life | None = None
        self._finalizer: Any = None
        # Reentrant, for a leave out of a signal handler that interrupted one.
        self._state = threading.RLock()
        self.nesting = Nesting()
        process.watch(self)

    @property
    def id(self) -> str:
        """The id given to the constructor."""
        return self._id

    @property
    def ns(self) -> str:
        """The namespace."""
        return self._options.ns

    @property
    def max_events(self) -> int:
        """The most events handed to a handler at a time. Setting it takes effect at once."""
        return self._options.max_events

    @max_events.setter
    def max_events(self, value: int) -> None:
        self._options = dataclasses.replace(self._options, max_events=check_max_events(value))
        if self._life is not None:
            self._life.max_events = value

    def __repr__(self) -> str:
        return f"<DTimer {self._id!r} of {self.ns!r}, {'' if self.joined else 'not '}joined>"

    # Joining and leaving

    @property
    def joined(self) -> bool:
        """True between `join` and the end of `leave`."""
        self._notice_fork()
        return self._life is not None and self._life.begun and not self._life.over

    def join(self) -> None:
        """
        Start receiving: registered, subscribed and the first claim done when it returns.

        Joining again changes nothing. After a fork the child has not joined, and may. If a
        signal handler that interrupts this calls `leave`, the node has left when this returns.

        Raises:
            StoreError: Redis is not there. Nothing is left running.
            NamespaceCorrupt: the namespace holds what is not ours.
            UsageError: called by a handler of this node while it leaves, or where no node can
                join: uWSGI before it forks or without threads, eventlet, gevent's
                ``thread=False``, Windows.
        """
        leaves = self.nesting.leaves
        self._notice_fork()
        while True:
            with self._state:
                if self.nesting.joining_here:
                    return
                with self.nesting.joining:
                    life = self._life
                    if life is None or life.over:
                        life = self._begin(leaves)
                        break
                if not life.leaving:
                    return
            # Not under the lock: the handler that is waited for may call leave itself.
            if not life.wait(None):
                raise UsageError("join() was called by a handler of the node that leaves")
        if life.leaving:
            life.wait(None)

    def _begin(self, leaves: int) -> Life:
        if reason := process.why_no_node():
            raise UsageError(f"no node can join in this process: {reason}")
        if self._finalizer is not None:
            self._finalizer.detach()
        life = Life(self._id, self._options, self._store, WeakVoice(self))
        # Known before it starts, for a leave() that interrupts that.
        self._life = life
        if self.nesting.leaves != leaves:
            life.leaving = True
        life.start()
        self._finalizer = weakref.finalize(self, process.forgotten, life, self._id)
        self._finalizer.atexit = False
        # What was set while it started; and it rings, for a listener that was added then.
        life.max_events = self._options.max_events
        return life

    def leave(self, timeout: Duration | None = None) -> None:
        """
        Stop receiving: no new claims, handlers end, what none has started is handed back.

        May be called at any time, twice, from two threads, by a signal handler, and by a
        handler of events: there it returns at once, and the end comes when the handler does.
        The same goes for a signal handler that interrupts `join`. Also called when the
        interpreter exits.

        Args:
            timeout: How long running handlers may take. What still runs then is given
                back, the attempt charged; its thread is left behind. None: for ever.

        Raises:
            OptionError: *timeout* is no duration.
        """
        seconds = None if timeout is None else max(0, duration_us(timeout, "timeout")) / 1e6
        self.nesting.left()
        self._notice_fork()
        with self._state:
            life = self._life
            if life is None or life.over:
                self.let_go()
                return
        self._end(life, seconds)

    def _end(self, life: Life, seconds: float | None) -> None:
        life.stop(seconds)
        life.wait(None if seconds is None else seconds + 2 * self._options.timeout / 1e6 + 1)

    def let_go(self) -> None:
        """Close what calls have opened without, or after, a life of their own."""
        with self._state:
            if self._life is None or self._life.over:
                self._store.release()

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

    def run(self) -> None:
        """
        Join, block until SIGINT or SIGTERM, and leave: the body of a worker script.

        The first signal lets running handlers end. The next ends the wait for them: what they
        have is given back, the attempt charged, and when the node has left the signal is handled
        as it was before. A SIGINT that was ignored stays ignored, as in a shell's background job.
        Away from the main thread no signal is caught, and it returns when another thread makes
        the node leave.
        """
        signals.run(self)

    def hurry(self) -> None:
        """Have a `leave` that waits for handlers wait no longer."""
        if self._life is not None:
            self._life.stop(0)

    def health(self) -> Health:
        """Tell whether this node makes progress. Asks nobody, and never raises."""
        self._notice_fork()
        if self._life is None or not self.joined:
            return Health(False, False, False, None, None, 0, 0, None)
        return self._life.health()

    # For timers made of this one

    def appetite(self) -> int:
        """Return how many events may be asked for now, whatever hands are free."""
        return ANY_NUMBER if self.listeners("event") else 0

    def listens(self) -> bool:
        """Tell whether there is a listener that takes events."""
        return bool(self.listeners("event"))

    def deliver(self, events: list[Event]) -> list[BaseException] | None:
        """
        Hand events over, and return what that raised: they are confirmed when it is nothing.

        None when there was nobody to take them: they are given back, no attempt charged.
        """
        return listeners.explained(self.emit_guarded("event", events))

    def ring(self) -> None:
        """Have the node ask for events now: its appetite may have grown."""
        if self._life is not None:
            self._life.bell.ring()

    # Behind the scenes

    def _superseding(self, ids: Collection[str], *, posted: bool) -> None:
        life = self._life
        if life is not None and not life.over:
            life.superseding(ids, posted=posted)

    def _rolled_back(self, error: StateRollback) -> None:
        if self._life is not None and self.joined:
            self._life.rolled_back(error)
        else:
            super()._rolled_back(error)

    def _listening(self, event: str, *, more: bool) -> None:
        if event == "event" and (life := getattr(self, "_life", None)) is not None:
            life.listened(more=more)

    def after_fork(self) -> None:
        """Start anew in a forked child, which has not joined."""
        super().after_fork()
        self._state = threading.RLock()
        self.nesting = Nesting()
        life, self._life = self._life, None
        if self._finalizer is not None:
            self._finalizer.detach()
        if life is not None and not life.over:
            life.after_fork()
            log.info("%r was joined by the parent process; join() in this one to receive", self)

    def at_exit(self) -> None:
        """Leave, within ``exit_timeout``: the interpreter is about to end."""
        life = self._life
        if life is not None and not life.over:
            # By no lock, which another thread may have for as long as it likes.
            self._end(life, self._options.exit_timeout / 1e6)
