"""Servers that know of each other, as fixtures."""

from __future__ import annotations

import pytest
from topologies import three_masters, watched_by_sentinel


@pytest.fixture
def sentinel():
    """A master, a replica of it that is in step, and a sentinel's client."""
    with watched_by_sentinel() as found:
        yield found[:3]


@pytest.fixture
def cluster():
    """A cluster of three masters, and a client of it."""
    with three_masters() as found:
        yield found
