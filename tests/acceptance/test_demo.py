"""``dtimer demo``: what it says is true, and nothing is left of it."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from servers import LIMIT, PATIENCE, PROMPT, eventually

import dtimer
from dtimer import Stats
from dtimer.cli.app import app
from dtimer.cli.demo.play import LEASE, Outcome
from dtimer.cli.demo.tally import Tally, percentile

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

#: Seconds. The demo promises 20 of itself, on a machine that does little else.
LONGEST = LIMIT / 3

TRUTH = r"posted 400, handled 400, redelivered [1-9]\d* \((node-[123]) was killed\), lost 0"

HEADS = "node state received handled in flight again p50 ms p99 ms max ms"


class Demo:
    """A demo in a process of its own, marked so that all that it starts can be found."""

    def __init__(self, *words, stdout=subprocess.PIPE):
        self._mark = f"DEMO_MARK={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        paths = [str(Path(dtimer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {name: value, "TERM": "xterm-256color"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        # It must not take the server of anybody else.
        env |= {"DTIMER_URL": "redis://127.0.0.1:1", "DTIMER_NS": "somebody-elses"}
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dtimer", "demo", *words],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )

    def finish(self):
        """Wait for its end; return the lines that it printed, and what it said on stderr."""
        out, err = self.process.communicate(timeout=LONGEST + PATIENCE)
        return (out or "").splitlines(), err

    def processes(self):
        """
        The ids of itself, of what it started, and of what these did: all that live. (Linux.)

        All but the server have the mark; that one writes its title over it, and is found
        as the child of its keeper.
        """
        marked, parents = set(), {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parents[folder.name] = re.findall(r"PPid:\s(\d+)", (folder / "status").read_text())
                if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    marked.add(folder.name)
            except OSError:
                continue  # it has ended, or is not ours
        return marked | {pid for pid, parent in parents.items() if marked & set(parent)}

    def under_way(self):
        """Return when the events have been posted, with the processes that there are then."""
        out: Any = self.process.stdout
        while "posted 400 events" not in out.readline():
            assert self.process.poll() is None
        found = self.processes()
        if sys.platform == "linux":  # itself, three nodes, the server, and its keeper
            assert 6 == len(found)
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def alive(pid):
    """Whether a process is there, and has not merely not been waited for."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


class Terminal:
    """A terminal of so many columns, and what was written to it."""

    def __init__(self, columns):
        self.columns = columns
        self.ours, self.theirs = pty.openpty()
        size = struct.pack("HHHH", 50, columns, 0, 0)
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, size)

    def close(self):
        os.close(self.ours)


def watch(demos):
    """Read the terminals of *demos* until each has been closed; return what was written."""
    written = dict.fromkeys(demos, b"")
    by_descriptor = {terminal.ours: terminal for terminal in demos}
    deadline = time.monotonic() + LONGEST + PATIENCE
    while by_descriptor:
        assert time.monotonic() < deadline
        for descriptor in select.select(list(by_descriptor), [], [], 1)[0]:
            try:
                data = os.read(descriptor, 65_536)
            except OSError:  # Linux says so when the other end is closed
                data = b""
            if data:
                written[by_descriptor[descriptor]] += data
            else:
                del by_descriptor[descriptor]
    return {terminal: data.decode() for terminal, data in written.items()}


