"""Fixtures for Sentinel and Cluster."""

from __future__ import annotations

import pytest
from topologies import three_masters, watched_by_sentinel


@pytest.fixture
def sentinel():
    """A client of Sentinel, a master, and a replica of it in sync."""
    with watched_by_sentinel() as found:
        yield found[:3]


@pytest.fixture
def cluster():
    """A client of a cluster, and its three masters."""
    with three_masters() as found:
        yield found
