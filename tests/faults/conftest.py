"""Fixtures for the tests of faults: a server that a test may break, and observed nodes."""

from __future__ import annotations

import pytest
from chaos.settings import PATIENT
from proxy import Proxy
from servers import LONGEST_CALL, Server

from dtimer import DTimer
from faults.expectations import Watch
from faults.haste import hurried


@pytest.fixture
def own():
    """A server for this test alone, on a TCP port, with an append-only file."""
    with Server(tcp=True, appendonly=True) as server:
        yield server


@pytest.fixture
def proxy(own):
    """A proxy to that server, which can inject faults of the network."""
    with Proxy(own) as proxy:
        yield proxy


@pytest.fixture
def pair():
    """A master, the link to its replica, and the replica."""
    with (
        Server(tcp=True) as master,
        Proxy(master) as link,
        master.replica(link.port) as replica,
    ):
        yield master, link, replica


@pytest.fixture
def watch(own, request):
    """Nodes on that server, which the test observes: see `faults.expectations`."""
    if "proxy" in request.fixturenames:
        # Started before the watch, and closed after it: nodes need the proxy in order to leave.
        request.getfixturevalue("proxy")
    with Watch(own, "chaos") as watch:
        yield watch


def _poster(watch, own, id, **options):
    """Return a timer that has opened its namespace, so that a fault strikes the post itself."""
    timer = DTimer(id, own.url, ns=watch.ns, **options)
    # A command that only reads does not open the namespace.
    timer.cancel(id)
    return timer


@pytest.fixture
def caller(watch, own):
    """A timer that only posts, and waits long for each reply."""
    timer = _poster(watch, own, "caller", timeout=LONGEST_CALL)
    yield timer
    timer.leave()


@pytest.fixture
def hasty(watch, own):
    """A timer that only posts, and gives up soon. For a server that does not reply."""
    timer = _poster(watch, own, "hasty", timeout=LONGEST_CALL)
    with hurried(timer):
        yield timer
    timer.leave()


@pytest.fixture
def refused(watch, own):
    """A timer that only posts, and whose every attempt lasts long enough for a refusal."""
    timer = _poster(watch, own, "refused", timeout=PATIENT["timeout"])
    yield timer
    timer.leave()
