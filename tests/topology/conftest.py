"""Fixtures for Sentinel."""

from __future__ import annotations

import pytest
from topologies import watched_by_sentinel


@pytest.fixture
def sentinel():
    """A client of Sentinel, a master, and a replica of it in sync."""
    with watched_by_sentinel() as found:
        yield found[:3]
