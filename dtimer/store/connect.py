"""
From what the user gives (a client, a URL, nothing) to connections of our own.

The settings of the user's client are taken over, and its pool is left alone: a timer
that shares a pool can be starved by it, and the library's defaults would run a script
twice when a reply is lost, and decode what is not text.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dtimer.errors import OptionError, StoreError
from dtimer.store import embedded
from dtimer.store.ear import Ear
from dtimer.store.keys import Keys
from dtimer.store.wire import ClusterWire, Packer, Wire

DEFAULT_URL = "redis://localhost:6379"

_LIBRARIES = ("redis", "valkey")

# Settings that we make ourselves, or that have no meaning without the pool they were for.
_OURS = {
    "decode_responses",
    "encoding_errors",
    "event_dispatcher",
    "health_check_interval",
    "legacy_responses",
    "protocol",
    "retry",
    "retry_on_error",
    "retry_on_timeout",
    "socket_connect_timeout",
    "socket_timeout",
}
_OURS_PREFIXES = ("maint", "orig_", "oss_", "himport")


class Source(Protocol):
    """Where connections come from. It makes them, and does not keep them."""

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


def _library(client: Any) -> str:
    for cls in type(client).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in _LIBRARIES:
            return root
    raise OptionError(
        f"pub must be a redis or valkey client or a URL, not {client!r:.80}"
        f" ({type(client).__name__})"
    )


def _settings(given: dict[str, Any], library: str, timeout: float) -> dict[str, Any]:
    """Take over the user's settings but for those that are ours to make."""
    retry = importlib.import_module(f"{library}.retry").Retry
    no_backoff = importlib.import_module(f"{library}.backoff").NoBackoff
    kept = {
        name: value
        for name, value in given.items()
        if name not in _OURS and not name.startswith(_OURS_PREFIXES)
    }
    return kept | {
        "protocol": 2,
        "decode_responses": False,
        # With an empty list of errors nothing at all is retried behind our back.
        "retry": retry(no_backoff(), 0, supported_errors=()),
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
    }


class PoolSource:
    """Connections like those of a client with a pool: standalone, Sentinel, unix, fake."""

    def __init__(self, client: Any, timeout: float, attachment: Any = None) -> None:
        pool = client.connection_pool
        if inspect.iscoroutinefunction(pool.connection_class.connect):
            raise OptionError(f"pub must be a synchronous client, not {type(client).__module__}'s")
        self._class = pool.connection_class
        self._settings = _settings(pool.connection_kwargs, _library(client), timeout)
        # A Sentinel connection asks the pool of the client where the master is, and the
        # pool must live for that. The client must too: its end would close the pool.
        self._client = client
        self._attachment = attachment

    def _connect(self) -> Any:
        return self._class(**self._settings)

    def wire(self, keys: Keys) -> Wire:
        """See `Source.wire`."""
        return Wire(self._connect, Packer(keys))

    def ear(self, keys: Keys, channels: Sequence[str]) -> Ear:
        """See `Source.ear`."""
        return Ear(self._connect, channels)

    def command(self, *words: str) -> Any:
        """See `Source.command`."""
        connection = self._connect()
        try:
            connection.connect()
            connection.send_command(*words, check_health=False)
            return connection.read_response(disable_decoding=True)
        finally:
            connection.disconnect()

    def close(self) -> None:
        """See `Source.close`."""
        if self._attachment is not None:
            self._attachment.close()
            self._attachment = None

    def after_fork(self) -> None:
        """See `Source.after_fork`: connections are never kept here."""


