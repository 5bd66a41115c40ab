"""An event in a handler: failures, listeners, calls about the event, batches and its lease."""

from __future__ import annotations

import copy
import logging
import queue
import threading

import pytest
from background import in_thread
from gated import Gated
from servers import LATER, PATIENCE, eventually

from dtimer import Cancelled, HandlerError, OptionError, State
from dtimer.store.keys import Keys
from dtimer.testing import Catch

SHORT = 900  # ms; a lease so short that a test can watch its heartbeats


class Boom(Exception):
    """The exception that handlers raise in these tests."""


class Unprintable(Exception):
    """An exception whose ``str`` raises."""

    def __str__(self):
        raise Boom("not even that")


def boom(events):
    raise Boom("no")


def state_and_attempt(timer, id):
    record = timer.peek(id)
    return record.state, record.attempt


@pytest.fixture
def score(client, namespace):
    """Return a function that reads an event's score in ``due``: its due time or its lease's end."""
    return lambda name: client.zscore(Keys.of(namespace).due, name)


def make_it_claim_again(timer):
    """Make the node claim once more, and wait for the reply."""
    contact = timer._node._contact
    answered = contact.answered
    timer._node.bell.ring()
    eventually(lambda: contact.answered > answered)


class TestFailure:
    """If a handler raises, every event of its batch that it has not confirmed fails."""

    @pytest.mark.fault("F74")
    def test_error_and_retry_are_emitted_with_the_events(self, make):
        """'error' gets the failed events and the cause, 'retry' each event that starts again."""
        timer = make(backoff=LATER)
        errors, retries = Catch(timer, "error"), Catch(timer, "retry")
        timer.on("event", boom)
        with timer:
            id = timer.post({"a": 1})
            error = errors.next()
            assert isinstance(error, HandlerError)
            assert isinstance(error.__cause__, Boom)
            assert [id] == [ev.id for ev in error.events]
            assert error.event == {"a": 1}
            assert id == retries.next().id
            assert (State.SCHEDULED, 1) == state_and_attempt(timer, id)

    @pytest.mark.parametrize("max_retries", [0, 2])
    def test_an_event_that_used_up_its_retries_becomes_a_dead_letter(self, make, max_retries):
        """The dead letter has the number of starts and the last error, and 'dead' is emitted."""
        timer = make(backoff=0, max_retries=max_retries)
        starts, retries, dead = (Catch(timer, name) for name in ("event", "retry", "dead"))
        timer.on("event", boom)
        timer.on("error", lambda _: None)
        attempts = list(range(1, max_retries + 2))
        with timer:
            id = timer.post({"a": 1})
            assert attempts == [starts.next()[0].attempt for _ in attempts]
            assert (id, attempts[-1]) == ((ev := dead.next()).id, ev.attempt)
            assert attempts[:-1] == [retries.next().attempt for _ in attempts[:-1]]
            (letter,) = timer.dead()
            assert (id, {"a": 1}, attempts[-1], "failed") == (
                letter.id, letter.event, letter.attempt, letter.reason,
            )  # fmt: skip
            assert "Boom: no" in letter.error
        assert starts.empty()
        assert retries.empty()

    @pytest.mark.fault("F84")
    def test_each_attempt_gets_a_fresh_payload(self, make):
        """A change that a handler makes to a payload is not visible to the next attempt."""
        timer = make(backoff=0, max_retries=1)
        dead = Catch(timer, "dead")
        seen = []

        def handle(events):
            seen.append(copy.deepcopy(dict(events[0])))
            events[0]["list"].append("changed")
            events[0]["more"] = 1
            raise Boom

        timer.on("event", handle)
        timer.on("error", lambda _: None)
        with timer:
            timer.post({"list": []})
            dead.next()
        assert [{"list": []}, {"list": []}] == seen

    def test_a_backoff_function_gets_the_attempt(self, make):
        """A backoff function is called with the number of the attempt that failed."""
        attempts = []
        timer = make(backoff=lambda attempt: attempts.append(attempt) or 0, max_retries=2)
        dead = Catch(timer, "dead")
        timer.on("event", boom)
        timer.on("error", lambda _: None)
        with timer:
            timer.post({})
            dead.next()
        assert [1, 2, 3] == attempts

    def test_a_backoff_that_raises_is_replaced_by_the_default(self, make):
        """'error' gets the exception, and the event must not be retried at once."""

        def backoff(attempt):
            raise Boom("backoff")

        timer = make(backoff=backoff)
        errors, retries = Catch(timer, "error"), Catch(timer, "retry")
        timer.on("event", boom)
        with timer:
            id = timer.post({})
            assert "backoff" == str(errors.next())
            assert isinstance(errors.next(), HandlerError)
            retries.next()
            assert State.SCHEDULED is timer.peek(id).state

    @pytest.mark.parametrize(
        ("exception", "text"),
        [(Boom("\ud800"), "Boom: \\ud800"), (Unprintable(), "not even that")],
        ids=["a lone surrogate, which UTF-8 cannot encode", "str() raises"],
    )
    def test_an_exception_without_a_proper_text_fails_only_its_event(self, make, exception, text):
        """The event is retried as after any other exception, and no thread ends."""
        timer = make(backoff=0, max_retries=1)
        dead, errors = Catch(timer, "dead"), Catch(timer, "error")

        def handle(events):
            raise exception

        timer.on("event", handle)
        with timer:
            timer.post({})
            assert 2 == dead.next().attempt
            assert isinstance(errors.next(), Exception)
            (letter,) = timer.dead()
            assert text in letter.error


