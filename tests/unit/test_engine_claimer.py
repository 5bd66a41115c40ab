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
from servers import LIMIT, PATIENCE, PROMPT, eventually

from dtimer.engine.bell import Bell
from dtimer.engine.claimer import Claimer
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.pace import lasting
from dtimer.engine.prefetch import IN_ADVANCE
from dtimer.errors import ClockJump, NamespaceCorrupt, StoreError
from dtimer.faultpoints import arm
from dtimer.model.claims import BrokenReply, Claim, Result, Turn, Verdict
from dtimer.model.options import validate

LONG = 3_600.0  # seconds: longer than any test
YEAR_US = 365 * 86_400 * 1_000_000


class Wrong(Exception):
    """An error of the fake store."""


class Refused(Exception):
    """An error that only a person can fix."""


def turn(*ids, wait=None, known=True, results=(), buried=(), ahead=0):
    claims = [Claim(id, n, 1, 1_000, 1_000, 3, b"{}") for n, id in enumerate(ids, 1)]
    now = round((time.monotonic() + ahead) * 1e6)
    return Turn(now, wait, known, list(results), claims, list(buried))


class FakeTurns:
    """A store that gives the replies the test has prepared; without one, nothing is due."""

    def __init__(self):
        self.asked = []
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

    def ask(self, request):
        self.asked.append(request)
        if self.deaf:
            raise self.deaf.pop()
        return lambda *, lay: self.turn(request)

    def turn(self, request):
        answer = self.trouble or (self.answers.pop(0) if self.answers else None)
        if isinstance(answer, BaseException):
            raise answer
        return answer or turn(results=[Result.DONE] * len(request.settlements))

    def register(self):
        self.registered += 1

    def extend(self, held, lease_us):
        if self.trouble:
            raise self.trouble
        self.extended.append(([id for id, _ in held], lease_us))
        self.beaten.set()
        return [id not in self.lost for id, _ in held]

    def alone(self):
        return self.lone

    def trim(self):
        self.trimmed += 1

    def supply(self, schedule):
        self.supplied.append(schedule)
        if schedule in self.unfit:
            raise NamespaceCorrupt(f"{schedule} cannot be read")

    def slow(self, error):
        return isinstance(error, Refused)


class FakeListener:
    """A listener that hears, or does not, as the test says."""

    def __init__(self):
        self.hears = True
        self.due = LONG
        self.echoes = []

    def echo_due(self):
        return self.due

    @property
    def echo_wanted(self):
        return self.due <= 0

    def echo_sent(self):
        self.echoes.append("sent")

    def echo_failed(self):
        self.echoes.append("failed")


class Desk:
    """A claimer and a real dispatcher, with a fake store and listener around them."""

    def __init__(self, **options):
        self.options = validate(options)
        self.turns = FakeTurns()
        self.listener = FakeListener()
        self.bell = Bell()
        self.said = queue.SimpleQueue()
        self.changes = queue.SimpleQueue()
        self.begun = queue.SimpleQueue()
        self.go_on = threading.Semaphore(0)
        self.appetite = 100
        self.farewells = 0
        self.dispatcher = Dispatcher(
            "dtimer-test",
            node="test",
            options=self.options,
            handle=self._handle,
            announce=lambda *what: self.said.put(what),
            ring=self._ring,
            alone=self.turns.alone,
            ledger=SimpleNamespace(),
            quit=lambda: None,
        )
        self.claimer = Claimer(
            "dtimer-claimer",
            turns=self.turns,
            bell=self.bell,
            listener=self.listener,
            dispatcher=self.dispatcher,
            options=self.options,
            appetite=lambda: self.appetite,
            changed=self.changes.put,
            announce=lambda *what: self.said.put(what),
            farewell=self._farewell,
        )

    def _handle(self, events):
        self.begun.put(events)
        assert self.go_on.acquire(timeout=PATIENCE)
        return []

    def _ring(self):
        # If the test claims on its own thread, no other thread may.
        (self.claimer.relay if self.claimer.started else self.bell.ring)()

    def _farewell(self):
        self.farewells += 1

    def take(self, answer=None, *, claiming=True):
        """Claim once on the test's own thread; return the seconds until the next claim."""
        if answer is not None:
            self.turns.answers.append(answer)
        return self.claimer._take_turn(claiming)

    def asleep(self):
        """Wait until the claimer has finished its claim and sleeps."""
        eventually(lambda: self.claimer._asleep_until and not self.claimer._turning.locked())

    def deliver(self, answer):
        """Have the claimer claim *answer*; return the events that a handler gets first."""
        self.turns.answers.append(answer)
        self.bell.ring()
        return self.begun.get(timeout=PATIENCE)

    @property
    def limits(self):
        """How many events each claim has asked for."""
        return [request.limit for request in self.turns.asked]

    @property
    def settled(self):
        """The id and the verdict of each settlement that was sent."""
        return [(s.id, s.verdict) for request in self.turns.asked for s in request.settlements]

    def told(self):
        """Return the changes reported so far."""
        return [self.changes.get() for _ in range(self.changes.qsize())]

    def close(self):
        self.go_on.release(1_000)
        self.turns.trouble = None
        self.claimer.stop_within(0)
        assert self.claimer.join(PATIENCE)
        self.dispatcher.stop()
        assert self.dispatcher.join(PATIENCE)
        self.bell.close()