class ClusterSource:
    """Connections to the server of a cluster that holds the keys of the namespace."""

    def __init__(self, client: Any, timeout: float) -> None:
        self._library = _library(client)
        self._class = type(client)
        self._nodes = [(node.host, node.port) for node in client.get_nodes()]
        given = client.get_connection_kwargs()
        self._settings = _settings(given, self._library, timeout)
        for name in ("host", "port", "db", "redis_connect_func", "connection_pool_class"):
            self._settings.pop(name, None)
        self._timeout = timeout
        self._client: Any = None

    def _cluster(self) -> Any:
        if self._client is None:
            node = importlib.import_module(f"{self._library}.cluster").ClusterNode
            self._client = self._class(
                startup_nodes=[node(host, port) for host, port in self._nodes], **self._settings
            )
        return self._client

    def wire(self, keys: Keys) -> ClusterWire:
        """See `Source.wire`."""
        return ClusterWire(_Lazy(self._cluster), keys)

    def ear(self, keys: Keys, channels: Sequence[str]) -> Ear:
        """
        See `Source.ear`.

        A message published anywhere reaches every server of the cluster; listening
        where the keys are saves the hop.
        """

        def connect() -> Any:
            cluster = self._cluster()
            node = cluster.get_node_from_key(keys.due)
            pool = cluster.get_redis_connection(node).connection_pool
            return pool.connection_class(
                **_settings(pool.connection_kwargs, self._library, self._timeout)
            )

        return Ear(connect, channels)

    def command(self, *words: str) -> Any:
        """See `Source.command`."""
        return self._cluster().execute_command(*words, target_nodes="random", NEVER_DECODE=[])

    def close(self) -> None:
        """See `Source.close`."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def after_fork(self) -> None:
        """See `Source.after_fork`."""
        self._client = None


class _Lazy:
    """The cluster client, made with the first call: making it connects."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self._get = get

    def execute_command(self, *words: Any, **options: Any) -> Any:
        return self._get().execute_command(*words, **options)


def _from_url(url: str, timeout: float) -> Source:
    scheme, colon, rest = url.partition(":")
    if scheme == "embedded" and colon:
        return _Embedded(url, timeout)
    if scheme not in ("redis", "rediss", "unix", "valkey", "valkeys"):
        raise OptionError(
            f"the URL scheme {scheme!r} is not known; use redis://, rediss://, unix://,"
            " embedded: or embedded:///a/folder"
        )
    client = importlib.import_module("redis").Redis
    scheme = {"valkey": "redis", "valkeys": "rediss"}.get(scheme, scheme)
    try:
        return PoolSource(client.from_url(f"{scheme}:{rest}"), timeout)
    except ValueError as e:
        raise OptionError(f"the URL cannot be understood: {e}") from None


class _Embedded:
    """A server of our own, attached with the first connection and held until the end."""

    def __init__(self, url: str, timeout: float) -> None:
        embedded.check(url)
        self._url = url
        self._timeout = timeout
        self._source: PoolSource | None = None

    def _attached(self) -> PoolSource:
        if self._source is None:
            redis = importlib.import_module("redis")
            if not embedded.available() and self._url == "embedded:":
                self._source = _emulation(self._timeout)
                return self._source
            attachment = embedded.attach(self._url)
            client = redis.Redis(unix_socket_path=attachment.socket)
            self._source = PoolSource(client, self._timeout, attachment)
        return self._source

    def wire(self, keys: Keys) -> Wire:
        return Wire(lambda: self._attached()._connect(), Packer(keys))

    def ear(self, keys: Keys, channels: Sequence[str]) -> Ear:
        return Ear(lambda: self._attached()._connect(), channels)

    def command(self, *words: str) -> Any:
        return self._attached().command(*words)

    def close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def after_fork(self) -> None:
        """The hold on the server is inherited, and keeps it alive."""


def _emulation(timeout: float) -> PoolSource:
    """Return the last rung of the ladder, and say that it is one."""
    import warnings

    try:
        fakeredis = importlib.import_module("fakeredis")
    except ImportError:
        raise StoreError(
            "there is no Redis server on this machine: install one, or"
            " pip install 'dtimer[embedded]'"
        ) from None
    warnings.warn(
        "no Redis server was found: this is an emulation within one process (fakeredis),"
        " other processes will not meet it",
        RuntimeWarning,
        stacklevel=4,
    )
    return PoolSource(fakeredis.FakeRedis(server=_fake_server()), timeout)


_FAKE: list[Any] = []


def _fake_server() -> Any:
    if not _FAKE:
        _FAKE.append(importlib.import_module("fakeredis").FakeServer())
    return _FAKE[0]


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
    raise OptionError(
        f"pub and sub must be redis or valkey clients or URLs, not {given!r:.80}"
        f" ({type(given).__name__})"
    )
