"""
The dispatcher: which events start, wait or are released, and when. No thread runs.

A batch that has begun waits in the pool, and keeps its thread busy, until the test runs it.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from interrupted import Alarm, at_each_bytecode, raise_alarm
from seats import CycleHarness, claim, summary

from dtimer.engine.clock import boottime
from dtimer.engine.leases import MOST_SETTLEMENTS
from dtimer.engine.lookahead import ahead_us
from dtimer.model.claims import Verdict
from dtimer.model.options import validate


class DispatcherHarness(CycleHarness):
    """A dispatcher whose batches the test runs."""

    def __init__(self, clock, **options):
        super().__init__(**options)
        self.clock = clock
        self.pool.claimer = self
        self.unheard = False  # True if no listener is left
        self.freed = 0  # how often a handler thread became free
        self.answers = []  # whether this is the only node; without an answer the store fails
        self.store.alone = lambda: self.answers.pop(0)

    def deliver(self, events, results):
        super().deliver(events, results)
        return None if self.unheard else []

    def claim_inline(self):
        self.freed += 1
        self.dispatcher.start_due()  # as the claimer does

    def accept(self, *claims):
        """Pass claims to the dispatcher, as a reply received at this moment."""
        leases = self.leases.grant(claims, self.clock.now)
        self.dispatcher.accept(leases, 1, self.clock.now)

    def begun(self):
        """Return the ids of the batches that have begun, in their order."""
        batches = []
        while batch := self.pool.take_back():
            batches.append([lease.claim.id for lease in batch])
        return batches

    def finish(self):
        """Run all batches; return the settlements."""
        while self.pool.run_one():
            pass
        return self.leases.take_settlements()

    def released(self):
        """Return the ids of the released events; no others are settled."""
        settlements = self.leases.take_settlements()
        assert {s.verdict for s in settlements} <= {Verdict.RELEASE}
        return [s.id for s in settlements]


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock of events that wait for their due time, moved by the test."""
    clock = SimpleNamespace(now=time.monotonic())
    stepped = SimpleNamespace(monotonic=lambda: clock.now)
    for module in ("lookahead", "peers"):
        monkeypatch.setattr(f"dtimer.engine.{module}.time", stepped)
    return clock


@pytest.fixture
def make(clock):
    """A function: return a harness with these options."""
    return lambda **options: DispatcherHarness(clock, **options)


@pytest.fixture
def harness(make):
    return make()


