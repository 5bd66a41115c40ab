"""
One named thread with a beginning and an end.

Each start makes a stop event of its own and hands it to the body, so that no later start
revives an older thread. A body that fails, with whatever it is, is reported and begun
again: no thread of a node ends while the node has not. One that fails on its way out is
begun once more, so that it may finish what it does last.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from dtimer.engine.flag import Flag

# Long enough that a body which always fails does not spin, short enough to recover
# within a second.
_PAUSE = 0.25

# A body that has run for this long has recovered: what fails it then is news again.
_STEADY = 1.0


class Service:
    """
    A thread that runs *body* until it is stopped.

    Args:
        name: The thread's.
        body: Runs until the event that it is given is set, then returns.
        failed: Told of what escaped the body, once of each kind until it has recovered.
        ended: Called last on the thread, however the body came to its end.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[Flag], None],
        failed: Callable[[BaseException], None],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._body = body
        self._failed = failed
        self._ended = ended
        self._stopping = Flag()
        self._thread: threading.Thread | None = None
        self._told: set[type] = set()
        self._failure: BaseException | None = None
        self._failed_at = 0.0
        #: How often the body was begun again because it had failed.
        self.failures = 0

    def start(self) -> None:
        """
        Start the thread.

        Raises:
            RuntimeError: the process can have no more threads. It may be stopped and
                joined all the same.
        """
        self._stopping = Flag()
        # Daemon: the interpreter would otherwise wait for it before it runs the
        # exit handler that ends it.
        self._thread = threading.Thread(
            target=self._run, args=(self._stopping,), name=self.name, daemon=True
        )
        try:
            self._thread.start()
        except BaseException:
            self._thread = None
            raise

    def _run(self, stopping: Flag) -> None:
        try:
            while not self._run_body(stopping):
                stopping.wait(_PAUSE)
        finally:
            self._ended()

    def _run_body(self, stopping: Flag) -> bool:
        """Run the body; return whether that is to be left at it."""
        last = stopping.is_set()
        try:
            self._body(stopping)
        except BaseException as e:
            # Also an exit: it is the process's to end, and not a thread's of ours.
            self._note(e)
            return last
        return True

    def _note(self, error: BaseException) -> None:
        if self.failure is None:
            self._told.clear()
        self._failure, self._failed_at = error, time.monotonic()
        self.failures += 1
        if type(error) not in self._told:
            self._told.add(type(error))
            # Whoever cannot be told, for want of memory say, must not end the thread either.
            with contextlib.suppress(Exception):
                self._failed(error)

    @property
    def failure(self) -> BaseException | None:
        """What the body last failed with; None once it has run steadily since."""
        if time.monotonic() - self._failed_at > _PAUSE + _STEADY:
            self._failure = None
        return self._failure

    def stop(self) -> None:
        """Ask the body to end. Does not wait."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """True once the end has been asked for."""
        return self._stopping.is_set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end; return whether it has come. At once for the thread itself."""
        thread = self._thread
        if thread is None:
            return True
        if thread is not threading.current_thread():
            thread.join(timeout)
        return not thread.is_alive()

    @property
    def started(self) -> bool:
        """True once the thread has been started, also when it has ended."""
        return self._thread is not None

    @property
    def current(self) -> bool:
        """True on the thread of this service."""
        return self._thread is threading.current_thread()
