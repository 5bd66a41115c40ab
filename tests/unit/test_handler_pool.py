"""The handler threads: which runs a batch, and how they end."""

from __future__ import annotations

import queue
import threading

import pytest
from seats import Announced
from servers import PATIENCE, eventually

from dtimer.engine.handler_pool import HandlerPool


class PoolHarness:
    """A pool of three threads, which is also the runner of its batches and its claimer."""

    def __init__(self):
        self.announced = Announced()
        self.pool = HandlerPool("dtimer-test", 3, self, self.announced)
        self.pool.claimer = self
        self.begun = queue.SimpleQueue()
        self.go_on = threading.Semaphore(0)
        self.busy = queue.SimpleQueue()  # how many threads were busy when one became free

    def run(self, batch):
        self.begun.put(batch)
        assert self.go_on.acquire(timeout=PATIENCE)
        if batch == ["bad"]:
            raise MemoryError("no more")

    def claim_inline(self):
        self.busy.put(self.pool.busy)

    def begin(self, *batches):
        """Run these batches; return when a thread has begun each."""
        for batch in batches:
            self.pool.run(batch)
        assert sorted(batches) == sorted(self.begun.get(timeout=PATIENCE) for _ in batches)


@pytest.fixture
def harness():
    harness = PoolHarness()
    yield harness
    harness.go_on.release(100)
    harness.pool.stop()
    assert harness.pool.join(PATIENCE)


def test_runs_a_batch_on_each_thread_at_the_same_time(harness):
    """A thread that becomes free claims when it counts as free, or the claim would ask for none."""
    harness.pool.start()
    harness.begin(["a"], ["b"], ["c"])
    assert 3 == harness.pool.busy
    harness.go_on.release()
    assert 2 == harness.busy.get(timeout=PATIENCE)


def test_a_thread_survives_any_exception(harness):
    """If the thread ended, the node would have one thread fewer until it leaves."""
    harness.pool.start()
    harness.begin(["bad"], ["b"], ["c"])
    harness.go_on.release(3)
    assert "no more" == str(harness.announced.next(PATIENCE)[1])
    eventually(lambda: not harness.pool.busy)
    harness.begin(["d"], ["e"], ["f"])


def test_without_threads_each_call_runs_one_batch_on_the_calling_thread(harness):
    """The return value says whether there was a batch."""
    assert not harness.pool.run_one()
    for batch in (["a"], ["b"]):
        harness.pool.run(batch)
    harness.go_on.release(2)
    assert harness.pool.run_one()
    assert 1 == harness.pool.busy
    assert harness.pool.run_one()
    assert not harness.pool.run_one()
    assert 0 == harness.pool.busy


def test_stop_ends_each_thread_after_its_batch(harness):
    """``join`` returns True only when all threads have ended."""
    harness.pool.start()
    harness.begin(["a"])
    harness.pool.stop()
    assert not harness.pool.join(0)
    harness.go_on.release()
    assert harness.pool.join(PATIENCE)
    assert not harness.pool.current


def test_join_idle_waits_for_all_threads_but_the_running_one(harness):
    """A handler that does not return delays the end of its own thread only."""
    harness.pool.start()
    harness.begin(["a"])
    gate, ending = threading.Event(), queue.SimpleQueue()

    def ended():
        ending.put(None)
        assert gate.wait(PATIENCE)

    for thread in harness.pool.threads:
        thread._ended = ended
    harness.pool.stop()
    for _ in range(2):
        ending.get(timeout=PATIENCE)
    assert not harness.pool.join_idle(0)
    gate.set()
    assert harness.pool.join_idle(PATIENCE)
    assert 1 == sum(not thread.join(0) for thread in harness.pool.threads)
