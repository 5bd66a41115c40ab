"""The nemesis itself: a soak that it has spared would show less than it says."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest
from proxy import Proxy
from servers import LONGEST_CALL, Server

from chaos import cluster, nemesis
from chaos.findings import Findings
from chaos.history import History, Writer
from chaos.nemesis import Nemesis
from dtimer import DTimer


class Scripted:
    """Faults that do nothing but tell of themselves."""

    def __init__(self, *names, server=(), duds=()):
        self.log = []
        self.duds = set(duds)
        self.injections = {name: (self._injection(name), name in server) for name in names}

    def _injection(self, name):
        def inject(_):
            yield "somebody", 0.0
            self.log.append(f"+{name}")
            yield
            self.log.append(f"-{name}")
            yield name not in self.duds

        return inject


@pytest.fixture
def pen(tmp_path):
    with Writer(tmp_path, "supervisor") as pen:
        yield pen


@pytest.fixture
def play(monkeypatch, pen):
    """Makes a nemesis that strikes at each chance, with these faults and no others."""

    def make(scripted, seed=1):
        monkeypatch.setattr(nemesis, "INJECTIONS", scripted.injections)
        monkeypatch.setattr(nemesis, "_PAUSE", (0, 0))
        return Nemesis(None, pen, random.Random(seed), tuple(scripted.injections))

    return make


class TestNemesis:
    """What it strikes with, and how often."""

    def test_each_fault_before_any_twice(self, play):
        """As many strikes as there are faults, and each has struck."""
        names = [f"F{i:02}" for i in range(20)]
        scripted = Scripted(*names)
        striking = play(scripted)
        while len(scripted.log) < 2 * len(names):
            striking.act()
        striking.heal()
        assert [] == striking.never
        assert 2 >= max(striking.struck.values())

    def test_the_same_seed_strikes_the_same(self, play):
        """What is dealt follows from the seed alone."""
        logs = []
        for _ in range(2):
            scripted = Scripted(*"abcdefgh")
            striking = play(scripted, seed=5)
            for _ in range(30):
                striking.act()
            logs.append(scripted.log)
        assert logs[0] == logs[1]

    def test_one_of_the_server_at_a_time(self, play, monkeypatch):
        """What it does to the server is ended before it does anything else to it."""
        scripted = Scripted(*"abcd", server="abcd")
        striking = play(scripted)
        for _ in range(40):
            striking.act()
        striking.heal()
        for begin, end in zip(scripted.log[::2], scripted.log[1::2], strict=True):
            assert ("+", "-") == (begin[0], end[0])
            assert begin[1:] == end[1:]

    def test_what_did_not_strike_is_not_counted(self, play):
        """A fault that came to nothing is tried again, and told when it never did."""
        scripted = Scripted("F01", "F02", duds=["F02"])
        striking = play(scripted)
        for _ in range(30):
            striking.act()
        striking.heal()
        assert ["F02"] == striking.never
        assert 1 < striking.missed["F02"]

    def test_it_heals(self, play):
        """In the end nothing lasts that it began."""
        scripted = Scripted(*"abc")
        striking = play(scripted)
        striking.act()
        striking.heal()
        assert len([x for x in scripted.log if x[0] == "+"]) == len(
            [x for x in scripted.log if x[0] == "-"]
        )


class TestFindings:
    """What is read off the record of a run."""

    @staticmethod
    def write(tmp_path, process, *records):
        with (tmp_path / f"{process}.jsonl").open("a") as file:
            for t, text in records:
                file.write(f'{{"t":{t},"p":"{process}",{text}}}\n')

    def fault(self, t, phase, name="F22", target="server"):
        return t, f'"op":"fault","ph":"ok","name":"{name}","target":"{target}","phase":"{phase}"'

    def test_recovery_is_from_the_end_to_the_next_service(self, tmp_path):
        """Each node is measured by the first event that it is handed when the fault is over."""
        self.write(
            tmp_path, "supervisor.1", self.fault(10**9, "begin"), self.fault(2 * 10**9, "end")
        )
        run = '"op":"run","ph":"inv","k":1'
        self.write(tmp_path, "node-1.2", (1_500_000_000, run), (2_040_000_000, run))
        self.write(tmp_path, "node-2.3", (2_700_000_000, run))
        found = Findings.of(History(tmp_path))
        told = {who: ms for _, who, ms in found.recoveries()}
        assert {"node-1": 40.0, "node-2": 700.0} == told

    def test_a_recovery_that_something_else_delayed_is_not_told(self, tmp_path):
        """Where another fault lay between, nobody can tell what took so long."""
        self.write(
            tmp_path,
            "supervisor.1",
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

    def test_who_was_not_there_does_not_recover(self, tmp_path):
        """A node that was killed and whose successor still starts is late for another reason."""
        self.write(
            tmp_path,
            "supervisor.1",
            (10**9, '"op":"kill","ph":"ok","pid":2,"who":"node-1.2"'),
            self.fault(8 * 10**9, "begin"),
            self.fault(9 * 10**9, "end"),
        )
        begin = '"op":"node","ph":"ok","phase":"begin"'
        run = '"op":"run","ph":"inv","k":1'
        self.write(tmp_path, "node-1.3", (12 * 10**9, begin), (13 * 10**9, run))
        told = [(s.fault, ms) for s, _, ms in Findings.of(History(tmp_path)).recoveries()]
        assert [("killed", 1000.0)] == told

    def test_what_is_left_behind_is_found(self, tmp_path):
        """A thread that is there after the end of a program is a finding, and so is a bug."""
        node = '"op":"node","ph":"ok","phase":"end","descriptors":[],"threads":["dtimer-herald"]'
        error = '"op":"error","ph":"ok","kind":"ScriptError","text":"please report this"'
        self.write(tmp_path, "node-1.2", (1, error), (2, node))
        found = Findings.of(History(tmp_path))
        assert ["node-1.2 left threads: ['dtimer-herald']"] == found.left
        assert 1 == len(found.bugs)


def test_the_cluster_of_a_soak(namespace):
    """
    A program of a soak reaches its server through its own proxy, also when the others of the
    cluster hang: the client names the server, and the address that it is given is replaced.
    """
    with (
        Server(tcp=True, args=cluster.ARGS) as server,
        cluster.joined(server, cluster.ARGS) as others,
        Proxy(server) as way,
        contextlib.closing(cluster.client(way.url, server.port, threading.Event())) as client,
    ):
        timer = DTimer("poster", client, ns=namespace, timeout=LONGEST_CALL)
        timer.post({"n": 1}, 3_600_000, id="tea")
        for other in others:
            other.pause()
        assert way.connections
        way.cut()
        assert {"n": 1} == timer.peek("tea").event
        for other in others:
            other.resume()
        timer.leave()
