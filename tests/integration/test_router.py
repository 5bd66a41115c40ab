"""Routers: each event goes to the function of its kind, and is settled on its own."""

from __future__ import annotations

import contextlib
import queue
import threading

import pytest
from gated import Gated
from servers import LATER, PATIENCE, eventually

from dtimer import HandlerError, OptionError, Router, SkipRetry, State, UnknownKind, UsageError
from dtimer.testing import Catch, Clock


class Boom(Exception):
    """The exception of a handler."""


def boom(_):
    raise Boom("no")


def nothing(_):
    pass


@pytest.fixture
def router():
    return Router()


def node(make, router, *more, **options):
    """Make a node whose listener is the router."""
    timer = make(*more, **options)
    timer.on("event", router)
    return timer


def empty(timer):
    """Wait until no event is stored, except dead letters."""
    eventually(lambda: (stats := timer.stats()).scheduled + stats.in_flight == 0)


class TestRouting:
    """The field with the kind selects the function."""

    def test_calls_the_function_of_each_kind_with_one_event_at_a_time(self, make, router):
        """A handler of one kind need not look at events of another, however large the batch."""
        calls = []
        router.route("a")(lambda ev: calls.append(("a", ev["n"])))
        router.route("b")(lambda ev: calls.append(("b", ev["n"])))
        timer = node(make, router, max_events=10)
        timer.post_many([({"type": "ab"[n % 2], "n": n}, 0) for n in range(4)])
        with timer:
            empty(timer)
        assert [("a", 0), ("b", 1), ("a", 2), ("b", 3)] == calls
        assert 4 == timer.stats().totals["confirmed"]

    def test_a_list_route_gets_all_events_of_its_kind_in_a_batch(self, make, router):
        """A single statement can then write them all, and they succeed or fail together."""
        lists, singles = [], []
        router.route("many", batch=True)(lambda events: lists.append([ev["n"] for ev in events]))
        router.route("one")(lambda ev: singles.append(ev["n"]))
        timer = node(make, router, max_events=10)
        kinds = ["many", "one", "many", "one", "many"]
        timer.post_many([({"type": kind, "n": n}, 0) for n, kind in enumerate(kinds)])
        with timer:
            empty(timer)
        assert [[0, 2, 4]] == lists
        assert [1, 3] == singles

    def test_the_field_can_have_another_name(self, make):
        """Payloads that exist already have a field for their kind."""
        router, got = Router("do"), queue.SimpleQueue()
        router.route("sweep")(got.put)
        timer = node(make, router)
        with timer:
            timer.post({"do": "sweep"})
            assert {"do": "sweep"} == got.get(timeout=PATIENCE)

    def test_a_route_can_still_be_called(self, router):
        """A unit test of a handler needs no timer."""

        @router.route("a")
        def double(ev):
            """Return twice the number."""
            return 2 * ev["n"]

        assert 6 == double({"n": 3})
        assert ("double", "Return twice the number.") == (double.__name__, double.__doc__)
        assert frozenset({"a"}) == router.kinds


