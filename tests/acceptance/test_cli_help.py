"""The examples in the help of each command are run, and work."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess

import pytest
from servers import PATIENCE
from shell import Program, environment, examples

from dtimer import DTimer
from dtimer.cli.app import app
from dtimer.cli.exit_codes import ExitCode

pytestmark = pytest.mark.acceptance

#: Other test modules run the examples of these commands.
RUN_ELSEWHERE = {"listen", "demo"}

#: These commands run until they are stopped.
ENDLESS = {"tail", "top"}

#: Exit codes besides 0 with which an example may end, because they depend on the server.
ALSO_ALLOWED = {"doctor": {ExitCode.NEGATIVE}}


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def namespace_of_examples(server, namespace, client):
    """A namespace with the schedule and the dead letters that the examples name."""
    timer = DTimer("reader", server.url, ns=namespace)
    timer.every(600_000, {}, id="report")
    for id in ("charge-17", "charge-18"):
        client.hset(f"dtimer:{{{namespace}}}:dead", id, b"1,failed,0|,3|{}")
        client.zadd(f"dtimer:{{{namespace}}}:graves", {id: 1})
    yield timer
    timer.leave()


@pytest.mark.parametrize("name", sorted(set(app.commands) - RUN_ELSEWHERE - ENDLESS))
def test_each_example_works(name, run, namespace_of_examples, client):
    """The unchanged examples of a command succeed, one after another."""
    client.delete("dtimer:{orders}:sys", "dtimer:{orders}:due", "dtimer:{orders}:body")
    words_of_examples = examples(run(name, "--help").out)
    assert words_of_examples
    for words in words_of_examples:
        # The words behind ``>`` are for the shell.
        ran = run(*itertools.takewhile(">".__ne__, words))
        assert ran.code in {ExitCode.DONE, *ALSO_ALLOWED.get(name, ())}, (words, ran.err)


@pytest.mark.parametrize("name", sorted(ENDLESS))
def test_each_endless_example_works(name, run, namespace_of_examples, server, namespace):
    """Such a command runs until Ctrl-C, and then ends with exit code 0."""
    for words in examples(run(name, "--help").out):
        with Program(*words, env=environment(server, namespace)) as program:
            if name == "tail":
                program.find("following", "stderr")
            else:
                program.find("dtimer|events_per_second")
            if name == "top" and "--json" not in words:
                # Without a terminal it prints one frame only.
                assert 0 == program.process.wait(PATIENCE)
            else:
                assert 0 == program.end(signal.SIGINT)


class TestCompletion:
    """``dtimer completion``."""

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_a_script_for_each_shell_is_printed(self, shell, run):
        """For each shell a valid script is printed that asks dtimer for completions."""
        ran = run("completion", shell)
        assert 0 == ran.code
        assert "_DTIMER_COMPLETE" in ran.out
        program = shutil.which(shell)
        if program:
            done = subprocess.run(
                [program, "-n"], input=ran.out, text=True, check=False, timeout=PATIENCE
            )
            assert 0 == done.returncode

    def test_commands_and_options_are_completed(self, server, namespace):
        """When the shell asks dtimer for completions, dtimer prints commands and options."""
        for words, index, expected in (
            ("dtimer re", 1, "reschedule"),
            ("dtimer top --", 2, "--once"),
        ):
            env = environment(server, namespace)
            env |= {"_DTIMER_COMPLETE": "bash_complete", "COMP_WORDS": words}
            with Program(env=env | {"COMP_CWORD": str(index)}) as program:
                program.find(f"plain,{expected}")
                assert 0 == program.process.wait(PATIENCE)
