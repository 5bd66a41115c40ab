"""The claimer, turn by turn, with a store of the test's own and no server."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
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

LONG = 3_600.0  # seconds; no test is there to see it
YEAR_US = 365 * 86_400 * 1_000_000


class Wrong(Exception):
    """What the store here fails with."""


class Refused(Exception):
    """What a person has to mend."""


def turn(*ids, wait=None, known=True, results=(), buried=(), ahead=0):
    claims = [Claim(id, n, 1, 1_000, 1_000, 3, b"{}") for n, id in enumerate(ids, 1)]
    now = round((time.monotonic() + ahead) * 1e6)
    return Turn(now, wait, known, list(results), claims, list(buried))


class FakeTurns:
    """A store that answers what the test has prepared, and else that nothing is due."""

    def __init__(self):
        self.asked = []
        self.answers = []
        self.extended = []
        self.registered = 0
        self.supplied = []
        self.unfit = set()  # schedules that no node can supply
        self.trimmed = 0
        self.lone = False  # whether no other node is there
        self.lost = set()  # ids whose lease is somebody else's
        self.trouble = None  # raised by whatever is asked from now on
        self.busy = False
        self.deaf = []  # raised where it is asked, and not where it answers
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
    """A listener that hears as the test says."""

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
    """A claimer, a real dispatcher, and the test around them."""

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
        # Where the test itself takes the turns nobody else does.
        (self.claimer.relay if self.claimer.started else self.bell.ring)()

    def _farewell(self):
        self.farewells += 1

    def take(self, answer=None, *, claiming=True):
        """Take one turn on the test's own thread, and return the nap that follows."""
        if answer is not None:
            self.turns.answers.append(answer)
        return self.claimer._take_turn(claiming)

    def asleep(self):
        """Wait until the claimer is done with its turn."""
        eventually(lambda: self.claimer._asleep_until and not self.claimer._turning.locked())

    def told(self):
        """The changes told of so far."""
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


class TestRequest:
    """What a turn asks for."""

    def test_numbered(self, desk):
        """Each new turn has the next number, and asks for what free hands can start."""
        desk = desk(max_events=3, concurrency=2)
        for _ in range(3):
            desk.take()
        assert [1, 2, 3] == [r.seq for r in desk.turns.asked]
        assert {6} == {r.limit for r in desk.turns.asked}
        assert {True} == {r.hears for r in desk.turns.asked}

    def test_nobody_to_hand_anything_to(self, desk):
        """Without a listener, and while it leaves, it claims nothing."""
        desk = desk()
        desk.appetite = 0
        desk.take()
        desk.appetite = 100
        desk.take(claiming=False)
        assert [0, 0] == [r.limit for r in desk.turns.asked]
        assert [True, False] == [r.hears for r in desk.turns.asked]

    def test_no_more_than_is_wanted(self, desk):
        """It claims no more than there is an appetite for, whatever hands are free."""
        desk = desk(max_events=5)
        desk.appetite = 3
        desk.take()
        assert [3] == [r.limit for r in desk.turns.asked]

    def test_busy_hands_claim_nothing(self, desk):
        """While all hands are busy it claims nothing."""
        desk = desk()
        desk.take(turn("tea"))
        desk.begun.get(timeout=PATIENCE)
        desk.take()
        assert [1, 0] == [r.limit for r in desk.turns.asked]

    def test_a_lost_turn_is_asked_again(self, desk):
        """
        A turn that was not answered is asked again, unchanged and under its number, until
        it is answered: the first time at once, then with growing pauses up to half a
        second.
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

    def test_a_lost_turn_keeps_its_settlements(self, desk):
        """What was to be settled in a lost turn is settled by it, once, and by no other."""
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

    def test_an_echo(self, desk):
        """An echo rides on a turn when one is due; it counts as sent before it is."""
        desk = desk()
        desk.take()
        desk.listener.due = 0.0
        desk.take()
        assert [False, True] == [r.echo for r in desk.turns.asked]
        assert ["sent"] == desk.listener.echoes

    def test_an_echo_of_a_lost_turn(self, desk):
        """
        Of a lost turn it is not known whether its echo was sent: it is not waited for, nor
        when the same turn is asked again and sends no other.
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
    """A reply that broke off while it arrived is not asked for again as large as it was."""

    @staticmethod
    def asked(desk):
        """What the turns have asked for: each when it was sent."""
        found = []
        ask = desk.turns.ask

        def note(request):
            found.append((request.seq, request.most_bytes, request.strict))
            return ask(request)

        desk.turns.ask = note
        return found

    def test_asks_at_once_for_half_of_what_arrived(self, desk):
        """The same turn is asked again, so that nothing it has claimed is lost by it."""
        desk = desk()
        asked = self.asked(desk)
        assert 0.0 == desk.take(broken(100_000))
        desk.take()
        assert [(1, None, False), (1, 50_000, False)] == asked

    def test_passes_over_what_is_too_large_alone(self, desk):
        """A second failure is the first event's own: larger ones are left for the others."""
        desk = desk()
        asked = self.asked(desk)
        for _ in range(2):
            desk.take(broken(100_000))
        desk.take()
        desk.take(turn("tea"))
        assert [(1, 50_000, False), (1, 50_000, True), (2, 50_000, True)] == asked[1:]

    def test_tries_what_was_too_large_when_a_lease_has_passed(self, desk):
        """The connection may be quicker by then; where it is not, one failure is enough."""
        desk = desk()
        asked = self.asked(desk)
        for _ in range(2):
            desk.take(broken(100_000))
        desk.take()
        desk.claimer.capacity._strict_since -= 30.0
        desk.take(broken(100_000))
        desk.take()
        assert [(2, 50_000, False), (2, 50_000, True)] == asked[3:]

    def test_asks_for_more_while_answers_are_quick(self, desk):
        """A connection that is quick again is asked for as much as any other."""
        desk = desk()
        asked = self.asked(desk)
        desk.take(broken(600_000))
        desk.take(turn("tea"))
        assert desk.claimer.capacity.error is None
        for _ in range(2):
            desk.take(turn("tea"))
        assert [300_000, 600_000, None] == [most for _, most, _ in asked[1:]]

    def test_asks_for_no_more_while_they_are_not(self, desk):
        """What takes half of a try leaves no room for twice as much."""
        desk = desk(lease=300)
        asked = self.asked(desk)
        desk.take(broken(100_000))
        capacity = desk.claimer.capacity
        capacity.received(desk.claimer._exchange.request, turn("tea"), 0.05)
        capacity.received(desk.claimer._exchange.request, turn("tea"), None)
        desk.take()
        assert 50_000 == asked[-1][1]

    def test_asks_for_something_however_little_arrived(self, desk):
        """A connection that stalled after a few bytes is not taken for one that carries none."""
        desk = desk()
        asked = self.asked(desk)
        desk.take(broken(20))
        desk.take()
        assert 10_000 == asked[-1][1]

    def test_tells_once_and_is_not_well(self, desk):
        """An error says what is wrong, ``health()`` as long as it is, and Redis is not away."""
        desk = desk()
        desk.take(broken(100_000))
        capacity = desk.claimer.capacity
        assert "fewer events are claimed at a time" in str(capacity.error)
        desk.take(broken(100_000))
        assert "more than 50000 bytes are left to other nodes" in str(capacity.error)
        # Handed back, or passed over, is not received.
        desk.take()
        desk.take(turn("tea"))
        assert capacity.error
        assert ["error"] == [desk.said.get()[0] for _ in range(desk.said.qsize())]
        assert [None] == desk.told()
        assert desk.claimer.reach.tried.is_set()

    def test_a_connection_that_was_reset_is_not_slow(self, desk):
        """The first time, what ended amid a reply is asked for as it was, silently; then less."""
        desk = desk()
        asked = self.asked(desk)
        desk.take(broken(100_000, slow=False))
        assert 0 == desk.said.qsize()
        desk.take(broken(100_000, slow=False))
        desk.take()
        assert [None, None, 50_000] == [most for _, most, _ in asked]

    def test_a_node_that_leaves_receives_nothing_more(self, desk):
        """What the turn has claimed is handed back without being sent: it would not start."""
        desk = desk()
        asked = self.asked(desk)
        desk.take(broken(100_000))
        desk.take(claiming=False)
        assert [(1, 0, True)] == asked[1:]


