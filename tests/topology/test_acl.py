"""The permissions that the Redis user needs under Sentinel and Cluster."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from redis.cluster import RedisCluster
from redis.sentinel import Sentinel
from servers import eventually

import dtimer
from dtimer import DTimer
from dtimer.store import acl
from dtimer.testing import Catch

pytestmark = pytest.mark.topology


def allow(client, name, *rules):
    """Create a user with these rules on a server."""
    client.execute_command("ACL", "SETUSER", name, "reset", "on", ">x", *rules)


def works(client):
    """Assert that a node joins, hears wakes, receives a posted event, and leaves."""
    node = DTimer("node", client, poll_interval=60_000)
    caught, errors = Catch(node, "event"), Catch(node, "error")
    with node:
        eventually(lambda: node.health().ok)
        node.post({"n": 1}, 20)
        assert {"n": 1} == caught.next()[0]
    assert errors.empty()


def plus(commands):
    """Return the rules that allow these commands."""
    return [f"+{command}" for command in commands]


def test_a_node_works_in_a_cluster_with_the_documented_permissions_only(cluster):
    """A node needs the permissions for a single server, and the commands that find the server."""
    _, servers = cluster
    for server in servers:
        with server.client() as admin:
            allow(admin, "dtimer", *acl.rules("dt").split(), *plus(acl.CLUSTER))
    host, port = "127.0.0.1", servers[0].port
    with contextlib.closing(RedisCluster(host, port, username="dtimer", password="x")) as client:
        works(client)


def test_a_node_works_under_sentinel_with_the_documented_permissions_only(sentinel):
    """
    On the master, a node needs the permissions for a single server.

    On a Sentinel, which has its own users, it needs only the command that finds the master.
    """
    discovery, master, _ = sentinel
    (sentinel_admin,) = discovery.sentinels
    with master.client() as admin:
        allow(admin, "dtimer", *acl.rules("dt").split())
    allow(sentinel_admin, "watcher", "-@all", *plus(acl.SENTINEL))
    port = sentinel_admin.connection_pool.connection_kwargs["port"]
    restricted = Sentinel(
        [("127.0.0.1", port)],
        sentinel_kwargs={"username": "watcher", "password": "x"},
        username="dtimer",
        password="x",
    )
    works(restricted.master_for("events"))
    for each in restricted.sentinels:
        each.close()


def test_the_docs_list_the_permissions_that_these_tests_use():
    """An administrator copies the rules from the docs, so they must be the tested ones."""
    text = (Path(dtimer.__file__).parents[1] / "docs" / "security.rst").read_text()
    assert ", ".join(f"``{rule}``" for rule in plus(acl.CLUSTER)) in text
    assert f"``-@all {' '.join(plus(acl.SENTINEL))}``" in text
