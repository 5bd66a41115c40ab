"""
Calls with a deadline: tried again by the kind of the error, and never acting twice.

An operation has a name, ``lane:seq``. Lanes are used by one caller at a time and count
upwards, and the scripts remember the last operation of each (``lua/parts/memo.lua``).
So the same call may be sent again when its reply was lost, and one that arrives late,
after its successor, does nothing.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dtimer.errors import OutcomeUnknown, StoreError
from dtimer.faultpoints import armed, reached
from dtimer.model.jitter import between
from dtimer.model.names import incarnation
from dtimer.store.connect import Source
from dtimer.store.faults import Fate, before_the_script, fate, translate
from dtimer.store.keys import Keys
from dtimer.store.scripts import Script, load, texts
from dtimer.store.wire import Argument, ClusterWire, Wire

#: A deadline leaves room for this many tries that go unanswered.
TRIES = 3

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
# How late the server may be to notice that a time-out is over.
_OVERSHOOT = 0.1
# As many as there may be callers at a time; a new lane costs a connection and a memo.
_IDLE_LANES = 64

#: Verbs that change nothing: where no reply comes there is nothing to be unsure of.
READS = {
    "audit",
    "dead",
    "holders",
    "nodes",
    # It writes nothing that anybody asked for; what was asked for comes after it.
    "open",
    "peek",
    "permissions",
    "schedule",
    "schedules",
    "stats",
    "upcoming",
}


AnyWire = Wire | ClusterWire


def _run(wire: AnyWire, script: Script, arguments: Sequence[Argument], until: float) -> Any:
    try:
        return wire.run(script, arguments, until)
    except Exception as e:
        if fate(e, wire.sent) is not Fate.NO_SCRIPT:
            raise
    # Nothing ran: a server that was restarted, promoted, or told SCRIPT FLUSH.
    return _run_whole(wire, script, arguments, until)


def _run_whole(wire: AnyWire, script: Script, arguments: Sequence[Argument], until: float) -> Any:
    return wire.run(script, arguments, until, whole=True)


class Copied:
    """
    An operation, and how many replicas have it: two steps, of which the second may fail.

    Tried again, both are: the operation is remembered by the server and does not act twice,
    but is written anew, because a connection waits for the copies of its own writes.
    """

    def __init__(self, replicas: int, deadline: float) -> None:
        self._replicas = replicas
        self._deadline = deadline
        #: True when the operation was done, for certain.
        self.done = False
        self.reply: Any = None
        self.acknowledged = 0
        #: Why nobody could be asked.
        self.error: StoreError | None = None

    def run(
        self, wire: AnyWire, script: Script, arguments: Sequence[Argument], until: float
    ) -> None:
        """Take both steps, on one connection."""
        reply = _run(wire, script, arguments, until)
        if not self.done:
            # What a repetition says is shorter.
            self.done, self.reply = True, reply
        left = self._deadline - time.monotonic()
        # The server looks a few times a second whose wait is over; the reply needs time, too.
        wait = max(left / 4, 0.9 * left - _OVERSHOOT, 0.001)
        self.acknowledged = wire.wait(self._replicas, round(wait * 1000), self._deadline)


@dataclass(slots=True)
class Lane:
    """A connection, and the name and number of the operations on it."""

    wire: AnyWire
    name: str
    seq: int = 0

    def next(self) -> str:
        """Return the name of the next operation."""
        self.seq += 1
        return f"{self.name}:{self.seq}"


def _hang_up(lanes: list[Lane]) -> None:
    while lanes:
        lanes.pop().wire.close()


class Line:
    """
    Runs scripts on the keys of one namespace, from any thread.

    Args:
        source: Makes the connections.
        keys: The namespace's.
        timeout: The deadline of a call, in seconds.
        now: None for the server's clock, or a function giving µs since the epoch.
    """

    def __init__(
        self, source: Source, keys: Keys, timeout: float, now: Callable[[], int] | None
    ) -> None:
        texts()
        self._source = source
        self._keys = keys
        self._timeout = timeout
        self._now = now
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._idle: list[Lane] = []
        # A line that is forgotten in a cycle: the collector may come to the sockets before
        # it comes to their connections, and would call them unclosed.
        self._finalizer = weakref.finalize(self, _hang_up, self._idle)
        self._finalizer.atexit = False

    def _take(self) -> Lane:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return Lane(self._source.wire(self._keys), incarnation())

    def _give(self, lane: Lane) -> None:
        with self._lock:
            if len(self._idle) < _IDLE_LANES:
                self._idle.append(lane)
                return
        lane.wire.close()

    def deadline(self) -> float:
        """Return the deadline of a call that begins now, on the monotonic clock."""
        return time.monotonic() + self._timeout

    def call(
        self,
        verb: str,
        *arguments: Argument,
        deadline: float,
        named: bool = False,
        whole: bool = False,
    ) -> Any:
        """
        Run the script of *verb* and return its reply, trying again until the deadline.

        Args:
            named: The verb changes things and must not do so twice.
            whole: Send the script itself, and not its name.

        Raises:
            OutcomeUnknown: it may have been done, and no reply came in time.
            StoreError: it was not done.
        """
        lane = self._take()
        try:
            op = lane.next() if named else ""
            run = _run_whole if whole else _run
            return self._until(deadline, lane, load(verb), (op, *arguments), run)
        finally:
            self._give(lane)

    def call_copied(
        self, verb: str, *arguments: Argument, deadline: float, replicas: int
    ) -> Copied:
        """
        As `call` of what changes things, and wait until so many replicas have it.

        Raises:
            OutcomeUnknown: it may have been done, and no reply came in time.
            StoreError: it was not done.
        """
        copied = Copied(replicas, deadline)
        lane = self._take()
        try:
            self._until(deadline, lane, load(verb), [lane.next(), *arguments], copied.run)
        except StoreError as e:
            if not copied.done:
                raise
            copied.error = e
        finally:
            self._give(lane)
        return copied

    def once(self, verb: str, *arguments: Argument, op: str = "") -> Any:
        """
        Run the script of *verb* in a single try, for a loop that will ask again.

        Args:
            op: The operation's name, the same in each try of it.

        Raises:
            Exception: whatever the client library raises, translated by nobody.
        """
        lane = self._take()
        try:
            until = time.monotonic() + self._timeout / TRIES
            return _run(lane.wire, load(verb), [self._time(), op, *arguments], until)
        except Exception as e:
            if fate(e, lane.wire.sent) is Fate.RECONNECT:
                lane.wire.close()
            raise
        finally:
            self._give(lane)

    def _time(self) -> str:
        return "" if self._now is None else str(self._now())

    def _until(
        self,
        deadline: float,
        lane: Lane,
        script: Script,
        arguments: Sequence[Argument],
        run: Callable[[AnyWire, Script, Sequence[Argument], float], Any],
    ) -> Any:
        perhaps = False
        pause = _FIRST_PAUSE
        one_try = self._timeout / TRIES
        while True:
            until = min(deadline, time.monotonic() + one_try)
            try:
                return run(lane.wire, script, [self._time(), *arguments], until)
            except Exception as e:
                what = fate(e, lane.wire.sent)
                if what is Fate.REFUSED and not (perhaps and before_the_script(e)):
                    raise translate(e, script.doing) from e
                if what is Fate.RECONNECT:
                    lane.wire.close()
                perhaps = perhaps or (what is Fate.UNKNOWN and script.name not in READS)
                left = deadline - time.monotonic()
                if what is Fate.REFUSED or left < pause + one_try / 2:
                    raise self._gave_up(script.doing, e, perhaps) from e
            # Jitter, so that callers who failed together do not return together.
            time.sleep(between(pause / 2, pause))
            pause = min(pause * 2, _LONGEST_PAUSE)
            if armed:
                reached("retry.sending")

    def _gave_up(self, doing: str, error: Exception, perhaps: bool) -> StoreError:
        within = f"within {self._timeout * 1000:.0f} ms"
        if perhaps:
            return OutcomeUnknown(
                f"no reply to {doing} {within}: it may or may not have been done ({error})"
            )
        return StoreError(f"Redis could not be reached to {doing} {within}: {error}")

    def close(self) -> None:
        """Drop the idle connections. A later call makes new ones."""
        with self._lock:
            lanes = list(self._idle)
            self._idle.clear()
        _hang_up(lanes)

    def after_fork(self) -> None:
        """
        Forget, in a forked child, the parent's connections and lanes, and its lock.

        The library closes the descriptors of a connection without a word to the server
        when it finds itself in another process.
        """
        self._lock = threading.Lock()
        self._finalizer.detach()
        self._begin()
