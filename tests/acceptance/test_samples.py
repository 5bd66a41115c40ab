"""
The samples of the README and the docs run as a reader would run them, and print the expected text.

Each sample is a program: the unchanged sample, with lines before it that it takes for granted, and
lines after it that show its effect.
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
from servers import LIMIT, LONGEST_CALL, PATIENCE, SLOWNESS
from shell import Program

pytestmark = pytest.mark.acceptance

# A node on a real server, private to the program.
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

CLOSED_BANK = """\
import types
from threading import Event

from dtimer import DTimer


class NoSuchOrder(Exception):
    pass


def charge_order(order, fence):
    raise NoSuchOrder(order)


died, opening = Event(), iter([False])
bank = types.SimpleNamespace(is_open=lambda: next(opening, True), NoSuchOrder=NoSuchOrder)
bank.charge = charge_order
dt = DTimer("node-1", "embedded:")
"""

ROUTER = """\
from datetime import timedelta

from dtimer import Router

router = Router()
"""

# A program that runs until its first mail, on a server of its own.
MAIL_PROGRAM = """\
import functools
import os
import signal

import dtimer

poster = dtimer.DTimer("poster", "embedded:")
poster.post({"type": "remind", "order": 17})
dtimer.DTimer = functools.partial(dtimer.DTimer, pub="embedded:")


def send_mail(order):
    print("mail", order)
    os.kill(os.getpid(), signal.SIGTERM)
"""

DATABASE = """\
import contextlib
from contextvars import ContextVar
from threading import Event

done = Event()
CONNECTION = ContextVar("CONNECTION")


class engine:
    @contextlib.contextmanager
    def begin():
        print("begin")
        yield "a connection"
        print("commit")
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

SHOW_LOG = """
dt.on("event", print)
with dt:
    pass
"""


class Case(NamedTuple):
    """The lines before and after a sample, and the output of the whole program."""

    output: str
    before: str = ""
    after: str = ""


