"""The catalogue, F09 to F15 but F12: a connection cannot be made, or is taken away."""

from __future__ import annotations

import contextlib
import re
import socket
import time

import pytest
import redis
from chaos.settings import CALL_LIMIT, HASTY
from servers import PROMPT, eventually

from dtimer import DTimer, OutcomeUnknown, StoreError

pytestmark = pytest.mark.chaos

LATER = 3_600_000  # ms; no test is there to see it


class TestRefused:
    """There is nobody to talk to."""

    @pytest.mark.fault("F09")
    def test_the_server_is_down(self, watch, own):
        """
        While connections are refused the node tries again, ever less often, for as long as
        it takes; when the server is back it serves in time, and no acknowledged post is
        lost. Who posts meanwhile is told by the deadline that it was not done.
        """
        node = watch.node()
        caller = DTimer("caller", own.url, ns=watch.ns, **HASTY)
        before = watch.post(500)
        with watch.fault() as fault:
            own.kill9()
            with pytest.raises(StoreError, match="could not be reached") as caught:
                watch.in_time(caller.post, {})
            assert not isinstance(caught.value, OutcomeUnknown)
            with pytest.raises(StoreError, match="could not be reached"):
                watch.in_time(caller.join)
            assert not caller.joined
            fault.felt(1.0)
            own.start()
        watch.wait_handled(before)
        assert ["disconnected"] == [n for _, n, _ in node.said if n == "disconnected"]
        (error,) = node.errors
        assert "does not answer; the node keeps trying" in str(error)
        caller.leave()

    @pytest.mark.fault("F09")
    def test_nobody_listens_to_errors(self, watch, own):
        """Without a listener of 'error' an outage is one line in the log, or two, and no more."""
        node = watch.node()
        node.timer.remove_all_listeners("error")
        own.kill9()
        eventually(lambda: node.heard("disconnected"))
        tries = watch.gauges.connects
        eventually(lambda: watch.gauges.connects > tries + 8)
        own.start()
        watch.recovered()
        lines = watch.gauges.lines
        assert 1 <= len(lines) <= 2
        assert re.match(r"dtimer: Redis at \S+ does not answer; the node keeps trying", lines[0])

    @pytest.mark.fault("F10")
    def test_nobody_accepts(self, watch, own):
        """
        Where connections are neither accepted nor refused the connect has a deadline of its
        own: calls come back in time, and so does leave().
        """
        node, stuck = watch.node(**HASTY), watch.node("stuck", **HASTY)
        with watch.fault(node) as fault:
            own.kill9()
            with _full(own.port):
                caller = DTimer("caller", own.url, ns=watch.ns, **HASTY)
                with pytest.raises(StoreError, match="could not be reached"):
                    watch.in_time(caller.post, {})
                with pytest.raises(StoreError, match="could not be reached"):
                    watch.in_time(caller.join)
                caller.leave()
                fault.felt(1.0)
                began = time.monotonic()
                stuck.timer.leave(100)
                assert time.monotonic() - began < CALL_LIMIT
                assert not stuck.timer.joined
            own.start()
            # It could not say goodbye; after a minute it would have been forgotten.
            watch.forget(stuck)


@contextlib.contextmanager
def _full(port):
    """Have a port on which connections are neither accepted nor refused."""
    with contextlib.ExitStack() as sockets:
        door = sockets.enter_context(socket.socket())
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", port))
        door.listen(0)
        while True:
            knock = sockets.enter_context(socket.socket())
            knock.settimeout(0.05)
            try:
                knock.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        yield


class Names:
    """A name service: one name, and whither it leads."""

    NAME = "redis.dtimer.test"

    def __init__(self, monkeypatch, port):
        self.port = port
        self.asked = 0
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host, port, *args, **kwargs):
        if host != self.NAME:
            return self._real(host, port, *args, **kwargs)
        self.asked += 1
        if self.port is None:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._real("127.0.0.1", self.port, *args, **kwargs)


