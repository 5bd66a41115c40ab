"""
Put the soak's server into a cluster whose other servers hang now and then.

The soak's server has all slots except the last two, of which each other server has one. The soak's
keys are in slots 2853 and 9853, so the other servers hold no key. But clients may ask them which
server has which slot. The node time-out is an hour, because no server of the cluster may declare a
hanging one dead.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from redis.cluster import RedisCluster
from servers import Server, eventually

#: The arguments of a server of the cluster.
ARGS = ["--cluster-enabled", "yes", "--cluster-node-timeout", "3600000"]

_SLOTS = 16384
_OTHERS = 2


@contextlib.contextmanager
def joined(server: Server, args: list[str]) -> Iterator[list[Server]]:
    """Start the other servers, join them with the running *server* to a cluster, and yield them."""
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(Server(tcp=True, args=args)) for _ in range(_OTHERS)]
        home_client: Any = stack.enter_context(server.client())
        last = _SLOTS - 1 - len(others)
        home_client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, last)
        for i, other in enumerate(others, 1):
            with other.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTS", last + i)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        eventually(lambda: _whole(home_client))
        yield others


def _whole(client: Any) -> bool:
    info = client.cluster("INFO")
    return bool(info["cluster_state"] == "ok" and info["cluster_slots_assigned"] == str(_SLOTS))


def client(url: str, home_port: int, given_up: threading.Event) -> Any:
    """
    Return a client of the cluster that reaches one of its servers through a proxy.

    Args:
        url: The URL of the proxy.
        home_port: The port of the server behind the proxy.
        given_up: Set to make the next failure to connect raise.

    The constructor connects, so it is repeated until the server answers.
    """
    parts = urlsplit(url)
    proxy_address = (parts.hostname, parts.port)
    pause = threading.Event()
    while True:
        try:
            return RedisCluster(
                *proxy_address,
                username=parts.username,
                password=parts.password,
                address_remap=lambda address: proxy_address if address[1] == home_port else address,
                socket_timeout=1,
                socket_connect_timeout=1,
            )
        except Exception:
            if given_up.is_set():
                raise
            pause.wait(0.1)
