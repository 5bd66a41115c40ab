"""
The dispatcher and its leases: which events are held, which thread runs them, how
each is settled.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from interrupted import Interruption, each_bytecode
from seats import Announced, make_seat
from servers import PATIENCE, eventually

from dtimer.engine.clock import boottime
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.leases import MOST_SETTLEMENTS
from dtimer.engine.lookahead import ahead_us
from dtimer.errors import HandlerError, LeaseLost, OptionError, OutcomeUnknown, StoreError
from dtimer.model.claims import Claim, Outcome, Settlement, Verdict
from dtimer.model.options import validate

_tokens = itertools.count(1)


def claim(payload=b"{}", *, id=None, attempt=1, max_retries=3):
    token = next(_tokens)
    return Claim(id or f"ev-{token:06}", token, attempt, 1_000, 3_000, max_retries, payload)


class FakeLeaseStore:
    """A store that settles and extends leases as the test says."""

    def __init__(self):
        self.settled = []
        self.extended = []
        self.at_least = []  # for each extension: True if it must not shorten the lease
        self.results = queue.SimpleQueue()
        self.asked = threading.Event()
        self.trouble = None  # raised by extensions
        self.reply_gate = None  # a threading.Event: `settle` waits until it is set

    def settle(self, settlements):
        self.settled += settlements
        self.asked.set()
        if self.reply_gate is not None:
            assert self.reply_gate.wait(PATIENCE)
        result = Outcome.DONE if self.results.empty() else self.results.get()
        if isinstance(result, Exception):
            raise result
        return [result]

    def extend(self, held, lease_us, *, at_least=False):
        self.extended.append((list(held), lease_us))
        self.at_least.append(at_least)
        if self.trouble is not None:
            raise self.trouble
        return [self.results.empty() or self.results.get()]


class DispatcherHarness:
    """A dispatcher whose handler the test steps through, and everything it announces."""

    def __init__(self, clock, **options):
        self.clock = clock
        self.store = FakeLeaseStore()
        self.announced = Announced()
        self.seat = make_seat(self, lease_store=self.store, announced=self.announced, **options)
        self.leases = self.seat.leases
        self.begun = queue.SimpleQueue()
        self.go_on = threading.Semaphore(0)
        self.raised = []  # the exceptions of the listeners; None without any listener
        self.freed = 0  # how often a handler thread became free
        self.is_alone = [False] * 100  # the answers to "is this the only node?"
        self.quits = 0  # how often a handler's SystemExit asked the node to leave
        self.dispatcher = Dispatcher("dtimer-test", self.seat, self, self)
        self.dispatcher.pool.claimer = self

    def deliver(self, events):
        self.begun.put(events)
        assert self.go_on.acquire(timeout=PATIENCE)
        return self.raised

    def claim_inline(self):
        self.freed += 1
        self.dispatcher.start_due()  # as the claimer does

    def quit(self):
        self.quits += 1

    def alone(self):
        return self.is_alone.pop(0)

    def accept(self, *claims):
        """Pass claims to the dispatcher, as a reply received at this moment."""
        leases = self.leases.grant(claims, self.clock.now)
        self.dispatcher.accept(leases, 1, self.clock.now)

    def begin(self, *claims):
        """Pass claims to the dispatcher; return the events of the first batch that starts."""
        self.accept(*claims)
        return self.begun.get(timeout=PATIENCE)

    def finish(self):
        """Let all handlers return; return their settlements."""
        self.go_on.release(100)
        eventually(lambda: self.dispatcher.pool.busy == 0)
        return self.leases.take_settlements()


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock of events that wait for their due time, moved by the test."""
    clock = SimpleNamespace(now=time.monotonic())
    stepped = SimpleNamespace(monotonic=lambda: clock.now)
    for module in ("lookahead", "peers"):
        monkeypatch.setattr(f"dtimer.engine.{module}.time", stepped)
    return clock


@pytest.fixture
def harness(clock):
    made = []

    def build(*, start=True, **options):
        harness = DispatcherHarness(clock, **options)
        made.append(harness)
        if start:
            harness.dispatcher.pool.start()
        return harness

    yield build
    for each in made:
        each.go_on.release(1_000)
        each.dispatcher.pool.stop()
        assert each.dispatcher.pool.join(PATIENCE)


def summary(settlements):
    return [(s.id, s.token, s.verdict) for s in settlements]


