"""
Real servers for the tests, and how to wait for a condition without sleeping.

``DTIMER_TEST_SERVER`` is the path of the server to run. By default it is the server that the
embedded store would find first. ``DTIMER_TEST_URL`` is the URL of a server that already runs. Tests
that need any server use it; tests that stop or kill a server still start their own.

``DTIMER_TEST_TIMEOUT`` is the time limit of a test in seconds, 60 by default. A slow or busy
machine needs a higher one. Every patience below grows with it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import redis
from clocks import WrongClock
from disks import Disk

from dtimer.embedded.binary import find_binary, missing

#: Seconds after which a test counts as hanging and fails.
LIMIT = int(os.environ.get("DTIMER_TEST_TIMEOUT", "60"))

#: How much slower the machine may be than an idle one.
SLOWNESS = LIMIT / 60

#: Seconds to wait for a signal. Only a failing test waits this long.
PATIENCE = LIMIT // 4

#: The longest deadline that a call may have, in ms. For calls that a slow server must answer.
LONGEST_CALL = 30_000

#: A delay, in ms, that ends after any test.
LATER = 3_600_000

#: A moment after any test, in ms since the epoch.
YEAR_2096 = 4_000_000_000_000

#: Seconds for an action that takes milliseconds if it works and longer than this if it fails.
#: Such an assertion tells one from the other; it does not measure the machine.
PROMPT = LIMIT / 15

# Below 55000, because a cluster's bus listens 10000 above. Below 32768, where Linux begins to take
# ports for outgoing connections, so that a server finds its port free again after a restart.
_PORTS = range(20_000, 32_000)

# A program that asks the kernel to kill it when the thread that started it ends, and then becomes
# the server. Popen's preexec_fn could do that too, but is not safe in a process with threads.
_DIES_WITH_PARENT = """
import ctypes, os, sys
parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""

# A program that waits for the end of standard input, and then kills the server.
_WATCHDOG = """
import os, sys
sys.stdin.read()
os.kill(int(sys.argv[1]), 9)
"""


