"""The test tools themselves: a server that can be damaged, and a proxy for bad networks."""

from __future__ import annotations

import contextlib
import os
import shutil
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


def client_of(proxy, **settings):
    settings = {"socket_timeout": PATIENCE, "retry": Retry(NoBackoff(), 0), **settings}
    return redis.Redis.from_url(proxy.url, **settings)


def ask(line, *words):
    """Send a command over a plain connection; return the first part of the reply."""
    line.sendall(" ".join(words).encode() + b"\r\n")
    return line.recv(65_536)


def answers(line):
    return ask(line, "PING") == b"+PONG\r\n"


def assert_silent(line):
    """Assert that no reply arrives for a while."""
    line.settimeout(0.05)
    with pytest.raises(TimeoutError):
        line.recv(16)
    line.settimeout(PATIENCE)


@pytest.fixture
def through(proxy):
    """A client through the proxy, without retries."""
    with client_of(proxy) as client:
        yield client


@pytest.fixture
def line(proxy):
    """A plain connection through the proxy, which has answered a request."""
    with connect(proxy.url) as line:
        assert answers(line)
        yield line


@pytest.fixture
def key(namespace):
    return f"dtimer:{{{namespace}}}"


class TestServer:
    """A server that a test starts for itself."""

    @pytest.mark.parametrize("tcp", [False, True])
    def test_it_answers_once_started_and_removes_its_folder(self, tcp):
        """A test may use the server at once, and need not clean up."""
        with Server(tcp=tcp) as server, server.client() as client:
            assert client.ping()
            assert server.pid == client.info("server")["process_id"]
            assert bool(server.port) == tcp
            assert server.port < 55_000
        assert not server.folder.exists()

    @pytest.mark.parametrize(("fsync", "kept"), [("always", b"1"), ("no", None)])
    def test_a_power_failure_loses_unsynced_writes(self, fsync, kept):
        """After a power failure synced writes are there, and the others are lost."""
        args = ["--appendfsync", fsync]
        with Server(appendonly=True, args=args, power=True) as server, server.client() as client:
            client.set("a", 1)
            server.lose_power()
            server.start()
            assert kept == client.get("a")

    def test_a_paused_server_answers_later(self):
        """A resumed server answers the requests that were sent during the pause."""
        with Server() as server, connect(server.url) as line:
            server.pause()
            line.sendall(b"PING\r\n")
            assert_silent(line)
            server.resume()
            assert b"+PONG\r\n" == line.recv(16)

    def test_a_paused_server_can_be_stopped(self):
        """Restarting and killing work on a paused server."""
        with Server() as server:
            server.pause()
            server.restart()
            server.pause()
            server.kill9()

    def test_a_taken_port_is_replaced(self, monkeypatch):
        """If its port is taken, the server tries another."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            ports = [servers._free_port(), taken.getsockname()[1]]
            monkeypatch.setattr(servers, "_free_port", ports.pop)
            with Server(tcp=True) as server:
                assert ports == []
                assert server.port != taken.getsockname()[1]

    def test_a_failed_start_raises_with_the_log(self):
        """If the server does not start, the error contains its log, and nothing is left."""
        server = Server(args=["--no-such-option", "1"])
        with pytest.raises(AssertionError, match="no-such-option"):
            server.start()
        server.close()

    def test_a_running_server_may_be_used(self, server, monkeypatch):
        """The server at DTIMER_TEST_URL is used, but never started, stopped or cleared."""
        monkeypatch.setenv("DTIMER_TEST_URL", server.url)
        with any_server() as found, found.client() as client:
            assert type(found) is Running
            assert client.ping()
        with server.client() as client:
            assert client.ping()

    def test_a_missing_binary_is_an_error(self, monkeypatch):
        """If the named binary does not exist, that is an error; no other binary is used."""
        monkeypatch.setenv("DTIMER_TEST_SERVER", "/nowhere/redis-server")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            Server().start()

    @pytest.mark.parametrize("thread", ["main", "another"])
    def test_it_ends_with_the_test_process(self, thread):
        """The server ends even if the process is killed, and not with the thread that starts it."""
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
                assert answers(line)
                os.kill(process.pid, signal.SIGKILL)
                assert b"" == line.recv(16)
        folder = Path(url.removeprefix("unix://")).parent
        shutil.rmtree(folder)


def test_only_the_namespace_is_cleared(client, namespace):
    """Every namespace that begins with the given name is cleared, and no other."""
    for name in "one}:due", "one}:body", "one~1}:due", "two}:due":
        client.set(f"dtimer:{{{namespace}-{name}", 1)
    clear(client, f"{namespace}-one")
    assert [f"dtimer:{{{namespace}-two}}:due".encode()] == client.keys(f"dtimer:{{{namespace}*")


class TestModes:
    """Modes of the proxy that affect all traffic."""

    def test_lead_to_redirects_new_connections(self, server, proxy, through):
        """New connections lead to another server, and existing ones stay."""
        here = through.info("server")["process_id"]
        with Server(tcp=True) as other:
            proxy.lead_to(other)
            assert here == through.info("server")["process_id"]
            proxy.cut()
            with client_of(proxy) as client:
                assert other.pid == client.info("server")["process_id"]

    def test_a_black_hole_delays_everything(self, proxy, through, line):
        """No connection ends. After healing, the data arrive, as after a network partition."""
        proxy.blackhole()
        line.sendall(b"ECHO late\r\n")
        assert_silent(line)
        newcomer = client_of(proxy, socket_timeout=0.05)
        with newcomer, pytest.raises(redis.TimeoutError):
            newcomer.ping()
        proxy.heal()
        assert b"$4\r\nlate\r\n" == line.recv(16)
        assert through.ping()

    def test_refuse_affects_new_connections_only(self, proxy, line):
        """Existing connections work. After healing, the same port is open again."""
        port = proxy.port
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy.url)
        assert answers(line)
        proxy.heal()
        assert port == proxy.port
        with connect(proxy.url) as newcomer:
            assert answers(newcomer)

    def test_delay_applies_in_both_directions(self, proxy, through):
        """A reply takes at least twice the delay: once for the request, once for the reply."""
        through.ping()
        proxy.delay(30)
        begin = time.monotonic()
        assert through.ping()
        assert time.monotonic() - begin >= 0.060

    def test_healing_ends_a_delay(self, proxy, line):
        """When the proxy heals, delayed data are delivered at once."""
        proxy.delay(3_600_000)
        line.sendall(b"PING\r\n")
        assert_silent(line)
        proxy.heal()
        assert b"+PONG\r\n" == line.recv(16)

    def test_single_bytes_give_the_same_results(self, proxy, through, client, key):
        """If the proxy forwards single bytes, the results are the same as without a proxy."""
        proxy.slice1()
        for value in (b"", b"\r\n", "ü\0".encode(), os.urandom(5_000)):
            through.set(key, value)
            assert client.get(key) == value == through.get(key)
        assert client.eval("return {1, 'a', {2}}", 0) == through.eval("return {1, 'a', {2}}", 0)

    def test_throttle_limits_the_rate(self, proxy, through):
        """The data pass no faster than the given rate, and arrive complete."""
        through.ping()
        proxy.throttle(50_000)
        begin = time.monotonic()
        value = b"x" * 5_000
        assert value == through.echo(value)
        # Twice 5000 bytes, without the last piece of each, which is not waited for.
        assert time.monotonic() - begin >= 0.15

    def test_cut_resets_connections(self, proxy, line):
        """All connections are reset, and new ones work."""
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            line.recv(16)
        with connect(proxy.url) as newcomer:
            assert answers(newcomer)

    def test_half_close_still_forwards_requests(self, proxy, line, client, key):
        """The client reads the end of the stream, and its requests are still executed."""
        proxy.half_close()
        assert b"" == line.recv(16)
        line.sendall(f"SET {key} done\r\n".encode())
        eventually(lambda: client.get(key) == b"done")

    def test_the_end_of_the_server_is_seen_through_the_proxy(self):
        """A client sees the end of its connection, and can then reach the next server."""
        with Server() as server, Proxy(server) as proxy:
            with connect(proxy.url) as line:
                assert answers(line)
                server.kill9()
                assert b"" == line.recv(16)
            # The error occurs in connect or in recv, depending on timing.
            with pytest.raises(ConnectionResetError), connect(proxy.url) as line:
                line.recv(16)
            server.start()
            with connect(proxy.url) as line:
                assert answers(line)


class TestFaults:
    """Faults of the proxy that affect one reply."""

    @pytest.mark.parametrize("close", [True, False])
    def test_a_dropped_reply_affects_one_request(self, proxy, through, client, key, close):
        """The server executes the request, and the connection closes or stays silent."""
        proxy.drop_reply_once(b"INCR", close=close)
        with connect(proxy.url) as unlucky:
            unlucky.sendall(f"INCR {key}\r\n".encode())
            assert proxy.wait_dropped()
            if close:
                assert b"" == unlucky.recv(16)
            else:
                assert_silent(unlucky)
        assert b"1" == client.get(key)
        assert 2 == through.incr(key)

    def test_silence_lasts_for_one_reply(self, proxy, line):
        """A connection that stays open after a dropped reply answers the next request."""
        proxy.drop_reply_once(b"one", close=False)
        line.sendall(b"ECHO one\r\n")
        assert proxy.wait_dropped()
        assert b"$3\r\ntwo\r\n" == ask(line, "ECHO", "two")

    def test_a_fault_waits_for_its_request(self, proxy, line):
        """A fault waits for the matching request, even if its bytes arrive in pieces."""
        proxy.drop_reply_once(b"EVALSHA")
        assert answers(line)
        assert not proxy.wait_dropped(0)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"EVALSHA 0 0\r\n":
            line.sendall(bytes([byte]))
        assert b"" == line.recv(100)
        assert proxy.wait_dropped()

    def test_a_fault_affects_only_the_matching_connection(self, proxy, line):
        """A fault with a match affects the connection of that request, and no other."""
        proxy.drop_reply_once(b"matching")
        with connect(proxy.url) as other:
            assert b"$5\r\nother\r\n" == ask(other, "ECHO", "other")
            assert b"" == ask(line, "ECHO", "matching")
            assert b"$5\r\nother\r\n" == ask(other, "ECHO", "other")

    def test_close_reply_once_closes_after_the_reply(self, proxy, line):
        """The reply arrives, and then the connection closes."""
        proxy.close_reply_once()
        assert answers(line)
        assert b"" == line.recv(16)
        assert proxy.wait_dropped()

    def test_truncate_reply_once_cuts_the_reply(self, proxy, line):
        """The first bytes of the reply arrive, and then the connection closes."""
        proxy.truncate_reply_once(3, b"ECHO")
        line.sendall(b"ECHO kettle\r\n")
        received = b""
        while data := line.recv(16):
            received += data
        assert b"$6\r" == received
        assert proxy.wait_dropped()

    def test_a_client_with_retries_executes_twice(self, proxy, key):
        """A fault occurs once, so the command that the client sends again has a reply."""
        with client_of(proxy, retry=Retry(NoBackoff(), 1)) as careless:
            careless.ping()
            proxy.drop_reply_once(b"INCR")
            assert 2 == careless.incr(key)

    @pytest.mark.parametrize("mode", ["heal", "blackhole", "refuse", "slice1", "cut", "half_close"])
    def test_close_leaves_no_thread_or_descriptor(self, server, mode):
        """Tests of nodes count threads and descriptors, and must not find those of a proxy."""
        threads = set(threading.enumerate())
        descriptors = set(os.listdir("/dev/fd"))
        with contextlib.ExitStack() as clients:
            proxy = Proxy(server)
            lines = [clients.enter_context(connect(proxy.url)) for _ in range(5)]
            assert all(answers(line) for line in lines)
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
