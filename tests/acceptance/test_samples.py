"""
The samples of the README and the docs run, as a reader would run them, and print what they should.

Each is a program of its own: the sample to the letter, after the lines that it takes for granted
and before those that show what it did.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from pages import ROOT, blocks
from servers import PATIENCE
from shell import Program

pytestmark = pytest.mark.acceptance

# A node on a real server of its own, private to the program.
NODE = """\
from dtimer import DTimer

dt = DTimer("node-1", "embedded:")
"""

DEAD = """\
from threading import Event

from dtimer import DTimer

died, charged = Event(), Event()
dt = DTimer("node-1", "embedded:", max_retries=0)


@dt.on("event")
def handle(events):
    if not died.is_set():
        raise OSError("the bank is closed")
    charged.set()


dt.on("error", lambda error: None)
dt.on("dead", lambda letter: died.set())
dt.join()
dt.post({"order": 17}, id="charge-17")
died.wait(30)
"""

BANK = """\
import types
from threading import Event

from dtimer import DTimer

done = Event()
bank = types.SimpleNamespace(is_open=lambda: True)
bank.charge = lambda order, fence: print("charged", order, fence > 0)
dt = DTimer("node-1", "embedded:")
"""

QUEUE = """\
from threading import Event

from dtimer import RunAt

handled = Event()
queue = RunAt("first-floor")
"""

SHOW_QUEUE = """
queue.on("data", lambda key: handled.set())
queue.write("key")
handled.wait(30)
queue.stop()
with RunAt("second-floor") as upstairs:
    print(upstairs.read(), "upstairs")
"""


class Case(NamedTuple):
    """What stands before and after a sample, and what the whole of it prints."""

    says: str
    before: str = ""
    after: str = ""


#: By the page and the first line. What is shown by a page and missing here fails a test below.
CASES = {
    "README.rst: import time": Case("first\nmiddle\nlast\n"),
    'README.rst: @dt.on("event")': Case(
        "None\ncharged 18 True\n",
        BANK,
        """
print(dt.peek("charge-17"))
dt.on("event", lambda events: done.set())
with dt:
    dt.post({"order": 18})
    done.wait(30)
""",
    ),
    'README.rst: dt.every(60_000, {"do": "sweep"}, id="sweep")': Case(
        "report\nsweep\n", NODE, "for s in dt.schedules(): print(s.id)\n"
    ),
    "docs/internals.rst: from dtimer.faultpoints import arm": Case(
        "{}\n", "import os, signal\n", "from dtimer.faultpoints import armed\nprint(armed)\n"
    ),
    "docs/quickstart.rst: from threading import Event": Case("hello, attempt 1\n"),
    "docs/quickstart.rst: for letter in dt.dead():": Case(
        "charge-17 1 failed\n"
        "Traceback (most recent call last):\n"
        '  File "program.py", line 12, in handle\n'
        '    raise OSError("the bank is closed")\n'
        "OSError: the bank is closed\n"
        "\n"
        "True\n",
        DEAD,
        "print(charged.wait(30))\ndt.leave()\n",
    ),
    'docs/quickstart.rst: dt.peek("charge-17")         # one record, or None': Case(
        "None 0 False\n",
        NODE + 'dt.post({"order": 17}, 60_000, id="charge-17")\n',
        'print(dt.peek("charge-17"), dt.stats().scheduled, dt.health().joined)\n',
    ),
    "docs/quickstart.rst: from fakeredis import FakeRedis": Case("reminded\n"),
    'docs/recurring.rst: dt.every(60_000, {"do": "sweep"}, id="sweep")': Case(
        "report\nsweep\n", NODE, "for s in dt.schedules(): print(s.id)\n"
    ),
    "docs/recurring.rst: from fakeredis import FakeRedis": Case(
        "sweep 1800000060000.0 4\n['report', 'sweep']\n"
    ),
    "docs/runat.rst: import time": Case("first\nmiddle\nlast\n"),
    "docs/runat.rst: queue.pipe(print)                 # a callable": Case(
        "key\nkey upstairs\n", QUEUE, SHOW_QUEUE
    ),
    'docs/security.rst: DTimer("node-1", "rediss://dtimer:PASSWORD@redis.example.com:6380/0'
    '?ssl_ca_certs=/etc/ssl/our-ca.pem")': Case(
        "", "import redis\n\nfrom dtimer import DTimer\n\nPASSWORD = 'secret'\n"
    ),
}

# Run elsewhere: until a signal below, and by gunicorn in test_gunicorn.py.
OTHERWISE = {"README.rst: import redis", "README.rst: # gunicorn.conf.py, also with preload_app"}

# The program's own text stays as the page shows it: only the port that a client takes when none is
# given is another.
ELSEWHERE = """\
import redis, runpy, sys

