"""The service: one thread, whose end nobody misses."""

from __future__ import annotations

import queue
import threading
import time

import pytest
from servers import PATIENCE, PROMPT

from dtimer.engine.service import Service


class Body:
    """A body that does what it is told, run by run; then it waits for the end."""

    def __init__(self, *runs):
        self._runs = list(runs)
        self.said = queue.SimpleQueue()
        self.stoppings = []

    def __call__(self, stopping):
        self.stoppings.append(stopping)
        self.said.put("body")
        if self._runs:
            self._runs.pop(0)(stopping)
        else:
            stopping.wait(PATIENCE)

    def failed(self, error):
        self.said.put(error)

    def ended(self):
        self.said.put("ended")

    def next(self):
        return self.said.get(timeout=PATIENCE)


def fail(stopping):
    raise MemoryError("no more")


def leave(stopping):
    raise SystemExit


def fail_at_the_end(stopping):
    assert stopping.wait(PATIENCE)
    raise MemoryError("no more")


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self):
        self.now = 1_000.0

    def monotonic(self):
        return self.now

    def tick(self, seconds):
        self.now += seconds


def service(body):
    return Service("dtimer-test", body, body.failed, body.ended)


class TestLife:
    """From start to join."""

    def test_begins_and_ends(self):
        """It runs its body on a thread of its name, a daemon, until it is stopped."""
        body = Body()
        service_ = service(body)
        assert not service_.started
        service_.start()
        assert "body" == body.next()
        (thread,) = (t for t in threading.enumerate() if t.name == "dtimer-test")
        assert thread.daemon
        assert not service_.join(0)
        service_.stop()
        assert service_.join(PATIENCE)
        assert service_.started
        assert "ended" == body.next()

    def test_never_started(self):
        """Stopping and joining one that was never started is harmless."""
        service_ = service(Body())
        service_.stop()
        assert service_.join(PATIENCE)

    def test_no_older_thread_is_revived(self):
        """Each start has a stop of its own: an older thread stays stopped."""
        body = Body()
        service_ = service(body)
        for _ in range(50):
            service_.start()
            service_.stop()
            assert service_.join(PATIENCE)
        assert 50 == len(set(body.stoppings))
        assert all(stopping.is_set() for stopping in body.stoppings)

    def test_does_not_wait_for_itself(self):
        """join() by its own thread returns at once, and says that the end has not come."""
        told = []
        service_ = service(Body(lambda stopping: told.append((service_.current, service_.join()))))
        service_.start()
        assert service_.join(PATIENCE)
        assert [(True, False)] == told
        assert not service_.current

    def test_no_thread_to_be_had(self, monkeypatch):
        """Where no thread can be started that is raised, and the rest works all the same."""
        service_ = service(Body())

        def start(thread):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError):
            service_.start()
        assert not service_.started
        service_.stop()
        assert service_.join(PATIENCE)


class TestFailure:
    """Bodies that raise."""

    def test_begun_again(self):
        """A body that raises is reported and begun again, within a second."""
        body = Body(fail, leave)
        service_ = service(body)
        service_.start()
        for kind in (MemoryError, SystemExit):
            assert "body" == body.next()
            assert isinstance(body.next(), kind)
        began = time.monotonic()
        assert "body" == body.next()
        assert time.monotonic() - began < PROMPT
        assert 2 == service_.failures
        service_.stop()
        assert service_.join(PATIENCE)
        assert "ended" == body.next()

    def test_begun_once_more_on_the_way_out(self):
        """A body that raises when it is to end is begun once more, to end properly."""
        body = Body(fail_at_the_end)
        service_ = service(body)
        service_.start()
        assert "body" == body.next()
        service_.stop()
        assert isinstance(body.next(), MemoryError)
        assert "body" == body.next()
        assert "ended" == body.next()
        assert service_.join(PATIENCE)

    def test_the_end_comes_whatever_happens(self):
        """A body that can do nothing but raise does not keep its thread from ending."""
        body = Body(fail_at_the_end, fail, fail, fail)
        service_ = service(body)
        service_.start()
        service_.stop()
        assert service_.join(PATIENCE)
        said = [body.next() for _ in range(4)]
        assert ["body", "MemoryError", "body", "ended"] == [
            what if isinstance(what, str) else type(what).__name__ for what in said
        ]

    def test_told_once_of_each_kind(self, monkeypatch):
        """
        A body that keeps failing is no flood of reports: each kind is told once, and again
        when the body has run steadily in between. Meanwhile it counts as failing.
        """
        clock = Clock()
        monkeypatch.setattr("dtimer.engine.service.time", clock)
        body = Body(fail, fail, leave, fail, lambda _: clock.tick(60) or fail(_))
        service_ = service(body)
        assert service_.failure is None
        service_.start()
        said = [body.next() for _ in range(9)]
        assert ["body", MemoryError, "body", "body", SystemExit, "body", "body"] == [
            what if isinstance(what, str) else type(what) for what in said[:7]
        ]
        assert [MemoryError, "body"] == [type(said[7]), said[8]], "an hour later it is news"
        assert isinstance(service_.failure, MemoryError)
        clock.tick(2)
        assert service_.failure is None
        assert 5 == service_.failures
        service_.stop()
        assert service_.join(PATIENCE)

    def test_whoever_cannot_be_told(self):
        """A report that fails itself does not end the thread either."""

        def deaf(error):
            raise MemoryError("no more")

        body = Body(fail)
        service_ = Service("dtimer-test", body, deaf, body.ended)
        service_.start()
        assert ["body", "body"] == [body.next(), body.next()]
        service_.stop()
        assert service_.join(PATIENCE)
