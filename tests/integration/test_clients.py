"""A node posts and receives over its own connections, with any kind of client or URL."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings

import fakeredis
import pytest
import redis
import valkey

from dtimer import DTimer, StoreError
from dtimer.store.connection.sources import source
from dtimer.store.keys import Keys
from dtimer.testing import Catch

PAYLOAD = {"a": [], "n": 9007199254740993, "u": "\ud800", "x": 1e22}


def round_trip(pub, namespace, sub=None):
    node = DTimer("node", pub, sub, ns=namespace)
    caught = Catch(node, "event")
    with node:
        id = node.post(PAYLOAD, 1)
        (event,) = caught.next()
        assert PAYLOAD == event
        assert id == event.id
    # By the time the node has left, the event must be confirmed.
    assert 0 == node.stats().in_flight
    node.leave()


CLIENTS = {
    "default": {},
    "decoding": {"decode_responses": True},
    "resp2": {"protocol": 2},
    "resp3": {"protocol": 3},
    "resp3-decoding": {"protocol": 3, "decode_responses": True},
    "single": {"single_connection_client": True},
    "small-pool": {"max_connections": 1},
    "checked": {"health_check_interval": 1},
    "impatient": {"socket_timeout": 0.001},
    "retrying": {"retry_on_timeout": True},
    "latin": {"encoding": "latin-1"},
}


@pytest.mark.fault("F96")
@pytest.mark.parametrize("options", CLIENTS.values(), ids=CLIENTS)
def test_client_settings_do_not_change_a_payload(server, namespace, options):
    """No setting of the user's client changes the payload that arrives."""
    if "max_connections" in options:
        pool = redis.BlockingConnectionPool.from_url(server.url, **options, timeout=1)
        client = redis.Redis.from_pool(pool)
    else:
        client = redis.Redis.from_url(server.url, **options)
    with client:
        round_trip(client, namespace)


@pytest.mark.fault("F96")
@pytest.mark.parametrize("options", [{}, {"decode_responses": True}], ids=["bytes", "decoding"])
def test_valkey_clients_work(server, namespace, options):
    """A client of valkey-py works as well as one of redis-py."""
    with valkey.Valkey.from_url(server.url, **options) as client:
        round_trip(client, namespace)


def test_redis_unix_and_valkey_urls_work(server, tcp_server, namespace):
    """A URL may lead to TCP or to a unix socket, and may have the valkey scheme."""
    for url in (server.url, tcp_server.url, tcp_server.url.replace("redis://", "valkey://")):
        round_trip(url, namespace)


def test_the_subscription_may_have_its_own_client(server, tcp_server, namespace):
    """A node accepts a second client for the subscription."""
    with redis.Redis.from_url(tcp_server.url) as pub, redis.Redis.from_url(tcp_server.url) as sub:
        round_trip(pub, namespace, sub)


def test_fakeredis_works(namespace):
    """An in-process emulation works, so users can write unit tests with fakeredis."""
    with fakeredis.FakeRedis() as client:
        round_trip(client, namespace)


def test_embedded_url_starts_a_server(namespace):
    """The URL ``embedded:`` starts a server in memory."""
    round_trip("embedded:", namespace)


def test_an_embedded_server_in_a_folder_keeps_its_events(namespace, tmp_path):
    """An embedded server in a folder keeps its events on disk while no process uses it."""
    url = f"embedded://{tmp_path}/data"
    node = DTimer("first", url, ns=namespace)
    id = node.post({"kept": True}, 60_000)
    node.leave()
    later = DTimer("second", url, ns=namespace)
    assert {"kept": True} == later.peek(id).event
    later.leave()


def test_dtimer_url_is_the_default(server, namespace, monkeypatch):
    """Without a client or URL, a node connects to the Redis at ``DTIMER_URL``."""
    monkeypatch.setenv("DTIMER_URL", server.url)
    round_trip(None, namespace)


def test_the_users_pool_is_not_used(server, namespace):
    """A node takes no connection from the user's pool."""
    with redis.Redis.from_url(server.url) as client:
        round_trip(client, namespace)
        assert 0 == client.connection_pool._created_connections


@pytest.mark.fault("F31")
def test_each_join_logs_an_eviction_policy(tcp_server, caplog):
    """The log is the place for a fault of the server that is not one of the program."""
    with tcp_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    node = DTimer("node", tcp_server.url)
    for _ in range(2):
        caplog.clear()
        # The test suite turns warnings into errors, so a Python warning would end this test.
        node.join()
        node.leave()
        (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
        assert ("dtimer", True) == (warning.name, "allkeys-lru" in warning.getMessage())


@pytest.mark.fault("F34")
def test_joining_a_replica_fails_and_names_it(tcp_server, caplog):
    """A replica cannot serve a node; the log says that the server is one."""
    with tcp_server.client() as client:
        client.replicaof("127.0.0.1", 1)
    node = DTimer("node", tcp_server.url, timeout=300)
    with pytest.raises(StoreError, match="open"):
        node.join()
    assert "replica" in caplog.text


def test_a_node_joins_without_a_warning_if_info_is_forbidden(tcp_server):
    """If the user may not run INFO, a node joins without a warning."""
    with tcp_server.client() as client:
        client.execute_command("ACL", "SETUSER", "quiet", "on", ">pw", "~*", "&*", "+@all", "-info")
    url = tcp_server.url.replace("redis://", "redis://quiet:pw@")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        round_trip(url, "dt")


#: The seconds of silence on a connection after which the kernel probes the other end.
IDLE = 30


@contextlib.contextmanager
def connected(connection):
    """Connect a connection of dtimer's own, and return its socket."""
    connection = connection._make_connection()
    connection.connect()
    yield connection._sock
    connection.disconnect()


@pytest.mark.parametrize("library", [redis, valkey], ids=["redis", "valkey"])
def test_connections_use_tcp_keepalive(tcp_server, library):
    """
    A firewall or a NAT forgets a silent connection, and the next call on it would wait for a reply
    that cannot come. Kernel probes keep each connection alive.
    """
    keys = Keys.of("dt")
    with getattr(library, library.__name__.capitalize())(port=tcp_server.port) as client:
        server_source = source(client, 5.0)
        for connection in (
            server_source.connection(keys),
            server_source.subscription(keys, ["wake"]),
        ):
            with connected(connection) as line:
                assert 1 == line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert IDLE == line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)


def test_the_users_keepalive_times_are_kept(tcp_server):
    """The user knows the network."""
    options = {"socket_keepalive_options": {socket.TCP_KEEPIDLE: 77}, "socket_keepalive": True}
    with (
        redis.Redis(port=tcp_server.port, **options) as client,
        connected(source(client, 5.0).connection(Keys.of("dt"))) as line,
    ):
        assert 77 == line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)


@pytest.mark.parametrize("library", [redis, valkey], ids=["redis", "valkey"])
def test_keepalive_that_the_user_has_switched_off_stays_off(tcp_server, library):
    """A device on battery, or a metered connection, may not want packets that carry no data."""
    make_client = getattr(library, library.__name__.capitalize())
    with (
        make_client(port=tcp_server.port, socket_keepalive=False) as client,
        connected(source(client, 5.0).connection(Keys.of("dt"))) as line,
    ):
        assert 0 == line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_fakeredis_wakes_arrive_with_descriptors_above_1023(namespace, monkeypatch):
    """``select`` does not accept such a descriptor."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    descriptors = [0]
    try:
        while descriptors[-1] < 1100:
            descriptors.append(os.dup(0))
        with fakeredis.FakeRedis() as client:
            round_trip(client, namespace)
    finally:
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
