"""
The options of `DTimer` and `RunAt`: for each its type, default, limits and description, in one row.

A row is a field of `TimerOptions` or of `RunAtOptions`. Type checkers and IDEs read these classes;
`validate` checks an option with its row; and the reference takes its table of options from them.
`validate` runs once, before any I/O, and returns a frozen object with times in microseconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, TypeAlias, TypedDict, TypeVar, get_type_hints

from dtimer.errors import OptionError
from dtimer.model import hints, summary
from dtimer.model.codecs import JSON, Codec, Coder, check_codec
from dtimer.model.ids import check_namespace
from dtimer.model.retry import Backoff, exponential, wait_us
from dtimer.model.sealed import MOST_BYTES
from dtimer.model.times import Duration, duration_us
from dtimer.naming import public

#: The most events that one claim may return. A larger claim would block the other clients of Redis.
MOST_CLAIMS = 100
#: The demand of a node that accepts any number of events.
ANY_NUMBER = 1 << 62

#: The most handler threads of a node.
MOST_HANDLERS = 1_000

MOST_RETRIES = 1_000_000

#: More replicas than any deployment has.
MOST_REPLICAS = 100

_DAY_MS = 86_400_000

Choice = TypeVar("Choice", bound=str)


def check_count(value: object, name: str, low: int, high: int) -> int:
    """Return *value* if it is a whole number from *low* to *high*."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OptionError(
            f"{name} must be a whole number from {low} to {high}, not {summary.value(value)}"
        )
    return value


def check_choice(value: object, name: str, among: Collection[Choice]) -> Choice:
    """Return the one of *among* that equals *value*."""
    for choice in among:
        if choice == value:
            return choice
    raise OptionError(f"{name} must be one of {', '.join(among)}, not {summary.value(value)}")


@dataclass(frozen=True, slots=True)
class Count:
    """The row of a whole number."""

    default: int
    least: int
    most: int

    def check(self, value: Any, name: str) -> int:
        """Return *value* if it is within the limits."""
        return check_count(value, name, self.least, self.most)


@dataclass(frozen=True, slots=True)
class Time:
    """The row of a duration, with limits in ms. If the default is None, None is allowed."""

    default: Duration | None
    least: int
    most: int

    def check(self, value: Any, name: str) -> int | None:
        """Return *value* in microseconds if it is within the limits."""
        if value is None and self.default is None:
            return None
        us = duration_us(value, name)
        if not self.least * 1000 <= us <= self.most * 1000:
            raise OptionError(
                f"{name} must be {self.least} to {self.most} ms, not {summary.value(value)};"
                " numbers are milliseconds"
            )
        return us


@dataclass(frozen=True, slots=True)
class Other:
    """The row of an option with a check of its own."""

    default: Any
    check: Callable[[Any, str], Any]


#: The default of an option, as a user would give it, and the check of a value.
Row: TypeAlias = Count | Time | Other


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, not {summary.value(value)}")
    return value


def _backoff(value: Any, _name: str) -> Any:
    if not callable(value):
        wait_us(value, 1)
    return value


def _now(value: Any, name: str) -> Any:
    if value is not None and not callable(value):
        raise OptionError(
            f"{name} must be a function that returns milliseconds since the epoch, not"
            f" {summary.value(value)}"
        )
    return value