class TestStarting:
    """Which events begin on a free thread."""

    @pytest.mark.parametrize(
        ("max_events", "busy", "slots"),
        [(2, 0, 6), (2, 2, 2), (2, 3, 0), (80, 2, 80), (80, 1, 100), (100, 0, 100)],
    )
    def test_has_room_for_a_batch_per_free_thread_up_to_100_events(
        self, make, max_events, busy, slots
    ):
        """A larger claim would fetch events that no thread can start."""
        harness = make(concurrency=3, max_events=max_events)
        harness.pool.busy = busy
        assert slots == harness.dispatcher.free_slots()

    @pytest.mark.parametrize(("look_ahead", "batches"), [(4, 1), (5, 2)])
    def test_claims_in_advance_only_if_events_may_wait_for_5_ms(self, make, look_ahead, batches):
        """With a shorter look-ahead, an event would be released before it could start."""
        batching = make(look_ahead=look_ahead).batching
        batching.handler_took(1e-6)
        batching.claim_answered(1, 1, overdue=True)
        assert batches == batching.batches

    def test_starts_events_in_the_order_of_claims_max_events_at_a_time(self, make):
        """A handler receives at most ``max_events`` events."""
        harness = make(max_events=2)
        claims = [claim() for _ in range(5)]
        harness.accept(*claims)
        settlements = harness.finish()
        ids = [c.id for c in claims]
        assert [ids[:2], ids[2:4], ids[4:]] == harness.handled
        assert [(c.id, c.token, Verdict.CONFIRM) for c in claims] == summary(settlements)

    def test_further_events_wait_in_the_look_ahead_queue(self, make):
        """A thread that becomes free takes them from there."""
        harness = make(concurrency=5)
        harness.accept(*(claim() for _ in range(7)))
        assert (5, 2) == (harness.pool.busy, len(harness.dispatcher.lookahead))
        assert 7 == len(harness.finish())

    def test_a_settlement_is_stored_before_its_thread_is_free(self, harness):
        """The next claim of the free thread must carry the settlement."""
        unsettled = []
        harness.claim_inline = lambda: unsettled.append(harness.leases.unsettled)
        harness.accept(claim())
        harness.finish()
        assert [True] == unsettled

    def test_drops_the_lease_of_a_batch_that_cannot_be_enqueued(self, make):
        """
        No thread will start these events, so their lease must end. The thread that was reserved for
        them must be free for later events.
        """
        harness = make(concurrency=3)
        batches = []

        class Full:
            def put(self, batch):
                if batches:
                    raise MemoryError
                batches.append(batch)

        inbox, harness.pool._inbox = harness.pool._inbox, Full()
        first, second, third = claim(), claim(), claim()
        with pytest.raises(MemoryError):
            harness.accept(first, second, third)
        harness.pool._inbox = inbox
        assert [first.id, third.id] == [lease.claim.id for lease in harness.leases.held()]
        assert 1 == harness.pool.busy
        assert [second.id] == harness.released()
        harness.dispatcher.start_due()
        assert [[third.id]] == harness.begun()


class TestLeaving:
    """The events that a leaving node still holds."""

    def test_releases_waiting_events_and_lets_running_ones_finish(self, harness):
        """Other nodes can start the waiting events at once, also those of a later reply."""
        running, *waiting = (claim() for _ in range(3))
        harness.accept(running, *waiting, claim(ahead_ms=5, id="ahead"))
        (batch,) = (harness.pool.take_back(),)  # a handler has begun
        harness.dispatcher.release_waiting()
        harness.accept(claim(id="late"), claim(ahead_ms=5, id="later"))
        assert [*(c.id for c in waiting), "ahead", "late", "later"] == harness.released()
        harness.leases.settle_as(batch, Verdict.CONFIRM)
        assert [(running.id, running.token, Verdict.CONFIRM)] == summary(harness.finish())
        assert [] == harness.begun()

    def test_releases_a_batch_that_no_thread_has_begun(self, make):
        """Its thread is free again, and the node can end."""
        harness = make(max_events=2)
        harness.accept(claim(id="a"), claim(id="b"))
        assert 1 == harness.pool.busy
        harness.dispatcher.release_waiting()
        assert ["a", "b"] == harness.released()
        assert 0 == harness.pool.busy


