"""
Everything that can go wrong, in one tree: the type says whose fault it is.

.. code-block:: text

    DTimerError
    ├── OptionError (ValueError)     you configured it wrongly: which option, what was given
    ├── UsageError (RuntimeError)    you called it at the wrong time
    ├── PayloadError (ValueError)    the payload cannot be written as JSON, or read back
    │   └── PayloadTooLarge          … or is over the size limit
    ├── EventExists (ValueError)     post(..., if_exists="error") met a pending event of that id
    ├── HandlerError                 a handler raised; __cause__ is what it raised
    ├── LeaseLost                    an event in hand was no longer ours
    ├── StateRollback                Redis has lost writes that it had acknowledged
    ├── NotReplicated                posted, and not yet on as many replicas as asked for
    ├── ClockJump                    the server's clock was set while the node was joined
    └── StoreError                   Redis refused or could not be reached
        ├── OutcomeUnknown           … and may or may not have done what was asked
        ├── NamespaceCorrupt         our keys hold something that is not ours
        └── ScriptError              our Lua failed: a bug in dtimer

Absence is a value and not an error: ``peek`` gives None, ``confirm`` gives False.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

# The longest chain of causes that a pickled error keeps.
_MOST_CAUSES = 50


class DTimerError(Exception):
    """
    The root: ``except DTimerError`` catches all that dtimer raises of its own.

    An error survives pickle and copy with its text, its attributes and its notes, and with its
    ``__cause__`` if that survives them.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how the error is made again: not by its constructor, which takes no text."""
        return _made_again, (type(self), self.args, _portable(self.__cause__)), self.__dict__


def _made_again(
    kind: type[DTimerError], arguments: tuple[Any, ...], cause: BaseException | None
) -> DTimerError:
    error = kind.__new__(kind, *arguments)
    if cause is not None:
        error.__cause__ = cause
    return error


class _Alone:
    """Pickles as an error without its cause."""

    def __init__(self, error: DTimerError) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how the error is made again."""
        return _made_again, (type(self._error), self._error.args, None), self._error.__dict__


def _portable(cause: BaseException | None) -> BaseException | None:
    """Return *cause* if it survives a pickle: one that does not must not take the error along."""
    error = cause
    for _ in range(_MOST_CAUSES):
        if not isinstance(error, DTimerError):
            break
        error = error.__cause__
    else:
        # So long a chain, or a circle, would exceed the recursion limit.
        return None
    # Each error tests its own cause. Testing the whole chain in each would double the time with
    # every link.
    ours = type(cause).__reduce__ is DTimerError.__reduce__
    tested = _Alone(cause) if ours and isinstance(cause, DTimerError) else cause
    try:
        # Bytes of this very process.
        pickle.loads(pickle.dumps(tested))  # noqa: S301
    except Exception:
        return None
    return cause


class OptionError(DTimerError, ValueError):
    """
    An argument or an option is not acceptable.

    Raised before any I/O. The text names the option, what was given and what is
    expected.
    """


class UsageError(DTimerError, RuntimeError):
    """A call came at the wrong time, for instance to a node that is leaving."""


class PayloadError(DTimerError, ValueError):
    """A payload is not a JSON object, or the bytes in Redis are not one."""


class PayloadTooLarge(PayloadError):
    """A payload is over the size limit; the text states both sizes in bytes."""


class EventExists(DTimerError, ValueError):
    """
    ``post(..., if_exists="error")`` found a pending event of the same id.

    Nothing was written. ``id`` is the id in question.
    """

    def __init__(self, id: str) -> None:
        super().__init__(f"an event with the id {id!r} is pending already")
        self.id = id


class HandlerError(DTimerError):
    """
    A handler of ``'event'`` raised; emitted to ``'error'``, never raised.

    ``__cause__`` is the handler's own exception. ``events`` are those of the batch
    that were not confirmed yet, each of which is retried or dead-lettered; ``event``
    is the first of them, or None when all had been confirmed.
    """

    def __init__(self, cause: BaseException, events: Sequence[Any]) -> None:
        ids = ", ".join(repr(ev.id) for ev in events) or "no event left to fail"
        super().__init__(f"a handler raised {type(cause).__name__}: {cause} ({ids})")
        self.__cause__ = cause
        self.events = list(events)

    @property
    def event(self) -> Any:
        """The first event that failed, or None."""
        return self.events[0] if self.events else None


