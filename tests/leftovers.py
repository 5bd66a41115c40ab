"""Check that a node leaves nothing behind: no thread, no descriptor, no connection."""

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
    """Return the names of all threads of nodes in this process."""
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("dtimer-"))


def descriptors() -> set[str]:
    """Return the open descriptors and their targets; empty on a system without ``/proc``."""
    found = set()
    for name in os.listdir(_FOLDER) if os.path.isdir(_FOLDER) else ():
        # The descriptor that listed the folder is closed already.
        with contextlib.suppress(OSError):
            found.add(f"{name} {os.readlink(f'{_FOLDER}/{name}')}")
    return found


def connections(client: Any) -> dict[str, str]:
    """Return the connections of a server by id, including the client's own."""
    return {c["id"]: f"{c['name']} {c['cmd']} {c['flags']}" for c in client.client_list()}


class Leftovers:
    """Threads, descriptors and connections that did not exist when this object was made."""

    def __init__(self, client: Any) -> None:
        self._client = client
        client.ping()
        gc.collect()
        self._connections = connections(client)
        self._client.connection_pool.disconnect()
        self._descriptors = descriptors()

    def __str__(self) -> str:
        gc.collect()
        # This client's own connection may be new: the server may have been restarted.
        known = {*self._connections, str(self._client.client_id())}
        new = {i: c for i, c in connections(self._client).items() if i not in known}
        # Close this client's own socket: it would count as a new descriptor.
        self._client.connection_pool.disconnect()
        found = {
            "threads": threads(),
            "descriptors": sorted(descriptors() - self._descriptors),
            "connections": sorted(new.values()),
        }
        return "; ".join(f"{what}: {which}" for what, which in found.items() if which)


@contextlib.contextmanager
def nothing_left(client: Any) -> Iterator[None]:
    """Fail if the body leaves a thread, a descriptor or a connection behind."""
    left = Leftovers(client)
    yield
    try:
        eventually(lambda: not str(left))
    except AssertionError:
        raise AssertionError(f"left behind: {left}") from None
