"""
Fixtures: real nodes, a store whose clock the test moves, and checks that nothing is left
behind.
"""

from __future__ import annotations

import pytest
from leftovers import nothing_left
from peers import Now, Peer
from soundness import assert_sound
from wakes import Wakes

from dtimer import DTimer
from dtimer.store.connection.sources import source
from dtimer.store.keys import Keys
from dtimer.store.store import Store


@pytest.fixture
def clean(client):
    """Check that the nodes of this test leave nothing behind, in this process or on the server."""
    with nothing_left(client):
        yield


@pytest.fixture
def make(server, client, namespace, clean):
    """
    Make timers in the namespace of this test. After the test each timer leaves, no node remains
    registered, and the keys of the namespace agree with each other.
    """
    timers = []

    def build(id="node", url=None, **options):
        timer = DTimer(id, url or server.url, **{"ns": namespace} | options)
        timers.append(timer)
        return timer

    yield build
    for timer in timers:
        timer.leave(0)
    keys = Keys.of(namespace)
    assert [] == client.hvals(keys.nodes)
    assert_sound(client, keys)


@pytest.fixture
def now():
    """The clock of `store`: it moves only when the test moves it."""
    return Now()


@pytest.fixture
def store(client, namespace, now):
    """A store of the test's namespace. After the test its keys must agree with each other."""
    store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
    yield store
    assert_sound(client, store.keys)
    store.release()


@pytest.fixture
def wakes(client, store):
    """The wakes of all nodes of `store`."""
    wakes = Wakes(client, store)
    yield wakes
    wakes.close()


@pytest.fixture
def node(store):
    """A node of `store`, without threads."""
    return Peer(store, "node")
