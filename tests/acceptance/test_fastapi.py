"""A FastAPI application under uvicorn, as the how-to page shows it."""

from __future__ import annotations

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

(SAMPLE,) = (b.text for b in blocks("python") if b.page == "docs/howto/asyncio.rst")

# The sample takes the mail for granted, and its reminder comes after a minute.
APP = f"""
import asyncio, os

async def send_mail(to):
    with open("mails", "a") as mails:
        mails.write(to + chr(10))

{SAMPLE.replace("60_000", "0").replace('DTimer("web"', 'DTimer("web", ns=os.environ["NS"]')}
"""


@pytest.fixture
def site(tmp_path, proxy, namespace):
    """A function: start the application in a folder, with a proxy to the server."""
    started = []

    def start():
        (tmp_path / "web.py").write_text(APP)
        log = (tmp_path / "log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "web:app", "--uds", "web", "--no-access-log"],
            cwd=tmp_path,
            env=os.environ
            | {
                "DTIMER_URL": proxy.url,
                "NS": namespace,
                "PYTHONPATH": os.pathsep.join(
                    [str(Path(dtimer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
                ),
            },
            stdout=log,
            stderr=log,
        )
        started.append((process, log))
        return process

    yield start
    for process, log in started:
        process.kill()
        process.wait()
        log.close()


def test_the_application_serves_before_redis_answers_and_handles_events_afterwards(
    tmp_path, proxy, site, client, namespace
):
    """
    The site starts while Redis is down. Then the node joins, a request posts, and the coroutine
    handles the event. SIGTERM ends the process, and no registration is left.
    """
    keys = Keys.of(namespace)
    web, log, mails = (tmp_path / name for name in ("web", "log", "mails"))
    proxy.refuse()
    process = site()

    def up():
        assert process.poll() is None, log.read_text()
        return web.exists()

    eventually(up, 2 * PATIENCE)
    assert (200, "false") == ask(web, "GET", "/health")
    proxy.heal()
    eventually(lambda: ask(web, "GET", "/health") == (200, "true"))
    status, body = ask(web, "POST", "/reminders/ada")
    assert 200 == status, log.read_text()
    assert len(body) > 2
    eventually(lambda: mails.exists() and mails.read_text() == "ada\n")
    assert 1 == client.hlen(keys.nodes)
    process.send_signal(signal.SIGTERM)
    process.wait(2 * PATIENCE)
    assert 0 == client.hlen(keys.nodes), log.read_text()
