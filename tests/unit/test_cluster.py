"""The server of a cluster that holds the keys: redirections, and the look-up of its address."""

import threading
import time

import pytest
import redis
import valkey

from dtimer.store.connection.cluster import ClusterSource, _moved
from dtimer.store.keys import Keys

OWNER = ("127.0.0.1", 7001)


@pytest.fixture
def source():
    """A source that finds the same owner of every slot, without a connection."""
    source = ClusterSource.__new__(ClusterSource)
    source._home_of_slot, source._lock = {}, threading.RLock()
    source._slot_of = lambda key: 1
    source.lookups = 0

    def look_up(slot, until):
        source.lookups += 1
        return OWNER

    source._look_up = look_up
    return source


@pytest.mark.parametrize(
    "error",
    [
        redis.exceptions.MovedError("3999 ::1:7002"),
        redis.exceptions.ResponseError("MOVED 3999 ::1:7002"),
        valkey.exceptions.MovedError("3999 ::1:7002"),
        valkey.exceptions.ResponseError("MOVED 3999 ::1:7002"),
    ],
    ids=repr,
)
def test_a_redirection_names_the_server_in_every_form_of_the_error(error):
    """A parser that does not know MOVED raises a plain error with the text of the server."""
    assert ("::1", 7002) == _moved(error)


@pytest.mark.parametrize("text", ["ASK 3999 ::1:7002", "3999 ::1:7002", "MOVED on", "MOVED 1 a:b"])
def test_other_errors_name_no_server(text):
    """A call must not go to a server that no redirection names."""
    assert _moved(redis.exceptions.ResponseError(text)) is None


def test_a_lock_that_an_interrupted_thread_has_left_taken_delays_one_call(source):
    """A signal handler may raise after the lock is taken: other threads still find the server."""
    thread = threading.Thread(target=source._lock.acquire)
    thread.start()
    thread.join()
    assert OWNER == source.home(Keys.of("dt"), time.monotonic() + 0.01)
    assert 1 == source.lookups
    assert source._lock.acquire(blocking=False), "the next call waits for the lock as well"
