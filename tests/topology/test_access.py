"""The permissions of the Redis user where several servers know of each other."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from redis.cluster import RedisCluster
from redis.sentinel import Sentinel
from servers import eventually

import dtimer
from dtimer import DTimer
from dtimer.store import access
from dtimer.testing import Catch

pytestmark = pytest.mark.topology


def allow(client, name, *rules):
    """Have a server know a user with these rules."""
    client.execute_command("ACL", "SETUSER", name, "reset", "on", ">x", *rules)


def works(client):
    """Assert that a node joins, hears, and is handed what is posted; and leaves."""
    node = DTimer("node", client, poll_interval=60_000)
    caught, errors = Catch(node, "event"), Catch(node, "error")
    with node:
        eventually(lambda: node.health().ok)
        node.post({"n": 1}, 20)
        assert {"n": 1} == caught.next()[0]
    assert errors.empty()


def plus(commands):
    """The rules that allow these commands."""
    return [f"+{command}" for command in commands]


def test_a_cluster(cluster):
    """The line for one server, and what the library needs to find its way: nothing more."""
    _, servers = cluster
    for server in servers:
        with server.client() as admin:
            allow(admin, "dtimer", *access.rules("dt").split(), *plus(access.CLUSTER))
    host, port = "127.0.0.1", servers[0].port
    with contextlib.closing(RedisCluster(host, port, username="dtimer", password="x")) as client:
        works(client)


def test_sentinel(sentinel):
    """The line for the master, and one command of each Sentinel."""
    watching, master, _ = sentinel
    (asked,) = watching.sentinels
    with master.client() as admin:
        allow(admin, "dtimer", *access.rules("dt").split())
    allow(asked, "watcher", "-@all", *plus(access.SENTINEL))
    port = asked.connection_pool.connection_kwargs["port"]
    client = Sentinel(
        [("127.0.0.1", port)],
        sentinel_kwargs={"username": "watcher", "password": "x"},
        username="dtimer",
        password="x",
    )
    works(client.master_for("events"))
    for each in client.sentinels:
        each.close()


def test_the_documentation():
    """What the documentation says of them is what was tried."""
    text = (Path(dtimer.__file__).parents[1] / "docs" / "security.rst").read_text()
    assert ", ".join(f"``{rule}``" for rule in plus(access.CLUSTER)) in text
    assert f"``-@all {' '.join(plus(access.SENTINEL))}``" in text
