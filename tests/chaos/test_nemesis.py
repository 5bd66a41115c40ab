"""The nemesis must inject every fault, or a soak would prove less than it reports."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest
from proxy import Proxy
from servers import LONGEST_CALL, Server

from chaos import cluster, handling, nemesis, process_faults, stepped
from chaos.findings import Findings
from chaos.history import History, Writer
from chaos.nemesis import Nemesis
from dtimer import DTimer, faultpoints


class Scripted:
    """
    Faults that only log when they begin and end. A fault of *duds* never takes effect.

    Each is a generator with the steps that `chaos.injections` describes.
    """

    def __init__(self, *names, server=(), duds=()):
        self.log = []
        self.duds = set(duds)
        self.injections = {name: (self._injection(name), name in server) for name in names}

    def _injection(self, name):
        def inject(_):
            seconds = 0.0
            yield "target", seconds
            self.log.append(f"+{name}")
            yield
            self.log.append(f"-{name}")
            yield name not in self.duds

        return inject


@pytest.fixture
def writer(tmp_path):
    with Writer(tmp_path, "runner") as writer:
        yield writer


@pytest.fixture
def nemesis_with(monkeypatch, writer):
    """Return a function that makes a nemesis with only the given faults and no pauses."""

    def make(scripted, seed=1):
        monkeypatch.setattr(nemesis, "INJECTIONS", scripted.injections)
        monkeypatch.setattr(nemesis, "_PAUSE", (0, 0))
        return Nemesis(None, writer, random.Random(seed), tuple(scripted.injections))

    return make


class TestNemesis:
    """Which faults the nemesis injects, and how often."""

    def test_injects_each_fault_before_repeating_any(self, nemesis_with):
        """After as many injections as there are faults, each fault has been injected."""
        names = [f"F{i:02}" for i in range(20)]
        scripted = Scripted(*names)
        injector = nemesis_with(scripted)
        while len(scripted.log) < 2 * len(names):
            injector.act()
        injector.heal()
        assert [] == injector.never
        assert 2 >= max(injector.struck.values())

    def test_injects_the_same_faults_from_the_same_seed(self, nemesis_with):
        """The order of the faults depends on the seed alone, so a run can be repeated."""
        logs = []
        for _ in range(2):
            scripted = Scripted(*"abcdefgh")
            injector = nemesis_with(scripted, seed=5)
            for _ in range(30):
                injector.act()
            logs.append(scripted.log)
        assert logs[0] == logs[1]

    def test_injects_one_server_fault_at_a_time(self, nemesis_with, monkeypatch):
        """A fault of the server ends before the next one begins, or their effects would mix."""
        scripted = Scripted(*"abcd", server="abcd")
        injector = nemesis_with(scripted)
        for _ in range(40):
            injector.act()
        injector.heal()
        for begin, end in zip(scripted.log[::2], scripted.log[1::2], strict=True):
            assert ("+", "-") == (begin[0], end[0])
            assert begin[1:] == end[1:]

    def test_does_not_count_a_fault_without_effect(self, nemesis_with):
        """The fault is tried again, and reported if it never took effect."""
        scripted = Scripted("F01", "F02", duds=["F02"])
        injector = nemesis_with(scripted)
        for _ in range(30):
            injector.act()
        injector.heal()
        assert ["F02"] == injector.never
        assert 1 < injector.missed["F02"]

    def test_ends_every_fault_when_it_heals(self, nemesis_with):
        """A fault that lasted beyond the run would fail the final checks."""
        scripted = Scripted(*"abc")
        injector = nemesis_with(scripted)
        injector.act()
        injector.heal()
        assert len([x for x in scripted.log if x[0] == "+"]) == len(
            [x for x in scripted.log if x[0] == "-"]
        )


class TestFaultPoints:
    """The points at which nodes of the soak die, fail or stop, and at which stepped nodes crash."""

    @pytest.mark.parametrize(
        "points",
        [process_faults.DEATHS, process_faults.FAILURES, handling.STOPS, stepped.CRASHES],
        ids=["DEATHS", "FAILURES", "STOPS", "CRASHES"],
    )
    def test_each_point_exists(self, points):
        """A node never reaches a misspelt point, so the ordered fault never happens."""
        assert [] == [point for point in points if point not in faultpoints.POINTS]

    @pytest.mark.parametrize("do", ["die", "fail"])
    def test_a_node_refuses_an_unknown_point(self, do):
        """The refusal ends the node's program with a traceback, so the soak fails."""
        node = handling.Handling.__new__(handling.Handling)
        with pytest.raises(ValueError, match=r"unknown fault point 'loop\.gone'"):
            node.order({"do": do, "point": "loop.gone"})
        assert {} == faultpoints.armed


