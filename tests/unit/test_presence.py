"""Presence: the entry that a joined node stores, and its warning if it has no listener."""

from __future__ import annotations

import json
import logging

from dtimer.timer.presence import Presence


def test_a_node_without_a_listener_warns_once(caplog):
    """
    The log has the warning once, not with every check.

    The node's entry says it as long as it holds.
    """
    listens = [False]
    presence = Presence("node-1", lambda: listens[0])
    with caplog.at_level(logging.WARNING, logger="dtimer"):
        assert presence.outdated()
        assert not presence.outdated()
        assert {"id": "node-1", "listening": False}.items() <= json.loads(presence.entry()).items()
        listens[0] = True
        assert presence.outdated()
        assert "listening" not in json.loads(presence.entry())
        listens[0] = False
        assert presence.outdated()
    (record,) = caplog.records
    assert "the node 'node-1' has joined but has no listener of 'event'" in record.getMessage()


def test_a_node_with_a_listener_has_the_short_entry(caplog):
    """The usual entry stays short and is not written again."""
    presence = Presence("node-1", lambda: True)
    assert not presence.outdated()
    assert {"id", "host", "pid"} == set(json.loads(presence.entry()))
    assert [] == caplog.records
