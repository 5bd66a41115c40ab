"""
The errors of dtimer, in one tree. The type says where the fault lies.

.. code-block:: text

    DTimerError
    ├── OptionError (ValueError)     an argument or option has an invalid value
    ├── UsageError (RuntimeError)    a method was called at the wrong time
    ├── PayloadError (ValueError)    the payload cannot be written as JSON, or read back
    │   ├── PayloadTooLarge          … or is over the size limit
    │   └── UnreadablePayload        … or this process lacks the codec or the key to open it
    ├── EventExists (ValueError)     post(..., if_exists="error") found a pending event with that id
    ├── HandlerError                 a handler raised; __cause__ is its exception
    ├── SkipRetry                    raised by a handler: its event becomes a dead letter now
    ├── UnknownKind                  a router has no route for the kind of an event
    ├── LeaseLost                    the node lost its lease on an event that a handler had
    ├── StateRollback                Redis lost writes that it had acknowledged
    ├── NotReplicated                posted, but not yet on as many replicas as requested
    ├── ClockJump                    the server's clock was set while the node was joined
    └── StoreError                   Redis could not be reached, or refused the call
        ├── OutcomeUnknown           … and the call may or may not have taken effect
        ├── NamespaceCorrupt         a key of the namespace holds data that dtimer did not write
        └── ScriptError              a Lua script failed: a bug in dtimer

An event that does not exist is not an error: ``peek`` returns None, and ``confirm`` returns False.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dtimer.epoch import to_datetime
from dtimer.naming import public

if TYPE_CHECKING:
    # For type checkers alone, because the errors are a lower layer.
    from dtimer.model.event import Event

# The longest chain of causes that a pickled error keeps.
_MOST_CAUSES = 50


class DTimerError(Exception):
    """
    The base class of every error that dtimer raises.

    A pickled or copied error keeps its text, its attributes and its notes. It keeps its
    ``__cause__`` if that can be pickled.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to rebuild the error without its constructor, which does not take the text."""
        cause = _portable(self.__cause__)
        state = self.__dict__ if cause is None else self.__dict__ | {"__cause__": cause}
        return copyreg.__newobj__, (type(self), *self.args), state  # type: ignore[attr-defined]


def _without_cause(error: DTimerError) -> DTimerError:
    copy = error.__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    return copy


def _portable(cause: BaseException | None) -> BaseException | None:
    """Return *cause* if it can be pickled, else None, so that the error itself still can be."""
    error = cause
    for _ in range(_MOST_CAUSES):
        if not isinstance(error, DTimerError):
            break
        error = error.__cause__
    else:
        # Pickling a chain of this length, or a cycle, would exceed the recursion limit.
        return None
    # Test this cause without the next one of the chain, which is tested when this cause is pickled.
    # If each error tested the rest of the chain, every further link would double the time.
    ours = type(cause).__reduce__ is DTimerError.__reduce__
    tested = _without_cause(cause) if ours and isinstance(cause, DTimerError) else cause
    try:
        # Safe to load: this process has just written these bytes.
        pickle.loads(pickle.dumps(tested))  # noqa: S301
    except Exception:
        return None
    return cause


class OptionError(DTimerError, ValueError):
    """
    An argument or option has an invalid value.

    Raised before any I/O. The text names the option, the given value and the expected one.
    """


class UsageError(DTimerError, RuntimeError):
    """A method was called at the wrong time, for example while the node was leaving."""


class PayloadError(DTimerError, ValueError):
    """The payload cannot be written as a JSON object, or the stored bytes are not one."""


class PayloadTooLarge(PayloadError):
    """A payload is over the size limit; the text states both sizes in bytes."""


class UnreadablePayload(PayloadError):
    """
    A stored payload cannot be opened here: this process lacks the codec or the key, or it was
    changed.

    A codec raises it. The event is not lost: it is delivered to a node that can open it. dtimer
    emits the error as ``'error'``, at most once a minute.
    """


class EventExists(DTimerError, ValueError):
    """
    ``post(..., if_exists="error")`` found a pending event with the same id.

    Nothing was written. ``id`` is that id.
    """

    def __init__(self, id: str) -> None:
        super().__init__(f"an event with the id {id!r} is already pending")
        self.id = id


class HandlerError(DTimerError):
    """
    A handler of ``'event'`` raised. dtimer emits this as ``'error'`` and never raises it.

    ``__cause__`` is the handler's exception. ``events`` are the events of its batch that it had
    not confirmed; each is retried, or becomes a dead letter. ``event`` is the first of them, or
    None if the handler had confirmed all.
    """

    def __init__(self, cause: BaseException, events: Sequence[Event]) -> None:
        ids = ", ".join(repr(ev.id) for ev in events) or "all events were already settled"
        super().__init__(f"a handler raised {type(cause).__name__}: {cause} ({ids})")
        self.__cause__: BaseException | None = cause
        self.events: list[Event] = list(events)

    @property
    def event(self) -> Event | None:
        """The first event that failed, or None."""
        return self.events[0] if self.events else None


class SkipRetry(DTimerError):
    """
    Raise this in a handler of ``'event'`` to bury an event: it becomes a dead letter now.

    .. code-block:: python

       raise SkipRetry("the order was deleted")
       raise SkipRetry("these orders were deleted", *gone)

    The dead letter has the reason ``buried`` and *text* as its error, as after `Event.bury`.
    Without *events*, the event to bury must be the only one of the batch that is not settled yet.
    Any other unsettled event of the batch is retried, as after any other exception, and a
    `HandlerError` is emitted for these. If there are none, no ``'error'`` is emitted.

    ``text`` is the text, and ``events`` are the events to bury.

    Args:
        text: Says why the event will not be retried. The first 2000 characters are stored.
        events: The events to bury, from the batch that the handler was given.

    Raises:
        OptionError: One of *events* is not an event.
    """

    def __init__(self, text: str, *events: Event) -> None:
        super().__init__(text)
        if not all(hasattr(ev, "token") for ev in events):
            raise OptionError("the events of a SkipRetry are given one by one: (text, *events)")
        self.text = text
        self.events: list[Event] = list(events)


class UnknownKind(DTimerError):
    """
    A router of this node has no route for the kind of an event.

    dtimer emits this as ``'error'``, at most once a minute for each kind, and never raises it. The
    event is not lost: it is delivered again later, and becomes a dead letter only if no node has
    handled it in time (`Router`).

    ``kind`` is the kind, or None if the payload has none, and ``event`` is the event.
    """

    def __init__(self, text: str, kind: object, event: Event | None) -> None:
        id = "an event" if event is None else f"the event {event.id!r}"
        super().__init__(f"this node has no route for {text}: {id} is put off")
        self.kind = kind
        self.event: Event | None = event


class LeaseLost(DTimerError):
    """
    The node lost its lease on an event that a handler was running, or had just finished.

    dtimer emits this as ``'error'`` and never raises it. Another node was given the event, or the
    event was replaced. The effects of the handler remain, but the event was not confirmed.

    ``id`` is the id of the event, ``node`` that of the node, and ``token`` the token of the lost
    lease. The text does not contain the token, because texts of errors are logged.
    """

    def __init__(self, id: str, node: str, token: int) -> None:
        super().__init__(f"node {node!r} lost its lease on the event {id!r}")
        self.id = id
        self.node = node
        self.token = token


class ClockJump(DTimerError):
    """
    The server's clock advanced by more, or by less, than this node's own clock.

    dtimer emits this as ``'error'`` and never raises it. Due times and leases follow the server's
    clock, so events are delivered earlier by ``seconds``, or later if that is negative. Emitted,
    too, if a server with a different clock took over. The same happens if this machine was
    suspended, and has no clock that counts the time of the suspension.
    """

    def __init__(self, seconds: float) -> None:
        way = "ahead" if seconds > 0 else "back"
        super().__init__(
            f"the Redis server's clock was set {way} by {abs(seconds):.1f} s, or this machine was"
            " suspended; events are delivered by the server's clock"
        )
        self.seconds = seconds


def _clock(ms: float) -> str:
    return to_datetime(ms).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", " UTC")


class StateRollback(DTimerError):
    """
    Redis lost writes that it had acknowledged.

    Causes are a failover to a replica that had not received them, an append-only file truncated
    by a power failure, or a FLUSHALL. Every timer that detects the loss emits this as ``'error'``,
    once for each loss. It is never raised.

    Only writes that were acknowledged between ``since`` and ``until`` are affected. Both are in ms
    since the epoch by the server's clock, and ``since`` is None if it is unknown. ``wiped`` is True
    if nothing of the namespace was left. ``since_at`` and ``until_at`` are the same moments as
    aware datetimes in UTC.

    Events that were posted in this window may be gone. Events that were confirmed, cancelled or
    replaced in it may be delivered, or delivered again. The node has already registered again, and
    has declared its schedules again. Post again any event that must not be lost.
    """

    def __init__(self, since: float | None, until: float, *, wiped: bool) -> None:
        if wiped:
            lost = f"everything written to the namespace before {_clock(until)} is lost"
        else:
            begin = "an unknown time" if since is None else _clock(since)
            lost = (
                f"events posted between {begin} and {_clock(until)} may be lost, and events"
                " confirmed or cancelled then may come back"
            )
        super().__init__(f"Redis has lost acknowledged writes: {lost} (server time)")
        self.since = since
        self.until = until
        self.wiped = wiped

    @property
    def since_at(self) -> datetime | None:
        """``since`` as an aware datetime in UTC, or None."""
        return None if self.since is None else to_datetime(self.since)

    @property
    def until_at(self) -> datetime:
        """``until`` as an aware datetime in UTC."""
        return to_datetime(self.until)


class NotReplicated(DTimerError):
    """
    Events were posted, but too few replicas acknowledged them before the deadline.

    The events are pending, and are delivered unless the server is lost before it has replicated
    them. To wait again, post them again with the same ``ids``.

    ``ids`` are the ids of these events. ``post_many`` waits after each round trip, so there they
    are the ids of the last round trip. ``wanted`` is the requested number of replicas, and
    ``acknowledged`` is how many are known to have the events.
    """

    def __init__(self, ids: Sequence[str], wanted: int, acknowledged: int) -> None:
        which = f"{ids[0]!r} is" if len(ids) == 1 else f"{len(ids)} events are"
        super().__init__(
            f"{which} posted, but only {acknowledged} of {wanted} replicas acknowledged in time"
        )
        self.ids: list[str] = list(ids)
        self.wanted = wanted
        self.acknowledged = acknowledged


class StoreError(DTimerError):
    """
    Redis could not be reached, or refused the call.

    Nothing was changed, unless the error is an ``OutcomeUnknown``.

    ``__cause__`` is the client library's exception.
    """


class OutcomeUnknown(StoreError):
    """
    The deadline passed without a reply, so the call may or may not have taken effect.

    To make sure, repeat the call with the same ``id``. Within the deadline dtimer itself repeats
    a call whose reply was lost; the server recognises the repetition, so the call never acts twice.
    """


class NamespaceCorrupt(StoreError):
    """
    A key of the namespace has the wrong type, or an unknown schema version, or holds a schedule
    that cannot be read.
    """


class ScriptError(StoreError):
    """A Lua script failed on the server. This is a bug in dtimer; please report it."""


_CLASSES = [kind for kind in vars().values() if isinstance(kind, type)]
public(*(kind for kind in _CLASSES if issubclass(kind, DTimerError)))
