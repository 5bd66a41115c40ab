"""``dtimer demo``: its output is correct, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.cells import cell_len
from servers import LIMIT, eventually
from shell import import_path

from dtimer import Stats
from dtimer.cli.app import app
from dtimer.cli.demo.counts import Counts, NodeCounts, Outcome
from dtimer.cli.demo.run import FATAL_DELAY, LEASE, MAX_DELAY

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

SUMMARY = r"posted 400, handled 400, redelivered [1-9]\d* \((node-[123]) was killed\), lost 0"

COLUMN_HEADINGS = "node state received handled in flight again p50 ms p99 ms max ms"


class Demo:
    """A demo in a separate process, marked so that all processes it starts can be found."""

    def __init__(self, *words, stdout=subprocess.PIPE):
        self._mark = f"DEMO_MARK={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        env = os.environ | import_path() | {name: value, "TERM": "xterm-256color"}
        # The demo must not use a server from the environment.
        env |= {"DTIMER_URL": "redis://127.0.0.1:1", "DTIMER_NS": "another"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dtimer", "demo", *words],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )

    def finish(self):
        """Wait for the end; return the printed lines and the text on stderr."""
        out, err = self.process.communicate(timeout=LIMIT)
        return (out or "").splitlines(), err

    def processes(self):
        """
        Return the ids of the demo's live processes, direct and indirect. (Linux.)

        All processes except the server have the mark. The server overwrites it with its title, and
        is found as the child of its supervisor.
        """
        marked, parents = set(), {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parents[folder.name] = re.findall(r"PPid:\s(\d+)", (folder / "status").read_text())
                if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    marked.add(folder.name)
            except OSError:
                continue  # The process has ended, or belongs to another user.
        return marked | {pid for pid, parent in parents.items() if marked & set(parent)}

    def wait_until_posted(self):
        """Wait until the events have been posted; return the processes that exist then."""
        out: Any = self.process.stdout
        while "posted 400 events" not in out.readline():
            assert self.process.poll() is None
        pids = self.processes()
        if sys.platform == "linux":  # the demo, three nodes, the server and its supervisor
            assert 6 == len(pids)
        return pids

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def alive(pid):
    """Return True if the process runs; a zombie does not count."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


#: The width of the terminal.
COLUMNS = 80


def read_terminal(descriptor):
    """Return the text that is written to a terminal until it is closed."""
    written = b""
    with contextlib.suppress(OSError):  # Linux reports the closed other end this way
        while data := os.read(descriptor, 65_536):
            written += data
    os.close(descriptor)
    return written.decode()


class Finished(NamedTuple):
    """Three demos that have ended: in a pipe, as JSON, and at a terminal with a given server."""

    lines: list[str]
    objects: list[str]
    written: str
    errors: list[str]
    codes: list[int]
    left: list[Demo]


