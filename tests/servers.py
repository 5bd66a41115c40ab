"""
Real servers for the tests, and how to wait for something without sleeping.

Which server: the one that ``DTIMER_TEST_SERVER`` names by its path, else the first on the
ladder of the embedded store. ``DTIMER_TEST_URL`` names one that runs already; it stands in
where a test needs any server at all, not where a test ends or stops one.

``DTIMER_TEST_TIMEOUT`` is the limit of a test in seconds, 60 by default. A slow or busy machine
needs a higher one. Every patience below grows with it.
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

from dtimer.store.embedded.binary import find_binary, missing

#: Seconds after which a test is ended as one that hangs.
LIMIT = int(os.environ.get("DTIMER_TEST_TIMEOUT", "60"))

#: By how much slower the machine may be than one that does little else.
SLOWNESS = LIMIT / 60

#: Seconds to wait for a signal. Only a failing test waits this long.
PATIENCE = LIMIT // 4

#: The longest deadline that a call may have, in ms: for a server that answers, however slowly.
LONGEST_CALL = 30_000

#: Seconds in which something has to happen that takes milliseconds, where its failure would take
#: longer than this. The assertion tells one from the other, and does not measure the machine.
PROMPT = LIMIT / 15

# Below 55000, since a cluster's bus listens 10000 above; and below 32768, where the ports
# begin that Linux gives to outgoing connections, so that a restart finds its port free.
_PORTS = range(20_000, 32_000)

# Becomes the server, which the kernel kills with the thread that started it. That cannot
# be done in Popen's preexec_fn, which is not safe in a process that has threads.
_TIED = """
import ctypes, os, sys
parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""

# Waits for the other end of its standard input to close, and kills the server then.
_LEASH = """
import os, sys
sys.stdin.read()
os.kill(int(sys.argv[1]), 9)
"""


