"""Presence: the entry that a joined node stores, and its warning if it has no listener."""

import json
from types import SimpleNamespace

from logged import Logged

from dtimer import log
from dtimer.timer.presence import Presence


def test_a_node_without_a_listener_warns_once():
    """A repeated warning would fill the log. The node's entry has it until a listener is added."""
    listens, logged = [False], Logged()
    presence = Presence("node-1", SimpleNamespace(listens=lambda: listens[0]), logged.log)
    assert presence.outdated()
    assert not presence.outdated()
    assert {"id": "node-1", "listening": False}.items() <= json.loads(presence.entry()).items()
    listens[0] = True
    assert presence.outdated()
    assert "listening" not in json.loads(presence.entry())
    listens[0] = False
    assert presence.outdated()
    assert [(log.NO_LISTENER, ("node-1",), [])] == logged.records


def test_a_node_with_a_listener_has_the_short_entry():
    """The usual entry stays short and is not written again."""
    logged = Logged()
    presence = Presence("node-1", SimpleNamespace(listens=lambda: True), logged.log)
    assert not presence.outdated()
    assert {"id", "host", "pid"} == set(json.loads(presence.entry()))
    assert [] == logged.records
