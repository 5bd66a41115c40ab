"""``dtimer listen``: a node in a separate process, controlled by signals and pipes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from servers import PATIENCE, Server

import dtimer
from dtimer import DTimer, State

pytestmark = pytest.mark.acceptance


class Stream:
    """The lines of a pipe, which a test can wait for."""

    def __init__(self, pipe):
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._pipe = pipe
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def _pump(self):
        for line in self._pipe:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def find(self, pattern):
        """Return the next line that matches *pattern*, skipping others."""
        passed: list[str] = []
        while True:
            line = self._lines.get(timeout=PATIENCE)
            assert line is not None, f"no {pattern!r} in {passed}"
            if re.search(pattern, line):
                return line
            passed.append(line)

    def rest(self):
        """Return the remaining lines, after the other end has been closed."""
        return list(iter(lambda: self._lines.get(timeout=PATIENCE), None))

    def close(self):
        self._thread.join(PATIENCE)
        self._pipe.close()


class Program:
    """
    ``dtimer`` in a separate process, which ends with the block.

    With *unread*, the reading end of its standard output is closed.
    """

    def __init__(self, *words, cwd=None, env=None, unread=False):
        paths = [str(Path(dtimer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        # Buffer the output as for a user, independent of the tests' environment.
        usual = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": ""}
        reading, writing = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dtimer", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=os.environ | usual | (env or {}),
        )
        os.close(writing)
        self._stdin: Any = self.process.stdin
        pipe = os.fdopen(reading)
        if unread:
            pipe.close()
        self.out = None if unread else Stream(pipe)
        self.err = Stream(self.process.stderr)

    def tell(self, text):
        """Write to the standard input of the process."""
        self._stdin.write(text)
        self._stdin.flush()

    def end(self, number=signal.SIGTERM):
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self._stdin.close()
        for stream in filter(None, (self.out, self.err)):
            stream.close()


@pytest.fixture
def env(server, namespace):
    """The environment that names the server and the namespace of the test."""
    return {"DTIMER_URL": server.url, "DTIMER_NS": namespace}


@pytest.fixture
def listening(env, tmp_path):
    """
    Return a function that starts ``dtimer listen`` in an empty folder and waits until it has
    joined.
    """
    with contextlib.ExitStack() as stack:

        def listening(*words, unread=False):
            program = Program("listen", *words, cwd=tmp_path, env=env, unread=unread)
            stack.enter_context(program).err.find("joined the namespace")
            return program

        yield listening


@pytest.fixture
def timer(server, namespace):
    """A timer that posts and reads."""
    timer = DTimer("poster", server.url, ns=namespace)
    yield timer
    timer.leave()


def handler(tmp_path, body, name="shop"):
    """Write a module with a handler with the given *body*; return the handler's name."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (tmp_path / f"{name}.py").write_text(f"import os, sys\n\ndef handle(events):\n{lines}")
    return f"{name}:handle"


class TestTwoTerminals:
    """The first steps of a new user."""

    def test_an_event_posted_in_one_terminal_arrives_in_the_other(self, listening, env):
        """A process receives the event of another, after the delay and never before."""
        listener = listening("--json", "--id", "node-1")
        with Program("post", '{"msg": "hello"}', "200ms", env=env) as poster:
            (id,) = poster.out.rest()
        event = json.loads(listener.out.find("hello"))
        assert (id, {"msg": "hello"}, 1) == (event["id"], event["event"], event["attempt"])
        assert ("node-1", 3) == (event["node"], event["max_retries"])
        assert 0 <= event["lateness_ms"] < PATIENCE * 1000
        assert 0 == listener.end()

    def test_for_people_an_event_is_a_line(self, listening, timer):
        """For people each event is a line: id, due time, lateness, attempt, payload."""
        listener = listening()
        timer.post({"msg": "hello"}, id="tea")
        line = listener.out.find("tea")
        due, late = r"\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d(:\d\d)?)", r"[\d.]+ m?s"
        pattern = rf'tea  due {due}  late {late}  attempt 1  \{{"msg": "hello"\}}'
        assert re.fullmatch(pattern, line)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal_makes_the_node_leave(self, number, listening, timer):
        """On SIGINT, SIGTERM or SIGHUP the node leaves, and the exit code is 0."""
        listener = listening()
        assert 1 == timer.stats().nodes
        assert 0 == listener.end(number)
        assert 0 == timer.stats().nodes


