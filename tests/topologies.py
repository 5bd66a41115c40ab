"""Servers that know of each other: a cluster, and a master with a replica and a sentinel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from redis.cluster import ClusterNode, RedisCluster
from redis.sentinel import Sentinel
from servers import Server, eventually, server_binary


class SentinelServer(Server):
    """A sentinel that watches one master, alone and impatient."""

    def __init__(self, master: Server) -> None:
        super().__init__(tcp=True)
        self._config = self.folder / "sentinel.conf"
        self._config.write_text(
            f"sentinel monitor events 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds events 500\n"
            "sentinel failover-timeout events 3000\n"
        )

    def _command(self) -> list[str]:
        return [server_binary(), str(self._config), "--sentinel", "--port", str(self.port)]


@contextlib.contextmanager
def watched_by_sentinel() -> Iterator[tuple[Sentinel, Server, Server]]:
    """A master, a replica of it that is in step, and a sentinel's client."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(Server(tcp=True))
        replica = stack.enter_context(master.replica())
        watch = stack.enter_context(SentinelServer(master))
        client = Sentinel([("127.0.0.1", watch.port)], socket_timeout=1)
        stack.callback(lambda: [c.close() for c in client.sentinels])
        eventually(lambda: client.sentinels[0].sentinel_slaves("events"))
        yield client, master, replica


@contextlib.contextmanager
def three_masters() -> Iterator[tuple[RedisCluster, list[Server]]]:
    """A cluster of three masters, and a client of it."""
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(tcp=True, args=options)) for _ in range(3)]
        clients: list[Any] = [stack.enter_context(s.client()) for s in servers]
        for i, client in enumerate(clients):
            slots = range(i * 16384 // 3, (i + 1) * 16384 // 3)
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        for client in clients:
            eventually(
                lambda c=client: (
                    c.cluster("INFO")["cluster_state"] == "ok"
                    and c.cluster("INFO")["cluster_known_nodes"] == "3"
                )
            )
        nodes = [ClusterNode("127.0.0.1", s.port) for s in servers]
        with contextlib.closing(RedisCluster(startup_nodes=nodes)) as client:
            yield client, servers
