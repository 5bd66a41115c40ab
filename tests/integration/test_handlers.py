"""An event in a handler: failures, listeners, its own calls, batches and its lease."""

from __future__ import annotations

import copy
import logging
import threading

import pytest
from gated import Gated
from servers import PATIENCE, eventually

from dtimer import Cancelled, HandlerError, OptionError, State
from dtimer.store.keys import Keys
from dtimer.testing import Catch

LATER = 3_600_000  # ms; longer than any test
SHORT = 900  # ms; a lease so short that a test can watch its heartbeats


class Boom(Exception):
    """The exception that handlers raise in these tests."""


def boom(events):
    raise Boom("no")


@pytest.fixture
def score(client, namespace):
    """
    Return a function that returns an event's score in ``due``: its due time or the end of its
    lease.
    """
    return lambda name: client.zscore(Keys.of(namespace).due, name)


def claims_once(timer):
    """Make the node claim once more, and wait for the reply."""
    claimer = timer._node._claimer
    before = claimer.answered
    timer._node.bell.ring()
    eventually(lambda: claimer.answered > before)


class TestFailure:
    """If a handler raises, every event of its batch that it has not confirmed fails."""

    @pytest.mark.fault("F74")
    def test_error_and_retry_are_emitted_with_the_events(self, make):
        """
        'error' gets a HandlerError with the failed events and the handler's exception as its cause.
        'retry' gets each event that will be started again.
        """
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
            record = timer.peek(id)
            assert (State.SCHEDULED, 1) == (record.state, record.attempt)

    def test_an_event_that_used_up_its_retries_becomes_a_dead_letter(self, make):
        """
        An event is started at most max_retries + 1 times. Then it becomes a dead letter with the
        number of its starts and the text of its last error, and 'dead' is emitted.
        """
        timer = make(backoff=0, max_retries=2)
        starts, retries, dead = (Catch(timer, name) for name in ("event", "retry", "dead"))
        timer.on("event", boom)
        timer.on("error", lambda _: None)
        with timer:
            id = timer.post({"a": 1})
            assert [1, 2, 3] == [starts.next()[0].attempt for _ in range(3)]
            assert id == dead.next().id
            assert [1, 2] == [retries.next().attempt for _ in range(2)]
            (letter,) = timer.dead()
            assert (id, {"a": 1}, 3, "failed") == (
                letter.id,
                letter.event,
                letter.attempt,
                letter.reason,
            )
            assert "Boom: no" in letter.error
        assert retries.empty()

    def test_an_event_without_retries_starts_once(self, make):
        """With max_retries=0 an event that fails becomes a dead letter after its only start."""
        timer = make(backoff=0)
        starts, dead = Catch(timer, "event"), Catch(timer, "dead")
        timer.on("event", boom)
        timer.on("error", lambda _: None)
        with timer:
            timer.post({}, max_retries=0)
            assert 1 == dead.next().attempt
        assert 1 == len(starts.next())
        assert starts.empty()

    @pytest.mark.fault("F84")
    def test_each_attempt_gets_a_fresh_payload(self, make):
        """A change that a handler makes to a payload is not visible to the next attempt."""
        timer = make(backoff=0, max_retries=1)
        dead = Catch(timer, "dead")
        seen = []

        def handle(events):
            seen.append(copy.deepcopy(dict(events[0])))
            events[0]["list"].append("mine")
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
        asked = []
        timer = make(backoff=lambda attempt: asked.append(attempt) or 0, max_retries=2)
        dead = Catch(timer, "dead")
        timer.on("event", boom)
        timer.on("error", lambda _: None)
        with timer:
            timer.post({})
            dead.next()
        assert [1, 2, 3] == asked

    def test_a_backoff_that_raises_is_replaced_by_the_default(self, make):
        """
        If the backoff function raises, 'error' gets the exception and the event waits for the
        default backoff.
        """

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

    def test_an_error_text_with_a_lone_surrogate_is_stored(self, make):
        """
        The text of an error may quote a lone surrogate of the payload, which UTF-8 cannot encode.
        The event is retried and the node continues.
        """
        timer = make(backoff=0, max_retries=1)
        dead = Catch(timer, "dead")

        def handle(events):
            raise Boom(events[0]["u"])

        timer.on("event", handle)
        timer.on("error", lambda _: None)
        with timer:
            timer.post({"u": "\ud800"})
            dead.next()
            (letter,) = timer.dead()
            assert "Boom: \\ud800" in letter.error

    def test_an_exception_that_cannot_be_formatted_fails_only_its_event(self, make):
        """If str() of the handler's exception raises, the event fails and no thread ends."""

        class Shy(Exception):
            def __str__(self):
                raise Boom("not even that")

        timer = make(backoff=0, max_retries=1)
        dead, errors = Catch(timer, "dead"), Catch(timer, "error")

        def handle(events):
            raise Shy

        timer.on("event", handle)
        with timer:
            timer.post({})
            assert 2 == dead.next().attempt
            assert isinstance(errors.next(), Exception)


