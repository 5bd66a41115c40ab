"""The claim cycle, claim by claim, without threads: the test itself runs the handlers."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from seats import HOUR_S, CycleHarness, Refused, Wrong, ahead, broken, reply

from dtimer.engine.batching import MAX_ADVANCE_SECONDS
from dtimer.engine.clock import boottime
from dtimer.errors import ClockJump, StoreError
from dtimer.model.claims import Outcome, Verdict
from dtimer.timer.node import Node

HOUR_MS = 3_600_000


@pytest.fixture
def make():
    """Return a function that makes a harness; its options poll once in an hour."""
    return lambda **options: CycleHarness(**({"poll_interval": HOUR_MS} | options))


@pytest.fixture
def harness(make):
    return make()


def several(first, count):
    """Return a reply with *count* overdue events, whose tokens and ids count up from *first*."""
    return reply(*(str(n) for n in range(first, first + count)), first=first)


def failing(harness, name, times):
    """Make a method of the store fail the first *times* calls; return the list of its calls."""
    calls = []
    method = getattr(harness.store, name)

    def call(*arguments):
        calls.append(arguments)
        if len(calls) <= times:
            raise StoreError("gone again")
        return method(*arguments)

    setattr(harness.store, name, call)
    return calls


class TestRequest:
    """The request of a claim."""

    @pytest.mark.parametrize(
        ("options", "demand", "claiming", "limit"),
        [
            pytest.param({"max_events": 3, "concurrency": 2}, 100, True, 6, id="free threads"),
            pytest.param({"max_events": 5}, 3, True, 3, id="demand"),
            # Claimed without a listener, an event would be late elsewhere.
            pytest.param({}, 0, True, 0, id="no listener"),
            pytest.param({}, 100, False, 0, id="leaving"),
        ],
    )
    def test_asks_for_what_threads_and_listeners_can_take(
        self, make, options, demand, claiming, limit
    ):
        """A claim is numbered, so that the server recognises a repetition."""
        harness = make(**options)
        harness.most = demand
        for _ in range(2):
            harness.claim(claiming=claiming)
        assert [(1, limit, claiming), (2, limit, claiming)] == [
            (r.seq, r.limit, r.hears) for r in harness.store.requests
        ]

    def test_asks_for_nothing_while_all_threads_are_busy(self, harness):
        """Other nodes may have free threads."""
        harness.claim(reply("tea"))
        harness.claim()
        assert [1, 0] == harness.limits

    def test_asks_ahead_only_for_threads_that_are_not_promised(self, make):
        """A thread with an event claimed ahead is offered only for events that are due now."""
        harness = make(concurrency=2, look_ahead=1_000)
        assert harness.claim(ahead(1_000, "a")) > 0
        assert harness.claim() > 0
        harness.claim(ahead(1_000, "b", first=2))
        harness.claim()
        assert [(2, 1_000_000), (1, 1_000_000), (1, 1_000_000), (2, 0)] == [
            (request.limit, request.ahead_us) for request in harness.store.requests
        ]

    def test_asks_for_more_after_full_replies_and_nothing_ahead(self, make):
        """
        In a backlog, larger claims save round trips. Events ahead of their time would take threads
        from due ones.
        """
        harness = make(max_events=3)
        for first in (1, 4):
            harness.claim(several(first, 3))
            harness.handle()
        harness.claim()
        assert [(3, 20_000), (6, 0), (3, 20_000)] == [
            (request.limit, request.ahead_us) for request in harness.store.requests
        ]

    def test_repeats_a_lost_claim_until_it_is_answered(self, harness):
        """
        The request is repeated unchanged, under its number, so the server recognises it. The first
        repetition is immediate; then the pauses grow up to half a second.
        """
        harness.store.trouble = Wrong()
        pauses = [harness.claim() for _ in range(9)]
        harness.store.trouble = None
        harness.claim()
        harness.claim()
        first, *again, other = harness.store.requests
        assert all(first is request for request in again)
        assert (1, 2) == (first.seq, other.seq)
        assert pauses[0] == 0.0
        assert 0.05 <= pauses[1] <= 0.1
        assert 0.25 <= pauses[-1] <= 0.5
        assert all(pause <= 0.5 for pause in pauses)

    def test_repeats_the_settlements_of_a_lost_claim(self, harness):
        """The settlements of a lost claim are sent with its repetition, and with no other claim."""
        harness.claim(reply("tea"))
        harness.handle()
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
        harness.listener.due = 0.0
        for _ in range(3):
            harness.claim(Wrong())
        harness.listener.due = HOUR_S
        harness.claim()
        assert "sent" == harness.listener.echoes[0]
        assert {"failed"} == set(harness.listener.echoes[1:])


class TestReplaced:
    """Events that this process posts again while a claim is under way."""

    @pytest.fixture
    def posting(self, harness, monkeypatch):
        """A harness that posts "tea" again during each claim, until `stop_posting`."""
        answer = harness.store.answer

        def post_and_answer(request):
            harness.seat.superseded_ids.add({"tea"})
            return answer(request)

        harness.stop_posting = monkeypatch.undo
        monkeypatch.setattr(harness.store, "answer", post_and_answer)
        return harness

    def test_releases_an_event_that_is_replaced_before_its_reply_is_read(
        self, posting, monkeypatch
    ):
        """
        A busy machine may read the reply long after the post. The reply still has the old event,
        which must not start.
        """
        posting.claim(reply("tea"))
        posting.stop_posting()
        posting.claim()
        assert [("tea", Verdict.RELEASE)] == posting.settled

    def test_releases_an_old_event_of_a_claim_that_was_sent_after_the_post_began(
        self, harness, monkeypatch
    ):
        """The server may have run the claim before the post, and the node reads its reply later."""
        node = SimpleNamespace(
            _seat=harness.seat, _leases=harness.leases, _dispatcher=harness.dispatcher
        )
        Node.note_superseded(node, {"tea"}, posted=False)
        answer = harness.store.answer

        def post_and_answer(request):
            Node.note_superseded(node, {"tea"}, posted=True)
            return answer(request)

        with monkeypatch.context() as patch:
            patch.setattr(harness.store, "answer", post_and_answer)
            harness.claim(reply("tea"))
        harness.claim()
        assert [("tea", Verdict.RELEASE)] == harness.settled

    def test_starts_an_event_although_each_of_its_claims_is_overtaken_by_a_post(self, posting):
        """A process that posts an id again and again does not keep the event from starting."""
        posting.claim(reply("tea"))
        posting.claim(reply("tea", first=2))
        posting.handle()
        assert [("tea", Verdict.RELEASE)] == posting.settled
        assert [["tea"]] == posting.handled

    def test_keeps_an_event_that_was_posted_before_its_claim(self, harness):
        """The claim returns the new event. A release would make it late."""
        harness.seat.superseded_ids.add({"tea"})
        harness.claim(reply("tea"))
        harness.handle()
        assert [["tea"]] == harness.handled


class TestSlowConnection:
    """A claim whose reply broke off midway is repeated for a smaller reply."""

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
        ids=["half", "too large an event", "quick again", "stalled"],
    )
    def test_repeats_a_broken_claim_for_fewer_bytes(self, harness, arrived, answered, expected):
        """Each case: the bytes that arrived of each broken reply, then the ids of quick replies."""
        for count in arrived:
            assert 0.0 == harness.claim(broken(count))
        for ids in answered:
            harness.claim(reply(*ids))
        assert [(1, None, False), *expected] == harness.store.sent

    def test_tries_a_too_large_event_again_after_a_lease(self, harness):
        """The connection may be faster by then. If it is not, a single failure is enough."""
        for _ in range(2):
            harness.claim(broken(100_000))
        harness.claim()
        harness.seat.capacity._strict_since -= 30.0
        harness.claim(broken(100_000))
        harness.claim()
        assert [(2, 50_000, False), (2, 50_000, True)] == harness.store.sent[3:]

    def test_keeps_the_limit_if_a_reply_takes_half_of_the_time_allowed(self, make):
        """A reply of twice the size would not arrive in time."""
        harness = make(lease=300)
        harness.claim(broken(100_000))
        for took_s in (0.05, None):
            harness.seat.capacity.received(harness.pipeline.request, reply("tea"), took_s)
        harness.claim()
        assert 50_000 == harness.store.sent[-1][1]

    def test_reports_a_slow_connection_once_and_in_health(self, harness):
        """
        The error explains the problem once; ``health()`` shows it as long as it lasts. Redis still
        counts as connected.
        """
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
        """A reset says nothing about the speed. Only a second failure halves the reply."""
        harness.claim(broken(100_000, slow=False))
        assert [] == harness.announced.all()
        harness.claim(broken(100_000, slow=False))
        harness.claim()
        assert [None, None, 50_000] == [most for _, most, _ in harness.store.sent]

    def test_asks_for_no_events_in_a_repetition_while_leaving(self, harness):
        """The claimed events are released instead of sent, because they would not start."""
        harness.claim(broken(100_000))
        harness.claim(claiming=False)
        assert [(1, 0, True)] == harness.store.sent[1:]


class TestFollowUp:
    """The calls and reports that follow from a reply."""

    def test_registers_again_if_the_server_does_not_know_the_node(self, harness):
        """A node that stayed unknown would not be woken."""
        harness.claim(reply())
        assert 0 == harness.store.registered
        harness.claim(reply(known=False))
        assert 1 == harness.store.registered

    def test_announces_buried_events_and_trims_the_dead_letters(self, harness):
        """A reply without buried events trims nothing."""
        harness.claim(reply(buried=[("tea", "expired"), ("egg", "lease_lost")]))
        assert [("buried", "tea"), ("buried", "egg")] == harness.announced.all()
        assert 1 == harness.store.trimmed
        harness.claim(reply())
        assert 1 == harness.store.trimmed

    def test_adds_times_to_a_schedule_that_runs_short(self, harness):
        """If a node added none, the schedule would stop when its times are used up."""
        harness.claim(replace(reply(), short=["daily"]))
        assert ["daily"] == harness.store.given_times

    def test_reports_an_unreadable_schedule_once_until_it_is_readable(self, harness):
        """The rest of the reply is applied, and the claim counts as answered."""
        harness.store.unreadable = {"bad"}
        for _ in range(3):
            harness.claim(replace(reply(), short=["bad", "good"]))
        assert ["bad", "good"] * 3 == harness.store.given_times
        assert harness.seat.connectivity.error is None
        ((what, error),) = harness.announced.all()
        assert ("error", "bad cannot be read") == (what, str(error))
        for unreadable in (set(), {"bad"}):
            harness.store.unreadable = unreadable
            harness.claim(replace(reply(), short=["bad"]))
        assert ["error"] == [what for what, _ in harness.announced.all()]


class TestOutage:
    """The reports of an outage, and the actions of the node meanwhile."""

    def test_reports_each_kind_of_error_once_an_outage_and_its_end_once(self, harness):
        """Two errors that alternate must not fill the log."""
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
        assert not any(harness.contact.after_claims)

    def test_reports_nothing_if_the_first_repetition_succeeds(self, harness):
        """Such a failure, a closed connection for example, has no effect."""
        harness.claim()
        harness.contact.reported()
        harness.claim(Wrong())
        assert harness.seat.connectivity.error is None
        harness.claim()
        assert [] == harness.contact.reported()

    def test_reports_a_refusal_at_once_and_repeats_it_after_5_s(self, harness):
        """Only a person can fix it, so quick repetitions would not help."""
        assert 5.0 == harness.claim(Refused("no"))
        assert ["no"] == [str(change) for change in harness.contact.reported()]

    def test_reports_a_failure_after_the_reply_without_repeating_the_claim(self, harness):
        """The claim itself was answered; repeating it would return the same events again."""
        registrations = failing(harness, "register", 3)
        harness.claim(reply(known=False))
        assert ["gone again"] == [str(change) for change in harness.contact.reported()]
        harness.claim()
        assert [1, 2] == [r.seq for r in harness.store.requests]
        assert 2 == len(registrations)

    def test_a_registration_that_fails_is_one_outage(self, harness):
        """
        Replies between the failed attempts do not end the outage. Meanwhile the node still renews
        its leases.
        """
        harness.claim()
        harness.contact.reported()
        harness.claim(reply("tea"))
        registrations = failing(harness, "register", 3)
        for answer in (reply(known=False), reply(), reply()):
            harness.heartbeat.due = 0.0
            harness.claim(answer)
        assert ["gone again"] == [str(change) for change in harness.contact.reported()]
        assert 3 == len(harness.store.renewed)
        harness.claim()
        assert 4 == len(registrations)
        assert [None] == harness.contact.reported()
        harness.claim()
        assert 4 == len(registrations)

    def test_heartbeats_that_fail_are_one_outage(self, harness):
        """Replies between the failed heartbeats do not end the outage."""
        harness.claim(reply("tea"))
        harness.contact.reported()
        beats = failing(harness, "renew", 3)
        harness.heartbeat.due = 0.0
        pauses = [harness.claim() for _ in range(3)]
        assert 3 == len(beats)
        assert ["gone again"] == [str(change) for change in harness.contact.reported()]
        assert [True] == harness.contact.after_claims
        assert "gone again" == str(harness.seat.connectivity.error)
        assert pauses[2] > 0.15, "the pauses do not grow"
        harness.claim()
        assert [None] == harness.contact.reported()
        assert harness.seat.connectivity.error is None

    def test_renews_leases_while_claims_fail(self, harness):
        """A running handler must not lose its lease because a claim fails."""
        harness.claim(reply("tea"))
        harness.heartbeat.due = 0.0
        harness.claim(Wrong())
        assert [(["tea"], 30_000_000)] == harness.store.renewed


class TestPause:
    """The numbers that decide about the next claim; `test_next_claim` has the decisions."""

    @pytest.mark.parametrize(
        ("options", "answer", "low", "high"),
        [
            pytest.param({"poll_interval": 1_000}, None, 0.75, 1, id="poll_interval, with jitter"),
            pytest.param({}, reply(wait=10_000_000), 9, 10, id="the wait in the reply"),
            pytest.param({"lease": 30_000}, reply("tea"), 9, 10, id="the next heartbeat"),
        ],
    )
    def test_depends_on_options_and_reply(self, make, options, answer, low, high):
        """A node that came later would be late; coming earlier would cost claims."""
        assert low <= make(**options).claim(answer) <= high

    def test_the_jitter_varies(self, make):
        """Nodes that poll at the same moment would burden the server."""
        harness = make(poll_interval=1_000)
        assert len({harness.claim() for _ in range(5)}) > 1

    def test_counts_the_wait_from_when_the_request_was_sent(self, harness):
        """The next request will take as long to arrive, so it must leave earlier."""
        request, answer = harness.cycle._plan(), reply(wait=10_000_000)
        pause = harness.cycle._wait_after(request, answer, time.monotonic() - 4, True, None)
        assert 5.5 < pause <= 6

    def test_ends_for_an_echo(self, harness):
        """A deaf node must notice this even if no event is due."""
        harness.listener.due = 0.25
        assert 0.25 == harness.claim()

    def test_ends_when_a_leaving_node_gives_up(self, harness):
        """A handler that does not return must not delay the end of the node."""
        pause = harness.cycle.claim(False, time.monotonic() + 7)
        assert 6 < pause <= 7

    def test_is_zero_after_a_full_reply_with_a_free_thread(self, make):
        """A full reply means that more events may be due."""
        harness = make(concurrency=3, max_events=100)
        assert harness.claim(several(1, 99)) > 0
        assert 0.0 == harness.claim(several(100, 100))
        assert [100, 100] == harness.limits

    def test_is_zero_if_a_settlement_waits(self, harness):
        """A confirm that waits for the poll would risk a second delivery if the node dies."""
        harness.claim(reply("tea"))
        harness.handle()
        request = harness.store.requests[0]
        assert 0.0 == harness.cycle._wait_after(request, reply(), time.monotonic(), True, None)

    def test_allows_for_the_look_ahead_of_the_next_claim(self, harness):
        """After a backlog the next claim looks ahead again, so it comes by half of that earlier."""
        harness.claim(reply("a"))
        harness.handle()
        pause = harness.claim(reply(wait=100_000, results=[Outcome.DONE]))
        assert [(1, 20_000), (2, 0)] == [(r.limit, r.ahead_us) for r in harness.store.requests]
        assert 0.05 < pause <= 0.09

    def test_does_not_hurry_for_a_claim_that_cannot_look_ahead(self, make):
        """If all demand is promised, the next claim will not look ahead either."""
        harness = make(concurrency=2, look_ahead=1_000)
        harness.most = 1
        harness.claim(ahead(1_000, "a"))
        assert 0 < harness.claim(reply(wait=400_000))
        assert [(1, 1_000_000), (1, 0)] == [(r.limit, r.ahead_us) for r in harness.store.requests]


class TestLag:
    """The claims of a node whose waits end late, because its process computes."""

    @pytest.fixture
    def lagging(self, harness):
        """A harness whose waits end late by 2 ms, and which counts as late."""
        for _ in range(100):
            harness.dispatcher.lag.waited(0.002)
        harness.dispatcher.lag.late = True
        return harness

    def test_claims_say_so(self, lagging):
        """The server then prefers nodes that are on time."""
        lagging.claim()
        lagging.dispatcher.lag.late = False
        lagging.claim()
        assert [True, False] == [request.lags for request in lagging.store.requests]

    def test_the_next_claim_comes_earlier_by_the_waits_that_it_takes(self, lagging):
        """Three waits of 2 ms; its reply then comes in time for the event."""
        assert 0.085 < lagging.claim(reply(wait=100_000)) <= 0.094

    def test_the_next_claim_comes_within_the_look_ahead(self, lagging):
        """A claim finds nothing before that: at most 9 ms are added to the 10 of the reply."""
        for _ in range(100):
            lagging.dispatcher.lag.waited(1.0)
        assert 0.085 < lagging.claim(reply(wait=100_000)) <= 0.091

    def test_a_short_wait_is_not_shortened(self, lagging):
        """The script may have left the event to another node until it is due."""
        assert 0.003 < lagging.claim(reply(wait=5_000)) <= 0.005

    def test_sends_no_claim_only_because_an_event_is_due_while_all_threads_are_busy(self, lagging):
        """The claim would find no thread, and delay the handlers."""
        assert lagging.claim(reply("tea", wait=1_000)) > 1
        lagging.dispatcher.lag.late = False
        assert lagging.claim(reply(wait=1_000)) <= 0.001


class TestLookAhead:
    """When an event starts that was claimed ahead of its due time."""

    def test_counts_the_time_left_from_the_end_of_the_script(self, harness):
        """The script computed it at its beginning, and the reply was sent after its end."""
        received = time.monotonic() + HOUR_S
        harness.claim(replace(ahead(15, "tea"), script_us=4_000, received_at=received))
        assert received + 0.011 == pytest.approx(harness.dispatcher.next_due(), abs=1e-6)


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


class TestPipelining:
    """In a backlog of quick events the server works on the next claim while handlers run."""

    @pytest.fixture
    def backlog(self, harness):
        """A node in such a backlog: its first two claims were filled, and one event runs."""
        # However slow the machine is, no event waits for too long.
        harness.dispatcher.lookahead.patience = HOUR_S
        harness.batching.handler_took(1e-6)
        harness.store.answers += [several(1, 1), several(2, 2), several(4, 4), several(8, 8)]
        harness.claim()
        harness.handle()
        harness.batching._handler_seconds = 1e-6
        assert [1] == harness.limits
        harness.claim()
        return harness

    def test_sends_the_next_claim_before_starting_events(self, backlog):
        """
        The request doubles the limit and does not look ahead. It sends `hears=False`, because no
        thread is free.
        """
        assert backlog.pipeline.pending
        *_, last = backlog.store.requests
        assert (3, 4, 0, False) == (last.seq, last.limit, last.ahead_us, last.hears)
        assert 2 == len(backlog.store.answers), "the reply was read"

    def test_settles_one_batch_with_the_claim_sent_before_the_next(self, backlog):
        """Without the claim, each confirm would need a request of its own."""
        assert [[], ["1"], []] == [[s.id for s in r.settlements] for r in backlog.store.requests]
        backlog.handle()
        backlog.batching._handler_seconds = 1e-6
        backlog.claim()
        assert ["2"] == [s.id for s in backlog.store.requests[-1].settlements]
        assert (4, 7) == (backlog.store.requests[-1].seq, backlog.store.requests[-1].limit)

    def test_reads_the_reply_within_milliseconds_if_no_thread_does(self, backlog):
        """The claimed events must not wait in an unread reply."""
        assert 0 < backlog.claim() <= MAX_ADVANCE_SECONDS

    def test_counts_events_under_way_against_the_demand(self, backlog):
        """Events in an unread reply and running events together stay within the demand."""
        backlog.most = 9
        backlog.claim()
        # One runs, one waits, four have arrived: three more may be asked for.
        assert 3 == backlog.store.requests[-1].limit

    @pytest.mark.parametrize(
        ("handler_s", "claims"), [(1e-6, 1), (1.0, 3)], ids=["a single event", "slow handlers"]
    )
    def test_sends_nothing_ahead_without_a_backlog_of_quick_events(
        self, harness, handler_s, claims
    ):
        """Events that would wait for a slow thread are better left to other nodes."""
        harness.batching.handler_took(handler_s)
        for n in range(claims):
            harness.claim(several(n + 1, 1))
            harness.handle()
        assert not harness.pipeline.pending

    @pytest.mark.parametrize("odd", [{"known": False}, {"buried": [("9", "expired")]}])
    def test_sends_nothing_ahead_of_a_registration_or_buried_events(self, backlog, odd):
        """An unknown node must register before it claims again."""
        backlog.store.answers[:] = [replace(several(4, 4), **odd)]
        backlog.claim()
        assert not backlog.pipeline.pending

    def test_counts_a_lease_from_its_own_request(self, backlog):
        """The request sent after it must not make the node trust the lease for longer."""
        backlog.pipeline.sent -= 20
        backlog.claim()
        (lease,) = backlog.dispatcher.lookahead.remove({"4"})
        assert lease._trusted_until < boottime() + 27 - 19

    def test_a_ring_causes_another_claim_after_the_one_under_way(self, backlog):
        """The claim under way may have passed the server before the event was posted."""
        backlog.store.answers[:] = [reply(), reply("new", first=99)]
        backlog.cycle.run(fresh=True)
        assert [3, 4] == [r.seq for r in backlog.store.requests[2:]]
        assert backlog.dispatcher.lookahead.remove({"new"})

    def test_releases_the_events_of_the_last_reply_when_leaving(self, backlog):
        """Events that were not released would wait for the end of their lease."""
        backlog.dispatcher.release_waiting()
        backlog.cycle.run(claiming=False, fresh=True)
        backlog.claim(claiming=False)
        given = {s.id for r in backlog.store.requests for s in r.settlements if s.id in "4567"}
        assert {"4", "5", "6", "7"} == given
        assert [0, 0] == [r.limit for r in backlog.store.requests[3:]]

    def test_repeats_an_unsent_claim_at_once_and_silently(self, backlog):
        """A first failure is not reported, as with any other claim."""
        backlog.contact.reported()
        backlog.store.send_errors.append(Wrong("closed"))
        assert 0.0 == backlog.claim()
        assert not backlog.pipeline.pending
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
        """If it went on, it would claim and release events for as long as the handler runs."""
        tokens = itertools.count(100)
        del backlog.store.answers[:]
        backlog.store.answer = lambda r: several(next(tokens), r.limit)
        for _ in range(8):
            next(tokens)
            backlog.claim()
        assert not backlog.pipeline.pending
        asked = len(backlog.store.requests)
        assert len(backlog.dispatcher.lookahead) <= 2 * 64
        backlog.claim()
        assert [0] == [r.limit for r in backlog.store.requests[asked:]]

    def test_a_release_includes_the_events_of_the_next_reply(self, backlog):
        """With one thread, the later events would otherwise start before the earlier ones."""
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
        harness.pipeline.send_ahead(harness.pipeline.new_request([], 1, 0, hears=False))
        harness.cycle.run()
        assert [False, True] == [r.hears for r in harness.store.requests]

    def test_repeats_a_claim_whose_reply_cannot_be_read(self, make):
        """The events are claimed; only a repetition returns them again."""
        harness = make(look_ahead=0)
        answer = reply("tea")
        assert 0.0 == harness.claim(replace(answer, claims=Unreadable(answer.claims)))
        harness.claim(answer)
        assert [(1, 1), (1, 1)] == [(r.seq, r.resends) for r in harness.store.requests]
        harness.handle()
        assert [["tea"]] == harness.handled

    def test_keeps_an_unreadable_reply_if_the_next_claim_was_sent(self, backlog):
        """The server would not answer the earlier claim again. The reply is kept and read later."""
        answer = several(4, 4)
        backlog.store.answers[0] = replace(answer, claims=Unreadable(answer.claims))
        assert 0 < backlog.claim() <= MAX_ADVANCE_SECONDS
        assert backlog.pipeline.pending
        assert 1 == len(backlog.dispatcher.lookahead)
        backlog.claim()
        assert {"4", "5", "6", "7"} <= {h.claim.id for h in backlog.dispatcher.lookahead.remove()}
        assert not backlog.seat.unread

    def test_lateness_includes_the_time_in_an_unread_reply(self, backlog):
        """Users would otherwise see an event as punctual that waited for seconds."""
        backlog.pipeline.sent -= 2
        backlog.claim()
        late = [h.event.lateness_ms for h in backlog.dispatcher.lookahead.remove({"4", "7"})]
        assert all(ms >= 2_000 for ms in late)
        assert 2 == len(late)


class TestClockJumps:
    """Leases after a jump of the server's clock."""

    @pytest.fixture
    def held(self, make):
        """Return a function that makes a node with one running event, and returns its lease."""

        def build(**options):
            harness = make(**options)
            harness.claim(reply("tea"))
            harness.heartbeat.due = time.monotonic() + HOUR_S
            return harness, harness.leases.held()[0]

        return build

    def test_trusts_no_lease_until_renewed_after_a_jump_ahead(self, held):
        """Leases may have expired by the new clock. They are renewed at once."""
        harness, tea = held()
        renewals = failing(harness, "renew", 1)
        harness.claim(reply(ahead=HOUR_S))
        assert tea.lost()
        harness.claim(reply(ahead=HOUR_S))
        assert not tea.lost()
        assert 2 == len(renewals)
        # The jump is reported once.
        ((what, error),) = harness.announced.all()
        assert ("error", ClockJump) == (what, type(error))
        assert pytest.approx(HOUR_S, abs=1) == error.seconds

    @pytest.mark.parametrize(("options", "renewed"), [({}, True), ({"now": lambda: 0}, False)])
    def test_renews_leases_at_once_after_a_jump_back(self, held, options, renewed):
        """
        If the node died, its leases would otherwise last longer by the size of the jump. Tests move
        a clock that ``now`` gives on purpose: its jumps are ignored.
        """
        harness, tea = held(**options)
        harness.claim(reply(ahead=-HOUR_S))
        assert not tea.lost()
        assert ([(["tea"], 30_000_000)] if renewed else []) == harness.store.renewed
        jumps = [error.seconds for _, error in harness.announced.all()]
        assert ([pytest.approx(-HOUR_S, abs=1)] if renewed else []) == jumps
