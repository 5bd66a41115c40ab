"""
Every option of a node, its default, its unit and the reason for it.

Validated once, before any I/O, into one frozen object with times in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dtimer.errors import OptionError
from dtimer.model import hints
from dtimer.model.moments import Duration, duration_us
from dtimer.model.names import check_namespace
from dtimer.model.retry import Backoff, exponential, wait_us

#: A script call claims no more than this, or every other client of that Redis waits.
MOST_CLAIMS = 100
#: How many events are wanted by who takes whatever comes.
ANY_NUMBER = 1 << 62

#: Each hand is a thread.
MOST_HANDS = 1_000

MOST_RETRIES = 1_000_000

#: More than anybody has.
MOST_REPLICAS = 100


@dataclass(frozen=True, slots=True)
class Options:
    """The validated options. Durations are microseconds here, milliseconds in ``DEFAULTS``."""

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


#: In milliseconds where they are times.
DEFAULTS: dict[str, Any] = {
    "ns": "dt",
    # One event an emission, as in the Node original: a handler that raises then
    # fails that event alone.
    "max_events": 1,
    "concurrency": 1,
    "max_retries": 3,
    "backoff": exponential,
    # The wait for the events of a node that was killed. Running handlers renew theirs
    # every third of it, so it need not cover the slowest handler.
    "lease": 30_000,
    # How long before it is due an event may be claimed, and kept by the node until then: a
    # claim takes a round trip, which would be lateness. From then on it counts as in flight,
    # and cannot be cancelled. 0: it is claimed when it is due.
    "look_ahead": 20,
    "auto_confirm": True,
    # How late an event may be when every wake is lost.
    "poll_interval": 1_000,
    # The deadline of any one call, tries and all. At most 30 s: the scripts remember what
    # was done for a minute, so that it is not done twice.
    "timeout": 2_000,
    # A handler that runs longer than this stops renewing its lease. None: never.
    "max_run": None,
    "max_payload": 256 * 1024,
    "dead_limit": 10_000,
    "dead_age": timedelta(days=30),
    # How long the end of the interpreter waits for running handlers.
    "exit_timeout": 5_000,
    # How many replicas must have a post before it counts as one.
    "wait_replicas": 0,
    # For tests: milliseconds since the epoch, instead of the clock of the server.
    "now": None,
}


def check_count(value: object, name: str, low: int, high: int) -> int:
    """Return *value* when it is a whole number between *low* and *high*."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OptionError(f"{name} must be a whole number from {low} to {high}, not {value!r:.80}")
    return value


def _time(value: Duration, name: str, low_ms: int, high_ms: int) -> int:
    us = duration_us(value, name)
    if not low_ms * 1000 <= us <= high_ms * 1000:
        raise OptionError(
            f"{name} must be {low_ms} to {high_ms} ms, not {value!r:.80}; numbers are milliseconds"
        )
    return us


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, not {value!r:.80}")
    return value


def check_poll_interval(value: Duration, name: str = "poll_interval") -> int:
    """Return *value* in microseconds when nodes may poll that often."""
    return _time(value, name, 10, 3_600_000)


def check_max_events(value: object) -> int:
    """Return *value* when that many events may be handed to a handler at a time."""
    return check_count(value, "max_events", 1, MOST_CLAIMS)


_DAY_MS = 86_400_000


def validate(given: dict[str, Any]) -> Options:
    """
    Make the options of a node out of what its maker was *given*.

    Raises:
        OptionError: an unknown name (with the one that was probably meant), or a
            value out of its range.
    """
    for name in given:
        if name not in DEFAULTS:
            hint = hints.meant(name, ("pub", "sub", *DEFAULTS), hints.OPTIONS)
            raise OptionError(f"there is no option {name!r}{hint}")
    v = DEFAULTS | given
    if not callable(v["backoff"]):
        wait_us(v["backoff"], 1)
    if v["now"] is not None and not callable(v["now"]):
        raise OptionError(f"now must be a function that gives epoch milliseconds, not {v['now']!r}")
    return Options(
        ns=check_namespace(v["ns"]),
        max_events=check_max_events(v["max_events"]),
        concurrency=check_count(v["concurrency"], "concurrency", 1, MOST_HANDS),
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
