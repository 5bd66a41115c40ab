"""A node posts and receives over its own connections, with any kind of client or URL."""

from __future__ import annotations

import os
import socket
import warnings

import fakeredis
import pytest
import redis
import redis.asyncio
import valkey

from dtimer import DTimer, NamespaceCorrupt, OptionError, StoreError
from dtimer.store.connection.sources import source
from dtimer.store.keys import Keys
from dtimer.testing import Catch

PAYLOAD = {"a": [], "n": 9007199254740993, "u": "\ud800", "x": 1e22}


def _round_trip(pub, namespace, sub=None):
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
        _round_trip(client, namespace)


@pytest.mark.fault("F96")
@pytest.mark.parametrize("options", [{}, {"decode_responses": True}], ids=["bytes", "decoding"])
def test_valkey_clients_work(server, namespace, options):
    """A client of valkey-py works as well as one of redis-py."""
    with valkey.Valkey.from_url(server.url, **options) as client:
        _round_trip(client, namespace)


def test_redis_unix_and_valkey_urls_work(server, tcp_server, namespace):
    """A URL may lead to TCP or to a unix socket, and may have the valkey scheme."""
    for url in (server.url, tcp_server.url, tcp_server.url.replace("redis://", "valkey://")):
        _round_trip(url, namespace)


def test_the_subscription_may_have_its_own_client(server, tcp_server, namespace):
    """A node accepts a second client for the subscription."""
    with redis.Redis.from_url(tcp_server.url) as pub, redis.Redis.from_url(tcp_server.url) as sub:
        _round_trip(pub, namespace, sub)


def test_fakeredis_works(namespace):
    """An in-process emulation works, so users can write unit tests with fakeredis."""
    with fakeredis.FakeRedis() as client:
        _round_trip(client, namespace)


def test_embedded_url_starts_a_server(namespace):
    """The URL ``embedded:`` starts a server in memory."""
    _round_trip("embedded:", namespace)


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
    _round_trip(None, namespace)


@pytest.mark.parametrize(
    ("pub", "words"),
    [
        (42, "redis or valkey clients or URLs"),
        (object(), "redis or valkey clients or URLs"),
        ("http://localhost", "scheme 'http' is not known"),
        ("localhost:6379", "is not known"),
        ("redis://localhost:port", "cannot be understood"),
        (redis.asyncio.Redis(), "synchronous"),
        ("embedded://relative/path", "embedded"),
    ],
    ids=["number", "object", "http", "bare", "bad-port", "asyncio", "bad-embedded"],
)
def test_an_unusable_client_is_refused_at_construction(pub, words):
    """The constructor refuses an argument that is neither a known client nor a valid URL."""
    with pytest.raises(OptionError, match=words):
        DTimer("node", pub)


def test_the_users_pool_is_not_used(server, namespace):
    """A node takes no connection from the user's pool."""
    with redis.Redis.from_url(server.url) as client:
        _round_trip(client, namespace)
        assert 0 == client.connection_pool._created_connections


@pytest.mark.fault("F31")
def test_each_join_logs_an_eviction_policy(tcp_server, caplog):
    """
    Each join logs a policy that may evict pending events. The log is the only place that reports
    it, because the server is at fault and not the program.
    """
    with tcp_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    node = DTimer("node", tcp_server.url)
    for _ in range(2):
        caplog.clear()
        # The test suite turns warnings into errors, so a Python warning would end this test.
        node.join()
        node.leave()
        (told,) = [r for r in caplog.records if r.levelname == "WARNING"]
        assert ("dtimer", True) == (told.name, "allkeys-lru" in told.getMessage())


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
        _round_trip(url, "dt")


def test_a_wrong_password_fails_at_once(tcp_server):
    """Bad credentials are not tried repeatedly, and the error does not repeat the password."""
    with tcp_server.client() as client:
        client.execute_command("ACL", "SETUSER", "tea", "on", ">right", "~*", "&*", "+@all")
    node = DTimer("node", tcp_server.url.replace("redis://", "redis://tea:wrong@"))
    with pytest.raises(StoreError, match="refuses this client") as caught:
        node.join()
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")


@pytest.mark.fault("F09")
def test_an_unreachable_server_is_a_store_error():
    """
    If no server listens, join and post raise a StoreError within the deadline, and the node has not
    joined.
    """
    node = DTimer("node", "redis://127.0.0.1:1", timeout=200)
    with pytest.raises(StoreError, match="could not be reached"):
        node.join()
    assert not node.joined
    with pytest.raises(StoreError, match="could not be reached"):
        node.post({})


@pytest.mark.fault("F37")
def test_a_foreign_namespace_is_refused(client, server, namespace):
    """If the keys of a namespace hold foreign data, joining, posting and reading are refused."""
    client.set(f"dtimer:{{{namespace}}}:due", "x")
    node = DTimer("node", server.url, ns=namespace)
    for call in (node.join, lambda: node.post({}), node.stats):
        with pytest.raises(NamespaceCorrupt, match="due holds a string"):
            call()
    node.leave()


#: The seconds of silence on a connection after which the kernel probes the other end.
IDLE = 30


@pytest.mark.parametrize("library", [redis, valkey], ids=["redis", "valkey"])
def test_connections_use_tcp_keepalive(tcp_server, library):
    """
    A firewall or a NAT forgets a silent connection, and the next call on it would wait for a reply
    that cannot come. Kernel probes keep each connection alive.
    """
    client = getattr(library, library.__name__.capitalize())(port=tcp_server.port)
    keys = Keys.of("dt")
    way = source(client, 5.0)
    for connection in (
        way.connection(keys)._make_connection(),
        way.subscription(keys, ["wake"])._make_connection(),
    ):
        connection.connect()
        assert 1 == connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert IDLE == connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        connection.disconnect()
    client.close()


def test_the_users_keepalive_times_are_kept(tcp_server):
    """
    Keepalive times that the user set on the client are copied, because the user knows the
    network.
    """
    options = {socket.TCP_KEEPIDLE: 77}
    with redis.Redis(
        port=tcp_server.port, socket_keepalive=True, socket_keepalive_options=options
    ) as client:
        connection = source(client, 5.0).connection(Keys.of("dt"))._make_connection()
        connection.connect()
        assert 77 == connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        connection.disconnect()


@pytest.mark.parametrize("library", [redis, valkey], ids=["redis", "valkey"])
def test_keepalive_that_the_user_has_switched_off_stays_off(tcp_server, library):
    """A device on battery, or a metered connection, may not want packets that carry no data."""
    kind = getattr(library, library.__name__.capitalize())
    with kind(port=tcp_server.port, socket_keepalive=False) as client:
        connection = source(client, 5.0).connection(Keys.of("dt"))._make_connection()
        connection.connect()
        assert 0 == connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        connection.disconnect()


def test_fakeredis_wakes_arrive_with_descriptors_above_1023(namespace, monkeypatch):
    """
    A node on fakeredis is woken even if its pipe has a descriptor above 1023, which ``select`` does
    not accept.
    """
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    many = []
    try:
        while not many or many[-1] < 1100:
            many.append(os.dup(0))
        with fakeredis.FakeRedis() as client:
            _round_trip(client, namespace)
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
