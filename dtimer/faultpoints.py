"""
Fault points: named places in the library where a test can inject a fault.

A fault point is one line, ``if armed: reached("claim.answered")``. While nothing is armed, it costs
the load of a global and the test of an empty dict: about 10 ns on CPython 3.11, where a claim takes
100 000 ns. So fault points stay in the released library.

Only code of the same process can arm one. No environment variable, option or reply of Redis can.

The armed action is called without arguments, on the thread that reaches the point. It may raise,
kill the process, move the clock, or wait. The name of the current thread tells which one it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

#: Every fault point, and its place. A test compares the names with docs/internals.rst.
POINTS: dict[str, str] = {
    "claim.asking": "before a claim is requested, on the claimer's thread",
    "claim.answered": "between a claim's reply and its dispatch: events are leased, not yet queued",
    "claim.handed": "after the claimed events were offered to the handler threads",
    "handler.before": "on a handler thread, before the listeners of 'event' are called",
    "handler.after": "on a handler thread, after they have returned, before the result is noted",
    "settle.sending": "before settlements are sent, with a claim or by a handler",
    "heartbeat.sending": "before leases are renewed",
    "reply.reading": "on the caller's thread, between sending a command and reading its reply",
    "retry.sending": "before the same operation is sent again",
    "listener.subscribed": "on the listener's thread, once the server has confirmed a subscription",
    "loop.claimer": "at each iteration of the claimer's loop",
    "loop.listener": "at each iteration of the listener's loop",
    "loop.handler": "at each batch that a handler thread takes",
    "loop.callbacks": "before each call of the callback thread",
}

#: The armed actions by the name of the point. Empty in production; changed in place.
armed: dict[str, Callable[[], object]] = {}


def reached(point: str) -> None:
    """Call the action that is armed for *point*, if any."""
    action = armed.get(point)
    if action is not None:
        action()


@contextlib.contextmanager
def arm(point: str, action: Callable[[], object]) -> Iterator[None]:
    """
    Call *action* each time that *point* is reached, until the block ends.

    Raises:
        KeyError: *point* is not the name of a fault point.
    """
    if point not in POINTS:
        raise KeyError(f"unknown fault point {point!r}; the points are {', '.join(POINTS)}")
    before = armed.get(point)
    armed[point] = action
    try:
        yield
    finally:
        if before is None:
            armed.pop(point, None)
        else:
            armed[point] = before
