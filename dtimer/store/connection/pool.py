"""
Make dtimer's own connections, with the settings of the user's client.

dtimer does not use the client's connection pool: other users of the pool could take all of its
connections. The client's own settings may also be unsuitable. They can make the library run a
script twice if a reply is lost, or decode bytes that are not text.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from dtimer.errors import OptionError
from dtimer.store.connection.connection import Connection, Packer
from dtimer.store.connection.deadline import run_command, with_deadline
from dtimer.store.connection.subscription import Subscription
from dtimer.store.keys import Keys

_LIBRARIES = ("redis", "valkey")

# Settings that dtimer replaces, or that have no meaning outside the client's pool.
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
# A NAT or firewall drops a connection that is silent for some minutes, and informs neither end.
# The next call would wait for the timeout of an attempt. So the kernel sends a probe after 30 s of
# silence, and closes the connection after 30 s without an answer. (macOS calls the first option
# TCP_KEEPALIVE.)
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}

_OURS_PREFIXES = ("maint", "orig_", "oss_", "himport")


def library(client: Any) -> str:
    """
    Return the name of the library that *client* belongs to: ``"redis"`` or ``"valkey"``.

    Raises:
        OptionError: It belongs to another library.
    """
    for cls in type(client).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in _LIBRARIES:
            return package
    raise OptionError(f"pub must be a redis or valkey client or a URL, not {type(client).__name__}")


def settings(given: dict[str, Any], package: str, timeout: float) -> dict[str, Any]:
    """Return the settings of a connection: the user's, except those that dtimer sets itself."""
    retry = importlib.import_module(f"{package}.retry").Retry
    no_backoff = importlib.import_module(f"{package}.backoff").NoBackoff
    kept = {
        name: value
        for name, value in given.items()
        if name not in _OURS and not name.startswith(_OURS_PREFIXES)
    }
    # The default of the clients is None or True, so False was set by the user.
    if "path" not in given and given.get("socket_keepalive") is not False:
        kept["socket_keepalive"] = True
        if not isinstance(kept.get("socket_keepalive_options"), dict):
            kept["socket_keepalive_options"] = {
                getattr(socket, name): value
                for name, value in _KEEPALIVE.items()
                if hasattr(socket, name)
            }
    return kept | {
        "protocol": 2,
        "decode_responses": False,
        # With an empty list of errors the library retries nothing by itself.
        "retry": retry(no_backoff(), 0, supported_errors=()),
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,
    }


def endpoint(given: Mapping[str, Any]) -> str:
    """Return the address in the settings of a connection: a socket path, or host and port."""
    if "path" in given:
        return f"unix:{given['path']}"
    return f"{given.get('host', 'localhost')}:{given.get('port', 6379)}"


def _sentinel_pool(pool: Any, package: str, timeout: float) -> Any:
    """Return a pool that asks the same Sentinels, through clients with dtimer's timeout."""
    manager = copy.copy(pool.sentinel_manager)
    manager.sentinels = []
    for sentinel in pool.sentinel_manager.sentinels:
        theirs = sentinel.connection_pool
        ours = type(theirs)(
            connection_class=theirs.connection_class,
            **settings(theirs.connection_kwargs, package, timeout),
        )
        manager.sentinels.append(type(sentinel)(connection_pool=ours))
    return type(pool)(
        pool.service_name,
        manager,
        is_master=pool.is_master,
        check_connection=pool.check_connection,
    )


class PoolSource:
    """Makes connections like those in the pool of a client: standalone, Sentinel, unix, fake."""

    def __init__(self, client: Any, timeout: float) -> None:
        pool = client.connection_pool
        if inspect.iscoroutinefunction(pool.connection_class.connect):
            raise OptionError(f"pub must be a synchronous client, not {type(client).__module__}'s")
        package = library(client)
        self._class = pool.connection_class
        self._sentinels: list[Any] = []
        self._settings = settings(pool.connection_kwargs, package, timeout)
        if hasattr(pool, "sentinel_manager"):
            # Keep the pool: its connections ask it for the address of the master.
            self._pool = _sentinel_pool(pool, package, timeout)
            self._sentinels = self._pool.sentinel_manager.sentinels
            self._settings["connection_pool"] = self._pool.connection_kwargs["connection_pool"]
        # Keep the client: when it is collected, it closes objects that dtimer shares with it, such
        # as the provider of credentials.
        self._client = client

    @property
    def replicable(self) -> bool:
        """See `Source.replicable`: an emulation has no replicas."""
        return not self._class.__module__.startswith("fakeredis")

    @property
    def address(self) -> str:
        """See `Source.address`."""
        if self._sentinels:
            asked = [endpoint(s.connection_pool.connection_kwargs) for s in self._sentinels]
            return f"master {self._pool.service_name!r} of the Sentinels {', '.join(asked)}"
        if not self.replicable:
            return "an emulation"
        return endpoint(self._settings)

    def connect(self) -> Any:
        """Return an unconnected connection. `set_deadline` works on it."""
        return with_deadline(self._class)(**self._settings)

    def connection(self, keys: Keys) -> Connection:
        """See `Source.connection`."""
        return Connection(self.connect, Packer(keys))

    def subscription(self, keys: Keys, channels: Sequence[str]) -> Subscription:
        """See `Source.subscription`."""
        return Subscription(self.connect, channels)

    def command(self, *words: str) -> Any:
        """See `Source.command`."""
        return run_command(self.connect(), *words)

    def close(self) -> None:
        """Close the connections to the Sentinels; the next look-up makes new ones."""
        for sentinel in self._sentinels:
            sentinel.connection_pool.disconnect()

    def after_fork(self) -> None:
        """Replace the pools of the Sentinels; sessions close the other connections."""
        for sentinel in self._sentinels:
            pool = sentinel.connection_pool
            # Replace the pool: a thread of the parent may hold its lock, and after a fork the pool
            # only forgets its connections without closing them.
            sentinel.connection_pool = type(pool)(
                connection_class=pool.connection_class, **pool.connection_kwargs
            )
            for kept in ("_available_connections", "_in_use_connections", "_connections"):
                for connection in list(getattr(pool, kept, ())):
                    with contextlib.suppress(Exception):
                        # Outside the process that connected, this only closes the descriptor.
                        connection.disconnect()