class TestListeners:
    """Listeners of a node's events, and the effect of having none."""

    @pytest.mark.fault("F79")
    def test_all_listeners_run_if_one_raises(self, make):
        """Each listener gets the event, the batch fails, and 'error' gets each exception."""
        timer = make(backoff=LATER)
        before = Catch(timer, "event")
        timer.on("event", boom)
        after = Catch(timer, "event")
        timer.on("event", lambda events: 1 / 0)
        errors, retries = Catch(timer, "error"), Catch(timer, "retry")
        with timer:
            id = timer.post({})
            assert [Boom, ZeroDivisionError] == [type(errors.next().__cause__) for _ in range(2)]
            assert id == before.next()[0].id == after.next()[0].id == retries.next().id

    def test_a_once_listener_gets_one_batch(self, make):
        """Without another listener, the node claims no more events after that batch."""
        timer = make()
        batches = queue.SimpleQueue()
        timer.once("event", batches.put)
        with timer:
            timer.post({"n": 1})
            assert [{"n": 1}] == batches.get(timeout=PATIENCE)
            second = timer.post({"n": 2})
            make_it_claim_again(timer)
            assert 0 == timer.peek(second).attempt
        assert batches.empty()

    def test_a_second_thread_releases_its_event_if_the_once_listener_is_gone(self, make):
        """A thread that finds the listener of its event gone must not confirm the event."""
        timer = make(concurrency=2)
        both = threading.Barrier(2)
        run = timer._emit_run

        def run_together(f, args, kwargs):
            # Both threads must have seen the listener before either of them calls it.
            if threading.current_thread().name.startswith("dtimer-node-handler"):
                both.wait(PATIENCE)
            run(f, args, kwargs)

        timer._emit_run = run_together
        batches = []
        timer.once("event", batches.append)
        ids = {timer.post({}) for _ in range(2)}
        with timer:
            eventually(lambda: batches and timer.stats().totals.get("released"))
        (released,) = ids - {batches[0][0].id}
        assert (State.SCHEDULED, 0) == state_and_attempt(timer, released)

    @pytest.mark.fault("F75")
    def test_an_error_without_a_listener_is_logged_once(self, make, caplog):
        """If 'error' has no listener, the error is logged once."""
        timer = make(backoff=LATER)
        retries = Catch(timer, "retry")
        timer.on("event", boom)
        with timer:
            timer.post({})
            retries.next()
        (record,) = (r for r in caplog.records if r.levelno >= logging.ERROR)
        assert "a handler raised Boom: no" in record.message
        assert "Boom" in caplog.text

    @pytest.mark.fault("F78")
    def test_a_node_without_a_listener_claims_nothing(self, make):
        """The node is not registered as waiting. With its first listener it claims at once."""
        timer = make(poll_interval=LATER)
        with timer:
            id = timer.post({})
            make_it_claim_again(timer)
            assert (State.SCHEDULED, 0) == state_and_attempt(timer, id)
            assert [False] == [node.waiting for node in timer.nodes()]
            caught = Catch(timer, "event")
            assert id == caught.next()[0].id

    def test_a_node_stops_claiming_when_its_last_listener_is_removed(self, make):
        """After its last listener has been removed, a node claims nothing more."""
        timer = make(poll_interval=LATER)
        handler = Gated(timer)
        with timer:
            first = timer.post({})
            assert first == handler.begun()[0].id
            timer.remove_listener("event", handler.handle)
            second = timer.post({})
            handler.go_on()
            eventually(lambda: timer.peek(first) is None)
            make_it_claim_again(timer)
            assert 0 == timer.peek(second).attempt


