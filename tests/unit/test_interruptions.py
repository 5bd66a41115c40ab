"""
The actions that a signal handler may take inside the code it interrupts.

Each part that a caller's thread changes is interrupted at every bytecode by a call of the same
part. No call waits for its own thread, and no item is lost or found twice. In the tests, *outer* is
the interrupted call, and *inner* the call of the signal handler.
"""

import contextlib
import functools
import itertools
import signal
import threading
import time
from types import SimpleNamespace

import interrupted
import pytest
from interrupted import Alarm, Interruption, at_each_bytecode, raise_alarm
from logged import Logged
from seats import FakeLeaseStore, make_leases
from servers import PATIENCE

from dtimer import DTimer, OutcomeUnknown, StoreError
from dtimer.engine.bell import Bell
from dtimer.engine.flag import Flag
from dtimer.engine.lease import Lease
from dtimer.engine.leases import LeaseTable
from dtimer.engine.lookahead import LookaheadQueue
from dtimer.engine.readers import Readers, Reading
from dtimer.engine.superseded import SupersededIds
from dtimer.log import CLAIMED, LEFT
from dtimer.model.claims import Claim, Settlement, Verdict
from dtimer.model.ids import IdGenerator
from dtimer.model.options import validate
from dtimer.store.rollback import NamespaceState, RollbackDetector
from dtimer.timer.emitter import Emitter

OPTIONS = validate({})


