"""``dtimer listen``: a node in a separate process, controlled by signals and pipes."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal

import pytest
from servers import PATIENCE, Server, eventually
from shell import Program, environment

from dtimer import DTimer, State

pytestmark = pytest.mark.acceptance


@pytest.fixture
def env(server, namespace):
    """The environment that names the server and the namespace of the test."""
    return environment(server, namespace)


@pytest.fixture
def start_listen(env, tmp_path):
    """A function: start ``dtimer listen`` in an empty folder, and wait until it has joined."""
    with contextlib.ExitStack() as stack:

        def start_listen(*words, unread=False):
            program = Program("listen", *words, cwd=tmp_path, env=env, unread=unread)
            stack.enter_context(program).find("joined the namespace", "stderr")
            return program

        yield start_listen


def handler(tmp_path, body, name="shop"):
    """Write a module with a handler with the given *body*; return the handler's name."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (tmp_path / f"{name}.py").write_text(f"import os, sys\n\ndef handle(events):\n{lines}")
    return f"{name}:handle"


class TestTwoTerminals:
    """The first steps of a new user."""

    def test_an_event_posted_in_one_terminal_arrives_in_the_other(self, start_listen, env):
        """A process receives the event of another, after the delay and never before."""
        listener = start_listen("--json", "--id", "node-1")
        with Program("post", '{"msg": "hello"}', "200ms", env=env) as poster:
            (id,) = poster.rest()
        event = json.loads(listener.find("hello"))
        assert (id, {"msg": "hello"}, 1) == (event["id"], event["event"], event["attempt"])
        assert ("node-1", 3) == (event["node"], event["max_retries"])
        assert 0 <= event["lateness_ms"] < PATIENCE * 1000
        assert 0 == listener.end(signal.SIGTERM)

    def test_for_people_an_event_is_a_line(self, start_listen, timer):
        """The line has the id, due time, lateness, attempt and payload."""
        listener = start_listen()
        timer.post({"msg": "hello"}, id="tea")
        line = listener.find("tea")
        due, late = r"\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d(:\d\d)?)", r"[\d.]+ m?s"
        pattern = rf'tea  due {due}  late {late}  attempt 1  \{{"msg": "hello"\}}'
        assert re.fullmatch(pattern, line)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal_makes_the_node_leave(self, number, start_listen, timer):
        """Terminals and process managers send different signals to end a program."""
        listener = start_listen()
        assert 1 == timer.stats().nodes
        assert 0 == listener.end(number)
        assert 0 == timer.stats().nodes