class TestHandlerThreads:
    """Which thread starts which event, and when."""

    def test_has_room_for_one_batch_per_free_thread_up_to_100_events(self, harness):
        """A larger claim would fetch events that no thread can start."""
        harness = harness(concurrency=3, max_events=2)
        dispatcher = harness.dispatcher
        assert 6 == dispatcher.free_slots()
        harness.begin(*(claim() for _ in range(3)))
        assert (2, 2) == (dispatcher.free_slots(), dispatcher.pool.busy)
        dispatcher.max_events = 80
        assert 80 == dispatcher.free_slots()
        dispatcher.max_events = 1
        harness.accept(*[claim() for _ in range(4)])
        assert 0 == dispatcher.free_slots()
        harness.finish()
        assert 3 == dispatcher.free_slots()
        dispatcher.max_events = 100
        assert 100 == dispatcher.free_slots()

    def test_starts_events_in_the_order_of_claims_max_events_at_a_time(self, harness):
        """A handler receives at most ``max_events`` events."""
        harness = harness(max_events=2)
        claims = [claim(json.dumps({"n": n}).encode()) for n in range(5)]
        first = harness.begin(*claims)
        harness.go_on.release(3)
        rest = [harness.begun.get(timeout=PATIENCE) for _ in range(2)]
        assert [[0, 1], [2, 3], [4]] == [[ev["n"] for ev in batch] for batch in [first, *rest]]
        assert [(c.id, c.token, Verdict.CONFIRM) for c in claims] == summary(harness.finish())

    def test_an_event_has_the_data_of_its_claim(self, harness):
        """The lateness is measured by the server's clock."""
        harness = harness()
        (ev,) = harness.begin(claim(b'{"a":1}', id="tea", attempt=2, max_retries=7))
        assert {"a": 1} == ev
        assert ("tea", 2, 7, 1.0, 2.0) == (
            ev.id,
            ev.attempt,
            ev.max_retries,
            ev.due,
            ev.lateness_ms,
        )

    def test_lateness_is_never_negative(self, harness):
        """The server's clock may step back between the due time and the claim."""
        (ev,) = harness().begin(replace(claim(), claimed_us=-3_600_000_000))
        assert 0 == ev.lateness_ms

    def test_runs_a_handler_on_each_thread_at_the_same_time(self, harness):
        """Further events wait in the look-ahead queue."""
        harness = harness(concurrency=5)
        harness.accept(*[claim() for _ in range(7)])
        for _ in range(5):
            harness.begun.get(timeout=PATIENCE)
        assert (5, 2) == (harness.dispatcher.pool.busy, len(harness.dispatcher.lookahead))
        assert harness.begun.empty()
        assert 7 == len(harness.finish())

    def test_rings_the_bell_when_a_thread_becomes_free(self, harness):
        """The settlement is stored before the ring, so that the next claim carries it."""
        harness = harness()
        found = []
        harness.dispatcher.pool.claimer = SimpleNamespace(
            claim_inline=lambda: found.append(harness.leases.unsettled)
        )
        harness.begin(claim())
        harness.finish()
        eventually(lambda: [True] == found)

    def test_releases_events_if_the_last_listener_was_removed(self, harness):
        """A confirm would lose an event that no handler has seen."""
        harness = harness()
        harness.raised = None
        harness.begin(claim())
        (settlement,) = harness.finish()
        assert Verdict.RELEASE is settlement.verdict

    def test_a_thread_survives_any_exception_and_fails_its_events(self, harness):
        """
        Even an error in the node itself fails the events.

        Otherwise they would be renewed, and never handled, for ever.
        """
        harness = harness()

        def broken(events):
            raise MemoryError

        harness.deliver, deliver = broken, harness.deliver
        first = claim()
        harness.accept(first)
        what, error = harness.announced.next(PATIENCE)
        assert ("error", MemoryError) == (what, type(error))
        harness.deliver = deliver
        second = claim()
        harness.begin(second)
        assert [
            (first.id, first.token, Verdict.RETRY),
            (second.id, second.token, Verdict.CONFIRM),
        ] == summary(harness.finish())
        assert [] == harness.leases.held()

    def test_drops_the_lease_of_a_batch_that_cannot_be_enqueued(self, harness, monkeypatch):
        """
        No thread will start these events, so their lease must end.

        The thread that was reserved for them must be free for later events.
        """
        harness = harness(concurrency=3, start=False)
        batches = []

        class Full:
            def put(self, batch):
                if batches:
                    raise MemoryError
                batches.append(batch)

        inbox, harness.dispatcher.pool._inbox = harness.dispatcher.pool._inbox, Full()
        first, second, third = claim(), claim(), claim()
        with pytest.raises(MemoryError):
            harness.accept(first, second, third)
        harness.dispatcher.pool._inbox = inbox
        assert [first.id, third.id] == [lease.claim.id for lease in harness.leases.held()]
        assert 1 == harness.dispatcher.pool.busy
        harness.dispatcher.start_due()
        assert third is inbox.get_nowait()[0].claim


class TestWithoutThreads:
    """A dispatcher without started threads: the caller runs the handlers."""

    def test_each_call_runs_one_batch_on_the_calling_thread(self, harness):
        """The return value says whether there was a batch."""
        harness = harness(start=False, concurrency=2)
        first, second = claim(), claim()
        harness.go_on.release(2)
        assert not harness.dispatcher.pool.run_one()
        harness.accept(first, second)
        assert harness.dispatcher.pool.run_one()
        assert [(first.id, first.token, Verdict.CONFIRM)] == summary(
            harness.leases.take_settlements()
        )
        assert (1, 1) == (harness.dispatcher.pool.busy, harness.freed)
        assert harness.dispatcher.pool.run_one()
        assert not harness.dispatcher.pool.run_one()
        assert 0 == harness.dispatcher.pool.busy


