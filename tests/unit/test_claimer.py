"""The claimer, claim by claim, with a fake store and without a server."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from interrupted import Interruption, each_bytecode
from seats import Announced, make_seat
from servers import LIMIT, PATIENCE, PROMPT, eventually

from dtimer.engine.batching import IN_ADVANCE
from dtimer.engine.bell import Bell
from dtimer.engine.claimer import Claimer
from dtimer.engine.clock import boottime
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.leases import LeaseTable
from dtimer.errors import ClockJump, NamespaceCorrupt, StoreError
from dtimer.faultpoints import arm
from dtimer.model.claims import BrokenReply, Claim, ClaimReply, Outcome, Verdict

LONG = 3_600.0  # seconds: longer than any test
YEAR_US = 365 * 86_400 * 1_000_000


class Wrong(Exception):
    """An error of the fake store."""


class Refused(Exception):
    """An error that only a person can fix."""


def reply(*ids, wait=None, known=True, results=(), buried=(), ahead=0):
    claims = [Claim(id, n, 1, 1_000, 1_000, 3, b"{}") for n, id in enumerate(ids, 1)]
    now = round((time.monotonic() + ahead) * 1e6)
    return ClaimReply(now, wait, known, list(results), claims, list(buried))


class FakeStore:
    """A store that gives the replies the test has prepared; without one, nothing is due."""

    def __init__(self):
        self.requests = []
        self.answers = []
        self.extended = []
        self.registered = 0
        self.supplied = []
        self.unfit = set()  # schedules that no node can supply
        self.trimmed = 0
        self.lone = False  # True if this node is alone
        self.lost = set()  # ids whose lease another node has
        self.trouble = None  # raised by every call from now on
        self.busy = False
        self.deaf = []  # raised when a claim is sent, not when it is answered
        self.beaten = threading.Event()

    def start_claim(self, request):
        self.requests.append(request)
        if self.deaf:
            raise self.deaf.pop()
        return lambda *, read_late: self.answer(request)

    def answer(self, request):
        answer = self.trouble or (self.answers.pop(0) if self.answers else None)
        if isinstance(answer, BaseException):
            raise answer
        return answer or reply(results=[Outcome.DONE] * len(request.settlements))

    def register(self):
        self.registered += 1

    def renew(self, held, lease_us):
        if self.trouble:
            raise self.trouble
        self.extended.append(([id for id, _ in held], lease_us))
        self.beaten.set()
        return [id not in self.lost for id, _ in held]

    def alone(self):
        return self.lone

    def trim(self):
        self.trimmed += 1

    def add_times(self, schedule):
        self.supplied.append(schedule)
        if schedule in self.unfit:
            raise NamespaceCorrupt(f"{schedule} cannot be read")

    def needs_operator(self, error):
        return isinstance(error, Refused)


class ClaimerHarness:
    """A claimer and a real dispatcher, with a fake store and listener around them."""

    def __init__(self, **options):
        self.store = FakeStore()
        self.announced = Announced()
        self.seat = make_seat(self.store, announced=self.announced, **options)
        self.leases, self.pipeline = self.seat.leases, self.seat.pipeline
        self.listener, self.contact = self.seat.listener, self.seat.contact
        self.bell = Bell()
        self.begun = queue.SimpleQueue()
        self.go_on = threading.Semaphore(0)
        self.most = 100  # the demand
        self.stops = 0
        self.dispatcher = Dispatcher("dtimer-test", self.seat, self, self)
        self.claimer = Claimer(
            "dtimer-claimer",
            bell=self.bell,
            seat=self.seat,
            dispatcher=self.dispatcher,
            consumer=self,
            host=self,
        )
        self.cycle = self.claimer._cycle
        # If the test claims on its own thread, no other thread may.
        self.dispatcher.pool.claimer = self

    def demand(self):
        return self.most

    def deliver(self, events):
        self.begun.put(events)
        assert self.go_on.acquire(timeout=PATIENCE)
        return []

    def claim_inline(self):
        (self.claimer.claim_inline if self.claimer.started else self.bell.ring)()

    def on_stopped(self):
        self.stops += 1

    def claim(self, answer=None, *, claiming=True):
        """Claim once on the test's own thread; return the seconds until the next claim."""
        if answer is not None:
            self.store.answers.append(answer)
        return self.cycle.claim(claiming)

    def asleep(self):
        """Wait until the claimer has finished its claim and sleeps."""
        eventually(lambda: self.claimer._asleep_until and not self.claimer._claiming.locked())

    def start(self, answer):
        """Have the claimer claim *answer*; return the events that a handler gets first."""
        self.store.answers.append(answer)
        self.bell.ring()
        return self.begun.get(timeout=PATIENCE)

    @property
    def limits(self):
        """How many events each claim has asked for."""
        return [request.limit for request in self.store.requests]

    @property
    def settled(self):
        """The id and the verdict of each settlement that was sent."""
        return [(s.id, s.verdict) for request in self.store.requests for s in request.settlements]

    def close(self):
        self.go_on.release(1_000)
        self.store.trouble = None
        self.claimer.stop_within(0)
        assert self.claimer.join(PATIENCE)
        self.dispatcher.pool.stop()
        assert self.dispatcher.pool.join(PATIENCE)
        self.bell.close()


@pytest.fixture
def harness():
    made = []

    def build(*, start=False, **options):
        harness = ClaimerHarness(**options)
        made.append(harness)
        harness.dispatcher.pool.start()
        if start:
            harness.claimer.start()
            assert harness.seat.connectivity.tried.wait(PATIENCE)
            harness.asleep()
        return harness

    yield build
    for each in made:
        each.close()


