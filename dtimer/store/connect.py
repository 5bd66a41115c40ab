"""From what the user gives (a client, a URL, nothing) to a source of connections."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from typing import Any, Protocol

from dtimer.errors import OptionError
from dtimer.store import tls
from dtimer.store.cluster import ClusterSource, ClusterWire
from dtimer.store.ear import Ear
from dtimer.store.embedding import EmbeddedSource
from dtimer.store.keys import Keys
from dtimer.store.pools import PoolSource
from dtimer.store.wire import Wire

DEFAULT_URL = "redis://localhost:6379"

_SCHEME = re.compile(r"[a-z][a-z0-9+]{1,15}")
_SETTING = re.compile(r"Invalid value for '(\w+)' in connection URL")
_PLAIN = re.compile(r"[\w.:/\[\]%-]*")


class Source(Protocol):
    """Where connections come from. It makes them, and does not keep them."""

    @property
    def replicable(self) -> bool:
        """False where there can be no replica to wait for."""
        ...

    @property
    def place(self) -> str:
        """Where it leads, for messages: host and port, and neither user nor password."""
        ...

    def wire(self, keys: Keys) -> Wire | ClusterWire:
        """Return a connection for scripts; it connects with its first call."""
        ...

    def ear(self, keys: Keys, channels: Sequence[str]) -> Ear:
        """Return a subscription, not opened yet."""
        ...

    def command(self, *words: str) -> Any:
        """Run one command on a connection of its own."""
        ...

    def close(self) -> None:
        """Give back what the source itself has opened."""
        ...

    def after_fork(self) -> None:
        """Forget, in a forked child, what belongs to the parent."""
        ...


def _from_url(url: str, timeout: float) -> Source:
    scheme, colon, rest = url.partition(":")
    if scheme == "embedded" and colon:
        return EmbeddedSource(url, timeout)
    if scheme not in ("redis", "rediss", "unix", "valkey", "valkeys"):
        # What is no scheme may be a password.
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
        # Its words quote what stands where a port should, and that may be half a password.
        setting = _SETTING.search(str(e))
        wrong = f" (its {setting[1]})" if setting else ""
        raise OptionError(
            f"the URL cannot be understood{wrong}; it has to be redis://user:password@host:port/db,"
            " and in user and password every : / ? # [ ] @ and % has to be written as %XX"
        ) from None
    if scheme == "rediss":
        pool = made.connection_pool
        pool.connection_kwargs = tls.verified(pool.connection_kwargs)
    return PoolSource(made, timeout)


def where(url: str) -> str:
    """
    Return what may be shown of *url*: where it leads, and neither user nor password.

    Also of one that is wrong: nothing that may be a part of them.
    """
    scheme, _, rest = url.partition("://")
    if scheme.startswith("embedded"):
        return url
    plain, _, settings = rest.partition("?")
    _, user, place = plain.rpartition("@")
    if "@" in settings or not _PLAIN.fullmatch(place) or not _SCHEME.fullmatch(scheme):
        return "the server"
    return f"{scheme}://{'…@' if user else ''}{place}"


def source(given: Any, timeout: float) -> Source:
    """
    Make a source of connections out of a client, a URL, or None for ``DTIMER_URL``.

    Connects to nothing. *timeout* is that of one try, in seconds.

    Raises:
        OptionError: *given* is neither, or an asyncio client.
    """
    if given is None:
        given = os.environ.get("DTIMER_URL") or DEFAULT_URL
    if isinstance(given, str):
        return _from_url(given, timeout)
    if hasattr(given, "connection_pool"):
        return PoolSource(given, timeout)
    if hasattr(given, "nodes_manager"):
        return ClusterSource(given, timeout)
    # Not what it is: it may have a password in it.
    raise OptionError(
        f"pub and sub must be redis or valkey clients or URLs, not {type(given).__name__}"
    )
