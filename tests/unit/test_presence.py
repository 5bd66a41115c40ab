"""Presence: the entry that a joined node stores, and its warning if it has no listener."""

import json
from dataclasses import replace
from types import SimpleNamespace

from logged import Logged

from dtimer import Health, log
from dtimer.timer.presence import Presence

IDLE = Health(True, True, False, 0.0, 0.0, handlers=0, stuck=0, error=None)


def test_the_entry_has_the_state_of_the_threads():
    """Operators see which node is busy, deaf or stuck without access to its process."""
    presence = Presence("node-1", SimpleNamespace(listens=lambda: True), Logged().log, 2)
    busy = replace(IDLE, handlers=2, deaf=True, stuck=1, restarts=3)
    assert presence.outdated(busy)
    assert not presence.outdated(busy)
    presence.rtt = 1_500
    state = {"used": 2, "deaf": True, "stuck": 1, "restarts": 3, "rtt": 1_500}
    assert state.items() <= json.loads(presence.entry()).items()
    assert presence.outdated(IDLE)
    assert state.keys() & json.loads(presence.entry()).keys() == {"rtt"}


def test_a_node_without_a_listener_warns_once():
    """A repeated warning would fill the log. The node's entry has it until a listener is added."""
    listens, logged = [False], Logged()
    presence = Presence("node-1", SimpleNamespace(listens=lambda: listens[0]), logged.log, 2)
    assert presence.outdated(IDLE)
    assert not presence.outdated(IDLE)
    assert {"id": "node-1", "listening": False}.items() <= json.loads(presence.entry()).items()
    listens[0] = True
    assert presence.outdated(IDLE)
    assert "listening" not in json.loads(presence.entry())
    listens[0] = False
    assert presence.outdated(IDLE)
    assert [(log.NO_LISTENER, ("node-1",), [])] == logged.records


def test_a_node_with_a_listener_has_the_short_entry():
    """The usual entry stays short and is not written again."""
    logged = Logged()
    presence = Presence("node-1", SimpleNamespace(listens=lambda: True), logged.log, 2)
    assert not presence.outdated(IDLE)
    entry = json.loads(presence.entry())
    assert {"id", "host", "pid", "version", "threads", "rss"} == set(entry)
    assert 2 == entry["threads"]
    assert [] == logged.records