@pytest.fixture
def desk():
    made = []

    def build(*, start=False, **options):
        desk = Desk(**options)
        made.append(desk)
        desk.dispatcher.start()
        if start:
            desk.claimer.start()
            assert desk.claimer.reach.tried.wait(PATIENCE)
            desk.asleep()
        return desk

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
        self, desk, options, demand, claiming, limit
    ):
        """A claim is numbered, so that the server recognises a repetition."""
        desk = desk(**options)
        desk.appetite = demand
        for _ in range(2):
            desk.take(claiming=claiming)
        assert [(1, limit, claiming), (2, limit, claiming)] == [
            (r.seq, r.limit, r.hears) for r in desk.turns.asked
        ]

    def test_asks_for_nothing_while_all_threads_are_busy(self, desk):
        """Other nodes may have free threads."""
        desk = desk()
        desk.take(turn("tea"))
        desk.begun.get(timeout=PATIENCE)
        desk.take()
        assert [1, 0] == desk.limits

    def test_repeats_a_lost_claim_until_it_is_answered(self, desk):
        """
        The request is repeated unchanged, under its number, so the server recognises it. The first
        repetition is immediate; then the pauses grow up to half a second.
        """
        desk = desk()
        desk.turns.trouble = Wrong()
        naps = [desk.take() for _ in range(9)]
        desk.turns.trouble = None
        desk.take()
        desk.take()
        first, *again, other = desk.turns.asked
        assert all(first is request for request in again)
        assert (1, 2) == (first.seq, other.seq)
        assert naps[0] == 0.0
        assert 0.05 <= naps[1] <= 0.1
        assert 0.25 <= naps[-1] <= 0.5
        assert all(nap <= 0.5 for nap in naps)

    def test_repeats_the_settlements_of_a_lost_claim(self, desk):
        """The settlements of a lost claim are sent with its repetition, and with no other claim."""
        desk = desk()
        desk.take(turn("tea"))
        desk.begun.get(timeout=PATIENCE)
        desk.go_on.release()
        eventually(lambda: desk.dispatcher.running == 0)
        desk.take(Wrong())
        assert not desk.dispatcher.unsettled
        desk.take()
        desk.take()
        settled = [[s.verdict for s in r.settlements] for r in desk.turns.asked]
        assert [[], [Verdict.CONFIRM], [Verdict.CONFIRM], []] == settled

    def test_sends_an_echo_when_one_is_due(self, desk):
        """
        An echo proves that the node hears. The listener counts it as sent before the request is, so
        that it cannot arrive unexpected.
        """
        desk = desk()
        desk.take()
        desk.listener.due = 0.0
        desk.take()
        assert [False, True] == [r.echo for r in desk.turns.asked]
        assert ["sent"] == desk.listener.echoes

    def test_expects_no_echo_of_a_lost_claim(self, desk):
        """
        The server may not have sent the echo of a lost claim, and a repetition sends no other.
        Waiting for it would make the node look deaf.
        """
        desk = desk()
        desk.listener.due = 0.0
        for _ in range(3):
            desk.take(Wrong())
        desk.listener.due = LONG
        desk.take()
        assert "sent" == desk.listener.echoes[0]
        assert {"failed"} == set(desk.listener.echoes[1:])


def broken(arrived, *, slow=True):
    error = BrokenReply("it broke off")
    error.arrived, error.slow = arrived, slow
    return error


class TestSlowConnection:
    """A claim whose reply broke off midway is repeated for a smaller reply."""

    @staticmethod
    def asked(desk):
        """Record the number and the size limit of each claim as it is sent."""
        found = []
        ask = desk.turns.ask

        def note(request):
            found.append((request.seq, request.most_bytes, request.strict))
            return ask(request)

        desk.turns.ask = note
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
    def test_repeats_a_broken_claim_for_fewer_bytes(self, desk, arrived, answered, expected):
        """Each case: the bytes that arrived of each broken reply, then the ids of quick replies."""
        desk = desk()
        asked = self.asked(desk)
        for count in arrived:
            assert 0.0 == desk.take(broken(count))
        for ids in answered:
            desk.take(turn(*ids))
        assert [(1, None, False), *expected] == asked

    def test_tries_a_too_large_event_again_after_a_lease(self, desk):
        """The connection may be faster by then. If it is not, a single failure is enough."""
        desk = desk()
        asked = self.asked(desk)
        for _ in range(2):
            desk.take(broken(100_000))
        desk.take()
        desk.claimer.capacity._strict_since -= 30.0
        desk.take(broken(100_000))
        desk.take()
        assert [(2, 50_000, False), (2, 50_000, True)] == asked[3:]

    def test_keeps_the_limit_if_a_reply_takes_half_of_the_time_allowed(self, desk):
        """A reply of twice the size would not arrive in time."""
        desk = desk(lease=300)
        asked = self.asked(desk)
        desk.take(broken(100_000))
        capacity = desk.claimer.capacity
        capacity.received(desk.claimer._exchange.request, turn("tea"), 0.05)
        capacity.received(desk.claimer._exchange.request, turn("tea"), None)
        desk.take()
        assert 50_000 == asked[-1][1]

    def test_reports_a_slow_connection_once_and_in_health(self, desk):
        """
        The error explains the problem once; ``health()`` shows it as long as it lasts. Redis still
        counts as connected.
        """
        desk = desk()
        desk.take(broken(100_000))
        capacity = desk.claimer.capacity
        assert "fewer events are claimed at a time" in str(capacity.error)
        desk.take(broken(100_000))
        assert "more than 50000 bytes are left to other nodes" in str(capacity.error)
        # A reply without events does not prove that the connection is fast again.
        desk.take()
        desk.take(turn("tea"))
        assert capacity.error
        assert ["error"] == [desk.said.get()[0] for _ in range(desk.said.qsize())]
        assert [None] == desk.told()
        assert desk.claimer.reach.tried.is_set()

    def test_repeats_a_reset_claim_unchanged_the_first_time(self, desk):
        """
        A reset says nothing about the speed of the connection. Only a second failure halves the
        reply.
        """
        desk = desk()
        asked = self.asked(desk)
        desk.take(broken(100_000, slow=False))
        assert 0 == desk.said.qsize()
        desk.take(broken(100_000, slow=False))
        desk.take()
        assert [None, None, 50_000] == [most for _, most, _ in asked]

    def test_asks_for_no_events_in_a_repetition_while_leaving(self, desk):
        """The claimed events are released instead of sent, because they would not start."""
        desk = desk()
        asked = self.asked(desk)
        desk.take(broken(100_000))
        desk.take(claiming=False)
        assert [(1, 0, True)] == asked[1:]


