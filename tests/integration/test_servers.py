"""The tools of the tests do what they say: a server to be treated badly, and a bad network."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis
import servers
from proxy import Proxy
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import PATIENCE, Running, Server, any_server, clear, connect, eventually


@pytest.fixture
def proxy(server):
    """A proxy in front of the server of this worker."""
    with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
def through(proxy):
    """A client through the proxy, that tries everything once."""
    with client_of(proxy) as client:
        yield client


def client_of(proxy, **settings):
    settings = {"socket_timeout": PATIENCE, "retry": Retry(NoBackoff(), 0), **settings}
    return redis.Redis.from_url(proxy.url, **settings)


def ask(line, *words):
    """Send a command over a bare connection, and return what is read first."""
    line.sendall(" ".join(words).encode() + b"\r\n")
    return line.recv(65_536)


class TestServer:
    """A server of the tests' own."""

    @pytest.mark.parametrize("tcp", [False, True])
    def test_it_is_there_and_gone(self, tcp):
        """A server answers as soon as it is started, and its folder goes with it."""
        with Server(tcp=tcp) as server, server.client() as client:
            assert client.ping()
            assert server.pid == client.info("server")["process_id"]
            assert bool(server.port) == tcp
            assert server.port < 55_000
        assert not server.folder.exists()

    @pytest.mark.parametrize("tcp", [False, True])
    def test_data_survive_a_kill(self, tcp):
        """With an append-only file what was acknowledged is there again after a kill -9."""
        with Server(tcp=tcp, appendonly=True) as server:
            url = server.url
            with server.client() as client:
                client.set("tea", "kettle")
            server.kill9()
            with pytest.raises(OSError):
                connect(url)
            server.restart()
            assert url == server.url
            with server.client() as client:
                assert b"kettle" == client.get("tea")

    def test_data_are_gone_without_a_file(self):
        """Without one the next start begins empty, at the same address."""
        with Server() as server:
            with server.client() as client:
                client.set("tea", "kettle")
            server.restart()
            with server.client() as client:
                assert client.get("tea") is None

    def test_arguments(self):
        """More of the command line may be given, and overrides what stands before it."""
        with Server(args=["--maxmemory", "50mb"]) as server, server.client() as client:
            assert 50 * 1024 * 1024 == client.info("memory")["maxmemory"]

    def test_settings(self):
        """They can be changed while it runs."""
        with Server() as server, server.client() as client:
            server.configure(min_replicas_to_write=1, maxmemory="1mb")
            assert "1" == client.config_get("min-replicas-to-write")["min-replicas-to-write"]
            assert "1048576" == client.config_get("maxmemory")["maxmemory"]

    def test_a_replica(self):
        """A replica has what its master has, and as a master of its own goes on from there."""
        with Server(tcp=True) as master, master.client() as client:
            client.set("a", 1)
            with master.replica() as replica, replica.client() as copy:
                assert b"1" == copy.get("a")
                with pytest.raises(redis.ReadOnlyError):
                    copy.set("a", 2)
                client.set("a", 2)
                assert 1 == client.wait(1, PATIENCE * 1000)
                replica.promote()
                copy.set("a", 3)
                assert b"2" == client.get("a")

    def test_writes_that_are_not_replicated(self):
        """What a replica has not heard of is lost with its master."""
        with (
            Server(tcp=True) as master,
            Proxy(master) as link,
            master.replica(link.port) as replica,
            master.client() as client,
            replica.client() as copy,
        ):
            client.set("a", 1)
            assert 1 == client.wait(1, PATIENCE * 1000)
            link.blackhole()
            client.set("a", 2)
            assert 0 == client.wait(1, 20)
            master.kill9()
            replica.promote()
            assert b"1" == copy.get("a")

    def test_a_file_that_was_cut_short(self):
        """A server that starts with the end of its file missing has lost its last writes."""
        with Server(appendonly=True) as server, server.client() as client:
            client.set("a", "first")
            client.set("a", "second")
            server.kill9()
            server.truncate_aof(len("second") + 2)
            server.start()
            assert b"first" == client.get("a")

    @pytest.mark.parametrize(("fsync", "kept"), [("always", b"1"), ("no", None)])
    def test_power_that_fails(self, fsync, kept):
        """What was brought to the disk is there afterwards, and what was not is gone."""
        args = ["--appendfsync", fsync]
        with Server(appendonly=True, args=args, power=True) as server, server.client() as client:
            client.set("a", 1)
            server.lose_power()
            server.start()
            assert kept == client.get("a")

    def test_it_may_want_a_password(self):
        """A server that answers with a refusal is up."""
        locked = Server(args=["--requirepass", "secret"])
        with locked as server, server.client(password="secret") as client:
            assert client.ping()

    def test_a_pause(self):
        """
        A paused server answers nothing and loses nothing: resumed, it answers what was
        asked meanwhile.
        """
        with Server() as server, connect(server.url) as line:
            server.pause()
            line.sendall(b"PING\r\n")
            line.settimeout(0.05)
            with pytest.raises(TimeoutError):
                line.recv(16)
            server.resume()
            line.settimeout(PATIENCE)
            assert b"+PONG\r\n" == line.recv(16)

    def test_a_paused_server_can_be_stopped(self):
        """Stopping and killing work on a server that is frozen."""
        with Server() as server:
            server.pause()
            server.restart()
            server.pause()
            server.kill9()

    def test_a_port_that_is_taken(self, monkeypatch):
        """A server that finds its port taken tries another."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            ports = [servers._free_port(), taken.getsockname()[1]]
            monkeypatch.setattr(servers, "_free_port", ports.pop)
            with Server(tcp=True) as server:
                assert ports == []
                assert server.port != taken.getsockname()[1]

    def test_one_that_cannot_start(self):
        """A server that does not start is an error with its log, and leaves nothing."""
        server = Server(args=["--no-such-option", "1"])
        with pytest.raises(AssertionError, match="no-such-option"):
            server.start()
        server.close()

    def test_a_server_that_runs_already(self, server, monkeypatch):
        """DTIMER_TEST_URL names a server that is used, and not started, ended or cleared."""
        monkeypatch.setenv("DTIMER_TEST_URL", server.url)
        with any_server() as found, found.client() as client:
            assert type(found) is Running
            assert client.ping()
        with server.client() as client:
            assert client.ping()

    def test_a_server_that_is_not_there(self, monkeypatch):
        """A binary that is named but not there is an error: no other one is taken."""
        monkeypatch.setenv("DTIMER_TEST_SERVER", "/nowhere/redis-server")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            Server().start()

    @pytest.mark.parametrize("thread", ["main", "another"])
    def test_it_dies_with_the_test_run(self, thread):
        """
        A server does not outlive the process that started it, whichever of its threads
        did, and even if that is killed. It does outlive the thread.
        """
        program = "import sys, threading\nfrom servers import Server\nserver = Server()\n"
        if thread == "main":
            program += "server.start()\n"
        else:
            program += "t = threading.Thread(target=server.start); t.start(); t.join()\n"
        program += "print(server.url, flush=True)\nsys.stdin.read()"
        tests = Path(servers.__file__).parent
        environment = os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            url = process.stdout.readline().strip()
            with connect(url) as line:
                assert b"+PONG\r\n" == ask(line, "PING")
                os.kill(process.pid, signal.SIGKILL)
                assert b"" == line.recv(16)
        folder = Path(url.removeprefix("unix://")).parent
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()


class TestFixtures:
    """What conftest offers."""

    def test_a_namespace_is_cleared(self, client, namespace):
        """The keys of a namespace, of its shards too, are cleared, and nobody else's are."""
        for key in "one}:due", "one}:body", "one~1}:due", "two}:due":
            client.set(f"dtimer:{{{namespace}-{key}", 1)
        clear(client, f"{namespace}-one")
        left = f"dtimer:{{{namespace}-two}}:due"
        assert [left.encode()] == client.keys(f"dtimer:{{{namespace}*")

    def test_a_client_speaks_bytes(self, client, namespace):
        """The client decodes nothing."""
        client.set(f"dtimer:{{{namespace}}}", "ü")
        assert "ü".encode() == client.get(f"dtimer:{{{namespace}}}")

    def test_a_tcp_server(self, tcp_server):
        """The server of a test's own listens on TCP."""
        assert tcp_server.url.startswith("redis://127.0.0.1:")
        with tcp_server.client() as client:
            assert client.ping()


