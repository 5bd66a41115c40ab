"""What a node must not leave behind: threads, descriptors, connections, registrations."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

from servers import eventually

_FOLDER = "/proc/self/fd"


def threads() -> list[str]:
    """Return the names of the threads of nodes that run."""
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("dtimer-"))


def descriptors() -> set[str]:
    """Return what the open descriptors lead to; nothing where the kernel does not tell."""
    found = set()
    for name in os.listdir(_FOLDER) if os.path.isdir(_FOLDER) else ():
        # Gone already: the one that this very listing was made with.
        with contextlib.suppress(OSError):
            found.add(f"{name} {os.readlink(f'{_FOLDER}/{name}')}")
    return found


def connections(client: Any) -> dict[str, str]:
    """Return the connections that a server has, by their ids, the asking one included."""
    return {c["id"]: f"{c['name']} {c['cmd']} {c['flags']}" for c in client.client_list()}


class Left:
    """What there is now that there was not when this was made."""

    def __init__(self, client: Any) -> None:
        self._client = client
        client.ping()
        gc.collect()
        self._connections = connections(client)
        self._client.connection_pool.disconnect()
        self._descriptors = descriptors()

    def __str__(self) -> str:
        gc.collect()
        # The asking one may be new: the server may have been restarted meanwhile.
        known = {*self._connections, str(self._client.client_id())}
        new = {i: c for i, c in connections(self._client).items() if i not in known}
        # Its socket, which may be another than before.
        self._client.connection_pool.disconnect()
        found = {
            "threads": threads(),
            "descriptors": sorted(descriptors() - self._descriptors),
            "connections": sorted(new.values()),
        }
        return "; ".join(f"{what}: {which}" for what, which in found.items() if which)


@contextlib.contextmanager
def nothing_left(client: Any) -> Iterator[None]:
    """Fail when what runs inside leaves a thread, a descriptor or a connection."""
    left = Left(client)
    yield
    try:
        eventually(lambda: not str(left))
    except AssertionError:
        raise AssertionError(f"left behind: {left}") from None
