"""What every test may ask for: a real server, a client, a namespace of its own."""

from __future__ import annotations

import os
import signal
import uuid

import pytest
from hypothesis import HealthCheck, settings
from servers import LIMIT, PATIENCE, Server, any_server, clear

from dtimer.errors import StoreError
from dtimer.testing import Catch

# Both go by the time that an example takes, and a busy machine takes its time.
settings.register_profile("dtimer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dtimer")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Set the limit of a test, and what the programs of the tests inherit."""
    if "DTIMER_TEST_TIMEOUT" in os.environ and config.getoption("timeout", None) is None:
        config.option.timeout = LIMIT
    # What a `Catch` of the tests waits for takes as long as anything else does here.
    Catch.__init__.__defaults__ = (PATIENCE,)
    # A job in the background of a script ignores SIGINT, and one under nohup SIGHUP. A program
    # inherits what is ignored, so the programs of the tests would ignore the tests' signals.
    # A handler is not inherited. This one does nothing: pytest goes on ignoring the signal.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_xdist_auto_num_workers():
    """Return the number of processes for ``-n auto``: two for each core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 2 * (cores or 1)


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