class TestReply:
    """The actions that follow from a reply."""

    def test_registers_again_if_the_server_does_not_know_the_node(self, desk):
        """Otherwise the node would stay unknown, and would not be woken."""
        desk = desk()
        desk.take(turn())
        assert 0 == desk.turns.registered
        desk.take(turn(known=False))
        assert 1 == desk.turns.registered

    def test_announces_buried_events_and_trims_the_dead_letters(self, desk):
        """A reply without buried events trims nothing."""
        desk = desk()
        desk.take(turn(buried=[("tea", "expired"), ("egg", "lease_lost")]))
        said = [desk.said.get_nowait() for _ in range(2)]
        assert [("buried", "tea"), ("buried", "egg")] == said
        assert 1 == desk.turns.trimmed
        desk.take(turn())
        assert 1 == desk.turns.trimmed

    def test_adds_times_to_a_schedule_that_runs_short(self, desk):
        """Otherwise the schedule would stop when its times are used up."""
        desk = desk()
        answer = turn()
        answer.short.append("daily")
        desk.take(answer)
        assert ["daily"] == desk.turns.supplied

    def test_reports_an_unreadable_schedule_once_until_it_is_readable(self, desk):
        """The rest of the reply is applied, and the claim counts as answered."""
        desk = desk()
        desk.turns.unfit = {"bad"}
        for _ in range(3):
            answer = turn()
            answer.short.extend(["bad", "good"])
            desk.take(answer)
        assert ["bad", "good"] * 3 == desk.turns.supplied
        assert desk.claimer.reach.error is None
        said = desk.said.get_nowait()
        assert ("error", "bad cannot be read") == (said[0], str(said[1]))
        assert desk.said.empty()
        for unfit in (set(), {"bad"}):
            desk.turns.unfit = unfit
            answer = turn()
            answer.short.append("bad")
            desk.take(answer)
        assert "error" == desk.said.get_nowait()[0]

    def test_reports_each_kind_of_error_once_an_outage_and_its_end_once(self, desk):
        """Two errors that alternate must not fill the log."""
        desk = desk()
        desk.take()
        assert [None] == desk.told()
        for error in (Wrong(1), Wrong(2), ValueError(3), Wrong(4), ValueError(5)):
            desk.take(error)
        assert ["2", "3"] == [str(change) for change in desk.told()]
        assert "5" == str(desk.claimer.reach.error)
        answered = desk.claimer.answered
        desk.take()
        desk.take()
        assert [None] == desk.told()
        assert desk.claimer.reach.error is None
        assert desk.claimer.answered > answered
        desk.take(Wrong(6))
        desk.take(Wrong(7))
        assert ["7"] == [str(change) for change in desk.told()]

    def test_reports_nothing_if_the_first_repetition_succeeds(self, desk):
        """Such a failure, a closed connection for example, has no effect."""
        desk = desk()
        desk.take()
        desk.told()
        desk.take(Wrong())
        assert desk.claimer.reach.error is None
        desk.take()
        assert [] == desk.told()

    def test_reports_a_refusal_at_once_and_repeats_it_after_5_s(self, desk):
        """Only a person can fix it, so quick repetitions would not help."""
        desk = desk()
        assert 5.0 == desk.take(Refused("no"))
        assert ["no"] == [str(change) for change in desk.told()]

    def test_reports_a_failure_after_the_reply_without_repeating_the_claim(self, desk):
        """The claim itself was answered; repeating it would return the same events again."""
        desk = desk()
        registered = _count_failures(desk, "register", 3)
        desk.take(turn(known=False))
        assert ["gone again"] == [str(change) for change in desk.told()]
        desk.take()
        assert [1, 2] == [r.seq for r in desk.turns.asked]
        assert 2 == len(registered)

    def test_a_registration_that_fails_is_one_outage(self, desk):
        """
        Replies between the failed attempts do not end the outage. Meanwhile the node still renews
        its leases.
        """
        desk = desk()
        desk.take()
        desk.told()
        desk.take(turn("tea"))
        desk.begun.get(timeout=PATIENCE)
        registered = _count_failures(desk, "register", 3)
        for answer in (turn(known=False), turn(), turn()):
            desk.claimer._heart.due = 0.0
            desk.take(answer)
        assert ["gone again"] == [str(change) for change in desk.told()]
        assert 3 == len(desk.turns.extended)
        desk.take()
        assert 4 == len(registered)
        assert [None] == desk.told()
        desk.take()
        assert 4 == len(registered)
        desk.go_on.release()

    def test_heartbeats_that_fail_are_one_outage(self, desk):
        """Replies between the failed heartbeats do not end the outage."""
        desk = desk()
        desk.take(turn("tea"))
        desk.begun.get(timeout=PATIENCE)
        desk.told()
        beats = _count_failures(desk, "extend", 3)
        desk.claimer._heart.due = 0.0
        naps = [desk.take() for _ in range(3)]
        assert 3 == len(beats)
        assert ["gone again"] == [str(change) for change in desk.told()]
        assert "gone again" == str(desk.claimer.reach.error)
        assert naps[2] > 0.15, "the pauses do not grow"
        desk.take()
        assert [None] == desk.told()
        assert desk.claimer.reach.error is None
        desk.go_on.release()


def _count_failures(desk, name, times):
    """Make a method of the store fail the first *times* calls; return the list of its calls."""
    made = []
    method = getattr(desk.turns, name)

    def failing(*arguments):
        made.append(arguments)
        if len(made) <= times:
            raise StoreError("gone again")
        return method(*arguments)

    setattr(desk.turns, name, failing)
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
    def test_waits_for_the_next_due_time_and_30_s_at_most(self, desk, poll_s, wait_s, low, high):
        """A node that came later would be late; coming earlier would cost claims."""
        desk = desk(poll_interval=poll_s * 1_000)
        assert low <= desk.take(turn(wait=wait_s * 1_000_000)) <= high

    def test_counts_the_wait_from_when_the_request_was_sent(self, desk):
        """
        The next request will take as long to arrive as this one did, so it must
        leave earlier.
        """
        desk = desk(poll_interval=3_600_000)
        request, answer = desk.claimer._exchange.next(True), turn(wait=10_000_000)
        nap = desk.claimer._nap(request, answer, time.monotonic() - 4, True)
        assert 5.5 < nap <= 6

    def test_polls_after_75_to_100_percent_of_poll_interval(self, desk):
        """
        The interval is a documented limit.

        The variation keeps nodes from polling at the same moment.
        """
        desk = desk(poll_interval=1_000)
        naps = [desk.take(turn(wait=wait)) for wait in (None, YEAR_US) for _ in range(50)]
        assert 0.75 <= min(naps) < max(naps) <= 1

    def test_wakes_to_send_an_echo(self, desk):
        """A deaf node must notice this even if no event is due."""
        desk = desk()
        desk.listener.due = 0.25
        assert 0.25 == desk.take()

    def test_claims_again_at_once_after_a_full_reply(self, desk):
        """A full reply means that more events may be due, and threads are still free."""
        desk = desk(concurrency=3, max_events=100)
        ids = [str(n) for n in range(100)]
        assert desk.take(turn(*ids[1:])) > 0
        assert 0.0 == desk.take(turn(*ids))
        assert [100, 100] == desk.limits

    def test_claims_at_once_if_a_settlement_waits(self, desk):
        """A confirm that waits for the poll would risk a second delivery if the node dies."""
        desk = desk()
        desk.take(turn("tea"))
        desk.begun.get(timeout=PATIENCE)
        desk.go_on.release()
        eventually(lambda: desk.dispatcher.unsettled)
        assert 0.0 == desk.claimer._nap(desk.turns.asked[0], turn(), time.monotonic(), True)

    def test_wakes_for_the_next_heartbeat_while_a_handler_runs(self, desk):
        """Otherwise the lease would expire before the next claim."""
        desk = desk(lease=900, poll_interval=3_600_000)
        assert 0.2 < desk.take(turn("tea")) <= 0.3