class TestFindings:
    """
    Recovery times and leftovers, as read from the records of a run.

    `chaos.history` explains the fields of the records, and `chaos.catalogue` the codes of faults.
    """

    @staticmethod
    def write(tmp_path, process, *records):
        with (tmp_path / f"{process}.jsonl").open("a") as file:
            for t, text in records:
                file.write(f'{{"t":{t},"p":"{process}",{text}}}\n')

    def fault(self, t, phase, name="F22", target="server"):
        return t, f'"op":"fault","ph":"ok","name":"{name}","target":"{target}","phase":"{phase}"'

    def test_measures_recovery_from_the_end_of_the_fault_to_the_next_event(self, tmp_path):
        """Each node has recovered when it runs its first event after the end of the fault."""
        self.write(tmp_path, "runner.1", self.fault(10**9, "begin"), self.fault(2 * 10**9, "end"))
        run = '"op":"run","ph":"inv","k":1'
        self.write(tmp_path, "node-1.2", (1_500_000_000, run), (2_040_000_000, run))
        self.write(tmp_path, "node-2.3", (2_700_000_000, run))
        found = Findings.of(History(tmp_path))
        recovery_ms = {who: ms for _, who, ms in found.recoveries()}
        assert {"node-1": 40.0, "node-2": 700.0} == recovery_ms

    def test_omits_a_recovery_during_which_another_fault_began(self, tmp_path):
        """The time would include the other fault, so it says nothing about the first."""
        self.write(
            tmp_path,
            "runner.1",
            self.fault(10**9, "begin"),
            self.fault(2 * 10**9, "end"),
            self.fault(2_100_000_000, "begin", "F52", "node-1"),
            self.fault(5 * 10**9, "end", "F52", "node-1"),
        )
        self.write(tmp_path, "node-1.2", (4 * 10**9, '"op":"run","ph":"inv","k":1'))
        assert [] == [
            who
            for strike, who, _ in Findings.of(History(tmp_path)).recoveries()
            if strike.fault == "F22"
        ]

    def test_omits_a_node_that_was_still_starting(self, tmp_path):
        """A killed node whose successor is starting is late for that reason, not for the fault."""
        self.write(
            tmp_path,
            "runner.1",
            (10**9, '"op":"kill","ph":"ok","pid":2,"who":"node-1.2"'),
            self.fault(8 * 10**9, "begin"),
            self.fault(9 * 10**9, "end"),
        )
        begin = '"op":"node","ph":"ok","phase":"begin"'
        run = '"op":"run","ph":"inv","k":1'
        self.write(tmp_path, "node-1.3", (12 * 10**9, begin), (13 * 10**9, run))
        recovery_ms = [(s.fault, ms) for s, _, ms in Findings.of(History(tmp_path)).recoveries()]
        assert [("killed", 1000.0)] == recovery_ms

    def test_reports_threads_left_behind_and_bugs(self, tmp_path):
        """Findings are threads that outlive their node, and errors that ask for a report."""
        node = '"op":"node","ph":"ok","phase":"end","descriptors":[],"threads":["dtimer-callbacks"]'
        error = '"op":"error","ph":"ok","kind":"ScriptError","text":"please report this"'
        self.write(tmp_path, "node-1.2", (1, error), (2, node))
        found = Findings.of(History(tmp_path))
        assert ["node-1.2 left threads: ['dtimer-callbacks']"] == found.left
        assert 1 == len(found.bugs)


def test_a_cluster_client_of_a_soak_reaches_its_server_through_the_proxy(namespace):
    """If the client connected directly, the faults of the proxy would not concern it."""
    with (
        Server(tcp=True, args=cluster.ARGS) as server,
        cluster.joined(server, cluster.ARGS) as others,
        Proxy(server) as proxy,
        contextlib.closing(cluster.client(proxy.url, server.port, threading.Event())) as client,
    ):
        timer = DTimer("poster", client, ns=namespace, timeout=LONGEST_CALL)
        timer.post({"n": 1}, 3_600_000, id="tea")
        for other in others:
            other.pause()
        assert proxy.connections
        proxy.cut()
        assert {"n": 1} == timer.peek("tea").event
        for other in others:
            other.resume()
        timer.leave()