class TestAnswer:
    """What follows from an answer."""

    def test_unknown(self, desk):
        """A node whose registration is gone registers again."""
        desk = desk()
        desk.take(turn())
        assert 0 == desk.turns.registered
        desk.take(turn(known=False))
        assert 1 == desk.turns.registered

    def test_buried(self, desk):
        """What was found unfit is announced, and the dead letters are trimmed."""
        desk = desk()
        desk.take(turn(buried=[("tea", "expired"), ("egg", "lease_lost")]))
        said = [desk.said.get_nowait() for _ in range(2)]
        assert [("buried", "tea"), ("buried", "egg")] == said
        assert 1 == desk.turns.trimmed
        desk.take(turn())
        assert 1 == desk.turns.trimmed

    def test_schedules_that_run_short(self, desk):
        """A schedule that runs out of nominal times is brought more."""
        desk = desk()
        answer = turn()
        answer.short.append("daily")
        desk.take(answer)
        assert ["daily"] == desk.turns.supplied

    def test_a_schedule_that_cannot_be_supplied(self, desk):
        """
        It is told once, not in every turn, and once more when it went well in between; all else
        of the turn is done, and it counts as answered.
        """
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

    def test_outages_are_told_once(self, desk):
        """
        Each kind of error is told once in an outage, however they take turns, and its end
        once.
        """
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

    def test_a_single_failure_is_nobodys_business(self, desk):
        """A turn that gets through when it is asked again at once is not talked about."""
        desk = desk()
        desk.take()
        desk.told()
        desk.take(Wrong())
        assert desk.claimer.reach.error is None
        desk.take()
        assert [] == desk.told()

    def test_what_a_person_must_mend(self, desk):
        """An error that needs a person is told at once, and not asked again soon."""
        desk = desk()
        assert 5.0 == desk.take(Refused("no"))
        assert ["no"] == [str(change) for change in desk.told()]

    def test_a_reply_that_cannot_be_dealt_with(self, desk):
        """Trouble after the answer is told, and that answer is not asked for again."""
        desk = desk()
        registered = _count_failures(desk, "register", 3)
        desk.take(turn(known=False))
        assert ["gone again"] == [str(change) for change in desk.told()]
        desk.take()
        assert [1, 2] == [r.seq for r in desk.turns.asked]
        assert 2 == len(registered)

    def test_a_registration_that_fails_is_one_outage(self, desk):
        """
        Until the node is registered it is not well, whatever the turns say in between; and
        it keeps the leases of what runs.
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
        """Turns that are answered meanwhile do not make it one outage each."""
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
        assert naps[2] > 0.15, "it is tried ever less often"
        desk.take()
        assert [None] == desk.told()
        assert desk.claimer.reach.error is None
        desk.go_on.release()


def _count_failures(desk, name, times):
    """Have a method of the store fail so often, and its calls counted."""
    made = []
    method = getattr(desk.turns, name)

    def failing(*arguments):
        made.append(arguments)
        if len(made) <= times:
            raise StoreError("gone again")
        return method(*arguments)

    setattr(desk.turns, name, failing)
    return made


class TestNap:
    """How long it waits for a ring."""

    def test_as_long_as_it_was_told(self, desk):
        """Until the time that the turn named, when that is before the next poll."""
        desk = desk(poll_interval=60_000)
        assert 9 < desk.take(turn(wait=10_000_000)) <= 10
        assert 0.0 == desk.take(turn(wait=0))

    def test_counted_from_the_question(self, desk):
        """
        The wait that a turn tells is counted from when it was asked for: the next question
        will be as long on its way as this one was.
        """
        desk = desk(poll_interval=3_600_000)
        request, answer = desk.claimer._exchange.next(True), turn(wait=10_000_000)
        nap = desk.claimer._nap(request, answer, time.monotonic() - 4, True)
        assert 5.5 < nap <= 6

    def test_a_poll(self, desk):
        """Otherwise about a poll interval, and never more than that: it is a promise."""
        desk = desk(poll_interval=1_000)
        naps = [desk.take(turn(wait=wait)) for wait in (None, YEAR_US) for _ in range(50)]
        assert 0.75 <= min(naps) < max(naps) <= 1

    def test_no_long_sleep(self, desk):
        """Ten years are waited for in slices of half a minute at most."""
        desk = desk(poll_interval=3_600_000)
        assert desk.take(turn(wait=10 * YEAR_US)) <= 30

    def test_an_echo_wanted(self, desk):
        """It wakes to send an echo."""
        desk = desk()
        desk.listener.due = 0.25
        assert 0.25 == desk.take()

    def test_more_may_be_due(self, desk):
        """A turn that gave all that was asked for is followed by another while there is room."""
        desk = desk(concurrency=3, max_events=100)
        ids = [str(n) for n in range(100)]
        assert desk.take(turn(*ids[1:])) > 0
        assert 0.0 == desk.take(turn(*ids))
        assert [100, 100] == [r.limit for r in desk.turns.asked]

    def test_something_to_settle(self, desk):
        """What is to be settled is settled at once."""
        desk = desk()
        desk.take(turn("tea"))
        desk.begun.get(timeout=PATIENCE)
        desk.go_on.release()
        eventually(lambda: desk.dispatcher.unsettled)
        assert 0.0 == desk.claimer._nap(desk.turns.asked[0], turn(), time.monotonic(), True)

    def test_a_heartbeat(self, desk):
        """While a handler runs it wakes for the next heartbeat."""
        desk = desk(lease=900, poll_interval=3_600_000)
        assert 0.2 < desk.take(turn("tea")) <= 0.3


class TestRelay:
    """A hand that has become free takes the turn that it would wake the claimer for."""

    def test_on_the_hand(self, desk):
        """
        What a handler did is settled, and the next event claimed, on the thread of the hand
        that has become free: the claimer sleeps through it.
        """
        desk = desk(start=True)
        threads = queue.SimpleQueue()
        ask = desk.turns.turn

        def turn_on(request):
            threads.put((threading.current_thread().name, len(request.settlements)))
            return ask(request)

        desk.turns.answers.append(turn("a"))
        desk.bell.ring()
        desk.begun.get(timeout=PATIENCE)
        desk.asleep()
        desk.turns.turn = turn_on
        desk.turns.answers.append(turn("b", results=[Result.DONE]))
        desk.go_on.release()
        assert ["b"] == [ev.id for ev in desk.begun.get(timeout=PATIENCE)]
        assert ("dtimer-test-hand-1", 1) == threads.get(timeout=PATIENCE)
        assert threads.empty()

    def test_the_claimer_sleeps_no_longer_than_that(self, desk):
        """
        The claimer wakes when the turn that a hand took said so, and a nudge by itself is
        no reason to take another one before.
        """
        desk = desk(start=True, poll_interval=3_600_000, look_ahead=0)
        desk.turns.answers.append(turn("a"))
        desk.bell.ring()
        desk.begun.get(timeout=PATIENCE)
        desk.asleep()
        desk.turns.answers.append(turn(wait=100_000, results=[Result.DONE]))
        asked = len(desk.turns.asked)
        before = time.monotonic()
        desk.go_on.release()
        eventually(lambda: len(desk.turns.asked) == asked + 2)
        assert time.monotonic() - before >= 0.1

    def test_while_the_claimer_is_at_it(self, desk):
        """Where a turn is being taken already the claimer is rung, and takes another."""
        desk = desk()
        with desk.claimer._turning:
            desk.claimer.relay()
        assert [] == desk.turns.asked
        assert desk.bell.wait(0)

    def test_while_it_leaves(self, desk):
        """A node that leaves claims nothing more, on no thread."""
        desk = desk()
        desk.claimer.stop()
        desk.claimer.relay()
        assert [] == desk.turns.asked
        assert desk.bell.wait(0)

    def test_the_end_waits_for_it(self, desk):
        """
        What a hand claims while the node is told to leave at once is given back like all the
        rest: not left to its lease, with nobody to hand it to.
        """
        desk = desk(start=True)
        desk.turns.answers.append(turn("tea"))
        desk.bell.ring()
        desk.begun.get(timeout=PATIENCE)
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
        settled = [(s.id, s.verdict) for request in desk.turns.asked for s in request.settlements]
        assert [("egg", Verdict.RELEASE), ("tea", Verdict.RETRY)] == sorted(settled)


class TestAhead:
    """What was claimed ahead of its time is waited for by the claimer."""

    @staticmethod
    def early(ms, *ids):
        """A turn whose claims are due so many ms later."""
        answer = turn(*ids)
        claims = [replace(c, due_us=c.claimed_us + ms * 1000) for c in answer.claims]
        return replace(answer, claims=claims)

    def test_asked_for(self, desk):
        """
        As many are asked for as hands will be free then; a hand that is promised is asked for
        again only for what is due now.
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

    def test_no_turn_for_its_sake(self, desk):
        """A hand that is promised is no reason to ask at once for more."""
        desk = desk(poll_interval=3_600_000)
        assert desk.take(self.early(10, "a")) > 0

    def test_started_in_time(self, desk):
        """It begins when it is due, without another turn."""
        desk = desk(start=True, poll_interval=3_600_000)
        asked = len(desk.turns.asked)
        before = time.monotonic()
        desk.turns.answers.append(self.early(20, "a"))
        desk.bell.ring()
        assert ["a"] == [ev.id for ev in desk.begun.get(timeout=PATIENCE)]
        assert time.monotonic() - before >= 0.02
        assert asked + 1 == len(desk.turns.asked)

    def test_claimed_by_a_hand(self, desk):
        """What a hand has claimed ahead does not wait for the claimer's next turn."""
        desk = desk(start=True, poll_interval=3_600_000)
        desk.turns.answers.append(turn("a"))
        desk.bell.ring()
        desk.begun.get(timeout=PATIENCE)
        desk.asleep()
        answer = self.early(20, "b")
        answer.claims[0] = replace(answer.claims[0], token=2)
        desk.turns.answers.append(replace(answer, results=[Result.DONE]))
        asked = len(desk.turns.asked)
        desk.go_on.release()
        assert ["b"] == [ev.id for ev in desk.begun.get(timeout=PATIENCE)]
        assert asked + 1 == len(desk.turns.asked)

    def test_given_back_at_once(self, desk):
        """What found no hand is given back then, for another node: not when the poll comes."""
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
        eventually(lambda: any(request.settlements for request in desk.turns.asked), 5)
        assert [("later", Verdict.RELEASE)] == [
            (s.id, s.verdict) for request in desk.turns.asked for s in request.settlements
        ]

    def test_its_heart_beats(self, desk):
        """Its lease is renewed in time, however far away the next turn is."""
        desk = desk(start=True, lease=300, poll_interval=3_600_000)
        desk.turns.answers.append(self.early(20, "a"))
        desk.bell.ring()
        desk.begun.get(timeout=PATIENCE)
        assert desk.turns.beaten.wait(PATIENCE)
        assert (["a"], 300_000) == desk.turns.extended[0]