class TestClaimRequest:
    """The request of a claim."""

    @pytest.mark.parametrize(
        ("options", "demand", "claiming", "limit"),
        [
            ({"max_events": 3, "concurrency": 2}, 100, True, 6),  # what free threads can start
            ({"max_events": 5}, 3, True, 3),
            ({}, 0, True, 0),  # claimed without a listener, an event would be late elsewhere
            ({}, 100, False, 0),  # nor would it start on a node that leaves
        ],
    )
    def test_asks_for_what_threads_and_listeners_can_take(
        self, harness, options, demand, claiming, limit
    ):
        """A claim is numbered, so that the server recognises a repetition."""
        harness = harness(**options)
        harness.most = demand
        for _ in range(2):
            harness.claim(claiming=claiming)
        assert [(1, limit, claiming), (2, limit, claiming)] == [
            (r.seq, r.limit, r.hears) for r in harness.store.requests
        ]

    def test_asks_for_nothing_while_all_threads_are_busy(self, harness):
        """Other nodes may have free threads."""
        harness = harness()
        harness.claim(reply("tea"))
        harness.begun.get(timeout=PATIENCE)
        harness.claim()
        assert [1, 0] == harness.limits

    def test_repeats_a_lost_claim_until_it_is_answered(self, harness):
        """
        The request is repeated unchanged, under its number, so the server recognises it. The first
        repetition is immediate; then the pauses grow up to half a second.
        """
        harness = harness()
        harness.store.trouble = Wrong()
        naps = [harness.claim() for _ in range(9)]
        harness.store.trouble = None
        harness.claim()
        harness.claim()
        first, *again, other = harness.store.requests
        assert all(first is request for request in again)
        assert (1, 2) == (first.seq, other.seq)
        assert naps[0] == 0.0
        assert 0.05 <= naps[1] <= 0.1
        assert 0.25 <= naps[-1] <= 0.5
        assert all(nap <= 0.5 for nap in naps)

    def test_repeats_the_settlements_of_a_lost_claim(self, harness):
        """The settlements of a lost claim are sent with its repetition, and with no other claim."""
        harness = harness()
        harness.claim(reply("tea"))
        harness.begun.get(timeout=PATIENCE)
        harness.go_on.release()
        eventually(lambda: harness.dispatcher.pool.busy == 0)
        harness.claim(Wrong())
        assert not harness.leases.unsettled
        harness.claim()
        harness.claim()
        settled = [[s.verdict for s in r.settlements] for r in harness.store.requests]
        assert [[], [Verdict.CONFIRM], [Verdict.CONFIRM], []] == settled

    def test_sends_an_echo_when_one_is_due(self, harness):
        """
        An echo proves that the node hears. The listener counts it as sent before the request is, so
        that it cannot arrive unexpected.
        """
        harness = harness()
        harness.claim()
        harness.listener.due = 0.0
        harness.claim()
        assert [False, True] == [r.echo for r in harness.store.requests]
        assert ["sent"] == harness.listener.echoes

    def test_expects_no_echo_of_a_lost_claim(self, harness):
        """
        The server may not have sent the echo of a lost claim, and a repetition sends no other.
        Waiting for it would make the node look deaf.
        """
        harness = harness()
        harness.listener.due = 0.0
        for _ in range(3):
            harness.claim(Wrong())
        harness.listener.due = LONG
        harness.claim()
        assert "sent" == harness.listener.echoes[0]
        assert {"failed"} == set(harness.listener.echoes[1:])


def broken(arrived, *, slow=True):
    error = BrokenReply("it broke off")
    error.arrived, error.timed_out = arrived, slow
    return error


class TestSlowConnection:
    """A claim whose reply broke off midway is repeated for a smaller reply."""

    @staticmethod
    def asked(harness):
        """Record the number and the size limit of each claim as it is sent."""
        found = []
        ask = harness.store.start_claim

        def note(request):
            found.append((request.seq, request.most_bytes, request.strict))
            return ask(request)

        harness.store.start_claim = note
        return found

    @pytest.mark.parametrize(
        ("arrived", "answered", "expected"),
        [
            # Half of the bytes that arrived, under the same number: no event is lost.
            ([100_000], [()], [(1, 50_000, False)]),
            # If that fails too, the first event is too large by itself: other nodes take it.
            (
                [100_000, 100_000],
                [(), ("tea",)],
                [(1, 50_000, False), (1, 50_000, True), (2, 50_000, True)],
            ),
            # Doubled with each quick reply until it is gone: the connection has recovered.
            (
                [600_000],
                [("tea",)] * 3,
                [(1, 300_000, False), (2, 600_000, False), (3, None, False)],
            ),
            # A connection that stalled after a few bytes may still carry a reply.
            ([20], [()], [(1, 10_000, False)]),
        ],
    )
    def test_repeats_a_broken_claim_for_fewer_bytes(self, harness, arrived, answered, expected):
        """Each case: the bytes that arrived of each broken reply, then the ids of quick replies."""
        harness = harness()
        asked = self.asked(harness)
        for count in arrived:
            assert 0.0 == harness.claim(broken(count))
        for ids in answered:
            harness.claim(reply(*ids))
        assert [(1, None, False), *expected] == asked

    def test_tries_a_too_large_event_again_after_a_lease(self, harness):
        """The connection may be faster by then. If it is not, a single failure is enough."""
        harness = harness()
        asked = self.asked(harness)
        for _ in range(2):
            harness.claim(broken(100_000))
        harness.claim()
        harness.seat.capacity._strict_since -= 30.0
        harness.claim(broken(100_000))
        harness.claim()
        assert [(2, 50_000, False), (2, 50_000, True)] == asked[3:]

    def test_keeps_the_limit_if_a_reply_takes_half_of_the_time_allowed(self, harness):
        """A reply of twice the size would not arrive in time."""
        harness = harness(lease=300)
        asked = self.asked(harness)
        harness.claim(broken(100_000))
        capacity = harness.seat.capacity
        capacity.received(harness.seat.pipeline.request, reply("tea"), 0.05)
        capacity.received(harness.seat.pipeline.request, reply("tea"), None)
        harness.claim()
        assert 50_000 == asked[-1][1]

    def test_reports_a_slow_connection_once_and_in_health(self, harness):
        """
        The error explains the problem once; ``health()`` shows it as long as it lasts. Redis still
        counts as connected.
        """
        harness = harness()
        harness.claim(broken(100_000))
        capacity = harness.seat.capacity
        assert "fewer events are claimed at a time" in str(capacity.error)
        harness.claim(broken(100_000))
        assert "more than 50000 bytes are left to other nodes" in str(capacity.error)
        # A reply without events does not prove that the connection is fast again.
        harness.claim()
        harness.claim(reply("tea"))
        assert capacity.error
        assert ["error"] == [what for what, _ in harness.announced.all()]
        assert [None] == harness.contact.reported()
        assert harness.seat.connectivity.tried.is_set()

    def test_repeats_a_reset_claim_unchanged_the_first_time(self, harness):
        """
        A reset says nothing about the speed of the connection. Only a second failure halves the
        reply.
        """
        harness = harness()
        asked = self.asked(harness)
        harness.claim(broken(100_000, slow=False))
        assert [] == harness.announced.all()
        harness.claim(broken(100_000, slow=False))
        harness.claim()
        assert [None, None, 50_000] == [most for _, most, _ in asked]

    def test_asks_for_no_events_in_a_repetition_while_leaving(self, harness):
        """The claimed events are released instead of sent, because they would not start."""
        harness = harness()
        asked = self.asked(harness)
        harness.claim(broken(100_000))
        harness.claim(claiming=False)
        assert [(1, 0, True)] == asked[1:]