class TestDemo:
    """The whole of it."""

    def test_what_it_says(self):
        """
        400 events are posted and handled and none is lost, and the event of the killed node
        is received again by another within lease + 1 s. Redis counts the same as the
        reports. It takes less than 20 s, and leaves no process behind. The last line
        says so in words; with --json the one object says more.
        """
        with Demo() as plain, Demo("--json") as as_json:
            lines, err = plain.finish()
            objects, err_json = as_json.finish()
            took = time.monotonic() - plain.began
            assert (0, 0) == (plain.process.returncode, as_json.process.returncode), (err, err_json)
            eventually(lambda: not plain.processes() | as_json.processes())
        assert ("", "") == (err, err_json)
        assert took < LONGEST

        truth = re.fullmatch(TRUTH, lines[-1])
        assert truth
        assert re.search(r"posted 400, confirmed 400, pending 0$", lines[-2])
        killed = truth[1]
        assert [killed] == [line.split()[0] for line in lines if re.match(r"node-\d +killed", line)]
        assert any(re.search(rf"{killed} \(pid \d+\) killed by SIGKILL", line) for line in lines)

        (told,) = [json.loads(line) for line in objects]
        assert told["ok"]
        assert (400, 400, 0) == (told["posted"], told["handled"], told["lost"])
        assert told["redelivered"] >= 1
        assert told["again_by"] != told["killed"]
        assert told["again_after_ms"] <= LEASE + 1_000 * PROMPT
        assert ["killed", "left", "left"] == sorted(node["state"] for node in told["nodes"])
        assert 400 == sum(node["handled"] for node in told["nodes"])
        assert 400 + told["redelivered"] == sum(node["received"] for node in told["nodes"])
        server = told["server"]
        assert (0, 0) == (server["pending"], server["dead"])
        assert (400, 400) == (server["posted"], server["confirmed"])
        assert server["started"] == 400 + told["redelivered"]
        late = told["lateness_ms"]
        assert 0 <= late["p50"] <= late["p99"] <= late["max"]

    def test_on_terminals_and_a_given_server(self, server, client):
        """
        On a terminal of 80 columns, and of 160, a table lives in its place: no line is
        longer than the terminal, and no heading is cut. With --url it plays on that
        server, in a namespace of which nothing remains.
        """
        narrow, wide = Terminal(80), Terminal(160)
        words = ("--url", server.url)
        with Demo(*words, stdout=narrow.theirs) as one, Demo(*words, stdout=wide.theirs) as two:
            for terminal in (narrow, wide):
                os.close(terminal.theirs)
            written = watch([narrow, wide])
            for demo in (one, two):
                assert "" == demo.finish()[1]
                assert 0 == demo.process.returncode
        for terminal, text in written.items():
            terminal.close()
            assert "\x1b[?25h" in text  # the cursor that a live table hides is back
            lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()
            lines = [line.rstrip() for line in lines if line.strip()]
            assert re.fullmatch(TRUTH, lines[-1])
            assert max(map(cell_len, lines)) <= terminal.columns
            heads = [line for line in lines if line.startswith("node ")]
            assert len(heads) > 2  # frames
            assert HEADS == " ".join(heads[-1].split())
            assert "…" not in text
        assert [] == list(client.scan_iter(match="dtimer:{demo-*", count=10_000))

    def test_ctrl_c(self):
        """Ctrl-C ends it, nodes and server and all, with exit code 130."""
        with Demo() as demo:
            found = demo.under_way()
            demo.process.send_signal(signal.SIGINT)
            demo.finish()
            assert 130 == demo.process.returncode
            eventually(lambda: not any(map(alive, found)))

    def test_killed_itself(self):
        """Even when the demo itself is killed, its nodes and its server end."""
        with Demo() as demo:
            found = demo.under_way()
            demo.process.kill()
            demo.finish()
            eventually(lambda: not any(map(alive, found)))

    def test_no_server(self):
        """A server that is named and not there is exit code 3, and no node is started."""
        with Demo("--url", "redis://127.0.0.1:1") as demo:
            lines, err = demo.finish()
        assert (3, []) == (demo.process.returncode, lines)
        assert "could not be reached" in err

    def test_the_examples_of_its_help(self):
        """The examples in its help are the two ways in which it is run here."""
        words = app.commands["demo"].epilog or ""
        lines = [line.strip() for line in words.splitlines()]
        examples = [shlex.split(line)[2:] for line in lines if line.startswith("$ dtimer")]
        assert [["demo"], ["demo", "--json"]] == examples


NOTHING = Stats(0, 0, 0, 0.0, 0, 0, paused=False, totals={})


class TestTruth:
    """The counts, and that it does not call a failure a success."""

    def tally(self):
        tally = Tally(["node-1", "node-2"])
        tally.posted = ["a", "b", "c"]
        for report in (
            ["ready", 1],
            ["start", "a", 1, 0.5, False],
            ["done", "a", 1],
            ["start", "b", 1, 1.5, True],
        ):
            tally.read(tally.nodes[0], report)
        return tally

    def test_lost_is_what_nobody_reported_as_handled(self):
        """Posted and not reported as handled is lost, whether it was started or not."""
        tally = self.tally()
        assert (2, {"b"}) == (tally.lost, tally.nodes[0].in_flight)
        tally.read(tally.nodes[1], ["start", "b", 2, 0.5, False])
        tally.read(tally.nodes[1], ["done", "b", 2])
        assert (1, {"b"}) == (tally.lost, tally.redelivered)

    def test_ok_wants_all_of_it(self):
        """
        It is a success only if nothing is lost, the redelivery was seen, and Redis holds
        nothing any more.
        """
        tally = self.tally()
        tally.posted = ["a"]
        assert Outcome(tally, NOTHING, 1.0, "node-1", "node-2", 2_000.0).ok
        assert not Outcome(tally, NOTHING, 1.0, "node-1", None, None).ok
        assert not Outcome(
            tally, dataclasses.replace(NOTHING, scheduled=1), 1.0, "node-1", "node-2", 2_000.0
        ).ok
        assert not Outcome(
            tally, dataclasses.replace(NOTHING, in_flight=1), 1.0, "node-1", "node-2", 2_000.0
        ).ok
        assert not Outcome(
            tally, dataclasses.replace(NOTHING, dead=1), 1.0, "node-1", "node-2", 2_000.0
        ).ok
        tally.posted = ["a", "b"]
        lost = Outcome(tally, NOTHING, 1.0, "node-1", "node-2", 2_000.0)
        assert not lost.ok
        assert lost.line().endswith("lost 1")

    def test_percentile(self):
        """The nearest rank: the least value that so many of them do not exceed."""
        values = [float(n) for n in range(100, 0, -1)]
        assert [50, 99, 100] == [percentile(values, part) for part in (0.5, 0.99, 1)]
        assert 7 == percentile([7.0], 0.5)
        assert percentile([], 0.5) is None
