"""Whatever client or URL is given, a node posts and receives on connections of its own."""

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
from dtimer.store.connect import source
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
    # Confirmed at the latest when the node has left.
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
def test_settings_of_redis_clients(server, namespace, options):
    """No setting of the user's client changes what arrives."""
    if "max_connections" in options:
        pool = redis.BlockingConnectionPool.from_url(server.url, **options, timeout=1)
        client = redis.Redis.from_pool(pool)
    else:
        client = redis.Redis.from_url(server.url, **options)
    with client:
        _round_trip(client, namespace)


@pytest.mark.fault("F96")
@pytest.mark.parametrize("options", [{}, {"decode_responses": True}], ids=["bytes", "decoding"])
def test_valkey_clients(server, namespace, options):
    """A client of valkey-py does as well as one of redis-py."""
    with valkey.Valkey.from_url(server.url, **options) as client:
        _round_trip(client, namespace)


def test_urls(server, tcp_server, namespace):
    """A URL will do, over TCP and over a unix socket, and in valkey's spelling."""
    for url in (server.url, tcp_server.url, tcp_server.url.replace("redis://", "valkey://")):
        _round_trip(url, namespace)


def test_a_client_for_the_subscription(server, tcp_server, namespace):
    """The subscription may have a client of its own."""
    with redis.Redis.from_url(tcp_server.url) as pub, redis.Redis.from_url(tcp_server.url) as sub:
        _round_trip(pub, namespace, sub)


def test_fakeredis(namespace):
    """An emulation in the process serves users' unit tests."""
    with fakeredis.FakeRedis() as client:
        _round_trip(client, namespace)


def test_embedded(namespace):
    """With no server at hand one of our own is started."""
    _round_trip("embedded:", namespace)


def test_embedded_in_a_folder(namespace, tmp_path):
    """An embedded server keeps its events on disk while nobody is there."""
    url = f"embedded://{tmp_path}/data"
    node = DTimer("first", url, ns=namespace)
    id = node.post({"kept": True}, 60_000)
    node.leave()
    later = DTimer("second", url, ns=namespace)
    assert {"kept": True} == later.peek(id).event
    later.leave()


def test_url_from_the_environment(server, namespace, monkeypatch):
    """Without a client DTIMER_URL says where Redis is."""
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
def test_what_is_no_client(pub, words):
    """What is no client is refused at construction."""
    with pytest.raises(OptionError, match=words):
        DTimer("node", pub)


def test_the_users_pool_is_left_alone(server, namespace):
    """Not one connection is taken out of the user's pool."""
    with redis.Redis.from_url(server.url) as client:
        _round_trip(client, namespace)
        assert 0 == client.connection_pool._created_connections


@pytest.mark.fault("F31")
def test_eviction_is_warned_of(tcp_server, caplog):
    """
    A policy that may evict pending events is named when a node joins, each time: in one
    voice, the log, because it is the server's fault and not the program's.
    """
    with tcp_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    node = DTimer("node", tcp_server.url)
    for _ in range(2):
        caplog.clear()
        # With the warnings of the tests as errors, one of Python's would end this.
        node.join()
        node.leave()
        (told,) = [r for r in caplog.records if r.levelname == "WARNING"]
        assert ("dtimer", True) == (told.name, "allkeys-lru" in told.getMessage())


@pytest.mark.fault("F34")
def test_a_replica_is_warned_of(tcp_server, caplog):
    """A replica cannot serve, and joining one says so."""
    with tcp_server.client() as client:
        client.replicaof("127.0.0.1", 1)
    node = DTimer("node", tcp_server.url, timeout=300)
    with pytest.raises(StoreError, match="open"):
        node.join()
    assert "replica" in caplog.text


def test_a_server_that_says_nothing_about_itself(tcp_server):
    """Where INFO is forbidden a node joins without a warning."""
    with tcp_server.client() as client:
        client.execute_command("ACL", "SETUSER", "quiet", "on", ">pw", "~*", "&*", "+@all", "-info")
    url = tcp_server.url.replace("redis://", "redis://quiet:pw@")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _round_trip(url, "dt")


def test_a_wrong_password_is_refused_at_once(tcp_server):
    """Bad credentials are not tried again and again, and are not repeated in the message."""
    with tcp_server.client() as client:
        client.execute_command("ACL", "SETUSER", "tea", "on", ">right", "~*", "&*", "+@all")
    node = DTimer("node", tcp_server.url.replace("redis://", "redis://tea:wrong@"))
    with pytest.raises(StoreError, match="refuses this client") as caught:
        node.join()
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")


def test_no_permission_to_subscribe(tcp_server):
    """Without pub/sub a node says so, and events come by the poll."""
    with tcp_server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "deaf", "on", ">pw", "~*", "resetchannels", "+@all", "-subscribe"
        )
    node = DTimer("node", tcp_server.url.replace("redis://", "redis://deaf:pw@"), poll_interval=50)
    events, errors = Catch(node, "event"), Catch(node, "error")
    with node:
        assert "wakes do not arrive" in str(errors.next())
        assert node.health().deaf
        node.post({"by": "poll"})
        assert {"by": "poll"} == events.next()[0]


@pytest.mark.fault("F09")
def test_nobody_there():
    """A server that is not there is a StoreError within the deadline, and nothing is left."""
    node = DTimer("node", "redis://127.0.0.1:1", timeout=200)
    with pytest.raises(StoreError, match="could not be reached"):
        node.join()
    assert not node.joined
    with pytest.raises(StoreError, match="could not be reached"):
        node.post({})


@pytest.mark.fault("F37")
def test_a_foreign_namespace(client, server, namespace):
    """A namespace that holds something else refuses to be joined or posted to."""
    client.set(f"dtimer:{{{namespace}}}:due", "x")
    node = DTimer("node", server.url, ns=namespace)
    for call in (node.join, lambda: node.post({}), node.stats):
        with pytest.raises(NamespaceCorrupt, match="due holds a string"):
            call()
    node.leave()


#: Silence on a connection, in seconds, after which the kernel asks whether the other end is there.
IDLE = 30


@pytest.mark.parametrize("library", [redis, valkey], ids=["redis", "valkey"])
def test_connections_are_kept_alive(tcp_server, library):
    """
    A firewall or a NAT forgets a connection that is silent, and the next call on it would wait for
    a reply that cannot come. So the kernel says something now and then on each of ours.
    """
    client = getattr(library, library.__name__.capitalize())(port=tcp_server.port)
    keys = Keys.of("dt")
    way = source(client, 5.0)
    for connection in (way.wire(keys)._make(), way.ear(keys, ["wake"])._make()):
        connection.connect()
        assert 1 == connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert IDLE == connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        connection.disconnect()
    client.close()


def test_the_users_own_times_of_keeping_alive(tcp_server):
    """Who knows the network better has set them on the client, and keeps them."""
    options = {socket.TCP_KEEPIDLE: 77}
    with redis.Redis(
        port=tcp_server.port, socket_keepalive=True, socket_keepalive_options=options
    ) as client:
        connection = source(client, 5.0).wire(Keys.of("dt"))._make()
        connection.connect()
        assert 77 == connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        connection.disconnect()


def test_an_emulation_with_many_descriptors(namespace, monkeypatch):
    """
    A node on fakeredis hears also where its pipe has a descriptor above 1023, which ``select`` does
    not take.
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