class TestReply:
    """The actions that follow from a reply."""

    def test_registers_again_if_the_server_does_not_know_the_node(self, harness):
        """Otherwise the node would stay unknown, and would not be woken."""
        harness = harness()
        harness.claim(reply())
        assert 0 == harness.store.registered
        harness.claim(reply(known=False))
        assert 1 == harness.store.registered

    def test_announces_buried_events_and_trims_the_dead_letters(self, harness):
        """A reply without buried events trims nothing."""
        harness = harness()
        harness.claim(reply(buried=[("tea", "expired"), ("egg", "lease_lost")]))
        said = [harness.announced.next() for _ in range(2)]
        assert [("buried", "tea"), ("buried", "egg")] == said
        assert 1 == harness.store.trimmed
        harness.claim(reply())
        assert 1 == harness.store.trimmed

    def test_adds_times_to_a_schedule_that_runs_short(self, harness):
        """Otherwise the schedule would stop when its times are used up."""
        harness = harness()
        answer = reply()
        answer.short.append("daily")
        harness.claim(answer)
        assert ["daily"] == harness.store.supplied

    def test_reports_an_unreadable_schedule_once_until_it_is_readable(self, harness):
        """The rest of the reply is applied, and the claim counts as answered."""
        harness = harness()
        harness.store.unfit = {"bad"}
        for _ in range(3):
            answer = reply()
            answer.short.extend(["bad", "good"])
            harness.claim(answer)
        assert ["bad", "good"] * 3 == harness.store.supplied
        assert harness.seat.connectivity.error is None
        said = harness.announced.next()
        assert ("error", "bad cannot be read") == (said[0], str(said[1]))
        assert [] == harness.announced.all()
        for unfit in (set(), {"bad"}):
            harness.store.unfit = unfit
            answer = reply()
            answer.short.append("bad")
            harness.claim(answer)
        assert "error" == harness.announced.next()[0]

    def test_reports_each_kind_of_error_once_an_outage_and_its_end_once(self, harness):
        """Two errors that alternate must not fill the log."""
        harness = harness()
        harness.claim()
        assert [None] == harness.contact.reported()
        for error in (Wrong(1), Wrong(2), ValueError(3), Wrong(4), ValueError(5)):
            harness.claim(error)
        assert ["2", "3"] == [str(change) for change in harness.contact.reported()]
        assert "5" == str(harness.seat.connectivity.error)
        answered = harness.contact.answered
        harness.claim()
        harness.claim()
        assert [None] == harness.contact.reported()
        assert harness.seat.connectivity.error is None
        assert harness.contact.answered > answered
        harness.claim(Wrong(6))
        harness.claim(Wrong(7))
        assert ["7"] == [str(change) for change in harness.contact.reported()]

    def test_reports_nothing_if_the_first_repetition_succeeds(self, harness):
        """Such a failure, a closed connection for example, has no effect."""
        harness = harness()
        harness.claim()
        harness.contact.reported()
        harness.claim(Wrong())
        assert harness.seat.connectivity.error is None
        harness.claim()
        assert [] == harness.contact.reported()

    def test_reports_a_refusal_at_once_and_repeats_it_after_5_s(self, harness):
        """Only a person can fix it, so quick repetitions would not help."""
        harness = harness()
        assert 5.0 == harness.claim(Refused("no"))
        assert ["no"] == [str(change) for change in harness.contact.reported()]

    def test_reports_a_failure_after_the_reply_without_repeating_the_claim(self, harness):
        """The claim itself was answered; repeating it would return the same events again."""
        harness = harness()
        registered = _count_failures(harness, "register", 3)
        harness.claim(reply(known=False))
        assert ["gone again"] == [str(change) for change in harness.contact.reported()]
        harness.claim()
        assert [1, 2] == [r.seq for r in harness.store.requests]
        assert 2 == len(registered)

    def test_a_registration_that_fails_is_one_outage(self, harness):
        """
        Replies between the failed attempts do not end the outage. Meanwhile the node still renews
        its leases.
        """
        harness = harness()
        harness.claim()
        harness.contact.reported()
        harness.claim(reply("tea"))
        harness.begun.get(timeout=PATIENCE)
        registered = _count_failures(harness, "register", 3)
        for answer in (reply(known=False), reply(), reply()):
            harness.seat.heartbeat.due = 0.0
            harness.claim(answer)
        assert ["gone again"] == [str(change) for change in harness.contact.reported()]
        assert 3 == len(harness.store.extended)
        harness.claim()
        assert 4 == len(registered)
        assert [None] == harness.contact.reported()
        harness.claim()
        assert 4 == len(registered)
        harness.go_on.release()

    def test_heartbeats_that_fail_are_one_outage(self, harness):
        """Replies between the failed heartbeats do not end the outage."""
        harness = harness()
        harness.claim(reply("tea"))
        harness.begun.get(timeout=PATIENCE)
        harness.contact.reported()
        beats = _count_failures(harness, "renew", 3)
        harness.seat.heartbeat.due = 0.0
        naps = [harness.claim() for _ in range(3)]
        assert 3 == len(beats)
        assert ["gone again"] == [str(change) for change in harness.contact.reported()]
        assert "gone again" == str(harness.seat.connectivity.error)
        assert naps[2] > 0.15, "the pauses do not grow"
        harness.claim()
        assert [None] == harness.contact.reported()
        assert harness.seat.connectivity.error is None
        harness.go_on.release()


def _count_failures(harness, name, times):
    """Make a method of the store fail the first *times* calls; return the list of its calls."""
    made = []
    method = getattr(harness.store, name)

    def failing(*arguments):
        made.append(arguments)
        if len(made) <= times:
            raise StoreError("gone again")
        return method(*arguments)

    setattr(harness.store, name, failing)
    return made


