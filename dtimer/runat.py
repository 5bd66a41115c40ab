"""
`RunAt`: a scheduled queue with the interface of a stream, built on `DTimer`.

A key is leased to its reader until the reader asks for the next one. If the reader crashes, the
key is delivered to another reader. The Node package *runat*, which this class is modelled on,
loses such a key, and calls this *Lost Work*.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from dtimer.engine.flag import Flag
from dtimer.engine.ports import EventResults
from dtimer.engine.readers import Readers, Reading, Returned
from dtimer.errors import OptionError, UsageError
from dtimer.log import Source
from dtimer.model import summary
from dtimer.model.arguments import Job, KeySink, RedisAddress, RedisClient
from dtimer.model.event import Event
from dtimer.model.ids import check_id, incarnation
from dtimer.model.options import RunAtOptions, TimerOptions
from dtimer.model.stream import timer_options
from dtimer.model.times import Duration, Moment, duration_us
from dtimer.naming import public
from dtimer.timer.stream_emitter import StreamEmitter
from dtimer.timer.timer import DTimer

# A lambda is understood only if its parameter is written as a Callable, not as a variable.
Sink = TypeVar("Sink", bound=KeySink)
T = TypeVar("T")


class _QueueTimer(DTimer):
    """A timer that claims no more events than there are waiting readers."""

    def __init__(
        self,
        queue: RunAt,
        id: str,
        pub: RedisClient | str | None,
        **options: Unpack[TimerOptions],
    ) -> None:
        super().__init__(id, pub, **options)
        self._queue = queue

    def _demand(self) -> int:
        """See `DTimer._demand`."""
        return self._queue._wanted()

    def _listens(self) -> bool:
        """See `DTimer._listens`. Always True, because readers need no listener."""
        return True

    def _deliver(self, events: list[Event], results: EventResults) -> list[BaseException] | None:
        """See `DTimer._deliver`."""
        return self._queue._deliver(events[0])

    def _after_fork(self) -> None:
        """See `DTimer._after_fork`."""
        super()._after_fork()
        self._queue._after_fork()


class RunAt(StreamEmitter):
    """
    A scheduled queue of keys, with the interface of a stream: write, read, iterate and pipe.

    Keys are unique: writing a key again moves it. Many consumers may share a queue. Each key is
    delivered to exactly one of them, in the order of ``runAt``. Up to a thousand keys of the same
    millisecond are delivered in the order in which they were written. The lease of a key is
    renewed until the key is confirmed: by reading the next key, by `confirm`, or by leaving the
    ``with`` block without an exception. If a reader dies, its key is delivered to another.

    The constructor starts no thread. Reading, or listening to ``'data'``, joins the queue.
    Emits ``'data'`` (a key), ``'error'`` (an exception) and ``'end'``.

    Args:
        queue_name: Consumers with the same name share a queue.
        interval: How late a key may be if pub/sub messages are lost, in ms. While messages arrive,
            keys are pushed without polling.
        redis: A client, a URL, or ``{"host": …, "port": …}``. See `DTimer`.
        options: The keyword arguments of `RunAtOptions`, such as ``lease`` and ``max_retries``.
            ``concurrency`` is how many keys this consumer may hold at a time, each on a thread
            of its own.

    Raises:
        OptionError: an option or the client is not valid.
    """

    def __init__(
        self,
        queue_name: str = "RunAt~default",
        *,
        interval: Duration = 100,
        redis: RedisClient | RedisAddress | str | None = None,
        **options: Unpack[RunAtOptions],
    ) -> None:
        super().__init__()
        self._after_fork()
        self._stopped = Flag()
        # Has one item until 'end' is emitted. The caller that removes it emits 'end'.
        self._end_pending = [True]
        pub, its_options = timer_options(queue_name, interval, redis, options)
        self._timer = _QueueTimer(self, f"runat-{incarnation()}", pub, **its_options)
        self._timer.on("error", lambda error: self._announce("error", error))

    @property
    def timer(self) -> DTimer:
        """The timer underneath, with its `DTimer.peek`, `DTimer.dead` and `DTimer.stats`."""
        return self._timer

    def _log_source(self) -> Source:
        return self._timer._log_source()

    def _after_fork(self) -> None:
        """Reset the queue in a forked child: it has no readers, and holds no keys."""
        self._readers = Readers()
        self._by_thread = threading.local()

    # Writing

    def write(self, job: Job | str, run_at: Moment | None = None) -> bool:
        """
        Schedule a key.

        Args:
            job: ``{"runAt": ms, "key": "x"}``, or the key alone.
            run_at: The due time if *job* is the key: ms since the epoch, or an aware datetime.
                None or a past time means now.

        Returns:
            Always True. In Node, a stream returns True if it accepts more.

        Raises:
            OptionError: the key is missing or is not a string, or ``runAt`` is not a valid time.
            StoreError: the key was not written.
        """
        if isinstance(job, Mapping):
            if unknown := sorted(map(str, set(job) - {"runAt", "key"})):
                raise OptionError(f"a job has runAt and key, not {unknown[0]!r}")
            if "key" not in job:
                raise OptionError("a job needs a key")
            if run_at is not None:
                raise OptionError("give runAt in the job or as run_at, not both")
            key, run_at = job["key"], job.get("runAt")
        else:
            key = job
        self._timer._post_in_order(check_id(key, "key"), run_at)
        return True

    # Reading

    def read(self, timeout: Duration | None = None) -> str | None:
        """
        Confirm the key that this thread read before, and return the next one.

        If an exception interrupts the read, such as KeyboardInterrupt, no key is lost: a key that
        has just arrived is released, and no attempt is charged.

        Args:
            timeout: The longest wait in ms; None for no limit.

        Returns:
            The key; None if the timeout has passed, or the queue was stopped.

        Raises:
            UsageError: the keys go to a listener of ``'data'`` or to a pipe, or a signal handler
                that interrupts a `read` of this queue calls `read` again.
            StoreError: Redis does not answer.
        """
        seconds = None if timeout is None else max(0, duration_us(timeout, "timeout")) / 1e6
        if self.listeners("data"):
            raise UsageError("the keys of this RunAt go to its 'data' listeners; read from another")
        if getattr(self._by_thread, "in_read", False) and self._interrupts_a_read():
            # The interrupted read may hold the only key that is due. It cannot return the key
            # before the signal handler returns.
            raise UsageError("a signal handler cannot read while it interrupts a read")
        try:
            self._by_thread.in_read = True
            return self._read(seconds)
        finally:
            self._by_thread.in_read = False

    def _interrupts_a_read(self) -> bool:
        """
        Return whether the caller interrupts a `read` of this queue on this thread.

        ``in_read`` alone does not tell: an exception of a signal handler that interrupts the end of
        a `read` leaves it true.
        """
        frame = sys._getframe(1).f_back
        while frame is not None:
            if frame.f_code is RunAt.read.__code__ and frame.f_locals["self"] is self:
                return True
            frame = frame.f_back
        return False

    def _read(self, seconds: float | None) -> str | None:
        self._finish()
        if self._stopped.is_set() or not self._join():
            return None
        reading = Reading()
        try:
            self._readers.read(reading, seconds, self._timer._ring, self._stopped)
            if reading.event is None or reading.abandoned:
                return None
            self._by_thread.last_reading = reading
            return reading.event.id
        except BaseException:
            self._readers.abandon(reading)
            raise

    def __iter__(self) -> Iterator[str]:
        while (key := self.read()) is not None:
            yield key

    def confirm(self, key: str) -> bool:
        """Confirm a key now; return False if no reader of this queue object holds it."""
        return self._readers.confirm(key)

    @overload
    def pipe(self, target: Sink) -> Sink: ...
    @overload
    def pipe(self, target: Callable[[str], T]) -> Callable[[str], T]: ...
    def pipe(self, target: Any) -> Any:
        """
        Pass each key to *target*, a callable or an object with ``write``; return *target*.

        A key is confirmed when *target* returns, and retried if *target* raises. To relay keys to
        another queue, pass its `RunAt`.
        """
        write = getattr(target, "write", None)
        if not callable(write):
            if not callable(target):
                raise OptionError(
                    f"pipe takes a callable or an object with write, not {summary.value(target)}"
                )
            write = target
        self.on("data", write)
        return target

    def _listener_changed(self, event: str, *, added: bool) -> None:
        if added and event == "data" and not self._stopped.is_set() and self._join():
            self._timer._ring()

    def _join(self) -> bool:
        """Join; return False if the queue was stopped before the join or during it."""
        self._timer.join()
        if self._timer._membership.joining_here:
            # The interrupted join continues only after the signal handler, so no key would arrive.
            raise UsageError("a signal handler cannot read while it interrupts the joining")
        if self._stopped.is_set():
            # A `stop` that came before this join found no node that it could end.
            self._timer.leave()
        return not self._stopped.is_set()

    # Called by the timer

    def _wanted(self) -> int:
        """Return how many keys the readers or listeners can take, which is the timer's `demand`."""
        if self._stopped.is_set():
            return 0
        return 1_000 if self.listeners("data") else len(self._readers)

    def _deliver(self, event: Event) -> list[BaseException] | None:
        """Give a key to the listeners or to a reader, and return when they are done with it."""
        if self.listeners("data"):
            found = self._called_listeners("data")
            return self._call_within(found, "data", (event.id,), [event])
        return self._readers.hand_over(event, self._stopped)

    def _finish(self, failure: BaseException | None = None) -> None:
        """Confirm the key that this thread read last, or retry it after a *failure*."""
        # Forget the reading last. A signal handler may raise at any step, and a key whose reading
        # is forgotten before it is done is held for ever.
        last: Reading | None = getattr(self._by_thread, "last_reading", None)
        if last is not None:
            if not last.done.is_set():
                last.failure = failure
            last.done.set()
            if self._by_thread.last_reading is last:
                self._by_thread.last_reading = None

    # The end

    def stop(self, timeout: Duration | None = None) -> None:
        """
        Stop the queue: iterations and reads end, and keys that were not read are released.

        The key that the calling thread has read is confirmed. The call waits, at most *timeout*,
        until other threads have finished with their keys. Then the connections of this object are
        closed.
        """
        self._end(None, timeout)

    def _end(self, failure: BaseException | None, timeout: Duration | None) -> None:
        self._finish(failure)
        self._stopped.set()
        self._readers.end_waits()
        self._timer.leave(timeout)
        try:
            self._end_pending.pop()
        except IndexError:
            return
        self._announce("end")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failure = value and Returned(f"the reader left with {type(value).__name__}: {value}")
        if failure is not None:
            failure.__cause__ = value
        self._end(failure, None)


public(RunAt)
