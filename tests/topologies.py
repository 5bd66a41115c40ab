"""Set up Redis Cluster (three masters) and Sentinel (a master with a replica)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.sentinel import Sentinel
from servers import Server, eventually, server_binary

from dtimer.store.keys import Keys


class SentinelServer(Server):
    """A sentinel that watches one master, decides alone, and fails over after 0.5 s."""

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
def watched_by_sentinel() -> Iterator[tuple[Sentinel, Server, Server, Server]]:
    """Yield a client of Sentinel, a master, a replica of it in sync, and the sentinel."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(Server(tcp=True))
        replica = stack.enter_context(master.replica())
        watch = stack.enter_context(SentinelServer(master))
        client = Sentinel([("127.0.0.1", watch.port)], socket_timeout=1)
        stack.callback(lambda: [c.close() for c in client.sentinels])
        (asked,) = client.sentinels
        # Wait for the replica: until then the sentinel has no candidate to promote.
        eventually(
            lambda: [s["master-link-status"] for s in asked.sentinel_slaves("events")] == ["ok"]
        )
        yield client, master, replica, watch


@contextlib.contextmanager
def three_masters() -> Iterator[tuple[RedisCluster, list[Server]]]:
    """Yield a client of a cluster, and its three masters."""
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


def holder(ns: str, client: Any, servers: list[Server]) -> Server:
    """Return the server of a cluster that holds the keys of a namespace."""
    port = client.get_node_from_key(Keys.of(ns).due).port
    return next(server for server in servers if server.port == port)


def migrate(ns: str, servers: list[Server], source: Server, target: Server) -> Iterator[None]:
    """
    Move the slot of a namespace from one server of a cluster to another, as operators do.

    Yields before the first key, after each key, and when all servers know the new owner.
    """
    slot = key_slot(Keys.of(ns).due.encode())
    with contextlib.ExitStack() as stack:
        clients: dict[Server, Any] = {s: stack.enter_context(s.client()) for s in servers}

        def cluster(server: Server, *words: object) -> Any:
            return clients[server].execute_command("CLUSTER", *words)

        ids = {server: cluster(server, "MYID").decode() for server in servers}
        cluster(target, "SETSLOT", slot, "IMPORTING", ids[source])
        cluster(source, "SETSLOT", slot, "MIGRATING", ids[target])
        yield
        while keys := cluster(source, "GETKEYSINSLOT", slot, 1):
            clients[source].migrate("127.0.0.1", target.port, keys, 0, 5_000)
            yield
        for server in (target, source, *servers):
            cluster(server, "SETSLOT", slot, "NODE", ids[target])
        yield