class TestOwnEvent:
    """A handler that calls the timer about its own event."""

    @pytest.mark.fault("F80")
    def test_a_handler_may_replace_its_own_event(self, make):
        """The new event is delivered, and the end of the old one does not affect it."""
        timer = make()
        seen = []
        done = threading.Event()

        def handle(events):
            (ev,) = events
            seen.append((ev["n"], ev.attempt))
            if ev["n"] < 3:
                timer.post({"n": ev["n"] + 1}, id=ev.id)
                assert ev.confirm() is False
                assert ev.lease_lost
            else:
                done.set()

        timer.on("event", handle)
        with timer:
            timer.post({"n": 1}, id="tick")
            assert done.wait(PATIENCE)
            eventually(lambda: timer.peek("tick") is None)
        assert [(1, 1), (2, 1), (3, 1)] == seen
        totals = timer.stats().totals
        # A claim that was under way during a post may take the event, and the node releases it.
        started = totals["started"] - totals["released"]
        assert (3, 3, 1) == (totals["posted"], started, totals["confirmed"])

    @pytest.mark.fault("F80")
    def test_a_handler_that_replaces_its_event_and_returns_is_not_a_lost_lease(self, make):
        """The confirm at the end finds no lease, because the process replaced the event itself."""
        timer = make()
        seen = []
        lost, errors = Catch(timer, "lease_lost"), Catch(timer, "error")

        def handle(events):
            seen.append(events[0]["n"])
            if events[0]["n"] == 1:
                timer.post({"n": 2}, LATER, id="tick")

        timer.on("event", handle)
        with timer:
            timer.post({"n": 1}, id="tick")
            eventually(lambda: not timer._node._leases._leases and seen)
            record = timer.peek("tick")
            assert ({"n": 2}, State.SCHEDULED, 0) == (record.event, record.state, record.attempt)
        assert [1] == seen
        assert lost.empty()
        assert errors.empty()

    @pytest.mark.fault("F81")
    def test_cancel_by_the_events_own_handler_returns_in_flight(self, make):
        """The event is not retried if the handler then fails."""
        timer = make(backoff=0)
        results = []
        errors, retries = Catch(timer, "error"), Catch(timer, "retry")

        def handle(events):
            results.append(timer.cancel(events[0].id))
            raise Boom

        timer.on("event", handle)
        with timer:
            id = timer.post({})
            errors.next()
            eventually(lambda: timer.peek(id) is None)
            assert [] == list(timer.dead())
        assert [Cancelled.IN_FLIGHT] == results
        assert retries.empty()

    @pytest.mark.fault("F82")
    def test_a_second_confirm_returns_true(self, make):
        """A second confirm returns True like the first, on any thread."""
        timer = make()
        results = queue.SimpleQueue()

        def handle(events):
            (ev,) = events
            other_thread = in_thread(timer.confirm, ev) if ev.confirm() else None
            results.put((timer.peek(ev.id), other_thread.result(PATIENCE)))

        timer.on("event", handle)
        with timer:
            timer.post({})
            assert (None, True) == results.get(timeout=PATIENCE)
        assert 1 == timer.stats().totals["confirmed"]

    @pytest.mark.fault("F82")
    def test_calls_on_a_lost_lease_return_false(self, make):
        """If another node holds the event, no call of the former holder may change it."""
        timer = make(auto_confirm=False, lease=1_500, poll_interval=50, backoff=0)
        caught = Catch(timer, "event")
        with timer:
            id = timer.post({})
            (first,) = caught.next()
            (second,) = caught.next()
            assert (1, 2) == (first.attempt, second.attempt)
            assert second.token > first.token
            assert second.extend(LATER) is True
            assert [False, False, False] == [first.confirm(), first.retry(0), first.extend(1)]
            assert first.lease_lost
            assert not second.lease_lost
            assert State.IN_FLIGHT is timer.peek(id).state
            assert second.confirm() is True

    def test_retry_settles_the_event(self, make):
        """A later confirm or failure of the handler must not change what ev.retry() has decided."""
        timer = make()
        results = []
        retries, errors = Catch(timer, "retry"), Catch(timer, "error")

        def handle(events):
            results.extend([events[0].retry(LATER), events[0].confirm()])
            raise Boom

        timer.on("event", handle)
        with timer:
            id = timer.post({})
            assert id == retries.next().id
            assert [] == errors.next().events
            assert (State.SCHEDULED, 1) == state_and_attempt(timer, id)
        assert [True, False] == results
        with pytest.raises(OptionError):
            timer.confirm({})

    def test_retry_returns_false_if_no_retries_are_left(self, make):
        """ev.retry() returns False if it makes the event a dead letter."""
        timer = make(max_retries=0)
        results = []
        dead = Catch(timer, "dead")
        timer.on("event", lambda events: results.append(events[0].retry()))
        with timer:
            timer.post({})
            dead.next()
            (letter,) = timer.dead()
        assert [False] == results
        assert "asked for a retry" in letter.error


