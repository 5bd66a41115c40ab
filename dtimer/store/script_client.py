"""
Calls of scripts with a deadline: retried by the kind of failure, and acting at most once.

Every operation that must not act twice has a name, ``session:seq``. One caller at a time uses a
session, and its sequence number only grows. The server remembers the last operation of each
session (``lua/parts/session.lua``). So a call whose reply was lost can be sent again, and a call
that arrives after its successor has no effect.

Claims and heartbeats have no deadline, and are not retried here: `start` and `call_once` make one
attempt, and the claim cycle repeats it (``engine/claim_cycle.py``).
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
from dtimer.model.ids import incarnation
from dtimer.model.jitter import between
from dtimer.store.calls import AnyConnection, PendingCall, ReplicatedCall, run, run_with_source
from dtimer.store.connection.connection import Argument
from dtimer.store.connection.sources import Source
from dtimer.store.failures import Failure, classify, message, of_signal_handler, translate
from dtimer.store.keys import Keys
from dtimer.store.scripts import Script, load, texts

#: The number of unanswered attempts that fit into a deadline.
TRIES = 3

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
# The number of idle sessions to keep for concurrent callers: a new session costs a connection, and
# an entry in the server's memory.
_IDLE_SESSIONS = 64


@dataclass(slots=True)
class Session:
    """A connection, with the name of its session and the number of the last operation."""

    connection: AnyConnection
    name: str
    seq: int = 0

    def next(self) -> str:
        """Return the name of the next operation."""
        self.seq += 1
        return f"{self.name}:{self.seq}"

    def __del__(self) -> None:
        """Close the connection if an exception from a signal handler made a caller lose it."""
        with contextlib.suppress(Exception):
            self.connection.close()


def _close_idle(sessions: list[Session], keep: int = 0) -> None:
    while len(sessions) > keep:
        # Another thread may have taken the last one since the check.
        with contextlib.suppress(IndexError):
            sessions.pop().connection.close()


class ScriptClient:
    """
    Runs scripts on the keys of one namespace, from any thread.

    Args:
        source: Makes the connections.
        keys: The keys of the namespace.
        timeout: The deadline of a call, in seconds.
        now: None for the server's clock, or a function giving µs since the epoch.
    """

    def __init__(
        self, source: Source, keys: Keys, timeout: float, now: Callable[[], int] | None
    ) -> None:
        texts()
        self._source = source
        self._keys = keys
        self.timeout: float = timeout
        self._now = now
        self._begin()

    def _begin(self) -> None:
        self._idle: list[Session] = []
        # Includes the connections in use: a forked child must close them, because the threads that
        # use them do not exist there.
        self._connections: weakref.WeakSet[AnyConnection] = weakref.WeakSet()
        # Needed if this object is collected as part of a reference cycle: the collector may reach
        # the sockets before their connections, and would warn that they are unclosed.
        self._finalizer = weakref.finalize(self, _close_idle, self._idle)
        self._finalizer.atexit = False

    def _acquire(self) -> Session:
        try:
            return self._idle.pop()
        except IndexError:
            connection = self._source.connection(self._keys)
            self._connections.add(connection)
            return Session(connection, incarnation())

    def deadline(self) -> float:
        """Return the deadline of a call that begins now, on the monotonic clock."""
        return time.monotonic() + self.timeout

    def call(
        self,
        verb: str,
        *arguments: Argument,
        deadline: float,
        with_source: bool = False,
    ) -> Any:
        """
        Run the script of *verb* and return its reply, retrying until the deadline.

        An operation of the kind ``once`` gets a name, so that a repetition does not act twice.

        Args:
            verb: The name of the script.
            arguments: The arguments of the script.
            deadline: When to give up, on the monotonic clock.
            with_source: Send the source of the script instead of its SHA1.

        Raises:
            OutcomeUnknown: No reply came in time; the call may have taken effect.
            StoreError: The call had no effect.
        """
        session = self._acquire()
        try:
            script = load(verb)
            op = session.next() if script.kind == "once" else ""
            attempt = run_with_source if with_source else run
            return self._retry_until(deadline, session, script, (op, *arguments), attempt)
        finally:
            # Inlined on purpose: a signal handler can raise as soon as a Python function is
            # entered, and the session would leak.
            self._idle.append(session)
            if len(self._idle) > _IDLE_SESSIONS:
                _close_idle(self._idle, _IDLE_SESSIONS)

    def call_replicated(
        self, verb: str, *arguments: Argument, deadline: float, replicas: int
    ) -> ReplicatedCall:
        """
        Run the script of *verb*, which changes data, and wait until *replicas* replicas have it.

        Raises:
            OutcomeUnknown: No reply came in time; the call may have taken effect.
            StoreError: The call had no effect.
        """
        replicated = ReplicatedCall(replicas, deadline)
        session = self._acquire()
        try:
            self._retry_until(
                deadline, session, load(verb), [session.next(), *arguments], replicated.run
            )
        except StoreError as e:
            if not replicated.done:
                raise
            replicated.error = e
        finally:
            self._idle.append(session)
            if len(self._idle) > _IDLE_SESSIONS:
                _close_idle(self._idle, _IDLE_SESSIONS)
        return replicated

    def start(
        self,
        verb: str,
        *arguments: Argument,
        op: str = "",
        longest: float = 0.0,
        with_time: bool = False,
        keep_lock: bool = False,
    ) -> PendingCall:
        """
        Send the script of *verb* once, without retrying, for a loop that repeats the call itself.

        Args:
            verb: The name of the script.
            arguments: The arguments of the script.
            op: The name of the operation, the same in each attempt.
            longest: How many seconds the attempt may last while its reply is arriving, at most
                the deadline of a call.
            with_time: Ask for the server's time after the script; see `PendingCall.ended_us`.
            keep_lock: See `Connection.send`.

        Raises:
            Exception: The error of the client library, untranslated.
        """
        script, words = load(verb), [self._time(), op, *arguments]
        session = self._acquire()

        def end(broken: bool) -> None:
            if broken:
                session.connection.close()
            self._idle.append(session)
            if len(self._idle) > _IDLE_SESSIONS:
                _close_idle(self._idle, _IDLE_SESSIONS)

        lasts = self.timeout / TRIES
        longest = max(lasts, min(longest, self.timeout))
        return PendingCall(
            *(session.connection, script, words),
            lasts=lasts,
            longest=longest,
            with_time=with_time,
            keep_lock=keep_lock,
            end=end,
        )

    def call_once(self, verb: str, *arguments: Argument, op: str = "") -> Any:
        """Run the script of *verb* in a single attempt, and return its reply; see `start`."""
        return self.start(verb, *arguments, op=op).answer()

    def _time(self) -> str:
        return "" if self._now is None else str(self._now())

    def _retry_until(
        self,
        deadline: float,
        session: Session,
        script: Script,
        arguments: Sequence[Argument],
        run: Callable[[AnyConnection, Script, Sequence[Argument], float, float], Any],
    ) -> Any:
        maybe_done = False
        pause = _FIRST_PAUSE
        one_try = self.timeout / TRIES
        while True:
            until = min(deadline, time.monotonic() + one_try)
            try:
                # Let an attempt go on while bytes are moving: a new one would transfer them again.
                return run(session.connection, script, [self._time(), *arguments], until, deadline)
            except Exception as e:
                if (wish := of_signal_handler(e)) is not None:
                    raise wish from None
                what = classify(e, session.connection.sent)
                # A refusal proves nothing if an earlier attempt may have taken effect: the server
                # refuses most calls before the script can check for the earlier attempt.
                if what is Failure.REFUSED and not maybe_done:
                    raise translate(e, script.doing, self._source.address) from e
                if what is Failure.RECONNECT:
                    session.connection.close()
                maybe_done = maybe_done or (what is Failure.UNKNOWN and script.kind != "reads")
                left = deadline - time.monotonic()
                if what is Failure.REFUSED:
                    raise OutcomeUnknown(
                        f"no reply to {script.doing} from Redis at {self._source.address}, and the"
                        f" repeated call was refused: it may or may not have been done"
                        f" ({message(e)})"
                    ) from e
                if left < pause + one_try / 2:
                    raise self._deadline_error(script.doing, e, maybe_done) from e
            # Jitter, so that callers that failed at the same time do not retry at the same time.
            time.sleep(between(pause / 2, pause))
            pause = min(pause * 2, _LONGEST_PAUSE)
            if armed:
                reached("retry.sending")

    def _deadline_error(self, doing: str, error: Exception, maybe_done: bool) -> StoreError:
        within = f"within {self.timeout * 1000:.0f} ms"
        if maybe_done:
            return OutcomeUnknown(
                f"no reply to {doing} {within} from Redis at {self._source.address}: it may or may"
                f" not have been done ({error})"
            )
        place = self._source.address
        return StoreError(f"Redis at {place} could not be reached to {doing} {within}: {error}")

    def close(self) -> None:
        """Close the idle connections. A later call makes new ones."""
        _close_idle(self._idle)

    def after_fork(self) -> None:
        """
        Close, in a forked child, the copies of the parent's connections, and drop the sessions.

        Outside the process that opened a connection, the client library closes its descriptor
        without sending anything to the server. A socket that another thread is connecting during
        the fork stays open, because only the client library has a reference to it.
        """
        self._finalizer.detach()
        for connection in list(self._connections):
            with contextlib.suppress(Exception):
                connection.close()
        self._begin()