class TestModes:
    """What a proxy does to everything that passes."""

    def test_pass(self, through):
        """Untold, a proxy passes everything on, of any size."""
        large = os.urandom(3_000_000)
        assert large == through.echo(large)

    @pytest.mark.parametrize("tcp", [False, True])
    def test_any_upstream(self, tcp):
        """A proxy can stand before a unix socket and before a port."""
        with Server(tcp=tcp) as server, Proxy(server) as proxy, client_of(proxy) as client:
            assert client.ping()
            assert server.pid == client.info("server")["process_id"]

    def test_pubsub(self, proxy, client, namespace):
        """What the server says unasked passes as well."""
        with connect(proxy.url) as line:
            assert b"subscribe" in ask(line, "SUBSCRIBE", namespace)
            client.publish(namespace, "wake")
            assert b"wake" in line.recv(1000)

    def test_lead_to(self, server, proxy, through):
        """New connections lead to another server, and the others where they did."""
        here = through.info("server")["process_id"]
        with Server(tcp=True) as other:
            proxy.lead_to(other)
            assert here == through.info("server")["process_id"]
            proxy.cut()
            with client_of(proxy) as client:
                assert other.pid == client.info("server")["process_id"]

    def test_blackhole(self, proxy, through):
        """
        In a black hole nothing is answered and nothing ends; when it heals, what was sent
        into it arrives, as after a partition.
        """
        with connect(proxy.url) as line:
            assert b"+PONG\r\n" == ask(line, "PING")
            proxy.blackhole()
            line.sendall(b"ECHO late\r\n")
            line.settimeout(0.05)
            with pytest.raises(TimeoutError):
                line.recv(16)
            newcomer = client_of(proxy, socket_timeout=0.05)
            with newcomer, pytest.raises(redis.TimeoutError):
                newcomer.ping()
            proxy.heal()
            line.settimeout(PATIENCE)
            assert b"$4\r\nlate\r\n" == line.recv(16)
            assert through.ping()

    def test_refuse(self, proxy):
        """New connections are refused, old ones go on; healed, the port is open again."""
        port = proxy.port
        with connect(proxy.url) as line:
            assert b"+PONG\r\n" == ask(line, "PING")
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                connect(proxy.url)
            assert b"+PONG\r\n" == ask(line, "PING")
        proxy.heal()
        assert port == proxy.port
        with connect(proxy.url) as line:
            assert b"+PONG\r\n" == ask(line, "PING")

    def test_delay(self, proxy, through):
        """A reply takes at least the delay of its way and that of its request; no less."""
        through.ping()
        proxy.delay(30)
        begin = time.monotonic()
        assert through.ping()
        assert time.monotonic() - begin >= 0.060

    def test_an_end_of_delay(self, proxy):
        """What is being delayed when the proxy heals is delivered at once."""
        with connect(proxy.url) as line:
            ask(line, "PING")
            proxy.delay(3_600_000)
            line.sendall(b"PING\r\n")
            line.settimeout(0.05)
            with pytest.raises(TimeoutError):
                line.recv(16)
            proxy.heal()
            line.settimeout(PATIENCE)
            assert b"+PONG\r\n" == line.recv(16)

    def test_slice1(self, proxy, through, client, namespace):
        """Byte by byte the results are the same as without a proxy."""
        key = f"dtimer:{{{namespace}}}"
        proxy.slice1()
        for value in (b"", b"\r\n", "ü\0".encode(), os.urandom(5_000)):
            through.set(key, value)
            assert client.get(key) == value == through.get(key)
        assert client.eval("return {1, 'a', {2}}", 0) == through.eval("return {1, 'a', {2}}", 0)

    def test_throttle(self, proxy, through):
        """No more than the rate passes, and in the end all of it."""
        through.ping()
        proxy.throttle(50_000)
        begin = time.monotonic()
        value = b"x" * 5_000
        assert value == through.echo(value)
        # Twice 5000 bytes, less the last piece of each, for which nobody waits.
        assert time.monotonic() - begin >= 0.15

    def test_cut(self, proxy):
        """All connections are reset; new ones are welcome."""
        with connect(proxy.url) as line:
            ask(line, "PING")
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                line.recv(16)
        with connect(proxy.url) as line:
            assert b"+PONG\r\n" == ask(line, "PING")

    def test_half_close(self, proxy, client, namespace):
        """After a half close the client reads the end, and what it asks is still done."""
        with connect(proxy.url) as line:
            ask(line, "PING")
            proxy.half_close()
            assert b"" == line.recv(16)
            line.sendall(f"SET dtimer:{{{namespace}}} done\r\n".encode())
            eventually(lambda: client.get(f"dtimer:{{{namespace}}}") == b"done")

    def test_a_server_that_ends(self):
        """A client sees the end of a server as an end, and the next server behind the proxy."""
        with Server() as server, Proxy(server) as proxy:
            with connect(proxy.url) as line:
                ask(line, "PING")
                server.kill9()
                assert b"" == line.recv(16)
            # Depending on who is faster, in the connect or behind it.
            with pytest.raises(ConnectionResetError), connect(proxy.url) as line:
                line.recv(16)
            server.start()
            with connect(proxy.url) as line:
                assert b"+PONG\r\n" == ask(line, "PING")


