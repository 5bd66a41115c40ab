"""A seat of the engine with fakes around it, for tests without a server."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

from logged import Logged
from servers import PATIENCE

from dtimer.engine.claim_cycle import ClaimCycle
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.leases import LeaseTable
from dtimer.engine.seat import Seat
from dtimer.errors import NamespaceCorrupt
from dtimer.model.claims import BrokenReply, Claim, ClaimReply, Outcome
from dtimer.model.options import validate

HOUR_S = 3_600.0  # longer than any test


class Wrong(Exception):
    """An error of the fake store."""


class Refused(Exception):
    """An error that only a person can fix."""


def reply(*ids, wait=None, known=True, results=(), buried=(), ahead=0, first=1):
    """
    Return a reply whose events are overdue. Their tokens count up from *first*.

    Args:
        wait: The time until the next event is due, in µs.
        ahead: By how many seconds the server's clock is ahead.
    """
    claims = [Claim(id, n, 1, 1_000, 1_000, 3, b"{}") for n, id in enumerate(ids, first)]
    now = round((time.monotonic() + ahead) * 1e6)
    return ClaimReply(now, wait, known, list(results), claims, list(buried))


def ahead(ms, *ids, **more):
    """Return a reply whose events are due *ms* later."""
    answer = reply(*ids, **more)
    now_us = answer.now_us
    later = [replace(c, claimed_us=now_us, due_us=now_us + ms * 1000) for c in answer.claims]
    return replace(answer, claims=later)


def broken(arrived, *, slow=True):
    """Return the error of a reply that broke off after this many bytes."""
    error = BrokenReply("it broke off")
    error.arrived, error.timed_out = arrived, slow
    return error


class FakeStore:
    """A store that gives the replies the test has prepared; without one, nothing is due."""

    def __init__(self):
        self.requests = []
        self.sent = []  # the number, the size limit and the strictness of each try to claim
        self.answers = []
        self.renewed = []  # the ids and the length of each renewal
        self.registered = 0
        self.given_times = []  # the schedule of each call of `add_times`
        self.unreadable = set()  # schedules for which `add_times` fails
        self.trimmed = 0
        self.lone = False  # True if this node is alone
        self.lost = set()  # ids whose lease another node has
        self.trouble = None  # raised by every call from now on
        self.busy = False  # True if `start_claim` must first make other calls
        self.send_errors = []  # raised when a claim is sent, not when it is answered
        self.beaten = threading.Event()

    def start_claim(self, request):
        self.requests.append(request)
        self.sent.append((request.seq, request.most_bytes, request.strict))
        if self.send_errors:
            raise self.send_errors.pop()
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
        self.renewed.append(([id for id, _ in held], lease_us))
        self.beaten.set()
        return [id not in self.lost for id, _ in held]

    def alone(self):
        return self.lone

    def trim(self):
        self.trimmed += 1

    def add_times(self, schedule):
        self.given_times.append(schedule)
        if schedule in self.unreadable:
            raise NamespaceCorrupt(f"{schedule} cannot be read")

    def needs_operator(self, error):
        return isinstance(error, Refused)


_tokens = itertools.count(1)


def claim(payload=b"{}", *, id=None, attempt=1, max_retries=3, ahead_ms=None):
    """Return a claim of an event that has been due for 2 ms, or is due *ahead_ms* later."""
    token = next(_tokens)
    due_us = 1_000 if ahead_ms is None else 3_000 + round(ahead_ms * 1000)
    return Claim(id or f"ev-{token:06}", token, attempt, due_us, 3_000, max_retries, payload)


def summary(settlements):
    """Return the id, the token and the verdict of each settlement."""
    return [(s.id, s.token, s.verdict) for s in settlements]


class FakeLeaseStore:
    """A store that settles and extends leases as the test says."""

    def __init__(self):
        self.settled = []
        self.extended = []
        self.at_least = []  # for each extension: True if it must not shorten the lease
        self.outcomes = []  # of the next settlements and extensions; an exception is raised
        self.asked = threading.Event()
        self.reply_gate = None  # a threading.Event: `settle` waits until it is set

    def settle(self, settlements):
        self.settled += settlements
        self.asked.set()
        if self.reply_gate is not None:
            assert self.reply_gate.wait(PATIENCE)
        return [self._next(Outcome.DONE)]

    def extend(self, held, lease_us, *, at_least=False):
        self.extended.append((list(held), lease_us))
        self.at_least.append(at_least)
        return [self._next(True)]

    def _next(self, usual):
        outcome = self.outcomes.pop(0) if self.outcomes else usual
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class FakeListener:
    """A listener that hears, or does not, as the test says."""

    def __init__(self):
        self.hears = True
        self.due = HOUR_S  # the seconds until an echo is due
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


class FakeContact:
    """Keeps the changes of the connectivity."""

    def __init__(self):
        self.answered = None  # when the last reply was received; set by the claim cycle
        self._changes = queue.SimpleQueue()
        self.after_claims = []  # for each error: True if its claim had been answered

    def connectivity_changed(self, error, *, claim_answered=False):
        self._changes.put(error)
        if error is not None:
            self.after_claims.append(claim_answered)

    def reported(self):
        """Return the changes since the last call: an error, or None if Redis answers."""
        return [self._changes.get() for _ in range(self._changes.qsize())]


class Announced:
    """Keeps what the engine announces."""

    def __init__(self):
        self._queue = queue.SimpleQueue()
        self.contexts = []  # of all announcements

    def announce(self, *what, context=None):
        self._queue.put(what)
        self.contexts.append(context)

    def next(self, patience_s=0.0):
        """Return the next announcement, which must come within *patience_s* seconds."""
        return self._queue.get(timeout=patience_s)

    def all(self):
        """Return the announcements since the last call."""
        return [self._queue.get() for _ in range(self._queue.qsize())]


def make_leases(lease_store=None, announced=None, log=None, **options):
    """Return a table of leases."""
    store, announced = lease_store or SimpleNamespace(), announced or Announced()
    return LeaseTable("test", validate(options), store, announced, log or Logged().log)


def make_seat(store, *, lease_store=None, announced=None, **options):
    """Return a seat around a fake store, with a fake listener and a fake contact."""
    announced = announced or Announced()
    return Seat(
        validate(options),
        store=store,
        leases=make_leases(lease_store, announced, **options),
        listener=FakeListener(),
        contact=FakeContact(),
        announcements=announced,
        log=Logged().log,
    )


class CycleHarness:
    """
    A claim cycle and its dispatcher around a fake store, without threads.

    The harness itself is the `Consumer`, which receives the events. It is also the `Host`,
    which these tests never ask to quit.
    """

    def __init__(self, **options):
        self.store = FakeStore()
        self.announced = Announced()
        self.seat = make_seat(self.store, announced=self.announced, **options)
        self.leases, self.pipeline = self.seat.leases, self.seat.pipeline
        self.heartbeat = self.seat.heartbeat
        self.listener, self.contact = self.seat.listener, self.seat.contact
        self.dispatcher = Dispatcher("dtimer-test", self.seat, self, self)
        self.pool, self.batching = self.dispatcher.pool, self.dispatcher.batching
        self.cycle = ClaimCycle(self.seat, self.dispatcher, self)
        self.most = 100  # how many events the listeners can take: the result of `demand`
        self.handled = []  # the ids of each batch

    def demand(self):
        return self.most

    def deliver(self, events, results):
        self.handled.append([ev.id for ev in events])
        return []

    def claim(self, answer=None, *, claiming=True):
        """
        Claim once on the test's own thread; return the seconds until the next claim.

        Args:
            answer: The next reply of the store, or the error that it raises.
            claiming: False as for a node that leaves: the claim then only settles.
        """
        if answer is not None:
            self.store.answers.append(answer)
        return self.cycle.claim(claiming)

    def handle(self):
        """Run the batch that waits for a handler thread."""
        assert self.pool.run_one()

    @property
    def limits(self):
        """How many events each claim has asked for."""
        return [request.limit for request in self.store.requests]

    @property
    def settled(self):
        """The id and the verdict of each settlement that was sent."""
        return [(s.id, s.verdict) for request in self.store.requests for s in request.settlements]