class TestPrefetch:
    """More than one batch for a hand, where events are overdue."""

    def test_asked_for(self, desk):
        """After turns that got all that they asked for, more is asked for, and nothing ahead."""
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

    def test_ahead_again(self, desk):
        """
        When there was no more, the node comes ahead of what is due next as ever: or one event
        that was overdue would have the next claimed when it is due, and so all that follow.
        """
        desk = desk(poll_interval=3_600_000)
        desk.go_on.release()
        desk.take(turn("a"))
        eventually(lambda: not desk.dispatcher.running)
        nap = desk.take(turn(wait=100_000, results=[Result.DONE]))
        assert [(1, 20_000), (2, 0)] == [(r.limit, r.ahead_us) for r in desk.turns.asked]
        assert 0.05 < nap <= 0.09

    def test_no_haste_for_a_reader_who_is_promised(self, desk):
        """Where the next turn will not ask ahead, either, none is taken ahead for it."""
        desk = desk(concurrency=2, poll_interval=3_600_000, look_ahead=1_000)
        desk.appetite = 1
        desk.take(TestAhead.early(1_000, "a"))
        assert 0 < desk.take(turn(wait=400_000))
        assert [(1, 1_000_000), (1, 0)] == [(r.limit, r.ahead_us) for r in desk.turns.asked]

    def test_not_for_those_who_may_not_wait(self, desk):
        """Nothing is claimed in advance of a hand that would be given back before it was free."""
        desk = desk(look_ahead=4)
        desk.dispatcher.prefetch.answered(1, 1, overdue=True)
        assert 1 == desk.claimer._exchange.next(True).limit

    def test_no_more_than_is_wanted(self, desk):
        """Never more than there is anybody to hand to, nor than a script may claim."""
        desk = desk(max_events=30)
        desk.dispatcher.prefetch.took(1e-6)
        for _ in range(5):
            desk.dispatcher.prefetch.answered(1, 1, overdue=True)
        desk.appetite = 1_000
        assert 100 == desk.claimer._exchange.next(True).limit
        desk.appetite = 40
        assert 40 == desk.claimer._exchange.next(True).limit

    def test_settled_while_a_slow_one_runs(self, desk):
        """
        What a quick handler has done is settled soon, also while its hand is busy with the
        next one: that may take long.
        """
        desk = desk(start=True, poll_interval=3_600_000)
        answer = turn("quick", "slow")
        answer.claims[1].token = 2
        desk.turns.answers.append(answer)
        desk.bell.ring()
        desk.begun.get(timeout=PATIENCE)
        desk.asleep()
        desk.go_on.release()
        assert ["slow"] == [ev.id for ev in desk.begun.get(timeout=PATIENCE)]
        eventually(lambda: any(request.settlements for request in desk.turns.asked))
        assert ["quick"] == [s.id for request in desk.turns.asked for s in request.settlements]


