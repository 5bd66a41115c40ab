"""The service: one thread that survives exceptions and can be stopped and joined."""

import queue
import threading
import time

import pytest
from servers import PATIENCE, PROMPT

from dtimer.engine.service import Service


class Body:
    """
    A thread body that runs the given functions in turn, then waits for the stop.

    The queue has "body" for each run, the type of each reported error, and "ended".
    """

    def __init__(self, *runs):
        self._runs = list(runs)
        self._reports = queue.SimpleQueue()
        self.stop_flags = []

    def __call__(self, stopping):
        self.stop_flags.append(stopping)
        self._reports.put("body")
        if self._runs:
            self._runs.pop(0)(stopping)
        else:
            stopping.wait(PATIENCE)

    def failed(self, error):
        self._reports.put(type(error))

    def ended(self):
        self._reports.put("ended")

    def reports(self, count):
        """Wait for the next *count* reports, and return them."""
        return [self._reports.get(timeout=PATIENCE) for _ in range(count)]


def fail(stopping):
    raise MemoryError("no more")


def leave(stopping):
    raise SystemExit


def fail_at_the_end(stopping):
    assert stopping.wait(PATIENCE)
    raise MemoryError("no more")


class Clock:
    """A monotonic clock that the test moves."""

    now = 1_000.0

    def monotonic(self):
        return self.now

    def tick(self, seconds):
        self.now += seconds


def a_service(body):
    return Service("dtimer-test", body, body.failed, body.ended)


def stop(service):
    service.stop()
    assert service.join(PATIENCE)


class TestLifecycle:
    """From start to join."""

    def test_runs_its_body_on_a_named_daemon_thread_until_stopped(self):
        """A daemon thread does not keep the process alive."""
        body = Body()
        service = a_service(body)
        assert not service.started
        service.start()
        assert ["body"] == body.reports(1)
        (thread,) = (t for t in threading.enumerate() if t.name == "dtimer-test")
        assert thread.daemon
        assert not service.join(0)
        stop(service)
        assert service.started
        assert ["ended"] == body.reports(1)

    def test_stop_and_join_without_start_do_nothing(self):
        """A node whose start failed must be cleaned up like any other."""
        stop(a_service(Body()))

    def test_each_start_has_its_own_stop_flag(self):
        """A new start must not clear the flag of an older thread that has not ended yet."""
        body = Body()
        service = a_service(body)
        for _ in range(50):
            service.start()
            stop(service)
        assert 50 == len(set(body.stop_flags))
        assert all(flag.is_set() for flag in body.stop_flags)

    def test_join_on_its_own_thread_returns_false_at_once(self):
        """A thread that waits for itself would never end."""
        results = []
        service = a_service(Body(lambda _: results.append((service.current, service.join()))))
        service.start()
        assert service.join(PATIENCE)
        assert [(True, False)] == results
        assert not service.current

    def test_start_raises_if_no_thread_can_be_started(self, monkeypatch):
        """Stop and join still work after that."""
        service = a_service(Body())

        def start(thread):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError):
            service.start()
        assert not service.started
        stop(service)


class TestFailure:
    """Bodies that raise."""

    def test_reports_a_body_that_raises_and_runs_it_again_within_a_second(self):
        """The node depends on its threads."""
        body = Body(fail, leave)
        service = a_service(body)
        service.start()
        assert ["body", MemoryError, "body", SystemExit] == body.reports(4)
        began = time.monotonic()
        assert ["body"] == body.reports(1)
        assert time.monotonic() - began < PROMPT
        assert 2 == service.failures
        stop(service)
        assert ["ended"] == body.reports(1)

    def test_runs_a_body_that_raises_while_stopping_once_more(self):
        """The second run can end properly, and release events for example."""
        body = Body(fail_at_the_end)
        service = a_service(body)
        service.start()
        assert ["body"] == body.reports(1)
        service.stop()
        assert [MemoryError, "body", "ended"] == body.reports(3)
        assert service.join(PATIENCE)

    def test_ends_even_if_the_body_always_raises(self):
        """leave() waits for the thread."""
        body = Body(fail_at_the_end, fail, fail, fail)
        service = a_service(body)
        service.start()
        stop(service)
        assert ["body", MemoryError, "body", "ended"] == body.reports(4)

    def test_reports_each_kind_of_error_once_until_the_body_ran_steadily(self, monkeypatch):
        """A body that keeps failing must not flood the log. Meanwhile `failure` has the error."""
        clock = Clock()
        monkeypatch.setattr("dtimer.engine.service.time", clock)
        body = Body(fail, fail, leave, fail, lambda _: clock.tick(60) or fail(_))
        service = a_service(body)
        assert service.failure is None
        service.start()
        expected = ["body", MemoryError, "body", "body", SystemExit, "body", "body"]
        assert expected == body.reports(7)
        assert [MemoryError, "body"] == body.reports(2), "not reported after a steady run"
        assert isinstance(service.failure, MemoryError)
        clock.tick(2)
        assert service.failure is None
        assert 5 == service.failures
        stop(service)

    def test_survives_a_report_that_raises(self):
        """Reporting calls listeners, which may raise."""

        def failing_report(error):
            raise MemoryError("no more")

        body = Body(fail)
        service = Service("dtimer-test", body, failing_report, body.ended)
        service.start()
        assert ["body", "body"] == body.reports(2)
        stop(service)