class TestClaimInline:
    """A handler thread that becomes free claims by itself instead of waking the claimer."""

    def test_the_free_thread_settles_and_claims_while_the_claimer_sleeps(self, desk):
        """The claimer thread need not be woken, and the free thread need not wait for it."""
        desk = desk(start=True)
        threads = queue.SimpleQueue()
        ask = desk.turns.turn

        def turn_on(request):
            threads.put((threading.current_thread().name, len(request.settlements)))
            return ask(request)

        desk.deliver(turn("a"))
        desk.asleep()
        desk.turns.turn = turn_on
        desk.turns.answers.append(turn("b", results=[Result.DONE]))
        desk.go_on.release()
        assert ["b"] == [ev.id for ev in desk.begun.get(timeout=PATIENCE)]
        assert ("dtimer-test-hand-1", 1) == threads.get(timeout=PATIENCE)
        assert threads.empty()

    def test_the_claimer_wakes_when_the_inline_reply_said(self, desk):
        """A nudge alone must not cause an earlier claim."""
        desk = desk(start=True, poll_interval=3_600_000, look_ahead=0)
        desk.deliver(turn("a"))
        desk.asleep()
        desk.turns.answers.append(turn(wait=100_000, results=[Result.DONE]))
        asked = len(desk.turns.asked)
        before = time.monotonic()
        desk.go_on.release()
        eventually(lambda: len(desk.turns.asked) == asked + 2)
        assert time.monotonic() - before >= 0.1

    def test_rings_the_bell_if_a_claim_is_under_way(self, desk):
        """The claimer then claims once more for the free thread."""
        desk = desk()
        with desk.claimer._turning:
            desk.claimer.relay()
        assert [] == desk.turns.asked
        assert desk.bell.wait(0)

    def test_claims_nothing_while_the_node_leaves(self, desk):
        """An event claimed then would not start."""
        desk = desk()
        desk.claimer.stop()
        desk.claimer.relay()
        assert [] == desk.turns.asked
        assert desk.bell.wait(0)

    def test_the_claimer_ends_after_an_inline_claim_and_releases_its_events(self, desk):
        """Otherwise the events would wait for the end of their lease. No thread would run them."""
        desk = desk(start=True)
        desk.deliver(turn("tea"))
        desk.asleep()
        asked, answer = threading.Event(), threading.Event()
        ask = desk.turns.turn

        def turn_on(request):
            if threading.current_thread() is hand:
                asked.set()
                assert answer.wait(PATIENCE)
            return ask(request)

        desk.turns.turn = turn_on
        late = turn("egg")
        late.claims[0] = replace(late.claims[0], token=2)
        desk.turns.answers.append(late)
        hand = threading.Thread(target=desk.claimer.relay)
        hand.start()
        assert asked.wait(PATIENCE)
        desk.claimer.stop_within(0)
        eventually(lambda: not desk.bell._rung)
        answer.set()
        hand.join(PATIENCE)
        assert desk.claimer.join(PATIENCE)
        assert [("egg", Verdict.RELEASE), ("tea", Verdict.RETRY)] == sorted(desk.settled)


class TestLookAhead:
    """The claimer starts events that it claimed ahead of their due time."""

    @staticmethod
    def early(ms, *ids):
        """Return a reply whose events are due *ms* later."""
        answer = turn(*ids)
        claims = [replace(c, due_us=c.claimed_us + ms * 1000) for c in answer.claims]
        return replace(answer, claims=claims)

    def test_asks_ahead_only_for_threads_that_are_not_promised(self, desk):
        """
        A thread that already has an event claimed ahead is offered only for events that are due
        now.
        """
        desk = desk(concurrency=2, poll_interval=3_600_000)
        assert desk.take(self.early(10, "a")) > 0
        assert desk.take(self.early(10)) > 0
        answer = self.early(10, "b")
        answer.claims[0] = replace(answer.claims[0], token=2)
        desk.take(answer)
        desk.take()
        assert [(2, 20_000), (1, 20_000), (1, 20_000), (2, 0)] == [
            (request.limit, request.ahead_us) for request in desk.turns.asked
        ]

    def test_starts_an_event_when_it_is_due_without_another_claim(self, desk):
        """Looking ahead is meant to save the round trip at the due time."""
        desk = desk(start=True, poll_interval=3_600_000)
        asked = len(desk.turns.asked)
        before = time.monotonic()
        assert ["a"] == [ev.id for ev in desk.deliver(self.early(20, "a"))]
        assert time.monotonic() - before >= 0.02
        assert asked + 1 == len(desk.turns.asked)

    def test_starts_an_event_that_a_handler_thread_claimed_ahead(self, desk):
        """The event must not wait for the claimer's next claim."""
        desk = desk(start=True, poll_interval=3_600_000)
        desk.deliver(turn("a"))
        desk.asleep()
        answer = self.early(20, "b")
        answer.claims[0] = replace(answer.claims[0], token=2)
        desk.turns.answers.append(replace(answer, results=[Result.DONE]))
        asked = len(desk.turns.asked)
        desk.go_on.release()
        assert ["b"] == [ev.id for ev in desk.begun.get(timeout=PATIENCE)]
        assert asked + 1 == len(desk.turns.asked)

    def test_releases_an_event_as_soon_as_its_thread_is_taken(self, desk):
        """Another node may have a free thread. Waiting for the poll would make the event late."""
        desk = desk(start=True, poll_interval=3_600_000, look_ahead=500)
        answer = self.early(500, "later")
        answer.claims[0] = replace(answer.claims[0], token=2)
        desk.turns.answers += [answer, turn("now")]
        for _ in range(2):
            asked = len(desk.turns.asked)
            desk.bell.ring()
            eventually(lambda asked=asked: len(desk.turns.asked) > asked)
            desk.asleep()
        assert ["now"] == [ev.id for ev in desk.begun.get(timeout=PATIENCE)]
        eventually(lambda: desk.settled)
        assert [("later", Verdict.RELEASE)] == desk.settled

    def test_renews_the_lease_of_a_running_event_without_claims(self, desk):
        """The next claim may be an hour away."""
        desk = desk(start=True, lease=300, poll_interval=3_600_000)
        desk.deliver(self.early(20, "a"))
        assert desk.turns.beaten.wait(PATIENCE)
        assert (["a"], 300_000) == desk.turns.extended[0]


