"""Faults F09 to F11 and F13 to F15: a connection cannot be made, or is closed by the server."""

from __future__ import annotations

import contextlib
import re
import socket
import time

import pytest
import redis
from chaos.settings import CALL_LIMIT, HASTY
from servers import LATER, PROMPT, close_connections, eventually

from dtimer import StoreError
from faults.calls import definite_failure

pytestmark = pytest.mark.chaos


class TestUnreachableServer:
    """No server accepts the connection."""

    @pytest.mark.fault("F09")
    def test_a_node_connects_again_when_the_server_is_back(self, watch, own_server):
        """The pauses grow. No acknowledged post is lost, and a call fails by its deadline."""
        node = watch.node()
        caller = watch.caller(**HASTY)
        before = watch.post(500)
        with watch.fault() as fault:
            own_server.kill9()
            with definite_failure("could not be reached"):
                watch.in_time(caller.post, {})
            with pytest.raises(StoreError, match="could not be reached"):
                watch.in_time(caller.join)
            assert not caller.joined
            fault.felt(1.0)
            own_server.start()
        watch.wait_handled(before)
        assert ["disconnected"] == [n for _, n, _ in node.said if n == "disconnected"]
        (error,) = node.errors
        assert "does not answer; the node keeps trying" in str(error)

    @pytest.mark.fault("F09")
    def test_an_outage_is_logged_once_without_an_error_listener(self, watch, own_server):
        """A line for each failed attempt would flood the log. A second line is allowed."""
        node = watch.node()
        node.timer.remove_all_listeners("error")
        own_server.kill9()
        eventually(lambda: node.heard("disconnected"))
        tries = watch.gauges.connects
        eventually(lambda: watch.gauges.connects > tries + 8)
        own_server.start()
        watch.assert_recovery()
        lines = watch.gauges.lines
        assert 1 <= len(lines) <= 2
        assert re.match(r"dtimer: Redis at \S+ does not answer; the node keeps trying", lines[0])

    @pytest.mark.fault("F10")
    def test_calls_and_leave_return_in_time_if_a_connect_hangs(self, watch, own_server):
        """A firewall that drops packets neither accepts nor refuses. Connecting has a deadline."""
        node, stuck = watch.node(), watch.node("stuck")
        with watch.fault(node) as fault:
            own_server.kill9()
            with _full_backlog(own_server.port):
                caller = watch.caller(**HASTY)
                for call in (lambda: caller.post({}), caller.join):
                    with pytest.raises(StoreError, match="could not be reached"):
                        watch.in_time(call)
                fault.felt(1.0)
                began = time.monotonic()
                stuck.timer.leave(100)
                assert time.monotonic() - began < CALL_LIMIT
                assert not stuck.timer.joined
            own_server.start()
            # It could not leave the roster. Other nodes would remove it only after a minute.
            watch.forget(stuck)


@contextlib.contextmanager
def _full_backlog(port):
    """Fill the backlog of a port, so that it neither accepts nor refuses connections."""
    with contextlib.ExitStack() as sockets:
        listening = sockets.enter_context(socket.socket())
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(0)
        while True:
            waiting = sockets.enter_context(socket.socket())
            waiting.settimeout(0.05)
            try:
                waiting.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        yield


class Names:
    """
    A name service with one name.

    Args:
        monkeypatch: Installs it in this process.
        port: The local port that the name leads to; None if the name cannot be resolved.
    """

    NAME = "redis.dtimer.test"

    def __init__(self, monkeypatch, port):
        self.port = port
        self.lookups = 0
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host, port, *args, **kwargs):
        if host != self.NAME:
            return self._real(host, port, *args, **kwargs)
        self.lookups += 1
        if self.port is None:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._real("127.0.0.1", self.port, *args, **kwargs)


@pytest.mark.fault("F11")
class TestHostName:
    """The name of the server cannot be resolved, or its address changes."""

    @pytest.fixture
    def names(self, monkeypatch, proxy):
        return Names(monkeypatch, proxy.port)

    @pytest.fixture
    def url(self, own_server, names):
        with own_server.client() as client:
            client.execute_command("ACL", "SETUSER", "tea", "on", ">kettle", "~*", "&*", "+@all")
        return f"redis://tea:kettle@{names.NAME}:6379/0"

    def test_a_name_that_cannot_be_resolved_is_looked_up_again(self, watch, proxy, names, url):
        """Errors name the host, so that an operator can check it, and hide the password."""
        node = watch.node(url=url)
        caller = watch.caller("caller", url, **HASTY)
        with watch.fault() as fault:
            names.port = None
            proxy.cut()
            fault.felt()
            with pytest.raises(StoreError, match="name resolution") as caught:
                watch.in_time(caller.post, {})
            lookups = names.lookups
            eventually(lambda: names.lookups > lookups + 2)
            names.port = proxy.port
        texts = [str(caught.value), *map(str, node.errors), *map(str, node.heard("disconnected"))]
        assert any(names.NAME in text for text in texts), texts
        assert not any("kettle" in text for text in texts)

    def test_a_server_is_found_at_its_new_address(self, watch, proxy, names, url, own_server):
        """A failover by DNS works only if the name is looked up for each connection."""
        watch.node(url=url)
        with watch.fault(silent=True):
            names.port = own_server.port
            proxy.cut()
            watch.wait_handled(watch.post())
            eventually(lambda: 0 == proxy.connections)
            watch.healthy()


class TestClosedByServer:
    """The server closes connections, or accepts no more."""

    @pytest.mark.fault("F13")
    def test_a_dropped_idle_connection_is_replaced_silently(self, watch):
        """Servers and NATs drop them. The node would be deaf until the next poll."""
        watch.client.config_set("timeout", 1)
        node = watch.node(poll_interval=LATER)
        with watch.fault(silent=True):
            eventually(lambda: "evalsha" not in [c["cmd"] for c in watch.client.client_list()])
            # The next poll is an hour away, so only a wake can bring this event.
            id = watch.post()
            watch.wait_handled(id)
            assert watch.latest(id) < PROMPT * 1000
        assert [] == node.errors

    @pytest.mark.fault("F14")
    def test_a_node_returns_when_the_server_accepts_clients_again(self, watch):
        """While ``maxclients`` is reached it connects at a limited rate, and reports it once."""
        node = watch.node()
        watch.post()
        with watch.fault() as fault:
            before = watch.client.config_get("maxclients")["maxclients"]
            watch.client.config_set("maxclients", 1)
            close_connections(watch.client)
            try:
                fault.felt(1.0)
                eventually(lambda: "max number of clients" in str(node.timer.health().error))
            finally:
                watch.client.config_set("maxclients", before)

    @pytest.mark.fault("F15")
    @pytest.mark.parametrize("kind", [redis.ConnectionPool, redis.BlockingConnectionPool])
    def test_a_node_works_while_the_users_pool_is_exhausted(self, watch, own_server, kind):
        """A node copies the client's settings and opens its own connections."""
        pool = kind.from_url(own_server.url, max_connections=1)
        with redis.Redis.from_pool(pool) as client:
            connection = pool.get_connection()
            watch.node(url=client)
            with watch.fault(silent=True):
                caller = watch.caller("caller", client)
                ids = [watch.in_time(watch.post, 0, caller) for _ in range(3)]
                watch.wait_handled(*ids)
            pool.release(connection)
