"""Fixtures: commands run in this process, and a timer beside them."""

from __future__ import annotations

import pytest
from shell import runner

from dtimer import DTimer


@pytest.fixture
def run(server, namespace, monkeypatch, capsys):
    """Run a command in this process, with the server and the namespace of the test."""
    return runner(server, namespace, monkeypatch, capsys)


@pytest.fixture
def timer(server, namespace):
    """A timer in the namespace of the test. It posts and reads, and joins only in some tests."""
    timer = DTimer("looker", server.url, ns=namespace)
    yield timer
    timer.leave()
