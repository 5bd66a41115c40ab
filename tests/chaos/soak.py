"""
Run posters, nodes, readers and schedules on one server while a nemesis injects faults.

    python -m chaos.soak --minutes 1 --seed 7        (make soak MINUTES=1 SEED=7)

The run begins without faults. The nemesis then injects one fault after another, and at last removes
them all. The posted events are drained, and the checker tests the history for the promises. The run
fails if a promise is broken, or if a process writes to its standard error or leaves something
behind. It also fails if a fault was never injected: it would then show less than it claims.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import itertools
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import SLOWNESS, Server, eventually

from chaos import cluster
from chaos.checker import check
from chaos.findings import SLOW, Findings
from chaos.history import History, Writer
from chaos.injections import INJECTIONS, FaultContext
from chaos.nemesis import Nemesis
from chaos.observer import Observer
from chaos.processes import PASSWORD, USER, Processes
from chaos.report import Report, growth, machine
from chaos.settings import OPTIONS, RECOVERY_LIMIT
from chaos.starvation import StarvationMonitor
from chaos.workload import LONG_LEASE, MAX_RUN
from dtimer.store.keys import Keys

#: The namespaces of the nodes and of the readers, and that of events which no node receives.
NS, RUNAT, CLEARED = "soak", "soak-runat", "soak-cleared"

#: Seconds without faults: at the beginning, and between the nemesis and the drain.
_BEFORE, _AFTER = 4.0, 4.0

#: The drain has failed after this many seconds without progress.
_PATIENCE = 20.0 * SLOWNESS

_TICK = 0.02

#: The seconds between two requests for the server's time.
_ASK = 0.5

#: The memory of a node should not grow any more after this many seconds.
_WARM = 60.0

#: How many ms a call may exceed its deadline, because more processes run than there are cores.
_SLACK = round(400 * SLOWNESS)

# Some situations occur by chance, a few times a minute. A soak of this many minutes must have each.
_SURE_MINUTES = 4

#: Seconds for all processes to start on an overloaded machine.
_STARTING = 120.0

#: The steps of each poster in a second, not counting posts in bulk.
_STEPS = 40

#: The least fraction of the time during which posts succeed despite the faults.
_SHARE = 0.5

#: How much longer than planned it may take to post the requested events, as a multiple of the plan.
_OVERTIME = 3

#: A run of a million events needs many kills. Faults of the server would only stop all progress.
_BULK_WEIGHTS = {"F58": 10, "F59": 10}


@dataclass
class Plan:
    """The settings of one run."""

    minutes: float
    seed: int
    events: int = 0
    #: Put the server into a cluster whose other servers hang now and then.
    cluster: bool = False
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="dt-soak-")))

    @property
    def bulk(self) -> float:
        """The events that must be posted in bulk each second to reach the number in time."""
        return self.events / (60 * self.minutes * _SHARE)

    @property
    def replay(self) -> str:
        """The command that repeats this run, as far as it can be repeated."""
        events = f" EVENTS={self.events}" if self.events else ""
        more = " ARGS=--cluster" if self.cluster else ""
        return f"make soak MINUTES={self.minutes:g} SEED={self.seed}{events}{more}"


class Soak:
    """
    A run of the soak, with its server, processes, nemesis and history.

    A context manager. Call `run` once inside it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        rng = random.Random(plan.seed)
        self.writer = Writer(plan.folder, "runner")
        self._closing = contextlib.ExitStack()
        self._closing.enter_context(self.writer)
        self._closing.enter_context(StarvationMonitor(self.writer))
        user = ["--user", USER, "on", f">{PASSWORD}", "~*", "&*", "+@all"]
        more = ["--enable-debug-command", "yes", "--busy-reply-threshold", "100"]
        args = [*user, *more, *(cluster.ARGS if plan.cluster else ())]
        self.server = Server(tcp=True, appendonly=True, clock=True, args=args)
        self._closing.enter_context(self.server)
        others: list[Server] = []
        if plan.cluster:
            others = self._closing.enter_context(cluster.joined(self.server, args))
        self.admin: redis.Redis = self.server.client(socket_timeout=10)
        self._closing.callback(self.admin.close)
        # For samples. It does not wait for a server that does not answer at once.
        self._hurried: redis.Redis = self.server.client(
            socket_timeout=0.2, retry=Retry(NoBackoff(), 0)
        )
        self._closing.callback(self._hurried.close)
        options = OPTIONS | {"ns": NS}
        common = {
            "seed": plan.seed,
            "folder": str(plan.folder),
            "runat": RUNAT,
            "cleared": CLEARED,
            "options": options,
        }
        self.processes = Processes(
            self.server, plan.folder, self.writer, common, strict=not plan.events
        )
        self._closing.enter_context(self.processes)
        context = FaultContext(
            self.server, self.admin, self.processes, NS, random.Random(rng.random())
        )
        context.others = others
        weights = _BULK_WEIGHTS if plan.events else None
        # A server of a cluster cannot be demoted in place (F34). Without a cluster, no other
        # server can hang (F44).
        never = "F34" if plan.cluster else "F44"
        faults = [name for name in INJECTIONS if name != never]
        self.nemesis = Nemesis(context, self.writer, rng, faults, weights=weights)
        #: Reasons why the run fails, besides broken promises.
        self.wrong: list[str] = []
        #: The memory of the server, in bytes.
        self.memory: list[int] = []
        self._posted = 0
        self._phases: list[float] = []
        self._sampled = 0.0
        self._asked = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    # ---------------------------------------------------------------------------- the run

    def run(self) -> Report:
        """Go through all phases, and return the report."""
        self._start_all()
        self._await_all()
        self._phase("healthy")
        self._keep_running(_BEFORE)
        self._phase("faulty")
        self._inject_faults(60 * self.plan.minutes - _BEFORE - _AFTER)
        self.nemesis.heal()
        self._phase("healed")
        self._keep_running(_AFTER)
        self.processes.end("posting")
        self._drain()
        self._phase("drained")
        self.processes.end("handling", "reading")
        self._record_end()
        self._phase("checked")
        return self._report()

    def _report(self) -> Report:
        found = Findings.of(History(self.plan.folder))
        for strike, who, ms in found.recoveries():
            self.writer.note("recovered", fault=strike.fault, who=who, ms=ms)
            if ms > 1000 * (RECOVERY_LIMIT + SLOW.get(strike.fault, 0)):
                self.wrong.append(f"{who} took {ms:.0f} ms to recover from {strike}")
        verdict = check(self.plan.folder, slack_ms=_SLACK)
        self.wrong += found.bugs + found.left
        if not verdict.counts["claimed ahead"]:
            self.wrong.append("a vacuous run: nothing was claimed ahead of its time")
        if self.plan.minutes >= _SURE_MINUTES and not verdict.counts["left unstarted"]:
            self.wrong.append("a vacuous run: no node left with a claim that it had not started")
        if not any(strike.fault == "F66" for strike in found.strikes):
            self.nemesis.struck.pop("F66", None)
        if never := self.nemesis.never:
            self.wrong.append(f"a vacuous run: never injected: {', '.join(never)}")
        self._phase("reported")
        memory = {pid: kib for m in self.processes.of("handling") for pid, kib in m.memory.items()}
        names = ["all well", "faults", "healed, drained", "left", "checked"]
        parts = zip(names, itertools.pairwise(self._phases), strict=False)
        return Report(
            self.plan.replay,
            verdict,
            took={name: end - begin for name, (begin, end) in parts},
            struck=dict(self.nemesis.struck),
            kills=self.processes.kills,
            errors=dict(found.errors),
            resources={
                "memory of nodes": growth(memory, _WARM),
                "memory of the server": f"{max(self.memory) >> 10} KiB at most,"
                f" {self.memory[-1] >> 10} KiB in the end",
            },
            machine=machine(self.admin),
            wrong=self.wrong,
        )

    def _start_all(self) -> None:
        options = self.processes._common["options"] | {"max_run": MAX_RUN}
        bulk = bool(self.plan.events)
        # Half of the processes use a cluster client.
        home = {"home_port": self.server.port} if self.plan.cluster else {}
        for i in (1, 2, 3, 4):
            # The number of handler threads, and of events in a batch.
            own = (4, 100) if bulk else [(4, 1), (8, 1), (4, 8), (2, 1)][i - 1]
            self.processes.add(
                "handling",
                f"node-{i}",
                subscription=True,
                options=options | {"concurrency": own[0], "max_events": own[1]},
                restless=10 if i == 2 else 0,
                graceful=False,
                # One node lives long enough to show whether its memory grows.
                immortal=i == 4,
                **(home if i > 2 else {}),
            )
        self.processes.add(
            "handling",
            "node-5",
            subscription=True,
            options=options | {"lease": LONG_LEASE, "concurrency": 2},
            restless=1.5,
            graceful=True,
            # If it were killed, the drain would have to wait for its long leases to expire.
            immortal=True,
        )
        for i in (1, 2):
            own_home = home if i == 2 else {}
            bulk_rate = self.plan.bulk / 2
            self.processes.add("posting", f"poster-{i}", rate=_STEPS, bulk=bulk_rate, **own_home)
        self.processes.add("reading", "reader-1", threads=2, restless=8, **home)

    def _await_all(self) -> None:
        """Wait until all processes are working."""
        with Observer(self.server, NS) as observer, Observer(self.server, RUNAT) as keys:
            eventually(
                lambda: len(observer.nodes()) == len(self.processes.of("handling")), _STARTING
            )
            eventually(lambda: observer.stats().totals.get("posted") and keys.nodes(), _STARTING)

    def _phase(self, name: str) -> None:
        self.writer.note("phase", phase=name)
        self._phases.append(time.monotonic())

    def _keep_running(self, seconds: float) -> None:
        """Keep the processes running for some seconds, without new faults."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._tick()

    def _inject_faults(self, seconds: float) -> None:
        """Inject faults for some seconds, or until the requested events have been posted."""
        until = time.monotonic() + seconds
        while self._posted < self.plan.events if self.plan.events else time.monotonic() < until:
            self._tick()
            self.nemesis.act()
            if time.monotonic() > until + _OVERTIME * seconds:
                self.wrong.append(f"only {self._posted} events were posted")
                return

    def _tick(self) -> None:
        self.processes.replace_dead()
        now = time.monotonic()
        if now - self._asked > _ASK:
            self._asked = now
            # From this the checker knows when claims were made, to within a round trip.
            with contextlib.suppress(redis.RedisError), self.writer.call("clock") as said:
                seconds, us = self._hurried.time()
                said["srv"] = seconds * 1_000_000 + us
        if now - self._sampled > 2:
            self._sampled = now
            self.processes.sample()
            # The server may be down, or refuse the command.
            with contextlib.suppress(redis.RedisError):
                self.memory.append(int(self._hurried.info("memory")["used_memory"]))
                self._posted = int(self._hurried.hget(Keys.of(NS).sys, "n:posted") or 0)
        threading.Event().wait(_TICK)

    def _drain(self) -> None:
        """Wait until no event of the near future is pending, as long as there is progress."""
        with Observer(self.server, NS) as observer, Observer(self.server, RUNAT) as keys:
            before, since = None, time.monotonic()
            while True:
                self._tick()
                left = observer.left(), keys.left()
                if left == (0, 0):
                    return
                progress = (left, self.admin.hget(Keys.of(NS).sys, "n:started"))
                if progress != before:
                    before, since = progress, time.monotonic()
                elif time.monotonic() - since > _PATIENCE:
                    self.wrong.append(f"the drain makes no progress: {left} events are left")
                    return

    def _record_end(self) -> None:
        """Record which events and dead letters are left, and whether the keys are sound."""
        self.wrong += self.processes.complaints
        self.wrong += [
            f"{name} wrote: {text[-2000:]}" for name, text in self.processes.stderr().items()
        ]
        pending: list[str] = []
        letters: list[dict[str, Any]] = []
        sound = True
        for ns in (NS, RUNAT):
            with Observer(self.server, ns) as observer:
                contradiction = observer.sound()
                if contradiction is not None:
                    sound = False
                    text = f"the keys of {ns} contradict each other: {contradiction}"
                    self.wrong.append(text)
                pending += observer.pending()
                letters += observer.letters()
        self.writer.note("final", pending=pending, dead=letters, sound=sound)
        self._leftovers()

    def _leftovers(self) -> None:
        known = {key.encode() for ns in (NS, RUNAT, CLEARED) for key in Keys.of(ns)}
        leaked = sorted(set(self.admin.scan_iter(count=10_000)) - known)
        if leaked:
            self.wrong.append(f"keys were left behind: {leaked}")
        self._hurried.close()
        try:
            eventually(lambda: not self._open_connections(), 5)
        except AssertionError:
            self.wrong.append(f"connections were left open: {self._open_connections()}")

    def _open_connections(self) -> list[dict[str, str]]:
        """Return the connections of the server, without that of this client."""
        own = str(self.admin.client_id())
        return [client for client in self.admin.client_list() if client["id"] != own]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak with the options of the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, help="length of the run (default: 1, or 10 with --events)"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="seed of all choices (default: random)"
    )
    parser.add_argument("--events", type=int, default=0, help="end after this many posted events")
    parser.add_argument("--keep", action="store_true", help="keep the history of a run that passed")
    parser.add_argument("--json", type=Path, help="file to write the figures to, as JSON")
    parser.add_argument(
        "--cluster", action="store_true", help="use a cluster whose other servers hang at times"
    )
    given = parser.parse_args(arguments)
    seed = random.randrange(10**6) if given.seed is None else given.seed
    minutes = given.minutes or (10.0 if given.events else 1.0)
    report = soak(Plan(minutes, seed, given.events, cluster=given.cluster), keep=given.keep)
    if given.json:
        given.json.write_text(report.as_json() + "\n")
    print(report)  # noqa: T201
    return 0 if report.passed else 1


def soak(plan: Plan, *, keep: bool = False) -> Report:
    """Run a plan, and return its report. The folder is kept if the run fails."""
    faulthandler.enable()
    with Soak(plan) as running:
        report = running.run()
    if keep or not report.passed:
        (plan.folder / "report.json").write_text(report.as_json())
        report.resources["history"] = f"{plan.folder} (python -m chaos.checker reads it)"
    else:
        shutil.rmtree(plan.folder)
    return report


if __name__ == "__main__":
    sys.exit(main())