def eventually(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return as soon as *condition* holds. For conditions that no signal announces."""
    deadline = time.monotonic() + patience
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience} s: {condition}"
        pause.wait(0.005)


def clear(client: Any, namespace: str) -> None:
    """Remove the keys of every namespace whose name begins with *namespace*."""
    for key in client.scan_iter(match=f"dtimer:{{{namespace}*", count=10_000):
        client.delete(key)


def close_connections(client: Any) -> None:
    """Close the connections of all other clients."""
    # The subscriptions last: a node that loses only its subscription reports that it is deaf.
    for kind in ("normal", "pubsub"):
        client.client_kill_filter(_type=kind, skipme=True)


def server_ms(client: Any) -> float:
    """Return the time of a server's clock, in ms since the epoch."""
    seconds, us = client.time()
    return float(seconds * 1000 + us / 1000)


def server_binary() -> str:
    """Return the path of the server to test with; raise if there is none."""
    named = os.environ.get("DTIMER_TEST_SERVER")
    if named and not os.access(named, os.X_OK):
        raise FileNotFoundError(f"DTIMER_TEST_SERVER is {named!r}, which is not executable")
    found = named or find_binary()
    if found is None:
        raise missing()
    return str(found)


def connect(url: str, timeout: float = PATIENCE) -> socket.socket:
    """Return a bare connection to the server at *url*."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return socket.create_connection((parts.hostname, parts.port or 6379), timeout)
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(timeout)
    try:
        line.connect(unquote(parts.path))
    except BaseException:
        line.close()
        raise
    return line


class Running:
    """A running server, started by the tests or by the user."""

    def __init__(self, url: str) -> None:
        self.url = url

    def client(self, **settings: Any) -> redis.Redis:
        """Return a client. The caller closes it."""
        # From version 8 on, redis-py gives up after 5 s by default.
        patient = {"socket_timeout": 2 * PATIENCE, "socket_connect_timeout": 2 * PATIENCE}
        return redis.Redis.from_url(self.url, **patient | settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def any_server() -> Running:
    """Return the server that ``DTIMER_TEST_URL`` names; start a server if it is not set."""
    if url := os.environ.get("DTIMER_TEST_URL"):
        return Running(url)
    server = Server()
    server.start()
    return server


class Server(Running):
    """
    A server that a test may stop, kill, freeze or cut off, in a folder of its own.

    The server keeps its folder and its address over restarts. It never outlives the test run, even
    if the run is killed. A context manager: on exit the server is killed and its folder removed.

    Args:
        tcp: Listen on a free port of the loopback interface, not on a unix socket.
        appendonly: Keep an append-only file, so that a killed server loses nothing.
        args: More arguments of the server's command line.
        clock: Allow `set_clock`.
        power: Allow `lose_power`.
        fsync_ms: The time added to each fsync; only with *power*.
    """

    def __init__(
        self,
        *,
        tcp: bool = False,
        appendonly: bool = False,
        args: Sequence[str] = (),
        clock: bool = False,
        power: bool = False,
        fsync_ms: int = 0,
    ) -> None:
        # The path of a unix socket may have at most 103 bytes.
        short = len(tempfile.gettempdir()) < 60
        self.folder = Path(tempfile.mkdtemp(prefix="dt-", dir=None if short else "/tmp"))
        self.tcp = tcp
        self.port = 0
        super().__init__("" if tcp else f"unix://{self.folder}/s")
        self._appendonly = appendonly
        self._args = list(args)
        self._clock = WrongClock() if clock else None
        self._disk = Disk(fsync_ms) if power else None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    @property
    def log(self) -> str:
        """The server's log since its first start."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text(errors="replace")
        return ""

    def start(self, *, wait: bool = True) -> None:
        """Start the server, and *wait* until it answers and has loaded its data."""
        assert self._process is None, "the server is already running"
        choose = self.tcp and not self.port
        for _ in range(20):
            if choose:
                self.port = _free_port()
                self.url = f"redis://127.0.0.1:{self.port}/0"
            self._spawn()
            if not wait or (self._answers() and not (choose and self._is_another())):
                return
            log = self.log
            self.kill9()
            # Try another port if another process took this one after `_free_port` found it free.
            if not choose or "Address already in use" not in log:
                break
        raise AssertionError(f"the server did not start:\n{self.log[-3000:]}")

    def stop(self) -> None:
        """Stop the server in an orderly way. Its data survive if its options say so."""
        process = self._running()
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            self.kill9()

    def kill9(self) -> None:
        """Kill the server, as a crash would."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None
        if self._watchdog:
            self._watchdog.kill()
            self._watchdog.communicate()
            self._watchdog = None

    def pause(self) -> None:
        """Freeze the server: its connections stay open, but it does not answer."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Unfreeze the server."""
        self._running().send_signal(signal.SIGCONT)

    def set_clock(self, seconds: float) -> None:
        """
        Set the wall clock of a server made with ``clock=True`` this far ahead of the true time.

        The server's next command may still see the previous time.
        """
        assert self._clock, "the clock can only be set with clock=True"
        self._clock.set(seconds)

    def configure(self, **settings: object) -> None:
        """Change settings of the running server, such as ``min_replicas_to_write=1``."""
        with self.client() as client:
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), str(value))

    def replica(self, port: int = 0) -> Server:
        """
        Start a replica of this server, wait until it is in sync, and return it.

        To lose writes, replicate through a proxy on *port* and set it to ``blackhole``. A replica
        that is only paused receives the writes later: the kernel buffers them.
        """
        copy = Server(
            tcp=True,
            appendonly=self._appendonly,
            args=[*self._args, "--replicaof", "127.0.0.1", str(port or self.port)],
        )
        copy.start()
        with copy.client() as client:
            eventually(lambda: client.info("replication")["master_link_status"] == "up")
        # The link is up a moment before the master counts the replica.
        with self.client() as client:
            eventually(lambda: client.info("replication")["slave0"]["state"] == "online")
        return copy

    def promote(self) -> None:
        """Make this replica a master, with the data it has received so far."""
        with self.client() as client:
            client.execute_command("REPLICAOF", "NO", "ONE")

    def lose_power(self) -> None:
        """Kill a server made with ``power=True``, and drop all data that it has not synced."""
        assert self._disk, "the power can only fail with power=True"
        self.kill9()
        self._disk.cut(self.folder)

    def truncate_aof(self, size: int) -> None:
        """Cut *size* bytes off the end of the append-only file. The server must be stopped."""
        assert self._process is None, "the server is running"
        (tail,) = (self.folder / "appendonlydir").glob("*.incr.aof")
        os.truncate(tail, max(0, tail.stat().st_size - size))

    def restart(self) -> None:
        """Stop the server if it runs, and start it in the same folder at the same address."""
        if self._process:
            self.stop()
        self.start()

    def close(self) -> None:
        if self._process:
            self.kill9()
        if self._clock:
            self._clock.close()
        if self._disk:
            self._disk.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        if not self._process:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process, "the server is not running"
        return self._process

    def _command(self) -> list[str]:
        command = [server_binary(), "--dir", str(self.folder), "--save", "", "--daemonize", "no"]
        command += ["--appendonly", "yes" if self._appendonly else "no"]
        # Without fsync: while the disk is busy, the server would delay all writes.
        command += ["--appendfsync", "no", "--repl-diskless-sync-delay", "0"]
        if self.tcp:
            command += ["--port", str(self.port), "--bind", "127.0.0.1"]
        else:
            command += ["--port", "0", "--unixsocket", f"{self.folder}/s"]
        if self._clock:
            # The allocator's thread waits until a moment on the faked clock, but the kernel
            # measures by the true one.
            command += ["--jemalloc-bg-thread", "no"]
        return command + self._args

    @property
    def _env(self) -> dict[str, str]:
        clock = self._clock.env if self._clock else {}
        disk = self._disk.env if self._disk else {}
        both = {k: v for k, v in (clock | disk).items() if k != "LD_PRELOAD"}
        libraries = [env["LD_PRELOAD"] for env in (clock, disk) if env]
        return both | ({"LD_PRELOAD": ":".join(libraries)} if libraries else {})

    def _spawn(self) -> None:
        command = self._command()
        python = [sys.executable, "-I", "-S", "-c"]
        # The kernel would kill the server when the starting thread ends, not the process.
        in_main_thread = threading.current_thread() is threading.main_thread()
        dies_with_parent = sys.platform == "linux" and in_main_thread
        if dies_with_parent:
            command = [*python, _DIES_WITH_PARENT, str(os.getpid()), *command]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._env,
                start_new_session=True,
            )
        if not dies_with_parent:
            self._watchdog = subprocess.Popen(
                [*python, _WATCHDOG, str(self._process.pid)],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        """Wait until the server answers a PING; return False if it ends instead."""
        process = self._running()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), connect(self.url, 1) as line:
                line.sendall(b"PING\r\n")
                # A server with a password refuses the PING, but it is up.
                if line.recv(16).startswith((b"+PONG", b"-NOAUTH")):
                    return process.poll() is None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.003)
                return False
        return False

    def _is_another(self) -> bool:
        """Return True if another process's server answers on the chosen port."""
        with self.client() as client, contextlib.suppress(redis.AuthenticationError):
            return bool(client.info("server")["process_id"] != self.pid)
        return False


def _free_port() -> int:
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