class TestReleasing:
    """The events that a leaving node still holds."""

    def test_releases_waiting_events_and_lets_running_ones_finish(self, harness):
        """Other nodes can start the waiting events at once."""
        harness = harness()
        running, *waiting = (claim() for _ in range(3))
        harness.begin(running, *waiting)
        harness.dispatcher.release_waiting()
        assert [(c.id, c.token, Verdict.RELEASE) for c in waiting] == summary(
            harness.leases.take_settlements()
        )
        assert [(running.id, running.token, Verdict.CONFIRM)] == summary(harness.finish())

    def test_starts_nothing_after_release_waiting(self, harness):
        """The reply to a claim under way may still bring events. No free thread may start them."""
        harness = harness()
        harness.dispatcher.release_waiting()
        late = claim()
        harness.accept(late)
        eventually(lambda: harness.dispatcher.pool.busy == 0)
        assert [(late.id, late.token, Verdict.RELEASE)] == summary(
            harness.leases.take_settlements()
        )
        assert harness.begun.empty()

    def test_abandon_retries_running_events_and_revokes_their_lease(self, harness):
        """
        The attempt is counted.

        The handler can see the loss, its confirm returns False, and its return changes nothing.
        """
        harness = harness()
        held = claim()
        (ev,) = harness.begin(held)
        harness.leases.abandon()
        (settlement,) = harness.leases.take_settlements()
        assert (held.id, held.token, Verdict.RETRY) == summary([settlement])[0]
        assert 0 == settlement.wait_us
        assert "left" in settlement.error
        assert ev.lease_lost
        assert ev.confirm() is False
        assert [] == harness.finish()
        harness.leases.abandon()
        assert not harness.leases.unsettled

    def test_stop_ends_each_thread_after_its_handler(self, harness):
        """``join`` returns True only when all threads have ended."""
        harness = harness(concurrency=2)
        harness.begin(claim())
        harness.dispatcher.pool.stop()
        assert not harness.dispatcher.pool.join(0)
        harness.go_on.release()
        assert harness.dispatcher.pool.join(PATIENCE)
        assert not harness.dispatcher.pool.current

    def test_join_idle_waits_for_all_threads_but_the_running_one(self, harness):
        """
        A handler that does not return delays the end of its own thread only.

        The idle threads are joined, however slow the machine is.
        """
        harness = harness(concurrency=3)
        harness.begin(claim())
        gate, ending = threading.Event(), queue.SimpleQueue()
        for thread in harness.dispatcher.pool.threads:

            def ended():
                ending.put(None)
                assert gate.wait(PATIENCE)

            thread._ended = ended
        harness.dispatcher.pool.stop()
        for _ in range(2):
            ending.get(timeout=PATIENCE)
        assert not harness.dispatcher.pool.join_idle(0)
        gate.set()
        assert harness.dispatcher.pool.join_idle(PATIENCE)
        assert 1 == sum(not thread.join(0) for thread in harness.dispatcher.pool.threads)