@pytest.fixture(scope="module")
def finished(server):
    """Three demos that ran at the same time, because each takes several seconds."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    with (
        Demo() as plain,
        Demo("--json") as as_json,
        Demo("--url", server.url, stdout=theirs) as table,
    ):
        os.close(theirs)
        written = read_terminal(ours)
        demos = [plain, as_json, table]
        (lines, *_), (objects, *_), _ = outputs = [demo.finish() for demo in demos]
        codes = [demo.process.returncode for demo in demos]
        yield Finished(lines, objects, written, [err for _, err in outputs], codes, demos)


class TestDemo:
    """The demo as a whole."""

    def test_it_ends_without_an_error_or_a_process(self, finished):
        """A process that stays would hold a port and the memory of a server."""
        assert [0, 0, 0] == finished.codes, finished.errors
        assert ["", "", ""] == finished.errors
        eventually(lambda: not set().union(*(demo.processes() for demo in finished.left)))

    def test_the_last_line_and_the_json_are_correct(self, finished):
        """
        No event is lost, and another node gets the event of a killed node. Redis counts the same
        numbers.
        """
        lines, objects = finished.lines, finished.objects
        summary = re.fullmatch(SUMMARY, lines[-1])
        assert summary
        assert re.search(r"posted 400, confirmed 400, pending 0$", lines[-2])
        killed = summary[1]
        assert [killed] == [line.split()[0] for line in lines if re.match(r"node-\d +killed", line)]
        assert any(re.search(rf"{killed} \(pid \d+\) killed by SIGKILL", line) for line in lines)

        (result,) = [json.loads(line) for line in objects]
        assert result["ok"]
        assert (400, 400, 0) == (result["posted"], result["handled"], result["lost"])
        assert result["redelivered"] >= 1
        assert result["again_by"] != result["killed"]
        assert result["again_after_ms"] > 0
        assert ["killed", "left", "left"] == sorted(node["state"] for node in result["nodes"])
        assert 400 == sum(node["handled"] for node in result["nodes"])
        assert 400 + result["redelivered"] == sum(node["received"] for node in result["nodes"])
        server = result["server"]
        assert (0, 0) == (server["pending"], server["dead"])
        assert (400, 400) == (server["posted"], server["confirmed"])
        assert server["started"] == 400 + result["redelivered"]
        lateness = result["lateness_ms"]
        assert 0 <= lateness["p50"] <= lateness["p99"] <= lateness["max"]

    def test_it_plans_less_than_the_ten_seconds_that_its_help_promises(self):
        """The last event is due, and the lease of the killed node has ended, before that."""
        assert "in ten seconds" in (app.commands["demo"].help or "")
        assert max(MAX_DELAY, FATAL_DELAY + LEASE) <= 7_000

    def test_the_table_fits_the_terminal_and_a_given_server_is_used(self, finished, client):
        """
        The table is updated in place, and no heading is cut. With --url the demo uses that server,
        in a namespace that is empty afterwards.
        """
        text = finished.written
        assert "\x1b[?25h" in text  # the cursor, which a live table hides, is shown again
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()
        lines = [line.rstrip() for line in lines if line.strip()]
        assert re.fullmatch(SUMMARY, lines[-1])
        assert max(map(cell_len, lines)) <= COLUMNS
        headings = [line for line in lines if line.startswith("node ")]
        assert len(headings) > 2  # frames
        assert COLUMN_HEADINGS == " ".join(headings[-1].split())
        assert "…" not in text
        assert [] == list(client.scan_iter(match="dtimer:{demo-*", count=10_000))

    def test_ctrl_c_ends_all_processes(self):
        """Ctrl-C ends the demo with its nodes and server, and the exit code is 130."""
        with Demo() as demo:
            pids = demo.wait_until_posted()
            demo.process.send_signal(signal.SIGINT)
            demo.finish()
            assert 130 == demo.process.returncode
            eventually(lambda: not any(map(alive, pids)))

    def test_killing_the_demo_ends_its_processes(self):
        """If the demo is killed, its nodes and its server end too."""
        with Demo() as demo:
            pids = demo.wait_until_posted()
            demo.process.kill()
            demo.finish()
            eventually(lambda: not any(map(alive, pids)))

    def test_an_unreachable_server_is_exit_code_3(self):
        """If the named server cannot be reached, the exit code is 3 and no node is started."""
        with Demo("--url", "redis://127.0.0.1:1") as demo:
            lines, err = demo.finish()
        assert (3, []) == (demo.process.returncode, lines)
        assert "could not be reached" in err

    def test_the_examples_of_its_help_are_tested(self):
        """The examples in the help are the two ways in which these tests run the demo."""
        words = app.commands["demo"].epilog or ""
        lines = [line.strip() for line in words.splitlines()]
        examples = [shlex.split(line)[2:] for line in lines if line.startswith("$ dtimer")]
        assert [["demo"], ["demo", "--json"]] == examples


NOTHING = Stats(0, 0, 0, 0.0, 0, 0, paused=False, totals={})


class TestCounts:
    """The demo's counts, and when it reports a failure."""

    def tally(self):
        tally = Counts(["node-1", "node-2"])
        tally.posted = ["a", "b", "c"]
        for report in (
            ["ready", 1],
            ["start", "a", 1, 0.5],
            ["done", "a"],
            ["start", "b", 1, 1.5],
            ["fatal", "b"],
        ):
            tally.read(tally.nodes[0], report)
        return tally

    def test_lost_is_posted_and_not_reported_as_handled(self):
        """An event that is not reported as handled is lost, whether it has started or not."""
        tally = self.tally()
        assert (2, {"b"}) == (tally.lost, tally.nodes[0].in_flight)
        tally.read(tally.nodes[1], ["start", "b", 2, 0.5])
        tally.read(tally.nodes[1], ["done", "b"])
        assert (1, {"b"}) == (tally.lost, tally.redelivered)

    @pytest.mark.parametrize(("state", "left"), [("starting", "died"), ("left", "left")])
    def test_a_node_whose_reports_end_has_died_unless_it_left(self, state, left):
        """A dead process handles no events."""
        tally = self.tally()
        node = tally.nodes[1]
        tally.read(node, ["start", "c", 1, 0.5])
        node.state = state
        tally.read(node, ["end"])
        assert (left, set(), {"b"}) == (node.state, node.in_flight, tally.total.in_flight)

    def test_ok_requires_every_condition(self):
        """No event is lost, one was redelivered, and Redis holds none."""
        tally = self.tally()
        tally.posted = ["a"]
        assert not Outcome(tally, NOTHING).ok
        tally.read(tally.nodes[1], ["start", "b", 2, 0.5])
        assert Outcome(tally, NOTHING).ok
        for left in ("scheduled", "in_flight", "dead"):
            assert not Outcome(tally, dataclasses.replace(NOTHING, **{left: 1})).ok
        tally.posted = ["a", "b"]
        lost = Outcome(tally, NOTHING)
        assert not lost.ok
        assert lost.line().endswith("lost 1")

    def test_percentile_is_the_nearest_rank(self):
        """This is the least value which the given part does not exceed."""
        values = [float(n) for n in range(100, 0, -1)]
        lateness = NodeCounts("node-1", lateness=values).late
        assert {"p50": 50, "p99": 99, "max": 100} == lateness
        assert 7 == NodeCounts("node-1", lateness=[7.0]).late["p50"]
        assert NodeCounts("node-1").late["p50"] is None
