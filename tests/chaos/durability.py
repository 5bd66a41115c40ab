"""
Measure how many acknowledged posts are lost under each durability setting of Redis.

    PYTHONPATH=tests python -m chaos.durability [ROUNDS]

A thread posts as fast as it can, and a node is joined. Then the server is killed, loses its power
(and with it all that no fsync has written to the disk), or is replaced by its replica. The columns
of the table:

``acked``
    The acknowledged posts of all rounds.
``lossy``
    The rounds in which acknowledged posts were lost.
``most``
    The most posts that were lost in one round.
``window ms``
    The longest time between the first and the last lost post of a round.
``reported``
    The lossy rounds after which the node or the poster reported the loss.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from proxy import Proxy
from servers import YEAR_2096, Running, Server, eventually

from chaos.settings import OPTIONS
from dtimer import DTimer, NotReplicated, StateRollback, StoreError
from dtimer.store.keys import Keys

NS = "durability"


@dataclass
class Outcome:
    """The results of one kind of fault under one setting."""

    setting: str
    fault: str
    rounds: int = 0
    acknowledged: int = 0
    lossy: int = 0
    reported: int = 0
    most: int = 0
    window: float = 0.0

    def row(self) -> str:
        """Return the results as a line of the table."""
        return (
            f"{self.setting:34} {self.fault:30} {self.rounds:3} {self.acknowledged:8}"
            f" {self.lossy:6} {self.most:8} {self.window * 1000:9.0f} {self.reported:8}"
        )


HEAD = (
    f"{'setting':34} {'fault':30} {'n':>3} {'acked':>8} {'lossy':>6} {'most':>8}"
    f" {'window ms':>9} {'reported':>8}"
)


class Poster:
    """Posts as fast as it can, on a thread, and records each acknowledged post with its time."""

    def __init__(self, url: str, **options: object) -> None:
        self.acknowledged: list[tuple[float, str]] = []
        self.errors: list[Exception] = []
        self.timer = DTimer("poster", url, ns=NS, **{**OPTIONS, "timeout": 1_000, **options})
        self.timer.on("error", self.errors.append)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(StoreError, NotReplicated):
                id = self.timer.post({}, at=YEAR_2096)
                self.acknowledged.append((time.monotonic(), id))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@contextlib.contextmanager
def posting(url: str, **options: object) -> Iterator[tuple[Poster, list[Exception]]]:
    """Run a poster and a node on the server at *url*; yield the poster and the node's errors."""
    node = DTimer("node", url, ns=NS, **OPTIONS)
    errors: list[Exception] = []
    node.on("error", errors.append)
    node.on("event", lambda _: None)
    with node:
        poster = Poster(url, **options)
        try:
            yield poster, errors
        finally:
            poster.stop()
            poster.timer.leave()


def lasts(seconds: float) -> None:
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until, seconds + 10)


def count(
    outcome: Outcome, url: str, poster: Poster, errors: list[Exception], fault: float
) -> None:
    """Wait until the server answers, and count the posts acknowledged before *fault* and lost."""
    before = [(at, id) for at, id in poster.acknowledged if at <= fault]
    with Running(url).client() as client:
        eventually(client.ping)
        there = {id.decode() for id in client.zrange(Keys.of(NS).due, 0, -1)}
    lost = [(at, id) for at, id in before if id not in there]
    outcome.rounds += 1
    outcome.acknowledged += len(before)
    if lost:
        outcome.lossy += 1
        outcome.most = max(outcome.most, len(lost))
        outcome.window = max(outcome.window, lost[-1][0] - lost[0][0])
        # The node needs one poll, and the time to connect again.
        with contextlib.suppress(AssertionError):
            eventually(lambda: any(isinstance(e, StateRollback) for e in errors + poster.errors), 3)
        outcome.reported += any(isinstance(e, StateRollback) for e in errors + poster.errors)