class TestFaults:
    """What a proxy does to one reply."""

    @pytest.mark.parametrize("close", [True, False])
    def test_drop_reply_once(self, proxy, through, client, namespace, close):
        """
        The server does what it was asked and the client never learns it: the connection
        closes, or is silent. After that everything passes again.
        """
        key = f"dtimer:{{{namespace}}}"
        proxy.drop_reply_once(b"INCR", close=close)
        with connect(proxy.url) as unlucky:
            unlucky.sendall(f"INCR {key}\r\n".encode())
            assert proxy.wait_dropped()
            if close:
                assert b"" == unlucky.recv(16)
            else:
                unlucky.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    unlucky.recv(16)
        assert b"1" == client.get(key)
        assert 2 == through.incr(key)

    def test_a_silence_is_for_one_reply(self, proxy):
        """A connection left open in silence after a dropped reply answers the next request."""
        with connect(proxy.url) as line:
            proxy.drop_reply_once(b"one", close=False)
            line.sendall(b"ECHO one\r\n")
            assert proxy.wait_dropped()
            assert b"$3\r\ntwo\r\n" == ask(line, "ECHO", "two")

    def test_a_match(self, proxy):
        """A fault waits for its request, even if the bytes that match arrive in pieces."""
        proxy.drop_reply_once(b"EVALSHA")
        with connect(proxy.url) as line:
            assert b"+PONG\r\n" == ask(line, "PING")
            assert not proxy.wait_dropped(0)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in b"EVALSHA 0 0\r\n":
                line.sendall(bytes([byte]))
            assert b"" == line.recv(100)
        assert proxy.wait_dropped()

    def test_only_the_one_that_matches(self, proxy):
        """A fault with a match strikes the connection of that request, and no other."""
        proxy.drop_reply_once(b"mine")
        with connect(proxy.url) as mine, connect(proxy.url) as other:
            assert b"$5\r\nother\r\n" == ask(other, "ECHO", "other")
            assert b"" == ask(mine, "ECHO", "mine")
            assert b"$5\r\nother\r\n" == ask(other, "ECHO", "other")

    def test_close_reply_once(self, proxy):
        """The reply arrives, and behind it the connection ends."""
        proxy.close_reply_once()
        with connect(proxy.url) as line:
            assert b"+PONG\r\n" == ask(line, "PING")
            assert b"" == line.recv(16)
        assert proxy.wait_dropped()

    def test_truncate_reply_once(self, proxy):
        """So many bytes of the reply arrive, and behind them the connection ends."""
        proxy.truncate_reply_once(3, b"ECHO")
        with connect(proxy.url) as line:
            line.sendall(b"ECHO kettle\r\n")
            received = b""
            while data := line.recv(16):
                received += data
        assert b"$6\r" == received
        assert proxy.wait_dropped()

    def test_a_client_that_repeats_itself(self, proxy, namespace):
        """
        A fault strikes once: a client that sends a command again by itself whose reply was
        lost has it done twice, and is told of the second time.
        """
        key = f"dtimer:{{{namespace}}}"
        with client_of(proxy, retry=Retry(NoBackoff(), 1)) as careless:
            careless.ping()
            proxy.drop_reply_once(b"INCR")
            assert 2 == careless.incr(key)


class TestNothingRemains:
    """A proxy leaves nothing behind."""

    @pytest.mark.parametrize("mode", ["heal", "blackhole", "refuse", "slice1", "cut", "half_close"])
    def test_threads_and_descriptors(self, server, mode):
        """After close there is no thread and no descriptor of a proxy, in whatever state."""
        threads = set(threading.enumerate())
        descriptors = set(os.listdir("/dev/fd"))
        with contextlib.ExitStack() as clients:
            proxy = Proxy(server)
            lines = [clients.enter_context(connect(proxy.url)) for _ in range(5)]
            for line in lines:
                assert b"+PONG\r\n" == ask(line, "PING")
            assert 5 == proxy.connections
            getattr(proxy, mode)()
            for line in lines:
                with contextlib.suppress(OSError):
                    line.sendall(b"PING\r\n" * 1000)
            proxy.close()
            proxy.close()
            assert 0 == proxy.connections
            assert threads == set(threading.enumerate())
        assert descriptors == set(os.listdir("/dev/fd"))