class TestBatching:
    """Claims for more than one batch a thread, when events are overdue."""

    def test_asks_for_more_after_full_replies_and_nothing_ahead(self, desk):
        """
        In a backlog, larger claims save round trips. Events ahead of their time would take threads
        from due ones.
        """
        desk = desk(max_events=3, poll_interval=3_600_000)
        for first in (0, 3):
            answer = turn(*(str(n) for n in range(first, first + 3)))
            for n, c in enumerate(answer.claims):
                c.token = first + n + 1
            desk.turns.answers.append(answer)
            desk.go_on.release()
            desk.take()
            eventually(lambda: not desk.dispatcher.running)
        desk.take()
        assert [(3, 20_000), (6, 0), (3, 20_000)] == [
            (request.limit, request.ahead_us) for request in desk.turns.asked
        ]

    def test_looks_ahead_again_when_the_backlog_has_ended(self, desk):
        """
        Otherwise a single overdue event would make every following event be claimed only when it is
        due.
        """
        desk = desk(poll_interval=3_600_000)
        desk.go_on.release()
        desk.take(turn("a"))
        eventually(lambda: not desk.dispatcher.running)
        nap = desk.take(turn(wait=100_000, results=[Result.DONE]))
        assert [(1, 20_000), (2, 0)] == [(r.limit, r.ahead_us) for r in desk.turns.asked]
        assert 0.05 < nap <= 0.09

    def test_does_not_hurry_for_a_claim_that_cannot_look_ahead(self, desk):
        """If all demand is promised, the next claim will not look ahead either."""
        desk = desk(concurrency=2, poll_interval=3_600_000, look_ahead=1_000)
        desk.appetite = 1
        desk.take(TestLookAhead.early(1_000, "a"))
        assert 0 < desk.take(turn(wait=400_000))
        assert [(1, 1_000_000), (1, 0)] == [(r.limit, r.ahead_us) for r in desk.turns.asked]

    def test_asks_for_one_if_events_must_be_released_before_a_thread_is_free(self, desk):
        """
        With a short look-ahead, an event claimed in advance would be released before it could
        start.
        """
        desk = desk(look_ahead=4)
        desk.dispatcher.prefetch.answered(1, 1, overdue=True)
        assert 1 == desk.claimer._exchange.next(True).limit

    def test_asks_for_at_most_the_demand_and_100(self, desk):
        """A script claims at most 100 events."""
        desk = desk(max_events=30)
        desk.dispatcher.prefetch.took(1e-6)
        for _ in range(5):
            desk.dispatcher.prefetch.answered(1, 1, overdue=True)
        desk.appetite = 1_000
        assert 100 == desk.claimer._exchange.next(True).limit
        desk.appetite = 40
        assert 40 == desk.claimer._exchange.next(True).limit

    def test_settles_a_quick_event_while_the_next_one_of_its_batch_runs(self, desk):
        """The next event may take long. A crash in the meantime would repeat the finished one."""
        # No heartbeat may carry the settlement.
        desk = desk(start=True, poll_interval=3_600_000, lease=3_600_000)
        answer = turn("quick", "slow")
        answer.claims[1].token = 2
        desk.deliver(answer)
        desk.asleep()
        desk.go_on.release()
        assert ["slow"] == [ev.id for ev in desk.begun.get(timeout=PATIENCE)]
        eventually(lambda: desk.settled)
        assert ["quick"] == [id for id, _ in desk.settled]


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
    answer = turn(*(str(n) for n in range(first, first + count)))
    for n, claim in enumerate(answer.claims):
        claim.token = first + n
    return answer


