"""
Calls of the library that a signal handler interrupts with calls of the library.

The signal handler runs at one bytecode after another of the library's own frames. The suite tries
only a sample, to be fast; ``DTIMER_TEST_BYTECODES=1`` tries each bytecode.
"""

from __future__ import annotations

import contextlib
import threading

import pytest
from interrupted import STRIDE, Interruption, each_bytecode
from leftovers import nothing_left, threads
from servers import LATER, LONGEST_CALL, PATIENCE, eventually

from dtimer import Cancelled, RunAt, State, UsageError
from dtimer.timer.node import Node

#: For queues that poll rarely, and whose calls a busy machine may answer late. The time of a signal
#: handler counts against the deadline of the call that it interrupts.
PATIENT = {"interval": 60_000, "timeout": LONGEST_CALL}

#: Steps between the tried bytecodes: a call has some hundred to some thousand of them.
STRIDES = {
    "post": 83,
    "post an id": 97,
    "cancel": 61,
    "join": 331,
    "join later": 67,
    "leave": 29,
    "exit": 29,
}

#: The calls that begin with a timer that has not joined.
JOINS = ("join", "join later")


def calls(timer):
    """Return calls of *timer* by name; all but `JOINS` require that it has joined."""
    return {
        "post": lambda: timer.post({"by": "outer"}, LATER),
        "post an id": lambda: timer.post({"by": "outer"}, LATER, id="tea"),
        "cancel": lambda: timer.cancel("egg"),
        "join": timer.join,
        "join later": lambda: timer.join(wait=False),
        "leave": timer.leave,
        "exit": timer._at_exit,
    }


@pytest.fixture
def timer(make, client):
    """A timer with a listener. The fixture ``make`` checks what it leaves behind."""
    timer = make("node", poll_interval=60_000, timeout=LONGEST_CALL)
    timer.on("event", lambda events: None)
    return timer


@pytest.mark.slow
class TestSignalHandlers:
    """Calls that a signal handler may make during any other call."""

    @pytest.mark.parametrize("call", STRIDES)
    def test_a_handler_may_post_and_cancel(self, timer, call):
        """The interrupted call completes too. If one waited for the other, neither would end."""
        posted = []

        def handler():
            timer.post({"by": "handler"}, LATER, id="tea")
            posted.append(timer.post({"by": "handler"}, LATER))
            posted.append(timer.post({"by": "handler"}, LATER))
            timer.cancel(posted[-1])
            timer.health()

        for n in each_bytecode(STRIDES[call]):
            if call in JOINS:
                timer.leave()
            else:
                timer.join()
            timer.post({}, LATER, id="egg")
            posted.clear()
            interruption = Interruption(n, handler)
            result = interruption.during(calls(timer)[call])
            if interruption.where is None:
                break
            kept, dropped = posted
            assert timer.peek(kept) is not None, interruption.where
            assert timer.peek(dropped) is None, interruption.where
            assert timer.peek("tea") is not None, interruption.where
            if call == "post":
                assert result not in (kept, dropped), interruption.where
                assert {"by": "outer"} == timer.peek(result).event, interruption.where
                timer.cancel(result)
            if call == "cancel":
                assert Cancelled.CANCELLED is result, interruption.where
            if call == "join later":
                timer.join()
            assert timer.joined == (call not in ("leave", "exit")), interruption.where
            for id in (kept, "tea", "egg"):
                timer.cancel(id)
        assert n >= 2 * STRIDES[call], "too few interruptions"

    @pytest.mark.parametrize("call", STRIDES)
    def test_a_handler_may_leave(self, timer, client, call):
        """A leave() during join() is not lost, and no two threads wait for each other."""
        with nothing_left(client):
            for n in each_bytecode(STRIDES[call]):
                if call not in JOINS:
                    timer.join()
                interruption = Interruption(n, timer.leave)
                interruption.during(calls(timer)[call])
                if interruption.where is None:
                    break
                # In the first bytecodes join() has not yet looked whether this thread leaves.
                assert not timer.joined or (call in JOINS and n < 13), interruption.where
                timer.leave()
                eventually(lambda: not threads())
            timer.leave()
        assert [] == timer.nodes()
        assert n >= 2 * STRIDES[call], "too few interruptions"

    @pytest.mark.parametrize("call", JOINS)
    def test_a_join_within_a_join_starts_one_node(self, timer, client, call):
        """A signal handler that joins during join() does not start a second node."""
        with nothing_left(client):
            for n in each_bytecode(STRIDES[call]):
                interruption = Interruption(n, timer.join)
                interruption.during(calls(timer)[call])
                timer.join()
                assert 1 == len(timer.nodes())
                timer.leave()
                eventually(lambda: not threads())
                if interruption.where is None:
                    break
        assert [] == timer.nodes()
        timer.leave()

    @pytest.mark.parametrize("call", ["leave", "exit", "post an id"])
    def test_a_handler_may_join(self, timer, call):
        """A signal handler that joins neither undoes nor blocks the interrupted call."""
        for n in each_bytecode(STRIDES[call]):
            timer.join()
            interruption = Interruption(n, timer.join)
            interruption.during(calls(timer)[call])
            if interruption.where is None:
                break
            timer.join()
            eventually(lambda: timer.health().ok)
        assert n >= 2 * STRIDES[call], "too few interruptions"


class Alarm(Exception):
    """The exception that the signal handler raises."""


def ring():
    raise Alarm


def ring_during(n, call):
    """Raise an Alarm at a bytecode of a call; return where, and the result if there is one."""
    interruption, result = Interruption(n, ring, raises=True), None
    with contextlib.suppress(Alarm):
        result = interruption.during(call)
    return interruption.where, result