class TestSettling:
    """Each event of a batch is settled on its own."""

    def test_an_exception_fails_only_its_own_event(self, make, router):
        """The other events of the batch are confirmed, and 'error' names the failed event."""
        router.route("good")(nothing)
        router.route("bad")(boom)
        timer = node(make, router, max_events=10, backoff=LATER)
        errors = Catch(timer, "error")
        kinds = ["good", "bad", "good"]
        first, second, third = timer.post_many([({"type": kind}, 0) for kind in kinds])
        with timer:
            error = errors.next()
            eventually(lambda: timer.peek(second).state is State.SCHEDULED)
            eventually(lambda: timer.peek(first) is None and timer.peek(third) is None)
        assert ([second], Boom) == ([ev.id for ev in error.events], type(error.__cause__))
        assert errors.empty()

    def test_an_event_is_confirmed_while_a_slow_handler_of_its_batch_still_runs(self, make, router):
        """If the node dies now, the event that was handled is not delivered again."""
        slow = Gated()
        router.route("quick")(nothing)
        router.route("slow")(lambda ev: slow.handle([ev]))
        timer = node(make, router, max_events=10, poll_interval=LATER)
        quick = timer.post({"type": "quick"}, id="quick")
        timer.post({"type": "slow"}, id="slow")
        with timer:
            slow.begun()
            eventually(lambda: timer.peek(quick) is None)
            assert State.IN_FLIGHT is timer.peek("slow").state
            slow.go_on()

    def test_no_event_costs_a_call_of_its_own(self, make, router, monkeypatch):
        """The next claim carries the settlements of a batch, also of events that failed."""
        calls = []
        settle = "dtimer.store.claims.Claims.settle"
        monkeypatch.setattr(settle, lambda self, settlements: calls.append(settlements))
        router.route("good")(nothing)
        router.route("bad")(boom)
        timer = node(make, router, max_events=100, max_retries=0)
        timer.on("error", nothing)
        timer.post_many([({"type": ("good", "bad")[n % 2]}, 0) for n in range(100)])
        with timer:
            empty(timer)
        assert [] == calls
        totals = timer.stats().totals
        assert (50, 50) == (totals["confirmed"], totals["died"])

    def test_a_handler_may_settle_its_own_event(self, make, router):
        """The end of the handler then changes nothing."""
        results = []
        router.route("confirm")(lambda ev: results.append(ev.confirm()))
        router.route("retry")(lambda ev: results.append(ev.retry(LATER)))
        timer = node(make, router, max_events=10)
        lost = Catch(timer, "lease_lost")
        timer.post({"type": "confirm"}, id="1")
        timer.post({"type": "retry"}, id="2")
        with timer:
            eventually(lambda: len(results) == 2 and not timer.stats().in_flight)
            assert timer.peek("1") is None
            assert State.SCHEDULED is timer.peek("2").state
        assert [True, True] == results
        assert lost.empty()

    def test_skip_retry_buries_the_event_of_its_call(self, make, router):
        """SkipRetry can mean no other event than that of the call."""
        router.route("good")(nothing)

        @router.route("bad")
        def skip(ev):
            raise SkipRetry("it was deleted")

        timer = node(make, router, max_events=10)
        dead, errors = Catch(timer, "dead"), Catch(timer, "error")
        ids = timer.post_many([({"type": kind}, 0) for kind in ("good", "bad", "good")])
        with timer:
            letter = dead.next()
            empty(timer)
        assert (ids[1], "buried", "it was deleted") == (letter.id, letter.reason, letter.error)
        assert errors.empty()

    def test_system_exit_releases_the_events_that_have_not_started(self, make, router):
        """The node leaves, and another node starts them without a charged attempt."""

        @router.route("exit")
        def leave(ev):
            raise SystemExit

        router.route("other")(nothing)
        timer = node(make, router, max_events=10, backoff=LATER)
        timer.on("error", nothing)
        timer.post({"type": "exit"}, id="1")
        timer.post({"type": "other"}, id="2")
        with timer:
            eventually(lambda: not timer.joined)
        assert (State.SCHEDULED, 1) == (timer.peek("1").state, timer.peek("1").attempt)
        assert (State.SCHEDULED, 0) == (timer.peek("2").state, timer.peek("2").attempt)


