"""RunAt on a real server: writing, reading, flowing, stopping, and readers that crash."""

from __future__ import annotations

import contextlib
import json
import os
import queue as queues
import random
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import consumer
import pytest
from background import background, in_thread, together
from servers import PATIENCE, eventually

import dtimer
from dtimer import HandlerError, OptionError, RunAt, StoreError, UsageError
from dtimer.errors import DTimerError
from dtimer.model.records import State
from dtimer.testing import Catch, Clock

#: Times at which no key can be due.
BAD_TIMES = [
    "1", True, float("nan"), float("inf"), 1e300, timedelta(seconds=1),
    datetime(2030, 1, 1),  # noqa: DTZ001 - naive is the point
]  # fmt: skip

#: A timeout of `RunAt.read` in ms; only a failing test waits that long.
SOON = PATIENCE * 1000


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(server, namespace):
    """A function: make a queue of the test's name. After the test no thread may be left."""
    before = set(threading.enumerate())
    with contextlib.ExitStack() as stopping:

        def make(**options):
            queue = RunAt(**{"queue_name": namespace, "redis": server.url, "backoff": 0} | options)
            stopping.callback(queue.stop, 1_000)
            return queue

        yield make
    eventually(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def queue(make):
    return make()


def state(queue, key):
    record = queue.timer.peek(key)
    return record and record.state


def write_all(queue, keys, run_at=None):
    for key in keys:
        queue.write(key, run_at)


def confirmed_count(queue):
    return queue.timer.stats().totals.get("confirmed", 0)


class TestWriting:
    """Accepted jobs, and when their keys are read."""

    def test_keys_are_read_in_order_of_their_times(self, make, clock):
        """As in the example of the original library, the order of writing does not matter."""
        queue = make(now=clock)
        for delay, key in ((560, "last"), (409, "middle"), (333, "first")):
            assert queue.write({"runAt": clock() + delay, "key": key}) is True
        assert queue.read(10) is None
        clock.tick(560)
        assert ["first", "middle", "last"] == [queue.read(SOON) for _ in range(3)]

    def test_a_key_is_never_read_early(self, make, clock):
        """A key is not read one millisecond before its time, and is read at its time."""
        queue = make(now=clock)
        queue.write("tea", clock() + 5_000)
        clock.tick(4_999)
        assert queue.read(20) is None
        clock.tick(1)
        assert "tea" == queue.read(SOON)

    @pytest.mark.parametrize(
        "job",
        [
            ({"runAt": 1_900_000_000_000, "key": "x"},),
            ("x", 1_900_000_000_000),
            ({"runAt": 1_900_000_000_000.0, "key": "x"},),
            ({"runAt": datetime.fromtimestamp(1_900_000_000, UTC), "key": "x"},),
            ("x", datetime.fromtimestamp(1_900_000_000, UTC)),
        ],
    )
    def test_a_job_is_a_mapping_or_a_key_and_a_time(self, queue, job):
        """A time is in milliseconds or an aware datetime."""
        assert queue.write(*job) is True
        assert 1_900_000_000_000 == queue.timer.peek("x").due

    @pytest.mark.parametrize(
        "job",
        [
            *[({"runAt": 1} | key,) for key in ({}, {"key": None}, {"key": 5}, {"key": b"x"})],
            *[({"runAt": 1} | key,) for key in ({"key": ""}, {"key": "x", "more": 1})],
            *[({"runAt": time, "key": "x"},) for time in BAD_TIMES],
            *[(job,) for job in ({}, None, 5, ["x"], {"runat": 1, "key": "x"}, "x" * 10_000)],
            ({"key": "x"}, 5),
            ("x", "soon"),
        ],
    )
    def test_a_bad_job_is_refused_before_any_io(self, job):
        """A job without a string as its key, or without a valid time, raises at once."""
        with pytest.raises(OptionError):
            RunAt(redis="redis://127.0.0.1:1").write(*job)

    @pytest.mark.parametrize(
        "options",
        [
            *[{"redis": bad} for bad in (5, object(), "http://localhost")],
            *[{"redis": bad} for bad in ({"port": "6379"}, {"hots": "x"})],
            *[{"queue_name": bad} for bad in ("", 5)],
            *[{"interval": bad} for bad in (0, "often")],
            *[{"concurrency": 0}, {"max_events": 2}, {"poll_interval": 5}, {"auto_confirm": False}],
            *[{"ns": "x"}, {"laese": 5}],
        ],
    )
    def test_bad_options_are_refused_at_construction(self, options):
        """A bad client, name or option raises at construction."""
        with pytest.raises(OptionError):
            RunAt(**options)

    def test_the_client_may_be_a_host_and_a_port(self, tcp_server):
        """As in the original library, the client may be given as a host and a port."""
        host, port = tcp_server.url.removeprefix("redis://").split("/")[0].rsplit(":", 1)
        with RunAt(redis={"host": host, "port": int(port)}) as queue:
            queue.write("tea")
            assert "tea" == queue.read(SOON)

    def test_an_unreachable_server_is_a_store_error(self):
        """If no server listens, writing and reading raise within their deadline."""
        queue = RunAt(redis="redis://127.0.0.1:1", timeout=100)
        with pytest.raises(StoreError):
            queue.write("tea")
        with pytest.raises(StoreError):
            queue.read(1)
        queue.stop()

    def test_the_last_write_of_a_key_wins(self, make, clock):
        """Writing a key again moves it to the new time, earlier or later. The key is read once."""
        queue, other_queue = make(now=clock), make(now=clock)
        queue.write("tea", clock() + 1_000)
        other_queue.write("tea", clock() + 5_000)
        clock.tick(1_000)
        assert queue.read(20) is None
        other_queue.write("tea", clock() + 10)
        clock.tick(10)
        assert "tea" == queue.read(SOON)
        assert queue.read(10) is None
        clock.tick(60_000)
        assert queue.read(10) is None

    @pytest.mark.parametrize("run_at", [None, 0, 1, -5, datetime(1999, 1, 1, tzinfo=UTC)])
    def test_a_missing_or_past_time_is_now(self, queue, run_at):
        """A key without a time, or with a time in the past, is due at once."""
        queue.write("tea", run_at)
        assert "tea" == queue.read(SOON)

    def test_keys_of_one_millisecond_are_read_in_order_of_writing(self, make, clock):
        """Writers give times in milliseconds, and still expect the order of their writes."""
        queue = make(now=clock)
        keys = [f"{random.randrange(1 << 40):x}" for _ in range(1_000)]
        write_all(queue, keys, int(clock()) + 1_000)
        clock.tick(3_000)
        assert keys == [queue.read(SOON) for _ in keys]

    def test_more_than_a_thousand_keys_of_one_millisecond_stay_in_order(self, make, clock):
        """Keys beyond a thousand spill into the next millisecond, never early, and none is lost."""
        queue = make(now=clock)
        keys = [f"{random.randrange(1 << 40):x}" for _ in range(1_500)]
        run_at = int(clock()) + 1_000
        write_all(queue, keys, run_at)
        dues = [queue.timer.peek(key).due for key in keys]
        assert sorted(set(dues)) == dues
        assert run_at <= dues[0]
        assert dues[-1] < run_at + 2

    def test_writing_a_key_again_moves_it_to_the_end_of_its_millisecond(self, make, clock):
        """A key that is written again for the same millisecond goes behind the other keys."""
        queue = make(now=clock)
        write_all(queue, "abca", int(clock()) + 1_000)
        clock.tick(2_000)
        assert ["b", "c", "a"] == [queue.read(SOON) for _ in range(3)]


class TestReading:
    """Which reader holds a key, and for how long."""

    def test_a_read_that_times_out_returns_none(self, queue):
        """A read that times out returns None, and the next read works."""
        assert queue.read(0) is None
        assert queue.read(timedelta(milliseconds=20)) is None
        queue.write("tea")
        assert "tea" == queue.read(SOON)

    def test_a_reader_that_timed_out_holds_no_key(self, make):
        """A key that becomes due afterwards stays in the queue with no attempt charged."""
        idle, reader = make(), make()
        assert idle.read(10) is None
        idle.write("tea")
        assert "tea" == reader.read(SOON)
        assert 1 == reader.timer.peek("tea").attempt

    def test_a_slow_reader_leases_only_its_key(self, make):
        """A slow reader holds one key, and another reads all the others meanwhile."""
        slow, quick = make(), make()
        keys = {f"k{i}" for i in range(30)}
        write_all(slow, keys)
        held = slow.read(SOON)
        assert 1 == slow.timer.stats().in_flight
        assert keys - {held} == {quick.read(SOON) for _ in range(29)}
        assert quick.read(20) is None
        assert State.IN_FLIGHT is state(slow, held)

    def test_the_next_read_confirms_the_previous_key(self, queue):
        """A reader that asks for the next key has dealt with the last one, even if none is due."""
        queue.write("tea")
        assert "tea" == queue.read(SOON)
        assert State.IN_FLIGHT is state(queue, "tea")
        assert queue.read(0) is None
        eventually(lambda: state(queue, "tea") is None)

    def test_confirm_removes_the_key(self, queue):
        """A confirmed key is removed at once. Confirming it again returns False."""
        queue.write("tea")
        queue.read(SOON)
        assert queue.confirm("tea")
        assert state(queue, "tea") is None
        assert not queue.confirm("tea")
        assert not queue.confirm("nobody")

    def test_leaving_the_block_confirms(self, make):
        """Leaving the block without an exception confirms the key that was read."""
        with make() as queue:
            queue.write("tea")
            queue.read(SOON)
        assert state(queue, "tea") is None
        assert 1 == confirmed_count(queue)

    def test_leaving_the_block_by_an_exception_releases_the_key(self, make):
        """If an exception leaves the block, its key is delivered to another reader."""
        failing = make()
        errors = Catch(failing, "error")
        failing.write("tea")
        with pytest.raises(ZeroDivisionError), failing as queue:
            1 / len(queue.read(SOON)[3:])
        assert isinstance(errors.next().__cause__, DTimerError)
        other_queue = make()
        assert "tea" == other_queue.read(SOON)
        assert 2 == other_queue.timer.peek("tea").attempt

    def test_a_confirmed_key_stays_confirmed_after_an_exception(self, make):
        """The exception leaves the block with no key to release, and no error is emitted."""
        queue = make()
        errors = Catch(queue, "error")
        queue.write("tea")
        with pytest.raises(ZeroDivisionError), queue:
            1 / (queue.confirm(queue.read(SOON)) - 1)
        assert state(queue, "tea") is None
        assert errors.empty()

    def test_a_thread_that_ends_with_a_key_releases_it(self, make):
        """If a reader thread ends with a key, the key is delivered again and 'error' is emitted."""
        queue = make()
        errors = Catch(queue, "error")
        queue.write("tea")
        assert "tea" == in_thread(queue.read, SOON).result(PATIENCE)
        assert "ended while it held 'tea'" in str(errors.next())
        assert "tea" == queue.read(SOON)

    def test_a_reader_may_write_its_own_key_again(self, queue):
        """Confirming the old key must not remove the new one."""
        queue.on("error", lambda error: None)
        queue.write("tea")
        queue.read(SOON)
        queue.write("tea", time.time() * 1000 + 60_000)
        assert queue.read(0) is None
        eventually(lambda: queue.timer.stats().in_flight == 0)
        assert State.SCHEDULED is state(queue, "tea")

    def test_iterating_reads_until_stopped(self, queue):
        """``for key in queue`` reads until the queue is stopped, even by the body of the loop."""
        write_all(queue, "abc")
        read = []
        for key in queue:
            read.append(key)
            if key == "c":
                queue.stop()
        assert ["a", "b", "c"] == read
        assert 0 == queue.timer.stats().in_flight
        assert 3 == confirmed_count(queue)

    def test_each_key_goes_to_one_of_several_threads(self, make):
        """With concurrency=4 four threads hold a key each, and each key goes to one thread."""
        queue = make(concurrency=4)
        keys = [f"k{i}" for i in range(40)]
        write_all(queue, keys)
        all_hold_one = threading.Barrier(4, timeout=PATIENCE)
        read = queues.SimpleQueue()

        def read_all(_):
            read.put(queue.read(SOON))
            all_hold_one.wait()
            assert 4 == queue.timer.stats().in_flight
            all_hold_one.wait()
            while (key := queue.read(200)) is not None:
                read.put(key)

        together(4, read_all)
        assert sorted(keys) == sorted(read.get_nowait() for _ in range(read.qsize()))

    def test_more_reader_threads_than_concurrency_all_get_keys(self, make):
        """If there are more reader threads than ``concurrency``, each of them still gets a key."""
        queue = make(concurrency=2)
        readers = [in_thread(queue.read, SOON) for _ in range(5)]
        keys = {f"k{i}" for i in range(5)}
        write_all(queue, keys)
        # A thread that has ended releases its key, so a key may be read again.
        assert keys >= {reader.result(PATIENCE) for reader in readers}


class Sink(queues.SimpleQueue):
    """A queue of keys with a method ``write``."""

    write = queues.SimpleQueue.put


class TestFlowing:
    """Listeners of 'data', and pipes."""

    def test_a_data_listener_gets_keys_that_are_confirmed_when_it_returns(self, queue):
        """A listener of 'data' is called with each key, and its return confirms the key."""
        keys = Catch(queue, "data")
        write_all(queue, "abc")
        assert ["a", "b", "c"] == [keys.next() for _ in range(3)]
        eventually(lambda: confirmed_count(queue) == 3)

    def test_a_key_whose_listener_raises_is_delivered_again(self, queue):
        """If the listener raises, its key is delivered again and 'error' gets the exception."""
        errors, keys_seen = Catch(queue, "error"), queues.SimpleQueue()

        def listen(key):
            keys_seen.put(key)
            if keys_seen.qsize() == 1:
                raise ZeroDivisionError(key)

        queue.on("data", listen)
        queue.write("tea")
        error = errors.next()
        assert isinstance(error, HandlerError)
        assert isinstance(error.__cause__, ZeroDivisionError)
        eventually(lambda: keys_seen.qsize() == 2)

    def test_reading_a_flowing_queue_is_a_usage_error(self, queue):
        """Reading a queue with a listener raises a UsageError instead of waiting for ever."""
        queue.on("data", lambda key: None)
        with pytest.raises(UsageError):
            queue.read(0)

    @pytest.mark.parametrize("target", [Sink, queues.SimpleQueue], ids=["writer", "function"])
    def test_pipe_passes_each_key_on(self, queue, target):
        """``pipe`` accepts a function or an object with a ``write`` method, and returns it."""
        keys = target()
        sink = keys if hasattr(keys, "write") else keys.put
        assert queue.pipe(sink) is sink
        queue.write("tea")
        assert "tea" == keys.get(timeout=PATIENCE)

    def test_queues_can_be_piped_into_each_other(self, make, namespace):
        """A key passes through queues that are piped into each other."""
        first, second, third = (make(queue_name=f"{namespace}-{n}") for n in range(3))
        first.pipe(second).pipe(third)
        first.write("tea")
        assert "tea" == third.read(SOON)
        eventually(lambda: confirmed_count(first) == 1)

    @pytest.mark.parametrize("target", [None, 5, "x"])
    def test_pipe_refuses_an_object_that_cannot_take_keys(self, target):
        """``pipe`` refuses an object that is not callable and does not have a ``write`` method."""
        with pytest.raises(OptionError):
            RunAt().pipe(target)

    def test_a_listener_may_stop_the_queue(self, queue):
        """A listener may stop the queue, and its own key is confirmed."""
        ended = Catch(queue, "end")
        queue.on("data", lambda key: queue.stop())
        queue.write("tea")
        ended.next()
        eventually(lambda: not queue.timer.joined)
        assert state(queue, "tea") is None

    def test_keys_flow_in_order_if_one_takes_long(self, make, monkeypatch):
        """A listener that takes long for a key keeps the order, even with other consumers."""
        monkeypatch.setattr("dtimer.store.store.Store.alone", lambda *_: False)
        queue, received = make(), queues.SimpleQueue()
        keys = [f"{n:03d}" for n in range(120)]
        write_all(queue, keys)

        def take(key):
            received.put(key)
            if key == "060":
                eventually(lambda: queue.timer._node)
                dispatcher = queue.timer._node._dispatcher
                eventually(lambda: dispatcher._behind or not dispatcher.lookahead)

        queue.on("data", take)
        assert keys == [received.get(timeout=PATIENCE) for _ in keys]


class TestStopping:
    """Stopping a queue."""

    def test_an_unused_queue_can_be_stopped(self, queue):
        """A queue that has not been used can be stopped, and then reads nothing."""
        queue.stop()
        assert queue.read() is None
        assert [] == list(queue)

    def test_stopping_twice_emits_end_once(self, queue):
        """Stopping again is not an error, and 'end' is emitted once."""
        ends = []
        queue.on("end", lambda: ends.append(1))
        queue.read(0)
        queue.stop()
        queue.stop()
        with queue:
            pass
        assert [1] == ends

    def test_a_waiting_read_returns_none(self, queue):
        """A read that waits returns None when the queue is stopped."""
        with background(queue.read) as reading:
            eventually(lambda: queue._wanted() == 1)
            queue.stop()
        assert reading.result() is None

    def test_stops_and_reads_from_eight_threads_all_return(self, make):
        """Stops and reads on several threads at the same time all return, and no thread is left."""
        for _ in range(15):
            queue = make(concurrency=2)

            def read_or_stop(number, queue=queue):
                assert (queue.stop if number % 2 else queue.read)() is None

            together(8, read_or_stop)
            eventually(lambda queue=queue: not queue.timer.joined)

    def test_a_stop_just_before_a_reader_joins_is_not_lost(self, make, monkeypatch):
        """If a stop comes just before a reader joins the node, the queue stays stopped."""
        queue = make()
        join = queue.timer.join

        def stopped_first():
            monkeypatch.undo()
            queue.stop()
            join()

        monkeypatch.setattr(queue.timer, "join", stopped_first)
        assert queue.read() is None
        assert not queue.timer.joined

    def test_unread_keys_stay_in_the_queue(self, make):
        """Stopping confirms the key that was read, and releases the others."""
        queue, other_queue = make(), make()
        write_all(queue, [f"k{i}" for i in range(10)])
        first = queue.read(SOON)
        queue.stop()
        assert 9 == len({other_queue.read(SOON) for _ in range(9)} - {first})
        assert 0 == len(list(other_queue.timer.dead()))

    def test_stop_waits_for_other_readers(self, make):
        """The key of another thread is confirmed when that thread is done, and then stop() ends."""
        queue = make()
        queue.write("tea")
        holding, go_on = threading.Event(), threading.Event()

        def read_all():
            for _ in queue:
                holding.set()
                go_on.wait(PATIENCE)

        with background(read_all):
            assert holding.wait(PATIENCE)
            with background(queue.stop):
                eventually(lambda: queue._wanted() == 0 and queue.read(0) is None)
                go_on.set()
        assert state(queue, "tea") is None

    def test_stop_with_a_timeout_gives_the_key_up(self, make):
        """stop(timeout) waits no longer than that, and another reader gets the key."""
        queue = make()
        queue.write("tea")
        holding, go_on = threading.Event(), threading.Event()

        def read_one():
            assert "tea" == queue.read(SOON)
            holding.set()
            go_on.wait(PATIENCE)

        with background(read_one):
            assert holding.wait(PATIENCE)
            queue.stop(10)
            assert "tea" == make().read(SOON)
            go_on.set()

    def test_stop_leaves_nothing_behind(self, server, namespace, client):
        """After stop() the queue has no thread and no connection."""
        threads, connections = set(threading.enumerate()), len(client.client_list())
        queue = RunAt(namespace, redis=server.url, concurrency=3)
        queue.write("tea")
        queue.read(SOON)
        assert len(threading.enumerate()) > len(threads)
        queue.stop()
        eventually(lambda: set(threading.enumerate()) <= threads)
        eventually(lambda: len(client.client_list()) <= connections)

    def test_the_users_client_stays_open(self, make, client):
        """stop() does not close a client that the user opened."""
        with make(redis=client) as queue:
            queue.write("tea")
            queue.read(SOON)
        assert client.ping()


@contextlib.contextmanager
def consuming(server, namespace, *, options=None, **setting):
    """Run a process that consumes the queue."""
    text = json.dumps({"url": server.url, "queue": namespace, "options": options or {}, **setting})
    process = subprocess.Popen(
        [sys.executable, "-W", "error", consumer.__file__, text],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(dtimer.__file__).parents[1])},
        text=True,
    )
    try:
        assert "ready\n" == process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


