"""
`RunAt`: a scheduled queue with the interface of a stream, over `DTimer`.

A key is leased to its reader until the reader asks for the next one. So what the original
called *Lost Work* is cured: the key of a reader that crashed goes to another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from dtimer.engine.flag import Flag
from dtimer.engine.readers import Readers, Reading, Returned
from dtimer.errors import OptionError, UsageError
from dtimer.model.event import Event
from dtimer.model.moments import Duration, Moment, duration_us
from dtimer.model.names import check_id, incarnation
from dtimer.model.stream import timer_options
from dtimer.timer import listeners
from dtimer.timer.emitter import Emitter
from dtimer.timer.timer import DTimer

T = TypeVar("T")


class _Puller(DTimer):
    """A timer that asks for no more events than readers wait for."""

    def __init__(self, queue: RunAt, id: str, pub: Any, **options: Any) -> None:
        super().__init__(id, pub, **options)
        self._queue = queue

    def appetite(self) -> int:
        """See `DTimer.appetite`."""
        return self._queue.wanted()

    def listens(self) -> bool:
        """See `DTimer.listens`: its readers do."""
        return True

    def deliver(self, events: list[Event]) -> list[BaseException] | None:
        """See `DTimer.deliver`."""
        return self._queue.deliver(events[0])

    def after_fork(self) -> None:
        """See `DTimer.after_fork`."""
        super().after_fork()
        self._queue.after_fork()


class RunAt(Emitter):
    """
    A scheduled queue of keys, written to, read from, iterated and piped like a stream.

    Keys are unique: writing one again moves it. Many consumers may share a queue, and each
    key goes to exactly one of them, in the order of ``runAt``; keys of the same
    millisecond in the order of their writing, up to a thousand of them. A key is leased to
    its reader, and the lease renewed, until it is confirmed: by asking for the next key, by
    `confirm`, or by leaving the ``with`` block without an exception. The key of a reader
    that dies is handed to another.

    The constructor starts nothing. Reading, or listening to ``'data'``, joins the queue.
    Emits ``'data'`` (a key), ``'error'`` (an exception), ``'end'``.

    Args:
        queue_name: Consumers of the same name share its keys.
        interval: How late a key may be when pushes are lost, in ms; otherwise it is pushed.
        redis: A client, a URL, or ``{"host": …, "port": …}``. See `DTimer`.
        concurrency: How many keys this consumer may hold at a time, each by a thread.
        options: Others of `DTimer`, such as ``lease``, ``max_retries`` and ``backoff``.

    Raises:
        OptionError: an option, or the client, is not acceptable.
    """

    emits = listeners.STREAM

    def __init__(
        self,
        queue_name: str = "RunAt~default",
        *,
        interval: Duration = 100,
        redis: Any = None,
        concurrency: int = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        self.after_fork()
        self._stopped = Flag()
        # Has one item until 'end' is emitted: whoever removes that does.
        self._unsaid = [True]
        pub, options = timer_options(queue_name, interval, redis, options)
        self._timer = _Puller(
            self, f"runat-{incarnation()}", pub, concurrency=concurrency, **options
        )
        self._timer.on("error", lambda error: self.announce("error", error))

    @property
    def timer(self) -> DTimer:
        """The timer underneath, with its `DTimer.peek`, `DTimer.dead` and `DTimer.stats`."""
        return self._timer

    def after_fork(self) -> None:
        """Begin with no reader and no key in hand, as a forked child does."""
        self._readers = Readers()
        self._mine = threading.local()

    # Writing

    def write(self, job: Mapping[str, Any] | str, run_at: Moment | None = None) -> bool:
        """
        Schedule a key.

        Args:
            job: ``{"runAt": ms, "key": "x"}``, or the key.
            run_at: When, if *job* is the key: ms since the epoch or an aware datetime. The
                past, or none at all, is now.

        Returns:
            True, as a stream does that can take more.

        Raises:
            OptionError: no key, a key that is no string, or a ``runAt`` that is no moment.
            StoreError: it was not written.
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
        self._timer.post_in_line(check_id(key, "key"), run_at)
        return True

    # Reading

    def read(self, timeout: Duration | None = None) -> str | None:
        """
        Confirm the key that this thread read before, and return the next one.

        An exception that interrupts it, such as KeyboardInterrupt or one out of a signal handler,
        takes no key along: one that has just come is released, no attempt charged.

        Args:
            timeout: In ms; None waits until there is one.

        Returns:
            The key; None when the time is over, or the queue was stopped.

        Raises:
            UsageError: the queue flows to a listener of ``'data'`` or through a pipe, or a signal
                handler calls this while it interrupts a `read` of the same queue.
            StoreError: Redis is not there.
        """
        seconds = None if timeout is None else max(0, duration_us(timeout, "timeout")) / 1e6
        if self.listeners("data"):
            raise UsageError("this RunAt flows to its 'data' listeners; read from another")
        if getattr(self._mine, "reading", False):
            # The interrupted read may be handed the only key, and cannot return it meanwhile.
            raise UsageError("a signal handler cannot read while it interrupts a read")
        try:
            self._mine.reading = True
            return self._read(seconds)
        finally:
            self._mine.reading = False

    def _read(self, seconds: float | None) -> str | None:
        self._finish()
        if self._stopped.is_set() or not self._join():
            return None
        reading = Reading()
        try:
            self._readers.read(reading, seconds, self._timer.ring, self._stopped)
            if reading.event is None or reading.forsaken:
                return None
            self._mine.read = reading
            return reading.event.id
        except BaseException:
            self._readers.forsake(reading)
            raise

    def __iter__(self) -> Iterator[str]:
        while (key := self.read()) is not None:
            yield key

    def confirm(self, key: str) -> bool:
        """Confirm a key in hand now; False when it is not, or no longer, held here."""
        return self._readers.confirm(key)

    def pipe(self, target: Callable[[str], Any] | Any) -> Any:
        """
        Have each key written to *target*, a callable or anything with ``write``; return it.

        A key is confirmed when *target* has taken it, and handed out again when it raises.
        Another `RunAt` makes a relay.
        """
        write = getattr(target, "write", None)
        if not callable(write):
            if not callable(target):
                raise OptionError(f"pipe takes a callable or an object with write, not {target!r}")
            write = target
        self.on("data", write)
        return target

    def _listening(self, event: str, *, more: bool) -> None:
        if more and event == "data" and not self._stopped.is_set() and self._join():
            self._timer.ring()

    def _join(self) -> bool:
        """Join, unless the queue was stopped, be it meanwhile."""
        self._timer.join()
        if self._timer.nesting.joining_here:
            # No key would come before that thread goes on.
            raise UsageError("a signal handler cannot read while it interrupts the joining")
        if self._stopped.is_set():
            # The stop may have come before this join, and so have had nothing to end.
            self._timer.leave()
        return not self._stopped.is_set()

    # What the timer asks

    def wanted(self) -> int:
        """Return how many keys there are readers for."""
        if self._stopped.is_set():
            return 0
        return 1_000 if self.listeners("data") else len(self._readers)

    def deliver(self, event: Event) -> list[BaseException] | None:
        """Hand a key to a reader, and return when it is done with it."""
        if self.listeners("data"):
            return self.emit_guarded("data", event.id)
        return self._readers.hand_over(event, self._stopped)

    def _finish(self, failure: BaseException | None = None) -> None:
        """End this thread's hold on the key that it read last."""
        # Forgotten last: an exception from a signal handler may come in between, and a key that
        # is forgotten before it is done is held for ever.
        read: Reading | None = getattr(self._mine, "read", None)
        if read is not None:
            if not read.done.is_set():
                read.failure = failure
            read.done.set()
            if self._mine.read is read:
                self._mine.read = None

    # The end

    def stop(self, timeout: Duration | None = None) -> None:
        """
        Stop: iterations and reads end, what was not read is given back.

        The key that the calling thread has read is confirmed; those of other threads are
        waited for, at most *timeout*. Closes the connections that were opened here.
        """
        self._end(None, timeout)

    def _end(self, failure: BaseException | None, timeout: Duration | None) -> None:
        self._finish(failure)
        self._stopped.set()
        self._readers.send_away()
        self._timer.leave(timeout)
        try:
            self._unsaid.pop()
        except IndexError:
            return
        self.announce("end")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failure = value and Returned(f"the reader left by {type(value).__name__}: {value}")
        if failure is not None:
            failure.__cause__ = value
        self._end(failure, None)
