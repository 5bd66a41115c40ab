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
from servers import PATIENCE, eventually

from dtimer.engine.book import MOST_SETTLEMENTS, Book
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.early import ahead_us
from dtimer.engine.pace import lasting
from dtimer.errors import HandlerError, LeaseLost, OptionError, OutcomeUnknown, StoreError
from dtimer.model.claims import Claim, Result, Settlement, Verdict
from dtimer.model.options import validate

_tokens = itertools.count(1)


def claim(payload=b"{}", *, id=None, attempt=1, max_retries=3):
    token = next(_tokens)
    return Claim(id or f"ev-{token:06}", token, attempt, 1_000, 3_000, max_retries, payload)


class FakeLedger:
    """A store that settles and extends leases as the test says."""

    def __init__(self):
        self.settled = []
        self.extended = []
        self.at_least = []  # for each extension: True if it must not shorten the lease
        self.results = queue.SimpleQueue()
        self.asked = threading.Event()
        self.trouble = None  # raised by extensions
        self.answer = None  # an event to wait for before replying

    def settle(self, settlements):
        self.settled += settlements
        self.asked.set()
        if self.answer is not None:
            assert self.answer.wait(PATIENCE)
        result = Result.DONE if self.results.empty() else self.results.get()
        if isinstance(result, Exception):
            raise result
        return [result]

    def extend(self, held, lease_us, *, at_least=False):
        self.extended.append((list(held), lease_us))
        self.at_least.append(at_least)
        if self.trouble is not None:
            raise self.trouble
        return [self.results.empty() or self.results.get()]


