"""The dispatcher and its holds: what is held, by whom, and how each claim ends, once."""

from __future__ import annotations

import itertools
import json
import queue
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from servers import PATIENCE, eventually

from dtimer.engine.book import MOST_SETTLEMENTS
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
    """Settles and extends as the test says."""

    def __init__(self):
        self.settled = []
        self.extended = []
        self.at_least = []  # of each extension, whether it must not shorten
        self.results = queue.SimpleQueue()
        self.asked = threading.Event()
        self.trouble = None  # raised by extensions
        self.answer = None  # an event to wait for before it answers

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
    """A dispatcher, its handler in the hands of the test, and all that it says."""

    def __init__(self, clock, **options):
        self.clock = clock
        self.ledger = FakeLedger()
        self.said = queue.SimpleQueue()
        self.begun = queue.SimpleQueue()
        self.go_on = threading.Semaphore(0)
        self.raised = []
        self.rings = 0
        self.alone = [False] * 100  # what the store answers to who asks whether others are there
        self.quits = 0
        self.dispatcher = Dispatcher(
            "dtimer-test",
            node="test",
            options=validate(options),
            handle=self._handle,
            announce=lambda *what: self.said.put(what),
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
        # As the claimer does, and the hand in its place.
        self.dispatcher.start_due()

    def _quit(self):
        self.quits += 1

    def accept(self, *claims):
        """Have claims handed over, or kept, as an answer of this moment brought them."""
        self.dispatcher.accept(1, claims, self.clock.now, self.clock.now)

    def begin(self, *claims):
        """Have claims handled, and return the events of the first batch."""
        self.accept(*claims)
        return self.begun.get(timeout=PATIENCE)

    def finish(self):
        """Let the handlers end, and return what is to be settled."""
        self.go_on.release(100)
        eventually(lambda: self.dispatcher.running == 0)
        return self.dispatcher.take_settlements()

    def saying(self):
        """What has been said so far."""
        return [self.said.get() for _ in range(self.said.qsize())]


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock of what is kept until it is due, moved by the test."""
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


class TestHands:
    """Who starts what, and when."""

    def test_room(self, office):
        """There is room for what free hands can start: batches for hands, never over 100."""
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

    def test_batches(self, office):
        """Claims are handed out in their order, max_events at a time."""
        office = office(max_events=2)
        claims = [claim(json.dumps({"n": n}).encode()) for n in range(5)]
        first = office.begin(*claims)
        office.go_on.release(3)
        rest = [office.begun.get(timeout=PATIENCE) for _ in range(2)]
        assert [[0, 1], [2, 3], [4]] == [[ev["n"] for ev in batch] for batch in [first, *rest]]
        assert [(c.id, c.token, Verdict.CONFIRM) for c in claims] == summary(office.finish())

    def test_the_event(self, office):
        """An event has what the claim says of it; its lateness is what the server saw."""
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

    def test_never_early(self, office):
        """An event claimed before a step back of the clock, and told of after it, is not early."""
        (ev,) = office().begin(replace(claim(), claimed_us=-3_600_000_000))
        assert 0 == ev.lateness_ms

    def test_at_once_by_all_hands(self, office):
        """As many handlers run at a time as there are hands."""
        office = office(concurrency=5)
        office.accept(*[claim() for _ in range(7)])
        for _ in range(5):
            office.begun.get(timeout=PATIENCE)
        assert (5, 2) == (office.dispatcher.running, len(office.dispatcher.early))
        assert office.begun.empty()
        assert 7 == len(office.finish())

    def test_a_free_hand_rings(self, office):
        """When a hand gets free the bell is rung, its settlement being there to be taken."""
        office = office()
        found = []
        office.dispatcher._ring = lambda: found.append(office.dispatcher.unsettled)
        office.begin(claim())
        office.finish()
        eventually(lambda: [True] == found)

    def test_nobody_to_handle(self, office):
        """Where the last listener has gone, events are released, not confirmed."""
        office = office()
        office.raised = None
        office.begin(claim())
        (settlement,) = office.finish()
        assert Verdict.RELEASE is settlement.verdict

    def test_whatever_is_raised(self, office):
        """
        A hand outlives what its handler raises, also where the node breaks on it: then the
        events are failed, or else they would be renewed, and never handled, for ever.
        """
        office = office()

        def broken(events):
            raise MemoryError

        office.dispatcher._handle, handle = broken, office.dispatcher._handle
        first = claim()
        office.accept(first)
        what, error = office.said.get(timeout=PATIENCE)
        assert ("error", MemoryError) == (what, type(error))
        office.dispatcher._handle = handle
        second = claim()
        office.begin(second)
        assert [
            (first.id, first.token, Verdict.RETRY),
            (second.id, second.token, Verdict.CONFIRM),
        ] == summary(office.finish())
        assert [] == office.dispatcher.held()

    def test_claims_that_cannot_be_handed_over(self, office, monkeypatch):
        """
        What fails on its way to a hand is held no more: nobody would start it, so its lease has
        to end. That hand is free again, for what comes after it.
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
    """A dispatcher whose hands were not started: the caller lends his."""

    def test_one_batch_at_a_time(self, office):
        """Each call runs one batch on the caller's thread, and says whether there was one."""
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


class TestHandingBack:
    """What a node that leaves does with what it holds."""

    def test_what_nobody_has_started(self, office):
        """What waits for a hand is released, and the hands that run are left to end."""
        office = office()
        running, *waiting = (claim() for _ in range(3))
        office.begin(running, *waiting)
        office.dispatcher.hand_back()
        assert [(c.id, c.token, Verdict.RELEASE) for c in waiting] == summary(
            office.dispatcher.take_settlements()
        )
        assert [(running.id, running.token, Verdict.CONFIRM)] == summary(office.finish())

    def test_what_comes_too_late(self, office):
        """After hand_back() nothing is started any more, also where a hand is free."""
        office = office()
        office.dispatcher.hand_back()
        late = claim()
        office.accept(late)
        eventually(lambda: office.dispatcher.running == 0)
        assert [(late.id, late.token, Verdict.RELEASE)] == summary(
            office.dispatcher.take_settlements()
        )
        assert office.begun.empty()

    def test_abandon(self, office):
        """
        What still runs is given back with its attempt charged; the handler can see it, its
        confirm is void, and its end changes nothing.
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

    def test_stop(self, office):
        """stop() sends each hand home when it has finished; join() tells whether all are."""
        office = office(concurrency=2)
        office.begin(claim())
        office.dispatcher.stop()
        assert not office.dispatcher.join(0)
        office.go_on.release()
        assert office.dispatcher.join(PATIENCE)
        assert not office.dispatcher.current

    def test_waits_for_idle_threads_beside_one_that_runs_a_handler(self, office):
        """
        A handler that is given up leaves its own thread behind, and no other: those that are
        idle are waited for, however long the machine takes to end them.
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
    """Each claim ends once."""

    def test_confirmed_by_the_handler(self, office):
        """What the handler has confirmed itself its hand does not confirm again."""
        office = office(max_events=2)
        first, second = office.begin(claim(), claim())
        assert first.confirm() is True
        assert [(second.id, second.token, Verdict.CONFIRM)] == summary(office.finish())
        assert [(first.id, first.token, Verdict.CONFIRM)] == summary(office.ledger.settled)

    def test_a_confirm_that_fails_is_the_hands(self, office):
        """A confirm that could not be recorded is recorded when the handler has ended."""
        office = office()
        (ev,) = office.begin(claim())
        office.ledger.results.put(StoreError("no reply"))
        with pytest.raises(StoreError):
            ev.confirm()
        assert [(ev.id, ev.token, Verdict.CONFIRM)] == summary(office.finish())

    def test_a_confirm_under_way_when_the_handler_ends(self, office):
        """
        A handler ends while another thread confirms its event. When that fails the hand
        confirms; nobody renews for ever what nobody works on.
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
        monkeypatch.setattr("dtimer.engine.hold.Hold._patience", 0.0)
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

    def test_two_confirms_at_once(self, office):
        """Of two threads that confirm at once the second waits for what comes of the first."""
        office = office()
        (ev,) = office.begin(claim())
        office.ledger.answer = threading.Event()
        office.ledger.results.put(Result.STALE)
        told = []
        crew = [threading.Thread(target=lambda: told.append(ev.confirm())) for _ in range(2)]
        for thread in crew:
            thread.start()
        assert office.ledger.asked.wait(PATIENCE)
        office.ledger.answer.set()
        for thread in crew:
            thread.join(PATIENCE)
        assert [False, False] == told
        assert 1 == len(office.ledger.settled)
        assert [] == office.finish()

    def test_what_a_turn_made_of_it(self, office):
        """'retry', 'buried' and 'lease_lost' tell what became of the events of a batch."""
        office = office(max_events=5)
        office.raised = [ValueError("no")]
        events = office.begin(*(claim() for _ in range(4)))
        settlements = office.finish()
        assert [Verdict.RETRY] * 4 == [s.verdict for s in settlements]
        ((what, error),) = office.saying()
        assert "error" == what
        assert isinstance(error, HandlerError)
        assert events == error.events
        results = [Result.DONE, Result.DEAD, Result.CANCELLED, Result.STALE]
        office.dispatcher.settled(settlements, results)
        retry, buried, lost, error = office.saying()
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
        assert [] == office.saying()

    def test_what_this_process_has_posted_anew(self, office):
        """That an event is gone which this process replaced itself is no news to it."""
        office = office(max_events=3)
        events = office.begin(*(claim() for _ in range(3)))
        office.dispatcher.superseded({events[0].id, events[1].id})
        first = office.dispatcher.held()[0]
        office.dispatcher.lose(first)
        settlements = office.finish()
        office.dispatcher.settled(settlements, [Result.STALE] * 3)
        said = office.saying()
        assert ["lease_lost", "error"] == [what for what, _ in said]
        assert events[2] is said[0][1]
        assert all(ev.lease_lost for ev in events)

    def test_releasing_what_is_gone(self, office):
        """That an event which was handed back was gone already is no news."""
        office = office(start=False)
        office.accept(claim())
        office.dispatcher.hand_back()
        settlements = office.dispatcher.take_settlements()
        office.dispatcher.settled(settlements, [Result.STALE])
        assert [] == office.saying()
        assert [] == office.dispatcher.held()

    def test_a_corrupt_payload(self, office):
        """A payload that is none is buried unhandled, and 'buried' tells; the rest goes on."""
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
        assert [("buried", bad.id)] == office.saying()
        assert [(good.id, good.token, Verdict.CONFIRM)] == summary(office.finish())

    def test_two_that_raise(self, office):
        """The batch is retried once; 'error' gets each of the exceptions."""
        office = office()
        office.raised = [ValueError("one"), SystemExit("two")]
        office.begin(claim())
        (settlement,) = office.finish()
        assert "ValueError: one" in settlement.error
        assert [ValueError, SystemExit] == [type(e.__cause__) for _, e in office.saying()]
        assert 1 == office.quits

    def test_the_text_of_an_error(self, office):
        """It is the end of the traceback, bounded, and can be written as UTF-8."""
        office = office()
        office.raised = [ValueError("\ud800" + "x" * 5_000 + "\udfff the end")]
        office.begin(claim())
        (settlement,) = office.finish()
        assert settlement.error.encode().endswith(b"x\\udfff the end\n")
        assert len(settlement.error) < 2_100

    def test_many_at_once(self, office):
        """No more settlements ride on a turn than a short script can take."""
        office = office(start=False)
        for _ in range(4):
            office.accept(*[claim(b"") for _ in range(100)])
        assert MOST_SETTLEMENTS == len(office.dispatcher.take_settlements())
        assert office.dispatcher.unsettled
        assert 400 - MOST_SETTLEMENTS == len(office.dispatcher.take_settlements())
        assert not office.dispatcher.unsettled

    def test_bounds_the_bytes_of_the_errors_in_a_turn(self, office):
        """A slow connection sends the errors of a large batch in several turns, and all of them."""
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


class TestHolding:
    """Which leases are renewed, and until when one may be believed."""

    def test_what_runs_is_renewed(self, office):
        """What runs, or is about to, is held; what is settled is not."""
        office = office(max_events=2)
        first, second = office.begin(claim(), claim(), claim())
        assert 3 == len(office.dispatcher.held())
        first.confirm()
        assert [second.id] == [h.claim.id for h in office.dispatcher.held()][:1]
        assert 2 == len(office.dispatcher.held())
        office.finish()
        assert [] == office.dispatcher.held()

    def test_theirs_to_confirm(self, office):
        """With auto_confirm=False nothing is renewed or settled once the handler is gone."""
        office = office(auto_confirm=False)
        (ev,) = office.begin(claim())
        assert 1 == len(office.dispatcher.held())
        assert [] == office.finish()
        assert [] == office.dispatcher.held()
        assert ev.confirm() is True

    def test_max_run(self, office):
        """What overruns max_run is renewed no more, and counts as stuck."""
        office = office(max_run=10_000, max_events=2)
        office.begin(claim(), claim())
        assert (2, 0) == (len(office.dispatcher.held()), office.dispatcher.stuck())
        for hold in office.dispatcher.held():
            hold.started -= 11
        assert (0, 2) == (len(office.dispatcher.held()), office.dispatcher.stuck())

    def test_believed(self, office):
        """A lease is believed for nine tenths of it, from the moment it was asked for."""
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
        assert hold.lose()
        assert not hold.lose()
        assert ev.lease_lost

    def test_a_lost_lease_is_told_once(self, office):
        """That a lease could not be renewed is told once, however often it is found."""
        office = office()
        (ev,) = office.begin(claim())
        (hold,) = office.dispatcher.held()
        office.dispatcher.lose(hold)
        office.dispatcher.lose(hold)
        assert [("lease_lost", ev)] == office.saying()

    def test_extend(self, office):
        """ev.extend() renews at once, and later renewals ask for no less than it did."""
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

    def test_an_extension_shortens_nothing_while_the_handler_runs(self, office):
        """
        A handler that asks for less than is left of its lease keeps what is left: or a second
        node would start the event while the first still works on it. The server decides what
        is left; here the belief in it, and what the next heartbeat asks for, stay.
        """
        office = office(lease=10_000)
        (ev,) = office.begin(claim())
        (hold,) = office.dispatcher.held()
        assert ev.extend(60_000) is True
        believed = hold._believed_until
        assert ev.extend(300) is True
        assert [True, True] == office.ledger.at_least
        assert believed == hold._believed_until
        assert 59_000_000 < hold.lease_us(time.monotonic())

    def test_an_extension_is_exact_once_the_handler_has_returned(self, office):
        """Work that outlives its handler holds the event for as long as it says, and no longer."""
        office = office(lease=10_000, auto_confirm=False)
        (ev,) = office.begin(claim())
        (hold,) = office.dispatcher.held()
        office.finish()
        assert ev.extend(60_000) is True
        assert ev.extend(300) is True
        assert [False, False] == office.ledger.at_least
        assert hold._believed_until < lasting() + 1
        assert 10_000_000 == hold.lease_us(time.monotonic())

    @pytest.mark.parametrize("error", [StoreError("no"), OutcomeUnknown("perhaps")])
    def test_an_extension_that_was_not_done_is_not_renewed(self, office, error):
        """Heartbeats hold the event for longer only if the extension may have been done."""
        office = office(lease=10_000)
        (ev,) = office.begin(claim())
        (hold,) = office.dispatcher.held()
        office.ledger.trouble = error
        with pytest.raises(type(error)):
            ev.extend(60_000)
        unknown = isinstance(error, OutcomeUnknown)
        assert unknown == (hold.lease_us(time.monotonic()) > 10_000_000)

    def test_extend_what_is_settled(self, office):
        """What is settled cannot be extended, and nobody is asked."""
        office = office()
        (ev,) = office.begin(claim())
        ev.confirm()
        assert ev.extend(1_000) is False
        assert [] == office.ledger.extended

    def test_retry_with_a_bad_delay(self, office):
        """A delay that is none is refused before anything is settled."""
        office = office()
        (ev,) = office.begin(claim())
        with pytest.raises(OptionError):
            ev.retry("soon")
        assert ev.retry(1_500) is True
        (settlement,) = office.ledger.settled
        assert (Verdict.RETRY, 1_500_000) == (settlement.verdict, settlement.wait_us)
        assert ev.confirm() is False
        assert [("retry", ev)] == office.saying()


def ahead(ms, **more):
    """A claim that is due so many ms after it was made."""
    made = claim(**more)
    return replace(made, due_us=made.claimed_us + round(ms * 1000))


class TestInOrder:
    """One thread starts events in the order of their due times, whatever is released."""

    @pytest.mark.parametrize(("threads", "released"), [(1, "abc"), (2, "ab")])
    def test_a_release_takes_with_it_what_is_due_later(self, office, clock, threads, released):
        """
        What was claimed after the event that is released would start before it. With several
        threads there is no order to keep, and each event is kept as long as any other.
        """
        office = office(look_ahead=20, concurrency=threads)
        office.accept(*(claim(id=f"0{n}") for n in range(threads)), claim(id="a"), claim(id="b"))
        clock.now += 0.02
        office.dispatcher.early.add([hold_of(office, ahead(0, id="c"))], clock.now)
        assert office.dispatcher.start_due()
        settlements = office.dispatcher.take_settlements()
        assert list(released) == sorted(s.id for s in settlements)
        assert {Verdict.RELEASE} == {s.verdict for s in settlements}

    def test_a_release_takes_with_it_what_is_on_its_way(self, office, clock):
        """
        What a claim brings that was sent before the release is later, too. What is claimed by
        the turn that carries the release is not: there the server chooses in order.
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

    def test_claims_nothing_before_all_is_released(self, office, clock):
        """Where a turn cannot carry all that is released, it claims nothing."""
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

    def test_an_event_without_a_listener_takes_with_it_the_rest(self, office, clock):
        """A batch that found no listener is released; if one comes, it does not come too late."""
        office = office(look_ahead=20)
        office.begin(claim(id="a"))
        office.accept(claim(id="b"))
        office.raised = None
        assert ["a", "b"] == [s.id for s in office.finish()]

    def test_ties_go_by_id(self, office):
        """Events of one due time start in the order of their ids, whichever was claimed first."""
        office = office(max_events=3)
        office.begin(claim())
        for id in "cab":
            office.accept(claim(id=id))
        office.go_on.release()
        assert ["a", "b", "c"] == [ev.id for ev in office.begun.get(timeout=PATIENCE)]


def hold_of(office, made):
    """A hold on a claim, as the dispatcher makes it."""
    hold = office.dispatcher._hold(made, lasting() + 100)
    office.dispatcher._hold_on([hold])
    return hold


class TestAhead:
    """What was claimed ahead of its time."""

    def test_when_it_is_due(self, office, clock):
        """It is handed out when the time that it had left has passed since the reply."""
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

    def test_takes_no_hand_until_then(self, office, clock):
        """Until then its hand is free for what is due before."""
        office = office()
        office.accept(ahead(15, id="later"))
        assert 1 == office.dispatcher.room()
        (ev,) = office.begin(claim(id="now"))
        assert "now" == ev.id

    def test_together(self, office, clock):
        """What has become due by then is handed out together, as much as a handler takes."""
        office = office(max_events=2)
        office.accept(*[ahead(ms, id=f"{ms}") for ms in (5, 3, 4)])
        clock.now += 0.006
        office.dispatcher.start_due()
        assert ["3", "4"] == [ev.id for ev in office.begun.get(timeout=PATIENCE)]

    def test_waits_for_a_hand(self, office, clock):
        """Due while all hands are busy it waits for one."""
        office = office()
        office.accept(ahead(5, id="later"))
        office.begin(claim(id="now"))
        clock.now += 0.006
        office.dispatcher.start_due()
        assert 1 == len(office.dispatcher.early)
        office.go_on.release()
        assert ["later"] == [ev.id for ev in office.begun.get(timeout=PATIENCE)]

    def test_not_for_long(self, office, clock):
        """For a hand it waits as long as it may be claimed ahead, and then goes back uncharged."""
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

    def test_keeps_it_for_a_second_without_another_node(self, office, clock):
        """
        A node without others keeps what finds no hand: released, it would come back to this
        node, by two more turns. Not for ever, because until then it cannot be cancelled.
        """
        office = office(look_ahead=20)
        office.alone = [True, True]
        office.begin(claim())
        office.accept(claim(id="kept"))
        for seconds in (0.03, 0.96):
            clock.now += seconds
            assert not office.dispatcher.start_due()
        assert clock.now + 0.01 == pytest.approx(office.dispatcher.next_start(), abs=1e-6)
        clock.now += 0.02
        assert office.dispatcher.start_due()
        assert ["kept"] == [s.id for s in office.dispatcher.take_settlements()]
        assert 1 == len(office.alone), "it is asked once in a second"

    def test_releases_it_as_soon_as_another_node_is_there(self, office, clock):
        """What is kept is released to a node that has joined meanwhile, within a second."""
        office = office(look_ahead=20)
        office.begin(claim())
        office.accept(claim())
        clock.now += 0.02
        office.alone = [True, False]
        assert not office.dispatcher.start_due()
        office.dispatcher._peers._believed_until = clock.now
        assert office.dispatcher.start_due()
        assert 1 == len(office.dispatcher.take_settlements())

    def test_releases_it_if_the_store_does_not_say_who_is_there(self, office, clock):
        """Where it cannot be asked whether others are there, others may be there."""
        office = office(look_ahead=20)
        office.alone = []
        office.begin(claim())
        office.accept(claim())
        clock.now += 0.02
        assert office.dispatcher.start_due()

    def test_given_back_is_too_much(self, office, clock):
        """Where something had to be given back less is claimed for each hand from then on."""
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

    def test_what_is_kept_is_too_much_once(self, office, clock):
        """What is kept for a slow handler is too much: once, however often that is seen."""
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

    def test_after_a_long_sleep(self, office, clock, monkeypatch):
        """A machine that was suspended meanwhile does not start what may be another's by now."""
        office = office(lease=1_000)
        office.accept(ahead(5, id="tea"))
        past = lasting() + 2.0
        monkeypatch.setattr("dtimer.engine.dispatcher.lasting", lambda: past)
        clock.now += 0.006
        assert office.dispatcher.start_due()
        (settlement,) = office.dispatcher.take_settlements()
        assert ("tea", Verdict.RELEASE) == (settlement.id, settlement.verdict)
        assert 0 == office.dispatcher.running

    def test_at_the_end(self, office, clock):
        """A node that leaves gives it back, also what it is told of later."""
        office = office()
        office.accept(ahead(5, id="one"))
        office.dispatcher.hand_back()
        office.accept(ahead(5, id="two"))
        eventually(lambda: office.dispatcher.running == 0)
        settled = office.dispatcher.take_settlements()
        assert [("one", Verdict.RELEASE), ("two", Verdict.RELEASE)] == [
            (s.id, s.verdict) for s in settled
        ]

    def test_posted_anew(self, office, clock):
        """
        What this process posts anew before it was started is not started any more. It is not for
        the thread that has posted it to take the turn, as a hand would that is rung for.
        """
        office = office()
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
    def test_how_far(self, options, expected):
        """As far as the option says; a tenth of a lease at most; never by a test's clock."""
        assert expected == ahead_us(validate(options))