class TestProcesses:
    """Consumers in separate processes."""

    @pytest.mark.slow
    def test_two_consumers_share_ten_thousand_keys(self, server, namespace, make):
        """Each key is read by exactly one of two consumers, and none is lost."""
        writer = make()
        keys = [f"k{i}" for i in range(10_000)]
        with consuming(server, namespace) as a, consuming(server, namespace) as b:
            outputs = [in_thread(process.stdout.read) for process in (a, b)]
            writer.timer.post_many({"ev": {}, "id": key} for key in keys)
            # A consumer ends after it has read one of these keys.
            eventually(lambda: confirmed_count(writer) >= 10_000, 50)
            write_all(writer, ["end-1", "end-2"])
            for process in (a, b):
                assert 0 == process.wait(PATIENCE)
            read = [output.result(PATIENCE).split() for output in outputs]
        assert sorted(keys) == sorted(read[0] + read[1])
        assert min(map(len, read)) > 1_000, "one consumer read almost nothing"

    def test_the_key_of_a_killed_consumer_is_read_by_another(self, server, namespace, make):
        """When the lease ends, the other reads the key. Other keys are not delayed."""
        options = {"lease": 500}
        other_queue = make(**options)
        with consuming(server, namespace, options=options, hold="tea") as process:
            other_queue.write("tea")
            assert "tea\n" == process.stdout.readline()
            process.kill()
            process.wait()
            other_queue.write("milk")
            assert "milk" == other_queue.read(SOON)
            assert "tea" == other_queue.read(SOON)
            assert 2 == other_queue.timer.peek("tea").attempt
