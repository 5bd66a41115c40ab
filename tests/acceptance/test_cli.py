"""The commands of the command line, each as a user gives it."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from servers import PATIENCE, eventually

import dtimer
from dtimer import DTimer
from dtimer.cli import main
from dtimer.cli.app import app
from dtimer.cli.server import answers

pytestmark = pytest.mark.acceptance

NOBODY = "redis://127.0.0.1:1"
HOUR = 3_600_000


@dataclass
class Ran:
    """What became of a command."""

    code: int
    out: str
    err: str

    @property
    def objects(self):
        """The lines of standard output, read as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(server, namespace, monkeypatch, capsys):
    """Run a command in this process, on the server and the namespace of the test."""
    monkeypatch.setenv("DTIMER_URL", server.url)
    monkeypatch.setenv("DTIMER_NS", namespace)

    def run(*words):
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture
def timer(server, namespace):
    """A timer that meets the commands, and looks at what they did."""
    timer = DTimer("looker", server.url, ns=namespace)
    yield timer
    timer.leave()


@pytest.fixture
def no_io(monkeypatch, tmp_path):
    """No server is named; whoever connects to one, or begins to look for one, fails."""
    monkeypatch.delenv("DTIMER_URL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def refuse(*_):
        raise AssertionError("there was I/O")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    yield
    assert not (tmp_path / "state").exists()


def python(*words, **settings):
    """Run Python as a process of its own, which finds this dtimer."""
    paths = [str(Path(dtimer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    env |= settings.pop("env", {})
    done = subprocess.run(
        [sys.executable, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=env,
        **settings,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


class TestVersion:
    """``dtimer --version`` answers at once."""

    def test_it_is_the_version(self):
        """``python -m dtimer --version`` prints the version and nothing else."""
        ran = python("-m", "dtimer", "--version")
        assert (0, f"dtimer {dtimer.__version__}\n", "") == (ran.code, ran.out, ran.err)

    def test_it_imports_nothing_for_it(self):
        """The version is told without click, rich, redis and asyncio."""
        code = """
import sys
from dtimer.cli import main
main(["--version"])
print([name for name in ("click", "rich", "redis", "asyncio") if name in sys.modules])
"""
        ran = python("-c", code)
        assert "[]" == ran.out.splitlines()[-1]

    def test_it_is_told_among_options_too(self, run):
        """``--version`` behind another option says the same."""
        ran = run("--json", "--version")
        assert (0, f"dtimer {dtimer.__version__}\n") == (ran.code, ran.out)

    @pytest.mark.parametrize("extra", ["click", "rich"])
    def test_without_the_extra(self, extra, run, monkeypatch):
        """Without click or rich every other command says what to install."""
        monkeypatch.setitem(sys.modules, extra, None)
        ran = run("stats")
        assert 4 == ran.code
        assert "pip install 'dtimer[cli]'" in ran.err
        assert 0 == run("--version").code


class TestPost:
    """``dtimer post``."""

    def test_it_posts(self, run, timer):
        """An event is posted, due after its delay, and its id alone is printed."""
        before = time.time() * 1000
        ran = run("post", '{"msg": "hello"}', "1h30m")
        assert (0, "") == (ran.code, ran.err)
        record = timer.peek(ran.out.strip())
        assert {"msg": "hello"} == record.event
        assert -1 < record.due - before - 1.5 * HOUR < PATIENCE * 1000

    def test_its_options(self, run, timer):
        """``--id``, ``--at``, ``--expires`` and ``--max-retries`` are those of ``post``."""
        words = ("--id", "tea", "--at", "2030-01-31T09:00+01:00", "--max-retries", 7)
        ran = run("post", "{}", *words, "--expires", "2030-02-01T00:00Z", "--json")
        assert [{"id": "tea", "stored": True}] == ran.objects
        assert 1_896_076_800_000 == timer.peek("tea").due

    def test_if_exists(self, run, timer):
        """``--if-exists error`` refuses with exit code 1; ``keep`` keeps; the default replaces."""
        run("post", '{"n": 1}', "1h", "--id", "tea")
        refused = run("post", '{"n": 2}', "1h", "--id", "tea", "--if-exists", "error")
        assert 1 == refused.code
        assert "pending already" in refused.err
        kept = run("post", '{"n": 3}', "1h", "--id", "tea", "--if-exists", "keep")
        assert (0, "tea") == (kept.code, kept.out.strip())
        assert "not stored: an event with the id tea exists already and was kept" in kept.err
        told = run("post", "{}", "1h", "--id", "tea", "--if-exists", "keep", "--json")
        assert {"id": "tea", "stored": False} in told.objects
        assert {"n": 1} == timer.peek("tea").event
        assert 0 == run("post", '{"n": 4}', "1h", "--id", "tea").code
        assert {"n": 4} == timer.peek("tea").event

    def test_local_time_is_shown(self, server, namespace):
        """A moment without a zone is taken as local time, and that is said, with its offset."""
        words = ("post", "{}", "--id", "tea", "--at", "2030-01-31 09:00")
        env = {"TZ": "Asia/Kolkata"}
        ran = python("-m", "dtimer", "--url", server.url, "--ns", namespace, *words, env=env)
        assert "tea\n" == ran.out
        assert "due 2030-01-31 09:00:00+05:30, taken as local time\n" == ran.err

    def test_any_letter(self, run, timer):
        """What JSON can spell arrives as it was spelled: big integers, empty lists, surrogates."""
        event = r'{"a": [], "n": 9007199254740993, "u": "\ud800", "x": 1e22}'
        ran = run("post", event, "1h")
        assert json.loads(event) == timer.peek(ran.out.strip()).event


BAD = [
    ("post", "x"),
    ("post", "[1]"),
    ("post", '"text"'),
    ("post", '{"n": NaN}'),
    ("post", '{"n": 1e999}'),
    ("post", '{"n": ' * 101 + "0" + "}" * 101),
    ("post", "[" * 100_000),
    ("post", json.dumps({"n": "x" * 300_000})),
    ("post",),
    ("post", "{}", "5x"),
    ("post", "{}", "10m1h"),
    ("post", "{}", "101000d"),
    ("post", "{}", "1s", "--at", "2030-01-31"),
    ("post", "{}", "--at", "tomorrow"),
    ("post", "{}", "--at", "1790000000"),
    ("post", "{}", "--expires", "0"),
    ("post", "{}", "--expires", "soon"),
    ("post", "{}", "--id", ""),
    ("post", "{}", "--id", "a\nb"),
    ("post", "{}", "--id", "x" * 256),
    ("post", "{}", "--max-retries", "-1"),
    ("post", "{}", "--max-retries", "x"),
    ("post", "{}", "--if-exists", "panic"),
    ("post", "{}", "1s", "2s"),
    ("cancel",),
    ("cancel", ""),
    ("upcoming", "--limit", "0"),
    ("listen", "--concurrency", "0"),
    ("listen", "--max-events", "101"),
    ("listen", "--id", ""),
    ("listen", "--handler", "module"),
    ("listen", "--handler", "no good:name"),
    ("stats", "--ns", "a{b"),
    ("--ns", "", "stats"),
    ("--url", "http://localhost", "stats"),
    ("--url", "embedded:folder", "stats"),
    ("demo", "--ns", "mine"),
    ("nothing",),
    ("--nothing", "stats"),
]


class TestBadInput:
    """What cannot be meant is refused before anything is asked of anybody."""

    @pytest.mark.parametrize("words", BAD, ids=lambda words: " ".join(words)[:40])
    def test_exit_2_before_any_io(self, words, run, no_io):
        """Bad input ends with exit code 2 and a message, and nothing was connected to."""
        ran = run(*words)
        assert (2, "") == (ran.code, ran.out)
        assert re.search(r"Error: .{10}", ran.err, re.DOTALL)

    @pytest.mark.parametrize("words", BAD[:5], ids=lambda words: " ".join(words)[:40])
    def test_as_json(self, words, run, no_io):
        """With ``--json``, before the command or after it, the message is a JSON object."""
        for order in (("--json", *words), (*words, "--json")):
            ran = run(*order)
            assert (2, "") == (ran.code, ran.out)
            assert {"error", "text"} == set(json.loads(ran.err))

    def test_a_bad_namespace_in_the_environment(self, run, no_io, monkeypatch):
        """``DTIMER_NS`` is checked as ``--ns`` is."""
        monkeypatch.setenv("DTIMER_NS", "a{b")
        assert 2 == run("stats").code


class TestSharedOptions:
    """``--url``, ``--ns`` and ``--json``."""

    def test_before_the_command_or_after(self, run, timer, namespace):
        """They are taken on either side of the command; the one after it wins."""
        timer.post({}, HOUR, id="tea")
        for words in (
            ("--json", "--ns", namespace, "upcoming"),
            ("upcoming", "--json", "--ns", namespace),
            ("--ns", "other", "upcoming", "--ns", namespace, "--json"),
        ):
            assert ["tea"] == [record["id"] for record in run(*words).objects]

    def test_they_win_over_the_environment(self, run, monkeypatch, server):
        """An option is stronger than the environment variable of its name."""
        monkeypatch.setenv("DTIMER_URL", NOBODY)
        assert 3 == run("stats").code
        assert 0 == run("stats", "--url", server.url).code
        assert 0 == run("--url", server.url, "stats").code

    def test_no_colours_in_a_pipe(self, run, timer, monkeypatch):
        """What is not a terminal gets no colours, not even by force of the environment."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        timer.post({}, HOUR)
        for command in ("upcoming", "stats"):
            assert "\x1b" not in run(command).out


class TestUpcoming:
    """``dtimer upcoming``."""

    def test_in_due_order(self, run, timer):
        """Waiting events are listed in due order, in columns held apart by tabs."""
        timer.post({"n": 2}, 2 * HOUR, id="later")
        timer.post({"n": 1}, HOUR, id="sooner")
        rows = [line.split("\t") for line in run("upcoming").out.splitlines()]
        assert [["sooner", "0", '{"n": 1}'], ["later", "0", '{"n": 2}']] == [r[2:] for r in rows]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", rows[0][0])
        assert re.fullmatch(r"in (59m\d+s|1h)", rows[0][1])

    def test_as_json(self, run, timer):
        """With ``--json`` each is an object: id, event, due, state, attempt."""
        timer.post({"n": 1}, at=1_896_076_800_000, id="tea")
        known = {"id": "tea", "event": {"n": 1}, "due": 1_896_076_800_000.0}
        assert [known | {"state": "scheduled", "attempt": 0}] == run("upcoming", "--json").objects

    def test_limit(self, run, timer):
        """``--limit`` lists so many, and says when there are more."""
        timer.post_many(({"n": n}, HOUR + n) for n in range(60))
        ran = run("upcoming", "--limit", 3)
        assert 3 == len(ran.out.splitlines())
        assert "more than these 3" in ran.err
        assert 50 == len(run("upcoming").out.splitlines())
        ran = run("upcoming", "--limit", 60)
        assert (60, "") == (len(ran.out.splitlines()), ran.err)

    def test_nothing(self, run, namespace):
        """That nothing is waiting is no error, and is said on stderr."""
        ran = run("upcoming")
        assert (0, "") == (ran.code, ran.out)
        assert f"nothing is waiting in the namespace {namespace}" in ran.err

    def test_what_a_terminal_would_obey_is_escaped(self, run, timer):
        """Control and direction characters in an event do not reach the terminal."""
        timer.post({"msg": "\x1b[2J\x9b2J\u202eü\ud800\t"}, HOUR)
        out = run("upcoming").out
        assert r'{"msg": "\u001b[2J\u009b2J\u202eü\ud800\t"}' in out


class TestCancel:
    """``dtimer cancel``: the exit code tells what became of it."""

    def test_cancelled(self, run, timer):
        """0: it will never start."""
        timer.post({}, HOUR, id="tea")
        ran = run("cancel", "tea", "--json")
        assert (0, [{"id": "tea", "outcome": "cancelled"}]) == (ran.code, ran.objects)
        assert timer.peek("tea") is None

    def test_not_found(self, run):
        """1: there is none."""
        ran = run("cancel", "tea")
        assert 1 == ran.code
        assert ran.out.startswith("not found")

    def test_in_flight(self, run, timer):
        """5: it has been handed out already."""
        began, go_on = threading.Event(), threading.Event()

        @timer.on("event")
        def handle(events):
            began.set()
            go_on.wait(PATIENCE)

        with timer:
            timer.post({}, id="tea")
            assert began.wait(PATIENCE)
            ran = run("cancel", "tea")
            go_on.set()
        assert 5 == ran.code
        assert ran.out.startswith("in flight")


class TestStats:
    """``dtimer stats``."""

    def test_as_json(self, run, timer, namespace):
        """With ``--json`` all of ``stats()``, and the namespace it is of."""
        timer.post({}, HOUR)
        (told,) = run("stats", "--json").objects
        assert namespace == told["ns"]
        assert (1, 0, 0) == (told["scheduled"], told["in_flight"], told["dead"])
        assert 1 == told["totals"]["posted"]

    def test_for_people(self, run, timer):
        """For people a number on a line, and whether the namespace is paused."""
        timer.post({}, HOUR)
        timer.pause()
        out = run("stats").out
        assert re.search(r"^scheduled +1$", out, re.MULTILINE)
        assert "(paused)" in out
        assert re.search(r"^ever +posted 1$", out, re.MULTILINE)


class TestServer:
    """Which server a command talks to."""

    def test_unreachable(self, run):
        """A server that was named and does not answer is an error, exit code 3."""
        ran = run("--url", NOBODY, "stats")
        assert (3, "") == (ran.code, ran.out)
        assert "could not be reached" in ran.err

    def test_no_replicas(self, run, timer):
        """An event that is on too few replicas is posted, and the exit code is 3."""
        arguments = ("post", "{}", "1h", "--id", "tea", "--wait-replicas")
        assert 0 == run(*arguments, 0).code
        ran = run(*arguments, 1)
        assert (3, "") == (ran.code, ran.out)
        assert "'tea' is posted, and on 0 of 1 replicas" in ran.err
        assert timer.peek("tea")

    def test_unreachable_as_json(self, run):
        """With ``--json`` so is what is said of it."""
        ran = run("--url", NOBODY, "stats", "--json")
        assert 3 == ran.code
        assert "StoreError" == json.loads(ran.err)["error"]

    @pytest.fixture
    def alone(self, run, monkeypatch, tmp_path):
        """Nothing answers at the usual place, and nobody named another."""
        monkeypatch.delenv("DTIMER_URL")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a state folder"))
        monkeypatch.setattr("dtimer.cli.server.answers", lambda: False)
        yield run
        lock = tmp_path / "a state folder" / "dtimer" / "embedded" / "server.sock"
        eventually(lambda: not lock.exists())

    def test_the_embedded_one_is_shared(self, alone, tmp_path):
        """
        With no server at hand commands meet on the embedded one in the state folder, which
        keeps what they posted, and each says so on stderr.
        """
        posted = alone("post", '{"msg": "hello"}', "1h", "--id", "tea")
        assert (0, "tea\n") == (posted.code, posted.out)
        assert f"using the embedded server in {tmp_path}" in posted.err
        listed = alone("upcoming", "--json")
        assert ["tea"] == [record["id"] for record in listed.objects]
        assert str(tmp_path) in json.loads(listed.err)["folder"]

    def test_none_to_be_had(self, alone, monkeypatch):
        """With no server at all, exit code 3 and what to do about it."""
        monkeypatch.setattr("dtimer.store.embedded.available", lambda: False)
        ran = alone("stats")
        assert 3 == ran.code
        assert "--url" in ran.err
        assert "pip install 'dtimer[embedded]'" in ran.err

    def test_the_usual_place_comes_first(self, run, timer, server, monkeypatch):
        """A server at the usual place is used without a word, and nothing is embedded."""
        monkeypatch.delenv("DTIMER_URL")
        monkeypatch.setattr("dtimer.cli.server.DEFAULT_URL", server.url)
        monkeypatch.setattr("dtimer.cli.server.answers", lambda: True)
        ran = run("post", "{}", "1h", "--id", "tea")
        assert (0, "") == (ran.code, ran.err)
        assert timer.peek("tea")

    def test_whatever_answers_is_taken(self):
        """
        Whatever accepts a connection at the usual place is taken, be it slow to say
        anything: two terminals must not end on two servers.
        """
        with socket.create_server(("127.0.0.1", 0)) as mute:
            port = mute.getsockname()[1]
            assert answers(f"redis://127.0.0.1:{port}")
        assert not answers(f"redis://127.0.0.1:{port}")


COMMANDS = {
    *("post", "peek", "upcoming", "reschedule", "cancel"),
    *("every", "cron", "schedules", "unschedule", "run-now"),
    *("listen", "nodes", "stats", "health", "tail", "top", "pause", "resume"),
    *("dead", "revive", "purge", "export", "import"),
    *("doctor", "demo", "completion"),
}


def examples(help):
    """The commands in a help text that begin with a prompt."""
    return [shlex.split(line)[2:] for line in re.findall(r"^ *(\$ dtimer .*)$", help, re.MULTILINE)]


class TestHelp:
    """``--help`` tells each command by an example that works."""

    @pytest.mark.parametrize("name", [None, *sorted(app.commands)])
    def test_each_has_an_example(self, name, run):
        """Every command has an example of itself in its help, and so has the whole."""
        ran = run(*filter(None, [name]), "--help")
        found = examples(ran.out)
        assert 0 == ran.code
        assert found
        assert all(len(line) < 80 for line in ran.out.splitlines())
        assert name in {None, *(words[0] for words in found)}

    def test_the_commands_of_this_version(self):
        """The commands are these; one more needs its tests, and its examples run."""
        assert COMMANDS == set(app.commands)