class TestPipelining:
    """In a backlog of quick events the server works on the next claim while handlers run."""

    @pytest.fixture
    def backlog(self, desk):
        """A node in such a backlog: its first two claims were filled."""
        desk = desk(poll_interval=3_600_000)
        desk.dispatcher.prefetch.took(1e-6)
        desk.turns.answers += [several(1, 1), several(2, 2), several(4, 4), several(8, 8)]
        desk.go_on.release()
        desk.take()
        eventually(lambda: not desk.dispatcher.running)
        assert [1] == desk.limits
        desk.take()
        return desk

    def test_sends_the_next_claim_before_starting_events(self, backlog):
        """
        The request doubles the limit and does not look ahead. It sends `hears=False`, because no
        thread is free.
        """
        assert ["1"] == [ev.id for ev in backlog.begun.get(timeout=PATIENCE)]
        assert backlog.claimer._exchange.under_way
        *_, last = backlog.turns.asked
        assert (3, 4, 0, False) == (last.seq, last.limit, last.ahead_us, last.hears)
        assert 2 == len(backlog.turns.answers), "the reply was read"

    def test_settles_one_batch_with_the_claim_sent_before_the_next(self, backlog):
        """Otherwise each confirm would need a request of its own."""
        assert ["1"] == [ev.id for ev in backlog.begun.get(timeout=PATIENCE)]
        assert [[], ["1"], []] == [[s.id for s in r.settlements] for r in backlog.turns.asked]
        assert ["2"] == [ev.id for ev in backlog.begun.get(timeout=PATIENCE)]
        backlog.go_on.release()
        eventually(lambda: not backlog.dispatcher.running)
        backlog.dispatcher.prefetch._took = 1e-6
        backlog.take()
        assert ["2"] == [s.id for s in backlog.turns.asked[-1].settlements]
        assert (4, 7) == (backlog.turns.asked[-1].seq, backlog.turns.asked[-1].limit)

    def test_reads_the_reply_within_milliseconds_if_no_thread_does(self, backlog):
        """The claimed events must not wait in an unread reply."""
        assert 0 < backlog.claimer._take_turn(True) <= IN_ADVANCE

    def test_counts_events_under_way_against_the_demand(self, backlog):
        """Events in an unread reply and running events together stay within the demand."""
        backlog.appetite = 9
        backlog.take()
        # One runs, one waits, four have arrived: three more may be asked for.
        assert 3 == backlog.turns.asked[-1].limit

    def test_sends_nothing_ahead_after_a_single_event(self, desk):
        """A single due event does not make a backlog."""
        desk = desk(poll_interval=3_600_000)
        desk.dispatcher.prefetch.took(1e-6)
        desk.take(several(1, 1))
        assert not desk.claimer._exchange.under_way

    def test_sends_nothing_ahead_if_handlers_are_slow(self, desk):
        """Events that would wait for a slow thread are better left to other nodes."""
        desk = desk(poll_interval=3_600_000)
        desk.dispatcher.prefetch.took(1.0)
        desk.go_on.release(3)
        for n in range(3):
            desk.take(several(n + 1, 1))
            eventually(lambda: not desk.dispatcher.running)
        assert not desk.claimer._exchange.under_way

    @pytest.mark.parametrize("odd", [{"known": False}, {"buried": [("9", "expired")]}])
    def test_sends_nothing_ahead_of_a_registration_or_buried_events(self, backlog, odd):
        """An unknown node must register before it claims again."""
        backlog.turns.answers[:] = [replace(several(4, 4), **odd)]
        backlog.take()
        assert not backlog.claimer._exchange.under_way

    def test_counts_a_lease_from_its_own_request(self, backlog):
        """The request sent after it must not make the node trust the lease for longer."""
        sent = backlog.claimer._exchange.sent
        backlog.claimer._exchange.sent = sent - 20
        backlog.take()
        late = backlog.dispatcher.early.clear({"4"})
        assert [-20] == [round(hold._trusted_until - lasting() - 27) for hold in late]

    def test_a_ring_causes_another_claim_after_the_one_under_way(self, backlog):
        """The claim under way may have passed the server before the event was posted."""
        backlog.turns.answers[:] = [turn(), turn("new")]
        backlog.turns.answers[1].claims[0].token = 99
        backlog.claimer._take_turns(fresh=True)
        assert [3, 4] == [r.seq for r in backlog.turns.asked[2:]]
        assert backlog.dispatcher.early.clear({"new"})

    def test_releases_the_events_of_the_last_reply_when_leaving(self, backlog):
        """Otherwise they would wait for the end of their lease."""
        backlog.dispatcher.hand_back()
        backlog.claimer._take_turns(claiming=False, fresh=True)
        backlog.take(claiming=False)
        given = {s.id for r in backlog.turns.asked for s in r.settlements if s.id in "4567"}
        assert {"4", "5", "6", "7"} == given
        assert [0, 0] == [r.limit for r in backlog.turns.asked[3:]]

    def test_repeats_an_unsent_claim_at_once_and_silently(self, backlog):
        """A first failure is not reported, as with any other claim."""
        backlog.told()
        backlog.turns.deaf.append(Wrong("closed"))
        assert 0.0 == backlog.take()
        assert not backlog.claimer._exchange.under_way
        backlog.take()
        first, second = (r for r in backlog.turns.asked if r.seq == 4)
        assert first is second
        assert 1 == first.asked
        assert [] == backlog.told()

    def test_repeats_a_claim_whose_reply_was_lost(self, backlog):
        """Events that were already passed to threads stay there."""
        backlog.turns.answers.insert(0, Wrong("gone"))
        assert 0.0 == backlog.take()
        assert 1 == len(backlog.dispatcher.early)
        backlog.take()
        assert [(3, 1), (3, 1), (4, 0)] == [(r.seq, r.asked) for r in backlog.turns.asked[2:]]

    def test_releases_an_event_that_this_process_replaced_meanwhile(self, backlog):
        """The reply under way still has the old event, which must not start."""
        backlog.dispatcher.reposts.add({"5", "6"})
        backlog.take()
        assert not backlog.dispatcher.early.clear({"5", "6"})
        backlog.take()
        backlog.take()
        settled = [s for r in backlog.turns.asked for s in r.settlements if s.id in "56"]
        assert [("5", Verdict.RELEASE), ("6", Verdict.RELEASE)] == [
            (s.id, s.verdict) for s in settled
        ]

    def test_stops_claiming_while_a_handler_does_not_return(self, backlog):
        """Otherwise the node would claim and release events for as long as the handler runs."""
        tokens = itertools.count(100)
        del backlog.turns.answers[:]
        backlog.turns.turn = lambda r: several(next(tokens), r.limit)
        backlog.dispatcher.prefetch._took = 1e-6
        for _ in range(8):
            next(tokens)
            backlog.take()
        assert not backlog.claimer._exchange.under_way
        asked = len(backlog.turns.asked)
        assert len(backlog.dispatcher.early) <= 2 * 64
        backlog.take()
        assert [0] == [r.limit for r in backlog.turns.asked[asked:]]

    def test_a_release_includes_the_events_of_the_next_reply(self, backlog):
        """With one thread, the later events would otherwise start before the earlier ones."""
        backlog.turns.lone = False
        del backlog.turns.answers[1:]
        backlog.dispatcher.early.patience = 0.0
        for _ in range(4):
            backlog.claimer._dispatcher.start_due()
            backlog.take()
        released = [s.id for r in backlog.turns.asked for s in r.settlements if s.id != "1"]
        assert ["3", "4", "5", "6", "7"] == sorted(released)
        assert not backlog.dispatcher.early

    def test_offers_its_threads_again_when_the_backlog_has_ended(self, desk):
        """
        The last claim of a backlog was sent with `hears=False`. Without another claim no wake would
        come.
        """
        desk = desk(poll_interval=3_600_000)
        desk.claimer._exchange.ask_meanwhile(1)
        desk.claimer._take_turns()
        assert [False, True] == [r.hears for r in desk.turns.asked]

    def test_repeats_a_claim_whose_reply_cannot_be_read(self, desk):
        """The events are claimed; only a repetition returns them again."""
        desk = desk(poll_interval=3_600_000, look_ahead=0)
        answer = turn("tea")
        assert 0.0 == desk.take(replace(answer, claims=Unreadable(answer.claims)))
        desk.take(answer)
        assert [(1, 1), (1, 1)] == [(r.seq, r.asked) for r in desk.turns.asked]
        assert ["tea"] == [ev.id for ev in desk.begun.get(timeout=PATIENCE)]

    def test_keeps_an_unreadable_reply_if_the_next_claim_was_sent(self, backlog):
        """The server would not answer the earlier claim again. The reply is kept and read later."""
        answer = several(4, 4)
        backlog.turns.answers[0] = replace(answer, claims=Unreadable(answer.claims))
        assert 0 < backlog.take() <= IN_ADVANCE
        assert backlog.claimer._exchange.under_way
        assert 1 == len(backlog.dispatcher.early)
        backlog.take()
        assert {"4", "5", "6", "7"} <= {h.claim.id for h in backlog.dispatcher.early.clear()}
        assert not backlog.claimer._unread

    def test_lateness_includes_the_time_in_an_unread_reply(self, backlog):
        """Users would otherwise see an event as punctual that waited for seconds."""
        backlog.claimer._exchange.sent -= 2
        backlog.take()
        late = [h.event.lateness_ms for h in backlog.dispatcher.early.clear({"4", "7"})]
        assert [2000, 2000] == pytest.approx(late, abs=500)

    def test_claims_once_for_a_thread_freed_during_a_claim(self, desk):
        """The claimer claims when the current claim is over. A ring would cost a second claim."""
        desk = desk(start=True, poll_interval=3_600_000)
        asked = len(desk.turns.asked)
        with desk.claimer._turning:
            desk.claimer.relay()
            assert desk.claimer._freed
        eventually(lambda: len(desk.turns.asked) == asked + 1)


