"""Real nodes, a store under a clock of the test, and the check that nothing is left of them."""

from __future__ import annotations

import pytest
from leftovers import nothing_left
from peers import Now, Peer
from soundness import assert_sound

from dtimer import DTimer
from dtimer.store.connect import source
from dtimer.store.keys import Keys
from dtimer.store.store import Store


@pytest.fixture
def clean(client):
    """Nothing is left of the nodes of this test, here or on the server."""
    with nothing_left(client):
        yield


@pytest.fixture
def make(server, client, namespace, clean):
    """
    Make timers in the namespace of this test. They are made to leave in the end, and
    must leave behind neither a trace of themselves nor a contradiction.
    """
    made = []

    def build(id="node", url=None, **options):
        timer = DTimer(id, url or server.url, **{"ns": namespace} | options)
        made.append(timer)
        return timer

    yield build
    for timer in made:
        timer.leave(0)
    keys = Keys.of(namespace)
    assert [] == client.hvals(keys.nodes)
    assert_sound(client, keys)


@pytest.fixture
def now():
    """The time of `store`, moved by the test."""
    return Now()


@pytest.fixture
def store(client, namespace, now):
    """A store of the namespace of this test, whose keys agree with each other in the end."""
    store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
    yield store
    assert_sound(client, store.keys)
    store.close()


@pytest.fixture
def node(store):
    """A node of that store, without threads."""
    return Peer(store, "node")
