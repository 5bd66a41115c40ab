"""What becomes of an event in the hands of a handler, whatever the handler does."""

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

LATER = 3_600_000  # ms; no test is there to see it
SHORT = 900  # ms; a lease whose heartbeats can be watched


class Boom(Exception):
    """What the handlers here raise."""


def boom(events):
    raise Boom("no")


@pytest.fixture
def score(client, namespace):
    """The score of an event in the sorted set of truth: when it is due, or its lease ends."""
    return lambda name: client.zscore(Keys.of(namespace).due, name)


def takes_a_turn(timer):
    """Have the node ask once more, and wait for the answer."""
    claimer = timer._life._claimer
    before = claimer.answered
    timer._life.bell.ring()
    eventually(lambda: claimer.answered > before)


class TestFailure:
    """A handler that raises fails what it has not confirmed, and nothing else."""

    @pytest.mark.fault("F74")
    def test_error_says_what_and_why(self, make):
        """
        'error' gets a HandlerError with the events that failed and the handler's own
        exception as its cause, 'retry' each event that will come again.
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

    @pytest.mark.fault("F74")
    def test_others_are_unaffected(self, make):
        """One event that fails does not keep the next from its handler."""
        timer = make(backoff=LATER)
        good = Catch(timer, "retry")

        def handle(events):
            if events[0]["bad"]:
                raise Boom

        timer.on("event", handle)
        with timer:
            bad = timer.post({"bad": True})
            fine = timer.post({"bad": False})
            assert bad == good.next().id
            eventually(lambda: timer.peek(fine) is None)
        assert {"retried": 1, "confirmed": 1}.items() <= timer.stats().totals.items()

    def test_spent_retries_end_among_the_dead_letters(self, make):
        """
        An event is started max_retries + 1 times at most, then it is a dead letter with
        the number of its starts and the text of its last error; 'dead' says so.
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

    def test_at_most_once(self, make):
        """With max_retries=0 an event that fails is a dead letter after its only start."""
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
    def test_the_payload_is_fresh_each_time(self, make):
        """What a handler does to a payload is not seen by the next attempt."""
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

    def test_backoff_is_asked_with_the_attempt(self, make):
        """A backoff that is a function gets the number of the attempt that failed."""
        asked = []
        timer = make(backoff=lambda attempt: asked.append(attempt) or 0, max_retries=2)
        dead = Catch(timer, "dead")
        timer.on("event", boom)
        timer.on("error", lambda _: None)
        with timer:
            timer.post({})
            dead.next()
        assert [1, 2, 3] == asked

    def test_a_backoff_that_raises(self, make):
        """
        A backoff that raises is told to 'error' like everything else, and the event waits
        as it would by default.
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

    def test_an_error_that_no_encoding_can_carry(self, make):
        """
        The text of an error may quote a lone surrogate of the payload: the event is
        retried and the node goes on.
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

    def test_an_error_that_cannot_be_shown(self, make):
        """An exception whose own str() raises fails its event, and no thread with it."""

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
    """Who listens, and what follows from it."""

    @pytest.mark.fault("F79")
    def test_all_listeners_run(self, make):
        """
        A listener that raises does not keep the others from the event; the batch has
        failed, and 'error' gets each exception.
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

    def test_once(self, make):
        """A listener by once() gets one batch; without another the node claims no more."""
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
            takes_a_turn(timer)
            assert 0 == timer.peek(second).attempt
        assert [[{"n": 1}]] == caught

    def test_once_and_many_hands(self, make):
        """
        Of two hands that emit at the same time one finds the once() listener gone: its
        event is handed back, not confirmed.
        """
        timer = make(concurrency=2)
        both = threading.Barrier(2)
        run = timer._emit_run

        def together(f, args, kwargs):
            # Both have found the listener before either calls it.
            if threading.current_thread().name.startswith("dtimer-node-hand"):
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
    def test_a_listener_of_error_that_raises(self, make, caplog):
        """A listener of 'error' that raises is logged, and the node goes on."""
        timer = make(backoff=0, max_retries=1)
        dead = Catch(timer, "dead")
        timer.on("event", boom)
        timer.on("error", lambda _: 1 / 0)
        with timer:
            timer.post({})
            dead.next()
        logged = [r for r in caplog.records if "a listener of 'error' raised" in r.message]
        assert 2 == len(logged)
        assert all(r.exc_info[0] is ZeroDivisionError for r in logged)

    @pytest.mark.fault("F75")
    def test_nobody_listens_to_error(self, make, caplog):
        """Without a listener of 'error' an error is logged, once."""
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
    def test_nobody_listens_to_event(self, make):
        """
        A node without a listener of 'event' claims nothing and is not waited for; with
        the first listener it begins to claim, at once.
        """
        timer = make(poll_interval=LATER)
        with timer:
            id = timer.post({})
            takes_a_turn(timer)
            assert (State.SCHEDULED, 0) == (timer.peek(id).state, timer.peek(id).attempt)
            assert [False] == [node.waiting for node in timer.nodes()]
            caught = Catch(timer, "event")
            assert id == caught.next()[0].id

    def test_the_last_listener_goes(self, make):
        """When its last listener has gone, a node claims nothing any more."""
        timer = make(poll_interval=LATER)
        caught = Gated(timer)
        with timer:
            first = timer.post({})
            assert first == caught.begun()[0].id
            timer.remove_listener("event", caught.handle)
            second = timer.post({})
            caught.go_on()
            eventually(lambda: timer.peek(first) is None)
            takes_a_turn(timer)
            assert 0 == timer.peek(second).attempt

    def test_a_corrupt_event_is_told(self, make, client, namespace):
        """
        What somebody else wrote into our keys becomes a dead letter with its bytes, and
        'dead' tells; the next event is handled.
        """
        timer = make()
        caught, dead = Catch(timer, "event"), Catch(timer, "dead")
        keys = Keys.of(namespace)
        client.hset(keys.body, "odd", b",3|not json \xff")
        client.zadd(keys.due, {"odd": 1})
        with timer:
            told = dead.next()
            assert ("odd", "corrupt") == (told.id, told.reason)
            timer.post({"n": 1})
            assert [{"n": 1}] == caught.next()
            (letter,) = timer.dead()
            assert (b"not json \xff", "corrupt") == (letter.raw.partition(b"|")[2], letter.reason)


class TestOwnEvent:
    """A handler that turns to its own event."""

    @pytest.mark.fault("F80")
    def test_posts_its_own_id(self, make):
        """
        A handler may post its own id anew: the new event fires, and the end of the old
        one does not touch it.
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
    def test_posts_its_own_id_and_returns(self, make):
        """
        The confirm that follows a handler's return does not touch its successor either; and
        as the process did it itself, nobody is told that a lease was lost.
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
            eventually(lambda: not timer._life._dispatcher._held and seen)
            record = timer.peek("tick")
            assert ({"n": 2}, State.SCHEDULED, 0) == (record.event, record.state, record.attempt)
        assert [1] == seen
        assert lost.empty()
        assert errors.empty()

    @pytest.mark.fault("F81")
    def test_cancels_itself(self, make):
        """A handler that cancels its own event is told that it runs; no retry follows."""
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

    @pytest.mark.fault("F81")
    def test_reschedules_itself(self, make):
        """An event in flight cannot be moved: False, and the handler's return confirms it."""
        timer = make()
        told = []
        timer.on("event", lambda events: told.append(timer.reschedule(events[0].id, LATER)))
        with timer:
            id = timer.post({})
            eventually(lambda: timer.peek(id) is None)
        assert [False] == told

    @pytest.mark.fault("F82")
    def test_confirm_twice(self, make):
        """A second confirm is as true as the first, from whatever thread it comes."""
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
    def test_confirm_after_the_lease_was_lost(self, make):
        """
        When somebody else has the event, confirm, retry and extend give False and change
        nothing, and lease_lost is true.
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

    def test_retry_on_request(self, make):
        """
        ev.retry(delay) gives the event back for later, attempt charged, and what the
        handler does afterwards changes nothing about that.
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

    def test_retry_when_they_are_spent(self, make):
        """ev.retry() that makes a dead letter of the event gives False."""
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
    """A node with one thread, and a backlog."""

    @pytest.mark.parametrize("others", [False, True], ids=["alone", "among others"])
    def test_one_thread_starts_a_backlog_in_the_order_of_due_times(self, make, monkeypatch, others):
        """
        One handler that takes long among quick ones changes no order: what was claimed in advance
        is kept, or, where other nodes are there, released as a whole.
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
                # Until the claimer has seen that it takes long, and has released what it will.
                eventually(lambda: timer._life)
                dispatcher, claimer = timer._life._dispatcher, timer._life._claimer
                eventually(lambda: dispatcher._behind or not dispatcher.early)
                asked = claimer.answered
                timer._life.bell.ring()
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
            assert (count, 0) == (totals["started"], totals["released"]), "claimed but once"


class TestBatches:
    """Several events at a time."""

    @pytest.mark.fault("F74")
    def test_only_the_unconfirmed_fail(self, make):
        """Of five events a handler confirms two and raises: the other three are retried."""
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

    @pytest.mark.fault("F83")
    def test_never_more_than_free_hands_can_start(self, make):
        """What is in flight is never more than the hands hold; the rest is others'."""
        timer = make(max_events=2, concurrency=2)
        handler = Gated(timer)
        timer.post_many([({}, 0)] * 9)
        with timer:
            assert [2, 2] == [len(handler.begun()) for _ in range(2)]
            takes_a_turn(timer)
            assert (4, 5) == (timer.stats().in_flight, timer.stats().scheduled)
            assert 2 == timer.health().handlers
            assert 0 == handler.waiting
            handler.go_on(9)
            eventually(lambda: timer.stats().totals.get("confirmed") == 9)

    def test_max_events_changes_on_the_way(self, make):
        """max_events, set while the node runs, holds from the next batch on."""
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
    """How long an event stays in one hand."""

    def test_heartbeats_hold_what_runs(self, make, score):
        """
        A handler that outlives its lease several times keeps its event: the lease on the
        server moves on by heartbeats, and nobody else is handed the event.
        """
        timer = make(lease=SHORT)
        lost = Catch(timer, "lease_lost")
        handler = Gated(timer)
        with timer:
            id = timer.post({})
            (ev,) = handler.begun()
            first = score(id)
            eventually(lambda: score(id) > first + 3 * SHORT * 1000)
            assert 1 == timer.peek(id).attempt
            handler.go_on()
            eventually(lambda: timer.peek(id) is None)
            assert ev.confirm() is True
        assert lost.empty()
        assert 1 == timer.stats().totals["started"]

    @pytest.mark.fault("F77")
    def test_max_run_ends_the_heartbeats(self, make):
        """
        A handler that overruns max_run no longer keeps its event: somebody else gets it,
        the handler can see that, and health() counts it as stuck.
        """
        timer = make("slow", lease=SHORT, max_run=SHORT, max_retries=5)
        handler = Gated(timer)
        other = make("other", poll_interval=50, auto_confirm=False)
        caught = Catch(other, "event")
        with timer:
            timer.post({})
            (ev,) = handler.begun()
            assert 0 == timer.health().stuck
            with other:
                (again,) = caught.next()
                assert 2 == again.attempt
                assert 1 == timer.health().stuck
                assert ev.lease_lost
                assert ev.confirm() is False
                assert again.confirm() is True
                handler.go_on()

    def test_confirmed_later_by_another_thread(self, make):
        """
        With auto_confirm=False the handler's return confirms nothing: that is done later,
        by any thread, within the lease.
        """
        timer = make(auto_confirm=False)
        caught = Catch(timer, "event")
        with timer:
            id = timer.post({})
            (ev,) = caught.next()
            takes_a_turn(timer)
            assert State.IN_FLIGHT is timer.peek(id).state
            assert not ev.lease_lost
            assert ev.confirm() is True
            assert timer.peek(id) is None
            assert ev.confirm() is True

    def test_the_lease_is_the_limit_of_a_late_confirm(self, make, score):
        """
        With auto_confirm=False the heartbeats end with the handler: what is not confirmed
        within the lease is handed out again.
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

    def test_extend_is_not_undone_by_a_heartbeat(self, make, score):
        """
        ev.extend() holds the event for as long as it says, also when the handler goes on
        and heartbeats follow.
        """
        timer = make(auto_confirm=False, lease=SHORT)
        handler = Gated(timer)
        with timer:
            id = timer.post({})
            (ev,) = handler.begun()
            assert ev.extend(LATER) is True
            until = score(id)
            claimer = timer._life._claimer
            for _ in range(2):
                beat = claimer._heart.due
                eventually(lambda beat=beat: claimer._heart.due > beat)
            assert score(id) > until - 1_000_000
            handler.go_on()
            handler.ended()
            assert not ev.lease_lost
            assert ev.confirm() is True

    def test_a_short_extension_does_not_let_another_node_start_the_event(self, make, score):
        """
        ev.extend() of a handler that runs is no way to lose the event: it holds it for at least
        what is left of its lease, for which its node renews it anyway.
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
def test_a_handler_that_ends_the_process(make, end):
    """
    SystemExit and KeyboardInterrupt fail the batch like any exception, and make the node
    leave: no thread dies unseen.
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
