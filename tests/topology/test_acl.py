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
    """A cluster needs the rules for one server, and the commands that find the right server."""
    _, servers = cluster
    for server in servers:
        with server.client() as admin:
            allow(admin, "dtimer", *acl.rules("dt").split(), *plus(acl.CLUSTER))
    host, port = "127.0.0.1", servers[0].port
    with contextlib.closing(RedisCluster(host, port, username="dtimer", password="x")) as client:
        works(client)


def test_a_node_works_under_sentinel_with_the_documented_permissions_only(sentinel):
    """The rules for one server suffice on the master; a Sentinel must allow one command."""
    sentinel_of_master, master, _ = sentinel
    (sentinel_client,) = sentinel_of_master.sentinels
    with master.client() as admin:
        allow(admin, "dtimer", *acl.rules("dt").split())
    allow(sentinel_client, "watcher", "-@all", *plus(acl.SENTINEL))
    port = sentinel_client.connection_pool.connection_kwargs["port"]
    client = Sentinel(
        [("127.0.0.1", port)],
        sentinel_kwargs={"username": "watcher", "password": "x"},
        username="dtimer",
        password="x",
    )
    works(client.master_for("events"))
    for each in client.sentinels:
        each.close()


def test_the_docs_list_the_permissions_that_these_tests_use():
    """An administrator copies the rules from the docs, so they must be the tested ones."""
    text = (Path(dtimer.__file__).parents[1] / "docs" / "security.rst").read_text()
    assert ", ".join(f"``{rule}``" for rule in plus(acl.CLUSTER)) in text
    assert f"``-@all {' '.join(plus(acl.SENTINEL))}``" in text