class Unreadable(list):
    """Claims for which there is no memory, at first."""

    def __init__(self, claims):
        super().__init__(claims)
        self.failures = 1

    def __getitem__(self, index):
        if self.failures:
            self.failures -= 1
            raise MemoryError
        return super().__getitem__(index)


def several(first, count):
    """A turn that claims so many overdue events, of these tokens."""
    answer = turn(*(str(n) for n in range(first, first + count)))
    for n, claim in enumerate(answer.claims):
        claim.token = first + n
    return answer


class TestMeanwhile:
    """In a backlog of quick events the store is at work on the next turn while the hands are."""

    @pytest.fixture
    def backlog(self, desk):
        """A node in such a backlog: its first two turns were given all that they asked for."""
        desk = desk(poll_interval=3_600_000)
        desk.dispatcher.prefetch.took(1e-6)
        desk.turns.answers += [several(1, 1), several(2, 2), several(4, 4), several(8, 8)]
        desk.go_on.release()
        desk.take()
        eventually(lambda: not desk.dispatcher.running)
        assert [1] == [r.limit for r in desk.turns.asked]
        desk.take()
        return desk

    def test_asked(self, backlog):
        """
        The next turn is on its way before what this one has claimed was handed out. It asks for
        twice as many, ahead of nothing, and does not offer hands that are not free.
        """
        assert ["1"] == [ev.id for ev in backlog.begun.get(timeout=PATIENCE)]
        assert backlog.claimer._exchange.under_way
        *_, last = backlog.turns.asked
        assert (3, 4, 0, False) == (last.seq, last.limit, last.ahead_us, last.hears)
        assert 2 == len(backlog.turns.answers), "nobody has read the answer"

    def test_what_was_done_before_is_settled_by_it(self, backlog):
        """The confirms of one batch ride on the question that is asked before the next."""
        assert ["1"] == [ev.id for ev in backlog.begun.get(timeout=PATIENCE)]
        assert [[], ["1"], []] == [[s.id for s in r.settlements] for r in backlog.turns.asked]
        assert ["2"] == [ev.id for ev in backlog.begun.get(timeout=PATIENCE)]
        backlog.go_on.release()
        eventually(lambda: not backlog.dispatcher.running)
        backlog.dispatcher.prefetch._took = 1e-6
        backlog.take()
        assert ["2"] == [s.id for s in backlog.turns.asked[-1].settlements]
        assert (4, 7) == (backlog.turns.asked[-1].seq, backlog.turns.asked[-1].limit)

    def test_not_for_long(self, backlog):
        """
        Where no hand comes for the answer the claimer does, within milliseconds: what it has
        claimed is not to lie there.
        """
        assert 0 < backlog.claimer._take_turn(True) <= IN_ADVANCE

    def test_no_more_than_there_is_anybody_for(self, backlog):
        """Those on their way and those in hand are not more than are wanted together."""
        backlog.appetite = 9
        backlog.take()
        # One is in hand, one is kept, four have come, so three may be asked for.
        assert 3 == backlog.turns.asked[-1].limit

    def test_not_after_one_event(self, desk):
        """One event that was due says nothing of a second."""
        desk = desk(poll_interval=3_600_000)
        desk.dispatcher.prefetch.took(1e-6)
        desk.take(several(1, 1))
        assert not desk.claimer._exchange.under_way

    def test_not_when_handlers_take_long(self, desk):
        """What waits for a slow hand is better left to other nodes."""
        desk = desk(poll_interval=3_600_000)
        desk.dispatcher.prefetch.took(1.0)
        desk.go_on.release(3)
        for n in range(3):
            desk.take(several(n + 1, 1))
            eventually(lambda: not desk.dispatcher.running)
        assert not desk.claimer._exchange.under_way

    @pytest.mark.parametrize("odd", [{"known": False}, {"buried": [("9", "expired")]}])
    def test_first_things_first(self, backlog, odd):
        """Nothing is asked before a registration was renewed, or what is odd was seen to."""
        backlog.turns.answers[:] = [replace(several(4, 4), **odd)]
        backlog.take()
        assert not backlog.claimer._exchange.under_way

    def test_leases_count_from_their_own_question(self, backlog):
        """How long a claim is believed in does not depend on what was asked after it."""
        sent = backlog.claimer._exchange.sent
        backlog.claimer._exchange.sent = sent - 20
        backlog.take()
        late = backlog.dispatcher.early.clear({"4"})
        assert [-20] == [round(hold._believed_until - lasting() - 27) for hold in late]

    def test_rung_meanwhile(self, backlog):
        """The one on its way is read first; the bell wants one that is asked for afterwards."""
        backlog.turns.answers[:] = [turn(), turn("new")]
        backlog.turns.answers[1].claims[0].token = 99
        backlog.claimer._take_turns(fresh=True)
        assert [3, 4] == [r.seq for r in backlog.turns.asked[2:]]
        assert backlog.dispatcher.early.clear({"new"})

    def test_the_end(self, backlog):
        """What comes with the last answer of a node that leaves is given back."""
        backlog.dispatcher.hand_back()
        backlog.claimer._take_turns(claiming=False, fresh=True)
        backlog.take(claiming=False)
        given = {s.id for r in backlog.turns.asked for s in r.settlements if s.id in "4567"}
        assert {"4", "5", "6", "7"} == given
        assert [0, 0] == [r.limit for r in backlog.turns.asked[3:]]

    def test_it_cannot_be_sent(self, backlog):
        """It is asked again at once, as it was, and nobody is told of a first failure."""
        backlog.told()
        backlog.turns.deaf.append(Wrong("closed"))
        assert 0.0 == backlog.take()
        assert not backlog.claimer._exchange.under_way
        backlog.take()
        first, second = (r for r in backlog.turns.asked if r.seq == 4)
        assert first is second
        assert 1 == first.asked
        assert [] == backlog.told()

    def test_its_answer_is_lost(self, backlog):
        """A lost answer is asked for again, and what has been handed out stays so."""
        backlog.turns.answers.insert(0, Wrong("gone"))
        assert 0.0 == backlog.take()
        assert 1 == len(backlog.dispatcher.early)
        backlog.take()
        assert [(3, 1), (3, 1), (4, 0)] == [(r.seq, r.asked) for r in backlog.turns.asked[2:]]

    def test_posted_anew_meanwhile(self, backlog):
        """
        What this process has posted anew while a claim of it was on its way is not handed out as
        it was: the claim is given back.
        """
        backlog.dispatcher.reposts.add({"5", "6"})
        backlog.take()
        assert not backlog.dispatcher.early.clear({"5", "6"})
        backlog.take()
        backlog.take()
        settled = [s for r in backlog.turns.asked for s in r.settlements if s.id in "56"]
        assert [("5", Verdict.RELEASE), ("6", Verdict.RELEASE)] == [
            (s.id, s.verdict) for s in settled
        ]

    def test_a_hand_that_does_not_move(self, backlog):
        """
        While a handler runs and runs, what was claimed before that was seen is all: a node does
        not claim and give back for as long.
        """
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

    def test_a_release_takes_with_it_what_is_on_its_way(self, backlog):
        """
        Events that a slow handler keeps waiting are released, and with them those that the next
        answer brings: with one thread the later ones would start before the earlier.
        """
        backlog.turns.lone = False
        del backlog.turns.answers[1:]
        backlog.dispatcher.early.patience = 0.0
        for _ in range(4):
            backlog.claimer._dispatcher.start_due()
            backlog.take()
        released = [s.id for r in backlog.turns.asked for s in r.settlements if s.id != "1"]
        assert ["3", "4", "5", "6", "7"] == sorted(released)
        assert not backlog.dispatcher.early

    def test_its_hands_are_offered_when_there_is_no_more(self, desk):
        """
        The last turn of a backlog was asked for without an offer of hands. Where nothing is left
        to be settled by another, that is asked for at once, or no wake would come.
        """
        desk = desk(poll_interval=3_600_000)
        desk.claimer._exchange.ask_meanwhile(1)
        desk.claimer._take_turns()
        assert [False, True] == [r.hears for r in desk.turns.asked]

    def test_it_cannot_be_read(self, desk):
        """An answer that cannot be read is one that did not come, and is asked for again."""
        desk = desk(poll_interval=3_600_000, look_ahead=0)
        answer = turn("tea")
        assert 0.0 == desk.take(replace(answer, claims=Unreadable(answer.claims)))
        desk.take(answer)
        assert [(1, 1), (1, 1)] == [(r.seq, r.asked) for r in desk.turns.asked]
        assert ["tea"] == [ev.id for ev in desk.begun.get(timeout=PATIENCE)]

    def test_it_cannot_be_read_meanwhile(self, backlog):
        """
        Where the next turn was asked for already the answer is kept, because it cannot be asked
        for again, and handed out when it can be read.
        """
        answer = several(4, 4)
        backlog.turns.answers[0] = replace(answer, claims=Unreadable(answer.claims))
        assert 0 < backlog.take() <= IN_ADVANCE
        assert backlog.claimer._exchange.under_way
        assert 1 == len(backlog.dispatcher.early)
        backlog.take()
        assert {"4", "5", "6", "7"} <= {h.claim.id for h in backlog.dispatcher.early.clear()}
        assert not backlog.claimer._unread

    def test_how_late_it_is(self, backlog):
        """An event is told how late it is, the time that its claim lay unread included."""
        backlog.claimer._exchange.sent -= 2
        backlog.take()
        late = [h.event.lateness_ms for h in backlog.dispatcher.early.clear({"4", "7"})]
        assert [2000, 2000] == pytest.approx(late, abs=500)

    def test_a_hand_is_free_while_a_turn_is_taken(self, desk):
        """The claimer sees to it when that turn is over; no turn is asked for in vain."""
        desk = desk(start=True, poll_interval=3_600_000)
        asked = len(desk.turns.asked)
        with desk.claimer._turning:
            desk.claimer.relay()
            assert desk.claimer._freed
        eventually(lambda: len(desk.turns.asked) == asked + 1)