class TestListeners:
    """Listeners of a node's events, and the effect of having none."""

    @pytest.mark.fault("F79")
    def test_all_listeners_run_if_one_raises(self, make):
        """
        If one listener raises, the others still get the event. The batch fails, and 'error' gets
        each exception.
        """
        timer = make(backoff=LATER)
        before, after = Catch(timer, "event"), None
        timer.on("event", boom)
        after = Catch(timer, "event")
        timer.on("event", lambda events: 1 / 0)
        errors, retries = Catch(timer, "error"), Catch(timer, "retry")
        with timer:
            id = timer.post({})
            assert [Boom, ZeroDivisionError] == [type(errors.next().__cause__) for _ in range(2)]
            assert id == before.next()[0].id == after.next()[0].id == retries.next().id

    def test_a_once_listener_gets_one_batch(self, make):
        """
        A once() listener gets one batch. Without another listener, the node claims no more
        events.
        """
        timer = make()
        caught = []
        heard = threading.Event()

        def first(events):
            caught.append(events)
            heard.set()

        timer.once("event", first)
        with timer:
            timer.post({"n": 1})
            assert heard.wait(PATIENCE)
            second = timer.post({"n": 2})
            claims_once(timer)
            assert 0 == timer.peek(second).attempt
        assert [[{"n": 1}]] == caught

    def test_a_second_thread_releases_its_event_if_the_once_listener_is_gone(self, make):
        """
        If two handler threads emit at the same time, one of them finds the once() listener gone. It
        releases its event and does not confirm it.
        """
        timer = make(concurrency=2)
        both = threading.Barrier(2)
        run = timer._emit_run

        def together(f, args, kwargs):
            # Both threads must have seen the listener before either of them calls it.
            if threading.current_thread().name.startswith("dtimer-node-handler"):
                both.wait(PATIENCE)
            run(f, args, kwargs)

        timer._emit_run = together
        taken = []
        timer.once("event", taken.append)
        ids = {timer.post({}) for _ in range(2)}
        with timer:
            eventually(lambda: taken and timer.stats().totals.get("released"))
        (left,) = ids - {taken[0][0].id}
        assert (State.SCHEDULED, 0) == (timer.peek(left).state, timer.peek(left).attempt)

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
        """
        A node without a listener of 'event' claims nothing, and is not registered as waiting. With
        its first listener it claims at once.
        """
        timer = make(poll_interval=LATER)
        with timer:
            id = timer.post({})
            claims_once(timer)
            assert (State.SCHEDULED, 0) == (timer.peek(id).state, timer.peek(id).attempt)
            assert [False] == [node.waiting for node in timer.nodes()]
            caught = Catch(timer, "event")
            assert id == caught.next()[0].id

    def test_a_node_stops_claiming_when_its_last_listener_is_removed(self, make):
        """After its last listener has been removed, a node claims nothing more."""
        timer = make(poll_interval=LATER)
        caught = Gated(timer)
        with timer:
            first = timer.post({})
            assert first == caught.begun()[0].id
            timer.remove_listener("event", caught.handle)
            second = timer.post({})
            caught.go_on()
            eventually(lambda: timer.peek(first) is None)
            claims_once(timer)
            assert 0 == timer.peek(second).attempt


