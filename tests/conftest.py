"""What every test may ask for: a real server, a client, a namespace of its own."""

from __future__ import annotations

import uuid

import pytest
from servers import Server, any_server, clear

from dtimer.errors import StoreError


def pytest_collection_modifyitems(items):
    """Begin with the slow ones, so that no core is left with one when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def server():
    """The server of this test worker, on a unix socket. Without one nothing is tested."""
    try:
        server = any_server()
    except (StoreError, OSError) as e:
        pytest.fail(f"the tests need a real server: {e}", pytrace=False)
    with server:
        yield server


@pytest.fixture
def client(server):
    """A client of the server, which speaks bytes."""
    with server.client() as client:
        yield client


@pytest.fixture
def namespace(client):
    """A name that nobody else uses, whose keys are removed in the end."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    yield name
    clear(client, name)


@pytest.fixture
def tcp_server():
    """A server of the test's own, on a TCP port."""
    with Server(tcp=True) as server:
        yield server