class Office:
    """A dispatcher whose handler the test steps through, and everything it announces."""

    def __init__(self, clock, **options):
        self.clock = clock
        self.ledger = FakeLedger()
        self.announcements = queue.SimpleQueue()
        self.begun = queue.SimpleQueue()
        self.go_on = threading.Semaphore(0)
        self.raised = []
        self.rings = 0
        self.alone = [False] * 100  # the answers to "is this the only node?"
        self.quits = 0
        self.dispatcher = Dispatcher(
            "dtimer-test",
            node="test",
            options=validate(options),
            handle=self._handle,
            announce=lambda *what: self.announcements.put(what),
            ring=self._ring,
            alone=lambda: self.alone.pop(0),
            ledger=self.ledger,
            quit=self._quit,
        )

    def _handle(self, events):
        self.begun.put(events)
        assert self.go_on.acquire(timeout=PATIENCE)
        return self.raised

    def _ring(self):
        self.rings += 1
        # As the claimer does, or a handler thread that claims inline.
        self.dispatcher.start_due()

    def _quit(self):
        self.quits += 1

    def accept(self, *claims):
        """Pass claims to the dispatcher, as a reply received at this moment."""
        self.dispatcher.accept(1, claims, self.clock.now, self.clock.now)

    def begin(self, *claims):
        """Pass claims to the dispatcher; return the events of the first batch that starts."""
        self.accept(*claims)
        return self.begun.get(timeout=PATIENCE)

    def finish(self):
        """Let all handlers return; return their settlements."""
        self.go_on.release(100)
        eventually(lambda: self.dispatcher.running == 0)
        return self.dispatcher.take_settlements()

    def announced(self):
        """Return what was announced so far."""
        return [self.announcements.get() for _ in range(self.announcements.qsize())]


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock of events that wait for their due time, moved by the test."""
    clock = SimpleNamespace(now=time.monotonic())
    stepped = SimpleNamespace(monotonic=lambda: clock.now)
    for module in ("early", "peers"):
        monkeypatch.setattr(f"dtimer.engine.{module}.time", stepped)
    return clock


@pytest.fixture
def office(clock):
    made = []

    def build(*, start=True, **options):
        office = Office(clock, **options)
        made.append(office)
        if start:
            office.dispatcher.start()
        return office

    yield build
    for each in made:
        each.go_on.release(1_000)
        each.dispatcher.stop()
        assert each.dispatcher.join(PATIENCE)


def summary(settlements):
    return [(s.id, s.token, s.verdict) for s in settlements]


class TestHandlerThreads:
    """Which thread starts which event, and when."""

    def test_has_room_for_a_batch_a_free_thread_and_at_most_100(self, office):
        """A larger claim would fetch events that no thread can start."""
        office = office(concurrency=3, max_events=2)
        dispatcher = office.dispatcher
        assert 6 == dispatcher.room()
        office.begin(*(claim() for _ in range(3)))
        assert (2, 2) == (dispatcher.room(), dispatcher.running)
        dispatcher.max_events = 80
        assert 80 == dispatcher.room()
        dispatcher.max_events = 1
        office.accept(*[claim() for _ in range(4)])
        assert 0 == dispatcher.room()
        office.finish()
        assert 3 == dispatcher.room()
        dispatcher.max_events = 100
        assert 100 == dispatcher.room()

    def test_starts_events_in_the_order_of_claims_max_events_at_a_time(self, office):
        """A handler receives at most ``max_events`` events."""
        office = office(max_events=2)
        claims = [claim(json.dumps({"n": n}).encode()) for n in range(5)]
        first = office.begin(*claims)
        office.go_on.release(3)
        rest = [office.begun.get(timeout=PATIENCE) for _ in range(2)]
        assert [[0, 1], [2, 3], [4]] == [[ev["n"] for ev in batch] for batch in [first, *rest]]
        assert [(c.id, c.token, Verdict.CONFIRM) for c in claims] == summary(office.finish())

    def test_an_event_has_the_data_of_its_claim(self, office):
        """The lateness is measured by the server's clock."""
        office = office()
        (ev,) = office.begin(claim(b'{"a":1}', id="tea", attempt=2, max_retries=7))
        assert {"a": 1} == ev
        assert ("tea", 2, 7, 1.0, 2.0) == (
            ev.id,
            ev.attempt,
            ev.max_retries,
            ev.due,
            ev.lateness_ms,
        )

    def test_lateness_is_never_negative(self, office):
        """The server's clock may step back between the due time and the claim."""
        (ev,) = office().begin(replace(claim(), claimed_us=-3_600_000_000))
        assert 0 == ev.lateness_ms

    def test_runs_a_handler_on_each_thread_at_the_same_time(self, office):
        """Further events wait in the look-ahead queue."""
        office = office(concurrency=5)
        office.accept(*[claim() for _ in range(7)])
        for _ in range(5):
            office.begun.get(timeout=PATIENCE)
        assert (5, 2) == (office.dispatcher.running, len(office.dispatcher.early))
        assert office.begun.empty()
        assert 7 == len(office.finish())

    def test_rings_the_bell_when_a_thread_becomes_free(self, office):
        """The settlement is stored before the ring, so that the next claim carries it."""
        office = office()
        found = []
        office.dispatcher._ring = lambda: found.append(office.dispatcher.unsettled)
        office.begin(claim())
        office.finish()
        eventually(lambda: [True] == found)

    def test_releases_events_if_the_last_listener_was_removed(self, office):
        """A confirm would lose an event that no handler has seen."""
        office = office()
        office.raised = None
        office.begin(claim())
        (settlement,) = office.finish()
        assert Verdict.RELEASE is settlement.verdict

    def test_a_thread_survives_any_exception_and_fails_its_events(self, office):
        """
        Even an error in the node itself fails the events.

        Otherwise they would be renewed, and never handled, for ever.
        """
        office = office()

        def broken(events):
            raise MemoryError

        office.dispatcher._handle, handle = broken, office.dispatcher._handle
        first = claim()
        office.accept(first)
        what, error = office.announcements.get(timeout=PATIENCE)
        assert ("error", MemoryError) == (what, type(error))
        office.dispatcher._handle = handle
        second = claim()
        office.begin(second)
        assert [
            (first.id, first.token, Verdict.RETRY),
            (second.id, second.token, Verdict.CONFIRM),
        ] == summary(office.finish())
        assert [] == office.dispatcher.held()

    def test_drops_the_lease_of_a_batch_that_cannot_be_enqueued(self, office, monkeypatch):
        """
        No thread will start these events, so their lease must end.

        The thread is free for later events.
        """
        office = office(concurrency=3, start=False)
        batches = []

        class Full:
            def put(self, batch):
                if batches:
                    raise MemoryError
                batches.append(batch)

        inbox, office.dispatcher._inbox = office.dispatcher._inbox, Full()
        first, second, third = claim(), claim(), claim()
        with pytest.raises(MemoryError):
            office.accept(first, second, third)
        office.dispatcher._inbox = inbox
        assert [first.id, third.id] == [hold.claim.id for hold in office.dispatcher.held()]
        assert 1 == office.dispatcher.running
        office.dispatcher.start_due()
        assert third is inbox.get_nowait()[0].claim


class TestWithoutThreads:
    """A dispatcher without started threads: the caller runs the handlers."""

    def test_each_call_runs_one_batch_on_the_calling_thread(self, office):
        """The return value says whether there was a batch."""
        office = office(start=False, concurrency=2)
        first, second = claim(), claim()
        office.go_on.release(2)
        assert not office.dispatcher.lend_a_hand()
        office.accept(first, second)
        assert office.dispatcher.lend_a_hand()
        assert [(first.id, first.token, Verdict.CONFIRM)] == summary(
            office.dispatcher.take_settlements()
        )
        assert (1, 1) == (office.dispatcher.running, office.rings)
        assert office.dispatcher.lend_a_hand()
        assert not office.dispatcher.lend_a_hand()
        assert 0 == office.dispatcher.running