class TestOtherListeners:
    """With another listener, nothing is confirmed before all listeners have returned."""

    def test_nothing_is_confirmed_while_another_listener_runs(self, make, router):
        """The other listener may still fail the event."""
        other, slow = Router(), Gated()
        router.route("a")(nothing)
        other.route("a")(lambda ev: slow.handle([ev]))
        other.route("b")(nothing)
        router.route("b")(nothing)
        timer = node(make, router, max_events=10)
        timer.on("event", other)
        timer.post({"type": "b"}, id="b")
        timer.post({"type": "a"}, id="a")
        with timer:
            slow.begun()
            timer._node.bell.ring()
            assert {State.IN_FLIGHT} == {timer.peek(id).state for id in "ab"}
            slow.go_on()
            empty(timer)

    def test_an_exception_of_a_plain_listener_fails_the_batch(self, make, router):
        """A plain listener takes the batch as a whole, as without a router."""
        handled = queue.SimpleQueue()
        router.route("a")(handled.put)
        timer = node(make, router, backoff=LATER)
        timer.on("event", boom)
        retries, errors = Catch(timer, "retry"), Catch(timer, "error")
        with timer:
            id = timer.post({"type": "a"})
            assert id == retries.next().id == handled.get(timeout=PATIENCE).id
            assert isinstance(errors.next().__cause__, Boom)

    def test_with_a_plain_listener_that_returns_each_event_has_its_own_result(self, make, router):
        """A listener that only counts events changes nothing else."""
        router.route("good")(nothing)
        router.route("bad")(boom)
        timer = node(make, router, max_events=10, backoff=LATER)
        timer.on("event", nothing)
        errors = Catch(timer, "error")
        timer.post({"type": "good"}, id="good")
        timer.post({"type": "bad"}, id="bad")
        timer.post({"type": "unknown"}, id="unknown")
        with timer:
            assert {HandlerError, UnknownKind} == {type(errors.next()) for _ in range(2)}
            eventually(lambda: timer.peek("good") is None and not timer.stats().in_flight)
            assert (1, 0) == (timer.peek("bad").attempt, timer.peek("unknown").attempt)

    def test_an_event_that_one_of_two_routers_knows_is_not_unknown(self, make, router):
        """Two parts of an application may each bring a router."""
        other = Router()
        router.route("a")(nothing)
        other.route("b")(nothing)
        timer = node(make, router, max_events=10)
        timer.on("event", other)
        errors = Catch(timer, "error")
        timer.post_many([({"type": "a"}, 0), ({"type": "b"}, 0)])
        with timer:
            empty(timer)
        assert errors.empty()
        assert 0 == timer.stats().totals["unknown"]

    def test_confirms_nothing_without_auto_confirm(self, make, router):
        """The event then belongs to the user's code. An event that failed is retried."""
        kept = queue.SimpleQueue()
        router.route("good")(kept.put)
        router.route("bad")(boom)
        timer = node(make, router, max_events=10, auto_confirm=False, backoff=LATER)
        retries = Catch(timer, "retry")
        timer.on("error", nothing)
        timer.post({"type": "good"}, id="good")
        timer.post({"type": "bad"}, id="bad")
        with timer:
            assert "bad" == retries.next().id
            assert State.IN_FLIGHT is timer.peek("good").state
            assert kept.get(timeout=PATIENCE).confirm()
            assert timer.peek("good") is None


