"""
The actions that a signal handler may take inside the code it interrupts.

Each part that a caller's thread changes is interrupted at every bytecode by a call of the same
part. No call waits for its own thread, and no item is lost or found twice.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time

import pytest
from interrupted import Interruption, each_bytecode
from logged import Logged
from servers import PATIENCE

from dtimer import OutcomeUnknown, StoreError
from dtimer.engine.bell import Bell
from dtimer.engine.flag import Flag
from dtimer.engine.lease import Lease
from dtimer.engine.leases import LeaseTable
from dtimer.engine.lookahead import LookaheadQueue
from dtimer.engine.readers import Readers, Reading
from dtimer.engine.superseded import SupersededIds
from dtimer.log import CLAIMED, LEFT
from dtimer.model.claims import Claim, Outcome, Settlement, Verdict
from dtimer.model.ids import IdGenerator
from dtimer.model.options import validate
from dtimer.store.rollback import NamespaceState, RollbackDetector
from dtimer.timer import signals
from dtimer.timer.emitter import Emitter

OPTIONS = validate({})


class FakeLeaseStore:
    """A store that settles everything it is asked to, or fails."""

    def __init__(self):
        self.settled = []
        self.failures = []

    def settle(self, settlements):
        if self.failures:
            raise self.failures.pop()
        self.settled += settlements
        return [Outcome.DONE] * len(settlements)

    def extend(self, held, lease_us, *, at_least=False):
        return [True] * len(held)


def a_lease(token, store=None, id=None):
    claim = Claim(id or f"e{token}", token, 1, 1_000 * token, 1_000 * token, 3, b"{}")
    return Lease(claim, OPTIONS, store or FakeLeaseStore(), lambda lease, result: None, 0.0)


def test_ids_ascend_and_are_unique():
    """
    A signal handler that posts takes an id inside the making of another.

    A duplicate id would replace an event.
    """
    generate = IdGenerator()
    for n in each_bytecode():
        before, inner = generate(), []
        interruption = Interruption(n, lambda inner=inner: inner.append(generate()))
        outer = interruption.during(generate)
        if interruption.where is None:
            break
        after = generate()
        assert 4 == len({before, outer, after, *inner}), interruption.where
        assert before < min(outer, *inner), interruption.where
        assert after > max(outer, *inner), interruption.where
    assert n > 10


class TestLookaheadQueue:
    """Events that wait for their due time."""

    @pytest.mark.parametrize("inner", ["clear", "clear one", "take", "give up", "add"])
    @pytest.mark.parametrize("outer", ["clear", "clear one", "take", "give up", "add"])
    def test_each_event_is_removed_exactly_once(self, outer, inner):
        """
        A lost event would hold its lease for ever.

        An event removed twice would start after it was released.
        """
        for n in each_bytecode():
            early = LookaheadQueue(OPTIONS)
            tokens = itertools.count(100)
            added, gone = [], []

            def act(
                name, early=early, tokens=tokens, added=added, gone=gone
            ):  # each round has its own
                if name == "add":
                    more = [a_lease(next(tokens)) for _ in range(2)]
                    added.extend(more)
                    early.add(more, 0.0)
                elif name == "clear":
                    gone.extend(early.remove())
                elif name == "clear one":
                    gone.extend(early.remove({"e2"}))
                else:
                    gone.extend(early.pop_due(2) if name == "take" else early.pop_overdue(0))

            kept = [a_lease(i) for i in range(4)]
            early.add(kept, 0.0)
            interruption = Interruption(n, lambda act=act: act(inner))
            interruption.during(lambda act=act: act(outer))
            if interruption.where is None:
                break
            gone += early.remove()
            assert sorted(h.claim.token for h in kept + added) == sorted(
                h.claim.token for h in gone
            ), interruption.where
            assert 0 == len(early)
        assert n > 10


class TestSupersededIds:
    """Ids that are posted while claims are under way."""

    @pytest.mark.parametrize("outer", ["begin", "since", "add"])
    def test_an_id_added_inside_any_call_is_found_by_the_next(self, outer):
        """A lost id would let a replaced event start."""
        for n in each_bytecode():
            reposts = SupersededIds()
            reposts.begin(1)
            reposts.add(["old"])
            reposts.begin(2)
            acts = {
                "begin": lambda r=reposts: r.begin(3),
                "since": lambda r=reposts: r.since(2),
                "add": lambda r=reposts: r.add(["more"]),
            }
            interruption = Interruption(n, lambda r=reposts: r.add(["tea", "old"]))
            interruption.during(acts[outer])
            if interruption.where is None:
                break
            assert {"tea", "old"} <= reposts.since(2), interruption.where
        assert n > 5


class TestLeaseTable:
    """The leases of a node, and its unsent settlements."""

    @pytest.mark.parametrize("outer", ["take", "settle"])
    def test_a_settlement_added_inside_another_call_is_sent_once(self, outer):
        """A lost confirm repeats the event; a second one reports a lost lease."""
        for n in each_bytecode():
            table = LeaseTable("node", OPTIONS, lambda *a: None, Logged().log)
            table._settle([Settlement("a", 1, Verdict.CONFIRM)])
            taken = []
            acts = {
                "take": lambda b=table, t=taken: t.extend(b.take_settlements()),
                "settle": lambda b=table: b._settle([Settlement("b", 2, Verdict.CONFIRM)]),
            }
            interruption = Interruption(
                n, lambda b=table: b._settle([Settlement("c", 3, Verdict.CONFIRM)])
            )
            interruption.during(acts[outer])
            if interruption.where is None:
                break
            taken += table.take_settlements()
            expected = [1, 3] if outer == "take" else [1, 2, 3]
            assert expected == sorted(s.token for s in taken), interruption.where
        assert n > 5

    @pytest.mark.parametrize("outer", ["superseded", "held", "stuck"])
    def test_leases_may_change_inside_an_iteration(self, outer):
        """A signal handler may settle and post while the leases are iterated."""
        for n in each_bytecode():
            table = LeaseTable("node", OPTIONS, lambda *a: None, Logged().log)
            leases = [a_lease(i) for i in range(3)]
            table._add(leases)
            acts = {
                "superseded": lambda b=table: b.superseded({"e1"}),
                "held": table.held,
                "stuck": table.stuck,
            }

            def handler(table=table, leases=leases):
                table._remove(leases[:1])
                table._add([a_lease(7)])
                table.superseded({"e2"})

            interruption = Interruption(n, handler)
            interruption.during(acts[outer])
            if interruption.where is None:
                break
            assert leases[2].superseded, interruption.where
            assert {1, 2, 7} == {h.claim.token for h in table.held()}
        assert n > 5


class TestLease:
    """Which of two callers settles an event."""

    def test_exactly_one_of_two_nested_calls_reserves(self):
        """If both did, two outcomes would be sent."""
        for n in each_bytecode():
            lease, won = a_lease(1), []
            interruption = Interruption(
                n, lambda h=lease, w=won: w.append(h.reserve(Verdict.RELEASE))
            )
            won.append(interruption.during(lambda h=lease: h.reserve(Verdict.CONFIRM)))
            if interruption.where is None:
                break
            assert [False, True] == sorted(won), interruption.where
        assert n > 5

    def test_a_confirm_inside_a_confirm_succeeds_or_is_unknown(self):
        """
        The inner confirm settles the event, finds it settled, or raises `OutcomeUnknown`.

        It neither waits for ever nor returns a wrong answer.
        """
        outcomes = set()
        for n in each_bytecode():
            store = FakeLeaseStore()
            lease, inner = a_lease(1, store), []

            def handler(lease=lease, inner=inner):
                try:
                    inner.append(lease.confirm())
                except OutcomeUnknown:
                    inner.append("unknown")

            interruption = Interruption(n, handler)
            outer = interruption.during(lease.confirm)
            if interruption.where is None:
                break
            assert outer is True, interruption.where
            assert inner in ([True], ["unknown"]), interruption.where
            assert 1 == len(store.settled), interruption.where
            outcomes.add(inner[0])
        assert {True, "unknown"} == outcomes

    def test_an_exception_inside_a_confirm_leaves_no_lock(self):
        """The next caller, on another thread, can settle the event."""

        class Alarm(Exception):
            pass

        def ring():
            raise Alarm

        for n in each_bytecode():
            store = FakeLeaseStore()
            lease = a_lease(1, store)
            interruption = Interruption(n, ring)
            with contextlib.suppress(Alarm):
                interruption.during(lease.confirm)
            if interruption.where is None:
                break
            locked = []
            other = threading.Thread(
                target=lambda h=lease, x=locked: x.append(h.reserve(Verdict.RETRY))
            )
            other.start()
            other.join(PATIENCE)
            assert not other.is_alive(), interruption.where
            # One of the two calls has settled it.
            assert locked, interruption.where
        assert n > 20

    def test_the_longest_of_two_extensions_counts(self):
        """A signal handler that extends a lease within an extension is heeded by the heartbeats."""
        for n in each_bytecode():
            lease = a_lease(1)
            interruption = Interruption(n, lambda h=lease: h.extend(3_600_000))
            interruption.during(lambda h=lease: h.extend(60_000))
            if interruption.where is None:
                break
            assert lease.lease_us(time.monotonic()) > 3_000_000_000, interruption.where
        assert n > 20

    def test_an_interrupted_failure_keeps_no_thread_waiting(self, monkeypatch):
        """
        The store refuses a confirm, and an exception interrupts the handling of that error. The
        next caller takes over the settling, or leaves it to the end of the lease, at once.
        """

        class Alarm(Exception):
            pass

        def ring():
            raise Alarm

        # An interrupted `set` of a flag: the next caller waits for this long, and then gives up.
        monkeypatch.setattr(Lease, "_longest_wait", 0.0)
        abandoned = 0
        for n in each_bytecode():
            store = FakeLeaseStore()
            store.failures.append(StoreError("refused"))
            lease = a_lease(1, store)
            interruption = Interruption(n, ring, raises=True)
            with contextlib.suppress(Alarm, StoreError):
                interruption.during(lease.confirm)
            if interruption.where is None:
                break
            taken = []
            other = threading.Thread(
                target=lambda h=lease, x=taken: x.append(h.reserve(Verdict.RETRY)), daemon=True
            )
            other.start()
            other.join(PATIENCE)
            assert taken == [not lease.abandoned], interruption.where
            abandoned += lease.abandoned
        assert n > 5
        assert abandoned, "no exception came before the entry was removed"


class TestFlag:
    """The flag that threads wait for."""

    def test_a_set_inside_a_set_or_a_wait_ends_the_wait(self):
        """A signal handler may set the flag that its own thread waits for."""
        for n in each_bytecode():
            flag = Flag()
            interruption = Interruption(n, flag.set)
            interruption.during(flag.set)
            if interruption.where is None:
                break
            assert flag.is_set()
        assert n > 3
        for n in each_bytecode():
            flag = Flag()
            interruption = Interruption(n, flag.set)
            # After so many bytecodes the handler may come too late to end the wait.
            if n < 20:
                assert interruption.during(lambda f=flag: f.wait(PATIENCE)), interruption.where
            else:
                interruption.during(lambda f=flag: f.wait(0.001))
            if interruption.where is None:
                break
        assert n > 20

    def test_set_wakes_every_waiting_thread(self):
        """A wait that times out returns False."""
        flag = Flag()
        woken = []
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
        """
        If a signal comes just before the thread blocks, Python handles it only when
        the wait ends.
        """
        flag, waits = Flag(), []
        lock = threading.Lock

        class Watched:
            def __init__(self):
                self._lock = lock()

            def acquire(self, timeout=-1):
                waits.append(timeout)
                if len(waits) == 4:
                    flag.set()
                return self._lock.acquire(timeout=min(timeout, 0.001)) if timeout > 0 else True

            def release(self):
                pass

        monkeypatch.setattr(threading, "Lock", Watched)
        assert flag.wait()
        assert all(0 < seconds <= 1 for seconds in waits[1:])

    def test_an_exception_inside_a_set_or_a_wait_leaves_no_lock(self):
        """The flag works as before."""

        class Alarm(Exception):
            pass

        def ring():
            raise Alarm

        for name in ("set", "wait"):
            for n in each_bytecode():
                flag = Flag()
                interruption = Interruption(n, ring)
                with contextlib.suppress(Alarm):
                    interruption.during(
                        lambda f=flag, name=name: f.set() if name == "set" else f.wait(0)
                    )
                if interruption.where is None:
                    break
                flag.set()
                assert flag.wait(0)


class TestReaders:
    """Threads that wait for a key."""

    def test_an_interrupted_reader_receives_no_more_keys(self):
        """The key would be held, and its lease renewed, for ever."""

        class Alarm(Exception):
            pass

        def ring():
            raise Alarm

        class Key:
            id = "k"

        def read(readers, reading, stopped):
            try:
                readers.read(reading, 0.001, lambda: None, stopped)
            except BaseException:
                readers.abandon(reading)
                raise

        for n in each_bytecode():
            readers, reading, stopped = Readers(), Reading(), Flag()
            interruption = Interruption(n, ring)
            with contextlib.suppress(Alarm):
                interruption.during(lambda r=(readers, reading, stopped): read(*r))
            if interruption.where is None:
                break
            assert 0 == len(readers), interruption.where
            assert readers.hand_over(Key(), stopped) is None, interruption.where
        assert n > 20

    def test_a_stop_during_a_handover_releases_the_key(self):
        """
        A stop that comes just before a key is noted does not find it. The key is released all the
        same: the interrupted reader and the handler thread would wait for each other.
        """

        class Key:
            id = "k"

        class Stopped(Flag):
            """Is set by another thread right after the first look at it."""

            def is_set(self):
                before = super().is_set()
                if not before:
                    self.set()
                    readers.end_waits()
                return before

        readers, reading, handed = Readers(), Reading(), []
        readers._waiting.append(reading)
        thread = threading.Thread(
            target=lambda: handed.append(readers.hand_over(Key(), Stopped())), daemon=True
        )
        thread.start()
        thread.join(PATIENCE)
        assert [None] == handed
        assert reading.arrived.is_set()
        assert reading.event is None
        assert not readers.confirm("k")

    def test_releases_a_key_that_an_interrupted_reader_already_has(self):
        """The release costs no attempt."""

        class Key:
            id = "k"

        readers, reading, stopped = Readers(), Reading(), Flag()
        handed = []

        def begun():
            thread = threading.Thread(
                target=lambda: handed.append(readers.hand_over(Key(), stopped))
            )
            thread.start()
            assert reading.arrived.wait(PATIENCE)
            readers.abandon(reading)
            thread.join(PATIENCE)

        readers.read(reading, 0, begun, stopped)
        assert [None] == handed
        assert not readers.confirm("k")


class TestEmitter:
    """Listeners that are added and removed."""

    @pytest.mark.parametrize("outer", ["on", "remove", "emit", "once"])
    def test_a_listener_added_inside_any_call_is_called_later(self, outer):
        """A lost listener would never be called."""
        for n in each_bytecode():
            emitter, called = Emitter(), []
            first = lambda called=called: called.append("first")  # noqa: E731
            emitter.on("tea", first)
            acts = {
                "on": lambda e=emitter: e.on("tea", lambda: None),
                "once": lambda e=emitter: e.once("tea", lambda: None),
                "remove": lambda e=emitter, f=first: e.remove_listener("tea", f),
                "emit": lambda e=emitter: e._emit_guarded("tea"),
            }
            late = lambda called=called: called.append("late")  # noqa: E731
            interruption = Interruption(n, lambda e=emitter, f=late: e.on("tea", f))
            interruption.during(acts[outer])
            if interruption.where is None:
                break
            called.clear()
            assert [] == emitter._emit_guarded("tea"), interruption.where
            assert "late" in called, interruption.where
        assert n > 5

    def test_nested_emissions_report_their_own_exceptions(self):
        """A wrong report would fail the events of another handler."""
        for n in each_bytecode():
            emitter = Emitter()
            emitter.on("tea", lambda: 1 / 0)
            emitter.on("milk", lambda: None)
            inner = []
            interruption = Interruption(
                n, lambda e=emitter, i=inner: i.append(e._emit_guarded("milk"))
            )
            outer = interruption.during(lambda e=emitter: e._emit_guarded("tea"))
            if interruption.where is None:
                break
            assert [ZeroDivisionError] == [type(e) for e in outer], interruption.where
            assert [[]] == inner, interruption.where
        assert n > 5


class TestLog:
    """The records of a node's log."""

    @pytest.mark.parametrize("accepts", [True, False], ids=["queued", "dropped"])
    def test_a_record_added_inside_another_is_kept_or_counted(self, accepts):
        """
        A signal handler that leaves logs while another record is added.

        The log takes no lock that another thread may hold, and loses no record.
        """
        for n in each_bytecode():
            logged = Logged(debugging=True, accepts=accepts)
            interruption = Interruption(n, lambda logged=logged: logged.log.add(LEFT))
            interruption.during(lambda logged=logged: logged.log.add_events(CLAIMED, ["a"]))
            added = 1 if interruption.where is None else 2
            kept = len(logged.records)
            assert (added if accepts else 0) == kept, interruption.where
            assert added == kept + next(logged.log._drops), interruption.where
            if interruption.where is None:
                break
        assert n > 10


