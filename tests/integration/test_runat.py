"""RunAt on a real server: writing, reading, flowing, stopping, and readers that die."""

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
from servers import PATIENCE, eventually

import dtimer
from dtimer import HandlerError, OptionError, RunAt, StoreError, UsageError
from dtimer.errors import DTimerError
from dtimer.model.event import State
from dtimer.testing import Catch, Clock

#: For `RunAt.read`, in ms; only a failing test waits so long.
SOON = PATIENCE * 1000


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(server, namespace):
    """Make queues of one name; in the end none may have left anything running."""
    before = set(threading.enumerate())
    with contextlib.ExitStack() as stopping:

        def make(**options):
            given = {"queue_name": namespace, "redis": server.url, "backoff": 0} | options
            queue = RunAt(**given)
            stopping.callback(queue.stop, 1_000)
            return queue

        yield make
    eventually(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def queue(make):
    return make()


def in_thread(f, *args):
    """Run in a thread of its own; return a function that waits for its result."""
    results = queues.SimpleQueue()

    def run():
        try:
            results.put((f(*args), None))
        except BaseException as e:
            results.put((None, e))

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        value, error = results.get(timeout=PATIENCE)
        thread.join(PATIENCE)
        if error is not None:
            raise error
        return value

    return result


def state(queue, key):
    record = queue.timer.peek(key)
    return None if record is None else record.state


class TestWriting:
    """What may be written, and when it is then read."""

    def test_first_middle_last(self, make, clock):
        """The original's example: keys come in the order of their times, not of writing."""
        queue = make(now=clock)
        for delay, key in ((560, "last"), (409, "middle"), (333, "first")):
            assert queue.write({"runAt": clock() + delay, "key": key}) is True
        assert queue.read(10) is None
        clock.tick(560)
        assert ["first", "middle", "last"] == [queue.read(SOON) for _ in range(3)]

    def test_never_early(self, make, clock):
        """One ms before its time a key is not read, and on it, it is."""
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
    def test_forms(self, queue, job):
        """A job is a mapping, or a key and a time; times are ms or aware datetimes."""
        assert queue.write(*job) is True
        assert 1_900_000_000_000 == queue.timer.peek("x").due

    @pytest.mark.parametrize(
        "job",
        [
            ({},),
            ({"runAt": 1},),
            ({"runAt": 1, "key": None},),
            ({"runAt": 1, "key": 5},),
            ({"runAt": 1, "key": b"x"},),
            ({"runAt": 1, "key": ""},),
            ({"runAt": "1", "key": "x"},),
            ({"runAt": True, "key": "x"},),
            ({"runAt": float("nan"), "key": "x"},),
            ({"runAt": float("inf"), "key": "x"},),
            ({"runAt": 1e300, "key": "x"},),
            ({"runAt": timedelta(seconds=1), "key": "x"},),
            ({"runAt": datetime(2030, 1, 1), "key": "x"},),  # noqa: DTZ001 - naive is the point
            ({"runat": 1, "key": "x"},),
            ({"runAt": 1, "key": "x", "more": 1},),
            ({"key": "x"}, 5),
            (None,),
            (5,),
            (["x"],),
            ("x", "soon"),
            ("x" * 10_000,),
        ],
    )
    def test_a_bad_job_is_refused_before_any_io(self, job):
        """A job without a key that is a string, or with a time that is none, raises at once."""
        with pytest.raises(OptionError):
            RunAt(redis="redis://127.0.0.1:1").write(*job)

    @pytest.mark.parametrize(
        "options",
        [
            {"redis": 5},
            {"redis": object()},
            {"redis": {"port": "6379"}},
            {"redis": {"hots": "x"}},
            {"redis": "http://localhost"},
            {"queue_name": ""},
            {"queue_name": 5},
            {"interval": 0},
            {"interval": "often"},
            {"concurrency": 0},
            {"ns": "x"},
            {"max_events": 2},
            {"poll_interval": 5},
            {"auto_confirm": False},
            {"laese": 5},
        ],
    )
    def test_bad_options(self, options):
        """A bad client, name or option raises at construction."""
        with pytest.raises(OptionError):
            RunAt(**options)

    def test_host_and_port(self, tcp_server):
        """A client may be given as in the original, as a host and a port."""
        host, port = tcp_server.url.removeprefix("redis://").split("/")[0].rsplit(":", 1)
        with RunAt(redis={"host": host, "port": int(port)}) as queue:
            queue.write("tea")
            assert "tea" == queue.read(SOON)

    def test_nobody_there(self):
        """Without a server writing and reading raise, within their deadline."""
        queue = RunAt(redis="redis://127.0.0.1:1", timeout=100)
        with pytest.raises(StoreError):
            queue.write("tea")
        with pytest.raises(StoreError):
            queue.read(1)
        queue.stop()

    def test_the_last_writer_wins(self, make, clock):
        """Writing a key again moves it, forwards and back; it is read once."""
        queue, other = make(now=clock), make(now=clock)
        queue.write("tea", clock() + 1_000)
        other.write("tea", clock() + 5_000)
        clock.tick(1_000)
        assert queue.read(20) is None
        other.write("tea", clock() + 10)
        clock.tick(10)
        assert "tea" == queue.read(SOON)
        assert queue.read(10) is None
        clock.tick(60_000)
        assert queue.read(10) is None

    @pytest.mark.parametrize("run_at", [None, 0, 1, -5, datetime(1999, 1, 1, tzinfo=UTC)])
    def test_missing_or_past_is_now(self, queue, run_at):
        """Without a time, or with one that is over, a key is due at once."""
        queue.write("tea", run_at)
        assert "tea" == queue.read(SOON)

    def test_ties_go_by_their_writing(self, make, clock):
        """A thousand keys of one ms are read in the order in which they were written."""
        queue = make(now=clock)
        keys = [f"{random.randrange(1 << 40):x}" for _ in range(1_000)]
        then = int(clock()) + 1_000
        for key in keys:
            queue.write(key, then)
        clock.tick(3_000)
        assert keys == [queue.read(SOON) for _ in keys]

    def test_ties_beyond_a_thousand(self, make, clock):
        """More of one ms spill into the next, still in order, never early, and none is lost."""
        queue = make(now=clock)
        keys = [f"{random.randrange(1 << 40):x}" for _ in range(1_500)]
        then = int(clock()) + 1_000
        for key in keys:
            queue.write(key, then)
        dues = [queue.timer.peek(key).due for key in keys]
        assert sorted(dues) == dues
        assert then <= dues[0]
        assert dues[-1] < then + 2
        assert len(set(dues)) == len(dues)

    def test_rewriting_in_line(self, make, clock):
        """A key that is written again for the same ms goes to the end of its line."""
        queue = make(now=clock)
        for key in "abca":
            queue.write(key, int(clock()) + 1_000)
        clock.tick(2_000)
        assert ["b", "c", "a"] == [queue.read(SOON) for _ in range(3)]


class TestReading:
    """Who holds a key, and until when."""

    def test_a_timeout_is_none(self, queue):
        """A read that waited in vain returns None, and the next one works."""
        assert queue.read(0) is None
        assert queue.read(timedelta(milliseconds=20)) is None
        queue.write("tea")
        assert "tea" == queue.read(SOON)

    def test_who_timed_out_holds_nothing(self, make):
        """A key that comes after the reader has gone stays in the queue, unattempted."""
        slow, quick = make(), make()
        assert slow.read(10) is None
        slow.write("tea")
        assert "tea" == quick.read(SOON)
        assert 1 == quick.timer.peek("tea").attempt

    def test_only_what_is_held_is_leased(self, make):
        """A slow reader holds one key; another reads all the rest meanwhile."""
        slow, quick = make(), make()
        keys = {f"k{i}" for i in range(30)}
        for key in keys:
            slow.write(key)
        held = slow.read(SOON)
        assert 1 == slow.timer.stats().in_flight
        assert keys - {held} == {quick.read(SOON) for _ in range(29)}
        assert quick.read(20) is None
        assert State.IN_FLIGHT is state(slow, held)

    def test_asking_for_the_next_confirms(self, queue):
        """The key before is done when the next one is asked for, even if none comes."""
        queue.write("tea")
        assert "tea" == queue.read(SOON)
        assert State.IN_FLIGHT is state(queue, "tea")
        assert queue.read(0) is None
        eventually(lambda: state(queue, "tea") is None)

    def test_confirm(self, queue):
        """Confirmed by hand, a key is gone at once, and confirming again is False."""
        queue.write("tea")
        queue.read(SOON)
        assert queue.confirm("tea")
        assert state(queue, "tea") is None
        assert not queue.confirm("tea")
        assert not queue.confirm("nobody")

    def test_leaving_the_block_confirms(self, make):
        """The key in hand is done when the block is left without an exception."""
        with make() as queue:
            queue.write("tea")
            queue.read(SOON)
        assert state(queue, "tea") is None
        assert 1 == queue.timer.stats().totals["confirmed"]

    def test_an_exception_hands_the_key_out_again(self, make):
        """A block left by an exception gives its key back; another reader gets it."""
        failing = make()
        errors = Catch(failing, "error")
        failing.write("tea")
        with pytest.raises(ZeroDivisionError), failing as queue:
            1 / len(queue.read(SOON)[3:])
        assert isinstance(errors.next().__cause__, DTimerError)
        other = make()
        assert "tea" == other.read(SOON)
        assert 2 == other.timer.peek("tea").attempt

    def test_an_exception_after_confirm(self, make):
        """A key that was confirmed stays so, however the block is left, and no error is told."""
        queue = make()
        errors = Catch(queue, "error")
        queue.write("tea")
        with pytest.raises(ZeroDivisionError), queue:
            1 / (queue.confirm(queue.read(SOON)) - 1)
        assert state(queue, "tea") is None
        assert errors.empty()

    def test_a_thread_that_ends_with_a_key(self, make):
        """A reader thread that ended without a word does not keep its key for ever."""
        queue = make()
        errors = Catch(queue, "error")
        queue.write("tea")
        assert "tea" == in_thread(queue.read, SOON)()
        assert "ended with 'tea'" in str(errors.next())
        assert "tea" == queue.read(SOON)

    def test_rewriting_the_key_in_hand(self, queue):
        """A reader may write its own key for later: that is not lost by confirming this one."""
        queue.on("error", lambda error: None)
        queue.write("tea")
        queue.read(SOON)
        queue.write("tea", time.time() * 1000 + 60_000)
        assert queue.read(0) is None
        eventually(lambda: queue.timer.stats().in_flight == 0)
        assert State.SCHEDULED is state(queue, "tea")

    def test_iteration(self, queue):
        """``for key in queue`` reads until the queue is stopped, from the body of the loop too."""
        for key in "abc":
            queue.write(key)
        read = []
        for key in queue:
            read.append(key)
            if key == "c":
                queue.stop()
        assert ["a", "b", "c"] == read
        assert 0 == queue.timer.stats().in_flight
        assert 3 == queue.timer.stats().totals["confirmed"]

    def test_several_threads(self, make):
        """With concurrency=4 four threads hold a key each, and each key goes to one of them."""
        queue = make(concurrency=4)
        keys = [f"k{i}" for i in range(40)]
        for key in keys:
            queue.write(key)
        together = threading.Barrier(4, timeout=PATIENCE)

        def read():
            read = [queue.read(SOON)]
            together.wait()
            assert 4 == queue.timer.stats().in_flight or read == []
            together.wait()
            while (key := queue.read(200)) is not None:
                read.append(key)
            return read

        results = [in_thread(read) for _ in range(4)]
        assert sorted(keys) == sorted(key for result in results for key in result())

    def test_more_threads_than_hands(self, make):
        """With more readers than concurrency they take turns; none is left out for good."""
        queue = make(concurrency=2)
        results = [in_thread(queue.read, SOON) for _ in range(5)]
        for i in range(5):
            queue.write(f"k{i}")
        # A thread that has ended gives its key back, so these may come again.
        assert all(result() in {f"k{i}" for i in range(5)} for result in results)


class TestFlowing:
    """Listeners and pipes."""

    def test_data(self, queue):
        """A listener of 'data' is given the keys, and they are confirmed when it returns."""
        keys = Catch(queue, "data")
        for key in "abc":
            queue.write(key)
        assert ["a", "b", "c"] == [keys.next() for _ in range(3)]
        eventually(lambda: queue.timer.stats().totals.get("confirmed") == 3)

    def test_a_listener_that_raises(self, queue):
        """Its key is handed out again, and 'error' tells why."""
        errors, seen = Catch(queue, "error"), queues.SimpleQueue()

        def listen(key):
            seen.put(key)
            if seen.qsize() == 1:
                raise ZeroDivisionError(key)

        queue.on("data", listen)
        queue.write("tea")
        error = errors.next()
        assert isinstance(error, HandlerError)
        assert isinstance(error.__cause__, ZeroDivisionError)
        eventually(lambda: seen.qsize() == 2)

    def test_read_while_flowing(self, queue):
        """Reading a queue that flows is an error of use, not a wait for ever."""
        queue.on("data", lambda key: None)
        with pytest.raises(UsageError):
            queue.read(0)

    def test_pipe_to_a_callable(self, queue):
        """``pipe`` hands each key to a function, and returns it."""
        piped = queues.SimpleQueue()
        assert queue.pipe(piped.put) is not None
        queue.write("tea")
        assert "tea" == piped.get(timeout=PATIENCE)

    def test_pipe_to_a_writer(self, queue):
        """So it does to anything with a ``write``, and returns that."""

        class Sink:
            def __init__(self):
                self.got = queues.SimpleQueue()

            def write(self, key):
                self.got.put(key)

        sink = Sink()
        assert queue.pipe(sink) is sink
        queue.write("tea")
        assert "tea" == sink.got.get(timeout=PATIENCE)

    def test_pipe_to_another_queue(self, make, namespace):
        """Piped into each other, queues are a relay."""
        first, second = make(), make(queue_name=f"{namespace}-2")
        third = make(queue_name=f"{namespace}-3")
        first.pipe(second).pipe(third)
        first.write("tea")
        assert "tea" == third.read(SOON)
        eventually(lambda: first.timer.stats().totals.get("confirmed") == 1)

    @pytest.mark.parametrize("target", [None, 5, "x"])
    def test_pipe_to_nothing(self, target):
        """What is neither callable nor has a ``write`` is refused."""
        with pytest.raises(OptionError):
            RunAt().pipe(target)

    def test_stop_from_a_listener(self, queue):
        """A listener may stop the queue; its own key is confirmed."""
        ended = Catch(queue, "end")
        queue.on("data", lambda key: queue.stop())
        queue.write("tea")
        ended.next()
        eventually(lambda: not queue.timer.joined)
        assert state(queue, "tea") is None

    def test_keys_flow_in_order_whatever_one_of_them_takes(self, make, monkeypatch):
        """A key for which the listener takes long changes no order, also among other consumers."""
        monkeypatch.setattr("dtimer.store.store.Store.alone", lambda *_: False)
        queue, said = make(), queues.SimpleQueue()
        keys = [f"{n:03d}" for n in range(120)]
        for key in keys:
            queue.write(key)

        def take(key):
            said.put(key)
            if key == "060":
                eventually(lambda: queue.timer._life)
                dispatcher = queue.timer._life._dispatcher
                eventually(lambda: dispatcher._behind or not dispatcher.early)

        queue.on("data", take)
        assert keys == [said.get(timeout=PATIENCE) for _ in keys]


class TestStopping:
    """The end of a queue."""

    def test_before_anything(self, queue):
        """A queue that did nothing can be stopped, and then reads nothing."""
        queue.stop()
        assert queue.read() is None
        assert [] == list(queue)

    def test_twice_and_the_end_once(self, queue):
        """Stopping again is no error, and 'end' comes once."""
        ends = []
        queue.on("end", lambda: ends.append(1))
        queue.read(0)
        queue.stop()
        queue.stop()
        with queue:
            pass
        assert [1] == ends

    def test_while_another_thread_reads(self, queue):
        """A read that waits returns None when the queue is stopped."""
        result = in_thread(queue.read)
        eventually(lambda: queue.wanted() == 1)
        queue.stop()
        assert result() is None

    def test_from_eight_threads_at_once_with_readers(self, make):
        """However stops and reads fall together, each read ends, and nothing is left running."""
        for _ in range(15):
            queue = make(concurrency=2)
            start = threading.Barrier(8, timeout=PATIENCE)

            def run(stops, queue=queue, start=start):
                start.wait()
                return queue.stop() if stops else queue.read()

            results = [in_thread(run, i % 2) for i in range(8)]
            assert [None] * 8 == [result() for result in results]
            eventually(lambda queue=queue: not queue.timer.joined)

    def test_a_stop_between_looking_and_joining(self, make, monkeypatch):
        """A stop that comes just before a reader joins is not undone by the joining."""
        queue = make()
        join = queue.timer.join

        def stopped_first():
            monkeypatch.undo()
            queue.stop()
            join()

        monkeypatch.setattr(queue.timer, "join", stopped_first)
        assert queue.read() is None
        assert not queue.timer.joined

    def test_what_was_not_read_stays(self, make):
        """Stopped, a queue has confirmed what was in hand, and given back the rest."""
        queue, other = make(), make()
        for i in range(10):
            queue.write(f"k{i}")
        first = queue.read(SOON)
        queue.stop()
        assert 9 == len({other.read(SOON) for _ in range(9)} - {first})
        assert 0 == len(list(other.timer.dead()))

    def test_waits_for_other_readers(self, make):
        """A stop waits for the key of another thread, which is confirmed when it is done."""
        queue = make()
        queue.write("tea")
        holding, go_on = threading.Event(), threading.Event()

        def work():
            for _ in queue:
                holding.set()
                go_on.wait(PATIENCE)
            return "done"

        working = in_thread(work)
        assert holding.wait(PATIENCE)
        stopping = in_thread(queue.stop)
        eventually(lambda: queue.wanted() == 0 and queue.read(0) is None)
        go_on.set()
        stopping()
        assert "done" == working()
        assert state(queue, "tea") is None

    def test_with_a_timeout(self, make):
        """A stop with a timeout does not wait longer; the key goes to somebody else."""
        queue = make()
        queue.write("tea")
        reading, go_on = threading.Event(), threading.Event()

        def hold():
            key = queue.read(SOON)
            reading.set()
            go_on.wait(PATIENCE)
            return key

        holding = in_thread(hold)
        assert reading.wait(PATIENCE)
        queue.stop(10)
        assert "tea" == make().read(SOON)
        go_on.set()
        assert "tea" == holding()

    def test_nothing_is_left(self, server, namespace, client):
        """After stop there is no thread and no connection of the queue's."""
        before, connected = set(threading.enumerate()), len(client.client_list())
        queue = RunAt(namespace, redis=server.url, concurrency=3)
        queue.write("tea")
        queue.read(SOON)
        assert len(threading.enumerate()) > len(before)
        queue.stop()
        eventually(lambda: set(threading.enumerate()) <= before)
        eventually(lambda: len(client.client_list()) <= connected)

    def test_a_client_of_the_users_stays_open(self, make, client):
        """What was opened elsewhere is not closed here."""
        with make(redis=client) as queue:
            queue.write("tea")
            queue.read(SOON)
        assert client.ping()


@contextlib.contextmanager
def consuming(server, namespace, *, options=None, **setting):
    """A process that consumes the queue."""
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
    """Consumers in processes of their own."""

    @pytest.mark.slow
    def test_two_consumers_share_ten_thousand_keys(self, server, namespace, make):
        """Each key is read by exactly one of them, and none is lost."""
        writer = make()
        keys = [f"k{i}" for i in range(10_000)]
        with consuming(server, namespace) as a, consuming(server, namespace) as b:
            lines = [in_thread(process.stdout.read) for process in (a, b)]
            writer.timer.post_many({"ev": {}, "id": key} for key in keys)
            # A consumer that has read one of these reads no more.
            eventually(lambda: writer.timer.stats().totals.get("confirmed", 0) >= 10_000, 50)
            writer.write("end-1")
            writer.write("end-2")
            for process in (a, b):
                assert 0 == process.wait(PATIENCE)
            read = [result().split() for result in lines]
        assert sorted(keys) == sorted(read[0] + read[1])
        assert min(map(len, read)) > 1_000, "one of them had next to nothing"

    def test_a_consumer_killed_with_a_key_in_hand(self, server, namespace, make):
        """Its lease ends, and the other reads the key; its other keys are not even late."""
        options = {"lease": 500}
        other = make(**options)
        with consuming(server, namespace, options=options, hold="tea") as process:
            other.write("tea")
            assert "tea\n" == process.stdout.readline()
            process.kill()
            process.wait()
            other.write("milk")
            assert "milk" == other.read(SOON)
            assert "tea" == other.read(SOON)
            assert 2 == other.timer.peek("tea").attempt
