"""The handler threads: which runs a batch, and how they end."""

from __future__ import annotations

import queue
import threading
import time

import pytest
from seats import Announced
from servers import PATIENCE, eventually

from dtimer.engine.handler_pool import HandlerPool
from dtimer.engine.lag import Lag


class PoolHarness:
    """A pool of three threads, which is also the runner of its batches and its claimer."""

    def __init__(self):
        self.announced = Announced()
        self.due = []  # the waiting events: when each is due, and its batch
        self.lag = Lag()
        self.pool = HandlerPool(
            "dtimer-test", 3, runner=self, events=self, lag=self.lag, announcements=self.announced
        )
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

    def next_due(self):
        return self.due[0][0] if self.due else None

    def pop_startable(self):
        if self.due and self.due[0][0] <= time.monotonic():
            return self.due.pop(0)[1]
        return []

    def wait_for(self, seconds, batch):
        """Add an event that is due in *seconds*."""
        self.due.append((time.monotonic() + seconds, batch))
        self.due.sort()
        self.pool.watch()

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


class TestDueTime:
    """An idle thread watches the first due time, and takes the events itself."""

    def test_an_idle_thread_starts_the_events_when_they_are_due(self, harness):
        """No other thread must be woken at that moment."""
        harness.pool.start()
        due = time.monotonic() + 0.05
        harness.wait_for(0.05, ["a"])
        assert ["a"] == harness.begun.get(timeout=PATIENCE)
        assert time.monotonic() >= due
        assert 1 == harness.pool.busy

    def test_an_earlier_event_starts_first(self, harness):
        """The thread that watches a later time has to be told, or another one watches."""
        harness.pool.start()
        harness.wait_for(10 * PATIENCE, ["b"])
        eventually(lambda: harness.pool._watched)
        harness.wait_for(0.02, ["a"])
        assert ["a"] == harness.begun.get(timeout=PATIENCE)

    def test_another_idle_thread_watches_when_the_first_has_a_batch(self, harness):
        """A handler may run for long while other events fall due."""
        harness.pool.start()
        harness.wait_for(0.02, ["a"])
        harness.wait_for(0.04, ["b"])
        harness.wait_for(0.06, ["c"])
        begun = [harness.begun.get(timeout=PATIENCE) for _ in range(3)]
        assert [["a"], ["b"], ["c"]] == begun

    def test_a_thread_that_becomes_free_watches(self, harness):
        """While all threads were busy, none could be told."""
        harness.pool.start()
        harness.begin(["a"], ["b"], ["c"])
        harness.wait_for(0.0, ["d"])
        assert not harness.pool._watched
        harness.go_on.release()
        assert ["d"] == harness.begun.get(timeout=PATIENCE)

    def test_events_that_another_thread_takes_leave_the_watching_thread_idle(self, harness):
        """The claimer releases events, or gives them to a thread, at any moment."""
        harness.pool.start()
        harness.wait_for(0.02, ["a"])
        eventually(lambda: harness.pool._watched)
        harness.due.clear()
        eventually(lambda: not harness.pool._watched)
        assert 0 == harness.pool.busy
        harness.begin(["b"])

    def test_a_thread_of_a_process_that_lags_wakes_early_and_never_starts_early(self, harness):
        """The lag may be shorter this time."""
        for _ in range(50):
            harness.lag.waited(0.01)
        harness.pool.start()
        before, due = harness.lag.seconds, time.monotonic() + 0.05
        harness.wait_for(0.05, ["a"])
        assert ["a"] == harness.begun.get(timeout=PATIENCE)
        assert time.monotonic() >= due
        assert before != harness.lag.seconds  # learned from this wait

    def test_stop_ends_a_thread_that_watches(self, harness):
        """The event may be due in 20 ms, and the node ends now."""
        harness.pool.start()
        harness.wait_for(PATIENCE, ["a"])
        eventually(lambda: harness.pool._watched)
        harness.pool.stop()
        assert harness.pool.join(PATIENCE)