class TestRollbackDetector:
    """The rollback detector: acknowledged writes that are missing."""

    def test_a_loss_found_by_two_nested_calls_is_reported_once(self):
        """Two reports would look like two rollbacks."""
        less = NamespaceState(2, "a", 1, 1, 0)
        for n in each_bytecode():
            detector, reports = RollbackDetector(), []
            detector.on_rollback = reports.append
            before = detector.known
            detector.opened(before, NamespaceState(1, "a", 5, 5, 0))
            known = detector.known
            interruption = Interruption(n, lambda w=detector, k=known: w.opened(k, less))
            interruption.during(lambda w=detector, k=known: w.opened(k, less))
            if interruption.where is None:
                break
            assert 1 == len(reports), interruption.where
            # The reported loss is the new baseline, so the next check finds no loss.
            detector.opened(detector.known, less)
            assert 1 == len(reports), interruption.where
        assert n > 20

    def test_the_total_never_decreases(self):
        """A smaller total would look like a rollback."""
        for n in each_bytecode():
            detector = RollbackDetector()
            era = detector.era
            interruption = Interruption(n, lambda w=detector, e=era: w.posted(e, 0, 1, 7))
            interruption.during(lambda w=detector, e=era: w.posted(e, 0, 1, 3))
            if interruption.where is None:
                break
            assert detector.known.posted in (3, 7), interruption.where
            assert detector.posted(era, era.posted, 1, 8)
        assert n > 5


