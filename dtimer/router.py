"""
`Router`: a listener of ``'event'`` that calls a function for each kind of event.

The kind is a field of the payload. Each event of a batch is settled on its own, so a handler that
raises fails no event of another kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, NoReturn, TypedDict, TypeVar, Unpack, get_args, overload
from zoneinfo import ZoneInfo

from dtimer.engine.ports import EventResults
from dtimer.errors import OptionError, UsageError
from dtimer.model import summary
from dtimer.model.arguments import IfExists, Misfire, Overlap, RedisPipeline
from dtimer.model.event import Event
from dtimer.model.ids import EventId
from dtimer.model.kinds import KindBackoff, UnknownPolicy, kind_wait_us
from dtimer.model.options import MOST_RETRIES, check_choice, check_count
from dtimer.model.outcomes import Declared
from dtimer.model.times import Duration, Moment, duration_us
from dtimer.naming import public
from dtimer.timer import DTimer, listeners
from dtimer.timer.delivery import CallRoute, EventRouter

A = TypeVar("A")  # the argument of a route: an event, or a list of events
R = TypeVar("R")

#: How a router treats an event of a kind that it does not know.
Unknown = Literal["snooze", "bury"]


class PostOptions(TypedDict, total=False):
    """The keyword arguments of `Route.post`: those of `DTimer.post`."""

    at: Moment | None
    id: str | None
    max_retries: int | None
    expires: Duration | datetime | None
    if_exists: IfExists
    max_wait: Duration | None
    pipe: RedisPipeline | None
    wait_replicas: int | None


class ScheduleOptions(TypedDict, total=False):
    """The keyword arguments of `Route.every`: those of `DTimer.every`."""

    start: Moment | None
    end: Moment | None
    count: int | None
    jitter: Duration
    misfire: Misfire
    overlap: Overlap
    grace: Duration | None
    expires: Duration | None
    max_retries: int | None


class CronOptions(ScheduleOptions, total=False):
    """The keyword arguments of `Route.cron`: those of `DTimer.cron`."""

    tz: str | ZoneInfo


class Route(Generic[A, R]):
    """
    A function that handles the events of one kind, made by `Router.route`.

    Calling it calls the function. Its methods post events of the kind, by any timer. They add the
    field with the kind to the payload, and apply ``max_retries`` and ``expires`` of the kind, which
    the arguments of the call replace.

    Attributes:
        kind: The kind.
    """

    def __init__(
        self,
        function: Callable[[A], R],
        field: str,
        kind: str,
        *,
        batch: bool,
        backoff: KindBackoff | None,
        policy: Mapping[str, Any],
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._field = field
        self._batch = batch
        self._backoff = backoff
        self._policy = policy
        self.kind: str = kind

    def __call__(self, argument: A, /) -> R:
        """Call the function."""
        return self._function(argument)

    def __repr__(self) -> str:
        return f"<Route {self.kind!r:.80}>"

    def post(
        self,
        timer: DTimer,
        ev: Mapping[str, Any],
        delay: Duration = 0,
        **options: Unpack[PostOptions],
    ) -> EventId:
        """
        Post an event of this kind with *timer*. See `DTimer.post`.

        Raises:
            OptionError: the payload has another kind.
        """
        return timer.post(self._payload(ev), delay, **self._with_policy(options))

    def every(
        self,
        timer: DTimer,
        interval: Duration,
        ev: Mapping[str, Any],
        *,
        id: str,
        **options: Unpack[ScheduleOptions],
    ) -> Declared:
        """
        Declare a schedule of events of this kind. See `DTimer.every`.

        Raises:
            OptionError: the payload has another kind.
        """
        return timer.every(interval, self._payload(ev), id=id, **self._with_policy(options))

    def cron(
        self,
        timer: DTimer,
        expression: str,
        ev: Mapping[str, Any],
        *,
        id: str,
        **options: Unpack[CronOptions],
    ) -> Declared:
        """
        Declare a schedule of events of this kind. See `DTimer.cron`.

        Raises:
            OptionError: the payload has another kind.
        """
        return timer.cron(expression, self._payload(ev), id=id, **self._with_policy(options))

    def _with_policy(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in options.items() if value is not None}
        return {**self._policy, **given}

    def _payload(self, ev: Any) -> Any:
        if not isinstance(ev, Mapping):
            return ev  # `DTimer.post` says what it must be.
        if self._field not in ev:
            return {self._field: self.kind, **ev}
        if (other := ev[self._field]) != self.kind:
            raise OptionError(
                f"this payload has another {self._field} than {self.kind!r:.80}:"
                f" {summary.value(other)}"
            )
        return ev


class Router(EventRouter):
    """
    A listener of ``'event'`` that calls one function for each kind of event.

    .. code-block:: python

       router = Router()
       dt.on("event", router)

       @router.route("remind")
       def remind(ev): ...

       remind.post(dt, {"order": 17}, 60_000)

    Each event of a batch is settled on its own: it is confirmed when its function
    returns, and retried if the function raises. The settlements are sent with the next claim, at
    most 5 ms later. If there is another listener of ``'event'``, they wait until all listeners have
    returned, and an exception of a plain listener fails all events of its batch. With
    ``auto_confirm=False`` no event is confirmed.

    An event of an unknown kind is not lost, because another node may know its kind, for example
    during a deploy. It is snoozed for 1 s, then 2 s, up to 5 min, and counted in `DTimer.stats` and
    `DTimer.health`. Once a minute `UnknownKind` is emitted as ``'error'``. After *unknown_for* it
    becomes a dead letter with the reason ``unknown_kind``. If a timer has several routers, an event
    is unknown only if each of them lacks its kind.

    Args:
        field: The field of the payload that has the kind.
        unknown: What to do with an event of an unknown kind: ``snooze`` or ``bury`` it.
        unknown_for: How long an event of an unknown kind is kept.

    Raises:
        OptionError: an argument is not valid.
    """

    def __init__(
        self,
        field: str = "type",
        *,
        unknown: Unknown = "snooze",
        unknown_for: Duration = timedelta(hours=24),
    ) -> None:
        _check_text(field, "field")
        check_choice(unknown, "unknown", get_args(Unknown))
        longest_us = duration_us(unknown_for, "unknown_for")
        if longest_us < 0:
            raise OptionError(f"unknown_for must not be negative: {summary.value(unknown_for)}")
        self._field = field
        self._unknown = UnknownPolicy(field, 0 if unknown == "bury" else longest_us)
        self._routes: dict[str, Route[Any, Any]] = {}

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds that have a route."""
        return frozenset(self._routes)

    def __repr__(self) -> str:
        return f"<Router of {self._field!r}: {summary.keys(self._routes)}>"

    def __call__(self, events: list[Event]) -> NoReturn:
        """Refuse: only a timer calls a router, because it needs the result of each event."""
        raise UsageError(
            "a router cannot be called: register the router itself with on('event', router). To"
            " run code around each of its handlers, use middleware"
        )

    @overload
    def route(
        self,
        kind: str,
        *,
        batch: Literal[False] = False,
        max_retries: int | None = None,
        backoff: KindBackoff | None = None,
        expires: Duration | None = None,
    ) -> Callable[[Callable[[Event], R]], Route[Event, R]]: ...
    @overload
    def route(
        self,
        kind: str,
        *,
        batch: Literal[True],
        max_retries: int | None = None,
        backoff: KindBackoff | None = None,
        expires: Duration | None = None,
    ) -> Callable[[Callable[[list[Event]], R]], Route[list[Event], R]]: ...
    def route(
        self,
        kind: str,
        *,
        batch: bool = False,
        max_retries: int | None = None,
        backoff: KindBackoff | None = None,
        expires: Duration | None = None,
    ) -> Callable[[Callable[[Any], R]], Route[Any, R]]:
        """
        Return a decorator that makes a function the handler of a kind, a `Route`.

        Args:
            kind: The kind: the value of the field.
            batch: Call the function with a list of all events of this kind in a batch, which are
                confirmed or retried together. Otherwise it is called with one event at a time.
            max_retries: Replaces the ``max_retries`` of the timer for events that the route posts.
            backoff: Replaces the ``backoff`` of the node: a duration, or a function of the failed
                attempt and the exception. The exception is None after ``ev.retry()``.
            expires: The ``expires`` of events that the route posts: a time from the post or, for
                an occurrence of a schedule, from its due time.

        Raises:
            OptionError: an argument is not valid, the kind has a route already, or the function is
                not callable, is a coroutine function, or does not accept one argument.
        """
        _check_text(kind, "kind")
        policy = _policy(max_retries, expires)
        _check_backoff(backoff)

        def add(function: Callable[[Any], R]) -> Route[Any, R]:
            arguments = ("a list of events",) if batch else ("an event",)
            listeners.check_function(f"a route of {kind!r:.80}", function, arguments)
            route = Route(
                function, self._field, kind, batch=bool(batch), backoff=backoff, policy=policy
            )
            if self._routes.setdefault(kind, route) is not route:
                raise OptionError(f"the kind {kind!r:.80} has a route already")
            return route

        return add

    def _route(self, events: list[Event], results: EventResults, call: CallRoute) -> None:
        """See `EventRouter`."""
        routes, field = self._routes, self._field
        called: set[str] = set()
        for place, event in enumerate(events):
            kind = event.get(field)
            route = routes.get(kind) if isinstance(kind, str) else None
            if route is None:
                results.unknown(event, kind, self._unknown)
                continue
            some = [event]
            if route._batch:  # noqa: SLF001 - a route and its router share internals
                if route.kind in called:
                    continue
                called.add(route.kind)
                some += [ev for ev in events[place + 1 :] if ev.get(field) == kind]
            if _run(route, some, results, call):
                results.stop()
                return