def eventually(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return as soon as *condition* holds. For what has no signal of its own to wait for."""
    deadline = time.monotonic() + patience
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience} s: {condition}"
        pause.wait(0.005)


def clear(client: Any, namespace: str) -> None:
    """Remove the keys of every namespace whose name begins with *namespace*."""
    for key in client.scan_iter(match=f"dtimer:{{{namespace}*", count=10_000):
        client.delete(key)


def server_binary() -> str:
    """Return the path of the server to test with; it is an error that there is none."""
    named = os.environ.get("DTIMER_TEST_SERVER")
    if named and not os.access(named, os.X_OK):
        raise FileNotFoundError(f"DTIMER_TEST_SERVER is {named!r}, which cannot be run")
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
    """A server that runs, whoever started it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def client(self, **settings: Any) -> redis.Redis:
        """Return a client, which the caller closes."""
        # The library gives up after 5 s, from version 8 on.
        patient = {"socket_timeout": 2 * PATIENCE, "socket_connect_timeout": 2 * PATIENCE}
        return redis.Redis.from_url(self.url, **patient | settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def any_server() -> Running:
    """Return the server that ``DTIMER_TEST_URL`` names, else one of our own, started."""
    if url := os.environ.get("DTIMER_TEST_URL"):
        return Running(url)
    server = Server()
    server.start()
    return server


class Server(Running):
    """
    A server of our own, in a folder of its own, to be treated badly.

    It keeps its folder and its address from one start to the next, and does not outlive
    the test run, not even one that is killed. Used as a context it is started, and in
    the end stopped and its folder removed.

    Args:
        tcp: Listen on a free port of the loopback interface, not on a unix socket.
        appendonly: Keep an append-only file: a server that is killed has lost nothing.
        args: More of the server's command line.
        clock: Let its clock be set.
        power: Let its power fail.
        fsync_ms: How slow its disk is; only with *power*.
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
        # A short path: that of a unix socket may have 103 bytes.
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
        self._leash: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    @property
    def log(self) -> str:
        """What the server said, from its first start on."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text(errors="replace")
        return ""

    def start(self, *, wait: bool = True) -> None:
        """Start the server, and *wait* until it answers. Data that load count as no answer."""
        assert self._process is None, "it runs already"
        choose = self.tcp and not self.port
        for _ in range(20):
            if choose:
                self.port = _free_port()
                self.url = f"redis://127.0.0.1:{self.port}/0"
            self._spawn()
            if not wait or (self._answers() and not (choose and self._is_another())):
                return
            said = self.log
            self.kill9()
            # Somebody else took the port between our look and the server's.
            if not choose or "Address already in use" not in said:
                break
        raise AssertionError(f"the server did not start:\n{self.log[-3000:]}")

    def stop(self) -> None:
        """End the server in an orderly way; its data are kept as its options say."""
        process = self._running()
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            self.kill9()

    def kill9(self) -> None:
        """End the server as a crash does."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None
        if self._leash:
            self._leash.kill()
            self._leash.communicate()
            self._leash = None

    def pause(self) -> None:
        """Freeze the server: its connections stay, and nothing is answered."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._running().send_signal(signal.SIGCONT)

    def set_clock(self, seconds: float) -> None:
        """
        Have the wall clock of the server, made with ``clock=True``, be off by so many seconds.

        Its next command may still see the time before.
        """
        assert self._clock, "its clock cannot be set"
        self._clock.set(seconds)

    def configure(self, **settings: object) -> None:
        """Change settings of the running server: ``min_replicas_to_write=1``."""
        with self.client() as client:
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), str(value))

    def replica(self, port: int = 0) -> Server:
        """
        Return a server that is a replica of this one, started and in step.

        To have writes lost, replicate through a proxy on *port* and let that deliver nothing. A
        server that is merely paused gets them in the end: the kernel has kept them.
        """
        copy = Server(
            tcp=True,
            appendonly=self._appendonly,
            args=[*self._args, "--replicaof", "127.0.0.1", str(port or self.port)],
        )
        copy.start()
        with copy.client() as client:
            eventually(lambda: client.info("replication")["master_link_status"] == "up")
        # Up comes a moment before the master counts it as one.
        with self.client() as client:
            eventually(lambda: client.info("replication")["slave0"]["state"] == "online")
        return copy

    def promote(self) -> None:
        """Make a master of this replica, with what it has heard so far."""
        with self.client() as client:
            client.execute_command("REPLICAOF", "NO", "ONE")

    def lose_power(self) -> None:
        """End the server, made with ``power=True``, and with it what is on no disk yet."""
        assert self._disk, "its power cannot fail"
        self.kill9()
        self._disk.cut(self.folder)

    def truncate_aof(self, size: int) -> None:
        """Cut *size* bytes off the end of the append-only file of the server, which is down."""
        assert self._process is None, "it runs"
        (tail,) = (self.folder / "appendonlydir").glob("*.incr.aof")
        os.truncate(tail, max(0, tail.stat().st_size - size))

    def restart(self) -> None:
        """Stop the server if it runs, and start it in the same folder at the same address."""
        if self._process:
            self.stop()
        self.start()

    def close(self) -> None:
        """Have nothing left of the server."""
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
        assert self._process, "it does not run"
        return self._process

    def _command(self) -> list[str]:
        command = [server_binary(), "--dir", str(self.folder), "--save", "", "--daemonize", "no"]
        command += ["--appendonly", "yes" if self._appendonly else "no"]
        # Not every second: while the disk is busy with that, writes would wait in the server.
        command += ["--appendfsync", "no", "--repl-diskless-sync-delay", "0"]
        if self.tcp:
            command += ["--port", str(self.port), "--bind", "127.0.0.1"]
        else:
            command += ["--port", "0", "--unixsocket", f"{self.folder}/s"]
        if self._clock:
            # The allocator's own thread waits until a time, which to the kernel is another.
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
        # The kernel would take the end of another thread for ours.
        in_main_thread = threading.current_thread() is threading.main_thread()
        tied = sys.platform == "linux" and in_main_thread
        if tied:
            command = [*python, _TIED, str(os.getpid()), *command]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._env,
                start_new_session=True,
            )
        if not tied:
            leash = [*python, _LEASH, str(self._process.pid)]
            self._leash = subprocess.Popen(leash, stdin=subprocess.PIPE, start_new_session=True)

    def _answers(self) -> bool:
        """Wait until the server answers a PING; False when it ends instead."""
        process = self._running()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), connect(self.url, 1) as line:
                line.sendall(b"PING\r\n")
                # With a password it answers as well, if not to us.
                if line.recv(16).startswith((b"+PONG", b"-NOAUTH")):
                    return process.poll() is None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.003)
                return False
        return False

    def _is_another(self) -> bool:
        """Return whether a server that answers is somebody else's, on the port we chose."""
        with self.client() as client, contextlib.suppress(redis.AuthenticationError):
            return bool(client.info("server")["process_id"] != self.pid)
        return False


def _free_port() -> int:
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