class TestHeartbeats:
    """Leases are renewed for as long as handlers run."""

    def held(self, desk, *ids):
        """Have these events in hand, and let their heartbeat be due."""
        desk.take(turn(*ids))
        desk.begun.get(timeout=PATIENCE)
        desk.claimer._heart.due = 0.0

    def test_each_third_of_a_lease(self, desk):
        """What is held is renewed three times in a lease."""
        desk = desk(max_events=2)
        self.held(desk, "tea", "egg")
        before = time.monotonic()
        desk.take()
        assert [(["tea", "egg"], 30_000_000)] == desk.turns.extended
        assert before + 10 <= desk.claimer._heart.due <= time.monotonic() + 10
        desk.take()
        assert 1 == len(desk.turns.extended)

    def test_without_being_rung(self, desk):
        """The thread beats by itself."""
        desk = desk(start=True, lease=100, poll_interval=3_600_000)
        desk.turns.answers.append(turn("tea"))
        desk.bell.ring()
        desk.begun.get(timeout=PATIENCE)
        for _ in range(3):
            assert desk.turns.beaten.wait(PATIENCE)
            desk.turns.beaten.clear()
        assert (["tea"], 100_000) == desk.turns.extended[0]

    def test_not_what_is_settled(self, desk):
        """What is settled, or runs over max_run, is not renewed."""
        desk = desk(max_events=3, max_run=10_000)
        self.held(desk, "tea", "egg", "ham")
        tea, egg, _ = desk.dispatcher.held()
        tea.take(Verdict.CONFIRM)
        egg.started -= 11
        desk.take()
        assert [(["ham"], 30_000_000)] == desk.turns.extended

    def test_a_lease_that_is_lost(self, desk):
        """A lease that could not be renewed is told of, once, and the others are kept."""
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

    def test_one_that_fails_is_tried_again_at_once(self, desk):
        """A heartbeat that failed is not put off until the next would be due."""
        desk = desk()
        self.held(desk, "tea")
        extend, desk.turns.extend = desk.turns.extend, None
        assert desk.take() <= 0.5
        desk.turns.extend = extend
        desk.take()
        assert 1 == len(desk.turns.extended)

    def test_without_turns(self, desk):
        """What runs keeps its lease, also where no turn can be had."""
        desk = desk()
        self.held(desk, "tea")
        desk.take(Wrong())
        assert [(["tea"], 30_000_000)] == desk.turns.extended

    def test_an_extension_is_kept(self, desk):
        """Who has asked for longer than a lease is renewed for that long."""
        desk = desk(max_events=2)
        self.held(desk, "tea", "egg")
        _, egg = desk.dispatcher.held()
        egg._extended_until = time.monotonic() + 60
        desk.take()
        (tea, (ids, lease_us)) = desk.turns.extended
        assert (["tea"], 30_000_000) == tea
        assert ["egg"] == ids
        assert 59_000_000 < lease_us <= 60_000_000

    def test_an_extension_that_a_heartbeat_overtook_is_sent_again(self, desk):
        """
        A heartbeat that was on its way while the handler asked for more has shortened that:
        what was asked for is renewed at once, for the handler may return before the next.
        """
        desk = desk()
        self.held(desk, "tea")
        (tea,) = desk.dispatcher.held()
        extend = desk.turns.extend

        def overtaken(held, lease_us):
            desk.turns.extend = extend
            tea._extended_until = time.monotonic() + 60
            return extend(held, lease_us)

        desk.turns.extend = overtaken
        desk.take()
        first, second = desk.turns.extended
        assert (["tea"], 30_000_000) == first
        assert 59_000_000 < second[1] < 61_000_000

    def test_the_clock_was_put_ahead(self, desk):
        """
        When the server's clock was put ahead, leases may have ended: none is believed until
        all are renewed, which is at once. It is told once.
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

    def test_the_clock_was_put_back(self, desk):
        """
        When it was put back, leases are renewed at once as well: they would last for as much
        longer, should the node die.
        """
        desk = desk()
        self.held(desk, "tea")
        desk.claimer._heart.due = time.monotonic() + LONG
        (tea,) = desk.dispatcher.held()
        desk.take(turn(ahead=-3_600))
        assert not tea.lost()
        assert [(["tea"], 30_000_000)] == desk.turns.extended
        assert pytest.approx(-3_600, abs=1) == desk.said.get_nowait()[1].seconds

    def test_a_clock_of_the_test(self, desk):
        """A clock given by ``now`` is moved on purpose, and nobody is told."""
        desk = desk(now=lambda: 0)
        self.held(desk, "tea")
        desk.claimer._heart.due = time.monotonic() + LONG
        desk.take(turn(ahead=3_600))
        assert desk.said.empty()
        assert [] == desk.turns.extended

    def test_many(self, desk):
        """A heartbeat renews a hundred leases at a time."""
        desk = desk(max_events=100, concurrency=3)
        for n in range(3):
            claims = [Claim(f"{n}-{i}", 100 * n + i, 1, 1, 1, 3, b"{}") for i in range(80)]
            desk.take(replace(turn(), claims=claims))
        desk.claimer._heart.due = 0.0
        desk.take()
        assert [100, 100, 40] == [len(ids) for ids, _ in desk.turns.extended]


class TestEnd:
    """The drain."""

    def test_waits_for_handlers(self, desk):
        """It ends when the handlers have, and what they did is settled; then it says farewell."""
        desk = desk(start=True)
        desk.turns.answers.append(turn("tea"))
        desk.bell.ring()
        desk.begun.get(timeout=PATIENCE)
        asked = len(desk.turns.asked)
        desk.claimer.stop_within(None)
        eventually(lambda: len(desk.turns.asked) > asked)
        assert not desk.claimer.join(0)
        assert 0 == desk.farewells
        desk.go_on.release()
        assert desk.claimer.join(PATIENCE)
        assert 1 == desk.farewells
        assert [Verdict.CONFIRM] == [s.verdict for r in desk.turns.asked for s in r.settlements]
        assert {0} == {r.limit for r in desk.turns.asked[asked:]}

    def test_gives_up_at_its_deadline(self, desk):
        """Past the deadline what still runs is given back, and it ends."""
        desk = desk(start=True)
        desk.turns.answers.append(turn("tea"))
        desk.bell.ring()
        desk.begun.get(timeout=PATIENCE)
        desk.claimer.stop_within(0.05)
        assert desk.claimer.join(PATIENCE)
        assert [Verdict.RETRY] == [s.verdict for r in desk.turns.asked for s in r.settlements]

    def test_the_nearest_deadline_counts(self, desk):
        """Of several deadlines the nearest counts; a later or missing one changes nothing."""
        desk = desk(start=True)
        desk.turns.answers.append(turn("tea"))
        desk.bell.ring()
        desk.begun.get(timeout=PATIENCE)
        for seconds in (LONG, 0.05, None, LONG):
            desk.claimer.stop_within(seconds)
        assert desk.claimer.join(PATIENCE)

    def test_claims_of_a_lost_turn_go_back(self, desk):
        """What a lost turn claimed is learned of while it leaves, and goes back unstarted."""
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
        assert [Verdict.RELEASE] == [s.verdict for r in desk.turns.asked for s in r.settlements]
        assert desk.begun.empty()

    @pytest.mark.parametrize("point", ["turn.asking", "claim.answered", "claim.handed"])
    def test_releases_what_it_claims_while_it_is_told_to_stop(self, desk, point):
        """
        A stop that comes at any moment of a claim finds events that no handler thread has: they
        are released before the thread ends, not left to their leases.
        """
        desk = desk(start=True, poll_interval=3_600_000)
        ask = desk.turns.turn

        def stop():
            desk.claimer.stop_within(None)
            desk.turns.turn = ask

        def stopped(request):
            stop()
            return ask(request)

        desk.turns.answers.append(TestAhead.early(20, "tea"))
        with contextlib.ExitStack() as planted:
            if point == "turn.asking":
                desk.turns.turn = stopped
            else:
                planted.enter_context(arm(point, stop))
            desk.bell.ring()
            assert desk.claimer.join(PATIENCE)
        settled = [(s.id, s.verdict) for r in desk.turns.asked for s in r.settlements]
        assert [("tea", Verdict.RELEASE)] == settled
        assert desk.begun.empty()

    def test_settles_a_handler_that_ends_while_it_looks_whether_one_runs(self, desk):
        """
        A handler that returns between two looks of the claimer, at what is to be settled and at
        what runs, is confirmed before the thread ends.
        """
        desk = desk(start=True)
        desk.turns.answers.append(turn("tea"))
        desk.bell.ring()
        desk.begun.get(timeout=PATIENCE)
        desk.asleep()
        done, looking = desk.claimer._done, []

        class Ending(Dispatcher):
            """Lets the handler return while the claimer looks at what is to be settled."""

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
        assert [Verdict.CONFIRM] == [s.verdict for r in desk.turns.asked for s in r.settlements]

    def test_releases_a_batch_that_cannot_be_handed_over(self, desk):
        """Where there is no memory to hand a batch over it is released, not left to its lease."""
        desk = desk()
        put, broken = desk.dispatcher._inbox.put, [MemoryError("no more")]
        desk.dispatcher._inbox = SimpleNamespace(
            put=lambda batch: put(batch) if batch is None or not broken else self._fail(broken),
            get_nowait=desk.dispatcher._inbox.get_nowait,
        )
        desk.take(turn("tea"))
        desk.take()
        settled = [(s.id, s.verdict) for r in desk.turns.asked for s in r.settlements]
        assert [("tea", Verdict.RELEASE)] == settled
        assert [] == desk.dispatcher.held()

    @staticmethod
    def _fail(broken):
        raise broken.pop()

    @pytest.mark.parametrize("trouble", [Wrong(), Refused()])
    def test_a_server_that_does_not_answer(self, desk, trouble, monkeypatch):
        """
        A server that does not answer is waited for until the deadline, without one for as
        long as a call may take, whatever pause the error would ask for.
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

    def test_a_loop_that_breaks(self, desk):
        """
        An exception out of the loop is told to 'error', and the loop begins again within a
        second, where it was.
        """
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
        assert [] == desk.told(), "nothing is wrong with Redis"

    def test_a_drain_that_breaks(self, desk):
        """An exception on its way out does not keep it from the farewell."""
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
