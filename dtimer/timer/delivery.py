"""
Deliver a batch: call the plain listeners of ``'event'``, and give the batch to the routers.

A plain listener handles the batch as a whole. A router handles each event on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dtimer.engine.ports import EventResults
from dtimer.errors import OptionError
from dtimer.model.emission import Raised
from dtimer.model.event import Event

#: Calls a function of the user within the middleware, with the given argument, about the given
#: events and kind. Returns the exceptions.
CallRoute = Callable[[Callable[[Any], object], Any, list[Event], str], Raised]


class EventRouter:
    """A listener of ``'event'`` that reports a result for each event. The base of `Router`."""

    def _route(self, events: list[Event], results: EventResults, call: CallRoute) -> None:
        """
        Have each event handled, and report its result.

        Args:
            events: The events of a batch.
            results: Takes the results.
            call: Calls a function of the user.
        """
        raise NotImplementedError


def check_router(event: str, f: object, *, once: bool) -> None:
    """
    Check that a router listens to ``'event'``, and for good.

    Raises:
        OptionError: it does not.
    """
    if isinstance(f, EventRouter) and (event != "event" or once):
        raise OptionError(
            f"a router listens to 'event', with on; it cannot listen to {event!r} here"
        )


def deliver(
    found: Sequence[Any],
    events: list[Event],
    results: EventResults,
    call_within: Callable[..., Raised | None],
) -> Raised | None:
    """
    Call the listeners of a batch: first the plain ones, then the routers.

    Args:
        found: The listeners of ``'event'``.
        events: The events of the batch.
        results: Takes the results that routers report.
        call_within: Calls listeners within the middleware (`Emitter`).

    Returns:
        The exceptions of the plain listeners. None if no listener was called.
    """
    routers = [f for f in found if isinstance(f, EventRouter)]
    if not routers:
        raised = call_within(found, "event", (events,), events)
    else:
        raised = _deliver_to_routers(routers, found, events, results, call_within)
    for error in raised or ():
        _explain(error)
    return raised


def _deliver_to_routers(
    routers: Sequence[EventRouter],
    found: Sequence[Any],
    events: list[Event],
    results: EventResults,
    call_within: Callable[..., Raised | None],
) -> Raised:
    def call(
        function: Callable[[Any], object], argument: Any, about: list[Event], kind: str
    ) -> Raised:
        return call_within([function], "event", (argument,), about, kind) or Raised()

    plain = [f for f in found if not isinstance(f, EventRouter)]
    raised = call_within(plain, "event", (events,), events) or Raised()
    results.begin(alone=len(found) == 1)
    for router in routers:
        router._route(events, results, call)  # noqa: SLF001 - not for users
    return raised


def _explain(error: BaseException) -> None:
    """Add a note to *error* if its handler treated the list of events as a single event."""
    text = str(error)
    indexed = isinstance(error, TypeError) and text.startswith("list indices must be")
    attribute = isinstance(error, AttributeError) and text.startswith("'list' object has no")
    if (indexed or attribute) and (trace := error.__traceback__) and trace.tb_next is None:
        error.add_note("a handler is called with a list of events: for ev in events: …")