class TestNames:
    """The server has a name, and the name leads somewhere else, or nowhere."""

    @pytest.fixture
    def names(self, monkeypatch, proxy):
        return Names(monkeypatch, proxy.port)

    @pytest.fixture
    def url(self, own, names):
        with own.client() as client:
            client.execute_command("ACL", "SETUSER", "tea", "on", ">kettle", "~*", "&*", "+@all")
        return f"redis://tea:kettle@{names.NAME}:6379/0"

    @pytest.mark.fault("F11")
    def test_not_found(self, watch, proxy, names, url):
        """
        A name that is not found is looked up again and again; what is said of it names the
        host, and not the password.
        """
        node = watch.node(url=url)
        caller = DTimer("caller", url, ns=watch.ns, **HASTY)
        with watch.fault() as fault:
            names.port = None
            proxy.cut()
            fault.felt()
            with pytest.raises(StoreError, match="name resolution") as caught:
                watch.in_time(caller.post, {})
            asked = names.asked
            eventually(lambda: names.asked > asked + 2)
            names.port = proxy.port
        said = [str(caught.value), *map(str, node.errors), *map(str, node.heard("disconnected"))]
        assert any(names.NAME in text for text in said), said
        assert not any("kettle" in text for text in said)
        caller.leave()

    @pytest.mark.fault("F11")
    def test_another_address(self, watch, proxy, names, url, own):
        """A server that has moved is found by its name: no address is kept."""
        watch.node(url=url)
        with watch.fault(silent=True):
            names.port = own.port
            proxy.cut()
            watch.wait_handled(watch.post())
            eventually(lambda: 0 == proxy.connections)
            watch.healthy()


class TestDropped:
    """The server ends connections, or takes no more."""

    @pytest.mark.fault("F13")
    def test_idle_ones(self, watch, own):
        """
        A server, or a NAT, that drops what lies idle is not noticed: the node asks now and
        then to know that it is not deaf, and makes a dropped connection anew without a word.
        """
        watch.client.config_set("timeout", 1)
        node = watch.node(poll_interval=LATER)
        with watch.fault(silent=True):
            eventually(lambda: "evalsha" not in [c["cmd"] for c in watch.client.client_list()])
            # No poll would find it for an hour.
            id = watch.post()
            watch.wait_handled(id)
            assert watch.latest(id) < PROMPT * 1000
        assert [] == node.errors

    @pytest.mark.fault("F14")
    def test_too_many_clients(self, watch):
        """
        A server that takes no more clients is tried again, not stormed, and told of once;
        the node is there again as soon as there is room.
        """
        node = watch.node()
        watch.post()
        with watch.fault() as fault:
            before = watch.client.config_get("maxclients")["maxclients"]
            watch.client.config_set("maxclients", 1)
            _kill_others(watch.client)
            try:
                fault.felt(1.0)
                eventually(lambda: "max number of clients" in str(node.timer.health().error))
            finally:
                watch.client.config_set("maxclients", before)

    @pytest.mark.fault("F15")
    @pytest.mark.parametrize("kind", [redis.ConnectionPool, redis.BlockingConnectionPool])
    def test_the_pool_of_the_user_is_empty(self, watch, own, kind):
        """A node has connections of its own: whoever has all of the pool's does not starve it."""
        pool = kind.from_url(own.url, max_connections=1)
        with redis.Redis.from_pool(pool) as client:
            taken = pool.get_connection()
            watch.node(url=client)
            with watch.fault(silent=True):
                caller = DTimer("caller", client, ns=watch.ns)
                ids = [watch.in_time(watch.post, 0, caller) for _ in range(3)]
                watch.wait_handled(*ids)
                caller.leave()
            pool.release(taken)


def _kill_others(client):
    # The subscriptions last: with them alone gone a node would say that it is deaf.
    for kind in ("normal", "pubsub"):
        client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
