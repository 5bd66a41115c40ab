"""Serve ``embedded:`` URLs with dtimer's own server, or with an emulation if there is none."""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from dtimer import embedded
from dtimer.errors import StoreError
from dtimer.store.connection.connection import Connection, Packer
from dtimer.store.connection.pool import PoolSource
from dtimer.store.connection.subscription import Subscription
from dtimer.store.keys import Keys


class EmbeddedSource:
    """Makes connections to dtimer's own server, and keeps it running until `close`."""

    #: An embedded server has no replicas.
    replicable = False

    def __init__(self, url: str, timeout: float) -> None:
        embedded.check(url)
        self._url = url
        self._timeout = timeout
        self._source: PoolSource | None = None
        self._attachment: embedded.Attachment | None = None
        # Reentrant, because a signal handler may interrupt a call and make another.
        self._lock = threading.RLock()

    @property
    def address(self) -> str:
        """The URL, for messages."""
        return self._url

    def _attached(self) -> PoolSource:
        source, attachment = self._source, self._attachment
        if source is None:
            return self._attach()
        if attachment is not None:
            # A new connection may mean that the last one broke, because the server has ended.
            attachment.renew()
        return source

    def _attach(self) -> PoolSource:
        with self._lock:
            if self._source is None:
                if self._url == "embedded:" and not embedded.available():
                    self._source = _emulation(self._timeout)
                else:
                    attachment = embedded.attach(self._url)
                    if self._attachment is not None:
                        # A signal handler has interrupted this call and attached first.
                        attachment.close()
                        attachment = self._attachment
                    self._attachment = attachment
                    redis = importlib.import_module("redis")
                    client = redis.Redis(unix_socket_path=attachment.socket)
                    self._source = PoolSource(client, self._timeout)
            return self._source

    def _connect(self) -> Any:
        return self._attached().connect()

    def connection(self, keys: Keys) -> Connection:
        """See `Source.connection`."""
        return Connection(lambda: self._attached().connect(), Packer(keys))

    def subscription(self, keys: Keys, channels: Sequence[str]) -> Subscription:
        """See `Source.subscription`."""
        del keys
        return Subscription(self._connect, channels)

    def command(self, *words: str) -> Any:
        """See `Source.command`."""
        return self._attached().command(*words)

    def close(self) -> None:
        """See `Source.close`."""
        attachment, self._attachment, self._source = self._attachment, None, None
        if attachment is not None:
            attachment.close()

    def after_fork(self) -> None:
        """
        Replace the lock, which another thread may have held during the fork.

        The child inherits the connection to the supervisor, so the server also runs for it.
        """
        self._lock = threading.RLock()


# One emulation for the whole process, so that its timers share the data.
_fake: list[Any] = []


def _emulation(timeout: float) -> PoolSource:
    """Return a source for an emulation inside this process, and warn that it is one."""
    try:
        fakeredis = importlib.import_module("fakeredis")
    except ImportError:
        raise StoreError(
            "no Redis server was found on this machine: install one, or run"
            " pip install 'dtimer[embedded]'"
        ) from None
    warnings.warn(
        "no Redis server was found: using an emulation inside this process (fakeredis),"
        " which other processes cannot see",
        RuntimeWarning,
        stacklevel=4,
    )
    if not _fake:
        _fake.append(fakeredis.FakeServer())
    return PoolSource(fakeredis.FakeRedis(server=_fake[0]), timeout)
