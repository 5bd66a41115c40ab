"""The claimer's thread and the handler threads, with a fake store and without a server."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from interrupted import at_each_bytecode
from seats import HOUR_S, CycleHarness, Refused, Wrong, ahead, reply
from servers import LIMIT, PATIENCE, PROMPT, eventually

from dtimer.engine.bell import Bell
from dtimer.engine.claimer import Claimer
from dtimer.engine.leases import LeaseTable
from dtimer.faultpoints import arm
from dtimer.model.claims import Outcome, Settlement, Verdict


class ClaimerHarness(CycleHarness):
    """A claimer with its threads. The test lets each handler return."""

    def __init__(self, **options):
        super().__init__(**options)
        self.bell = Bell()
        self.begun = queue.SimpleQueue()
        self.go_on = threading.Semaphore(0)
        self.stops = 0
        self.claimer = Claimer(
            "dtimer-claimer",
            bell=self.bell,
            seat=self.seat,
            dispatcher=self.dispatcher,
            consumer=self,
            host=self,
        )

    def deliver(self, events, results):
        self.begun.put([ev.id for ev in events])
        assert self.go_on.acquire(timeout=PATIENCE)
        return []

    def on_stopped(self):
        self.stops += 1

    def asleep(self):
        """Wait until the claimer has finished its claim and sleeps."""
        eventually(lambda: self.claimer._asleep_until and not self.claimer._claiming.locked())

    def next_batch(self):
        """Return the ids of the next batch that a handler gets."""
        return self.begun.get(timeout=PATIENCE)

    def begin(self, answer):
        """Have the claimer claim *answer*; return the ids that a handler gets first."""
        self.store.answers.append(answer)
        self.bell.ring()
        return self.next_batch()

    def close(self):
        self.go_on.release(1_000)
        self.store.trouble = None
        self.claimer.stop_within(0)
        assert self.claimer.join(PATIENCE)
        self.pool.stop()
        assert self.pool.join(PATIENCE)
        self.bell.close()


@pytest.fixture
def build():
    """Return a function that makes a harness, whose claimer has claimed once unless told not to."""
    made = []

    def build(*, start=True, **options):
        harness = ClaimerHarness(**({"poll_interval": 3_600_000} | options))
        made.append(harness)
        harness.pool.start()
        if start:
            harness.claimer.start()
            assert harness.seat.connectivity.tried.wait(PATIENCE)
            harness.asleep()
        return harness

    yield build
    for each in made:
        each.close()


@pytest.fixture
def harness(build):
    return build()


class TestClaimInline:
    """A handler thread that becomes free claims by itself instead of waking the claimer."""

    def test_the_free_thread_settles_and_claims_while_the_claimer_sleeps(self, harness):
        """The claimer thread need not be woken, and the free thread need not wait for it."""
        threads = queue.SimpleQueue()
        ask = harness.store.answer

        def recorded(request):
            threads.put((threading.current_thread().name, len(request.settlements)))
            return ask(request)

        harness.begin(reply("a"))
        harness.asleep()
        harness.store.answer = recorded
        harness.store.answers.append(reply("b", results=[Outcome.DONE]))
        harness.go_on.release()
        assert ["b"] == harness.next_batch()
        assert ("dtimer-test-handler-1", 1) == threads.get(timeout=PATIENCE)
        assert threads.empty()

    def test_the_claimer_wakes_when_the_inline_reply_said(self, build):
        """A nudge alone must not cause an earlier claim."""
        harness = build(look_ahead=0)
        harness.begin(reply("a"))
        harness.asleep()
        harness.store.answers.append(reply(wait=100_000, results=[Outcome.DONE]))
        asked = len(harness.store.requests)
        before = time.monotonic()
        harness.go_on.release()
        eventually(lambda: len(harness.store.requests) == asked + 2)
        assert time.monotonic() - before >= 0.1

    def test_rings_the_bell_if_a_claim_is_under_way(self, build):
        """The claimer then claims once more for the free thread."""
        harness = build(start=False)
        with harness.claimer._claiming:
            harness.claimer.claim_inline()
        assert [] == harness.store.requests
        assert harness.bell.wait(0)

    def test_claims_nothing_while_the_node_leaves(self, build):
        """An event claimed then would not start."""
        harness = build(start=False)
        harness.claimer.stop()
        harness.claimer.claim_inline()
        assert [] == harness.store.requests
        assert harness.bell.wait(0)

    def test_the_claimer_ends_after_an_inline_claim_and_releases_its_events(self, harness):
        """No thread is left for the events. Without a release they would wait for their leases."""
        harness.begin(reply("tea"))
        harness.asleep()
        asked, answer = threading.Event(), threading.Event()
        ask = harness.store.answer

        def recorded(request):
            if threading.current_thread() is thread:
                asked.set()
                assert answer.wait(PATIENCE)
            return ask(request)

        harness.store.answer = recorded
        harness.store.answers.append(reply("egg", first=2))
        thread = threading.Thread(target=harness.claimer.claim_inline)
        thread.start()
        assert asked.wait(PATIENCE)
        harness.claimer.stop_within(0)
        eventually(lambda: not harness.bell._rung)
        answer.set()
        thread.join(PATIENCE)
        assert harness.claimer.join(PATIENCE)
        assert [("egg", Verdict.RELEASE), ("tea", Verdict.RETRY)] == sorted(harness.settled)

    def test_claims_once_for_a_thread_freed_during_a_claim(self, harness):
        """The claimer claims when the current claim is over. A ring would cost a second claim."""
        asked = len(harness.store.requests)
        with harness.claimer._claiming:
            harness.claimer.claim_inline()
            assert harness.claimer._thread_freed
        eventually(lambda: len(harness.store.requests) == asked + 1)

    def test_settles_a_quick_event_while_the_next_one_of_its_batch_runs(self, build, monkeypatch):
        """The next event may take long. A crash in the meantime would repeat the finished one."""
        # A settlement that has waited this long is sent at once, which a slow machine may reach.
        monkeypatch.setattr("dtimer.engine.leases.MAX_ADVANCE_SECONDS", 1.0)
        # No heartbeat may carry the settlement.
        harness = build(lease=3_600_000)
        harness.begin(reply("quick", "slow"))
        harness.asleep()
        harness.go_on.release()
        assert ["slow"] == harness.next_batch()
        eventually(lambda: harness.settled)
        assert ["quick"] == [id for id, _ in harness.settled]

    def test_carries_what_a_router_settles_while_its_batch_goes_on(self, build):
        """The next event of the batch may take long. No heartbeat and no poll comes before."""
        harness = build(lease=3_600_000)
        harness.begin(reply("quick"))
        harness.asleep()
        (lease,) = harness.leases._leases.values()
        harness.leases.settle_as([lease], Verdict.CONFIRM)
        harness.leases.carry_soon()
        eventually(lambda: harness.settled)
        assert [("quick", Verdict.CONFIRM)] == harness.settled

    def test_asks_for_no_claim_to_carry_settlements_during_an_outage(self, build):
        """The pause between two tries decides, or each event of a batch would cost a try."""
        harness = build(start=False)
        harness.leases.settle([Settlement("quick", 1, Verdict.CONFIRM)])
        for error, planned in ((Wrong("no"), False), (None, True)):
            if error is None:
                harness.seat.connectivity.answered()
            else:
                harness.seat.connectivity.failed(error)
            harness.seat.next_claim_at = never = time.monotonic() + HOUR_S
            harness.claimer.carry_soon()
            harness.claimer._plan_to_carry()
            assert planned == (harness.seat.next_claim_at < never)


class TestLookAhead:
    """The claimer starts events that it claimed ahead of their due time."""

    def test_starts_an_event_when_it_is_due_without_another_claim(self, harness):
        """Looking ahead is meant to save the round trip at the due time."""
        asked = len(harness.store.requests)
        before = time.monotonic()
        assert ["a"] == harness.begin(ahead(20, "a"))
        assert time.monotonic() - before >= 0.02
        assert asked + 1 == len(harness.store.requests)

    def test_starts_an_event_that_a_handler_thread_claimed_ahead(self, harness):
        """The event must not wait for the claimer's next claim."""
        harness.begin(reply("a"))
        harness.asleep()
        answer = ahead(20, "b", first=2)
        harness.store.answers.append(replace(answer, results=[Outcome.DONE]))
        asked = len(harness.store.requests)
        harness.go_on.release()
        assert ["b"] == harness.next_batch()
        assert asked + 1 == len(harness.store.requests)

    def test_releases_an_event_as_soon_as_its_thread_is_taken(self, build):
        """Another node may have a free thread. Waiting for the poll would make the event late."""
        harness = build(look_ahead=500)
        answer = ahead(500, "later", first=2)
        harness.store.answers += [answer, reply("now")]
        for _ in range(2):
            asked = len(harness.store.requests)
            harness.bell.ring()
            eventually(lambda asked=asked: len(harness.store.requests) > asked)
            harness.asleep()
        assert ["now"] == harness.next_batch()
        eventually(lambda: harness.settled)
        assert [("later", Verdict.RELEASE)] == harness.settled

    def test_renews_the_lease_of_a_running_event_without_claims(self, build):
        """The next claim may be an hour away."""
        harness = build(lease=300)
        harness.begin(ahead(20, "a"))
        assert harness.store.beaten.wait(PATIENCE)
        assert (["a"], 300_000) == harness.store.renewed[0]