class TestHandler:
    """``--handler module:function``."""

    def test_a_handler_in_the_current_folder_gets_a_list(self, listening, timer, tmp_path):
        """
        A handler in the current folder is called with a list of at most ``--max-events`` events,
        and its return confirms them.
        """
        name = handler(tmp_path, "print(type(events), [ev['n'] for ev in events], flush=True)")
        timer.post_many(({"n": n}, 0) for n in range(3))
        listener = listening("--handler", name, "--max-events", 3)
        assert "<class 'list'> [0, 1, 2]" == listener.out.find("class")
        assert 0 == listener.end()
        assert 3 == timer.stats().totals["confirmed"]

    def test_a_signal_waits_for_the_running_handler(self, listening, timer, tmp_path):
        """On SIGTERM the node waits for a running handler, and confirms its events."""
        name = handler(
            tmp_path, "print('began', flush=True)\nos.read(0, 1)\nprint('ended', flush=True)"
        )
        listener = listening("--handler", name)
        timer.post({}, id="tea")
        listener.out.find("began")
        listener.process.terminate()
        listener.err.find("handlers still running: 1")
        assert State.IN_FLIGHT is timer.peek("tea").state
        listener.tell("x")
        listener.out.find("ended")
        assert 0 == listener.process.wait(PATIENCE)
        assert timer.peek("tea") is None

    def test_a_second_signal_does_not_wait(self, listening, timer, tmp_path):
        """A second Ctrl-C ends the program at once, and the running event is retried."""
        name = handler(tmp_path, "print('began', flush=True)\nos.read(0, 1)")
        listener = listening("--handler", name)
        timer.post({}, id="tea")
        listener.out.find("began")
        listener.process.send_signal(signal.SIGINT)
        listener.err.find("handlers still running: 1")
        assert 130 == listener.end(signal.SIGINT)
        record = timer.peek("tea")
        assert (State.SCHEDULED, 1) == (record.state, record.attempt)

    def test_an_exception_is_printed_and_the_event_retried(self, listening, timer, tmp_path):
        """If the handler raises, stderr shows the traceback and the event is retried."""
        listener = listening("--handler", handler(tmp_path, "raise ValueError('no tea')"))
        timer.post({}, id="tea")
        assert "'tea'" in listener.err.find("Error: .*ValueError: no tea")
        listener.err.find(r'shop\.py", line 4, in handle')
        assert 0 == listener.end()
        assert State.SCHEDULED is timer.peek("tea").state

    def test_an_exception_may_be_printed_as_json(self, listening, timer, tmp_path):
        """With ``--json`` an error is one object on one line of stderr."""
        name = handler(tmp_path, "raise ValueError('no tea')")
        listener = listening("--handler", name, "--json")
        timer.post({}, id="tea")
        error = json.loads(listener.err.find("HandlerError"))
        assert ("HandlerError", "ValueError") == (error["error"], error["cause"])
        assert ["tea"] == error["ids"]
        assert "no tea" in error["traceback"]

    def test_a_dead_letter_is_printed(self, listening, timer, tmp_path):
        """When an event becomes a dead letter, stderr says so."""
        listener = listening("--handler", handler(tmp_path, "raise ValueError"))
        timer.post({}, id="tea", max_retries=0)
        listener.err.find("dead letter: tea")

    def test_a_handler_that_exits_makes_the_node_leave(self, listening, timer, tmp_path):
        """A handler that calls ``sys.exit`` makes the node leave, with exit code 1."""
        listener = listening("--handler", handler(tmp_path, "sys.exit(0)"))
        timer.post({}, id="tea")
        assert 1 == listener.process.wait(PATIENCE)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("nowhere:handle", "no module 'nowhere'"),
            ("shop.counter:handle", "no module 'shop.counter'"),
            ("shop:nobody", "no 'nobody' in"),
            ("shop:os.nobody", "no 'nobody' in"),
            ("shop:NAME", "not callable"),
            ("shop:later", "coroutine"),
            ("broken:handle", "ZeroDivisionError"),
            ("exits:handle", "SystemExit"),
            ("needs:handle", "no_such_thing_at_all"),
        ],
    )
    def test_a_handler_that_cannot_be_loaded_is_exit_code_4(self, name, text, env, tmp_path):
        """The exit code is 4 and the reason is shown, before a connection is opened."""
        (tmp_path / "shop.py").write_text("import os\nNAME = 'x'\nasync def later(e): pass\n")
        (tmp_path / "broken.py").write_text("1 / 0\n")
        (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
        (tmp_path / "needs.py").write_text("import no_such_thing_at_all\n")
        unreachable = env | {"DTIMER_URL": "redis://127.0.0.1:1"}
        words = ("listen", "--handler", name)
        with Program(*words, cwd=tmp_path, env=unreachable) as program:
            program.err.find(text)
            assert 4 == program.process.wait(PATIENCE)


class TestTrouble:
    """Faults while a node runs in the foreground."""

    def test_an_unreachable_server_is_exit_code_3(self, env):
        """If the server cannot be reached when the node joins, the exit code is 3."""
        with Program("listen", env=env | {"DTIMER_URL": "redis://127.0.0.1:1"}) as program:
            assert 3 == program.process.wait(PATIENCE)
            program.err.find("could not be reached")

    def test_the_node_stays_during_an_outage(self, listening, env):
        """During an outage the node stays, reports it, and receives events afterwards."""
        with Server(appendonly=True) as server:
            listener = listening("--url", server.url)
            server.kill9()
            listener.err.find(r"Error: Redis at \S+ does not answer")
            server.start()
            listener.err.find("Redis answers again")
            timer = DTimer("poster", server.url, ns=env["DTIMER_NS"])
            timer.post({"msg": "hello"})
            timer.leave()
            listener.out.find("hello")
            assert 0 == listener.end()

    def test_a_closed_output_ends_a_node_that_prints(self, listening, timer):
        """
        If the output is closed and the node only prints, it leaves with exit code 1. The event that
        it could not print is retried.
        """
        listener = listening(unread=True)
        timer.post({}, id="tea")
        assert 1 == listener.process.wait(PATIENCE)
        assert 1 == timer.peek("tea").attempt

    def test_a_closed_output_does_not_end_a_node_with_a_handler(self, listening, timer, tmp_path):
        """With a handler the node continues after its output has been closed."""
        name = handler(tmp_path, "os.write(2, events[0].id.encode() + b' handled\\n')")
        listener = listening("--handler", name, unread=True)
        timer.post({}, id="tea")
        timer.post({}, 1, id="milk")
        listener.err.find("tea handled")
        listener.err.find("milk handled")
        assert 0 == listener.end()
        assert 2 == timer.stats().totals["confirmed"]


def test_the_examples_of_its_help_work(listening, env, tmp_path):
    """Each example in the help of ``listen`` joins, and leaves with exit code 0."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "mail.py").write_text("def send(events): pass\n")
    with Program("listen", "--help", env=env) as program:
        lines = [line.strip() for line in program.out.rest()]
    examples = [shlex.split(line)[3:] for line in lines if line.startswith("$ dtimer listen")]
    assert len(examples) > 1
    for words in examples:
        assert 0 == listening(*words).end()
