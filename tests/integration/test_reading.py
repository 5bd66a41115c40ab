"""Read operations write nothing, in any namespace."""

from __future__ import annotations

import pytest

from dtimer import DTimer, State
from dtimer.store.keys import Keys

READING = {
    "peek": lambda timer: timer.peek("tea"),
    "upcoming": lambda timer: list(timer.upcoming()),
    "dead": lambda timer: list(timer.dead()),
    "stats": lambda timer: timer.stats(),
    "nodes": lambda timer: timer.nodes(),
    "schedules": lambda timer: list(timer.schedules()),
    "schedule": lambda timer: timer.schedule("tick"),
}


@pytest.fixture
def timer(server, namespace):
    timer = DTimer("reader", server.url, ns=namespace)
    yield timer
    timer.leave()


def existing_keys(client, namespace):
    """Return the keys of the namespace that exist."""
    return {key for key in Keys.of(namespace) if client.exists(key)}


@pytest.mark.parametrize("read", READING.values(), ids=READING)
def test_reading_an_empty_namespace_writes_nothing(timer, client, namespace, read):
    """Reading from a mistyped namespace does not create that namespace."""
    for _ in range(2):
        read(timer)
    assert set() == existing_keys(client, namespace)


def test_the_first_write_creates_the_namespace(timer, client, namespace):
    """A timer that has read from an empty namespace creates it when it posts."""
    assert timer.peek("tea") is None
    timer.post({}, 60_000, id="tea")
    assert client.hget(Keys.of(namespace).sys, "v")
    assert client.hget(Keys.of(namespace).sys, "born")
    assert State.SCHEDULED is timer.peek("tea").state


def test_a_reader_checks_the_namespace_once(timer, server, namespace, client):
    """A reader checks an existing namespace once and not with each call."""
    timer.post({}, 60_000, id="tea")
    reader = DTimer("another", server.url, ns=namespace)
    reader.peek("tea")
    before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    for _ in range(3):
        reader.peek("tea")
    assert 3 == client.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    reader.leave()