def _run(
    route: Route[Any, Any], events: list[Event], results: EventResults, call: CallRoute
) -> bool:
    """Call a route and report the result; return True if the node must end (SystemExit)."""
    startable = results.starts(events, route._backoff)  # noqa: SLF001
    if not startable:
        return False
    argument: Any = startable if route._batch else startable[0]  # noqa: SLF001
    raised = call(route._function, argument, startable, route.kind)  # noqa: SLF001
    if not raised:
        results.done(startable)
        return False
    results.failed(startable, raised)
    return not all(isinstance(error, Exception) for error in raised)


def _check_text(value: Any, name: str) -> None:
    if not isinstance(value, str) or not value:
        raise OptionError(f"{name} must be a str that is not empty, not {summary.value(value)}")


def _policy(max_retries: int | None, expires: Duration | None) -> dict[str, Any]:
    """Return the arguments of ``post`` that a kind sets."""
    policy: dict[str, Any] = {}
    if max_retries is not None:
        policy["max_retries"] = check_count(max_retries, "max_retries", 0, MOST_RETRIES)
    if expires is not None:
        if duration_us(expires, "expires") <= 0:
            raise OptionError(f"expires must be a positive time, not {summary.value(expires)}")
        policy["expires"] = expires
    return policy


def _check_backoff(backoff: KindBackoff | None) -> None:
    if callable(backoff):
        arguments = "the failed attempt", "its exception"
        listeners.check_function("a backoff of a kind", backoff, arguments)
    elif backoff is not None:
        kind_wait_us(backoff, 1, None)


public(CronOptions, PostOptions, Route, Router, ScheduleOptions)