class TestNextClaim:
    """The seconds until the next claim."""

    @pytest.mark.parametrize(
        ("poll_s", "wait_s", "low", "high"),
        [
            (60, 10, 9, 10),  # the due time in the reply; the poll would come later
            (60, 0, 0, 0),
            (3_600, 10 * 365 * 86_400, 20, 30),  # a longer poll interval becomes several waits
        ],
    )
    def test_waits_for_the_next_due_time_and_30_s_at_most(self, harness, poll_s, wait_s, low, high):
        """A node that came later would be late; coming earlier would cost claims."""
        harness = harness(poll_interval=poll_s * 1_000)
        assert low <= harness.claim(reply(wait=wait_s * 1_000_000)) <= high

    def test_counts_the_wait_from_when_the_request_was_sent(self, harness):
        """
        The next request will take as long to arrive as this one did, so it must
        leave earlier.
        """
        harness = harness(poll_interval=3_600_000)
        request, answer = harness.cycle._plan(True), reply(wait=10_000_000)
        nap = harness.cycle._pause(request, answer, time.monotonic() - 4, True, None)
        assert 5.5 < nap <= 6

    def test_polls_after_75_to_100_percent_of_poll_interval(self, harness):
        """
        The interval is a documented limit.

        The variation keeps nodes from polling at the same moment.
        """
        harness = harness(poll_interval=1_000)
        naps = [harness.claim(reply(wait=wait)) for wait in (None, YEAR_US) for _ in range(50)]
        assert 0.75 <= min(naps) < max(naps) <= 1

    def test_wakes_to_send_an_echo(self, harness):
        """A deaf node must notice this even if no event is due."""
        harness = harness()
        harness.listener.due = 0.25
        assert 0.25 == harness.claim()

    def test_claims_again_at_once_after_a_full_reply(self, harness):
        """A full reply means that more events may be due, and threads are still free."""
        harness = harness(concurrency=3, max_events=100)
        ids = [str(n) for n in range(100)]
        assert harness.claim(reply(*ids[1:])) > 0
        assert 0.0 == harness.claim(reply(*ids))
        assert [100, 100] == harness.limits

    def test_claims_at_once_if_a_settlement_waits(self, harness):
        """A confirm that waits for the poll would risk a second delivery if the node dies."""
        harness = harness()
        harness.claim(reply("tea"))
        harness.begun.get(timeout=PATIENCE)
        harness.go_on.release()
        eventually(lambda: harness.leases.unsettled)
        request = harness.store.requests[0]
        assert 0.0 == harness.cycle._pause(request, reply(), time.monotonic(), True, None)

    def test_wakes_for_the_next_heartbeat_while_a_handler_runs(self, harness):
        """Otherwise the lease would expire before the next claim."""
        harness = harness(lease=900, poll_interval=3_600_000)
        assert 0.2 < harness.claim(reply("tea")) <= 0.3


class TestClaimInline:
    """A handler thread that becomes free claims by itself instead of waking the claimer."""

    def test_the_free_thread_settles_and_claims_while_the_claimer_sleeps(self, harness):
        """The claimer thread need not be woken, and the free thread need not wait for it."""
        harness = harness(start=True)
        threads = queue.SimpleQueue()
        ask = harness.store.answer

        def recorded(request):
            threads.put((threading.current_thread().name, len(request.settlements)))
            return ask(request)

        harness.start(reply("a"))
        harness.asleep()
        harness.store.answer = recorded
        harness.store.answers.append(reply("b", results=[Outcome.DONE]))
        harness.go_on.release()
        assert ["b"] == [ev.id for ev in harness.begun.get(timeout=PATIENCE)]
        assert ("dtimer-test-handler-1", 1) == threads.get(timeout=PATIENCE)
        assert threads.empty()

    def test_the_claimer_wakes_when_the_inline_reply_said(self, harness):
        """A nudge alone must not cause an earlier claim."""
        harness = harness(start=True, poll_interval=3_600_000, look_ahead=0)
        harness.start(reply("a"))
        harness.asleep()
        harness.store.answers.append(reply(wait=100_000, results=[Outcome.DONE]))
        asked = len(harness.store.requests)
        before = time.monotonic()
        harness.go_on.release()
        eventually(lambda: len(harness.store.requests) == asked + 2)
        assert time.monotonic() - before >= 0.1

    def test_rings_the_bell_if_a_claim_is_under_way(self, harness):
        """The claimer then claims once more for the free thread."""
        harness = harness()
        with harness.claimer._claiming:
            harness.claimer.claim_inline()
        assert [] == harness.store.requests
        assert harness.bell.wait(0)

    def test_claims_nothing_while_the_node_leaves(self, harness):
        """An event claimed then would not start."""
        harness = harness()
        harness.claimer.stop()
        harness.claimer.claim_inline()
        assert [] == harness.store.requests
        assert harness.bell.wait(0)

    def test_the_claimer_ends_after_an_inline_claim_and_releases_its_events(self, harness):
        """Otherwise the events would wait for the end of their lease. No thread would run them."""
        harness = harness(start=True)
        harness.start(reply("tea"))
        harness.asleep()
        asked, answer = threading.Event(), threading.Event()
        ask = harness.store.answer

        def recorded(request):
            if threading.current_thread() is thread:
                asked.set()
                assert answer.wait(PATIENCE)
            return ask(request)

        harness.store.answer = recorded
        late = reply("egg")
        late.claims[0] = replace(late.claims[0], token=2)
        harness.store.answers.append(late)
        thread = threading.Thread(target=harness.claimer.claim_inline)
        thread.start()
        assert asked.wait(PATIENCE)
        harness.claimer.stop_within(0)
        eventually(lambda: not harness.bell._rung)
        answer.set()
        thread.join(PATIENCE)
        assert harness.claimer.join(PATIENCE)
        assert [("egg", Verdict.RELEASE), ("tea", Verdict.RETRY)] == sorted(harness.settled)