class TestOrder:
    """A single thread starts events in the order of their due times, even if some are released."""

    @pytest.mark.parametrize(("threads", "released"), [(1, "abc"), (2, "ab")])
    def test_a_release_includes_all_later_events_if_there_is_one_thread(
        self, make, clock, threads, released
    ):
        """
        The later events would otherwise start before the released one.

        Several threads keep no order, so only the events that have waited too long are released.
        """
        harness = make(look_ahead=20, concurrency=threads)
        harness.accept(*(claim(id=f"0{n}") for n in range(threads)), claim(id="a"), claim(id="b"))
        clock.now += 0.02
        later = harness.leases.grant([claim(ahead_ms=0, id="c")], clock.now)
        harness.dispatcher.lookahead.add(later, clock.now)
        assert harness.dispatcher.start_due()
        assert list(released) == sorted(harness.released())

    def test_a_release_includes_the_events_of_a_claim_under_way(self, make, clock):
        """
        The events of a claim that was sent before the release are due after the released event.

        Those of the claim that carries the release are kept: the server has released the event
        first, and has then chosen in the order of due times.
        """
        harness = make(look_ahead=20)
        harness.accept(claim())
        harness.accept(claim(id="a"))
        clock.now += 0.02
        assert harness.dispatcher.start_due()
        assert 0 == harness.dispatcher.claim_size_while_busy(1, 1, 1, 100)
        harness.accept(claim(id="b"))
        assert ["a", "b"] == harness.released()
        harness.accept(claim(id="c"))
        assert 1 == len(harness.dispatcher.lookahead)

    def test_a_release_that_just_missed_a_claim_includes_its_events(self, make):
        """
        A handler thread releases an event right after a claim has taken the settlements. This claim
        does not carry the release, so what it claims must be released, too.
        """
        harness = make(look_ahead=20)
        harness.unheard = True
        harness.accept(claim(id="a"))

        class Settlements(list):
            """Has the handler thread release its event right after these were copied."""

            def __getitem__(self, index):
                taken = super().__getitem__(index)
                harness.leases._settlements = [*self]
                assert harness.pool.run_one()
                return taken

        harness.leases._settlements = Settlements()
        assert [] == harness.leases.take_settlements()
        harness.accept(claim(id="b"))
        assert ["a", "b"] == harness.released()

    def test_claims_nothing_until_all_releases_are_sent(self, make, clock):
        """
        If a claim came before a release, it could return later events while the released ones
        are not available yet.
        """
        harness = make(look_ahead=20)
        harness.accept(*(claim() for _ in range(MOST_SETTLEMENTS + 2)))
        clock.now += 0.02
        assert harness.dispatcher.start_due()
        assert harness.pool.run_one()
        assert (0, 0) == harness.dispatcher.claim_size(100)
        harness.leases.take_settlements()
        assert 1 == harness.dispatcher.claim_size(100)[0]
        harness.accept(claim(id="still on its way"))
        assert not harness.dispatcher.lookahead
        harness.leases.take_settlements()
        harness.accept(claim())
        assert harness.pool.busy

    def test_a_batch_without_a_listener_releases_the_rest_too(self, make, clock):
        """If a listener is added soon, it must not receive later events first."""
        harness = make(look_ahead=20)
        harness.accept(claim(id="a"))
        harness.accept(claim(id="b"))
        harness.unheard = True
        assert ["a", "b"] == [s.id for s in harness.finish()]

    def test_events_with_the_same_due_time_start_in_order_of_id(self, make):
        """The order does not depend on which one was claimed first."""
        harness = make(max_events=3)
        harness.accept(claim())
        for id in "cab":
            harness.accept(claim(id=id))
        harness.finish()
        assert ["a", "b", "c"] == harness.handled[1]


