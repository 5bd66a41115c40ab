"""Where what is written cannot be written: a full disk, a reader that has gone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from servers import PATIENCE
from shell import Program, environment

from dtimer import DTimer
from dtimer.cli.exits import Exit

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full"),
]

FULL = "cannot write the output: No space left on device"


def run(server, namespace, *words, out="/dev/full", err=subprocess.PIPE):
    """Run a command whose output goes to a disk that is full."""
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
    """No traceback, and an exit code that says that the answer is missing."""
    code, said = run(server, namespace, *words)
    assert (Exit.OUTPUT, f"Error: {FULL}\n") == (code, said)


def test_for_programs_it_is_an_object(server, namespace):
    """With ``--json`` the line on stderr is one object."""
    code, said = run(server, namespace, "stats", "--json")
    assert (Exit.OUTPUT, f'{{"error": "OSError", "text": "{FULL}"}}\n') == (code, said)


def test_also_where_nothing_can_be_said(server, namespace):
    """If standard error is full too the exit code is all there is."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        code, _ = run(server, namespace, "stats", err=full)
    assert Exit.OUTPUT == code


def test_a_listener_ends_and_leaves_the_event(server, namespace):
    """
    A listener that cannot print has done nothing with its event: it says so in one line, and
    ends; the event is there to be received again.
    """
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
            said = listener.stderr.read()
            assert (Exit.OUTPUT, f"Error: {FULL}\n") == (listener.wait(PATIENCE), said)
            assert 1 == timer.peek("x").attempt
            timer.leave()
        finally:
            listener.kill()


def test_listen_says_which_server_it_joined(tcp_server, namespace):
    """Two terminals on two servers see at once why they never meet; no password is shown."""
    password = {"DTIMER_URL": f"redis://default:secret@127.0.0.1:{tcp_server.port}/0"}
    with tcp_server.client() as client:
        client.acl_setuser("default", enabled=True, passwords=["+secret"], nopass=False)
    env = environment(tcp_server, namespace) | password
    with Program("listen", "--id", "w1", env=env) as listener:
        line = listener.find("joined", "stderr")
        listener.end()
    place = f"redis://…@127.0.0.1:{tcp_server.port}/0"
    assert f"w1 joined the namespace {namespace} on {place}; Ctrl-C to leave" == line