#: The case of each sample, by its page and its first line. A test below fails if one is missing.
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
    "docs/howto/codecs.rst: from dtimer import DTimer, Signed, Zlib": Case(
        "True\n",
        "from cryptography.fernet import Fernet\n\nKEY = Fernet.generate_key()\n",
        """
codec = Zlib() | Encrypted(KEY)
print(codec.decode(codec.encode({"order": 17})) == {"order": 17})
""",
    ),
    "docs/howto/codecs.rst: class Moments:": Case(
        "{'at': datetime.datetime(2030, 1, 31, 9, 0), 'order': {'n': 17}}\n",
        """\
import json
from datetime import datetime

from dtimer import DTimer, Signed

KEY = "a key of the sample"
""",
        """
codec = Moments() | Signed(KEY)
print(codec.decode(codec.encode({"at": datetime(2030, 1, 31, 9), "order": {"n": 17}})))
""",
    ),
    "docs/howto/debounce.rst: def saved(document):": Case(
        "1 True\n",
        NODE,
        """
for _ in range(10): saved(17)
print(dt.stats().scheduled, dt.peek("index-17").event == {"index": 17})
""",
    ),
    'docs/howto/debounce.rst: dt.post({"sync": 7}, 10_000, id="sync-7", max_wait=10_000)   '
    "# deliver the last payload": Case("2\n", NODE, "print(dt.stats().scheduled)\n"),
    'docs/howto/debounce.rst: if redis_client.set("cool-7", "1", nx=True, px=10_000):': Case(
        "1\n",
        NODE + "from fakeredis import FakeRedis\n\nredis_client = FakeRedis()\n",
        "print(dt.stats().scheduled)\n",
    ),
    'docs/howto/debounce.rst: if not dt.update("index-17", {"index": 17, "full": True}):': Case(
        "{'index': 17, 'full': True}\n",
        NODE + 'dt.post({"index": 17}, 60_000, id="index-17")\n',
        'print(dt.peek("index-17").event)\n',
    ),
    "docs/howto/kinds.rst: from dtimer import DTimer, Router": Case("mail 17\n", MAIL_PROGRAM),
    'docs/howto/kinds.rst: remind.post(dt, {"order": 17}, 60_000)': Case(
        "{'type': 'remind', 'order': 17}\n['remind-daily']\n",
        NODE + ROUTER + '@router.route("remind")\ndef remind(ev): ...\n',
        "print(next(dt.upcoming()).event)\nprint([s.id for s in dt.schedules()])\n",
    ),
    "docs/howto/kinds.rst: def wait(attempt, error):": Case(
        "2000 8000\n",
        NODE + ROUTER + "class TooManyRequests(Exception):\n    retry_after = 2\n",
        "print(wait(1, TooManyRequests()), wait(3, ValueError()))\n",
    ),
    'docs/howto/kinds.rst: quick = DTimer("node-1", url, concurrency=4)': Case(
        "1 0\n",
        'from dtimer import DTimer\n\nurl = "embedded:"\n'
        + ROUTER
        + '@router.route("report")\ndef report(ev): ...\n',
        "print(slow.stats().scheduled, quick.stats().scheduled)\n",
    ),
    "docs/howto/middleware.rst: from contextlib import contextmanager": Case(
        "begin\nhandled on a connection\ncommit\n",
        NODE + DATABASE,
        """
dt.on("event", lambda events: (print("handled on", CONNECTION.get()), done.set()))
with dt:
    dt.post({})
    done.wait(30)
""",
    ),
    'docs/howto/schedules.rst: dt.cron("0 9 * * *", {"do": "report"}, id="report", '
    "grace=3_600_000)": Case(
        "['report', 'sweep']\n", NODE, "print(sorted(s.id for s in dt.schedules()))\n"
    ),
    'docs/howto/schedules.rst: with dt.declare_schedules(owner="billing", version="1.4.2") '
    "as block:": Case(
        "{'sweep': <Declared.NEW: 'new'>, 'report': <Declared.NEW: 'new'>} []\n", NODE
    ),
    'docs/howto/snooze.rst: @dt.on("event")': Case(
        "buried no order 18\nscheduled 0\n",
        CLOSED_BANK,
        """
dt.on("dead", lambda letter: (print(letter.reason, letter.error), died.set()))
dt.post({"order": 17}, id="charge-17")
dt.post({"order": 18})
with dt:
    died.wait(30)
    while dt.stats().in_flight:
        pass
    record = dt.peek("charge-17")
print(record.state, record.attempt)
""",
    ),
    "docs/howto/snooze.rst: def print_report(ev):": Case(
        "page 1\npage 2\n",
        NODE + "from threading import Event\n\ndone = Event()\n",
        """
dt.on("event", lambda events: (print_report(events[0]), done.set()))
with dt:
    dt.post({"pages": 2})
    done.wait(30)
""",
    ),
    "docs/internals.rst: from dtimer.faultpoints import arm": Case(
        "{}\n", "import os, signal\n", "from dtimer.faultpoints import armed\nprint(armed)\n"
    ),
    "docs/logging.rst: import logging.config": Case(
        "INFO node-1: joined\nINFO node-1: left\n", NODE, SHOW_LOG
    ),
    "docs/logging.rst: import json": Case(
        '{"level": "INFO", "text": "joined", "node": "node-1", "ns": "dt", "event_ids": []}\n'
        '{"level": "INFO", "text": "left", "node": "node-1", "ns": "dt", "event_ids": []}\n',
        NODE,
        SHOW_LOG,
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
    "docs/reference.rst: from typing import Unpack": Case(
        "<DTimer 'node-1' of 'tea', not joined>\n",
        "import dtimer\n",
        "print(worker('node-1', ns='tea'))\n",
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

# The samples that other tests run: a test below stops the first with a signal, and test_gunicorn.py
# and test_fastapi.py run the others.
RUN_ELSEWHERE = {
    "README.rst: import redis",
    "README.rst: # gunicorn.conf.py, also with preload_app",
    "docs/howto/asyncio.rst: from dtimer import DTimer",
}

# The program stays as the page shows it. Only the default port of a client is changed.
WITH_PORT = """\
import redis, runpy, sys

class Redis(redis.Redis):
    def __init__(self, *args, port={port}, **settings):
        super().__init__(*args, port=port, **settings)

redis.Redis = Redis
runpy.run_path(sys.argv[1], run_name="__main__")
"""


# The samples use the default deadline of a call, which a busy machine can miss. So the tests run
# them with a longer one.
WITH_LONG_TIMEOUT = f"""\
import runpy, sys

from dtimer.model import options

options.ROWS["timeout"] = options.Time({LONGEST_CALL}, 50, 30_000)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def slowed(text):
    """
    Return a sample, on a slow machine with longer delays.

    Otherwise an event could be due before the sample has posted all events.
    """
    return re.sub(r"\bnow \+ (\d+)", lambda m: f"now + {int(m[1]) * max(1, SLOWNESS):.0f}", text)


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **more}


def with_placeholders(text):
    """Return the text with its ids and figures replaced by placeholders."""
    return re.sub(r"\b[\w-]{12}\b", "ID", re.sub(r"\b\d+\.\d+\b", "MS", text))


def test_every_sample_is_run():
    """A page with a new or changed sample fails this test until a case runs it."""
    shown = {block.name for block in blocks("python")}
    assert shown == set(CASES) | RUN_ELSEWHERE


@pytest.mark.parametrize(
    "block", [b for b in blocks("python") if b.name not in RUN_ELSEWHERE], ids=lambda b: b.name
)
def test_a_sample_prints_the_expected_text(block, tcp_server, tmp_path):
    """A reader who copies a sample sees it run, without a warning, and print the expected text."""
    case = CASES[block.name]
    program = tmp_path / "program.py"
    program.write_text(case.before + slowed(block.text) + case.after)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITH_LONG_TIMEOUT, str(program)],
        capture_output=True,
        text=True,
        # End a program that hangs before the test itself times out.
        timeout=LIMIT - 10,
        check=False,
        env=environment(DTIMER_URL=tcp_server.url),
    )
    printed = ran.stdout.replace(f"{tmp_path}{os.sep}", "")
    assert (0, case.output, "") == (ran.returncode, printed, ran.stderr)


def test_the_first_program_prints_what_the_readme_shows(tcp_server, tmp_path):
    """
    The program prints the event, and Ctrl-C ends it silently.

    An earlier README showed a program that printed nothing, although it exited with 0.
    """
    (first,) = (b for b in blocks("python") if b.name == "README.rst: import redis")
    prompt, _, shown = next(b.text for b in blocks("console") if "hello.py" in b.text).partition(
        "\n"
    )
    assert "$ python hello.py" == prompt
    (tmp_path / "hello.py").write_text(first.text)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WITH_PORT.format(port=tcp_server.port), "hello.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    ) as program:
        try:
            printed = program.stdout.readline()
            program.send_signal(signal.SIGINT)
            rest, _ = program.communicate(timeout=PATIENCE)
        finally:
            program.kill()
    assert (with_placeholders(shown), 0) == (with_placeholders(printed + rest), program.returncode)


def without_figures(line):
    """Return a line with node, server, time and lateness replaced by placeholders."""
    line = re.sub(r"^\S+ joined", "NODE joined", line)
    line = re.sub(r"redis://[^;]*", "URL", line)
    return re.sub(r"due \S+  late \S+ m?s", "due TIME  late MS", with_placeholders(line))


def test_two_terminals_show_what_the_readme_shows(tcp_server):
    """``dtimer listen`` and ``dtimer post`` print the lines that the README shows."""
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
    assert [without_figures(line) for line in listen[1:]] == [
        without_figures(joined),
        without_figures(received),
    ]
    assert [without_figures(line) for line in post[1:]] == [without_figures(posted.stdout.rstrip())]
    assert received.startswith(posted.stdout.rstrip())


def test_the_readme_and_the_page_of_runat_show_the_same_sample():
    """
    The README repeats the sample that the page of RunAt includes from a file.

    Otherwise a change to the file would leave an old version in the README.
    """
    sample = (Path(__file__).parent / "samples" / "runat.py").read_text()
    assert sample in {block.text for block in blocks("python") if block.page == "README.rst"}


def test_a_test_runner_finds_the_test_of_the_quickstart():
    """The quickstart shows a test. A reader's test runner must find it by its name."""
    names = runpy.run_path(str(Path(__file__).parent / "samples" / "reminder.py"))
    assert callable(names["test_reminder"])