class TestOrder:
    """A node with one thread and a backlog."""

    def test_a_pause_takes_the_claimed_events_from_a_node(self, make, monkeypatch):
        """After pause() the only node releases the events that it keeps for its busy thread."""
        monkeypatch.setattr("dtimer.engine.lookahead._ALONE_PATIENCE", 10 * PATIENCE)
        monkeypatch.setattr("dtimer.engine.batching.Batching.batches", 10)
        timer = make(lease=1_000 * 100 * PATIENCE)
        handler = Gated(timer)
        ids = timer.post_many([({"n": n}, 0) for n in range(10)])
        with timer:
            (first,) = handler.begun()
            eventually(lambda: len(timer._node._dispatcher.lookahead) == 9)
            timer.pause()
            unstarted = set(ids) - {first.id}
            eventually(lambda: {timer.peek(id).state for id in unstarted} == {State.SCHEDULED})
            handler.go_on(100)
            eventually(lambda: timer.peek(first.id) is None)
            assert 0 == handler.waiting
            assert {0} == {timer.peek(id).attempt for id in unstarted}
            timer.resume()
            eventually(lambda: not any(timer.peek(id) for id in ids))

    @pytest.mark.parametrize("others", [False, True], ids=["alone", "among others"])
    def test_one_thread_starts_a_backlog_in_order_of_due_time(self, make, monkeypatch, others):
        """
        A slow handler among fast ones does not change the order. Events claimed in advance are kept
        or, if there are other nodes, released together.
        """
        monkeypatch.setattr("dtimer.store.store.Store.alone", lambda *_: not others)
        count, slow = 300, 150
        timer = make()
        timer.post_many(({"n": n}, 0) for n in range(count))
        seen, done = [], threading.Event()

        def handle(events):
            (ev,) = events
            seen.append(ev["n"])
            if ev["n"] == slow:
                # Wait until the claimer has noticed the slow handler and has released what it will
                # release.
                eventually(lambda: timer._node)
                dispatcher = timer._node._dispatcher
                eventually(lambda: dispatcher._behind or not dispatcher.lookahead)
                make_it_claim_again(timer)
            if len(seen) == count:
                done.set()

        timer.on("event", handle)
        with timer:
            assert done.wait(3 * PATIENCE)
            eventually(lambda: timer.stats().in_flight == 0)
        totals = timer.stats().totals
        assert list(range(count)) == seen
        if not others:
            assert (count, 0) == (totals["started"], totals["released"]), "each is claimed once"


