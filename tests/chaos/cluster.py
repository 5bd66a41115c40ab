"""
The server of a soak as one of a cluster, beside others that hang now and then.

It has all slots but one for each of the others: so these are asked where the keys are, and are
never in the way. Their time-out is an hour, so that none of them takes another for dead.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from redis.cluster import RedisCluster
from servers import Server, eventually

#: What makes a server one of a cluster.
ARGS = ["--cluster-enabled", "yes", "--cluster-node-timeout", "3600000"]

_SLOTS = 16384
_OTHERS = 2


@contextlib.contextmanager
def joined(server: Server, args: list[str]) -> Iterator[list[Server]]:
    """Give a *server* that runs, with `ARGS`, the others of its cluster; yield those."""
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(Server(tcp=True, args=args)) for _ in range(_OTHERS)]
        home: Any = stack.enter_context(server.client())
        last = _SLOTS - 1 - len(others)
        home.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, last)
        for i, other in enumerate(others, 1):
            with other.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTS", last + i)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        eventually(lambda: _whole(home))
        yield others


def _whole(client: Any) -> bool:
    info = client.cluster("INFO")
    return bool(info["cluster_state"] == "ok" and info["cluster_slots_assigned"] == str(_SLOTS))


def client(url: str, home: int, given_up: threading.Event) -> Any:
    """
    Return a client of the cluster whose server at the port *home* is reached by *url*.

    Making it connects, so it is tried until the server is there, or until *given_up*.
    """
    parts = urlsplit(url)
    way = (parts.hostname, parts.port)
    pause = threading.Event()
    while True:
        try:
            return RedisCluster(
                *way,
                username=parts.username,
                password=parts.password,
                address_remap=lambda address: way if address[1] == home else address,
                socket_timeout=1,
                socket_connect_timeout=1,
            )
        except Exception:
            if given_up.is_set():
                raise
            pause.wait(0.1)