class TestReleasing:
    """The events that a leaving node still holds."""

    def test_releases_waiting_events_and_lets_running_ones_finish(self, office):
        """Other nodes can start the waiting events at once."""
        office = office()
        running, *waiting = (claim() for _ in range(3))
        office.begin(running, *waiting)
        office.dispatcher.hand_back()
        assert [(c.id, c.token, Verdict.RELEASE) for c in waiting] == summary(
            office.dispatcher.take_settlements()
        )
        assert [(running.id, running.token, Verdict.CONFIRM)] == summary(office.finish())

    def test_starts_nothing_after_release_waiting(self, office):
        """A claim under way may still bring events, even if a thread is free."""
        office = office()
        office.dispatcher.hand_back()
        late = claim()
        office.accept(late)
        eventually(lambda: office.dispatcher.running == 0)
        assert [(late.id, late.token, Verdict.RELEASE)] == summary(
            office.dispatcher.take_settlements()
        )
        assert office.begun.empty()

    def test_abandon_retries_running_events_and_revokes_their_lease(self, office):
        """
        The attempt is counted.

        The handler can see the loss, its confirm returns False, and its return changes nothing.
        """
        office = office()
        held = claim()
        (ev,) = office.begin(held)
        office.dispatcher.abandon()
        (settlement,) = office.dispatcher.take_settlements()
        assert (held.id, held.token, Verdict.RETRY) == summary([settlement])[0]
        assert 0 == settlement.wait_us
        assert "left" in settlement.error
        assert ev.lease_lost
        assert ev.confirm() is False
        assert [] == office.finish()
        office.dispatcher.abandon()
        assert not office.dispatcher.unsettled

    def test_stop_ends_each_thread_after_its_handler(self, office):
        """``join`` returns True only when all threads have ended."""
        office = office(concurrency=2)
        office.begin(claim())
        office.dispatcher.stop()
        assert not office.dispatcher.join(0)
        office.go_on.release()
        assert office.dispatcher.join(PATIENCE)
        assert not office.dispatcher.current

    def test_join_idle_waits_for_all_threads_but_the_running_one(self, office):
        """
        A handler that does not return keeps its own thread only.

        The idle threads are joined, however slow the machine is.
        """
        office = office(concurrency=3)
        office.begin(claim())
        gate, ending = threading.Event(), queue.SimpleQueue()
        for hand in office.dispatcher.hands:

            def ended():
                ending.put(None)
                assert gate.wait(PATIENCE)

            hand._ended = ended
        office.dispatcher.stop()
        for _ in range(2):
            ending.get(timeout=PATIENCE)
        assert not office.dispatcher.join_idle(0)
        gate.set()
        assert office.dispatcher.join_idle(PATIENCE)
        assert 1 == sum(not hand.join(0) for hand in office.dispatcher.hands)