class TestBatches:
    """Several events for one handler call."""

    @pytest.mark.fault("F74")
    def test_only_the_unconfirmed_events_fail(self, make):
        """If a handler confirms two of five events and raises, the other three are retried."""
        timer = make(max_events=5, backoff=LATER)
        errors, retries = Catch(timer, "error"), Catch(timer, "retry")

        def handle(events):
            assert [True, True] == [ev.confirm() for ev in events[:2]]
            raise Boom

        timer.on("event", handle)
        ids = timer.post_many([({"n": n}, 0) for n in range(5)])
        with timer:
            assert ids[2:] == [ev.id for ev in errors.next().events]
            assert ids[2:] == [retries.next().id for _ in range(3)]
            assert [None, None] == [timer.peek(id) for id in ids[:2]]
            assert [1, 1, 1] == [timer.peek(id).attempt for id in ids[2:]]
        assert errors.empty()

    def test_max_events_may_change_while_joined(self, make):
        """If max_events is set while the node runs, it applies from the next batch."""
        timer = make()
        handler = Gated(timer)
        with timer:
            timer.post_many([({}, 0)] * 7)
            assert 1 == len(handler.begun())
            timer.max_events = 3
            handler.go_on(3)
            assert [3, 3] == [len(handler.begun()) for _ in range(2)]
            eventually(lambda: timer.stats().totals.get("confirmed") == 7)
        assert 3 == timer.max_events
        with pytest.raises(OptionError):
            timer.max_events = 0


class TestLease:
    """How long a node holds an event."""

    def test_another_thread_may_confirm_later(self, make):
        """With auto_confirm=False the handler's return confirms nothing."""
        timer = make(auto_confirm=False)
        caught = Catch(timer, "event")
        with timer:
            id = timer.post({})
            (ev,) = caught.next()
            make_it_claim_again(timer)
            assert State.IN_FLIGHT is timer.peek(id).state
            assert not ev.lease_lost
            assert ev.confirm() is True
            assert timer.peek(id) is None
            assert ev.confirm() is True

    def test_an_event_not_confirmed_within_its_lease_is_delivered_again(self, make, score):
        """With auto_confirm=False heartbeats end with the handler."""
        timer = make(auto_confirm=False, lease=SHORT, poll_interval=50)
        handler = Gated(timer)
        with timer:
            id = timer.post({})
            (first,) = handler.begun()
            lease_end = score(id)
            eventually(lambda: score(id) > lease_end)
            handler.go_on()
            (second,) = handler.begun()
            assert 2 == second.attempt
            assert first.lease_lost
            assert first.confirm() is False
            assert second.confirm() is True
            handler.go_on()

    def test_a_heartbeat_does_not_shorten_an_extension(self, make, score):
        """ev.extend() keeps the event for the given time, even if heartbeats follow."""
        timer = make(auto_confirm=False, lease=SHORT)
        handler = Gated(timer)
        with timer:
            id = timer.post({})
            (ev,) = handler.begun()
            assert ev.extend(LATER) is True
            lease_end = score(id)
            heartbeat = timer._node._seat.heartbeat
            for _ in range(2):
                beat = heartbeat.due
                eventually(lambda beat=beat: heartbeat.due > beat)
            assert score(id) > lease_end - 1_000_000
            handler.go_on()
            handler.ended()
            assert not ev.lease_lost
            assert ev.confirm() is True

    def test_a_short_extension_does_not_let_another_node_start_the_event(self, make, score):
        """The lease of a running handler keeps its remaining time; the node renews it anyway."""
        timer = make(lease=LATER)
        handler = Gated(timer)
        with timer:
            id = timer.post({})
            (ev,) = handler.begun()
            lease_end = score(id)
            assert ev.extend(1) is True
            assert lease_end == score(id)
            assert not ev.lease_lost
            handler.go_on()
            handler.ended()


@pytest.mark.fault("F61")
@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_a_handler_that_raises_system_exit_makes_the_node_leave(make, end):
    """The batch fails, too. A thread that ended silently would leave a node that does nothing."""
    timer = make(backoff=LATER)
    errors = Catch(timer, "error")

    def handle(events):
        raise end

    timer.on("event", handle)
    timer.join()
    id = timer.post({})
    assert isinstance(errors.next().__cause__, end)
    eventually(lambda: not timer.joined)
    assert (State.SCHEDULED, 1) == state_and_attempt(timer, id)