class TestHeartbeats:
    """Leases are renewed as long as handlers run."""

    def held(self, desk, *ids):
        """Deliver these events, and make their heartbeat due."""
        desk.take(turn(*ids))
        desk.begun.get(timeout=PATIENCE)
        desk.claimer._heart.due = 0.0

    def test_renews_every_third_of_a_lease(self, desk):
        """Two heartbeats may fail before the lease expires."""
        desk = desk(max_events=2)
        self.held(desk, "tea", "egg")
        before = time.monotonic()
        desk.take()
        assert [(["tea", "egg"], 30_000_000)] == desk.turns.extended
        assert before + 10 <= desk.claimer._heart.due <= time.monotonic() + 10
        desk.take()
        assert 1 == len(desk.turns.extended)

    def test_renews_without_a_ring(self, desk):
        """The thread must wake for a heartbeat by itself."""
        desk = desk(start=True, lease=100, poll_interval=3_600_000)
        desk.deliver(turn("tea"))
        for _ in range(3):
            assert desk.turns.beaten.wait(PATIENCE)
            desk.turns.beaten.clear()
        assert (["tea"], 100_000) == desk.turns.extended[0]

    def test_does_not_renew_settled_events_or_those_over_max_run(self, desk):
        """A renewal would keep the event from other nodes."""
        desk = desk(max_events=3, max_run=10_000)
        self.held(desk, "tea", "egg", "ham")
        tea, egg, _ = desk.dispatcher.held()
        tea.take(Verdict.CONFIRM)
        egg.started -= 11
        desk.take()
        assert [(["ham"], 30_000_000)] == desk.turns.extended

    def test_reports_a_lost_lease_once_and_renews_the_others(self, desk):
        """The handler must learn that another node may run the event."""
        desk = desk(max_events=2)
        self.held(desk, "tea", "egg")
        tea, egg = desk.dispatcher.held()
        desk.turns.lost.add("egg")
        for _ in range(2):
            desk.claimer._heart.due = 0.0
            desk.take()
        assert ("lease_lost", egg.event) == desk.said.get_nowait()
        assert desk.said.empty()
        assert egg.lost()
        assert not tea.lost()

    def test_repeats_a_failed_heartbeat_soon(self, desk):
        """Waiting for the next regular heartbeat could lose the lease."""
        desk = desk()
        self.held(desk, "tea")
        extend, desk.turns.extend = desk.turns.extend, None
        assert desk.take() <= 0.5
        desk.turns.extend = extend
        desk.take()
        assert 1 == len(desk.turns.extended)

    def test_renews_leases_while_claims_fail(self, desk):
        """A running handler must not lose its lease because a claim fails."""
        desk = desk()
        self.held(desk, "tea")
        desk.take(Wrong())
        assert [(["tea"], 30_000_000)] == desk.turns.extended

    def test_renews_an_extended_lease_for_the_rest_of_its_extension(self, desk):
        """A regular heartbeat would shorten the lease that the handler asked for."""
        desk = desk(max_events=2)
        self.held(desk, "tea", "egg")
        _, egg = desk.dispatcher.held()
        egg._wanted_until.append(time.monotonic() + 60)
        desk.take()
        (tea, (ids, lease_us)) = desk.turns.extended
        assert (["tea"], 30_000_000) == tea
        assert ["egg"] == ids
        assert 59_000_000 < lease_us <= 60_000_000

    def test_sends_an_extension_again_if_a_heartbeat_overtook_it(self, desk):
        """
        The heartbeat was under way when the handler extended the lease, and shortened it again. The
        handler may return before the next heartbeat, so the extension is sent at once.
        """
        desk = desk()
        self.held(desk, "tea")
        (tea,) = desk.dispatcher.held()
        extend = desk.turns.extend

        def overtaken(held, lease_us):
            desk.turns.extend = extend
            tea._wanted_until.append(time.monotonic() + 60)
            return extend(held, lease_us)

        desk.turns.extend = overtaken
        desk.take()
        first, second = desk.turns.extended
        assert (["tea"], 30_000_000) == first
        assert 59_000_000 < second[1] < 61_000_000

    def test_trusts_no_lease_until_renewed_if_the_server_clock_jumped_ahead(self, desk):
        """
        Leases may have expired by the new clock. They are renewed at once, and the jump is reported
        once.
        """
        desk = desk()
        self.held(desk, "tea")
        desk.claimer._heart.due = time.monotonic() + LONG
        (tea,) = desk.dispatcher.held()
        extend, desk.turns.extend = desk.turns.extend, None
        desk.take(turn(ahead=3_600))
        assert tea.lost()
        desk.turns.extend = extend
        desk.take(turn(ahead=3_600))
        assert not tea.lost()
        assert [(["tea"], 30_000_000)] == desk.turns.extended
        kind, error = desk.said.get_nowait()
        assert ("error", ClockJump) == (kind, type(error))
        assert pytest.approx(3_600, abs=1) == error.seconds
        assert desk.said.empty()

    @pytest.mark.parametrize(("options", "renewed"), [({}, True), ({"now": lambda: 0}, False)])
    def test_renews_leases_at_once_if_the_server_clock_jumped_back(self, desk, options, renewed):
        """
        If the node died, its leases would otherwise last longer by the size of the jump. Tests move
        a clock that ``now`` gives on purpose: its jumps are ignored.
        """
        desk = desk(**options)
        self.held(desk, "tea")
        desk.claimer._heart.due = time.monotonic() + LONG
        (tea,) = desk.dispatcher.held()
        desk.take(turn(ahead=-3_600))
        assert not tea.lost()
        assert ([(["tea"], 30_000_000)] if renewed else []) == desk.turns.extended
        jumps = [desk.said.get()[1].seconds for _ in range(desk.said.qsize())]
        assert ([pytest.approx(-3_600, abs=1)] if renewed else []) == jumps

    def test_renews_at_most_100_leases_a_call(self, desk):
        """A script that renewed all of them would block the server."""
        desk = desk(max_events=100, concurrency=3)
        for n in range(3):
            claims = [Claim(f"{n}-{i}", 100 * n + i, 1, 1, 1, 3, b"{}") for i in range(80)]
            desk.take(replace(turn(), claims=claims))
        desk.claimer._heart.due = 0.0
        desk.take()
        assert [100, 100, 40] == [len(ids) for ids, _ in desk.turns.extended]


