"""
The log: every message that dtimer logs, and the way of a node's records to the logger ``dtimer``.

Rule 1: only the callback thread of a node calls the logging module. The other threads queue a
record. A logging handler holds a lock while it writes. A signal handler may interrupt such a write
and call ``leave``, which waits for the node's threads. A thread that waits for the lock would then
never end. Only the wait for the callback thread has a time limit. A slow handler also delays no
claim and no renewal of a lease.

Rule 2: while debug records are off, each step of an event costs the test of one attribute.

Rule 3: no record contains a payload or a token, and an address is shown without its credentials.

Rule 4: no exception of the logging module, or of a handler, a filter or a factory that the program
has given to it, reaches the caller.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

logger: logging.Logger = logging.getLogger("dtimer")

# Seconds between two checks of whether debug records are wanted. Each claim would be too often.
_FRESH = 0.5


class Message(NamedTuple):
    """The level and the constant text of a record. docs/logging.rst lists all messages."""

    level: int
    text: str


CLAIMED = Message(logging.DEBUG, "claimed %d event(s): %s")
STARTED = Message(logging.DEBUG, "started %d event(s): %s")
CONFIRMED = Message(logging.DEBUG, "confirmed %d event(s): %s")
RETRIED = Message(logging.DEBUG, "to be retried: %d event(s): %s")
SNOOZED = Message(logging.DEBUG, "snoozed %d event(s): %s")
RELEASED = Message(logging.DEBUG, "released %d event(s): %s")
BURIED = Message(logging.DEBUG, "dead letters: %d event(s): %s")
CANCELLED = Message(logging.DEBUG, "not retried, because cancelled: %d event(s): %s")
LEASE_LOST = Message(logging.DEBUG, "lost the lease of %d event(s): %s")
WAKE_HEARD = Message(logging.DEBUG, "heard a wake")
CLAIMING_AGAIN = Message(logging.DEBUG, "claiming again in %d ms, because of an error: %s")
SUBSCRIBING_AGAIN = Message(logging.DEBUG, "the subscription failed; reconnecting in %d ms: %s")

JOINED = Message(logging.INFO, "joined")
LEFT = Message(logging.INFO, "left")
OUTAGE_BEGAN = Message(logging.INFO, "outage began: Redis at %s does not answer: %s")
STEP_FAILED = Message(
    logging.INFO, "outage began: Redis at %s answered a claim, but a step after it failed: %s"
)
OUTAGE_ENDED = Message(logging.INFO, "outage ended after %.1f s: Redis at %s answers again")
DEAF = Message(logging.INFO, "wakes do not arrive; events are found by polling: %s")
HEARS = Message(logging.INFO, "wakes arrive again")
FORKED = Message(logging.INFO, "%s was joined by the parent process; join() in this one to receive")

NO_LISTENER = Message(
    logging.WARNING,
    "the node %r has joined but has no listener of 'event', so it receives none:"
    " register one with @timer.on('event')",
)
EVICTS = Message(
    logging.WARNING,
    "this Redis evicts keys when its memory is full (maxmemory-policy %s),"
    " and may evict all pending events at once: set it to noeviction",
)
REPLICA = Message(
    logging.WARNING, "this Redis is a replica, which rejects posts: connect to its master"
)
OLD_SERVER = Message(logging.WARNING, "this Redis is version %s; dtimer needs 6.2 or later")
REFUSED = Message(logging.WARNING, "Redis refuses this client: %s (ACL SETUSER <user> %s)")
OLDER_SCHEDULES = Message(
    logging.WARNING,
    "the schedules of %r were not declared, because version %s is lower than the recorded %s",
)
DROPPED = Message(
    logging.WARNING, "%d log record(s) were dropped, because logging is slower than the node"
)

UNHEARD = Message(logging.ERROR, "%s")
LISTENER_RAISED = Message(logging.ERROR, "a listener of %r raised")


class Source(NamedTuple):
    """The node of a record. ``incarnation`` is None if it has not joined."""

    node: str | None = None
    ns: str | None = None
    incarnation: str | None = None


class Log:
    """
    Queues the records of one node. Safe for any thread, and for signal handlers.

    Args:
        call: Queues a call of a function for the callback thread of the node; returns False if it
            was dropped instead.
        source: Describes the node.
    """

    def __init__(self, call: Callable[..., bool], source: Source) -> None:
        self._call = call
        self._source = source
        #: Whether debug records are wanted, as of the last `refresh`.
        self.debugging: bool = False
        #: When to call `refresh` again, on the monotonic clock.
        self.fresh_until: float = 0.0
        self._failed = False
        # Whether the record ``joined`` is queued, and whether it is written.
        self._joined = self._joined_written = False
        # A count, because a signal handler that interrupts a dropped record may drop another.
        self._drops = itertools.count()
        self._dropped = False
        self._drops_seen = 0
        self.refresh()

    def refresh(self) -> None:
        """
        Look up whether debug records are wanted.

        ``isEnabledFor`` would cache the answer, but takes the lock of the logging module.
        """
        try:
            self.debugging = (
                logger.getEffectiveLevel() <= logging.DEBUG
                and not logger.disabled
                and logger.manager.disable < logging.DEBUG
            )
        except Exception:
            # For example, a level is a text. The claimer calls this, and no claim may fail.
            self.debugging = False
        self.fresh_until = time.monotonic() + _FRESH

    def add(self, message: Message, *arguments: object, ids: Sequence[str] = ()) -> None:
        """
        Queue a record.

        Args:
            message: The level and the text of the record.
            arguments: The arguments of the text.
            ids: The ids of the events that the record is about.
        """
        if message.level <= logging.DEBUG and not self.debugging:
            return
        if not self._call(self._write, message, arguments, ids, time.time()):
            next(self._drops)
            self._dropped = True

    def add_events(self, message: Message, ids: Sequence[str]) -> None:
        """Queue one record for all events of *ids*."""
        self.add(message, len(ids), ", ".join(ids), ids=ids)

    def joined(self) -> None:
        """Queue the record ``joined``."""
        self.add(JOINED)
        self._joined = True

    def left(self) -> None:
        """
        Queue the record ``left``, and before it ``joined`` if that is not queued yet.

        A signal handler may interrupt the end of a join, and leave.
        """
        if not self._joined:
            self.add(JOINED)
        self.add(LEFT)

    def _write(
        self, message: Message, arguments: tuple[object, ...], ids: Sequence[str], at: float
    ) -> None:
        if message is JOINED:
            if self._joined_written:
                return
            self._joined_written = True
        if self._dropped:
            self._write_drops()
        raised = write(message, *arguments, source=self._source, ids=ids, at=at)
        if raised is not None and not self._failed:
            # The callback thread emits the first exception as an 'error'. After each exception it
            # pauses, which would delay other listeners.
            self._failed = True
            raise raised

    def _write_drops(self) -> None:
        # First the flag: a record that is dropped from now on sets it again.
        self._dropped = False
        drops = next(self._drops)
        # Reading the count has advanced it.
        dropped, self._drops_seen = drops - self._drops_seen, drops + 1
        if dropped:
            write(DROPPED, dropped, source=self._source)


def write(
    message: Message,
    *arguments: object,
    source: Source,
    ids: Sequence[str] = (),
    at: float | None = None,
    error: BaseException | None = None,
) -> Exception | None:
    """
    Log a record on the calling thread, if its level is enabled.

    Never raises. A warning or an error that cannot be logged is printed to stderr.

    Args:
        message: The level and the text of the record.
        arguments: The arguments of the text.
        source: Describes the node.
        ids: The ids of the events that the record is about.
        at: When it happened, in seconds since the epoch; None for now.
        error: An exception whose traceback belongs to the record.

    Returns:
        What a handler, a filter or a factory of the program raised; None if the record is logged.
    """
    texts = tuple(map(_printable, arguments))
    cause = None if error is None else (type(error), error, error.__traceback__)
    try:
        if logger.isEnabledFor(message.level):
            record = logger.makeRecord(
                logger.name, message.level, __file__, 0, message.text, texts, cause
            )
            # Not as `extra`, which fails if the program's factory has set a field of that name.
            record.__dict__.update(_fields(source, ids))
            if at is not None:
                record.relativeCreated -= (record.created - at) * 1000
                record.created, record.msecs = at, int(at % 1 * 1000)
            logger.handle(record)
    except Exception as e:
        _print(
            logging.LogRecord(logger.name, message.level, __file__, 0, message.text, texts, cause)
        )
        return e
    return None


def _print(record: logging.LogRecord) -> None:
    """Print a warning or an error to stderr, as Python does without any configuration."""
    last = logging.lastResort
    if last is not None and record.levelno >= last.level:
        with contextlib.suppress(Exception):
            last.handle(record)


def _fields(source: Source, ids: Sequence[str]) -> Mapping[str, object]:
    # Each record has all four, because a format that names a missing one fails.
    return {**source._asdict(), "event_ids": list(ids)}


def _printable(argument: object) -> object:
    """Return *argument* so that its text stays on one line: any client of Redis can write an id."""
    if isinstance(argument, int | float):
        return argument
    try:
        text = str(argument)
    except Exception:
        # An exception of the program may have a method __str__ that fails.
        text = f"<{type(argument).__name__} without a text>"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
