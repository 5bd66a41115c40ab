"""Suggestions for a misspelt name, and for the names that other libraries use."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

#: Names of options in other libraries, and the option of dtimer that does the same.
OPTIONS = {
    "acks_late": "auto_confirm",
    "ack": "auto_confirm",
    "attempts": "max_retries",
    "batch": "max_events",
    "batch_size": "max_events",
    "client": "pub",
    "clock": "now",
    "compression": "codec",
    "connection": "pub",
    "count": "max_events",
    "encoder": "codec",
    "encryption": "codec",
    "heartbeat": "lease",
    "invisibility": "lease",
    "job_timeout": "max_run",
    "max_attempts": "max_retries",
    "max_jobs": "concurrency",
    "max_tries": "max_retries",
    "max_workers": "concurrency",
    "namespace": "ns",
    "poll": "poll_interval",
    "prefetch": "max_events",
    "prefetch_count": "max_events",
    "prefix": "ns",
    "queue": "ns",
    "queue_name": "ns",
    "redis": "pub",
    "replicas": "wait_replicas",
    "retries": "max_retries",
    "retry": "max_retries",
    "retry_delay": "backoff",
    "serializer": "codec",
    "task_timeout": "max_run",
    "threads": "concurrency",
    "time_limit": "max_run",
    "tries": "max_retries",
    "url": "pub",
    "visibility_timeout": "lease",
    "worker_concurrency": "concurrency",
    "workers": "concurrency",
}


def nearest(
    given: str, among: Collection[str], words: Mapping[str, str] | None = None
) -> str | None:
    """
    Return the name of *among* that the caller probably meant by *given*, or None.

    Args:
        given: The unknown name.
        among: The valid names.
        words: Names in other libraries, and the valid name of each.
    """
    other = (words or {}).get(given)
    if other in among:
        return other
    folded = {name.casefold(): name for name in among}
    near = difflib.get_close_matches(given.casefold(), folded, n=1)
    return folded[near[0]] if near else None


def suggestion(given: str, among: Collection[str], words: Mapping[str, str] | None = None) -> str:
    """Return the end of an error text: the name that was probably meant, or all valid names."""
    near = nearest(given, among, words)
    return f"; did you mean {near!r}?" if near else f"; valid names are {', '.join(among)}"