class TestPolicies:
    """The policies of a kind."""

    def test_a_kind_has_its_own_backoff_which_sees_the_error(self, make, router):
        """A server that says when to come back decides the wait. ev.retry() has no error."""
        waits = queue.SimpleQueue()

        def backoff(attempt, error):
            waits.put((attempt, type(error)))
            return LATER

        router.route("bad", backoff=backoff)(boom)
        router.route("again", backoff=backoff)(lambda ev: ev.retry())
        timer = node(make, router, backoff=0)
        timer.on("error", nothing)
        with timer:
            bad = timer.post({"type": "bad"})
            assert (1, Boom) == waits.get(timeout=PATIENCE)
            again = timer.post({"type": "again"})
            assert (1, type(None)) == waits.get(timeout=PATIENCE)
            eventually(lambda: not timer.stats().in_flight)
            assert [1, 1] == [timer.peek(id).attempt for id in (bad, again)]

    def test_a_backoff_that_raises_is_replaced_by_the_default(self, make, router):
        """'error' gets its exception, and the event must not be retried at once."""
        router.route("bad", backoff=lambda attempt, error: 1 / 0)(boom)
        timer = node(make, router)
        errors = Catch(timer, "error")
        with timer:
            id = timer.post({"type": "bad"})
            assert isinstance(errors.next(), ZeroDivisionError)
            assert isinstance(errors.next(), HandlerError)
            eventually(lambda: timer.peek(id).state is State.SCHEDULED)

    def test_post_adds_the_kind_and_its_max_retries(self, make, router):
        """The event is a dead letter after its only attempt."""
        bad = router.route("bad", max_retries=0)(boom)
        timer = node(make, router)
        dead = Catch(timer, "dead")
        timer.on("error", nothing)
        with timer:
            id = bad.post(timer, {"n": 1})
            letter = dead.next()
        assert (id, 1, {"type": "bad", "n": 1}) == (letter.id, letter.attempt, letter.event)

    def test_an_argument_of_the_call_replaces_the_policy_of_the_kind(self, make, router):
        """None stands for an argument that is not given."""
        bad = router.route("bad", max_retries=0)(boom)
        timer = node(make, router, backoff=0)
        dead = Catch(timer, "dead")
        timer.on("error", nothing)
        with timer:
            for max_retries, attempts in ((1, 2), (None, 1)):
                bad.post(timer, {}, max_retries=max_retries)
                assert attempts == dead.next().attempt

    def test_an_event_of_a_kind_expires(self, make, router):
        """A code for a log-in is worth nothing an hour later."""
        clock = Clock()
        code = router.route("code", expires=1_000)(nothing)
        timer = node(make, router, now=clock)
        expired = Catch(timer, "expired")
        id = code.post(timer, {})
        clock.tick(2_000)
        with timer:
            assert id == expired.next().id

    def test_post_takes_the_arguments_of_the_timer(self, make, router):
        """The same delay, ids and conditions as without a router."""
        remind = router.route("remind")(nothing)
        timer = make()
        id = remind.post(timer, {"type": "remind", "n": 1}, LATER, id="r", if_exists="keep")
        assert ("r", True) == (id, id.stored)
        assert remind.post(timer, {}, id="r", if_exists="keep").stored is False
        assert {"type": "remind", "n": 1} == timer.peek("r").event

    def test_schedules_of_a_kind(self, make, router):
        """Each occurrence has the kind in its payload."""
        clock, got = Clock(), queue.SimpleQueue()
        sweep = router.route("sweep", max_retries=0)(got.put)
        timer = node(make, router, now=clock)
        assert "new" == sweep.every(timer, 1_000, {"n": 1}, id="every")
        assert "new" == sweep.cron(timer, "@hourly", {"n": 2}, id="cron", tz="UTC")
        with timer:
            clock.tick(1_000)
            first = got.get(timeout=PATIENCE)
            assert ({"type": "sweep", "n": 1}, 0) == (first, first.max_retries)
            assert {"every", "cron"} == {schedule.id for schedule in timer.schedules()}

    @pytest.mark.parametrize("verb", ["post", "every", "cron"])
    def test_refuses_a_payload_of_another_kind(self, make, router, verb):
        """The event would go to another handler than the caller means."""
        route, timer = router.route("a")(nothing), make()
        calls = {
            "post": lambda: route.post(timer, {"type": "b"}),
            "every": lambda: route.every(timer, 1_000, {"type": "b"}, id="x"),
            "cron": lambda: route.cron(timer, "@daily", {"type": "b"}, id="x"),
        }
        with pytest.raises(OptionError, match="another type than 'a': 'b'"):
            calls[verb]()


