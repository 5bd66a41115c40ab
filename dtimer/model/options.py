"""
The options of a node: their defaults, their units, and the reasons for the values.

`validate` checks them once, before any I/O, and returns a frozen object with times in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dtimer.errors import OptionError
from dtimer.model import hints, summary
from dtimer.model.ids import check_namespace
from dtimer.model.retry import Backoff, exponential, wait_us
from dtimer.model.times import Duration, duration_us

#: The most events that one claim may return. A larger claim would block the other clients of Redis.
MOST_CLAIMS = 100
#: The demand of a node that accepts any number of events.
ANY_NUMBER = 1 << 62

#: The most handler threads of a node.
MOST_HANDLERS = 1_000

MOST_RETRIES = 1_000_000

#: More replicas than any deployment has.
MOST_REPLICAS = 100


@dataclass(frozen=True, slots=True)
class Options:
    """The validated options. Durations are in microseconds; in ``DEFAULTS``, in milliseconds."""

    ns: str
    max_events: int
    concurrency: int
    max_retries: int
    backoff: Backoff
    lease: int
    look_ahead: int
    auto_confirm: bool
    poll_interval: int
    timeout: int
    max_run: int | None
    max_payload: int
    dead_limit: int
    dead_age: int
    exit_timeout: int
    wait_replicas: int
    now: Callable[[], float] | None


#: Durations are in milliseconds.
DEFAULTS: dict[str, Any] = {
    "ns": "dt",
    # One event per call of a handler, as in the original for Node.js. A handler that raises then
    # fails only that event.
    "max_events": 1,
    "concurrency": 1,
    "max_retries": 3,
    "backoff": exponential,
    # If a node dies, its events are delivered elsewhere after this time. A node renews the leases
    # of running handlers three times within it, so it need not cover the longest handler.
    "lease": 30_000,
    # How long before its due time a node may claim an event and keep it until then. Otherwise the
    # round trip of the claim would make the event late. A claimed event counts as in flight and
    # cannot be cancelled. 0: claim events only when they are due.
    "look_ahead": 20,
    "auto_confirm": True,
    # How late an event may be if every wake is lost.
    "poll_interval": 1_000,
    # The deadline of a call, including its retries. At most 30 s, because the scripts recognise
    # the repetition of a call only for a minute.
    "timeout": 2_000,
    # After a handler has run this long, the node no longer renews its leases. None: no limit.
    "max_run": None,
    "max_payload": 256 * 1024,
    "dead_limit": 10_000,
    "dead_age": timedelta(days=30),
    # How long the interpreter waits at exit for running handlers.
    "exit_timeout": 5_000,
    # How many replicas must have acknowledged a post before the call returns.
    "wait_replicas": 0,
    # For tests: a function that returns milliseconds since the epoch, used instead of the
    # server's clock.
    "now": None,
}


def check_count(value: object, name: str, low: int, high: int) -> int:
    """Return *value* if it is a whole number from *low* to *high*."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OptionError(
            f"{name} must be a whole number from {low} to {high}, not {summary.value(value)}"
        )
    return value


def _time(value: Duration, name: str, low_ms: int, high_ms: int) -> int:
    us = duration_us(value, name)
    if not low_ms * 1000 <= us <= high_ms * 1000:
        raise OptionError(
            f"{name} must be {low_ms} to {high_ms} ms, not {summary.value(value)}; numbers are"
            " milliseconds"
        )
    return us


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, not {summary.value(value)}")
    return value


def check_poll_interval(value: Duration, name: str = "poll_interval") -> int:
    """Return *value* in microseconds if it is a valid poll interval."""
    return _time(value, name, 10, 3_600_000)


def check_max_events(value: object) -> int:
    """Return *value* if a handler may receive that many events in one call."""
    return check_count(value, "max_events", 1, MOST_CLAIMS)


_DAY_MS = 86_400_000


def validate(given: dict[str, Any]) -> Options:
    """
    Check the options that the caller gave, and return them with the defaults filled in.

    Raises:
        OptionError: a name is unknown, or a value is out of range. For an unknown name, the text
            suggests the option that was probably meant.
    """
    for name in given:
        if name not in DEFAULTS:
            hint = hints.suggestion(name, ("pub", "sub", *DEFAULTS), hints.OPTIONS)
            raise OptionError(f"unknown option {name!r}{hint}")
    v = DEFAULTS | given
    if not callable(v["backoff"]):
        wait_us(v["backoff"], 1)
    if v["now"] is not None and not callable(v["now"]):
        raise OptionError(
            "now must be a function that returns milliseconds since the epoch, not"
            f" {summary.value(v['now'])}"
        )
    return Options(
        ns=check_namespace(v["ns"]),
        max_events=check_max_events(v["max_events"]),
        concurrency=check_count(v["concurrency"], "concurrency", 1, MOST_HANDLERS),
        max_retries=check_count(v["max_retries"], "max_retries", 0, MOST_RETRIES),
        backoff=v["backoff"],
        lease=_time(v["lease"], "lease", 100, _DAY_MS),
        look_ahead=_time(v["look_ahead"], "look_ahead", 0, 1_000),
        auto_confirm=_flag(v["auto_confirm"], "auto_confirm"),
        poll_interval=check_poll_interval(v["poll_interval"]),
        timeout=_time(v["timeout"], "timeout", 50, 30_000),
        max_run=None if v["max_run"] is None else _time(v["max_run"], "max_run", 1, 30 * _DAY_MS),
        max_payload=check_count(v["max_payload"], "max_payload", 2, 64 * 1024 * 1024),
        dead_limit=check_count(v["dead_limit"], "dead_limit", 0, 10_000_000),
        dead_age=_time(v["dead_age"], "dead_age", 0, 36_525 * _DAY_MS),
        exit_timeout=_time(v["exit_timeout"], "exit_timeout", 0, _DAY_MS),
        wait_replicas=check_count(v["wait_replicas"], "wait_replicas", 0, MOST_REPLICAS),
        now=v["now"],
    )
