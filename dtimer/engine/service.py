"""
One named thread with a beginning and an end.

Each start makes a stop event of its own and hands it to the body, so that no later start
revives an older thread. A body that fails is reported and begun again: no thread of a
node ends while the node has not. One that fails on its way out is begun once more, so
that it may finish what it does last.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

# Long enough that a body which always fails does not spin, short enough to recover
# within a second.
_PAUSE = 0.25


class Service:
    """
    A thread that runs *body* until it is stopped.

    Args:
        name: The thread's.
        body: Runs until the event that it is given is set, then returns.
        failed: Told of an exception that escaped the body.
        ended: Called last on the thread, however the body came to its end.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[threading.Event], None],
        failed: Callable[[Exception], None],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._body = body
        self._failed = failed
        self._ended = ended
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """
        Start the thread.

        Raises:
            RuntimeError: the process can have no more threads. It may be stopped and
                joined all the same.
        """
        self._stopping = threading.Event()
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

    def _run(self, stopping: threading.Event) -> None:
        try:
            while not self._run_body(stopping):
                stopping.wait(_PAUSE)
        finally:
            self._ended()

    def _run_body(self, stopping: threading.Event) -> bool:
        """Run the body; return whether that is to be left at it."""
        last = stopping.is_set()
        try:
            self._body(stopping)
        except Exception as e:
            self._failed(e)
            return last
        return True

    def stop(self) -> None:
        """Ask the body to end. Does not wait."""
        self._stopping.set()

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