def result_on_another_thread(call):
    """Return what *call* returns on another thread. A call that hangs fails the test."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    (result,) = results
    return result


def a_lease(token, store=None):
    claim = Claim(f"e{token}", token, 1, 1_000 * token, 1_000 * token, 3, b"{}")
    owner = SimpleNamespace(ended=lambda lease, outcome: None)
    return Lease(claim, OPTIONS, store or FakeLeaseStore(), owner, 0.0)


def a_confirm(token):
    return [Settlement(f"e{token}", token, Verdict.CONFIRM)]


@at_each_bytecode(more_than=10)
def test_ids_ascend_and_are_unique(interrupt):
    """A signal handler may post while an id is made. A duplicate id would replace an event."""
    generate = IdGenerator()
    before, inner = generate(), []
    outer = interrupt(generate, lambda: inner.append(generate()))
    after = generate()
    assert 4 == len({before, outer, after, *inner})
    assert before < min(outer, *inner)
    assert after > max(outer, *inner)


@pytest.mark.parametrize("inner", ["clear", "clear one", "take", "give up", "add"])
@pytest.mark.parametrize("outer", ["clear", "clear one", "take", "give up", "add"])
@at_each_bytecode(more_than=10)
def test_each_event_of_the_lookahead_queue_is_removed_exactly_once(outer, inner, interrupt):
    """A lost event keeps its lease for ever. One removed twice starts after its release."""
    waiting = LookaheadQueue(OPTIONS)
    tokens = itertools.count(100)
    added, removed = [a_lease(i) for i in range(4)], []

    def add():
        more = [a_lease(next(tokens)) for _ in range(2)]
        added.extend(more)
        waiting.add(more, 0.0)

    calls = {
        "add": add,
        "clear": lambda: removed.extend(waiting.remove()),
        "clear one": lambda: removed.extend(waiting.remove({"e2"})),
        "take": lambda: removed.extend(waiting.pop_due(2)),
        "give up": lambda: removed.extend(waiting.pop_overdue(0)),
    }
    waiting.add(list(added), 0.0)
    interrupt(calls[outer], calls[inner])
    removed += waiting.remove()
    assert sorted(x.claim.token for x in added) == sorted(x.claim.token for x in removed)
    assert 0 == len(waiting)


@pytest.mark.parametrize(
    "outer",
    [lambda ids: ids.begin(3), lambda ids: ids.since(2), lambda ids: ids.add(["more"])],
    ids=["begin", "since", "add"],
)
@at_each_bytecode(more_than=5)
def test_an_id_superseded_inside_any_call_is_found_by_the_next(outer, interrupt):
    """A lost id would let a replaced event start."""
    superseded = SupersededIds()
    superseded.begin(1)
    superseded.add(["old"])
    superseded.begin(2)
    interrupt(lambda: outer(superseded), lambda: superseded.add(["tea", "old"]))
    assert {"tea", "old"} <= superseded.since(2)


class TestLeaseTable:
    """The leases of a node, and its unsent settlements."""

    @pytest.mark.parametrize(("outer", "tokens"), [("take", [1, 3]), ("settle", [1, 2, 3])],
                             ids=["take", "settle"])  # fmt: skip
    @at_each_bytecode(more_than=5)
    def test_a_settlement_added_inside_another_call_is_sent_once(self, outer, tokens, interrupt):
        """A lost confirm repeats the event; a second one reports a lost lease."""
        table, taken = make_leases(), []
        table.settle(a_confirm(1))
        calls = {
            "take": lambda: taken.extend(table.take_settlements()),
            "settle": lambda: table.settle(a_confirm(2)),
        }
        interrupt(calls[outer], lambda: table.settle(a_confirm(3)))
        taken += table.take_settlements()
        assert tokens == sorted(settlement.token for settlement in taken)

    @pytest.mark.parametrize(
        "iterate",
        [lambda table: table.superseded({"e1"}), LeaseTable.held, LeaseTable.stuck],
        ids=["superseded", "held", "stuck"],
    )
    @at_each_bytecode(more_than=5)
    def test_leases_may_change_inside_an_iteration(self, iterate, interrupt):
        """A signal handler may settle and post while the leases are iterated."""
        table, leases = make_leases(), [a_lease(i) for i in range(3)]
        table._add(leases)

        def settle_and_post():
            table.drop(leases[:1])
            table._add([a_lease(7)])
            table.superseded({"e2"})

        interrupt(lambda: iterate(table), settle_and_post)
        assert leases[2].superseded
        assert {1, 2, 7} == {lease.claim.token for lease in table.held()}


class TestLease:
    """Which of two callers settles an event."""

    @at_each_bytecode(more_than=5)
    def test_exactly_one_of_two_nested_calls_reserves(self, interrupt):
        """If both did, two outcomes would be sent."""
        lease, reserved = a_lease(1), []

        def reserve():
            reserved.append(lease.reserve(Verdict.CONFIRM))

        interrupt(reserve, reserve)
        assert [False, True] == sorted(reserved)

    def test_a_confirm_inside_a_confirm_succeeds_or_is_unknown(self):
        """The inner call neither waits for the outer one for ever, nor returns a wrong answer."""
        inner_results = set()

        @at_each_bytecode(more_than=5)
        def trial(interrupt):
            store = FakeLeaseStore()
            lease, inner = a_lease(1, store), []

            def confirm():
                try:
                    inner.append(lease.confirm())
                except OutcomeUnknown:
                    inner.append("unknown")

            assert interrupt(lease.confirm, confirm) is True
            assert inner in ([True], ["unknown"])
            assert 1 == len(store.settled)
            inner_results.update(inner)

        trial()
        assert {True, "unknown"} == inner_results

    @at_each_bytecode(more_than=20)
    def test_an_exception_inside_a_confirm_leaves_no_lock(self, interrupt):
        """The next caller, on another thread, can settle the event, or finds it settled."""
        lease = a_lease(1)
        with contextlib.suppress(Alarm):
            interrupt(lease.confirm, raise_alarm)
        result_on_another_thread(lambda: lease.reserve(Verdict.RETRY))

    @at_each_bytecode(more_than=20)
    def test_the_longest_of_two_extensions_counts(self, interrupt):
        """A heartbeat must not renew the lease for less than the handler has asked for."""
        lease = a_lease(1)
        interrupt(lambda: lease.extend(60_000), lambda: lease.extend(3_600_000))
        assert lease.lease_us(time.monotonic()) > 3_000_000_000

    def test_an_interrupted_failure_keeps_no_thread_waiting(self, monkeypatch):
        """
        The store refuses a confirm, and an exception interrupts the handling of that error. The
        next caller settles the event, or leaves it to the end of the lease, at once.
        """
        # If the `set` of a flag was interrupted, the next caller waits for this long, and gives up.
        monkeypatch.setattr(Lease, "_longest_wait", 0.0)
        abandoned = []

        @at_each_bytecode(more_than=5, raises=True)
        def trial(interrupt):
            store = FakeLeaseStore()
            store.outcomes.append(StoreError("refused"))
            lease = a_lease(1, store)
            with contextlib.suppress(Alarm, StoreError):
                interrupt(lease.confirm, raise_alarm)
            reserved = result_on_another_thread(lambda: lease.reserve(Verdict.RETRY))
            assert reserved is not lease.abandoned
            abandoned.append(lease.abandoned)

        trial()
        assert any(abandoned), "no exception came before the entry was removed"


class TestFlag:
    """The flag that threads wait for."""

    @at_each_bytecode(more_than=3)
    def test_a_set_inside_a_set_sets_the_flag(self, interrupt):
        """A signal handler may set a flag that its thread is setting."""
        flag = Flag()
        interrupt(flag.set, flag.set)
        assert flag.is_set()

    @at_each_bytecode(more_than=20)
    def test_a_set_inside_a_wait_ends_the_wait(self, interrupt):
        """A signal handler may set the flag that its own thread waits for."""
        flag = Flag()
        # After 20 bytecodes the handler may come too late to end the wait.
        if interrupt.at < 20:
            assert interrupt(lambda: flag.wait(PATIENCE), flag.set)
        else:
            interrupt(lambda: flag.wait(0.001), flag.set)

    def test_set_wakes_every_waiting_thread(self):
        """A wait returns False after its time, and True if the flag has ended it."""
        flag, woken = Flag(), []
        threads = [
            threading.Thread(target=lambda: woken.append(flag.wait(PATIENCE))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        assert not flag.wait(0.01)
        flag.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert [True] * 3 == woken
        assert [] == flag._waiters

    def test_a_long_wait_is_split_into_slices_of_a_second(self, monkeypatch):
        """If a signal comes just before the thread blocks, Python handles it after that wait."""
        flag, waits = Flag(), []
        lock = threading.Lock

        class LockOfShortWaits:
            def __init__(self):
                self._lock = lock()

            def acquire(self, timeout=-1):
                waits.append(timeout)
                if len(waits) == 4:
                    flag.set()
                return self._lock.acquire(timeout=min(timeout, 0.001)) if timeout > 0 else True

            def release(self):
                pass

        monkeypatch.setattr(threading, "Lock", LockOfShortWaits)
        assert flag.wait()
        assert all(0 < seconds <= 1 for seconds in waits[1:])

    @pytest.mark.parametrize("call", [Flag.set, lambda flag: flag.wait(0)], ids=["set", "wait"])
    @at_each_bytecode(more_than=3)
    def test_an_exception_inside_a_call_leaves_no_lock(self, call, interrupt):
        """If a lock stayed taken, the next call would hang."""
        flag = Flag()
        with contextlib.suppress(Alarm):
            interrupt(lambda: call(flag), raise_alarm)
        flag.set()
        assert flag.wait(0)


class Key:
    """The event of a key that is handed to a reader."""

    id = "k"


class TestReaders:
    """Threads that wait for a key."""

    @at_each_bytecode(more_than=20)
    def test_an_interrupted_reader_receives_no_more_keys(self, interrupt):
        """The key would be held, and its lease renewed, for ever."""
        readers, reading, stopped = Readers(), Reading(), Flag()

        def read():
            try:
                readers.read(reading, 0.001, lambda: None, stopped)
            except BaseException:
                readers.abandon(reading)
                raise

        with contextlib.suppress(Alarm):
            interrupt(read, raise_alarm)
        assert 0 == len(readers)
        assert readers.hand_over(Key(), stopped) is None

    def test_a_stop_during_a_handover_releases_the_key(self):
        """
        A stop that comes just before a key is noted does not find that key. Unless the key is
        released all the same, the interrupted reader and the handler thread wait for each other.
        """
        readers, reading = Readers(), Reading()
        readers._waiting.append(reading)

        class SetAfterFirstLook(Flag):
            """Another thread sets this flag, right after the first look at it."""

            def is_set(self):
                before = super().is_set()
                if not before:
                    self.set()
                    readers.end_waits()
                return before

        stopped = SetAfterFirstLook()
        assert result_on_another_thread(lambda: readers.hand_over(Key(), stopped)) is None
        assert reading.arrived.is_set()
        assert reading.event is None
        assert not readers.confirm("k")

    def test_releases_a_key_that_an_interrupted_reader_already_has(self):
        """The reader cannot return the key, and the release does not count as an attempt."""
        readers, reading, stopped = Readers(), Reading(), Flag()
        confirmed = []

        def hand_over_and_abandon():
            thread = threading.Thread(
                target=lambda: confirmed.append(readers.hand_over(Key(), stopped))
            )
            thread.start()
            assert reading.arrived.wait(PATIENCE)
            readers.abandon(reading)
            thread.join(PATIENCE)

        readers.read(reading, 0, hand_over_and_abandon, stopped)
        assert [None] == confirmed
        assert not readers.confirm("k")


class TestEmitter:
    """Listeners that are added and removed."""

    @pytest.mark.parametrize("outer", ["on", "remove", "emit", "once"])
    @at_each_bytecode(more_than=5)
    def test_a_listener_added_inside_any_call_is_called_later(self, outer, interrupt):
        """A lost listener would never be called."""
        emitter, called = Emitter(), []

        def first():
            called.append("first")

        emitter.on("tea", first)
        calls = {
            "on": lambda: emitter.on("tea", lambda: None),
            "once": lambda: emitter.once("tea", lambda: None),
            "remove": lambda: emitter.remove_listener("tea", first),
            "emit": lambda: emitter._emit_guarded("tea"),
        }
        interrupt(calls[outer], lambda: emitter.on("tea", lambda: called.append("second")))
        called.clear()
        assert [] == emitter._emit_guarded("tea")
        assert "second" in called

    @at_each_bytecode(more_than=5)
    def test_nested_emissions_report_their_own_exceptions(self, interrupt):
        """A wrong report would fail the events of another handler."""
        emitter, inner = Emitter(), []
        emitter.on("tea", lambda: 1 / 0)
        emitter.on("milk", lambda: None)
        outer = interrupt(
            lambda: emitter._emit_guarded("tea"),
            lambda: inner.append(emitter._emit_guarded("milk")),
        )
        assert [ZeroDivisionError] == [type(e) for e in outer]
        assert [[]] == inner


@pytest.mark.parametrize("accepts", [True, False], ids=["queued", "dropped"])
@at_each_bytecode(more_than=10)
def test_a_log_record_added_inside_another_is_kept_or_counted(accepts, interrupt):
    """A signal handler may leave, which logs. A lock would hang, and no record may be lost."""
    logged = Logged(debugging=True, accepts=accepts)
    interrupt(lambda: logged.log.add_events(CLAIMED, ["a"]), lambda: logged.log.add(LEFT))
    assert (2 if accepts else 0) == len(logged.records)
    assert 2 == len(logged.records) + next(logged.log._drops)


class TestRollbackDetector:
    """The rollback detector, which reports that acknowledged writes are missing."""

    @at_each_bytecode(more_than=20)
    def test_a_loss_found_by_two_nested_calls_is_reported_once(self, interrupt):
        """Two reports would look like two rollbacks."""
        rolled_back = NamespaceState(2, "a", 1, 1, 0)
        detector, reports = RollbackDetector(), []
        detector.on_rollback = reports.append
        detector.opened(detector.known, NamespaceState(1, "a", 5, 5, 0))
        opened = functools.partial(detector.opened, detector.known, rolled_back)
        interrupt(opened, opened)
        assert 1 == len(reports)
        # The reported loss is the new baseline, so the next check finds no loss.
        detector.opened(detector.known, rolled_back)
        assert 1 == len(reports)

    @at_each_bytecode(more_than=5)
    def test_the_total_never_decreases(self, interrupt):
        """A smaller total would look like a rollback."""
        detector = RollbackDetector()
        era = detector.era
        interrupt(lambda: detector.posted(era, 0, 1, 3), lambda: detector.posted(era, 0, 1, 7))
        assert detector.known.posted in (3, 7)
        assert detector.posted(era, era.posted, 1, 8)


@pytest.mark.parametrize("inner", [Bell.ring, Bell.nudge, Bell.clear, Bell.close])
@pytest.mark.parametrize("outer", [Bell.ring, Bell.nudge, Bell.clear, Bell.close])
@pytest.mark.parametrize("rung", [False, True])
@at_each_bytecode(more_than=2)
def test_calls_of_a_bell_inside_each_other_never_block_a_later_ring(rung, outer, inner, interrupt):
    """A signal handler may post or leave at any moment."""
    bell = Bell()
    try:
        if rung:
            bell.ring()
        interrupt(lambda: outer(bell), lambda: inner(bell))
        if Bell.close not in (inner, outer):
            # A ring inside `clear` may be lost: its caller looks for work after that.
            assert bell.wait(0) or Bell.clear in (inner, outer)
            bell.ring()
            assert bell.wait(0)
    finally:
        bell.close()


@at_each_bytecode(more_than=10)
def test_a_ring_inside_a_ring_takes_effect_at_once(interrupt):
    """
    A signal handler may leave the namespace: it rings, and waits for the thread that it has rung
    for. The interrupted ring continues only after that.
    """
    bell = Bell()
    woken = []

    def handler():
        bell.ring()
        woken.append(bell.wait(0))

    try:
        interrupt(bell.ring, handler)
        assert [True] == woken
    finally:
        bell.close()


@at_each_bytecode(more_than=2, raises=True)
def test_a_ring_after_an_interrupted_ring_takes_effect(interrupt):
    """An exception of a signal handler may end a ring halfway. A later leave() must not wait."""
    bell = Bell()
    try:
        with contextlib.suppress(Alarm):
            interrupt(bell.ring, raise_alarm)
        bell.ring()
        assert bell.wait(0)
        assert bell.clear()
    finally:
        bell.close()


def test_signals_are_handled_as_before_after_an_interrupted_run():
    """A Ctrl-C while run() restores the signal handlers must leave none that swallows signals."""

    class Node:
        joined = False
        _membership = SimpleNamespace(stop_waiting=lambda: None)

        def join(self, *_, **__):
            """Join."""

        leave = join

    original = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    expected = original | {signal.SIGINT: signal.default_int_handler}

    @at_each_bytecode(more_than=10, raises=True)
    def trial(interrupt):
        for number, handler in expected.items():
            signal.signal(number, handler)
        with contextlib.suppress(KeyboardInterrupt):
            interrupt(
                lambda: DTimer.run(Node()),
                lambda: signal.raise_signal(signal.SIGINT),
            )
        if "put_back" in interrupt.where or "_restore" in interrupt.where:
            assert expected == {n: signal.getsignal(n) for n in expected}

    try:
        trial()
    finally:
        for number, handler in original.items():
            signal.signal(number, handler)


def test_an_interruption_does_not_come_between_an_exception_and_its_handler(monkeypatch):
    """No signal handler runs there. The tests would see a lock that no signal can leave taken."""
    monkeypatch.setattr(interrupted, "_PACKAGE", __file__)
    lock = threading.RLock()

    def fail():
        raise ValueError

    def fail_with_the_lock():
        with lock:
            threading.get_ident()
            fail()

    for n in itertools.count():
        interruption = Interruption(n, raise_alarm, raises=True)
        with contextlib.suppress(Alarm, ValueError):
            interruption.during(fail_with_the_lock)
        assert not lock._is_owned(), interruption.where
        if interruption.where is None:
            break
    assert n > 0