class TestSettling:
    """Each event is settled once."""

    def test_does_not_confirm_again_what_the_handler_confirmed(self, office):
        """A second confirm would be reported as a lost lease."""
        office = office(max_events=2)
        first, second = office.begin(claim(), claim())
        assert first.confirm() is True
        assert [(second.id, second.token, Verdict.CONFIRM)] == summary(office.finish())
        assert [(first.id, first.token, Verdict.CONFIRM)] == summary(office.ledger.settled)

    def test_confirms_after_the_handler_if_its_own_confirm_failed(self, office):
        """The event must not run again because of a lost connection."""
        office = office()
        (ev,) = office.begin(claim())
        office.ledger.results.put(StoreError("no reply"))
        with pytest.raises(StoreError):
            ev.confirm()
        assert [(ev.id, ev.token, Verdict.CONFIRM)] == summary(office.finish())

    def test_confirms_if_a_confirm_under_way_fails_after_the_handler_returned(self, office):
        """
        Another thread confirms the event while the handler returns.

        Without a second confirm, the lease would be renewed for ever.
        """
        office = office()
        (ev,) = office.begin(claim())
        office.ledger.answer = threading.Event()
        office.ledger.results.put(StoreError("no reply"))
        failed = []

        def confirm():
            try:
                ev.confirm()
            except StoreError as e:
                failed.append(e)

        other = threading.Thread(target=confirm)
        other.start()
        assert office.ledger.asked.wait(PATIENCE)
        office.go_on.release()
        office.ledger.answer.set()
        other.join(PATIENCE)
        eventually(lambda: office.dispatcher.running == 0)
        assert 1 == len(failed)
        assert [(ev.id, ev.token, Verdict.CONFIRM)] == summary(office.dispatcher.take_settlements())
        assert [] == office.dispatcher.held()

    def test_stops_renewing_if_a_confirm_outlasts_the_handler_and_fails(self, office, monkeypatch):
        """
        The handler thread does not wait for ever for another thread's confirm. If that fails later,
        the lease ends by itself, and the event is handed out again.
        """
        monkeypatch.setattr("dtimer.engine.hold.Hold._longest_wait", 0.0)
        office = office()
        (ev,) = office.begin(claim())
        office.ledger.answer = threading.Event()
        office.ledger.results.put(OutcomeUnknown("no reply"))
        failed = []

        def confirm():
            try:
                ev.confirm()
            except OutcomeUnknown as e:
                failed.append(e)

        other = threading.Thread(target=confirm)
        other.start()
        assert office.ledger.asked.wait(PATIENCE)
        assert [] == office.finish()
        office.ledger.answer.set()
        other.join(PATIENCE)
        assert 1 == len(failed)
        assert [] == office.dispatcher.held()

    def test_the_second_of_two_confirms_waits_for_the_result_of_the_first(self, office):
        """Both callers must learn the same outcome."""
        office = office()
        (ev,) = office.begin(claim())
        office.ledger.answer = threading.Event()
        office.ledger.results.put(Result.STALE)
        confirmed = []
        threads = [
            threading.Thread(target=lambda: confirmed.append(ev.confirm())) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert office.ledger.asked.wait(PATIENCE)
        office.ledger.answer.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert [False, False] == confirmed
        assert 1 == len(office.ledger.settled)
        assert [] == office.finish()

    def test_announces_the_outcome_of_each_settlement(self, office):
        """'retry', 'buried' and 'lease_lost' report the result of each event of a batch."""
        office = office(max_events=5)
        office.raised = [ValueError("no")]
        events = office.begin(*(claim() for _ in range(4)))
        settlements = office.finish()
        assert [Verdict.RETRY] * 4 == [s.verdict for s in settlements]
        ((what, error),) = office.announced()
        assert "error" == what
        assert isinstance(error, HandlerError)
        assert events == error.events
        results = [Result.DONE, Result.DEAD, Result.CANCELLED, Result.STALE]
        office.dispatcher.settled(settlements, results)
        retry, buried, lost, error = office.announced()
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
        office.dispatcher.settled(settlements, results)
        assert [] == office.announced()

    def test_does_not_report_the_loss_of_events_that_this_process_replaced(self, office):
        """The process knows that the old event is gone."""
        office = office(max_events=3)
        events = office.begin(*(claim() for _ in range(3)))
        office.dispatcher.superseded({events[0].id, events[1].id})
        first = office.dispatcher.held()[0]
        office.dispatcher.mark_lost(first)
        settlements = office.finish()
        office.dispatcher.settled(settlements, [Result.STALE] * 3)
        announced = office.announced()
        assert ["lease_lost", "error"] == [what for what, _ in announced]
        assert events[2] is announced[0][1]
        assert all(ev.lease_lost for ev in events)

    def test_does_not_report_a_released_event_that_was_gone(self, office):
        """The node gave the event up, so its loss does not matter."""
        office = office(start=False)
        office.accept(claim())
        office.dispatcher.hand_back()
        settlements = office.dispatcher.take_settlements()
        office.dispatcher.settled(settlements, [Result.STALE])
        assert [] == office.announced()
        assert [] == office.dispatcher.held()

    def test_buries_a_corrupt_payload_and_handles_the_rest(self, office):
        """No handler could read it, and each retry would fail the same way."""
        office = office(max_events=2)
        bad = claim(b"\xff")
        (good,) = office.begin(bad, claim())
        (settlement,) = office.dispatcher.take_settlements()
        assert (bad.id, Verdict.BURY, "corrupt") == (
            settlement.id,
            settlement.verdict,
            settlement.reason,
        )
        office.dispatcher.settled([settlement], [Result.DEAD])
        assert [("buried", bad.id)] == office.announced()
        assert [(good.id, good.token, Verdict.CONFIRM)] == summary(office.finish())

    def test_retries_a_batch_once_if_two_listeners_raise(self, office):
        """'error' is emitted for each of the exceptions."""
        office = office()
        office.raised = [ValueError("one"), SystemExit("two")]
        office.begin(claim())
        (settlement,) = office.finish()
        assert "ValueError: one" in settlement.error
        assert [ValueError, SystemExit] == [type(e.__cause__) for _, e in office.announced()]
        assert 1 == office.quits

    def test_keeps_the_end_of_a_traceback_as_valid_utf8(self, office):
        """The error is stored with the event, so it must be short and encodable."""
        office = office()
        office.raised = [ValueError("\ud800" + "x" * 5_000 + "\udfff the end")]
        office.begin(claim())
        (settlement,) = office.finish()
        assert settlement.error.encode().endswith(b"x\\udfff the end\n")
        assert len(settlement.error) < 2_100

    def test_sends_a_bounded_number_of_settlements_with_a_claim(self, office):
        """A script with more of them would block the server."""
        office = office(start=False)
        for _ in range(4):
            office.accept(*[claim(b"") for _ in range(100)])
        assert MOST_SETTLEMENTS == len(office.dispatcher.take_settlements())
        assert office.dispatcher.unsettled
        assert 400 - MOST_SETTLEMENTS == len(office.dispatcher.take_settlements())
        assert not office.dispatcher.unsettled

    def test_bounds_the_bytes_of_errors_in_a_claim(self, office):
        """
        On a slow connection, the errors of a large batch are sent in several claims, and none is
        dropped.
        """
        dispatcher = office(start=False).dispatcher
        given = [Settlement(str(n), n, Verdict.RETRY, error="x" * 2_000) for n in range(60)]
        dispatcher._settle(given)
        taken = [dispatcher.take_settlements() for _ in range(3)]
        assert [25, 25, 10] == [len(each) for each in taken]
        assert given == [s for each in taken for s in each]
        dispatcher._settle(
            [Settlement(str(n), n, Verdict.RETRY, error="x" * 90_000) for n in range(21)]
        )
        assert 1 == len(dispatcher.take_settlements())


class TestLeases:
    """Which leases are renewed, and until when the node trusts a lease."""

    def test_holds_running_and_waiting_events_until_settled(self, office):
        """Only held events are renewed."""
        office = office(max_events=2)
        first, second = office.begin(claim(), claim(), claim())
        assert 3 == len(office.dispatcher.held())
        first.confirm()
        assert [second.id] == [h.claim.id for h in office.dispatcher.held()][:1]
        assert 2 == len(office.dispatcher.held())
        office.finish()
        assert [] == office.dispatcher.held()

    def test_without_auto_confirm_renews_and_settles_nothing_after_the_handler(self, office):
        """The event then belongs to the user's code, which confirms or extends it."""
        office = office(auto_confirm=False)
        (ev,) = office.begin(claim())
        assert 1 == len(office.dispatcher.held())
        assert [] == office.finish()
        assert [] == office.dispatcher.held()
        assert ev.confirm() is True

    def test_stops_renewing_after_max_run_and_counts_the_event_as_stuck(self, office):
        """A handler that hangs must not keep its event for ever."""
        office = office(max_run=10_000, max_events=2)
        office.begin(claim(), claim())
        assert (2, 0) == (len(office.dispatcher.held()), office.dispatcher.stuck())
        for hold in office.dispatcher.held():
            hold.started -= 11
        assert (0, 2) == (len(office.dispatcher.held()), office.dispatcher.stuck())

    def test_trusts_a_lease_for_nine_tenths_from_when_it_was_requested(self, office):
        """The rest absorbs clock drift and slow replies."""
        office = office(lease=10_000)
        (ev,) = office.begin(claim())
        (hold,) = office.dispatcher.held()
        now = time.monotonic()
        hold.renewed(now - 8.9, 10_000_000)
        assert not ev.lease_lost
        hold.renewed(now - 9.1, 10_000_000)
        assert ev.lease_lost
        hold.renewed(now, 10_000_000)
        assert not ev.lease_lost
        assert hold.mark_lost()
        assert not hold.mark_lost()
        assert ev.lease_lost

    def test_reports_a_lost_lease_once(self, office):
        """A heartbeat and a confirm may both find the loss."""
        office = office()
        (ev,) = office.begin(claim())
        (hold,) = office.dispatcher.held()
        office.dispatcher.mark_lost(hold)
        office.dispatcher.mark_lost(hold)
        assert [("lease_lost", ev)] == office.announced()

    def test_extend_renews_at_once_and_raises_later_renewals(self, office):
        """Otherwise the next heartbeat would shorten the extended lease."""
        office = office(lease=10_000)
        (ev,) = office.begin(claim())
        (hold,) = office.dispatcher.held()
        assert 10_000_000 == hold.lease_us(time.monotonic())
        assert ev.extend(60_000) is True
        assert [([(ev.id, ev.token)], 60_000_000)] == office.ledger.extended
        now = time.monotonic()
        assert 59_000_000 < hold.lease_us(now) <= 60_000_000
        assert 29_000_000 < hold.lease_us(now + 30) <= 30_000_000
        assert 10_000_000 == hold.lease_us(now + 55)
        office.ledger.results.put(False)
        assert ev.extend(1_000) is False
        assert ev.lease_lost
        with pytest.raises(OptionError):
            ev.extend("long")

    def test_extend_never_shortens_the_lease_of_a_running_handler(self, office):
        """
        Otherwise a second node would start the event while the first still runs it.

        The server decides what is left of the lease. The node still trusts the longer one, and the
        next heartbeat asks for it.
        """
        office = office(lease=10_000)
        (ev,) = office.begin(claim())
        (hold,) = office.dispatcher.held()
        assert ev.extend(60_000) is True
        believed = hold._trusted_until
        assert ev.extend(300) is True
        assert [True, True] == office.ledger.at_least
        assert believed == hold._trusted_until
        assert 59_000_000 < hold.lease_us(time.monotonic())

    def test_extend_is_exact_after_the_handler_has_returned(self, office):
        """Work that outlives its handler holds the event exactly as long as it asks."""
        office = office(lease=10_000, auto_confirm=False)
        (ev,) = office.begin(claim())
        (hold,) = office.dispatcher.held()
        office.finish()
        assert ev.extend(60_000) is True
        assert ev.extend(300) is True
        assert [False, False] == office.ledger.at_least
        assert hold._trusted_until < lasting() + 1
        assert 10_000_000 == hold.lease_us(time.monotonic())

    @pytest.mark.parametrize("error", [StoreError("no"), OutcomeUnknown("perhaps")])
    def test_renews_a_failed_extension_only_if_it_may_have_taken_effect(self, office, error):
        """A refused extension must not hold the event for longer."""
        office = office(lease=10_000)
        (ev,) = office.begin(claim())
        (hold,) = office.dispatcher.held()
        office.ledger.trouble = error
        with pytest.raises(type(error)):
            ev.extend(60_000)
        unknown = isinstance(error, OutcomeUnknown)
        assert unknown == (hold.lease_us(time.monotonic()) > 10_000_000)

    def test_extend_returns_false_for_a_settled_event_without_a_call(self, office):
        """The answer is known without asking the server."""
        office = office()
        (ev,) = office.begin(claim())
        ev.confirm()
        assert ev.extend(1_000) is False
        assert [] == office.ledger.extended

    def test_retry_refuses_an_invalid_delay_before_settling(self, office):
        """The handler can still retry with a valid one."""
        office = office()
        (ev,) = office.begin(claim())
        with pytest.raises(OptionError):
            ev.retry("soon")
        assert ev.retry(1_500) is True
        (settlement,) = office.ledger.settled
        assert (Verdict.RETRY, 1_500_000) == (settlement.verdict, settlement.wait_us)
        assert ev.confirm() is False
        assert [("retry", ev)] == office.announced()


def ahead(ms, **more):
    """Return a claim that is due *ms* after the moment of the claim."""
    made = claim(**more)
    return replace(made, due_us=made.claimed_us + round(ms * 1000))


class TestOrder:
    """A single thread starts events in the order of their due times, even if some are released."""

    @pytest.mark.parametrize(("threads", "released"), [(1, "abc"), (2, "ab")])
    def test_a_release_includes_all_later_events_if_there_is_one_thread(
        self, office, clock, threads, released
    ):
        """
        The later events would otherwise start before the released one.

        Several threads keep no order, and each event waits as long as any other.
        """
        office = office(look_ahead=20, concurrency=threads)
        office.accept(*(claim(id=f"0{n}") for n in range(threads)), claim(id="a"), claim(id="b"))
        clock.now += 0.02
        office.dispatcher.early.add([hold_of(office, ahead(0, id="c"))], clock.now)
        assert office.dispatcher.start_due()
        settlements = office.dispatcher.take_settlements()
        assert list(released) == sorted(s.id for s in settlements)
        assert {Verdict.RELEASE} == {s.verdict for s in settlements}

    def test_a_release_includes_the_events_of_a_claim_under_way(self, office, clock):
        """
        These events are later, too.

        The claim that carries the release is different: there the server chooses in order.
        """
        office = office(look_ahead=20)
        office.begin(claim())
        office.accept(claim(id="a"))
        clock.now += 0.02
        assert office.dispatcher.start_due()
        assert 0 == office.dispatcher.wanted_meanwhile(1, 1, 100)
        office.accept(claim(id="b"))
        assert ["a", "b"] == [s.id for s in office.dispatcher.take_settlements()]
        office.accept(claim(id="c"))
        assert 1 == len(office.dispatcher.early)

    def test_a_release_during_a_claim_keeps_its_mark(self, office, monkeypatch):
        """
        A handler thread releases an event right after a claim has taken the settlements. This claim
        does not carry the release, so what it claims must be released, too.
        """
        office = office(look_ahead=20, start=False)
        office.go_on.release()
        office.raised = None
        office.accept(claim(id="a"))
        take = Book.take_settlements

        def taken_before(book):
            taken = take(book)
            monkeypatch.setattr(Book, "take_settlements", take)
            assert office.dispatcher.lend_a_hand()
            return taken

        monkeypatch.setattr(Book, "take_settlements", taken_before)
        assert [] == office.dispatcher.take_settlements()
        office.accept(claim(id="b"))
        assert ["a", "b"] == [s.id for s in office.dispatcher.take_settlements()]

    def test_claims_nothing_until_all_releases_are_sent(self, office, clock):
        """
        Otherwise a claim could return later events before the released ones are
        available again.
        """
        office = office(look_ahead=20)
        office.accept(*(claim() for _ in range(MOST_SETTLEMENTS + 2)))
        clock.now += 0.02
        assert office.dispatcher.start_due()
        office.go_on.release()
        eventually(lambda: not office.dispatcher.running)
        assert (0, 0) == office.dispatcher.wanted(100)
        office.dispatcher.take_settlements()
        assert 1 == office.dispatcher.wanted(100)[0]
        office.accept(claim(id="still on its way"))
        assert not office.dispatcher.early
        office.dispatcher.take_settlements()
        office.accept(claim())
        assert office.dispatcher.running

    def test_a_batch_without_a_listener_releases_the_rest_too(self, office, clock):
        """If a listener is added soon, it must not receive later events first."""
        office = office(look_ahead=20)
        office.begin(claim(id="a"))
        office.accept(claim(id="b"))
        office.raised = None
        assert ["a", "b"] == [s.id for s in office.finish()]

    def test_events_with_the_same_due_time_start_in_order_of_id(self, office):
        """The order does not depend on which one was claimed first."""
        office = office(max_events=3)
        office.begin(claim())
        for id in "cab":
            office.accept(claim(id=id))
        office.go_on.release()
        assert ["a", "b", "c"] == [ev.id for ev in office.begun.get(timeout=PATIENCE)]


def hold_of(office, made):
    """Return a lease of a claim, made as the dispatcher makes it."""
    hold = office.dispatcher._hold(made, lasting() + 100)
    office.dispatcher._hold_on([hold])
    return hold


class TestLookAhead:
    """Events that were claimed ahead of their due time."""

    def test_starts_when_the_time_left_in_the_reply_has_passed(self, office, clock):
        """The node measures the wait itself, because its clock may differ from the server's."""
        office = office()
        office.accept(ahead(15, id="tea"))
        came = clock.now
        assert came + 0.015 == pytest.approx(office.dispatcher.next_start(), abs=1e-6)
        clock.now = came + 0.0149
        office.dispatcher.start_due()
        assert (0, 1) == (office.dispatcher.running, len(office.dispatcher.early))
        clock.now = came + 0.0152
        office.dispatcher.start_due()
        (ev,) = office.begun.get(timeout=PATIENCE)
        assert "tea" == ev.id
        assert pytest.approx(0.2, abs=0.01) == ev.lateness_ms
        assert None is office.dispatcher.next_start()

    def test_leaves_its_thread_free_until_it_is_due(self, office, clock):
        """Events that are due before can use the thread."""
        office = office()
        office.accept(ahead(15, id="later"))
        assert 1 == office.dispatcher.room()
        (ev,) = office.begin(claim(id="now"))
        assert "now" == ev.id

    def test_starts_due_events_as_one_batch(self, office, clock):
        """A handler receives all events that are due, up to ``max_events``."""
        office = office(max_events=2)
        office.accept(*[ahead(ms, id=f"{ms}") for ms in (5, 3, 4)])
        clock.now += 0.006
        office.dispatcher.start_due()
        assert ["3", "4"] == [ev.id for ev in office.begun.get(timeout=PATIENCE)]

    def test_waits_for_a_thread_if_all_are_busy(self, office, clock):
        """A thread may be free within milliseconds."""
        office = office()
        office.accept(ahead(5, id="later"))
        office.begin(claim(id="now"))
        clock.now += 0.006
        office.dispatcher.start_due()
        assert 1 == len(office.dispatcher.early)
        office.go_on.release()
        assert ["later"] == [ev.id for ev in office.begun.get(timeout=PATIENCE)]

    def test_releases_an_event_if_no_thread_is_free_within_20_ms(self, office, clock):
        """The grace is the look-ahead time. The release costs no attempt."""
        office = office(look_ahead=20)
        office.accept(ahead(5, id="later"))
        office.begin(claim(id="now"))
        clock.now += 0.025
        assert clock.now == pytest.approx(office.dispatcher.next_start(), abs=1e-6)
        clock.now += 0.001
        assert office.dispatcher.start_due()
        (settlement,) = office.dispatcher.take_settlements()
        assert ("later", Verdict.RELEASE) == (settlement.id, settlement.verdict)
        assert None is office.dispatcher.next_start()

    def test_keeps_an_event_for_a_second_if_there_is_no_other_node(self, office, clock):
        """
        A released event would come back to this node, at the cost of two claims.

        The time is limited, because a kept event cannot be cancelled.
        """
        office = office(look_ahead=20)
        office.alone = [True] * 4
        office.begin(claim())
        office.accept(claim(id="kept"))
        for seconds in (0.03, 0.96):
            clock.now += seconds
            assert not office.dispatcher.start_due()
            assert not office.dispatcher.start_due()
        assert 2 == len(office.alone), "asked more than once within 20 ms"
        assert clock.now + 0.01 == pytest.approx(office.dispatcher.next_start(), abs=1e-6)
        clock.now += 0.02
        assert office.dispatcher.start_due()
        assert ["kept"] == [s.id for s in office.dispatcher.take_settlements()]

    def test_releases_a_kept_event_within_20_ms_of_a_pause_or_a_join(self, office, clock):
        """
        Another node may have a free thread, and after a pause no event may start. The claimer wakes
        in time to ask the store.
        """
        office = office(look_ahead=20)
        office.begin(claim())
        office.accept(claim())
        clock.now += 0.02
        office.alone = [True, False]
        assert not office.dispatcher.start_due()
        assert clock.now + 0.02 == pytest.approx(office.dispatcher.next_start(), abs=1e-6)
        clock.now += 0.021
        assert office.dispatcher.start_due()
        assert 1 == len(office.dispatcher.take_settlements())

    @pytest.mark.parametrize(("seconds", "starts"), [(0.9, True), (1.1, False)])
    def test_starts_no_event_that_has_expired_meanwhile(self, office, monkeypatch, seconds, starts):
        """An event that expired while it waited for a thread is released; the server buries it."""
        office = office(lease=600_000)
        (first,) = office.begin(claim())
        waits = replace(claim(id="waits"), expires_us=3_000 + 1_000_000)
        office.accept(waits)
        later = lasting() + seconds
        monkeypatch.setattr("dtimer.engine.dispatcher.lasting", lambda: later)
        office.go_on.release(2)
        if starts:
            assert ["waits"] == [ev.id for ev in office.begun.get(timeout=PATIENCE)]
        eventually(lambda: office.dispatcher.running == 0)
        settled = [(s.id, s.verdict) for s in office.dispatcher.take_settlements()]
        end = Verdict.CONFIRM if starts else Verdict.RELEASE
        assert [(first.id, Verdict.CONFIRM), ("waits", end)] == settled

    def test_releases_an_event_if_the_store_cannot_tell_whether_it_is_alone(self, office, clock):
        """There may be other nodes."""
        office = office(look_ahead=20)
        office.alone = []
        office.begin(claim())
        office.accept(claim())
        clock.now += 0.02
        assert office.dispatcher.start_due()

    def test_claims_less_after_a_release(self, office, clock):
        """Releases mean that handlers are slower than estimated."""
        office = office(look_ahead=20)
        prefetch = office.dispatcher.prefetch
        for _ in range(6):
            prefetch.answered(1, 1, overdue=True)
        prefetch.took(1e-6)
        office.accept(ahead(5, id="later"))
        office.begin(claim(id="now"))
        assert prefetch.batches > 1
        clock.now += 0.026
        assert office.dispatcher.start_due()
        assert 1 == prefetch.batches

    def test_counts_a_kept_event_as_too_much_only_once(self, office, clock):
        """Repeated checks of the same event must not lower the estimate further."""
        office = office(look_ahead=20)
        office.alone = [True]
        office.begin(claim())
        office.accept(claim(), claim())
        clock.now += 0.02
        office.dispatcher.start_due()
        took = office.dispatcher.prefetch._took
        for _ in range(5):
            office.dispatcher.start_due()
        assert took == office.dispatcher.prefetch._took

    def test_releases_an_event_whose_lease_expired_while_the_machine_slept(
        self, office, clock, monkeypatch
    ):
        """Another node may have claimed it since."""
        office = office(lease=1_000)
        office.accept(ahead(5, id="tea"))
        past = lasting() + 2.0
        monkeypatch.setattr("dtimer.engine.dispatcher.lasting", lambda: past)
        clock.now += 0.006
        assert office.dispatcher.start_due()
        (settlement,) = office.dispatcher.take_settlements()
        assert ("tea", Verdict.RELEASE) == (settlement.id, settlement.verdict)
        assert 0 == office.dispatcher.running

    def test_releases_waiting_and_later_events_when_leaving(self, office, clock):
        """Otherwise they would wait for the end of their lease."""
        office = office()
        office.accept(ahead(5, id="one"))
        office.dispatcher.hand_back()
        office.accept(ahead(5, id="two"))
        eventually(lambda: office.dispatcher.running == 0)
        settled = office.dispatcher.take_settlements()
        assert [("one", Verdict.RELEASE), ("two", Verdict.RELEASE)] == [
            (s.id, s.verdict) for s in settled
        ]

    def test_keeps_the_order_if_a_post_is_refused(self, office, clock):
        """
        After a refused post the event of that id is the same as before. It is released, and with a
        single thread so are all events that would otherwise start before it.
        """
        office = office()
        office.accept(ahead(5, id="a"), ahead(6, id="b"))
        assert office.dispatcher.drop(["a"])
        assert ["a", "b"] == [s.id for s in office.dispatcher.take_settlements()]
        office.dispatcher.reposts.begin(1)
        office.dispatcher.reposts.add(["c"])
        office.accept(claim(id="c"), claim(id="d"))
        assert ["c", "d"] == [s.id for s in office.dispatcher.take_settlements()]

    @pytest.mark.parametrize("threads", [1, 2])
    def test_an_interrupted_post_leaves_no_lease_that_never_ends(self, office, threads):
        """
        An exception interrupts the release of the events that a post has replaced. Each is kept,
        released, or no longer renewed.
        """

        class Alarm(Exception):
            pass

        def ring():
            raise Alarm

        for n in each_bytecode():
            made = office(start=False, concurrency=threads)
            made.accept(ahead(5, id="a"), ahead(6, id="b"))
            interruption = Interruption(n, ring, raises=True)
            with contextlib.suppress(Alarm):
                interruption.during(lambda made=made: made.dispatcher.drop(["a"]))
            if interruption.where is None:
                break
            kept = made.dispatcher.early.holds()
            assert [] == [h for h in made.dispatcher.held() if h not in kept], interruption.where
        assert n > 5

    def test_does_not_start_an_event_that_this_process_replaced(self, office, clock):
        """The posting thread does not claim, as a free handler thread would."""
        office = office(concurrency=2)
        office.accept(ahead(5, id="a"), ahead(6, id="b"))
        assert office.dispatcher.drop(["a"])
        assert not office.dispatcher.drop(["a", "c"])
        assert (0, 1) == (office.rings, len(office.dispatcher.early))
        clock.now += 0.007
        office.dispatcher.start_due()
        assert ["b"] == [ev.id for ev in office.begun.get(timeout=PATIENCE)]

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
