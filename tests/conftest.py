"""Fixtures for every test: a real server, a client, a namespace of the test's own."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import uuid

import pytest
from hypothesis import HealthCheck, settings
from proxy import Proxy
from servers import LIMIT, PATIENCE, Server, any_server, clear, eventually
from shell import runner
from topologies import three_masters

from dtimer.errors import StoreError
from dtimer.testing import Catch

# The deadline and the health check measure an example, which is slow on a busy machine.
settings.register_profile("dtimer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dtimer")

# Containers often set this variable. Each process of a run would then compile all modules again,
# which took 0.2 s for each program that a test starts, and 5 s for each worker.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

#: The standard error of the process. During a test, pytest captures that of the test.
_STDERR = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Set the time limit of a test, and the signal handling that child processes inherit."""
    config.stash[_STDERR] = os.dup(sys.__stderr__.fileno())
    if "DTIMER_TEST_TIMEOUT" in os.environ and config.getoption("timeout", None) is None:
        config.option.timeout = LIMIT
    # On a slow machine, events that a `Catch` waits for are slow too.
    Catch.__init__.__defaults__ = (PATIENCE,)
    # If pytest runs in a script's background, it ignores SIGINT; under nohup, SIGHUP. Child
    # processes inherit that, and would then ignore the signals that the tests send them.
    # A handler is not inherited. This one does nothing, so pytest still ignores the signal.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """
    End the process if the teardown of a test hangs. If it is a worker, xdist starts another one.

    pytest-timeout limits the teardown of a test that passed, but not of a test that failed.
    """
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=item.config.stash[_STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_xdist_auto_num_workers():
    """Return the number of processes for ``-n auto``: two a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 2 * (cores or 1)


def pytest_collection_modifyitems(items):
    """Run slow tests first, so that no slow test is still running when all others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """
    Exclude the collected tests from garbage collection.

    Many tests collect garbage to see whether anything is left. Among thousands of collected tests,
    that took 100 ms instead of 3 ms each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def server():
    """The server of this pytest worker, on a unix socket. Without a server, every test fails."""
    try:
        server = any_server()
    except (StoreError, OSError) as e:
        pytest.fail(f"the tests need a real server: {e}", pytrace=False)
    with server:
        yield server


@pytest.fixture
def client(server):
    """A client of the server that returns bytes."""
    with server.client() as client:
        yield client


@pytest.fixture
def namespace(client):
    """A namespace that no other test uses. Its keys are removed after the test."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    yield name
    clear(client, name)


@pytest.fixture
def run(server, namespace, monkeypatch, capsys):
    """Run a command in this process, with the server and the namespace of the test."""
    return runner(server, namespace, monkeypatch, capsys)


@pytest.fixture
def proxy(server):
    """A proxy to the server of this worker."""
    with Proxy(server) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def three_servers():
    """A client of a cluster, and its three masters. It takes writes two seconds after its start."""
    with three_masters() as found:
        yield found


@pytest.fixture
def cluster(three_servers):
    """
    A client of an empty cluster, and its three masters.

    A test may pause the servers and move slots. A test that does more needs `own_cluster`.
    """
    client, servers = three_servers
    client.nodes_manager.initialize()
    yield three_servers
    for server in servers:
        server.resume()
    for server in servers:
        with server.client() as admin:
            eventually(lambda c=admin: c.cluster("INFO")["cluster_state"] == "ok")
            admin.flushall()


@pytest.fixture
def own_cluster():
    """A client of a cluster of this test's own, and its three masters."""
    with three_masters() as found:
        yield found


@pytest.fixture
def tcp_server():
    """A server of this test's own, on a TCP port."""
    with Server(tcp=True) as server:
        yield server