def test_a_bell_may_be_rung_nudged_and_closed_inside_each_other():
    """A signal handler may post or leave at any moment."""
    for inner, outer in itertools.product(("ring", "nudge", "close"), repeat=2):
        for n in each_bytecode():
            bell = Bell()
            interruption = Interruption(n, getattr(bell, inner))
            interruption.during(getattr(bell, outer))
            if interruption.where is None:
                break
            if "close" not in (inner, outer):
                assert bell.wait(0), interruption.where
            bell.close()
        assert n > 2


def test_signals_are_handled_as_before_after_an_interrupted_run():
    """
    A Ctrl-C that comes while run() restores the signal handlers, after any of them, leaves none
    behind that swallows the signal.
    """

    class Node:
        joined = False

        def join(self):
            """Join."""

        leave = join

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        expected = {n: signal.getsignal(n) for n in before}
        for n in each_bytecode():
            interruption = Interruption(n, lambda: signal.raise_signal(signal.SIGINT), raises=True)
            with contextlib.suppress(KeyboardInterrupt):
                interruption.during(lambda: signals.run(Node(), lambda: None))
            if interruption.where is None:
                break
            if "put_back" in interruption.where or "_restore" in interruption.where:
                assert expected == {n: signal.getsignal(n) for n in before}, interruption.where
            for number, handler in expected.items():
                signal.signal(number, handler)
        assert n > 10
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
