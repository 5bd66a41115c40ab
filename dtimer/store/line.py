"""
Calls with a deadline: tried again by the kind of the error, and never acting twice.

An operation has a name, ``lane:seq``. Lanes are used by one caller at a time and count
upwards, and the scripts remember the last operation of each (``lua/parts/memo.lua``).
So the same call may be sent again when its reply was lost, and one that arrives late,
after its successor, does nothing.
"""

from __future__ import annotations

import contextlib
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
from dtimer.store.faults import Fate, fate, message, translate
from dtimer.store.keys import Keys
from dtimer.store.scripts import Script, load, texts
from dtimer.store.tries import AnyWire, Asked, Copied, run, run_whole
from dtimer.store.wire import Argument

#: A deadline leaves room for this many tries that go unanswered.
TRIES = 3

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
# As many as there may be callers at a time; a new lane costs a connection and a memo.
_IDLE_LANES = 64

#: Verbs that change nothing: where no reply comes there is nothing to be unsure of.
READS = {
    "alone",
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

    def __del__(self) -> None:
        """Close the connection of a lane that an exception from a signal handler has lost."""
        with contextlib.suppress(Exception):
            self.wire.close()


def _hang_up(lanes: list[Lane], keep: int = 0) -> None:
    while len(lanes) > keep:
        # Others take from it, too.
        with contextlib.suppress(IndexError):
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
        self._begin()

    def _begin(self) -> None:
        self._idle: list[Lane] = []
        # Those in use, too: a forked child closes them, and the calls that use them are not there.
        self._wires: weakref.WeakSet[AnyWire] = weakref.WeakSet()
        # A line that is forgotten in a cycle: the collector may come to the sockets before
        # it comes to their connections, and would call them unclosed.
        self._finalizer = weakref.finalize(self, _hang_up, self._idle)
        self._finalizer.atexit = False

    def _take(self) -> Lane:
        try:
            return self._idle.pop()
        except IndexError:
            wire = self._source.wire(self._keys)
            self._wires.add(wire)
            return Lane(wire, incarnation())

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
            one = run_whole if whole else run
            return self._until(deadline, lane, load(verb), (op, *arguments), one)
        finally:
            # By no function of ours: a signal's handler that raises would do so before its first
            # line, and nobody would have the lane.
            self._idle.append(lane)
            _hang_up(self._idle, _IDLE_LANES)

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
            self._idle.append(lane)
            _hang_up(self._idle, _IDLE_LANES)
        return copied

    def ask(self, verb: str, *arguments: Argument, op: str = "", longest: float = 0.0) -> Asked:
        """
        Have the script of *verb* run, in a single try, for a loop that will ask again.

        Args:
            op: The operation's name, the same in each try of it.
            longest: For how many seconds the try may last while its reply arrives, within the
                deadline of a call.

        Raises:
            Exception: whatever the client library raises, translated by nobody.
        """
        script, words = load(verb), [self._time(), op, *arguments]
        lane = self._take()

        def end(broken: bool) -> None:
            if broken:
                lane.wire.close()
            self._idle.append(lane)
            _hang_up(self._idle, _IDLE_LANES)

        lasts = self._timeout / TRIES
        longest = max(lasts, min(longest, self._timeout))
        return Asked(lane.wire, script, words, lasts=lasts, longest=longest, end=end)

    def once(self, verb: str, *arguments: Argument, op: str = "") -> Any:
        """Return the answer to `ask`."""
        return self.ask(verb, *arguments, op=op).answer()

    def _time(self) -> str:
        return "" if self._now is None else str(self._now())

    def _until(
        self,
        deadline: float,
        lane: Lane,
        script: Script,
        arguments: Sequence[Argument],
        run: Callable[[AnyWire, Script, Sequence[Argument], float, float], Any],
    ) -> Any:
        perhaps = False
        pause = _FIRST_PAUSE
        one_try = self._timeout / TRIES
        while True:
            until = min(deadline, time.monotonic() + one_try)
            try:
                # While bytes are on the move a try lasts: another would begin from the start.
                return run(lane.wire, script, [self._time(), *arguments], until, deadline)
            except Exception as e:
                what = fate(e, lane.wire.sent)
                # Once an earlier try may have been done, no refusal of a later one is definite:
                # most come before the script can look whether it was.
                if what is Fate.REFUSED and not perhaps:
                    raise translate(e, script.doing, self._source.place) from e
                if what is Fate.RECONNECT:
                    lane.wire.close()
                perhaps = perhaps or (what is Fate.UNKNOWN and script.name not in READS)
                left = deadline - time.monotonic()
                if what is Fate.REFUSED:
                    raise OutcomeUnknown(
                        f"no reply to {script.doing} from Redis at {self._source.place}, and the"
                        f" same was refused when sent again: it may or may not have been done"
                        f" ({message(e)})"
                    ) from e
                if left < pause + one_try / 2:
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
                f"no reply to {doing} {within} from Redis at {self._source.place}: it may or may"
                f" not have been done ({error})"
            )
        place = self._source.place
        return StoreError(f"Redis at {place} could not be reached to {doing} {within}: {error}")

    def close(self) -> None:
        """Drop the idle connections. A later call makes new ones."""
        _hang_up(self._idle)

    def after_fork(self) -> None:
        """
        Close, in a forked child, its copies of the parent's connections, and forget the lanes.

        The library closes the descriptors of a connection without a word to the server
        when it finds itself in another process. A socket that another thread is connecting at
        the moment of the fork stays open: only the library knows it.
        """
        self._finalizer.detach()
        for wire in list(self._wires):
            with contextlib.suppress(Exception):
                wire.close()
        self._begin()
