"""What may be listened to, and by what: a mistake is told where it is made, and not at night."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dtimer.errors import OptionError
from dtimer.model import hints

#: What a timer emits, and what a listener of it is called with.
TIMER: Mapping[str, tuple[str, ...]] = {
    "event": ("a list of events",),
    "error": ("an exception",),
    "ready": (),
    "retry": ("an event",),
    "dead": ("a dead letter",),
    "expired": ("a dead letter",),
    "lease_lost": ("an event",),
    "connected": (),
    "disconnected": ("an exception",),
}

#: And what a stream does.
STREAM: Mapping[str, tuple[str, ...]] = {
    "data": ("a key",),
    "error": ("an exception",),
    "end": (),
}

# What other libraries call them.
_WORDS = {
    "data": "event",
    "drain": "end",
    "event": "data",
    "failed": "error",
    "failure": "error",
    "job": "event",
    "key": "data",
    "message": "event",
    "messages": "event",
    "task": "event",
}


def check_name(event: object, emits: Mapping[str, tuple[str, ...]] | None) -> str:
    """
    Return *event* when it names something that is emitted.

    Args:
        event: What was given.
        emits: What there is; None where users emit what they like.

    Raises:
        OptionError: it does not, and which name was probably meant.
    """
    if callable(event):
        first = next(iter(emits or ("event",)))
        raise OptionError(
            f"on takes the name of what is listened to: @timer.on({first!r}), and not @timer.on"
        )
    if not isinstance(event, str):
        raise OptionError(f"the name of an event must be a str, not {event!r:.80}")
    if emits is not None and event not in emits:
        raise OptionError(
            f"nothing is ever emitted as {event!r:.80}{hints.meant(event, emits, _WORDS)}"
        )
    return event


def check(event: object, f: object, emits: Mapping[str, tuple[str, ...]] | None) -> None:
    """
    Check that *f* can be a listener of *event*.

    Raises:
        OptionError: it cannot be called, would have to be awaited, or takes other arguments
            than it would be called with.
    """
    name = check_name(event, emits)
    if not callable(f):
        raise OptionError(f"a listener of {name!r} must be callable, not {f!r:.80}")
    if inspect.iscoroutinefunction(f):
        raise OptionError(
            f"a listener of {name!r} must be a plain function: listeners are called on"
            f" threads, and nobody would await {f!r:.80}"
        )
    if emits is not None:
        _check_signature(name, f, emits[name])


def explained(raised: list[BaseException] | None) -> list[BaseException] | None:
    """Return what handlers raised, with a note where one took the list of events for one event."""
    for error in raised or ():
        text = str(error)
        indexed = isinstance(error, TypeError) and text.startswith("list indices must be")
        asked = isinstance(error, AttributeError) and text.startswith("'list' object has no")
        if (indexed or asked) and (trace := error.__traceback__) and trace.tb_next is None:
            error.add_note("a handler is called with a list of events: for ev in events: …")
    return raised


def _check_signature(event: str, f: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    try:
        signature = inspect.signature(f)
    except (ValueError, TypeError):
        # A builtin that does not tell: that will be seen when it is called.
        return
    try:
        signature.bind(*arguments)
    except TypeError as e:
        given = f"one argument, {arguments[0]}" if arguments else "no argument"
        name = getattr(f, "__name__", type(f).__name__)
        raise OptionError(
            f"a listener of {event!r} is called with {given}, which {name}{signature!s:.80} does"
            f" not take: {e}"
        ) from None
