"""Check the names and signatures of listeners when they are registered, not when called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from dtimer.errors import OptionError
from dtimer.model import hints, summary

#: The names that a timer emits, and the arguments of their listeners.
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

#: The same for a stream.
STREAM: Mapping[str, tuple[str, ...]] = {
    "data": ("a key",),
    "error": ("an exception",),
    "end": (),
}


def check_name(event: object, emits: Mapping[str, tuple[str, ...]] | None) -> str:
    """
    Return *event* if it is a name that is emitted.

    Args:
        event: The name given by the user.
        emits: The names that are emitted; None allows any name.

    Raises:
        OptionError: nothing is emitted by that name. The message suggests a name.
    """
    if callable(event):
        first = next(iter(emits or ("event",)))
        raise OptionError(
            f"on needs the name of what to listen to: write @timer.on({first!r}), not @timer.on"
        )
    if not isinstance(event, str):
        raise OptionError(f"the name of an event must be a str, not {summary.value(event)}")
    if emits is not None and event not in emits:
        hint = hints.suggestion(event, emits)
        raise OptionError(f"nothing is ever emitted as {event!r:.80}{hint}")
    return event


def check(event: object, f: object, emits: Mapping[str, tuple[str, ...]] | None) -> None:
    """
    Check that *f* can be a listener of *event*.

    Raises:
        OptionError: *f* is not callable, is a coroutine function, or does not accept the
            arguments of its calls.
    """
    name = check_name(event, emits)
    check_function(f"a listener of {name!r}", f, None if emits is None else emits[name])


def check_function(role: str, f: object, arguments: tuple[str, ...] | None) -> None:
    """
    Check that dtimer can call *f* on a thread of its own.

    Args:
        role: Names *f* in messages: ``a listener of 'event'``.
        f: The function of the user.
        arguments: Describes the arguments of its calls; None allows any.

    Raises:
        OptionError: *f* is not callable, is a coroutine function, or does not accept them.
    """
    if not callable(f):
        raise OptionError(f"{role} must be callable, not {summary.value(f)}")
    if inspect.iscoroutinefunction(f):
        raise OptionError(
            f"{role} must be a plain function: it is called on a thread, which cannot await"
            f" {f!r:.80}"
        )
    if arguments is not None:
        _check_signature(role, f, arguments)


def _check_signature(role: str, f: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    try:
        signature = inspect.signature(f)
    except (ValueError, TypeError):
        # A builtin without a signature. A mistake shows when the listener is called.
        return
    try:
        signature.bind(*arguments)
    except TypeError as e:
        given = ", ".join(arguments) or "no argument"
        if len(arguments) == 1:
            given = f"one argument, {given}"
        name = getattr(f, "__name__", type(f).__name__)
        raise OptionError(
            f"{role} is called with {given}, which {name}{signature!s:.80} does not take: {e}"
        ) from None