class TestLookAhead:
    """The claimer starts events that it claimed ahead of their due time."""

    @staticmethod
    def early(ms, *ids):
        """Return a reply whose events are due *ms* later."""
        answer = reply(*ids)
        claims = [replace(c, due_us=c.claimed_us + ms * 1000) for c in answer.claims]
        return replace(answer, claims=claims)

    def test_asks_ahead_only_for_threads_that_are_not_promised(self, harness):
        """
        A thread that already has an event claimed ahead is offered only for events that are due
        now.
        """
        harness = harness(concurrency=2, poll_interval=3_600_000)
        assert harness.claim(self.early(10, "a")) > 0
        assert harness.claim(self.early(10)) > 0
        answer = self.early(10, "b")
        answer.claims[0] = replace(answer.claims[0], token=2)
        harness.claim(answer)
        harness.claim()
        assert [(2, 20_000), (1, 20_000), (1, 20_000), (2, 0)] == [
            (request.limit, request.ahead_us) for request in harness.store.requests
        ]

    def test_starts_an_event_when_it_is_due_without_another_claim(self, harness):
        """Looking ahead is meant to save the round trip at the due time."""
        harness = harness(start=True, poll_interval=3_600_000)
        asked = len(harness.store.requests)
        before = time.monotonic()
        assert ["a"] == [ev.id for ev in harness.start(self.early(20, "a"))]
        assert time.monotonic() - before >= 0.02
        assert asked + 1 == len(harness.store.requests)

    def test_starts_an_event_that_a_handler_thread_claimed_ahead(self, harness):
        """The event must not wait for the claimer's next claim."""
        harness = harness(start=True, poll_interval=3_600_000)
        harness.start(reply("a"))
        harness.asleep()
        answer = self.early(20, "b")
        answer.claims[0] = replace(answer.claims[0], token=2)
        harness.store.answers.append(replace(answer, results=[Outcome.DONE]))
        asked = len(harness.store.requests)
        harness.go_on.release()
        assert ["b"] == [ev.id for ev in harness.begun.get(timeout=PATIENCE)]
        assert asked + 1 == len(harness.store.requests)

    def test_releases_an_event_as_soon_as_its_thread_is_taken(self, harness):
        """Another node may have a free thread. Waiting for the poll would make the event late."""
        harness = harness(start=True, poll_interval=3_600_000, look_ahead=500)
        answer = self.early(500, "later")
        answer.claims[0] = replace(answer.claims[0], token=2)
        harness.store.answers += [answer, reply("now")]
        for _ in range(2):
            asked = len(harness.store.requests)
            harness.bell.ring()
            eventually(lambda asked=asked: len(harness.store.requests) > asked)
            harness.asleep()
        assert ["now"] == [ev.id for ev in harness.begun.get(timeout=PATIENCE)]
        eventually(lambda: harness.settled)
        assert [("later", Verdict.RELEASE)] == harness.settled

    def test_renews_the_lease_of_a_running_event_without_claims(self, harness):
        """The next claim may be an hour away."""
        harness = harness(start=True, lease=300, poll_interval=3_600_000)
        harness.start(self.early(20, "a"))
        assert harness.store.beaten.wait(PATIENCE)
        assert (["a"], 300_000) == harness.store.extended[0]


class TestBatching:
    """Claims for more than one batch a thread, when events are overdue."""

    def test_asks_for_more_after_full_replies_and_nothing_ahead(self, harness):
        """
        In a backlog, larger claims save round trips. Events ahead of their time would take threads
        from due ones.
        """
        harness = harness(max_events=3, poll_interval=3_600_000)
        for first in (0, 3):
            answer = reply(*(str(n) for n in range(first, first + 3)))
            for n, c in enumerate(answer.claims):
                c.token = first + n + 1
            harness.store.answers.append(answer)
            harness.go_on.release()
            harness.claim()
            eventually(lambda: not harness.dispatcher.pool.busy)
        harness.claim()
        assert [(3, 20_000), (6, 0), (3, 20_000)] == [
            (request.limit, request.ahead_us) for request in harness.store.requests
        ]

    def test_looks_ahead_again_when_the_backlog_has_ended(self, harness):
        """
        Otherwise a single overdue event would make every following event be claimed only when it is
        due.
        """
        harness = harness(poll_interval=3_600_000)
        harness.go_on.release()
        harness.claim(reply("a"))
        eventually(lambda: not harness.dispatcher.pool.busy)
        nap = harness.claim(reply(wait=100_000, results=[Outcome.DONE]))
        assert [(1, 20_000), (2, 0)] == [(r.limit, r.ahead_us) for r in harness.store.requests]
        assert 0.05 < nap <= 0.09

    def test_does_not_hurry_for_a_claim_that_cannot_look_ahead(self, harness):
        """If all demand is promised, the next claim will not look ahead either."""
        harness = harness(concurrency=2, poll_interval=3_600_000, look_ahead=1_000)
        harness.most = 1
        harness.claim(TestLookAhead.early(1_000, "a"))
        assert 0 < harness.claim(reply(wait=400_000))
        assert [(1, 1_000_000), (1, 0)] == [(r.limit, r.ahead_us) for r in harness.store.requests]

    def test_asks_for_one_if_events_must_be_released_before_a_thread_is_free(self, harness):
        """
        With a short look-ahead, an event claimed in advance would be released before it could
        start.
        """
        harness = harness(look_ahead=4)
        harness.dispatcher.batching.claim_answered(1, 1, overdue=True)
        assert 1 == harness.cycle._plan(True).limit

    def test_asks_for_at_most_the_demand_and_100(self, harness):
        """A script claims at most 100 events."""
        harness = harness(max_events=30)
        harness.dispatcher.batching.handler_took(1e-6)
        for _ in range(5):
            harness.dispatcher.batching.claim_answered(1, 1, overdue=True)
        harness.most = 1_000
        assert 100 == harness.cycle._plan(True).limit
        harness.most = 40
        assert 40 == harness.cycle._plan(True).limit

    def test_settles_a_quick_event_while_the_next_one_of_its_batch_runs(self, harness, monkeypatch):
        """The next event may take long. A crash in the meantime would repeat the finished one."""
        # A settlement that has waited this long is sent at once, which a slow machine may reach.
        monkeypatch.setattr("dtimer.engine.leases.IN_ADVANCE", 1.0)
        # No heartbeat may carry the settlement.
        harness = harness(start=True, poll_interval=3_600_000, lease=3_600_000)
        answer = reply("quick", "slow")
        answer.claims[1].token = 2
        harness.start(answer)
        harness.asleep()
        harness.go_on.release()
        assert ["slow"] == [ev.id for ev in harness.begun.get(timeout=PATIENCE)]
        eventually(lambda: harness.settled)
        assert ["quick"] == [id for id, _ in harness.settled]


class Unreadable(list):
    """Claims that raise MemoryError when they are first read."""

    def __init__(self, claims):
        super().__init__(claims)
        self.failures = 1

    def __getitem__(self, index):
        if self.failures:
            self.failures -= 1
            raise MemoryError
        return super().__getitem__(index)


def several(first, count):
    """Return a reply with *count* overdue events, whose tokens count up from *first*."""
    answer = reply(*(str(n) for n in range(first, first + count)))
    for n, claim in enumerate(answer.claims):
        claim.token = first + n
    return answer