class LeaseLost(DTimerError):
    """
    An event that a handler held, or had just finished, was not ours any more.

    Emitted to ``'error'``, never raised. Somebody else has been given the event, or
    it was replaced; what the handler did stands, but was not recorded as done.
    """

    def __init__(self, id: str, node: str, token: int) -> None:
        super().__init__(f"node {node!r} lost its lease on the event {id!r} (token {token})")
        self.id = id
        self.node = node
        self.token = token


class ClockJump(DTimerError):
    """
    The clock of Redis went further, or less far, than time has passed for this node.

    Emitted to ``'error'``, never raised. All due times and leases go by that clock: what
    is due comes sooner by ``seconds`` than it would have, or later where they are
    negative. Also told when another server with another clock has taken over, or when
    this machine stood still without noticing.
    """

    def __init__(self, seconds: float) -> None:
        way = "ahead" if seconds > 0 else "back"
        super().__init__(
            f"the clock of Redis was put {way} by {abs(seconds):.1f} s, or this machine stood"
            " still: events come by that clock"
        )
        self.seconds = seconds


def _clock(ms: float) -> str:
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC")


class StateRollback(DTimerError):
    """
    Redis has lost writes that it had acknowledged: a failover to a replica that had not
    heard of them, an append-only file cut short by a power failure, a FLUSHALL.

    Emitted to ``'error'``, once for each time, by every timer that can tell; never raised.
    Events posted in the window may be gone. Events that were confirmed, cancelled or replaced
    in it may be handed out (again). The node has registered again by itself, and the
    schedules that it declared are there again; post again what must not be lost.

    ``since`` and ``until`` bound the window, in ms since the epoch by the clock of the server:
    what was acknowledged before ``since`` is there, and what was after ``until`` is not
    concerned. ``since`` is None when it is not known. ``wiped`` is true when nothing of the
    namespace was left.
    """

    def __init__(self, since: float | None, until: float, *, wiped: bool) -> None:
        if wiped:
            lost = f"of the namespace, all that was written before {_clock(until)} is lost"
        else:
            begin = "a moment that is not known" if since is None else _clock(since)
            lost = (
                f"what was acknowledged between {begin} and {_clock(until)} may be lost, and"
                " what was undone then may be back"
            )
        super().__init__(f"Redis has lost acknowledged writes: {lost} (server time)")
        self.since = since
        self.until = until
        self.wiped = wiped


class NotReplicated(DTimerError):
    """
    Events were posted, and within the deadline not known to be on enough replicas.

    They are pending, and will be handed out unless the server is lost before its replicas
    have heard of them. Posting them again, under the same ``ids``, waits again.

    ``ids`` are those of the call, or of its last chunk; ``wanted`` is how many replicas were
    asked for, ``acknowledged`` how many are known to have them.
    """

    def __init__(self, ids: Sequence[str], wanted: int, acknowledged: int) -> None:
        which = f"{ids[0]!r} is" if len(ids) == 1 else f"{len(ids)} events are"
        super().__init__(
            f"{which} posted, and on {acknowledged} of {wanted} replicas as far as is known"
        )
        self.ids = list(ids)
        self.wanted = wanted
        self.acknowledged = acknowledged


class StoreError(DTimerError):
    """
    Redis could not be reached or refused: nothing was done.

    ``__cause__`` is the client library's exception.
    """


class OutcomeUnknown(StoreError):
    """
    The deadline passed without a reply: it may or may not have been done.

    Asking again with the same ``id`` is the way to be sure; a call repeated within
    the deadline is recognised by the server and never acts twice.
    """


class NamespaceCorrupt(StoreError):
    """
    A key of the namespace holds a foreign type, an unknown schema version, or a schedule
    that cannot be read.
    """


class ScriptError(StoreError):
    """A script failed on the server: a bug in dtimer, please report it."""
