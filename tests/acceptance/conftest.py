"""Fixtures: commands run in this process, and a timer beside them."""

from __future__ import annotations

import pytest

from dtimer import DTimer


@pytest.fixture
def timer(server, namespace):
    """A timer in the namespace of the test. It posts and reads, and joins only in some tests."""
    timer = DTimer("reader", server.url, ns=namespace)
    yield timer
    timer.leave()


@pytest.fixture
def poster(server, namespace):
    """A timer that posts and reads, and never joins."""
    timer = DTimer("poster", server.url, ns=namespace)
    yield timer
    timer.leave()