@pytest.fixture
def queue(server, namespace, clean):
    queue = RunAt(namespace, redis=server.url, **PATIENT, lease=600_000)
    yield queue
    queue.stop(0)


@pytest.mark.slow
class TestReading:
    """A read that is interrupted."""

    @pytest.mark.parametrize("written", ["before", "afterwards"])
    def test_an_interrupted_read_loses_no_key(self, queue, written):
        """The next read() returns the key at once, and not when a lease of ten minutes ends."""
        queue.read(timeout=0)
        for n in each_bytecode(23):
            if written == "before":
                queue.write(f"k{n}")
            where, key = ring_during(n, lambda: queue.read(timeout=20))
            if where is None:
                break
            if written == "afterwards":
                queue.write(f"k{n}")
            if key is None:
                key = queue.read(timeout=20_000)
            assert f"k{n}" == key, where
            assert queue.confirm(key), where
        assert written == "afterwards" or n > 0, "there was no interruption"

    def test_an_interrupted_read_does_not_keep_the_previous_key(self, queue):
        """The next read() must confirm that key, or its lease would be renewed for ever."""
        queue.read(timeout=0)
        # The first real points of read(): confirming comes before the rest.
        for n in range(0, 40, STRIDE or 2):
            queue.write(f"a{n}")
            assert f"a{n}" == queue.read(timeout=20_000)
            where, _ = ring_during(n, lambda: queue.read(timeout=0))
            queue.read(timeout=0)
            eventually(lambda n=n: queue.timer.peek(f"a{n}") is None)
        assert where is not None

    def test_an_exception_at_the_end_of_a_read_does_not_forbid_the_next_one(self, queue):
        """At that point the thread is still marked as reading, and nothing would unmark it."""
        queue.read(timeout=0)
        queue._by_thread.in_read = True
        queue.write("tea")
        assert "tea" == queue.read(timeout=20_000)
        assert not queue._by_thread.in_read

    def test_a_handler_cannot_read_within_a_read(self, queue, monkeypatch):
        """The key would go to the interrupted read(), which cannot return before the handler."""
        queue.read(timeout=0)
        queue.write("tea")
        read, errors = queue._readers.read, []

        def interrupted_read(*arguments):
            with pytest.raises(UsageError, match="interrupts a read") as raised:
                queue.read()
            errors.append(raised.value)
            read(*arguments)

        monkeypatch.setattr(queue._readers, "read", interrupted_read)
        assert "tea" == queue.read(timeout=20_000)
        assert 1 == len(errors)

    def test_a_handler_may_write_read_and_stop(self, server, namespace, clean):
        """A signal handler may use the queue that its thread reads from, and may stop it."""
        for n in each_bytecode(701):
            queue = RunAt(namespace, redis=server.url, **PATIENT)
            read = []

            def handler(queue=queue, read=read):
                queue.write("milk")
                with contextlib.suppress(UsageError):
                    # If the handler interrupts the join, no key can be read.
                    read.append(queue.read(timeout=1))
                queue.stop()

            interruption = Interruption(n, handler)
            read.append(interruption.during(lambda queue=queue: queue.read(timeout=1)))
            queue.stop()
            if interruption.where is None:
                break
            record = queue.timer.peek("milk")
            assert ("milk" in read) == (record is None), interruption.where
            assert record is None or State.SCHEDULED is record.state, interruption.where
            queue.timer.cancel("milk")
            queue.stop()
        assert n > 701


#: The same for the points at which the interpreter handles signals.
POINTS = {"join": 23, "join later": 11, "leave": 7, "exit": 7, "post an id": 11}


def returns(call):
    """Make a call in another thread, so that a call that never returns fails the test."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()


# If an exception interrupts connecting, the collector closes the socket, with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
class TestExceptions:
    """Calls that an exception from a signal handler ends, as Ctrl-C does."""

    @pytest.mark.parametrize("call", POINTS)
    def test_a_timer_joins_and_leaves_after_an_interrupted_call(self, timer, client, call):
        """An exception at any bytecode leaves no thread, descriptor or connection behind."""
        with nothing_left(client):
            for n in each_bytecode(POINTS[call]):
                if call not in JOINS:
                    timer.join()
                where, _ = ring_during(n, calls(timer)[call])
                if where is None:
                    break
                assert returns(timer.join), where
                assert timer.joined, where
                assert returns(timer.leave), where
                assert not timer.joined, where
                eventually(lambda: not threads())
            timer.leave()
        assert n >= 2 * POINTS[call], "it was hardly interrupted"

    def test_a_timer_joins_and_leaves_after_two_exceptions(self, timer, client, monkeypatch):
        """A second exception, during the end of the join that the first has interrupted."""
        with nothing_left(client):
            for n in each_bytecode(19):
                with monkeypatch.context() as patched:
                    patched.setattr(Node, "_first_claim", lambda node: ring())
                    where, _ = ring_during(n, timer.join)
                if where is None:
                    break
                assert returns(timer.leave), where
                eventually(lambda: not threads())
                assert returns(timer.join), where
                assert timer.joined, where
                timer.leave()
        timer.leave()

    def test_a_queue_stops_after_an_interrupted_stop(self, server, namespace, client):
        """The first stop() or the second confirms the key that was read, and no lease is left."""
        for n in each_bytecode(11):
            queue = RunAt(namespace, redis=server.url, **PATIENT, lease=600_000)
            queue.write("tea")
            assert "tea" == queue.read(timeout=20_000)
            where, _ = ring_during(n, queue.stop)
            queue.stop()
            assert not queue.timer.joined, where
            assert queue.timer.peek("tea") is None, where
            queue.stop()
            eventually(lambda: not threads())
            if where is None:
                break
        assert n >= 22, "it was hardly interrupted"