class TestOwnEvent:
    """A handler that calls the timer about its own event."""

    @pytest.mark.fault("F80")
    def test_a_handler_may_replace_its_own_event(self, make):
        """
        A handler may post its own id again: the new event is delivered, and the end of the old one
        does not affect it.
        """
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
        assert (3, 3, 1) == (totals["posted"], totals["started"], totals["confirmed"])

    @pytest.mark.fault("F80")
    def test_a_handler_that_replaces_its_event_and_returns_is_not_a_lost_lease(self, make):
        """
        The confirm after the handler's return does not affect the new event. No lost lease is
        reported, because the process replaced the event itself.
        """
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
            eventually(lambda: not timer._node._dispatcher._leases and seen)
            record = timer.peek("tick")
            assert ({"n": 2}, State.SCHEDULED, 0) == (record.event, record.state, record.attempt)
        assert [1] == seen
        assert lost.empty()
        assert errors.empty()

    @pytest.mark.fault("F81")
    def test_a_handler_that_cancels_its_event_gets_in_flight(self, make):
        """
        A handler that cancels its own event gets IN_FLIGHT as the result; the event is not
        retried.
        """
        timer = make(backoff=0)
        told = []
        errors, retries = Catch(timer, "error"), Catch(timer, "retry")

        def handle(events):
            told.append(timer.cancel(events[0].id))
            raise Boom

        timer.on("event", handle)
        with timer:
            id = timer.post({})
            errors.next()
            eventually(lambda: timer.peek(id) is None)
            assert [] == list(timer.dead())
        assert [Cancelled.IN_FLIGHT] == told
        assert retries.empty()

    @pytest.mark.fault("F82")
    def test_a_second_confirm_returns_true(self, make):
        """A second confirm returns True like the first, on any thread."""
        timer = make()
        told = []
        done = threading.Event()

        def handle(events):
            (ev,) = events
            told.append(ev.confirm())
            told.append(timer.peek(ev.id))
            other = threading.Thread(target=lambda: told.append(timer.confirm(ev)))
            other.start()
            other.join()
            done.set()

        timer.on("event", handle)
        with timer:
            timer.post({})
            assert done.wait(PATIENCE)
        assert [True, None, True] == told
        assert 1 == timer.stats().totals["confirmed"]

    @pytest.mark.fault("F82")
    def test_calls_on_a_lost_lease_return_false(self, make):
        """
        If another node holds the event, confirm, retry and extend return False and change nothing,
        and lease_lost is true.
        """
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
        """
        ev.retry(delay) schedules the event again and charges the attempt. A later confirm or
        failure of the handler does not change that.
        """
        timer = make()
        told = []
        retries, errors = Catch(timer, "retry"), Catch(timer, "error")

        def handle(events):
            told.append(events[0].retry(LATER))
            told.append(events[0].confirm())
            raise Boom

        timer.on("event", handle)
        with timer:
            id = timer.post({})
            assert id == retries.next().id
            assert [] == errors.next().events
            record = timer.peek(id)
            assert (State.SCHEDULED, 1) == (record.state, record.attempt)
        assert [True, False] == told
        with pytest.raises(OptionError):
            timer.confirm({})

    def test_retry_returns_false_if_no_retries_are_left(self, make):
        """ev.retry() returns False if it makes the event a dead letter."""
        timer = make(max_retries=0)
        told = []
        dead = Catch(timer, "dead")
        timer.on("event", lambda events: told.append(events[0].retry()))
        with timer:
            timer.post({})
            dead.next()
            (letter,) = timer.dead()
        assert [False] == told
        assert "asked for a retry" in letter.error


