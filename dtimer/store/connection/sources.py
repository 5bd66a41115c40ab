"""Make a source of connections from the user's client or URL, or from the environment."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from typing import Any, Protocol

from dtimer.errors import OptionError
from dtimer.model.arguments import RedisClient
from dtimer.store.connection import tls
from dtimer.store.connection.cluster import ClusterConnection, ClusterSource
from dtimer.store.connection.connection import Connection
from dtimer.store.connection.embedded import EmbeddedSource
from dtimer.store.connection.pool import PoolSource
from dtimer.store.connection.subscription import Subscription
from dtimer.store.keys import Keys

DEFAULT_URL = "redis://localhost:6379"

_SCHEME = re.compile(r"[a-z][a-z0-9+]{1,15}")
_SETTING = re.compile(r"Invalid value for '(\w+)' in connection URL")
_PLAIN = re.compile(r"[\w.:/\[\]%-]*")


class Source(Protocol):
    """Makes connections; their users keep and close them."""

    @property
    def replicable(self) -> bool:
        """True if the server can have replicas to wait for."""
        ...

    @property
    def address(self) -> str:
        """The address of the server, for messages: without user and password."""
        ...

    def connection(self, keys: Keys) -> Connection | ClusterConnection:
        """Return a connection for scripts, which connects on its first call."""
        ...

    def subscription(self, keys: Keys, channels: Sequence[str]) -> Subscription:
        """Return a subscription to *channels*, not yet opened."""
        ...

    def command(self, *words: str) -> Any:
        """Run one command on its own connection."""
        ...

    def close(self) -> None:
        """Close the connections, and release the embedded server, that the source itself uses."""
        ...

    def after_fork(self) -> None:
        """Discard, in a forked child, the state that belongs to the parent."""
        ...


def _from_url(url: str, timeout: float) -> Source:
    scheme, colon, rest = url.partition(":")
    if scheme == "embedded" and colon:
        return EmbeddedSource(url, timeout)
    if scheme not in ("redis", "rediss", "unix", "valkey", "valkeys"):
        # Quote the text only if it looks like a scheme. Otherwise it may be a password.
        named = f" {scheme!r}" if rest.startswith("//") and _SCHEME.fullmatch(scheme) else ""
        raise OptionError(
            f"the URL scheme{named} is not known; use redis://, rediss://, unix://,"
            " embedded: or embedded:///a/folder"
        )
    client = importlib.import_module("redis").Redis
    scheme = {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme)
    try:
        made = client.from_url(f"{scheme}:{rest}")
    except ValueError as e:
        # Do not quote the library's error: it contains the text in the place of the port, which
        # may be part of a password.
        setting = _SETTING.search(str(e))
        wrong = f" (its {setting[1]})" if setting else ""
        raise OptionError(
            f"the URL cannot be understood{wrong}; use redis://user:password@host:port/db,"
            " and in user and password write each : / ? # [ ] @ and % as %XX"
        ) from None
    if scheme == "rediss":
        pool = made.connection_pool
        pool.connection_kwargs = tls.verified(pool.connection_kwargs)
    return PoolSource(made, timeout)


def redacted(url: str) -> str:
    """
    Return *url* without user, password and settings, so that it may be shown.

    For an invalid URL, any part of which may belong to a password, return ``"the server"``.
    """
    scheme, _, rest = url.partition("://")
    if scheme.startswith("embedded"):
        return url
    plain, _, settings = rest.partition("?")
    _, user, place = plain.rpartition("@")
    if "@" in settings or not _PLAIN.fullmatch(place) or not _SCHEME.fullmatch(scheme):
        return "the server"
    return f"{scheme}://{'…@' if user else ''}{place}"


def source(given: RedisClient | str | None, timeout: float) -> Source:
    """
    Return a source of connections for a client, a URL, or None for ``DTIMER_URL``.

    This makes no connection.

    Args:
        given: The client, URL or None.
        timeout: The timeout of one attempt, in seconds.

    Raises:
        OptionError: *given* is something else, or an asyncio client.
    """
    if given is None:
        given = os.environ.get("DTIMER_URL") or DEFAULT_URL
    if isinstance(given, str):
        return _from_url(given, timeout)
    if hasattr(given, "connection_pool"):
        return PoolSource(given, timeout)
    if hasattr(given, "nodes_manager"):
        return ClusterSource(given, timeout)
    # Show only the type: the value may contain a password.
    raise OptionError(
        f"pub and sub must be redis or valkey clients or URLs, not {type(given).__name__}"
    )
