"""
The joiner: the thread that starts a node while its caller goes on.

A web site must start while Redis is down. The joiner takes the same steps as a `join` that waits,
but repeats each step until it succeeds.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable

from dtimer.engine.connectivity import Connectivity
from dtimer.engine.flag import Flag
from dtimer.engine.ports import Announcements
from dtimer.engine.service import Service
from dtimer.errors import StoreError, UsageError

# Seconds before the next try after an error of the process, such as a lack of threads.
_PAUSE = 0.5

# A start makes about this many calls of Redis.
_CALLS = 8


class _Attempt:
    """A try to start the node, which other threads may await."""

    def __init__(self) -> None:
        self.over = Flag()
        #: Why the node could not be started; None if it was, or has left.
        self.error: Exception | None = None


class Joiner(Service):
    """
    Starts a node on a thread of its own.

    Args:
        name: The name of the thread.
        start: Starts the node. Passes each of its steps to `take`.
        connectivity: Reports that Redis does not answer. The claimer takes it over when it starts.
        announcements: Emits errors that do not come from Redis.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], None],
        connectivity: Connectivity,
        announcements: Announcements,
    ) -> None:
        super().__init__(name, self._start_node, self._report)
        self._start_begun = False
        self._start = start
        self._connectivity = connectivity
        self._announcements = announcements
        # The kinds of errors of the process that were reported.
        self._announced: set[type] = set()
        # An item ends a pause. A queue, because a signal handler may put one at any time.
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._attempt = _Attempt()
        #: Why the last step failed; None while no step has failed, and once it has succeeded.
        self.error: Exception | None = None

    def _report(self, error: BaseException) -> None:
        self._announcements.announce("error", error)

    def _start_node(self, stopping: Flag) -> None:
        # If the start raises, it has ended the node, and must not run again.
        if self._start_begun:
            return
        self._start_begun = True
        try:
            self._start()
        finally:
            self._attempt.over.set()

    def take(
        self,
        step: Callable[[], None],
        leaving: Callable[[], bool],
        claiming: Callable[[], bool],
    ) -> None:
        """
        Call *step*; on the thread of the joiner, until it succeeds or the node leaves.

        The joiner reports an outage once, and not with each try.

        Args:
            step: One step of the start. May be called again after it has raised.
            leaving: Returns whether the node was asked to leave.
            claiming: Returns whether the claimer has started. It reports outages itself.
        """
        if not self.current:
            step()
            return
        while not leaving():
            try:
                step()
            except Exception as e:
                self.error = e
                pause = self._report_failure(e, claiming=claiming())
                attempt, self._attempt = self._attempt, _Attempt()
                attempt.error = e
                attempt.over.set()
                self._rest(pause)
            else:
                self.error = None
                return

    def _report_failure(self, error: Exception, *, claiming: bool) -> float:
        """Report why a step failed, if that is new; return for how many seconds to pause."""
        if isinstance(error, StoreError):
            return _PAUSE if claiming else self._connectivity.failed(error)
        if type(error) not in self._announced:
            self._announced.add(type(error))
            self._announcements.announce("error", error)
        return _PAUSE

    def _rest(self, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._wakes.get(timeout=seconds)

    def wake(self) -> None:
        """End a pause now: to try again, or to see that the node leaves."""
        self._wakes.put(None)

    def wait(self, deadline: float) -> None:
        """
        Wait for the try that is under way, or begin one now.

        Args:
            deadline: The seconds that a call of Redis may take.

        Raises:
            StoreError: Redis does not answer. The joiner keeps trying.
            UsageError: the try takes too long.
        """
        attempt = self._attempt
        self.wake()
        if not attempt.over.wait(_CALLS * deadline):
            raise UsageError("the node did not join in time: its threads are stuck or starved")
        if attempt.error is not None:
            raise attempt.error
