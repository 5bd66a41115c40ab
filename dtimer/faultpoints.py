"""
Places where a test can have something go wrong: named, and empty in production.

A place is one line, ``if armed: reached("claim.answered")``. While nothing is armed it is
the load of a global and the test of an empty dict: about 10 ns (CPython 3.11, where a turn
takes 100 000), so they stay in the released library.

Only code of the same process can arm one. There is no variable of the environment, no
option, and nothing that comes from Redis can reach here.

What is armed is called on the thread that comes by, with nothing. It may raise, kill the
process, move time, or wait; the name of the thread tells whose it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

#: Every point there is, and where. docs/internals.rst shows it; a test holds it complete.
POINTS: dict[str, str] = {
    "turn.asking": "before a turn is asked for, on the claimer's thread",
    "claim.answered": "between the reply to a turn and its dispatch: leased, and known to no hand",
    "claim.handed": "after the claims of a turn were put before the hands",
    "handler.before": "on a hand, before the listeners of 'event' are called",
    "handler.after": "on a hand, when they have returned, before what came of it is noted",
    "settle.sending": "before what ends claims is sent, within a turn or at a handler's word",
    "beat.sending": "before leases are renewed",
    "reply.reading": "on the caller's thread, between sending a command and reading its reply",
    "retry.sending": "before the same operation is sent again",
    "listener.subscribed": "on the listener's thread, when the server has confirmed it",
    "loop.claimer": "at each turn of the claimer's loop",
    "loop.listener": "at each turn of the listener's loop",
    "loop.hand": "at each batch that a hand takes up",
    "loop.herald": "at each thing that the herald is about to say",
}

#: What is to happen, by the name of the point. Empty in production; changed in place.
armed: dict[str, Callable[[], object]] = {}


def reached(point: str) -> None:
    """Do what is armed for *point*, if anything is."""
    action = armed.get(point)
    if action is not None:
        action()


@contextlib.contextmanager
def arm(point: str, action: Callable[[], object]) -> Iterator[None]:
    """
    Have *action* called wherever *point* is reached, until the block ends.

    Raises:
        KeyError: there is no such point.
    """
    if point not in POINTS:
        raise KeyError(f"there is no fault point {point!r}; there are {', '.join(POINTS)}")
    before = armed.get(point)
    armed[point] = action
    try:
        yield
    finally:
        if before is None:
            armed.pop(point, None)
        else:
            armed[point] = before