class TestLeaving:
    """The drain."""

    def test_waits_for_handlers_and_settles_before_it_ends(self, harness):
        """`on_stopped` is called last, when all results are stored."""
        harness.begin(reply("tea"))
        asked = len(harness.store.requests)
        harness.claimer.stop_within(None)
        eventually(lambda: len(harness.store.requests) > asked)
        assert not harness.claimer.join(0)
        assert 0 == harness.stops
        harness.go_on.release()
        assert harness.claimer.join(PATIENCE)
        assert 1 == harness.stops
        assert [Verdict.CONFIRM] == [verdict for _, verdict in harness.settled]
        assert {0} == {r.limit for r in harness.store.requests[asked:]}

    def test_retries_running_events_at_the_nearest_of_several_deadlines(self, harness):
        """
        The process may end then, so another node must run them. A second call of leave() does not
        prolong the first.
        """
        harness.begin(reply("tea"))
        for seconds in (HOUR_S, 0.05, None, HOUR_S):
            harness.claimer.stop_within(seconds)
        assert harness.claimer.join(PATIENCE)
        assert [Verdict.RETRY] == [verdict for _, verdict in harness.settled]

    @at_each_bytecode(more_than=5)
    def test_the_nearest_deadline_counts_if_one_call_interrupts_another(self, harness, interrupt):
        """A signal handler that leaves at once may interrupt a leave() with a longer deadline."""
        claimer = harness.claimer
        claimer._deadlines.clear()
        interrupt(lambda: claimer.stop_within(HOUR_S), lambda: claimer.stop_within(0))
        assert claimer._is_past_deadline()

    def test_releases_the_events_of_a_lost_claim(self, harness):
        """The node learns of these events only while it leaves, and does not start them."""
        harness.store.trouble = Wrong()
        harness.bell.ring()
        eventually(lambda: harness.seat.connectivity.error)
        harness.claimer.stop_within(None)
        eventually(harness.claimer._stopping.is_set)
        harness.store.answers.append(reply("tea"))
        harness.store.trouble = None
        harness.bell.ring()
        assert harness.claimer.join(PATIENCE)
        assert [Verdict.RELEASE] == [verdict for _, verdict in harness.settled]
        assert harness.begun.empty()

    @pytest.mark.parametrize("point", ["claim.asking", "claim.answered", "claim.handed"])
    def test_releases_events_claimed_while_it_is_told_to_stop(self, harness, point):
        """
        A stop at any moment of a claim finds events that no handler thread has. They are released
        before the thread ends, or they would wait for the end of their lease.
        """
        ask = harness.store.answer

        def stop():
            harness.claimer.stop_within(None)
            harness.store.answer = ask

        def stopped(request):
            stop()
            return ask(request)

        harness.store.answers.append(ahead(20, "tea"))
        with contextlib.ExitStack() as planted:
            if point == "claim.asking":
                harness.store.answer = stopped
            else:
                planted.enter_context(arm(point, stop))
            harness.bell.ring()
            assert harness.claimer.join(PATIENCE)
        assert [("tea", Verdict.RELEASE)] == harness.settled
        assert harness.begun.empty()

    def test_settles_a_handler_that_ends_during_the_check_for_running_ones(self, harness):
        """
        The claimer checks for unsettled events, then for running ones. A handler that returns
        between the two checks is still confirmed before the thread ends.
        """
        harness.begin(reply("tea"))
        harness.asleep()
        done, looking = harness.claimer._done, []

        class Ending(LeaseTable):
            """Lets the handler return while the claimer checks for unsettled events."""

            @property
            def unsettled(self):
                seen = super().unsettled
                if looking and harness.pool.busy:
                    harness.go_on.release()
                    eventually(lambda: not harness.pool.busy)
                return seen

        def look(abandoned):
            looking.append(True)
            try:
                return done(abandoned)
            finally:
                looking.clear()
                harness.go_on.release()

        harness.leases.__class__ = Ending
        harness.claimer._done = look
        harness.claimer.stop_within(None)
        assert harness.claimer.join(PATIENCE)
        assert [Verdict.CONFIRM] == [verdict for _, verdict in harness.settled]

    def test_releases_a_batch_if_enqueueing_it_fails(self, build):
        """Without memory for the queue entry, the events would wait for the end of their lease."""
        harness = build(start=False)
        put, broken = harness.pool._inbox.put, [MemoryError("no more")]
        harness.pool._inbox = SimpleNamespace(
            put=lambda batch: put(batch) if batch is None or not broken else self._fail(broken),
            get_nowait=harness.pool._inbox.get_nowait,
        )
        harness.claim(reply("tea"))
        harness.claim()
        assert [("tea", Verdict.RELEASE)] == harness.settled
        assert [] == harness.leases.held()

    @staticmethod
    def _fail(broken):
        raise broken.pop()

    @pytest.mark.parametrize("trouble", [Wrong(), Refused()])
    def test_stops_waiting_for_a_silent_server_at_the_deadline(self, build, trouble, monkeypatch):
        """
        Without a deadline it waits as long as a call may take. The pause after a refusal does not
        prolong this.
        """
        monkeypatch.setattr("dtimer.engine.connectivity._SLOW_PAUSE", 10.0 * LIMIT)
        harness = build(timeout=200)
        harness.store.trouble = trouble
        harness.bell.ring()
        eventually(lambda: harness.seat.connectivity.error)
        began = time.monotonic()
        harness.claimer.stop_within(None)
        assert harness.claimer.join(PATIENCE)
        assert time.monotonic() - began < PROMPT
        assert 1 == harness.stops

    def test_reports_an_exception_of_the_loop_and_continues_within_a_second(self, harness):
        """The thread must survive any exception, or the node would silently stop claiming."""
        harness.contact.reported()
        room, broken = harness.dispatcher.free_slots, [MemoryError("no more")]

        def fail():
            if broken:
                raise broken.pop()
            return room()

        harness.dispatcher.free_slots = fail
        harness.bell.ring()
        what, error = harness.announced.next(PATIENCE)
        assert ("error", "no more") == (what, str(error))
        asked = len(harness.store.requests)
        eventually(lambda: len(harness.store.requests) > asked)
        assert [] == harness.contact.reported(), "reported an outage of Redis"

    def test_calls_on_stopped_even_if_the_drain_raises(self, harness):
        """leave() waits for this call."""
        release_waiting, broken = harness.dispatcher.release_waiting, [MemoryError("no more")]

        def fail():
            if broken:
                raise broken.pop()
            release_waiting()

        harness.dispatcher.release_waiting = fail
        harness.claimer.stop_within(None)
        assert harness.claimer.join(PATIENCE)
        assert 1 == harness.stops
        assert "error" == harness.announced.next()[0]
