"""Translates the options of ``RunAt`` into those of the timer that it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from dtimer.errors import OptionError
from dtimer.model import hints
from dtimer.model.arguments import RedisClient
from dtimer.model.ids import check_namespace
from dtimer.model.options import ROWS, RunAtOptions, TimerOptions
from dtimer.model.times import Duration

_VALID_OPTIONS = (
    "queue_name",
    "interval",
    "redis",
    *(n for n in ROWS if n in RunAtOptions.__annotations__),
)
# Maps options of the timer to their names in RunAt, where these differ.
_STREAM_NAMES = {"ns": "queue_name", "poll_interval": "interval", "pub": "redis"}
# Maps names that other libraries and the timer use to the names in RunAt, for hints.
_OTHER_NAMES = {
    word: _STREAM_NAMES.get(name, name) for word, name in hints.OPTIONS.items()
} | _STREAM_NAMES


def timer_options(
    queue_name: object, interval: Duration, redis: object, options: RunAtOptions
) -> tuple[RedisClient | str | None, TimerOptions]:
    """
    Return the client and the options of the timer that a ``RunAt`` uses.

    Raises:
        OptionError: an argument is invalid. The text uses the name that the argument has in
            ``RunAt``.
    """
    for name in options:
        if name not in _VALID_OPTIONS:
            hint = hints.suggestion(name, _VALID_OPTIONS, _OTHER_NAMES)
            raise OptionError(f"unknown option {name!r} of RunAt{hint}")
    if not isinstance(queue_name, str) or "://" in queue_name:
        given = "a URL" if isinstance(queue_name, str) else type(queue_name).__name__
        raise OptionError(
            f"queue_name must be a name (a str), not {given}; pass the client as redis=, as in"
            " RunAt('reminders', redis=…)"
        )
    ns = check_namespace(queue_name, "queue_name")
    ROWS["poll_interval"].check(interval, "interval")
    set_by_stream: TimerOptions = {"ns": ns, "poll_interval": interval}
    return _client(redis), cast("TimerOptions", {**set_by_stream, **options})


def _client(redis: object) -> RedisClient | str | None:
    """Return *redis* as a client or a URL, as a timer takes it."""
    if not isinstance(redis, Mapping):
        if redis is None or isinstance(redis, str):
            return redis
        if hasattr(redis, "connection_pool") or hasattr(redis, "nodes_manager"):
            return cast("RedisClient", redis)
        # Do not quote the value: it may contain a password.
        raise OptionError(
            "redis must be a redis or valkey client, a URL, or {'host': …, 'port': …}, not"
            f" {type(redis).__name__}"
        )
    if unknown := sorted(map(str, set(redis) - {"host", "port"})):
        raise OptionError(f"redis takes a host and a port, not {unknown[0]!r}; or pass a client")
    host, port = redis.get("host", "localhost"), redis.get("port", 6379)
    if not isinstance(host, str) or isinstance(port, bool) or not isinstance(port, int):
        raise OptionError(f"redis must have a host (str) and a port (int), not {dict(redis)!r}")
    return f"redis://{host}:{port}"
