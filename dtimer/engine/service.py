"""
A named thread that can be started, stopped and restarted, and that survives exceptions.

Each start creates a stop flag and passes it to the body, so that a later start cannot clear the
flag of an older thread. If the body raises anything, the exception is reported and the body runs
again: no thread of a node ends before the node does. If the body raises after the stop, it runs
once more, so that it can finish its last actions.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from dtimer.engine.flag import Flag

# Seconds before the body runs again. A body that always fails must not spin, but should recover
# within a second.
_PAUSE = 0.25

# After this many seconds without an exception, the next one is reported even if it is not new.
_STEADY = 1.0

_here = threading.local()


def on_service_thread() -> bool:
    """Return whether the caller runs on the thread of a service."""
    return getattr(_here, "is_service", False)


class Service:
    """
    Runs *body* on a thread until it is stopped.

    Args:
        name: The name of the thread.
        body: Runs until the flag that it is given is set, then returns.
        failed: Called with an exception of the body, once for each kind until it has recovered.
        ended: Called last on the thread, after a return of the body or any exception.
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
        self._reported: set[type] = set()
        self._failure: BaseException | None = None
        self._failed_at = 0.0
        #: How often the body has raised an exception.
        self.failures: int = 0

    def start(self) -> None:
        """
        Start the thread.

        Raises:
            RuntimeError: the process can start no more threads. The service may be stopped and
                joined after any exception in this call, also after that of a signal handler.
        """
        self._stopping = Flag()
        # An exception from a signal handler may end this call before or after the thread has
        # begun. If the thread removes the item first, it runs. If this call removes it first,
        # the thread does nothing.
        may_run = [True]
        # Daemon, because the interpreter waits for other threads before it runs the exit
        # handler that stops this one.
        thread = threading.Thread(
            target=self._run, args=(self._stopping, may_run), name=self.name, daemon=True
        )
        try:
            self._thread = thread
            thread.start()
        except BaseException:
            with contextlib.suppress(IndexError):
                may_run.pop()
                self._thread = None
            raise

    def _run(self, stopping: Flag, may_run: list[bool]) -> None:
        try:
            may_run.pop()
        except IndexError:
            return
        _here.is_service = True
        try:
            while not self._run_body(stopping):
                stopping.wait(_PAUSE)
        finally:
            self._ended()

    def _run_body(self, stopping: Flag) -> bool:
        """Run the body once. Return True if the thread should now end."""
        last = stopping.is_set()
        try:
            self._body(stopping)
        except BaseException as e:
            # Also SystemExit and KeyboardInterrupt: they must not end a thread of the node.
            self._note(e)
            return last
        return True

    def _note(self, error: BaseException) -> None:
        if self.failure is None:
            self._reported.clear()
        self._failure, self._failed_at = error, time.monotonic()
        self.failures += 1
        if type(error) not in self._reported:
            self._reported.add(type(error))
            # An exception of the report, for example a lack of memory, must not end the thread.
            with contextlib.suppress(Exception):
                self._failed(error)

    @property
    def failure(self) -> BaseException | None:
        """The last exception of the body; None once the body has run long enough without one."""
        if time.monotonic() - self._failed_at > _PAUSE + _STEADY:
            self._failure = None
        return self._failure

    def stop(self) -> None:
        """Ask the body to end. Does not wait for it."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """True once `stop` has been called."""
        return self._stopping.is_set()

    def join(self, timeout: float | None = None) -> bool:
        """
        Wait at most *timeout* seconds for the thread to end; return whether it has.

        Returns at once if called by the thread itself.
        """
        thread = self._thread
        if thread is None:
            return True
        if thread is not threading.current_thread():
            thread.join(timeout)
        return not thread.is_alive()

    @property
    def started(self) -> bool:
        """True once the thread has been started, also after it has ended."""
        return self._thread is not None

    @property
    def current(self) -> bool:
        """True if the calling thread is the thread of this service."""
        return self._thread is threading.current_thread()