SETTINGS: dict[str, list[str]] = {
    "no persistence": [],
    "RDB, save 2 1": ["--save", "2 1"],
    "AOF, appendfsync everysec": ["--appendonly", "yes", "--appendfsync", "everysec"],
    "AOF, appendfsync always": ["--appendonly", "yes", "--appendfsync", "always"],
}


def alone(
    setting: str, fault: str, end: Callable[[Server], None], n: int, fsync_ms: int = 0
) -> Outcome:
    """
    Measure a server without replicas.

    Args:
        setting: The name of the setting, for the table.
        fault: The name of the fault, for the table.
        end: Breaks the server.
        n: The number of rounds.
        fsync_ms: How long each fsync of its disk takes.
    """
    outcome = Outcome(setting, fault)
    for i in range(n):
        with (
            Server(tcp=True, args=SETTINGS[setting], power=True, fsync_ms=fsync_ms) as server,
            posting(server.url) as (poster, errors),
        ):
            lasts(3.2 + 0.37 * (i % 5))
            fault_at = time.monotonic()
            end(server)
            poster.stop()
            server.start()
            count(outcome, server.url, poster, errors, fault_at)
    return outcome


def pair(
    setting: str, fault: str, n: int, *, cut_off: float = 0.0, lag: bool = False, wait: int = 0
) -> Outcome:
    """
    Kill a master and promote its replica, *n* times.

    Args:
        setting: The name of the setting, for the table.
        fault: The name of the fault, for the table.
        n: The number of rounds.
        cut_off: The seconds for which the replica receives nothing before the kill.
        lag: The master accepts writes only while its replica answers.
        wait: How many replicas each post waits for.
    """
    outcome = Outcome(setting, fault)
    for i in range(n):
        with contextlib.ExitStack() as stack:
            master = stack.enter_context(Server(tcp=True))
            link = stack.enter_context(Proxy(master))
            replica = stack.enter_context(master.replica(link.port))
            address = stack.enter_context(Proxy(master))
            if lag:
                master.configure(min_replicas_to_write=1, min_replicas_max_lag=1)
                with master.client() as client:
                    eventually(lambda c=client: c.info("replication")["min_slaves_good_slaves"])
            poster, errors = stack.enter_context(posting(address.url, wait_replicas=wait))
            lasts(1.0 + 0.13 * (i % 5))
            if cut_off:
                link.blackhole()
                lasts(cut_off)
            fault_at = time.monotonic()
            master.kill9()
            replica.promote()
            address.lead_to(replica)
            address.cut()
            poster.stop()
            count(outcome, replica.url, poster, errors, fault_at)
    return outcome


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(n: int) -> None:
    """Run *n* rounds of each fault under each setting, and print the table."""
    with Server(tcp=True) as server, server.client() as client:
        about = client.info("server")
    version = about.get("valkey_version") or about["redis_version"]
    name = "valkey" if "valkey_version" in about else "redis"
    say(f"{name} {version}, Python {platform.python_version()}, {platform.platform()}\n")
    say(HEAD)
    for setting in SETTINGS:
        say(alone(setting, "kill -9", Server.kill9, n).row())
        say(alone(setting, "power lost", Server.lose_power, n).row())
    everysec = "AOF, appendfsync everysec"
    say(alone(everysec, "fsync takes 1.5 s, kill -9", Server.kill9, n, 1_500).row())
    say(alone(everysec, "fsync takes 1.5 s, power lost", Server.lose_power, n, 1_500).row())
    say(pair("replica", "master killed", n).row())
    say(pair("replica", "cut off 1 s, then killed", n, cut_off=1).row())
    say(pair("replica", "cut off 5 s, then killed", n, cut_off=5).row())
    lagging = "+ min-replicas-to-write 1, max-lag 1"
    say(pair(lagging, "cut off 5 s, then killed", n, cut_off=5, lag=True).row())
    waiting = "+ wait_replicas=1"
    say(pair(waiting, "master killed", n, wait=1).row())
    say(pair(waiting, "cut off 1 s, then killed", n, cut_off=1, wait=1).row())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