class TestOrder:
    """A node with one thread and a backlog."""

    def test_a_pause_takes_the_claimed_events_from_a_node(self, make, monkeypatch):
        """
        The only node of a namespace keeps events for its busy thread. After pause() it releases
        them, and does not start them.
        """
        monkeypatch.setattr("dtimer.engine.lookahead._ALONE_PATIENCE", 10 * PATIENCE)
        monkeypatch.setattr("dtimer.engine.batching.Batching.batches", 10)
        timer = make(lease=1_000 * 100 * PATIENCE)
        handler = Gated(timer)
        ids = timer.post_many([({"n": n}, 0) for n in range(10)])
        with timer:
            (first,) = handler.begun()
            eventually(lambda: len(timer._node._dispatcher.lookahead) == 9)
            timer.pause()
            left = set(ids) - {first.id}
            eventually(lambda: {timer.peek(id).state for id in left} == {State.SCHEDULED})
            handler.go_on(100)
            eventually(lambda: timer.peek(first.id) is None)
            assert 0 == handler.waiting
            assert {0} == {timer.peek(id).attempt for id in left}
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
        seen, over = [], threading.Event()

        def handle(events):
            (ev,) = events
            seen.append(ev["n"])
            if ev["n"] == slow:
                # Wait until the claimer has noticed the slow handler and has released what it will
                # release.
                eventually(lambda: timer._node)
                dispatcher, claimer = timer._node._dispatcher, timer._node._claimer
                eventually(lambda: dispatcher._behind or not dispatcher.lookahead)
                asked = claimer.answered
                timer._node.bell.ring()
                eventually(lambda: claimer.answered > asked)
            if len(seen) == count:
                over.set()

        timer.on("event", handle)
        with timer:
            assert over.wait(3 * PATIENCE)
            eventually(lambda: timer.stats().in_flight == 0)
        totals = timer.stats().totals
        assert list(range(count)) == seen
        if not others:
            assert (count, 0) == (totals["started"], totals["released"]), (
                "each event is claimed once"
            )


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
        """
        With auto_confirm=False the handler's return confirms nothing. Any thread may confirm later,
        within the lease.
        """
        timer = make(auto_confirm=False)
        caught = Catch(timer, "event")
        with timer:
            id = timer.post({})
            (ev,) = caught.next()
            claims_once(timer)
            assert State.IN_FLIGHT is timer.peek(id).state
            assert not ev.lease_lost
            assert ev.confirm() is True
            assert timer.peek(id) is None
            assert ev.confirm() is True

    def test_an_event_not_confirmed_within_its_lease_is_delivered_again(self, make, score):
        """
        With auto_confirm=False heartbeats end with the handler. An event that is not confirmed
        within its lease is delivered again.
        """
        timer = make(auto_confirm=False, lease=SHORT, poll_interval=50)
        handler = Gated(timer)
        with timer:
            id = timer.post({})
            (first,) = handler.begun()
            held = score(id)
            eventually(lambda: score(id) > held)
            handler.go_on()
            (second,) = handler.begun()
            assert 2 == second.attempt
            assert first.lease_lost
            assert first.confirm() is False
            assert second.confirm() is True
            handler.go_on()

    def test_a_heartbeat_does_not_shorten_an_extension(self, make, score):
        """
        ev.extend() keeps the event for the given time, even if the handler continues and heartbeats
        follow.
        """
        timer = make(auto_confirm=False, lease=SHORT)
        handler = Gated(timer)
        with timer:
            id = timer.post({})
            (ev,) = handler.begun()
            assert ev.extend(LATER) is True
            until = score(id)
            claimer = timer._node._claimer
            for _ in range(2):
                beat = claimer._heartbeat.due
                eventually(lambda beat=beat: claimer._heartbeat.due > beat)
            assert score(id) > until - 1_000_000
            handler.go_on()
            handler.ended()
            assert not ev.lease_lost
            assert ev.confirm() is True

    def test_a_short_extension_does_not_let_another_node_start_the_event(self, make, score):
        """
        A running handler cannot lose its event by a short ev.extend(): the lease keeps at least its
        remaining time, because the node renews it anyway.
        """
        timer = make(lease=LATER)
        handler = Gated(timer)
        with timer:
            id = timer.post({})
            (ev,) = handler.begun()
            until = score(id)
            assert ev.extend(1) is True
            assert until == score(id)
            assert not ev.lease_lost
            handler.go_on()
            handler.ended()


@pytest.mark.fault("F61")
@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_a_handler_that_raises_system_exit_makes_the_node_leave(make, end):
    """
    SystemExit and KeyboardInterrupt fail the batch like any exception and make the node leave. A
    thread that ended silently would leave a node that does nothing.
    """
    timer = make(backoff=LATER)
    errors = Catch(timer, "error")

    def handle(events):
        raise end

    timer.on("event", handle)
    timer.join()
    id = timer.post({})
    assert isinstance(errors.next().__cause__, end)
    eventually(lambda: not timer.joined)
    record = timer.peek(id)
    assert (State.SCHEDULED, 1) == (record.state, record.attempt)
