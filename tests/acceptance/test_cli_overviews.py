"""The commands that show many events at once, and ``upgrade``."""

from __future__ import annotations

import threading

import pytest
from servers import PATIENCE

from dtimer.store.connection.sources import source
from dtimer.store.keys import Keys
from dtimer.store.namespace import SCHEMA
from dtimer.store.store import Store

pytestmark = pytest.mark.acceptance

MINUTE = 60_000


def test_ahead_counts_the_events_of_each_minute(run, timer):
    """A peak is visible before it comes."""
    timer.post_many(({}, delay) for delay in (0.5 * MINUTE, 90 * MINUTE, 91 * MINUTE))
    counts = [part["count"] for part in run("ahead", "--json").objects]
    assert [1, *[0] * 59] == counts
    counts = [part["count"] for part in run("ahead", "--day", "--json").objects]
    assert [1, 2, *[0] * 22] == counts
    assert 60 == len(run("ahead").rows)


def test_in_flight_lists_the_holder(run, timer):
    """An operator sees which node has held which event for how long."""
    begun, end = threading.Semaphore(0), threading.Event()

    @timer.on("event")
    def handle(events):
        begun.release()
        assert end.wait(PATIENCE)

    assert "no event is in flight" in run("in-flight").err
    with timer:
        timer.post({}, id="tea")
        assert begun.acquire(timeout=PATIENCE)
        try:
            (row,) = run("in-flight").rows
            (held,) = run("in-flight", "--json").objects
        finally:
            end.set()
    assert ["tea", timer.id] == row[:2]
    assert ("tea", timer.id, 1, False) == (
        held["id"], held["node"], held["attempt"], held["cancelled"]
    )  # fmt: skip


def test_history_lists_the_minutes(run, timer, server, client):
    """The night is visible in the morning."""
    assert "nothing is recorded" in run("history").err
    now = int(client.time()[0]) * 1_000_000
    store = Store(source(server.url, 1.0), timer.ns, timeout=3.0, now=lambda: now)
    store.report("incarnation", "{}", history=True)
    timer.post({}, 90 * MINUTE)
    now += 60_000_000
    store.report("incarnation", "{}", history=True)
    store.release()
    (minute,) = run("history", "--json").objects
    assert (1, 1, 1) == (minute["minutes"], minute["posted"], minute["scheduled"])
    assert 12 == len(run("history").rows[0])


def test_upgrade_says_that_there_is_nothing_to_do(run, timer):
    """The exit code is 0, because the namespace has the latest version."""
    assert 1 == run("upgrade").code, "there is no namespace, and none is created"
    timer.post({}, 90 * MINUTE)
    (result,) = run("upgrade", "--json").objects
    assert {"upgraded": False, "version": SCHEMA, "older": 0}.items() <= result.items()


def test_an_unknown_version_is_refused_with_words(run, timer, client):
    """As by every other command."""
    timer.post({}, 90 * MINUTE)
    keys = Keys.of(timer.ns)
    client.hset(keys.sys, "v", "9")
    assert (3, True) == ((ran := run("upgrade")).code, "schema version 9" in ran.err)
    client.hset(keys.sys, "v", SCHEMA)
