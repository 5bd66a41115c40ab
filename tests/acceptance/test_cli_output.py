"""Output that cannot be written: a full disk, a closed pipe."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from servers import PATIENCE
from shell import Program, environment

from dtimer import DTimer
from dtimer.cli.exit_codes import ExitCode

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full"),
]

FULL = "cannot write the output: No space left on device"


def run(server, namespace, *words, out="/dev/full", err=subprocess.PIPE):
    """Run a command whose output goes to a full disk."""
    with open(out, "w", encoding="utf-8") as stdout:
        ran = subprocess.run(
            [sys.executable, "-m", "dtimer", *words],
            stdout=stdout,
            stderr=err,
            text=True,
            check=False,
            timeout=2 * PATIENCE,
            env=environment(server, namespace),
        )
    return ran.returncode, ran.stderr


@pytest.mark.parametrize(
    "words",
    [["--version"], ["--help"], ["stats"], ["post", "{}"], ["top"], ["export"]],
    ids=" ".join,
)
def test_a_full_disk_is_one_line(words, server, namespace):
    """The exit code tells a script that the output is missing."""
    code, errors = run(server, namespace, *words)
    assert (ExitCode.OUTPUT, f"Error: {FULL}\n") == (code, errors)


def test_with_json_the_error_is_an_object(server, namespace):
    """With ``--json`` the line on stderr is a JSON object."""
    code, errors = run(server, namespace, "stats", "--json")
    assert (ExitCode.OUTPUT, f'{{"error": "OSError", "text": "{FULL}"}}\n') == (code, errors)


def test_a_full_standard_error_leaves_the_exit_code(server, namespace):
    """If standard error is full too, the exit code is the only sign."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        code, _ = run(server, namespace, "stats", err=full)
    assert ExitCode.OUTPUT == code


def test_a_listener_that_cannot_print_ends(server, namespace):
    """The listener has not handled its event, which is delivered again."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        listener = subprocess.Popen(
            [sys.executable, "-m", "dtimer", "listen"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(server, namespace),
        )
    with listener:
        try:
            assert "joined the namespace" in listener.stderr.readline()
            timer = DTimer("poster", server.url, ns=namespace)
            timer.post({}, id="x")
            errors = listener.stderr.read()
            assert (ExitCode.OUTPUT, f"Error: {FULL}\n") == (listener.wait(PATIENCE), errors)
            assert 1 == timer.peek("x").attempt
            timer.leave()
        finally:
            listener.kill()


def test_listen_names_the_server_that_it_joined(tcp_server, namespace):
    """A user with two terminals sees if they differ. No password is shown."""
    password = {"DTIMER_URL": f"redis://default:secret@127.0.0.1:{tcp_server.port}/0"}
    with tcp_server.client() as client:
        client.acl_setuser("default", enabled=True, passwords=["+secret"], nopass=False)
    env = environment(tcp_server, namespace) | password
    with Program("listen", "--id", "w1", env=env) as listener:
        line = listener.find("joined", "stderr")
        listener.end()
    place = f"redis://…@127.0.0.1:{tcp_server.port}/0"
    assert f"w1 joined the namespace {namespace} on {place}; Ctrl-C to leave" == line