class TestUnknownKinds:
    """An event that this node does not know may be known to another one."""

    def test_is_put_off_with_growing_pauses_and_no_charged_attempt(self, make):
        """A long deploy must neither lose the event nor keep the nodes busy."""
        clock = Clock()
        timer = node(make, Router(), now=clock)
        timer.on("error", nothing)
        id = timer.post({"type": "new"}, max_retries=0)
        pauses = []
        with timer:
            for snoozes in range(1, 12):
                eventually(lambda n=snoozes: timer.stats().totals["snoozed"] == n)
                record = timer.peek(id)
                assert (State.SCHEDULED, 0) == (record.state, record.attempt)
                pauses.append(round(record.due - clock()))
                clock.tick(pauses[-1])
        assert [1_000 * 2**n for n in range(9)] + [300_000] * 2 == pauses

    def test_is_counted_and_reported_once_a_minute(self, make, monkeypatch):
        """'error' names the kind, so an operator can tell a typing error from a deploy."""
        timer = node(make, Router(), max_events=10)
        errors = Catch(timer, "error")
        payloads = [{"type": "new"}, {"type": "new"}, {}, {"type": ["secret"]}]
        timer.post_many([(payload, 0) for payload in payloads])
        with timer:
            eventually(lambda: timer.stats().totals["unknown"] >= 4)
            assert timer.health().unknown >= 4
            texts = [errors.next() for _ in range(3)]
        assert ["new", None, ["secret"]] == [error.kind for error in texts]
        assert "no route for the kind 'new'" in str(texts[0])
        assert "an event without 'type'" in str(texts[1])
        assert "an event whose 'type' is a list" in str(texts[2])
        assert "secret" not in str(texts[2])
        assert errors.empty()

    def test_becomes_a_dead_letter_in_the_end(self, make):
        """After `unknown_for` no node is likely to know the kind any more."""
        clock = Clock()
        timer = node(make, Router(unknown_for=5_000), now=clock)
        dead = Catch(timer, "dead")
        timer.on("error", nothing)
        id = timer.post({"type": "new"})
        with timer:
            for snoozes, pause in ((1, 1_000), (2, 2_000), (3, 4_000)):
                eventually(lambda n=snoozes: timer.stats().totals["snoozed"] == n)
                clock.tick(pause)
            letter = dead.next()
        assert (id, "unknown_kind") == (letter.id, letter.reason)
        assert "no route for the kind 'new'" == letter.error

    def test_can_be_buried_at_once(self, make):
        """For an application that has no deploys of two versions."""
        timer = node(make, Router(unknown="bury"))
        dead = Catch(timer, "dead")
        timer.on("error", nothing)
        with timer:
            timer.post({"type": "new"})
            assert "unknown_kind" == dead.next().reason
            assert 1 == timer.stats().totals["unknown"]

    def test_a_snooze_of_its_own_handler_does_not_count_as_unknown(self, make):
        """An event that a shop has put off for days must not die when an old node sees it."""
        clock = Clock()
        new, old = Router(), Router(unknown_for=60_000)
        new.route("pay")(lambda ev: ev.snooze(3_600_000))
        timer = node(make, new, "new", now=clock)
        id = timer.post({"type": "pay"})
        with timer:
            eventually(lambda: timer.stats().totals["snoozed"] == 1)
        clock.tick(3_600_000)
        timer = node(make, old, "old", now=clock)
        timer.on("error", nothing)
        with timer:
            eventually(lambda: timer.stats().totals["snoozed"] == 2)
            assert clock() + 1_000 == timer.peek(id).due
            assert [] == list(timer.dead())

    def test_no_event_of_a_new_kind_dies_in_a_rolling_deploy(self, make):
        """Two versions of an application run together, and only the new one knows the kind."""
        clock, handled = Clock(), []
        routers = {"old": Router(), "new": Router()}
        for name, router in routers.items():
            router.route("known")(lambda ev, name=name: handled.append((name, ev["n"])))
        routers["new"].route("added")(lambda ev: handled.append(("new", ev["n"])))
        nodes = {}
        for name, router in routers.items():
            nodes[name] = node(make, router, name, now=clock, max_events=10, max_retries=0)
            nodes[name].on("error", nothing)
        poster = make("poster", now=clock)
        items = [({"type": ("known", "added")[n % 2], "n": n}, 0) for n in range(400)]
        nodes["old"].join()
        poster.post_many(items[:200])
        # The old version, alone, handles what it knows, and puts off the rest.
        eventually(lambda: len(handled) == 100 and poster.stats().totals["snoozed"] >= 100)
        nodes["new"].join()
        poster.post_many(items[200:])
        eventually(lambda: poster.stats().in_flight == 0 and poster.stats().overdue == 0)
        nodes["old"].leave()
        for _ in range(12):
            clock.tick(300_000)
            eventually(lambda: poster.stats().in_flight == 0 and poster.stats().overdue == 0)
        assert list(range(400)) == sorted(n for _, n in handled)
        assert {1} == {n % 2 for name, n in handled if name == "new"} - {0}
        assert [] == list(poster.dead())
        assert 400 == poster.stats().totals["confirmed"]