class TestLookAhead:
    """Events that were claimed ahead of their due time."""

    def test_starts_when_the_time_left_in_the_reply_has_passed(self, harness, clock):
        """The node measures the wait itself, because its clock may differ from the server's."""
        harness.accept(claim(ahead_ms=15, id="tea"))
        came = clock.now
        assert came + 0.015 == pytest.approx(harness.dispatcher.next_due(), abs=1e-6)
        assert harness.dispatcher.next_start() > came + 1  # an idle thread starts it long before
        clock.now = came + 0.0149
        harness.dispatcher.start_due()
        assert (0, 1) == (harness.pool.busy, len(harness.dispatcher.lookahead))
        clock.now = came + 0.0152
        harness.dispatcher.start_due()
        (lease,) = harness.leases.held()
        assert [["tea"]] == harness.begun()
        assert pytest.approx(0.2, abs=0.01) == lease.event.lateness_ms
        assert None is harness.dispatcher.next_start()

    def test_leaves_its_thread_free_until_it_is_due(self, harness, clock):
        """Events that are due before can use the thread."""
        harness.accept(claim(ahead_ms=15, id="later"))
        assert 1 == harness.dispatcher.free_slots()
        harness.accept(claim(id="now"))
        assert [["now"]] == harness.begun()

    def test_starts_due_events_as_one_batch(self, make, clock):
        """A handler receives all events that are due, up to ``max_events``."""
        harness = make(max_events=2)
        harness.accept(*[claim(ahead_ms=ms, id=f"{ms}") for ms in (5, 3, 4)])
        clock.now += 0.006
        harness.dispatcher.start_due()
        assert [["3", "4"]] == harness.begun()

    def test_waits_for_a_thread_if_all_are_busy(self, harness, clock):
        """A thread may be free within milliseconds."""
        harness.accept(claim(ahead_ms=5, id="later"))
        harness.accept(claim(id="now"))
        clock.now += 0.006
        harness.dispatcher.start_due()
        assert 1 == len(harness.dispatcher.lookahead)
        harness.handle()
        assert [["later"]] == harness.begun()

    def test_releases_an_event_if_no_thread_is_free_within_20_ms(self, make, clock):
        """An event waits for as long as the node looks ahead. The release charges no attempt."""
        harness = make(look_ahead=20)
        harness.accept(claim(ahead_ms=5, id="later"))
        harness.accept(claim(id="now"))
        clock.now += 0.025
        assert clock.now == pytest.approx(harness.dispatcher.next_start(), abs=1e-6)
        clock.now += 0.001
        assert harness.dispatcher.start_due()
        assert ["later"] == harness.released()
        assert None is harness.dispatcher.next_start()

    def test_keeps_an_event_for_a_second_if_there_is_no_other_node(self, make, clock):
        """
        A released event would come back to this node, at the cost of two claims.

        The time is limited, because a kept event cannot be cancelled.
        """
        harness = make(look_ahead=20)
        harness.answers = [True] * 4
        harness.accept(claim())
        harness.accept(claim(id="kept"))
        for seconds in (0.03, 0.96):
            clock.now += seconds
            assert not harness.dispatcher.start_due()
            assert not harness.dispatcher.start_due()
        assert 2 == len(harness.answers), "asked more than once within 20 ms"
        assert clock.now + 0.01 == pytest.approx(harness.dispatcher.next_start(), abs=1e-6)
        clock.now += 0.02
        assert harness.dispatcher.start_due()
        assert ["kept"] == harness.released()

    def test_releases_a_kept_event_within_20_ms_of_a_pause_or_a_join(self, make, clock):
        """
        Another node may have a free thread, and after a pause no event may start. The claimer wakes
        in time to ask the store.
        """
        harness = make(look_ahead=20)
        harness.accept(claim())
        harness.accept(claim())
        clock.now += 0.02
        harness.answers = [True, False]
        assert not harness.dispatcher.start_due()
        assert clock.now + 0.02 == pytest.approx(harness.dispatcher.next_start(), abs=1e-6)
        clock.now += 0.021
        assert harness.dispatcher.start_due()
        assert 1 == len(harness.leases.take_settlements())

    @pytest.mark.parametrize(("seconds", "starts"), [(0.9, True), (1.1, False)])
    def test_starts_no_event_that_has_expired_meanwhile(self, make, monkeypatch, seconds, starts):
        """An event that expired while it waited for a thread is released; the server buries it."""
        harness = make(lease=600_000)
        harness.accept(claim(id="first"))
        waits = replace(claim(id="waits"), expires_us=3_000 + 1_000_000)
        harness.accept(waits)
        later = boottime() + seconds
        monkeypatch.setattr("dtimer.engine.dispatcher.boottime", lambda: later)
        settled = [(s.id, s.verdict) for s in harness.finish()]
        assert starts == (["waits"] in harness.handled)
        end = Verdict.CONFIRM if starts else Verdict.RELEASE
        assert [("first", Verdict.CONFIRM), ("waits", end)] == settled

    def test_releases_an_event_if_the_store_cannot_tell_whether_it_is_alone(self, make, clock):
        """There may be other nodes."""
        harness = make(look_ahead=20)
        harness.answers = []  # the next question fails, as without a reply
        harness.accept(claim())
        harness.accept(claim())
        clock.now += 0.02
        assert harness.dispatcher.start_due()

    def test_claims_less_after_a_release(self, make, clock):
        """Releases mean that handlers are slower than estimated."""
        harness = make(look_ahead=20)
        batching = harness.batching
        for _ in range(6):
            batching.claim_answered(1, 1, overdue=True)
        batching.handler_took(1e-6)
        harness.accept(claim(ahead_ms=5, id="later"))
        harness.accept(claim(id="now"))
        assert batching.batches > 1
        clock.now += 0.026
        assert harness.dispatcher.start_due()
        assert 1 == batching.batches

    def test_reduces_the_next_claims_only_once_for_a_kept_event(self, make, clock):
        """Repeated checks of the same event do not show that handlers became slower."""
        harness = make(look_ahead=20)
        harness.answers = [True]
        harness.accept(claim())
        harness.accept(claim(), claim())
        clock.now += 0.02
        harness.dispatcher.start_due()
        took = harness.batching._handler_seconds
        for _ in range(5):
            harness.dispatcher.start_due()
        assert took == harness.batching._handler_seconds

    def test_releases_an_event_whose_lease_expired_while_the_machine_slept(
        self, make, clock, monkeypatch
    ):
        """Another node may have claimed it since."""
        harness = make(lease=1_000)
        harness.accept(claim(ahead_ms=5, id="tea"))
        past = boottime() + 2.0
        monkeypatch.setattr("dtimer.engine.dispatcher.boottime", lambda: past)
        clock.now += 0.006
        assert harness.dispatcher.start_due()
        assert ["tea"] == harness.released()
        assert 0 == harness.pool.busy

    def test_keeps_the_order_if_a_post_is_refused(self, harness, clock):
        """
        After a refused post the event of that id is the same as before. It is released, and with a
        single thread so are all events that would otherwise start before it.
        """
        harness.accept(claim(ahead_ms=5, id="a"), claim(ahead_ms=6, id="b"))
        assert harness.dispatcher.release_superseded(["a"])
        assert ["a", "b"] == harness.released()
        # A post replaces "c" while the reply to claim 1 is under way.
        harness.seat.superseded_ids.begin(seq=1)
        harness.seat.superseded_ids.add(["c"])
        harness.accept(claim(id="c"), claim(id="d"))
        assert ["c", "d"] == harness.released()

    @pytest.mark.parametrize("threads", [1, 2])
    @at_each_bytecode(more_than=5, raises=True)
    def test_an_interrupted_post_leaves_no_lease_that_is_renewed_for_ever(
        self, make, threads, interrupt
    ):
        """
        An exception interrupts the release of the events that a post has replaced. Each is kept,
        released, or no longer renewed.
        """
        harness = make(concurrency=threads)
        harness.accept(claim(ahead_ms=5, id="a"), claim(ahead_ms=6, id="b"))
        with contextlib.suppress(Alarm):
            interrupt(lambda: harness.dispatcher.release_superseded(["a"]), raise_alarm)
        kept = harness.dispatcher.lookahead.leases()
        assert [] == [lease for lease in harness.leases.held() if lease not in kept]

    def test_does_not_start_an_event_that_this_process_replaced(self, make, clock):
        """The release does not ring, because a ring may claim on the thread of the user's post."""
        harness = make(concurrency=2)
        harness.accept(claim(ahead_ms=5, id="a"), claim(ahead_ms=6, id="b"))
        assert harness.dispatcher.release_superseded(["a"])
        assert not harness.dispatcher.release_superseded(["a", "c"])
        assert (0, 1) == (harness.freed, len(harness.dispatcher.lookahead))
        clock.now += 0.007
        harness.dispatcher.start_due()
        assert [["b"]] == harness.begun()

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
