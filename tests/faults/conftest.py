"""Fixtures for the tests of faults: a server that a test may break, and observed nodes."""

from __future__ import annotations

import pytest
from chaos.settings import PATIENT
from proxy import Proxy
from servers import Server

from faults.calls import hurried
from faults.expectations import Watch


@pytest.fixture
def own_server():
    """A server for this test alone, on a TCP port, with an append-only file."""
    with Server(tcp=True, appendonly=True) as server:
        yield server


@pytest.fixture
def proxy(own_server):
    """A proxy to that server, which can inject faults of the network."""
    with Proxy(own_server) as proxy:
        yield proxy


@pytest.fixture
def replication():
    """A master, the link to its replica, and the replica."""
    with Server(tcp=True) as master, Proxy(master) as link, master.replica(link.port) as replica:
        yield master, link, replica


@pytest.fixture
def watch(own_server, request):
    """Nodes on that server, which the test observes: see `faults.expectations`."""
    if "proxy" in request.fixturenames:
        # Started before the watch, and closed after it: nodes need the proxy in order to leave.
        request.getfixturevalue("proxy")
    with Watch(own_server, "chaos") as watch:
        yield watch


def _opened(timer):
    """Open the namespace now, so that a fault strikes the test's own call. Reading opens none."""
    timer.cancel("nothing")
    return timer


@pytest.fixture
def caller(watch):
    """A timer that only posts, and waits long for each reply."""
    return _opened(watch.caller())


@pytest.fixture
def hasty_caller(watch):
    """A timer that only posts, and gives up soon. For a server that does not reply."""
    timer = _opened(watch.caller("hasty"))
    with hurried(timer):
        yield timer


@pytest.fixture
def refused_caller(watch):
    """A timer that only posts, and repeats a refused call for a few seconds."""
    return _opened(watch.caller("refused", timeout=PATIENT["timeout"]))


@pytest.fixture
def proxied_caller(watch, proxy):
    """A timer that only posts, through the proxy. It has a connection and an open namespace."""
    return _opened(watch.caller("proxied", proxy.url))
