"""A Flask app under gunicorn, loaded before the workers are forked."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pages import blocks
from servers import PATIENCE, eventually
from sites import ask

import dtimer
from dtimer.store.keys import Keys

pytestmark = pytest.mark.acceptance

APP = """
import os
import threading

from dtimer import DTimer
from flask import Flask, jsonify, request

app = Flask(__name__)
dt = DTimer(f"web-{os.getpid()}", os.environ["DTIMER_URL"], ns=os.environ["NS"])
handled = []


@dt.on("event")
def handle(events):
    handled.extend(ev["n"] for ev in events)
    dt.post({"by": os.getpid()}, 3_600_000, id=f"done-{events[0]['n']}")


@app.post("/remind/<int:n>")
def remind(n):
    return jsonify(id=dt.post({"n": n}, request.args.get("delay", 0, int)), by=os.getpid())


@app.get("/health")
def health():
    return jsonify(ok=dt.health().ok, by=os.getpid())


if os.environ.get("JOIN_EARLY"):
    # In the master, before there are workers.
    dt.join()
"""

# The workers join and leave by the code that the README shows, unchanged.
(JOINING,) = (b.text for b in blocks("python") if "post_fork" in b.text and b.page == "README.rst")

SETTINGS = f"""
preload_app = True
workers = 2
threads = 2
bind = "unix:web"
graceful_timeout = 5
control_socket_disable = True

{JOINING}


def pre_request(worker, request):
    from shop.timers import dt

    assert dt.joined or dt.health().joining


def on_exit(server):
    from shop.timers import dt

    dt.leave()
"""


class Web:
    """gunicorn in a folder, with the app and its settings."""

    def __init__(self, folder, server, ns, **environment):
        (folder / "web.py").write_text(APP)
        (folder / "shop").mkdir()
        (folder / "shop" / "timers.py").write_text("from web import dt\n")
        (folder / "gunicorn.conf.py").write_text(SETTINGS)
        self._folder = folder
        self._log = (folder / "log").open("wb")
        root = Path(dtimer.__file__).parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "default", "-m", "gunicorn", "web:app"],
            cwd=folder,
            env=os.environ
            | {"DTIMER_URL": server.url, "NS": ns, "PYTHONPATH": str(root)}
            | environment,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    @property
    def log(self):
        return (self._folder / "log").read_text()

    def ask(self, method, path):
        """Send a request to one of the workers."""
        status, body = ask(self._folder / "web", method, path)
        assert 200 == status, self.log
        return json.loads(body)

    def answers(self):
        assert self.process.poll() is None, self.log
        return (self._folder / "web").exists()

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()


@pytest.fixture
def web(tmp_path, server, namespace):
    started = []

    def start(**environment):
        web = Web(tmp_path, server, namespace, **environment)
        started.append(web)
        eventually(web.answers, 2 * PATIENCE)
        return web

    yield start
    for each in started:
        each.close()


@pytest.mark.fault("F62")
@pytest.mark.parametrize("early", ["", "1"])
def test_each_preloaded_worker_joins_once(web, client, namespace, early):
    """
    A worker joins after the fork, also if the master had joined. SIGTERM ends all processes, and no
    registration remains.
    """
    keys = Keys.of(namespace)
    site = web(JOIN_EARLY=early)
    nodes = 3 if early else 2
    eventually(lambda: client.zcard(keys.roster) == nodes)
    pids = {json.loads(who.split(b"|", 1)[1])["pid"] for who in client.hvals(keys.nodes)}
    assert nodes == len(pids)
    assert (site.process.pid in pids) == bool(early)
    eventually(lambda: site.ask("GET", "/health")["ok"])

    numbers = itertools.count()

    def all_have_handled():
        # Post another event each time: a worker that was slow for a moment gets a later one.
        site.ask("POST", f"/remind/{next(numbers)}")
        bodies = client.hvals(keys.body)
        return pids == {json.loads(b.partition(b"|")[2]).get("by") for b in bodies} - {None}

    eventually(all_have_handled)
    posted = next(numbers)
    eventually(lambda: client.hlen(keys.body) == posted and client.hlen(keys.lease) == 0)

    site.process.send_signal(signal.SIGTERM)
    assert 0 == site.process.wait(2 * PATIENCE), site.log
    assert not client.exists(keys.nodes), site.log
    assert "Traceback" not in site.log
    assert "ResourceWarning" not in site.log
