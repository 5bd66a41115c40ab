"""Cancelling many events: outcomes, round trips, schedules, and errors."""

from __future__ import annotations

import itertools

import pytest
from peers import Peer, definition, post

from dtimer import Cancelled, DTimer, OptionError
from dtimer.errors import StoreError
from dtimer.model.claims import Outcome
from dtimer.model.schedules import STORED_TIMES
from dtimer.testing import Clock

CANCELLED, IN_FLIGHT, NOT_FOUND = Cancelled.CANCELLED, Cancelled.IN_FLIGHT, Cancelled.NOT_FOUND


class TestScript:
    """A call of the script for several events."""

    def test_returns_the_outcome_of_each_event(self, store, node):
        """A caller that must act on some outcomes has to know which ids they belong to."""
        for id in ("dies", "flies", "waits"):
            post(store, id, max_retries=0)
        dies, flies = node.claim(2)
        node.fail(dies)
        ids = ["waits", "dies", "flies", "nothing"]
        assert [CANCELLED, NOT_FOUND, IN_FLIGHT, NOT_FOUND] == store.cancel_some(ids)
        assert ["dies"] == [letter.id for letter in store.dead()]
        assert Outcome.CANCELLED is node.fail(flies)

    def test_cancelled_events_never_start(self, store, node):
        """Each of them is removed as `cancel` removes a single one."""
        for n in range(50):
            post(store, f"e{n}")
        assert {CANCELLED} == set(store.cancel_some([f"e{n}" for n in range(1, 50)]))
        assert ["e0"] == [claim.id for claim in node.claim(50)]
        assert 49 == store.stats().totals["cancelled"]

    def test_cancels_the_second_time_what_is_gone(self, store):
        """An id that is given twice is cancelled once, and nothing is counted twice."""
        post(store, "tea", 5_000)
        assert [CANCELLED, NOT_FOUND] == store.cancel_some(["tea", "tea"])
        assert 1 == store.stats().totals["cancelled"]

    def test_the_chains_of_schedules_go_on(self, store, node, now):
        """Cancelling an occurrence creates the next one, also for several schedules in one call."""
        names = ["a", "b"]
        for name in names:
            store.schedules.declare(definition(name))
        pending = [record.id for record in store.upcoming("-inf", "+inf")]
        assert [CANCELLED] * 2 == store.cancel_some(pending)
        now.tick(2_000)
        assert names == sorted(claim.schedule for claim in node.claim(5))

    def test_adds_times_to_a_schedule_that_runs_short(self, store):
        """The script cannot compute the next time of a cron schedule; the client does it."""
        store.schedules.declare(definition("beat", cron="* * * * *"))
        for n in range(2 * STORED_TIMES):
            post(store, f"tea-{n}", 5_000)
            (pending,) = [r.id for r in store.upcoming("-inf", "+inf") if "@" in r.id]
            assert [CANCELLED] * 2 == store.cancel_some([pending, f"tea-{n}"])
        assert store.schedules.get("beat").due is not None

    def test_a_waiting_occurrence_may_start_at_once(self, store, wakes, now):
        """A node is woken for an occurrence that waited for the cancelled one to end."""
        node = Peer(store, "node")
        store.schedules.declare(definition("beat", every=60_000))
        now.tick(60_000)
        (running,) = node.claim()
        node.fail(running, wait=3_600_000)
        now.tick(60_000)
        assert [] == node.claim()
        node.claim()
        wakes.heard()
        post(store, "other", 3_600_000)
        assert [CANCELLED, CANCELLED] == store.cancel_some([running.id, "other"])
        assert ["node"] == wakes.heard()
        assert 1 == len(node.claim())


class TestCall:
    """`DTimer.cancel_many`."""

    @pytest.fixture
    def timer(self, server, namespace):
        timer = DTimer("caller", server.url, ns=namespace, now=Clock(1_800_000_000_000))
        yield timer
        timer.leave()

    def test_counts_the_ids_by_outcome(self, timer):
        """Every outcome has a number, so a caller need not test for missing keys."""
        timer.post_many([{"ev": {}, "delay": 60_000, "id": f"e{n}"} for n in range(250)])
        counts = timer.cancel_many([f"e{n}" for n in range(300)])
        assert {CANCELLED: 250, IN_FLIGHT: 0, NOT_FOUND: 50} == counts
        assert 0 == timer.stats().scheduled
        assert {CANCELLED: 0, IN_FLIGHT: 0, NOT_FOUND: 0} == timer.cancel_many([])

    def test_takes_few_round_trips(self, timer, monkeypatch):
        """A call for each of a thousand events would take a thousand times as long."""
        timer.cancel("nothing")
        calls, call = [], timer._store._scripts.call
        monkeypatch.setattr(
            timer._store._scripts,
            "call",
            lambda verb, *ids, **options: calls.append(len(ids)) or call(verb, *ids, **options),
        )
        timer.cancel_many(map(str, range(1_000)))
        assert [100] * 10 == calls

    def test_cancels_what_an_iteration_selects(self, timer):
        """The idiom for cancelling by a prefix or by a field: the iteration ends, and meets all."""
        for n in range(300):
            timer.post({"user": n % 3}, 60_000 + n)
        chosen = (r.id for r in timer.upcoming() if r.event and r.event["user"] == 1)
        assert 100 == timer.cancel_many(chosen)[CANCELLED]
        assert {0, 2} == {r.event["user"] for r in timer.upcoming()}

    def test_reads_an_endless_iterator_lazily(self, timer):
        """The ids may come from a query that is too large to be held as a whole."""

        def endless():
            for n in itertools.count():
                if n == 1_000:
                    raise KeyError("the source is broken")
                yield f"e{n}"

        with pytest.raises(KeyError) as caught:
            timer.cancel_many(endless())
        assert ["cancel_many was done with 1000 ids before"] == caught.value.__notes__

    @pytest.mark.parametrize("ids", ["tea", b"tea", {"tea": 1}, 5, None, ["tea", ""], ["tea", 5]])
    def test_bad_arguments_are_refused_before_any_io(self, ids):
        """A single id would be taken for a list of letters, and cancel other events."""
        timer = DTimer("caller", "redis://127.0.0.1:1", timeout=30_000)
        with pytest.raises(OptionError):
            timer.cancel_many(ids)

    def test_an_error_says_how_many_were_done(self, timer, monkeypatch):
        """The caller can continue from there."""
        some = timer._store.cancel_some
        calls = itertools.count()

        def fails_later(ids):
            if next(calls) == 2:
                raise StoreError("gone")
            return some(ids)

        monkeypatch.setattr(timer._store, "cancel_some", fails_later)
        with pytest.raises(StoreError) as caught:
            timer.cancel_many(map(str, range(500)))
        assert ["cancel_many was done with 200 ids before"] == caught.value.__notes__