class TestLeaving:
    """The drain."""

    def test_waits_for_handlers_and_settles_before_it_ends(self, desk):
        """`on_stopped` is called last, when all results are stored."""
        desk = desk(start=True)
        desk.deliver(turn("tea"))
        asked = len(desk.turns.asked)
        desk.claimer.stop_within(None)
        eventually(lambda: len(desk.turns.asked) > asked)
        assert not desk.claimer.join(0)
        assert 0 == desk.farewells
        desk.go_on.release()
        assert desk.claimer.join(PATIENCE)
        assert 1 == desk.farewells
        assert [Verdict.CONFIRM] == [verdict for _, verdict in desk.settled]
        assert {0} == {r.limit for r in desk.turns.asked[asked:]}

    def test_retries_running_events_at_the_nearest_of_several_deadlines(self, desk):
        """
        The process may end then, so another node must run them. A second call of leave() does not
        prolong the first.
        """
        desk = desk(start=True)
        desk.deliver(turn("tea"))
        for seconds in (LONG, 0.05, None, LONG):
            desk.claimer.stop_within(seconds)
        assert desk.claimer.join(PATIENCE)
        assert [Verdict.RETRY] == [verdict for _, verdict in desk.settled]

    def test_the_nearest_deadline_counts_if_one_call_interrupts_another(self, desk):
        """A signal handler that leaves at once may interrupt a leave() with a longer deadline."""
        desk = desk(start=True)
        for n in each_bytecode():
            desk.claimer._deadlines.clear()
            interruption = Interruption(n, lambda: desk.claimer.stop_within(0))
            interruption.during(lambda: desk.claimer.stop_within(LONG))
            if interruption.where is None:
                break
            assert desk.claimer._overdue(), interruption.where
        assert n > 5

    def test_releases_the_events_of_a_lost_claim(self, desk):
        """The node learns of these events only while it leaves, and does not start them."""
        desk = desk(start=True)
        desk.turns.trouble = Wrong()
        desk.bell.ring()
        eventually(lambda: desk.claimer.reach.error)
        desk.claimer.stop_within(None)
        eventually(desk.claimer._stopping.is_set)
        desk.turns.answers.append(turn("tea"))
        desk.turns.trouble = None
        desk.bell.ring()
        assert desk.claimer.join(PATIENCE)
        assert [Verdict.RELEASE] == [verdict for _, verdict in desk.settled]
        assert desk.begun.empty()

    @pytest.mark.parametrize("point", ["turn.asking", "claim.answered", "claim.handed"])
    def test_releases_events_claimed_while_it_is_told_to_stop(self, desk, point):
        """
        A stop at any moment of a claim finds events that no handler thread has. They are released
        before the thread ends, or they would wait for the end of their lease.
        """
        desk = desk(start=True, poll_interval=3_600_000)
        ask = desk.turns.turn

        def stop():
            desk.claimer.stop_within(None)
            desk.turns.turn = ask

        def stopped(request):
            stop()
            return ask(request)

        desk.turns.answers.append(TestLookAhead.early(20, "tea"))
        with contextlib.ExitStack() as planted:
            if point == "turn.asking":
                desk.turns.turn = stopped
            else:
                planted.enter_context(arm(point, stop))
            desk.bell.ring()
            assert desk.claimer.join(PATIENCE)
        assert [("tea", Verdict.RELEASE)] == desk.settled
        assert desk.begun.empty()

    def test_settles_a_handler_that_ends_during_the_check_for_running_ones(self, desk):
        """
        The claimer checks for unsettled events, then for running ones. A handler that returns
        between the two checks is still confirmed before the thread ends.
        """
        desk = desk(start=True)
        desk.deliver(turn("tea"))
        desk.asleep()
        done, looking = desk.claimer._done, []

        class Ending(Dispatcher):
            """Lets the handler return while the claimer checks for unsettled events."""

            @property
            def unsettled(self):
                seen = super().unsettled
                if looking and self.running:
                    desk.go_on.release()
                    eventually(lambda: not self.running)
                return seen

        def look(abandoned):
            looking.append(True)
            try:
                return done(abandoned)
            finally:
                looking.clear()
                desk.go_on.release()

        desk.dispatcher.__class__ = Ending
        desk.claimer._done = look
        desk.claimer.stop_within(None)
        assert desk.claimer.join(PATIENCE)
        assert [Verdict.CONFIRM] == [verdict for _, verdict in desk.settled]

    def test_releases_a_batch_if_enqueueing_it_fails(self, desk):
        """Without memory for the queue entry, the events would wait for the end of their lease."""
        desk = desk()
        put, broken = desk.dispatcher._inbox.put, [MemoryError("no more")]
        desk.dispatcher._inbox = SimpleNamespace(
            put=lambda batch: put(batch) if batch is None or not broken else self._fail(broken),
            get_nowait=desk.dispatcher._inbox.get_nowait,
        )
        desk.take(turn("tea"))
        desk.take()
        assert [("tea", Verdict.RELEASE)] == desk.settled
        assert [] == desk.dispatcher.held()

    @staticmethod
    def _fail(broken):
        raise broken.pop()

    @pytest.mark.parametrize("trouble", [Wrong(), Refused()])
    def test_stops_waiting_for_a_silent_server_at_the_deadline(self, desk, trouble, monkeypatch):
        """
        Without a deadline it waits as long as a call may take. The pause after a refusal does not
        prolong this.
        """
        monkeypatch.setattr("dtimer.engine.reach._SLOW_PAUSE", 10.0 * LIMIT)
        desk = desk(start=True, timeout=200)
        desk.turns.trouble = trouble
        desk.bell.ring()
        eventually(lambda: desk.claimer.reach.error)
        began = time.monotonic()
        desk.claimer.stop_within(None)
        assert desk.claimer.join(PATIENCE)
        assert time.monotonic() - began < PROMPT
        assert 1 == desk.farewells

    def test_reports_an_exception_of_the_loop_and_continues_within_a_second(self, desk):
        """The thread must survive any exception, or the node would silently stop claiming."""
        desk = desk(start=True)
        desk.told()
        room, broken = desk.dispatcher.room, [MemoryError("no more")]

        def fail():
            if broken:
                raise broken.pop()
            return room()

        desk.dispatcher.room = fail
        desk.bell.ring()
        what, error = desk.said.get(timeout=PATIENCE)
        assert ("error", "no more") == (what, str(error))
        asked = len(desk.turns.asked)
        eventually(lambda: len(desk.turns.asked) > asked)
        assert [] == desk.told(), "reported an outage of Redis"

    def test_calls_on_stopped_even_if_the_drain_raises(self, desk):
        """leave() waits for this call."""
        desk = desk(start=True)
        hand_back, broken = desk.dispatcher.hand_back, [MemoryError("no more")]

        def fail():
            if broken:
                raise broken.pop()
            hand_back()

        desk.dispatcher.hand_back = fail
        desk.claimer.stop_within(None)
        assert desk.claimer.join(PATIENCE)
        assert 1 == desk.farewells
        assert "error" == desk.said.get_nowait()[0]
