"""The service: one thread that survives exceptions and can be stopped and joined."""

from __future__ import annotations

import queue
import threading
import time

import pytest
from servers import PATIENCE, PROMPT

from dtimer.engine.service import Service


class Body:
    """A thread body that runs the given functions in turn, then waits for the stop."""

    def __init__(self, *runs):
        self._runs = list(runs)
        self.reports = queue.SimpleQueue()
        self.stoppings = []

    def __call__(self, stopping):
        self.stoppings.append(stopping)
        self.reports.put("body")
        if self._runs:
            self._runs.pop(0)(stopping)
        else:
            stopping.wait(PATIENCE)

    def failed(self, error):
        self.reports.put(error)

    def ended(self):
        self.reports.put("ended")

    def next(self):
        return self.reports.get(timeout=PATIENCE)


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


class TestLifecycle:
    """From start to join."""

    def test_runs_its_body_on_a_named_daemon_thread_until_stopped(self):
        """A daemon thread does not keep the process alive."""
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

    def test_stop_and_join_without_start_do_nothing(self):
        """A failed start must be cleaned up like any other."""
        service_ = service(Body())
        service_.stop()
        assert service_.join(PATIENCE)

    def test_each_start_has_its_own_stop_flag(self):
        """A new start must not clear the flag of an older thread that has not ended yet."""
        body = Body()
        service_ = service(body)
        for _ in range(50):
            service_.start()
            service_.stop()
            assert service_.join(PATIENCE)
        assert 50 == len(set(body.stoppings))
        assert all(stopping.is_set() for stopping in body.stoppings)

    def test_join_on_its_own_thread_returns_false_at_once(self):
        """A wait for itself would never end."""
        seen = []
        service_ = service(Body(lambda stopping: seen.append((service_.current, service_.join()))))
        service_.start()
        assert service_.join(PATIENCE)
        assert [(True, False)] == seen
        assert not service_.current

    def test_start_raises_if_no_thread_can_be_started(self, monkeypatch):
        """Stop and join still work after that."""
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

    def test_reports_a_body_that_raises_and_runs_it_again_within_a_second(self):
        """The node depends on its threads."""
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

    def test_runs_a_body_that_raises_while_stopping_once_more(self):
        """The second run can end properly, and release events for example."""
        body = Body(fail_at_the_end)
        service_ = service(body)
        service_.start()
        assert "body" == body.next()
        service_.stop()
        assert isinstance(body.next(), MemoryError)
        assert "body" == body.next()
        assert "ended" == body.next()
        assert service_.join(PATIENCE)

    def test_ends_even_if_the_body_always_raises(self):
        """leave() waits for the thread."""
        body = Body(fail_at_the_end, fail, fail, fail)
        service_ = service(body)
        service_.start()
        service_.stop()
        assert service_.join(PATIENCE)
        reports = [body.next() for _ in range(4)]
        assert ["body", "MemoryError", "body", "ended"] == [
            what if isinstance(what, str) else type(what).__name__ for what in reports
        ]

    def test_reports_each_kind_of_error_once_until_the_body_ran_steadily(self, monkeypatch):
        """A body that keeps failing must not flood the log. Meanwhile `failure` has the error."""
        clock = Clock()
        monkeypatch.setattr("dtimer.engine.service.time", clock)
        body = Body(fail, fail, leave, fail, lambda _: clock.tick(60) or fail(_))
        service_ = service(body)
        assert service_.failure is None
        service_.start()
        reports = [body.next() for _ in range(9)]
        assert ["body", MemoryError, "body", "body", SystemExit, "body", "body"] == [
            what if isinstance(what, str) else type(what) for what in reports[:7]
        ]
        assert [MemoryError, "body"] == [type(reports[7]), reports[8]], (
            "not reported after a steady run"
        )
        assert isinstance(service_.failure, MemoryError)
        clock.tick(2)
        assert service_.failure is None
        assert 5 == service_.failures
        service_.stop()
        assert service_.join(PATIENCE)

    def test_survives_a_report_that_raises(self):
        """Reporting calls listeners, which may raise."""

        def deaf(error):
            raise MemoryError("no more")

        body = Body(fail)
        service_ = Service("dtimer-test", body, deaf, body.ended)
        service_.start()
        assert ["body", "body"] == [body.next(), body.next()]
        service_.stop()
        assert service_.join(PATIENCE)