class TestSettling:
    """Each event is settled once."""

    def test_does_not_confirm_again_what_the_handler_confirmed(self, harness):
        """A second confirm would be reported as a lost lease."""
        harness = harness(max_events=2)
        first, second = harness.begin(claim(), claim())
        assert first.confirm() is True
        assert [(second.id, second.token, Verdict.CONFIRM)] == summary(harness.finish())
        assert [(first.id, first.token, Verdict.CONFIRM)] == summary(harness.store.settled)

    def test_confirms_after_the_handler_if_its_own_confirm_failed(self, harness):
        """The event must not run again because of a lost connection."""
        harness = harness()
        (ev,) = harness.begin(claim())
        harness.store.results.put(StoreError("no reply"))
        with pytest.raises(StoreError):
            ev.confirm()
        assert [(ev.id, ev.token, Verdict.CONFIRM)] == summary(harness.finish())

    def test_confirms_if_a_confirm_under_way_fails_after_the_handler_returned(self, harness):
        """
        Another thread confirms the event while the handler returns.

        Without a second confirm, the lease would be renewed for ever.
        """
        harness = harness()
        (ev,) = harness.begin(claim())
        harness.store.reply_gate = threading.Event()
        harness.store.results.put(StoreError("no reply"))
        failed = []

        def confirm():
            try:
                ev.confirm()
            except StoreError as e:
                failed.append(e)

        other = threading.Thread(target=confirm)
        other.start()
        assert harness.store.asked.wait(PATIENCE)
        harness.go_on.release()
        harness.store.reply_gate.set()
        other.join(PATIENCE)
        eventually(lambda: harness.dispatcher.pool.busy == 0)
        assert 1 == len(failed)
        assert [(ev.id, ev.token, Verdict.CONFIRM)] == summary(harness.leases.take_settlements())
        assert [] == harness.leases.held()

    def test_stops_renewing_if_a_confirm_outlasts_the_handler_and_fails(self, harness, monkeypatch):
        """
        The handler thread does not wait for ever for another thread's confirm. If that fails later,
        the lease ends by itself, and the event is delivered again.
        """
        monkeypatch.setattr("dtimer.engine.lease.Lease._longest_wait", 0.0)
        harness = harness()
        (ev,) = harness.begin(claim())
        harness.store.reply_gate = threading.Event()
        harness.store.results.put(OutcomeUnknown("no reply"))
        failed = []

        def confirm():
            try:
                ev.confirm()
            except OutcomeUnknown as e:
                failed.append(e)

        other = threading.Thread(target=confirm)
        other.start()
        assert harness.store.asked.wait(PATIENCE)
        assert [] == harness.finish()
        harness.store.reply_gate.set()
        other.join(PATIENCE)
        assert 1 == len(failed)
        assert [] == harness.leases.held()

    def test_the_second_of_two_confirms_waits_for_the_result_of_the_first(self, harness):
        """Both callers must learn the same outcome."""
        harness = harness()
        (ev,) = harness.begin(claim())
        harness.store.reply_gate = threading.Event()
        harness.store.results.put(Outcome.STALE)
        confirmed = []
        threads = [
            threading.Thread(target=lambda: confirmed.append(ev.confirm())) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert harness.store.asked.wait(PATIENCE)
        harness.store.reply_gate.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert [False, False] == confirmed
        assert 1 == len(harness.store.settled)
        assert [] == harness.finish()

    def test_announces_the_outcome_of_each_settlement(self, harness):
        """'retry', 'buried' and 'lease_lost' report the result of each event of a batch."""
        harness = harness(max_events=5)
        harness.raised = [ValueError("no")]
        events = harness.begin(*(claim() for _ in range(4)))
        settlements = harness.finish()
        assert [Verdict.RETRY] * 4 == [s.verdict for s in settlements]
        ((what, error),) = harness.announced.all()
        assert "error" == what
        assert isinstance(error, HandlerError)
        assert events == error.events
        results = [Outcome.DONE, Outcome.DEAD, Outcome.CANCELLED, Outcome.STALE]
        harness.leases.settled(settlements, results)
        retry, buried, lost, error = harness.announced.all()
        assert ("retry", events[0]) == retry
        assert ("buried", events[1].id) == buried
        assert ("lease_lost", events[3]) == lost
        assert isinstance(error[1], LeaseLost)
        assert (events[3].id, "test", events[3].token) == (
            error[1].id,
            error[1].node,
            error[1].token,
        )
        assert events[3].lease_lost
        harness.leases.settled(settlements, results)
        assert [] == harness.announced.all()

    def test_does_not_report_the_loss_of_events_that_this_process_replaced(self, harness):
        """The process knows that the old event is gone."""
        harness = harness(max_events=3)
        events = harness.begin(*(claim() for _ in range(3)))
        harness.leases.superseded({events[0].id, events[1].id})
        first = harness.leases.held()[0]
        harness.leases.mark_lost(first)
        settlements = harness.finish()
        harness.leases.settled(settlements, [Outcome.STALE] * 3)
        announced = harness.announced.all()
        assert ["lease_lost", "error"] == [what for what, _ in announced]
        assert events[2] is announced[0][1]
        assert all(ev.lease_lost for ev in events)

    def test_does_not_report_a_released_event_that_was_gone(self, harness):
        """The node gave the event up, so its loss does not matter."""
        harness = harness(start=False)
        harness.accept(claim())
        harness.dispatcher.release_waiting()
        settlements = harness.leases.take_settlements()
        harness.leases.settled(settlements, [Outcome.STALE])
        assert [] == harness.announced.all()
        assert [] == harness.leases.held()

    def test_buries_a_corrupt_payload_and_handles_the_rest(self, harness):
        """No handler could read it, and each retry would fail the same way."""
        harness = harness(max_events=2)
        bad = claim(b"\xff")
        (good,) = harness.begin(bad, claim())
        (settlement,) = harness.leases.take_settlements()
        assert (bad.id, Verdict.BURY, "corrupt") == (
            settlement.id,
            settlement.verdict,
            settlement.reason,
        )
        harness.leases.settled([settlement], [Outcome.DEAD])
        assert [("buried", bad.id)] == harness.announced.all()
        assert [(good.id, good.token, Verdict.CONFIRM)] == summary(harness.finish())

    def test_retries_a_batch_once_if_two_listeners_raise(self, harness):
        """'error' is emitted for each of the exceptions, and SystemExit makes the node quit."""
        harness = harness()
        harness.raised = [ValueError("one"), SystemExit("two")]
        harness.begin(claim())
        (settlement,) = harness.finish()
        assert "ValueError: one" in settlement.error
        assert [ValueError, SystemExit] == [type(e.__cause__) for _, e in harness.announced.all()]
        assert 1 == harness.quits

    def test_keeps_the_end_of_a_traceback_as_valid_utf8(self, harness):
        """The error is stored with the event, so it must be short and encodable."""
        harness = harness()
        harness.raised = [ValueError("\ud800" + "x" * 5_000 + "\udfff the end")]
        harness.begin(claim())
        (settlement,) = harness.finish()
        assert settlement.error.encode().endswith(b"x\\udfff the end\n")
        assert len(settlement.error) < 2_100

    def test_sends_a_bounded_number_of_settlements_with_a_claim(self, harness):
        """A script with more of them would block the server."""
        harness = harness(start=False)
        for _ in range(4):
            harness.accept(*[claim(b"") for _ in range(100)])
        assert MOST_SETTLEMENTS == len(harness.leases.take_settlements())
        assert harness.leases.unsettled
        assert 400 - MOST_SETTLEMENTS == len(harness.leases.take_settlements())
        assert not harness.leases.unsettled

    def test_bounds_the_bytes_of_errors_in_a_claim(self, harness):
        """
        On a slow connection, the errors of a large batch are sent in several claims, and none is
        dropped.
        """
        leases = harness(start=False).leases
        given = [Settlement(str(n), n, Verdict.RETRY, error="x" * 2_000) for n in range(60)]
        leases.settle(given)
        taken = [leases.take_settlements() for _ in range(3)]
        assert [25, 25, 10] == [len(each) for each in taken]
        assert given == [s for each in taken for s in each]
        leases.settle([Settlement(str(n), n, Verdict.RETRY, error="x" * 90_000) for n in range(21)])
        assert 1 == len(leases.take_settlements())


class TestLeases:
    """Which leases are renewed, and until when the node trusts a lease."""

    def test_holds_running_and_waiting_events_until_settled(self, harness):
        """Only held events are renewed."""
        harness = harness(max_events=2)
        first, second = harness.begin(claim(), claim(), claim())
        assert 3 == len(harness.leases.held())
        first.confirm()
        assert [second.id] == [h.claim.id for h in harness.leases.held()][:1]
        assert 2 == len(harness.leases.held())
        harness.finish()
        assert [] == harness.leases.held()

    def test_without_auto_confirm_renews_and_settles_nothing_after_the_handler(self, harness):
        """The event then belongs to the user's code, which confirms or extends it."""
        harness = harness(auto_confirm=False)
        (ev,) = harness.begin(claim())
        assert 1 == len(harness.leases.held())
        assert [] == harness.finish()
        assert [] == harness.leases.held()
        assert ev.confirm() is True

    def test_stops_renewing_after_max_run_and_counts_the_event_as_stuck(self, harness):
        """A handler that hangs must not keep its event for ever."""
        harness = harness(max_run=10_000, max_events=2)
        harness.begin(claim(), claim())
        assert (2, 0) == (len(harness.leases.held()), harness.leases.stuck())
        for lease in harness.leases.held():
            lease.started -= 11
        assert (0, 2) == (len(harness.leases.held()), harness.leases.stuck())

    def test_trusts_a_lease_for_nine_tenths_from_when_it_was_requested(self, harness):
        """The rest absorbs clock drift and slow replies."""
        harness = harness(lease=10_000)
        (ev,) = harness.begin(claim())
        (lease,) = harness.leases.held()
        now = time.monotonic()
        lease.renewed(now - 8.9, 10_000_000)
        assert not ev.lease_lost
        lease.renewed(now - 9.1, 10_000_000)
        assert ev.lease_lost
        lease.renewed(now, 10_000_000)
        assert not ev.lease_lost
        assert lease.mark_lost()
        assert not lease.mark_lost()
        assert ev.lease_lost

    def test_reports_a_lost_lease_once(self, harness):
        """A heartbeat and a confirm may both find the loss."""
        harness = harness()
        (ev,) = harness.begin(claim())
        (lease,) = harness.leases.held()
        harness.leases.mark_lost(lease)
        harness.leases.mark_lost(lease)
        assert [("lease_lost", ev)] == harness.announced.all()

    def test_extend_renews_at_once_and_later_renewals_do_not_shorten_it(self, harness):
        """Otherwise the next heartbeat would shorten the extended lease."""
        harness = harness(lease=10_000)
        (ev,) = harness.begin(claim())
        (lease,) = harness.leases.held()
        assert 10_000_000 == lease.lease_us(time.monotonic())
        assert ev.extend(60_000) is True
        assert [([(ev.id, ev.token)], 60_000_000)] == harness.store.extended
        now = time.monotonic()
        assert 59_000_000 < lease.lease_us(now) <= 60_000_000
        assert 29_000_000 < lease.lease_us(now + 30) <= 30_000_000
        assert 10_000_000 == lease.lease_us(now + 55)
        harness.store.results.put(False)
        assert ev.extend(1_000) is False
        assert ev.lease_lost
        with pytest.raises(OptionError):
            ev.extend("long")

    def test_extend_never_shortens_the_lease_of_a_running_handler(self, harness):
        """
        Otherwise a second node would start the event while the first still runs it.

        The server decides what is left of the lease. The node still trusts the longer one, and the
        next heartbeat asks for it.
        """
        harness = harness(lease=10_000)
        (ev,) = harness.begin(claim())
        (lease,) = harness.leases.held()
        assert ev.extend(60_000) is True
        believed = lease._trusted_until
        assert ev.extend(300) is True
        assert [True, True] == harness.store.at_least
        assert believed == lease._trusted_until
        assert 59_000_000 < lease.lease_us(time.monotonic())

    def test_extend_is_exact_after_the_handler_has_returned(self, harness):
        """Work that outlives its handler holds the event exactly as long as it asks."""
        harness = harness(lease=10_000, auto_confirm=False)
        (ev,) = harness.begin(claim())
        (lease,) = harness.leases.held()
        harness.finish()
        assert ev.extend(60_000) is True
        assert ev.extend(300) is True
        assert [False, False] == harness.store.at_least
        assert lease._trusted_until < boottime() + 1
        assert 10_000_000 == lease.lease_us(time.monotonic())

    @pytest.mark.parametrize("error", [StoreError("no"), OutcomeUnknown("perhaps")])
    def test_renews_a_failed_extension_only_if_it_may_have_taken_effect(self, harness, error):
        """A refused extension must not hold the event for longer."""
        harness = harness(lease=10_000)
        (ev,) = harness.begin(claim())
        (lease,) = harness.leases.held()
        harness.store.trouble = error
        with pytest.raises(type(error)):
            ev.extend(60_000)
        unknown = isinstance(error, OutcomeUnknown)
        assert unknown == (lease.lease_us(time.monotonic()) > 10_000_000)

    def test_extend_returns_false_for_a_settled_event_without_a_call(self, harness):
        """The answer is known without asking the server."""
        harness = harness()
        (ev,) = harness.begin(claim())
        ev.confirm()
        assert ev.extend(1_000) is False
        assert [] == harness.store.extended

    def test_retry_refuses_an_invalid_delay_before_settling(self, harness):
        """The handler can still retry with a valid one."""
        harness = harness()
        (ev,) = harness.begin(claim())
        with pytest.raises(OptionError):
            ev.retry("soon")
        assert ev.retry(1_500) is True
        (settlement,) = harness.store.settled
        assert (Verdict.RETRY, 1_500_000) == (settlement.verdict, settlement.wait_us)
        assert ev.confirm() is False
        assert [("retry", ev)] == harness.announced.all()


def ahead(ms, **more):
    """Return a claim that is due *ms* after the moment of the claim."""
    made = claim(**more)
    return replace(made, due_us=made.claimed_us + round(ms * 1000))


class TestOrder:
    """A single thread starts events in the order of their due times, even if some are released."""

    @pytest.mark.parametrize(("threads", "released"), [(1, "abc"), (2, "ab")])
    def test_a_release_includes_all_later_events_if_there_is_one_thread(
        self, harness, clock, threads, released
    ):
        """
        The later events would otherwise start before the released one.

        Several threads keep no order, so only the events that have waited too long are released.
        """
        harness = harness(look_ahead=20, concurrency=threads)
        harness.accept(*(claim(id=f"0{n}") for n in range(threads)), claim(id="a"), claim(id="b"))
        clock.now += 0.02
        harness.dispatcher.lookahead.add([lease_of(harness, ahead(0, id="c"))], clock.now)
        assert harness.dispatcher.start_due()
        settlements = harness.leases.take_settlements()
        assert list(released) == sorted(s.id for s in settlements)
        assert {Verdict.RELEASE} == {s.verdict for s in settlements}

    def test_a_release_includes_the_events_of_a_claim_under_way(self, harness, clock):
        """
        The events of a claim that was sent before the release are due after the released event.

        Those of the claim that carries the release are kept: the server has released the event
        first, and has then chosen in the order of due times.
        """
        harness = harness(look_ahead=20)
        harness.begin(claim())
        harness.accept(claim(id="a"))
        clock.now += 0.02
        assert harness.dispatcher.start_due()
        assert 0 == harness.dispatcher.next_claim_size(1, 1, 100)
        harness.accept(claim(id="b"))
        assert ["a", "b"] == [s.id for s in harness.leases.take_settlements()]
        harness.accept(claim(id="c"))
        assert 1 == len(harness.dispatcher.lookahead)

    def test_a_release_that_just_missed_a_claim_includes_its_events(self, harness):
        """
        A handler thread releases an event right after a claim has taken the settlements. This claim
        does not carry the release, so what it claims must be released, too.
        """
        harness = harness(look_ahead=20, start=False)
        harness.go_on.release()
        harness.raised = None
        harness.accept(claim(id="a"))

        class Settlements(list):
            """Has the handler thread release its event right after these were copied."""

            def __getitem__(self, index):
                taken = super().__getitem__(index)
                harness.leases._settlements = [*self]
                assert harness.dispatcher.pool.run_one()
                return taken

        harness.leases._settlements = Settlements()
        assert [] == harness.leases.take_settlements()
        harness.accept(claim(id="b"))
        assert ["a", "b"] == [s.id for s in harness.leases.take_settlements()]

    def test_claims_nothing_until_all_releases_are_sent(self, harness, clock):
        """
        Otherwise a claim could return later events before the released ones are
        available again.
        """
        harness = harness(look_ahead=20)
        harness.accept(*(claim() for _ in range(MOST_SETTLEMENTS + 2)))
        clock.now += 0.02
        assert harness.dispatcher.start_due()
        harness.go_on.release()
        eventually(lambda: not harness.dispatcher.pool.busy)
        assert (0, 0) == harness.dispatcher.claim_size(100)
        harness.leases.take_settlements()
        assert 1 == harness.dispatcher.claim_size(100)[0]
        harness.accept(claim(id="still on its way"))
        assert not harness.dispatcher.lookahead
        harness.leases.take_settlements()
        harness.accept(claim())
        assert harness.dispatcher.pool.busy

    def test_a_batch_without_a_listener_releases_the_rest_too(self, harness, clock):
        """If a listener is added soon, it must not receive later events first."""
        harness = harness(look_ahead=20)
        harness.begin(claim(id="a"))
        harness.accept(claim(id="b"))
        harness.raised = None
        assert ["a", "b"] == [s.id for s in harness.finish()]

    def test_events_with_the_same_due_time_start_in_order_of_id(self, harness):
        """The order does not depend on which one was claimed first."""
        harness = harness(max_events=3)
        harness.begin(claim())
        for id in "cab":
            harness.accept(claim(id=id))
        harness.go_on.release()
        assert ["a", "b", "c"] == [ev.id for ev in harness.begun.get(timeout=PATIENCE)]


def lease_of(harness, made):
    """Return the lease of a claim."""
    return harness.leases.grant([made], harness.clock.now)[0]


class TestLookAhead:
    """Events that were claimed ahead of their due time."""

    def test_starts_when_the_time_left_in_the_reply_has_passed(self, harness, clock):
        """The node measures the wait itself, because its clock may differ from the server's."""
        harness = harness()
        harness.accept(ahead(15, id="tea"))
        came = clock.now
        assert came + 0.015 == pytest.approx(harness.dispatcher.next_start(), abs=1e-6)
        clock.now = came + 0.0149
        harness.dispatcher.start_due()
        assert (0, 1) == (harness.dispatcher.pool.busy, len(harness.dispatcher.lookahead))
        clock.now = came + 0.0152
        harness.dispatcher.start_due()
        (ev,) = harness.begun.get(timeout=PATIENCE)
        assert "tea" == ev.id
        assert pytest.approx(0.2, abs=0.01) == ev.lateness_ms
        assert None is harness.dispatcher.next_start()

    def test_leaves_its_thread_free_until_it_is_due(self, harness, clock):
        """Events that are due before can use the thread."""
        harness = harness()
        harness.accept(ahead(15, id="later"))
        assert 1 == harness.dispatcher.free_slots()
        (ev,) = harness.begin(claim(id="now"))
        assert "now" == ev.id

    def test_starts_due_events_as_one_batch(self, harness, clock):
        """A handler receives all events that are due, up to ``max_events``."""
        harness = harness(max_events=2)
        harness.accept(*[ahead(ms, id=f"{ms}") for ms in (5, 3, 4)])
        clock.now += 0.006
        harness.dispatcher.start_due()
        assert ["3", "4"] == [ev.id for ev in harness.begun.get(timeout=PATIENCE)]

    def test_waits_for_a_thread_if_all_are_busy(self, harness, clock):
        """A thread may be free within milliseconds."""
        harness = harness()
        harness.accept(ahead(5, id="later"))
        harness.begin(claim(id="now"))
        clock.now += 0.006
        harness.dispatcher.start_due()
        assert 1 == len(harness.dispatcher.lookahead)
        harness.go_on.release()
        assert ["later"] == [ev.id for ev in harness.begun.get(timeout=PATIENCE)]

    def test_releases_an_event_if_no_thread_is_free_within_20_ms(self, harness, clock):
        """An event waits for as long as the node looks ahead. The release charges no attempt."""
        harness = harness(look_ahead=20)
        harness.accept(ahead(5, id="later"))
        harness.begin(claim(id="now"))
        clock.now += 0.025
        assert clock.now == pytest.approx(harness.dispatcher.next_start(), abs=1e-6)
        clock.now += 0.001
        assert harness.dispatcher.start_due()
        (settlement,) = harness.leases.take_settlements()
        assert ("later", Verdict.RELEASE) == (settlement.id, settlement.verdict)
        assert None is harness.dispatcher.next_start()

    def test_keeps_an_event_for_a_second_if_there_is_no_other_node(self, harness, clock):
        """
        A released event would come back to this node, at the cost of two claims.

        The time is limited, because a kept event cannot be cancelled.
        """
        harness = harness(look_ahead=20)
        harness.is_alone = [True] * 4
        harness.begin(claim())
        harness.accept(claim(id="kept"))
        for seconds in (0.03, 0.96):
            clock.now += seconds
            assert not harness.dispatcher.start_due()
            assert not harness.dispatcher.start_due()
        assert 2 == len(harness.is_alone), "asked more than once within 20 ms"
        assert clock.now + 0.01 == pytest.approx(harness.dispatcher.next_start(), abs=1e-6)
        clock.now += 0.02
        assert harness.dispatcher.start_due()
        assert ["kept"] == [s.id for s in harness.leases.take_settlements()]

    def test_releases_a_kept_event_within_20_ms_of_a_pause_or_a_join(self, harness, clock):
        """
        Another node may have a free thread, and after a pause no event may start. The claimer wakes
        in time to ask the store.
        """
        harness = harness(look_ahead=20)
        harness.begin(claim())
        harness.accept(claim())
        clock.now += 0.02
        harness.is_alone = [True, False]
        assert not harness.dispatcher.start_due()
        assert clock.now + 0.02 == pytest.approx(harness.dispatcher.next_start(), abs=1e-6)
        clock.now += 0.021
        assert harness.dispatcher.start_due()
        assert 1 == len(harness.leases.take_settlements())

    @pytest.mark.parametrize(("seconds", "starts"), [(0.9, True), (1.1, False)])
    def test_starts_no_event_that_has_expired_meanwhile(
        self, harness, monkeypatch, seconds, starts
    ):
        """An event that expired while it waited for a thread is released; the server buries it."""
        harness = harness(lease=600_000)
        (first,) = harness.begin(claim())
        waits = replace(claim(id="waits"), expires_us=3_000 + 1_000_000)
        harness.accept(waits)
        later = boottime() + seconds
        monkeypatch.setattr("dtimer.engine.dispatcher.boottime", lambda: later)
        harness.go_on.release(2)
        if starts:
            assert ["waits"] == [ev.id for ev in harness.begun.get(timeout=PATIENCE)]
        eventually(lambda: harness.dispatcher.pool.busy == 0)
        settled = [(s.id, s.verdict) for s in harness.leases.take_settlements()]
        end = Verdict.CONFIRM if starts else Verdict.RELEASE
        assert [(first.id, Verdict.CONFIRM), ("waits", end)] == settled

    def test_releases_an_event_if_the_store_cannot_tell_whether_it_is_alone(self, harness, clock):
        """There may be other nodes."""
        harness = harness(look_ahead=20)
        harness.is_alone = []  # the next question fails, as without a reply
        harness.begin(claim())
        harness.accept(claim())
        clock.now += 0.02
        assert harness.dispatcher.start_due()

    def test_claims_less_after_a_release(self, harness, clock):
        """Releases mean that handlers are slower than estimated."""
        harness = harness(look_ahead=20)
        batching = harness.dispatcher.batching
        for _ in range(6):
            batching.claim_answered(1, 1, overdue=True)
        batching.handler_took(1e-6)
        harness.accept(ahead(5, id="later"))
        harness.begin(claim(id="now"))
        assert batching.batches > 1
        clock.now += 0.026
        assert harness.dispatcher.start_due()
        assert 1 == batching.batches

    def test_reduces_the_next_claims_only_once_for_a_kept_event(self, harness, clock):
        """Repeated checks of the same event do not show that handlers became slower."""
        harness = harness(look_ahead=20)
        harness.is_alone = [True]
        harness.begin(claim())
        harness.accept(claim(), claim())
        clock.now += 0.02
        harness.dispatcher.start_due()
        took = harness.dispatcher.batching._handler_seconds
        for _ in range(5):
            harness.dispatcher.start_due()
        assert took == harness.dispatcher.batching._handler_seconds

    def test_releases_an_event_whose_lease_expired_while_the_machine_slept(
        self, harness, clock, monkeypatch
    ):
        """Another node may have claimed it since."""
        harness = harness(lease=1_000)
        harness.accept(ahead(5, id="tea"))
        past = boottime() + 2.0
        monkeypatch.setattr("dtimer.engine.dispatcher.boottime", lambda: past)
        clock.now += 0.006
        assert harness.dispatcher.start_due()
        (settlement,) = harness.leases.take_settlements()
        assert ("tea", Verdict.RELEASE) == (settlement.id, settlement.verdict)
        assert 0 == harness.dispatcher.pool.busy

    def test_releases_waiting_and_later_events_when_leaving(self, harness, clock):
        """Otherwise they would wait for the end of their lease."""
        harness = harness()
        harness.accept(ahead(5, id="one"))
        harness.dispatcher.release_waiting()
        harness.accept(ahead(5, id="two"))
        eventually(lambda: harness.dispatcher.pool.busy == 0)
        settled = harness.leases.take_settlements()
        assert [("one", Verdict.RELEASE), ("two", Verdict.RELEASE)] == [
            (s.id, s.verdict) for s in settled
        ]

    def test_keeps_the_order_if_a_post_is_refused(self, harness, clock):
        """
        After a refused post the event of that id is the same as before. It is released, and with a
        single thread so are all events that would otherwise start before it.
        """
        harness = harness()
        harness.accept(ahead(5, id="a"), ahead(6, id="b"))
        assert harness.dispatcher.release_superseded(["a"])
        assert ["a", "b"] == [s.id for s in harness.leases.take_settlements()]
        # A post replaces "c" while the reply to claim 1 is under way.
        harness.seat.superseded_ids.begin(seq=1)
        harness.seat.superseded_ids.add(["c"])
        harness.accept(claim(id="c"), claim(id="d"))
        assert ["c", "d"] == [s.id for s in harness.leases.take_settlements()]

    @pytest.mark.parametrize("threads", [1, 2])
    def test_an_interrupted_post_leaves_no_lease_that_is_renewed_for_ever(self, harness, threads):
        """
        An exception interrupts the release of the events that a post has replaced. Each is kept,
        released, or no longer renewed.
        """

        class Alarm(Exception):
            pass

        def ring():
            raise Alarm

        for n in each_bytecode():
            made = harness(start=False, concurrency=threads)
            made.accept(ahead(5, id="a"), ahead(6, id="b"))
            interruption = Interruption(n, ring, raises=True)
            with contextlib.suppress(Alarm):
                interruption.during(lambda made=made: made.dispatcher.release_superseded(["a"]))
            if interruption.where is None:
                break
            kept = made.dispatcher.lookahead.leases()
            assert [] == [h for h in made.leases.held() if h not in kept], interruption.where
        assert n > 5

    def test_does_not_start_an_event_that_this_process_replaced(self, harness, clock):
        """The release does not ring, because a ring may claim on the thread of the user's post."""
        harness = harness(concurrency=2)
        harness.accept(ahead(5, id="a"), ahead(6, id="b"))
        assert harness.dispatcher.release_superseded(["a"])
        assert not harness.dispatcher.release_superseded(["a", "c"])
        assert (0, 1) == (harness.freed, len(harness.dispatcher.lookahead))
        clock.now += 0.007
        harness.dispatcher.start_due()
        assert ["b"] == [ev.id for ev in harness.begun.get(timeout=PATIENCE)]

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, 20_000),
            ({"look_ahead": 5}, 5_000),
            ({"look_ahead": 0}, 0),
            ({"lease": 100}, 10_000),
            ({"now": lambda: 0.0}, 0),
        ],
    )
    def test_looks_ahead_as_the_option_says_up_to_a_tenth_of_the_lease(self, options, expected):
        """
        With a test's clock the node does not look ahead, because it could not
        measure the wait.
        """
        assert expected == ahead_us(validate(options))
