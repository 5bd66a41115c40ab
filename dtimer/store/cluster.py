"""A cluster: the library's client knows which server holds the keys, and follows them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from dtimer.store.deadline import with_deadline
from dtimer.store.ear import Ear
from dtimer.store.keys import Keys
from dtimer.store.pools import library, settings
from dtimer.store.wire import ClusterWire

# So many of its servers are named in a message.
_NAMED = 3


class ClusterSource:
    """Connections to the server of a cluster that holds the keys of the namespace."""

    #: Each of its servers may have some.
    replicable = True

    def __init__(self, client: Any, timeout: float) -> None:
        self._library = library(client)
        self._class = type(client)
        self._nodes = [(node.host, node.port) for node in client.get_nodes()]
        given = client.get_connection_kwargs()
        self._settings = settings(given, self._library, timeout)
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

    @property
    def place(self) -> str:
        """See `Source.place`."""
        named = [f"{host}:{port}" for host, port in self._nodes[:_NAMED]]
        more = ", …" if len(self._nodes) > _NAMED else ""
        return f"the cluster of {', '.join(named)}{more}"

    def wire(self, keys: Keys) -> ClusterWire:
        """See `Source.wire`."""
        return ClusterWire(_Lazy(self._cluster), keys, self._beside)

    def ear(self, keys: Keys, channels: Sequence[str]) -> Ear:
        """
        See `Source.ear`.

        A message published anywhere reaches every server of the cluster; listening
        where the keys are saves the hop.
        """

        def connect() -> Any:
            pool = self._pool(self._cluster().get_node_from_key(keys.due))
            return pool.connection_class(**self._like(pool))

        return Ear(connect, channels)

    def _pool(self, node: Any) -> Any:
        return getattr(self._cluster(), f"get_{self._library}_connection")(node).connection_pool

    def _like(self, pool: Any) -> dict[str, Any]:
        return settings(pool.connection_kwargs, self._library, self._timeout)

    def _beside(self, node: Any) -> Any:
        """Return a connection of our own to *node*, that keeps a deadline."""
        pool = self._pool(node)
        return with_deadline(pool.connection_class)(**self._like(pool))

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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get(), name)