class Redis(redis.Redis):
    def __init__(self, *args, port={port}, **settings):
        super().__init__(*args, port=port, **settings)

redis.Redis = Redis
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def shapes(text):
    """What was said, whatever ids and figures are in it."""
    return re.sub(r"\b[\w-]{12}\b", "ID", re.sub(r"\b\d+\.\d+\b", "MS", text))


def test_every_sample_is_run():
    """
    Each Python sample of the README and the docs is run by a test, under the name by which a
    reader would find it: a page with a new one, or a changed one, says so here.
    """
    shown = {block.name for block in blocks("python")}
    assert shown == set(CASES) | OTHERWISE


@pytest.mark.parametrize(
    "block", [b for b in blocks("python") if b.name not in OTHERWISE], ids=lambda b: b.name
)
def test_prints_what_it_should(block, tcp_server, tmp_path):
    """A sample runs as it stands, with warnings as errors, and prints what it should."""
    case = CASES[block.name]
    program = tmp_path / "program.py"
    program.write_text(case.before + block.text + case.after)
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env=environment(DTIMER_URL=tcp_server.url),
    )
    said = ran.stdout.replace(f"{tmp_path}{os.sep}", "")
    assert (0, case.says, "") == (ran.returncode, said, ran.stderr)


def test_the_first_program_prints_what_the_readme_shows(tcp_server, tmp_path):
    """
    A newcomer copies the first program, runs it, and sees the line that the README shows below
    it; Ctrl-C ends it without a word. A program that printed nothing and exited with 0 was what
    the README once began with.
    """
    (first,) = (b for b in blocks("python") if b.name == "README.rst: import redis")
    prompt, _, shown = next(b.text for b in blocks("console") if "hello.py" in b.text).partition(
        "\n"
    )
    assert "$ python hello.py" == prompt
    (tmp_path / "hello.py").write_text(first.text)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", ELSEWHERE.format(port=tcp_server.port), "hello.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    ) as program:
        try:
            said = program.stdout.readline()
            program.send_signal(signal.SIGINT)
            rest, _ = program.communicate(timeout=PATIENCE)
        finally:
            program.kill()
    assert (shapes(shown), 0) == (shapes(said + rest), program.returncode)


def said_by(line):
    """What a line says, whatever node, server, time and lateness it names."""
    line = re.sub(r"^\S+ joined", "NODE joined", line)
    line = re.sub(r"redis://[^;]*", "URL", line)
    return re.sub(r"due \S+  late \S+ m?s", "due TIME  late MS", shapes(line))


def test_two_terminals_show_what_the_readme_shows(tcp_server):
    """One terminal listens, another posts: both print what the README shows below its command."""
    (listen, post) = (
        b.text.splitlines()
        for b in blocks("console")
        if b.page == "README.rst" and b.text.startswith(("$ dtimer listen", "$ dtimer post"))
    )
    env = environment(DTIMER_URL=tcp_server.url)
    words = [shlex.split(lines[0])[2:] for lines in (listen, post)]
    with Program(*words[0], env=env) as first:
        joined = first.find("joined", "stderr")
        posted = subprocess.run(
            [sys.executable, "-m", "dtimer", *words[1]],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
            env=env,
        )
        received = first.find(".")
        assert 0 == first.end()
    assert [said_by(line) for line in listen[1:]] == [said_by(joined), said_by(received)]
    assert [said_by(line) for line in post[1:]] == [said_by(posted.stdout.rstrip())]
    assert received.startswith(posted.stdout.rstrip())


def test_the_readme_shows_the_sample_of_runat():
    """What the README shows of RunAt is the sample that the page of RunAt shows, to the letter."""
    sample = (Path(__file__).parent / "samples" / "runat.py").read_text()
    assert sample in {block.text for block in blocks("python") if block.page == "README.rst"}


def test_the_sample_of_a_test_is_one(tmp_path):
    """The test that the quickstart shows is one that a test runner finds."""
    names = runpy.run_path(str(Path(__file__).parent / "samples" / "reminder.py"))
    assert callable(names["test_reminder"])