class TestMiddleware:
    """Each call of a route is inside a middleware of its own."""

    def test_surrounds_each_call_of_a_route_and_receives_its_exception(self, make, router):
        """A transaction is rolled back for the event that failed, and committed for the others."""
        steps = []
        timer = node(make, router, max_events=10, backoff=LATER)

        @timer.middleware
        @contextlib.contextmanager
        def record(emission):
            about = emission.kind, [ev["n"] for ev in emission.events]
            try:
                yield
            except Boom:
                steps.append(("rolled back", *about))
                raise
            if emission.name == "event":
                steps.append(("committed", *about))

        router.route("good")(nothing)
        router.route("bad")(boom)
        router.route("many", batch=True)(nothing)
        failed = threading.Event()
        timer.on("error", lambda error: failed.set())
        kinds = ["good", "bad", "many", "many", "good"]
        timer.post_many([({"type": kind, "n": n}, 0) for n, kind in enumerate(kinds)])
        with timer:
            eventually(lambda: timer.stats().totals["confirmed"] == 4)
            assert failed.wait(PATIENCE)
        committed = [("committed", "many", [2, 3]), ("committed", "good", [4])]
        assert [("committed", "good", [0]), ("rolled back", "bad", [1]), *committed] == [
            step for step in steps if step[1] is not None
        ]

    def test_a_commit_that_fails_fails_only_its_own_event(self, make, router):
        """The events of the other calls are confirmed."""
        timer = node(make, router, max_events=10, backoff=LATER)

        @timer.middleware
        @contextlib.contextmanager
        def commit(emission):
            yield
            if emission.kind == "bad":
                raise Boom

        router.route("good")(nothing)
        router.route("bad")(nothing)
        timer.on("error", nothing)
        timer.post({"type": "good"}, id="good")
        timer.post({"type": "bad"}, id="bad")
        with timer:
            eventually(lambda: timer.peek("good") is None and not timer.stats().in_flight)
            assert (State.SCHEDULED, 1) == (timer.peek("bad").state, timer.peek("bad").attempt)


async def later(ev):
    """Return nothing, later."""


class TestMistakes:
    """A mistake shows where it is made."""

    @pytest.mark.parametrize(
        "mistake",
        [
            lambda router: Router(3),
            lambda router: Router(""),
            lambda router: Router(unknown="drop"),
            lambda router: Router(unknown_for=-1),
            lambda router: router.route(3),
            lambda router: router.route("a", max_retries=-1),
            lambda router: router.route("a", backoff="1 s"),
            lambda router: router.route("a", backoff=lambda attempt: 1),
            lambda router: router.route("a", expires=0),
            lambda router: router.route("a")(later),
            lambda router: router.route("a")(lambda: None),
            lambda router: router.route("a")(3),
            lambda router: (router.route("a")(nothing), router.route("a")(nothing)),
        ],
    )
    def test_refuses_a_mistaken_argument(self, router, mistake):
        """A route that cannot be called would fail each of its events."""
        with pytest.raises(OptionError):
            mistake(router)

    def test_a_router_listens_only_to_events_and_for_good(self, make, router):
        """A router has no meaning anywhere else."""
        timer = make()
        for register in (timer.once, lambda name, f: timer.on("error", f)):
            with pytest.raises(OptionError, match="a router listens to 'event'"):
                register("event", router)

    def test_refuses_to_be_called(self, router):
        """Only a timer can settle each event on its own."""
        with pytest.raises(UsageError, match="register the router itself"):
            router([])
