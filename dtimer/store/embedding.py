"""The ``embedded:`` scheme: a server of our own, or, where there is none, an emulation."""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from dtimer.errors import StoreError
from dtimer.store import embedded
from dtimer.store.ear import Ear
from dtimer.store.keys import Keys
from dtimer.store.pools import PoolSource
from dtimer.store.wire import Packer, Wire


class EmbeddedSource:
    """A server of our own, attached with the first connection and held until the end."""

    #: It has no replicas.
    replicable = False

    def __init__(self, url: str, timeout: float) -> None:
        embedded.check(url)
        self._url = url
        self._timeout = timeout
        self._source: PoolSource | None = None
        self._attachment: embedded.Attachment | None = None
        # Reentrant, for a call out of a signal handler that interrupted one.
        self._lock = threading.RLock()

    @property
    def place(self) -> str:
        """See `Source.place`."""
        return self._url

    def _attached(self) -> PoolSource:
        source, attachment = self._source, self._attachment
        if source is None:
            return self._attach()
        if attachment is not None:
            # A connection is made because there was none, or because it broke.
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
                        # A signal handler that interrupted this has attached, too.
                        attachment.close()
                        attachment = self._attachment
                    self._attachment = attachment
                    redis = importlib.import_module("redis")
                    client = redis.Redis(unix_socket_path=attachment.socket)
                    self._source = PoolSource(client, self._timeout)
            return self._source

    def _connect(self) -> Any:
        return self._attached().connect()

    def wire(self, keys: Keys) -> Wire:
        """See `Source.wire`."""
        return Wire(lambda: self._attached().connect(), Packer(keys))

    def ear(self, keys: Keys, channels: Sequence[str]) -> Ear:
        """See `Source.ear`."""
        del keys
        return Ear(self._connect, channels)

    def command(self, *words: str) -> Any:
        """See `Source.command`."""
        return self._attached().command(*words)

    def close(self) -> None:
        """See `Source.close`."""
        attachment, self._attachment, self._source = self._attachment, None, None
        if attachment is not None:
            attachment.close()

    def after_fork(self) -> None:
        """See `Source.after_fork`: the hold on the server is inherited, and keeps it alive."""
        self._lock = threading.RLock()


# One for the process, so that all its timers meet.
_fake: list[Any] = []


def _emulation(timeout: float) -> PoolSource:
    """Return the last rung of the ladder, and say that it is one."""
    try:
        fakeredis = importlib.import_module("fakeredis")
    except ImportError:
        raise StoreError(
            "there is no Redis server on this machine: install one, or"
            " pip install 'dtimer[embedded]'"
        ) from None
    warnings.warn(
        "no Redis server was found: this is an emulation within one process (fakeredis),"
        " which other processes will not meet",
        RuntimeWarning,
        stacklevel=4,
    )
    if not _fake:
        _fake.append(fakeredis.FakeServer())
    return PoolSource(fakeredis.FakeRedis(server=_fake[0]), timeout)