class TestPipelining:
    """In a backlog of quick events the server works on the next claim while handlers run."""

    @pytest.fixture
    def backlog(self, harness):
        """A node in such a backlog: its first two claims were filled."""
        harness = harness(poll_interval=3_600_000)
        harness.dispatcher.batching.handler_took(1e-6)
        harness.store.answers += [several(1, 1), several(2, 2), several(4, 4), several(8, 8)]
        harness.go_on.release()
        harness.claim()
        eventually(lambda: not harness.dispatcher.pool.busy)
        assert [1] == harness.limits
        harness.claim()
        return harness

    def test_sends_the_next_claim_before_starting_events(self, backlog):
        """
        The request doubles the limit and does not look ahead. It sends `hears=False`, because no
        thread is free.
        """
        assert ["1"] == [ev.id for ev in backlog.begun.get(timeout=PATIENCE)]
        assert backlog.seat.pipeline.pending
        *_, last = backlog.store.requests
        assert (3, 4, 0, False) == (last.seq, last.limit, last.ahead_us, last.hears)
        assert 2 == len(backlog.store.answers), "the reply was read"

    def test_settles_one_batch_with_the_claim_sent_before_the_next(self, backlog):
        """Otherwise each confirm would need a request of its own."""
        assert ["1"] == [ev.id for ev in backlog.begun.get(timeout=PATIENCE)]
        assert [[], ["1"], []] == [[s.id for s in r.settlements] for r in backlog.store.requests]
        assert ["2"] == [ev.id for ev in backlog.begun.get(timeout=PATIENCE)]
        backlog.go_on.release()
        eventually(lambda: not backlog.dispatcher.pool.busy)
        backlog.dispatcher.batching._handler_seconds = 1e-6
        backlog.claim()
        assert ["2"] == [s.id for s in backlog.store.requests[-1].settlements]
        assert (4, 7) == (backlog.store.requests[-1].seq, backlog.store.requests[-1].limit)

    def test_reads_the_reply_within_milliseconds_if_no_thread_does(self, backlog):
        """The claimed events must not wait in an unread reply."""
        assert 0 < backlog.cycle.claim(True) <= IN_ADVANCE

    def test_counts_events_under_way_against_the_demand(self, backlog):
        """Events in an unread reply and running events together stay within the demand."""
        backlog.most = 9
        backlog.claim()
        # One runs, one waits, four have arrived: three more may be asked for.
        assert 3 == backlog.store.requests[-1].limit

    def test_sends_nothing_ahead_after_a_single_event(self, harness):
        """A single due event does not make a backlog."""
        harness = harness(poll_interval=3_600_000)
        harness.dispatcher.batching.handler_took(1e-6)
        harness.claim(several(1, 1))
        assert not harness.seat.pipeline.pending

    def test_sends_nothing_ahead_if_handlers_are_slow(self, harness):
        """Events that would wait for a slow thread are better left to other nodes."""
        harness = harness(poll_interval=3_600_000)
        harness.dispatcher.batching.handler_took(1.0)
        harness.go_on.release(3)
        for n in range(3):
            harness.claim(several(n + 1, 1))
            eventually(lambda: not harness.dispatcher.pool.busy)
        assert not harness.seat.pipeline.pending

    @pytest.mark.parametrize("odd", [{"known": False}, {"buried": [("9", "expired")]}])
    def test_sends_nothing_ahead_of_a_registration_or_buried_events(self, backlog, odd):
        """An unknown node must register before it claims again."""
        backlog.store.answers[:] = [replace(several(4, 4), **odd)]
        backlog.claim()
        assert not backlog.seat.pipeline.pending

    def test_counts_a_lease_from_its_own_request(self, backlog):
        """The request sent after it must not make the node trust the lease for longer."""
        sent = backlog.seat.pipeline.sent
        backlog.seat.pipeline.sent = sent - 20
        backlog.claim()
        late = backlog.dispatcher.lookahead.remove({"4"})
        assert [-20] == [round(lease._trusted_until - boottime() - 27) for lease in late]

    def test_a_ring_causes_another_claim_after_the_one_under_way(self, backlog):
        """The claim under way may have passed the server before the event was posted."""
        backlog.store.answers[:] = [reply(), reply("new")]
        backlog.store.answers[1].claims[0].token = 99
        backlog.cycle.run(fresh=True)
        assert [3, 4] == [r.seq for r in backlog.store.requests[2:]]
        assert backlog.dispatcher.lookahead.remove({"new"})

    def test_releases_the_events_of_the_last_reply_when_leaving(self, backlog):
        """Otherwise they would wait for the end of their lease."""
        backlog.dispatcher.release_waiting()
        backlog.cycle.run(claiming=False, fresh=True)
        backlog.claim(claiming=False)
        given = {s.id for r in backlog.store.requests for s in r.settlements if s.id in "4567"}
        assert {"4", "5", "6", "7"} == given
        assert [0, 0] == [r.limit for r in backlog.store.requests[3:]]

    def test_repeats_an_unsent_claim_at_once_and_silently(self, backlog):
        """A first failure is not reported, as with any other claim."""
        backlog.contact.reported()
        backlog.store.deaf.append(Wrong("closed"))
        assert 0.0 == backlog.claim()
        assert not backlog.seat.pipeline.pending
        backlog.claim()
        first, second = (r for r in backlog.store.requests if r.seq == 4)
        assert first is second
        assert 1 == first.resends
        assert [] == backlog.contact.reported()

    def test_repeats_a_claim_whose_reply_was_lost(self, backlog):
        """Events that were already passed to threads stay there."""
        backlog.store.answers.insert(0, Wrong("gone"))
        assert 0.0 == backlog.claim()
        assert 1 == len(backlog.dispatcher.lookahead)
        backlog.claim()
        assert [(3, 1), (3, 1), (4, 0)] == [(r.seq, r.resends) for r in backlog.store.requests[2:]]

    def test_releases_an_event_that_this_process_replaced_meanwhile(self, backlog):
        """The reply under way still has the old event, which must not start."""
        backlog.seat.superseded_ids.add({"5", "6"})
        backlog.claim()
        assert not backlog.dispatcher.lookahead.remove({"5", "6"})
        backlog.claim()
        backlog.claim()
        settled = [s for r in backlog.store.requests for s in r.settlements if s.id in "56"]
        assert [("5", Verdict.RELEASE), ("6", Verdict.RELEASE)] == [
            (s.id, s.verdict) for s in settled
        ]

    def test_stops_claiming_while_a_handler_does_not_return(self, backlog):
        """Otherwise the node would claim and release events for as long as the handler runs."""
        tokens = itertools.count(100)
        del backlog.store.answers[:]
        backlog.store.answer = lambda r: several(next(tokens), r.limit)
        backlog.dispatcher.batching._handler_seconds = 1e-6
        for _ in range(8):
            next(tokens)
            backlog.claim()
        assert not backlog.seat.pipeline.pending
        asked = len(backlog.store.requests)
        assert len(backlog.dispatcher.lookahead) <= 2 * 64
        backlog.claim()
        assert [0] == [r.limit for r in backlog.store.requests[asked:]]

    def test_a_release_includes_the_events_of_the_next_reply(self, backlog):
        """With one thread, the later events would otherwise start before the earlier ones."""
        backlog.store.lone = False
        del backlog.store.answers[1:]
        backlog.dispatcher.lookahead.patience = 0.0
        for _ in range(4):
            backlog.dispatcher.start_due()
            backlog.claim()
        released = [s.id for r in backlog.store.requests for s in r.settlements if s.id != "1"]
        assert ["3", "4", "5", "6", "7"] == sorted(released)
        assert not backlog.dispatcher.lookahead

    def test_offers_its_threads_again_when_the_backlog_has_ended(self, harness):
        """
        The last claim of a backlog was sent with `hears=False`. Without another claim no wake would
        come.
        """
        harness = harness(poll_interval=3_600_000)
        harness.seat.pipeline.send_ahead(harness.seat.pipeline.new_request([], 1, 0, hears=False))
        harness.cycle.run()
        assert [False, True] == [r.hears for r in harness.store.requests]

    def test_repeats_a_claim_whose_reply_cannot_be_read(self, harness):
        """The events are claimed; only a repetition returns them again."""
        harness = harness(poll_interval=3_600_000, look_ahead=0)
        answer = reply("tea")
        assert 0.0 == harness.claim(replace(answer, claims=Unreadable(answer.claims)))
        harness.claim(answer)
        assert [(1, 1), (1, 1)] == [(r.seq, r.resends) for r in harness.store.requests]
        assert ["tea"] == [ev.id for ev in harness.begun.get(timeout=PATIENCE)]

    def test_keeps_an_unreadable_reply_if_the_next_claim_was_sent(self, backlog):
        """The server would not answer the earlier claim again. The reply is kept and read later."""
        answer = several(4, 4)
        backlog.store.answers[0] = replace(answer, claims=Unreadable(answer.claims))
        assert 0 < backlog.claim() <= IN_ADVANCE
        assert backlog.seat.pipeline.pending
        assert 1 == len(backlog.dispatcher.lookahead)
        backlog.claim()
        assert {"4", "5", "6", "7"} <= {h.claim.id for h in backlog.dispatcher.lookahead.remove()}
        assert not backlog.seat.unread

    def test_lateness_includes_the_time_in_an_unread_reply(self, backlog):
        """Users would otherwise see an event as punctual that waited for seconds."""
        backlog.seat.pipeline.sent -= 2
        backlog.claim()
        late = [h.event.lateness_ms for h in backlog.dispatcher.lookahead.remove({"4", "7"})]
        assert [2000, 2000] == pytest.approx(late, abs=500)

    def test_claims_once_for_a_thread_freed_during_a_claim(self, harness):
        """The claimer claims when the current claim is over. A ring would cost a second claim."""
        harness = harness(start=True, poll_interval=3_600_000)
        asked = len(harness.store.requests)
        with harness.claimer._claiming:
            harness.claimer.claim_inline()
            assert harness.claimer._thread_freed
        eventually(lambda: len(harness.store.requests) == asked + 1)


