"""What the rows of the catalogue need: a server to be treated badly, and nodes under watch."""

from __future__ import annotations

import pytest
from chaos.settings import HASTY
from proxy import Proxy
from servers import LONGEST_CALL, Server

from dtimer import DTimer
from faults.expectations import Watch


@pytest.fixture
def own():
    """A server of the test's own on a TCP port, that keeps what it acknowledged."""
    with Server(tcp=True, appendonly=True) as server:
        yield server


@pytest.fixture
def proxy(own):
    """A way to that server that can be spoiled."""
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
    """Nodes on that server, under watch: see `faults.expectations`."""
    if "proxy" in request.fixturenames:
        # It is there before the watch and after it: the nodes leave through it.
        request.getfixturevalue("proxy")
    with Watch(own, "chaos") as watch:
        yield watch


def _poster(watch, own, id, **options):
    """Return a timer whose namespace is open: a fault of the test then meets the post itself."""
    timer = DTimer(id, own.url, ns=watch.ns, **options)
    # Reading commands do not open a namespace.
    timer.cancel(id)
    return timer


@pytest.fixture
def caller(watch, own):
    """A timer that only posts, and waits for every reply."""
    timer = _poster(watch, own, "caller", timeout=LONGEST_CALL)
    yield timer
    timer.leave()


@pytest.fixture
def hasty(watch, own):
    """A timer that only posts, and gives up soon."""
    timer = _poster(watch, own, "hasty", **HASTY)
    yield timer
    timer.leave()
