"""Real nodes, and the check that nothing is left of them."""

from __future__ import annotations

import pytest
from leftovers import nothing_left
from soundness import assert_sound

from dtimer import DTimer
from dtimer.store.keys import Keys


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