class TestHeartbeats:
    """Leases are renewed as long as handlers run."""

    def held(self, harness, *ids):
        """Deliver these events, and make their heartbeat due."""
        harness.claim(reply(*ids))
        harness.begun.get(timeout=PATIENCE)
        harness.seat.heartbeat.due = 0.0

    def test_renews_every_third_of_a_lease(self, harness):
        """Two heartbeats may fail before the lease expires."""
        harness = harness(max_events=2)
        self.held(harness, "tea", "egg")
        before = time.monotonic()
        harness.claim()
        assert [(["tea", "egg"], 30_000_000)] == harness.store.extended
        assert before + 10 <= harness.seat.heartbeat.due <= time.monotonic() + 10
        harness.claim()
        assert 1 == len(harness.store.extended)

    def test_renews_without_a_ring(self, harness):
        """The thread must wake for a heartbeat by itself."""
        harness = harness(start=True, lease=100, poll_interval=3_600_000)
        harness.start(reply("tea"))
        for _ in range(3):
            assert harness.store.beaten.wait(PATIENCE)
            harness.store.beaten.clear()
        assert (["tea"], 100_000) == harness.store.extended[0]

    def test_does_not_renew_settled_events_or_those_over_max_run(self, harness):
        """A renewal would keep the event from other nodes."""
        harness = harness(max_events=3, max_run=10_000)
        self.held(harness, "tea", "egg", "ham")
        tea, egg, _ = harness.leases.held()
        tea.reserve(Verdict.CONFIRM)
        egg.started -= 11
        harness.claim()
        assert [(["ham"], 30_000_000)] == harness.store.extended

    def test_reports_a_lost_lease_once_and_renews_the_others(self, harness):
        """The handler must learn that another node may run the event."""
        harness = harness(max_events=2)
        self.held(harness, "tea", "egg")
        tea, egg = harness.leases.held()
        harness.store.lost.add("egg")
        for _ in range(2):
            harness.seat.heartbeat.due = 0.0
            harness.claim()
        assert ("lease_lost", egg.event) == harness.announced.next()
        assert [] == harness.announced.all()
        assert egg.lost()
        assert not tea.lost()

    def test_repeats_a_failed_heartbeat_soon(self, harness):
        """Waiting for the next regular heartbeat could lose the lease."""
        harness = harness()
        self.held(harness, "tea")
        extend, harness.store.renew = harness.store.renew, None
        assert harness.claim() <= 0.5
        harness.store.renew = extend
        harness.claim()
        assert 1 == len(harness.store.extended)

    def test_renews_leases_while_claims_fail(self, harness):
        """A running handler must not lose its lease because a claim fails."""
        harness = harness()
        self.held(harness, "tea")
        harness.claim(Wrong())
        assert [(["tea"], 30_000_000)] == harness.store.extended

    def test_renews_an_extended_lease_for_the_rest_of_its_extension(self, harness):
        """A regular heartbeat would shorten the lease that the handler asked for."""
        harness = harness(max_events=2)
        self.held(harness, "tea", "egg")
        _, egg = harness.leases.held()
        egg._wanted_until.append(time.monotonic() + 60)
        harness.claim()
        (tea, (ids, lease_us)) = harness.store.extended
        assert (["tea"], 30_000_000) == tea
        assert ["egg"] == ids
        assert 59_000_000 < lease_us <= 60_000_000

    def test_sends_an_extension_again_if_a_heartbeat_overtook_it(self, harness):
        """
        The heartbeat was under way when the handler extended the lease, and shortened it again. The
        handler may return before the next heartbeat, so the extension is sent at once.
        """
        harness = harness()
        self.held(harness, "tea")
        (tea,) = harness.leases.held()
        extend = harness.store.renew

        def overtaken(held, lease_us):
            harness.store.renew = extend
            tea._wanted_until.append(time.monotonic() + 60)
            return extend(held, lease_us)

        harness.store.renew = overtaken
        harness.claim()
        first, second = harness.store.extended
        assert (["tea"], 30_000_000) == first
        assert 59_000_000 < second[1] < 61_000_000

    def test_trusts_no_lease_until_renewed_if_the_server_clock_jumped_ahead(self, harness):
        """
        Leases may have expired by the new clock. They are renewed at once, and the jump is reported
        once.
        """
        harness = harness()
        self.held(harness, "tea")
        harness.seat.heartbeat.due = time.monotonic() + LONG
        (tea,) = harness.leases.held()
        extend, harness.store.renew = harness.store.renew, None
        harness.claim(reply(ahead=3_600))
        assert tea.lost()
        harness.store.renew = extend
        harness.claim(reply(ahead=3_600))
        assert not tea.lost()
        assert [(["tea"], 30_000_000)] == harness.store.extended
        kind, error = harness.announced.next()
        assert ("error", ClockJump) == (kind, type(error))
        assert pytest.approx(3_600, abs=1) == error.seconds
        assert [] == harness.announced.all()

    @pytest.mark.parametrize(("options", "renewed"), [({}, True), ({"now": lambda: 0}, False)])
    def test_renews_leases_at_once_if_the_server_clock_jumped_back(self, harness, options, renewed):
        """
        If the node died, its leases would otherwise last longer by the size of the jump. Tests move
        a clock that ``now`` gives on purpose: its jumps are ignored.
        """
        harness = harness(**options)
        self.held(harness, "tea")
        harness.seat.heartbeat.due = time.monotonic() + LONG
        (tea,) = harness.leases.held()
        harness.claim(reply(ahead=-3_600))
        assert not tea.lost()
        assert ([(["tea"], 30_000_000)] if renewed else []) == harness.store.extended
        jumps = [error.seconds for _, error in harness.announced.all()]
        assert ([pytest.approx(-3_600, abs=1)] if renewed else []) == jumps

    def test_renews_at_most_100_leases_a_call(self, harness):
        """A script that renewed all of them would block the server."""
        harness = harness(max_events=100, concurrency=3)
        for n in range(3):
            claims = [Claim(f"{n}-{i}", 100 * n + i, 1, 1, 1, 3, b"{}") for i in range(80)]
            harness.claim(replace(reply(), claims=claims))
        harness.seat.heartbeat.due = 0.0
        harness.claim()
        assert [100, 100, 40] == [len(ids) for ids, _ in harness.store.extended]


