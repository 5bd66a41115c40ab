"""Nodes under Sentinel and Cluster, with real servers: they join, receive, survive a failover."""

from __future__ import annotations

import contextlib

import pytest
from leftovers import nothing_left
from redis.cluster import ClusterNode, RedisCluster
from servers import Server, eventually
from topologies import holder
from valkey.cluster import ClusterNode as ValkeyNode
from valkey.cluster import ValkeyCluster

from dtimer import DTimer, NotReplicated
from dtimer.testing import Catch

pytestmark = pytest.mark.topology


def test_a_node_posts_and_receives_through_a_client_of_sentinel(sentinel):
    """The node must ask the Sentinel for the master, as the client does."""
    client, _, _ = sentinel
    node = DTimer("node", client.master_for("events"))
    events = Catch(node, "event")
    with node:
        node.post({"n": 1}, 20)
        assert {"n": 1} == events.next()[0]


def test_leave_closes_the_connections_to_the_sentinels(sentinel):
    """A node that joins and leaves repeatedly must not collect connections."""
    client, _, _ = sentinel
    (sentinel_client,) = client.sentinels
    node = DTimer("node", client.master_for("events"))
    with nothing_left(sentinel_client):
        for _ in range(2):
            with node:
                node.post({}, 10_000)


def test_a_forked_child_closes_the_connections_to_the_sentinels(sentinel):
    """An inherited descriptor keeps the parent's connection open, and the Sentinel counts it."""
    client, _, _ = sentinel
    node = DTimer("node", client.master_for("events"))
    node.post({}, 10_000)
    (sentinel_client,) = node._store.server.source._sentinels
    inherited = list(sentinel_client.connection_pool._available_connections)
    assert [True] == [c._sock is not None for c in inherited]
    # As the hook does in the child.
    node._after_fork()
    assert [False] == [c._sock is not None for c in inherited]
    assert node.stats().scheduled == 1
    node.leave()


def test_a_node_continues_on_the_new_master_after_a_failover(sentinel):
    """The node asks the Sentinel again when the connection breaks, and finds its events there."""
    client, master, replica = sentinel
    node = DTimer("node", client.master_for("events"), timeout=1_000, poll_interval=100)
    events, disconnected, connected = (
        Catch(node, e, 30) for e in ("event", "disconnected", "connected")
    )
    node.on("error", lambda e: None)
    with node:
        connected.next()
        node.post({"n": 1}, id="before", at=4_000_000_000_000)
        with replica.client() as copy:
            eventually(lambda: copy.zscore("dtimer:{dt}:due", "before") is not None)
        master.kill9()
        disconnected.next()
        connected.next()
        assert {"n": 1} == node.peek("before").event
        node.post({"n": 2})
        assert {"n": 2} == events.next()[0]


def test_a_namespace_of_a_cluster_is_on_one_server_and_wakes_arrive(cluster):
    """All keys of a namespace have one hash tag, and pub/sub reaches every server of a cluster."""
    client, _ = cluster
    for ns in ("one", "two", "three", "four"):
        node = DTimer("node", client, ns=ns, poll_interval=60_000)
        other = DTimer("other", client, ns=ns)
        events = Catch(node, "event")
        with node:
            other.post({"in": ns}, 20)
            assert {"in": ns} == events.next()[0]
            assert node.stats().totals["posted"] == 1
        other.leave()


def client_of(library, servers):
    """Make a client of *library* for the cluster of *servers*."""
    if library == "redis":
        return RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", s.port) for s in servers])
    return ValkeyCluster(startup_nodes=[ValkeyNode("127.0.0.1", s.port) for s in servers])


@pytest.mark.parametrize("library", ["redis", "valkey"])
def test_posts_in_a_pipeline_of_a_cluster_are_stored(cluster, library):
    """The clients keep the commands of such a pipeline in different forms."""
    _, servers = cluster
    with contextlib.closing(client_of(library, servers)) as client:
        timer = DTimer("node", client)
        pipe = client.pipeline()
        for n in range(3):
            timer.post({"n": n}, 10_000, id=f"e{n}", pipe=pipe)
        pipe.execute()
        assert [{"n": 0}, {"n": 1}, {"n": 2}] == [record.event for record in timer.upcoming()]
        timer.leave()


@pytest.mark.parametrize("library", ["redis", "valkey"])
def test_a_call_follows_a_redirection_before_the_other_servers_know_of_it(cluster, library):
    """After a failover or a migration, a server may still name the previous owner of the slot."""
    _, servers = cluster
    with contextlib.closing(client_of(library, servers)) as client:
        owner = holder("dt", client, servers)
        stale = next(s.port for s in servers if s is not owner)
        timer = DTimer("node", client)
        timer._store.server.source._look_up = lambda slot, until: ("127.0.0.1", stale)
        timer.post({}, 10_000, id="tea")
        assert timer.peek("tea") is not None
        timer.leave()


def test_wait_replicas_counts_the_replicas_of_the_server_that_holds_the_namespace(own_cluster):
    """Replicas of other servers of the cluster do not make the event durable."""
    client, servers = own_cluster
    master = holder("dt", client, servers)
    node = DTimer("node", client, timeout=2_000)
    with pytest.raises(NotReplicated) as raised:
        node.post({"n": 1}, 10_000, wait_replicas=1)
    assert 0 == raised.value.acknowledged
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"]
    with Server(tcp=True, args=options) as replica, replica.client() as replica_client:
        with master.client() as known:
            id = known.execute_command("CLUSTER", "MYID").decode()
        replica_client.execute_command("CLUSTER", "MEET", "127.0.0.1", master.port)
        eventually(lambda: id in str(replica_client.execute_command("CLUSTER", "NODES")))
        replica_client.execute_command("CLUSTER", "REPLICATE", id)
        eventually(lambda: replica_client.info("replication").get("master_link_status") == "up")
        event = node.post({"n": 2}, 10_000, wait_replicas=1)
        replica_client.execute_command("READONLY")
        assert replica_client.zscore("dtimer:{dt}:due", event) is not None
        replica.pause()
        with pytest.raises(NotReplicated):
            node.post({"n": 3}, 10_000, wait_replicas=1)
        replica.resume()
    assert 3 == node.stats().totals["posted"]
    node.leave()