class RunAtOptions(TypedDict, total=False):
    """
    The keyword arguments that `RunAt` passes to its timer. `DTimer` takes them, too.

    A number for a time is milliseconds. The reference describes each option.
    """

    concurrency: Annotated[int, Count(1, 1, MOST_HANDLERS)]
    """How many handlers run at a time, each on a thread of its own."""

    max_retries: Annotated[int, Count(3, 0, MOST_RETRIES)]
    """How often an event posted by this node is retried. With 0 an event is never started twice;
    unless it is confirmed, it becomes a dead letter."""

    backoff: Annotated[Backoff, Other(exponential, _backoff)]
    """The wait before a retry, or a function of the attempt that failed, counted from 1. By default
    1 s, doubled each time up to an hour, half of it random."""

    lease: Annotated[Duration, Time(30_000, 100, _DAY_MS)]
    """If a node dies, its events are delivered elsewhere after this time. Running handlers renew
    their lease every third of it, so it need not cover the longest handler."""

    look_ahead: Annotated[Duration, Time(20, 0, 1_000)]
    """How long before its due time an event with a generated id may be claimed, and kept until
    then. That avoids the lateness of a round trip, but a claimed event cannot be cancelled. 0
    switches it off."""

    # At most 30 s, because the scripts recognise the repetition of a call only for a minute.
    timeout: Annotated[Duration, Time(2_000, 50, 30_000)]
    """The deadline of a single call, including its repetitions."""

    max_run: Annotated[Duration | None, Time(None, 1, 30 * _DAY_MS)]
    """After this time, the lease of a running handler is no longer renewed. None means no limit."""

    max_payload: Annotated[int, Count(256 * 1024, 2, MOST_BYTES)]
    """The largest payload, in bytes of JSON."""

    dead_limit: Annotated[int, Count(10_000, 0, 10_000_000)]
    """How many dead letters are kept."""

    dead_age: Annotated[Duration, Time(timedelta(days=30), 0, 36_525 * _DAY_MS)]
    """How long dead letters are kept."""

    exit_timeout: Annotated[Duration, Time(5_000, 0, _DAY_MS)]
    """How long the exiting interpreter waits for running handlers."""

    history: Annotated[bool, Other(default=True, check=_flag)]
    """Write a row of the history once a minute, as long as something happens or waits. See
    ``history()``."""

    wait_replicas: Annotated[int, Count(0, 0, MOST_REPLICAS)]
    """How many replicas must have a post before it returns. See ``post``."""

    now: Annotated[Callable[[], float] | None, Other(None, _now)]
    """For tests: a function that returns ms since the epoch and replaces the server's clock."""


class TimerOptions(RunAtOptions, total=False):
    """
    The keyword arguments of `DTimer`: those of `RunAtOptions`, and these.

    A number for a time is milliseconds. The reference describes each option.
    """

    ns: Annotated[str, Other("dt", check_namespace)]
    """The namespace. Only nodes of the same namespace share events. Allowed: 1 to 64 of A-Z a-z 0-9
    _ . : ~ -."""

    # One by default, as in the original for Node.js. A handler that raises fails only that event.
    max_events: Annotated[int, Count(1, 1, MOST_CLAIMS)]
    """The most events in one call of a handler."""

    auto_confirm: Annotated[bool, Other(default=True, check=_flag)]
    """Confirm when the handler returns. Otherwise call ``ev.confirm()`` within the lease, from any
    thread."""

    poll_interval: Annotated[Duration, Time(1_000, 10, 3_600_000)]
    """How late an event may be if pub/sub messages are lost."""

    codec: Annotated[Codec, Other(JSON, check_codec)]
    """How payloads are written: compressed, signed or encrypted. See the page on codecs."""


@dataclass(frozen=True, slots=True)
class Options:
    """The checked options, in the order of the reference. Durations are in microseconds."""

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
    codec: Coder
    dead_limit: int
    dead_age: int
    exit_timeout: int
    history: bool
    wait_replicas: int
    now: Callable[[], float] | None


def _rows() -> dict[str, Row]:
    found = get_type_hints(TimerOptions, include_extras=True)
    return {f.name: found[f.name].__metadata__[0] for f in dataclasses.fields(Options)}


#: The row of each option.
ROWS: dict[str, Row] = _rows()


def validate(given: Mapping[str, Any]) -> Options:
    """
    Check the options that the caller gave, and return them with the defaults filled in.

    Raises:
        OptionError: a name is unknown, or a value is out of range. For an unknown name, the text
            suggests the option that was probably meant.
    """
    for name in given:
        if name not in ROWS:
            hint = hints.suggestion(name, ("pub", "sub", *ROWS), hints.OPTIONS)
            raise OptionError(f"unknown option {name!r}{hint}")
    checked: dict[str, Any] = {
        name: row.check(given.get(name, row.default), name) for name, row in ROWS.items()
    }
    return Options(**checked)


public(RunAtOptions, TimerOptions)