class TestHandler:
    """``--handler module:function``."""

    def test_a_handler_in_the_current_folder_gets_a_list(self, start_listen, timer, tmp_path):
        """The list has at most ``--max-events`` events; the return confirms them."""
        name = handler(tmp_path, "print(type(events), [ev['n'] for ev in events], flush=True)")
        timer.post_many(({"n": n}, 0) for n in range(3))
        listener = start_listen("--handler", name, "--max-events", 3)
        assert "<class 'list'> [0, 1, 2]" == listener.find("class")
        assert 0 == listener.end(signal.SIGTERM)
        assert 3 == timer.stats().totals["confirmed"]

    def test_a_signal_waits_for_the_running_handler(self, start_listen, timer, tmp_path):
        """On SIGTERM the node waits for a running handler, and confirms its events."""
        name = handler(
            tmp_path, "print('began', flush=True)\nos.read(0, 1)\nprint('ended', flush=True)"
        )
        listener = start_listen("--handler", name)
        timer.post({}, id="tea")
        listener.find("began")
        listener.process.terminate()
        listener.find("handlers still running: 1", "stderr")
        assert State.IN_FLIGHT is timer.peek("tea").state
        listener.tell("x")
        listener.find("ended")
        assert 0 == listener.process.wait(PATIENCE)
        assert timer.peek("tea") is None

    def test_a_second_signal_does_not_wait(self, start_listen, timer, tmp_path):
        """A second Ctrl-C ends the program at once, and the running event is retried."""
        name = handler(tmp_path, "print('began', flush=True)\nos.read(0, 1)")
        listener = start_listen("--handler", name)
        timer.post({}, id="tea")
        listener.find("began")
        listener.process.send_signal(signal.SIGINT)
        listener.find("handlers still running: 1", "stderr")
        assert 130 == listener.end(signal.SIGINT)
        record = timer.peek("tea")
        assert (State.SCHEDULED, 1) == (record.state, record.attempt)

    def test_a_router_handles_each_event_on_its_own(self, start_listen, timer, tmp_path):
        """The events are printed, and a failed event does not fail the others of its batch."""
        (tmp_path / "kinds.py").write_text(
            "import dtimer\n\nrouter = dtimer.Router()\n\n"
            "@router.route('good')\ndef good(ev):\n    print('handled', ev['n'], flush=True)\n\n"
            "@router.route('bad')\ndef bad(ev):\n    raise ValueError('no tea')\n"
        )
        timer.post_many([({"type": kind, "n": n}, 0) for n, kind in enumerate(("bad", "good"))])
        listener = start_listen("--handler", "kinds:router", "--max-events", 10)
        listener.find("handled 1")
        listener.find("ValueError: no tea", "stderr")
        eventually(lambda: timer.stats().totals["confirmed"] == 1)
        assert 0 == listener.end(signal.SIGTERM)

    def test_an_exception_is_printed_and_the_event_retried(self, start_listen, timer, tmp_path):
        """If the handler raises, stderr shows the traceback and the event is retried."""
        listener = start_listen("--handler", handler(tmp_path, "raise ValueError('no tea')"))
        timer.post({}, id="tea")
        assert "'tea'" in listener.find("Error: .*ValueError: no tea", "stderr")
        listener.find(r'shop\.py", line 4, in handle', "stderr")
        assert 0 == listener.end(signal.SIGTERM)
        assert State.SCHEDULED is timer.peek("tea").state

    def test_an_exception_may_be_printed_as_json(self, start_listen, timer, tmp_path):
        """With ``--json`` an error is one object on one line of stderr."""
        name = handler(tmp_path, "raise ValueError('no tea')")
        listener = start_listen("--handler", name, "--json")
        timer.post({}, id="tea")
        error = json.loads(listener.find("HandlerError", "stderr"))
        assert ("HandlerError", "ValueError") == (error["error"], error["cause"])
        assert ["tea"] == error["ids"]
        assert "no tea" in error["traceback"]

    def test_a_dead_letter_is_printed(self, start_listen, timer, tmp_path):
        """When an event becomes a dead letter, stderr says so."""
        listener = start_listen("--handler", handler(tmp_path, "raise ValueError"))
        timer.post({}, id="tea", max_retries=0)
        listener.find("dead letter: tea", "stderr")

    def test_a_handler_that_exits_makes_the_node_leave(self, start_listen, timer, tmp_path):
        """A handler that calls ``sys.exit`` makes the node leave, with exit code 1."""
        listener = start_listen("--handler", handler(tmp_path, "sys.exit(0)"))
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
        """The reason is shown before a connection is opened."""
        (tmp_path / "shop.py").write_text("import os\nNAME = 'x'\nasync def later(e): pass\n")
        (tmp_path / "broken.py").write_text("1 / 0\n")
        (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
        (tmp_path / "needs.py").write_text("import no_such_thing_at_all\n")
        unreachable = env | {"DTIMER_URL": "redis://127.0.0.1:1"}
        words = ("listen", "--handler", name)
        with Program(*words, cwd=tmp_path, env=unreachable) as program:
            program.find(text, "stderr")
            assert 4 == program.process.wait(PATIENCE)


class TestTrouble:
    """Faults while a node runs in the foreground."""

    def test_an_unreachable_server_is_exit_code_3(self, env):
        """If the server cannot be reached when the node joins, the exit code is 3."""
        with Program("listen", env=env | {"DTIMER_URL": "redis://127.0.0.1:1"}) as program:
            assert 3 == program.process.wait(PATIENCE)
            program.find("could not be reached", "stderr")

    def test_the_node_stays_during_an_outage(self, start_listen, env):
        """During an outage the node stays, reports it, and receives events afterwards."""
        with Server(appendonly=True) as server:
            listener = start_listen("--url", server.url)
            server.kill9()
            listener.find(r"Error: Redis at \S+ does not answer", "stderr")
            server.start()
            listener.find("Redis answers again", "stderr")
            timer = DTimer("poster", server.url, ns=env["DTIMER_NS"])
            timer.post({"msg": "hello"})
            timer.leave()
            listener.find("hello")
            assert 0 == listener.end(signal.SIGTERM)

    def test_a_closed_output_ends_a_node_that_prints(self, start_listen, timer):
        """The event that it could not print is retried."""
        listener = start_listen(unread=True)
        timer.post({}, id="tea")
        assert 1 == listener.process.wait(PATIENCE)
        assert 1 == timer.peek("tea").attempt

    def test_a_closed_output_does_not_end_a_node_with_a_handler(
        self, start_listen, timer, tmp_path
    ):
        """With a handler the node continues after its output has been closed."""
        name = handler(tmp_path, "os.write(2, events[0].id.encode() + b' handled\\n')")
        listener = start_listen("--handler", name, unread=True)
        timer.post({}, id="tea")
        timer.post({}, 1, id="milk")
        listener.find("tea handled", "stderr")
        listener.find("milk handled", "stderr")
        assert 0 == listener.end(signal.SIGTERM)
        assert 2 == timer.stats().totals["confirmed"]


def test_the_examples_of_its_help_work(start_listen, env, tmp_path):
    """Each example in the help of ``listen`` joins, and leaves with exit code 0."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "mail.py").write_text("def send(events): pass\n")
    with Program("listen", "--help", env=env) as program:
        lines = [line.strip() for line in program.rest()]
    examples = [shlex.split(line)[3:] for line in lines if line.startswith("$ dtimer listen")]
    assert len(examples) > 1
    for words in examples:
        assert 0 == start_listen(*words).end(signal.SIGTERM)