class TestLeaving:
    """The drain."""

    def test_waits_for_handlers_and_settles_before_it_ends(self, harness):
        """`on_stopped` is called last, when all results are stored."""
        harness = harness(start=True)
        harness.start(reply("tea"))
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
        harness = harness(start=True)
        harness.start(reply("tea"))
        for seconds in (LONG, 0.05, None, LONG):
            harness.claimer.stop_within(seconds)
        assert harness.claimer.join(PATIENCE)
        assert [Verdict.RETRY] == [verdict for _, verdict in harness.settled]

    def test_the_nearest_deadline_counts_if_one_call_interrupts_another(self, harness):
        """A signal handler that leaves at once may interrupt a leave() with a longer deadline."""
        harness = harness(start=True)
        for n in each_bytecode():
            harness.claimer._deadlines.clear()
            interruption = Interruption(n, lambda: harness.claimer.stop_within(0))
            interruption.during(lambda: harness.claimer.stop_within(LONG))
            if interruption.where is None:
                break
            assert harness.claimer._is_past_deadline(), interruption.where
        assert n > 5

    def test_releases_the_events_of_a_lost_claim(self, harness):
        """The node learns of these events only while it leaves, and does not start them."""
        harness = harness(start=True)
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
        harness = harness(start=True, poll_interval=3_600_000)
        ask = harness.store.answer

        def stop():
            harness.claimer.stop_within(None)
            harness.store.answer = ask

        def stopped(request):
            stop()
            return ask(request)

        harness.store.answers.append(TestLookAhead.early(20, "tea"))
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
        harness = harness(start=True)
        harness.start(reply("tea"))
        harness.asleep()
        done, looking = harness.claimer._done, []

        class Ending(LeaseTable):
            """Lets the handler return while the claimer checks for unsettled events."""

            @property
            def unsettled(self):
                seen = super().unsettled
                if looking and harness.dispatcher.pool.busy:
                    harness.go_on.release()
                    eventually(lambda: not harness.dispatcher.pool.busy)
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

    def test_releases_a_batch_if_enqueueing_it_fails(self, harness):
        """Without memory for the queue entry, the events would wait for the end of their lease."""
        harness = harness()
        put, broken = harness.dispatcher.pool._inbox.put, [MemoryError("no more")]
        harness.dispatcher.pool._inbox = SimpleNamespace(
            put=lambda batch: put(batch) if batch is None or not broken else self._fail(broken),
            get_nowait=harness.dispatcher.pool._inbox.get_nowait,
        )
        harness.claim(reply("tea"))
        harness.claim()
        assert [("tea", Verdict.RELEASE)] == harness.settled
        assert [] == harness.leases.held()

    @staticmethod
    def _fail(broken):
        raise broken.pop()

    @pytest.mark.parametrize("trouble", [Wrong(), Refused()])
    def test_stops_waiting_for_a_silent_server_at_the_deadline(self, harness, trouble, monkeypatch):
        """
        Without a deadline it waits as long as a call may take. The pause after a refusal does not
        prolong this.
        """
        monkeypatch.setattr("dtimer.engine.connectivity._SLOW_PAUSE", 10.0 * LIMIT)
        harness = harness(start=True, timeout=200)
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
        harness = harness(start=True)
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
        harness = harness(start=True)
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
