"""Walks through what waits and what has died, while the loop changes what it meets."""

from __future__ import annotations

import itertools

import pytest
from peers import Peer, post

from dtimer.errors import OutcomeUnknown, StoreError
from dtimer.model.event import Record
from dtimer.model.recurrence import define
from dtimer.store.connect import source
from dtimer.store.inventory import Inventory
from dtimer.store.store import Entry, Store

HOUR = 3_600_000_000
YEAR = 365 * 24 * HOUR

#: More than two pages.
MANY = 250


@pytest.fixture
def other(client, namespace, now):
    """Another timer of the same namespace."""
    store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
    yield store
    store.close()


def fill(store, many=MANY, apart_us=1_000, rest="3|{}"):
    """Post *many* events; return their ids in due order."""
    entries = [Entry(f"e{i:04}", f"+{60_000_000 + i * apart_us}", "", rest) for i in range(many)]
    for first in range(0, many, 500):
        store.post(entries[first : first + 500], "replace")
    return [entry.id for entry in entries]


def everything(store, most=5 * MANY):
    """Walk all that is scheduled; one that does not end is cut short."""
    return itertools.islice(store.upcoming("-inf", "+inf"), most)


def recurring(id, ms=1_000):
    return define(
        id, every=ms, start=None, end=None, count=None, jitter=0, misfire="coalesce",
        overlap="queue", max_retries=3, payload="{}",
    )  # fmt: skip


def bury(store, node, many):
    """Have so many events die, at different times."""
    store.post([Entry(f"d{i:04}", "+0", "", "0|{}") for i in range(many)], "replace")
    while claims := node.claim(100):
        for claim in claims:
            node.fail(claim)


class TestTheEnd:
    """A walk ends at the last (due, id) that existed when it began."""

    @pytest.mark.parametrize("apart_us", [1_000, 0])
    def test_events_that_the_loop_puts_off_are_met_once(self, store, apart_us):
        """A loop that puts everything off by an hour moves each event once, also among ties."""
        ids = fill(store, apart_us=apart_us)
        before = {record.id: record.due for record in everything(store)}
        met = []
        for record in everything(store):
            met.append(record.id)
            assert store.reschedule(record.id, str(round(record.due * 1000) + HOUR))
        assert ids == met
        after = {record.id: record.due for record in everything(store)}
        assert {id: due + HOUR / 1000 for id, due in before.items()} == after

    def test_events_moved_within_the_walk_are_met_once(self, store):
        """A move to a place that the walk has yet to reach makes no second meeting."""
        ids = fill(store)
        post(store, "last", 3 * HOUR / 1000)
        met = []
        for record in everything(store):
            met.append(record.id)
            store.reschedule(record.id, f"+{HOUR}")
        assert [*ids, "last"] == met

    @pytest.mark.parametrize("policy", ["mint", "replace"])
    def test_events_that_the_loop_posts_are_passed_over(self, store, policy):
        """A loop that posts one event for each that it meets ends, however near it posts them."""
        ids = fill(store)
        post(store, "last", YEAR / 1000)
        met = []
        for record in everything(store):
            met.append(record.id)
            store.post([Entry(f"after-{record.id}", f"+{HOUR}", "", "3|{}")], policy)
        assert [*ids, "last"] == met

    def test_events_kept_by_a_post_are_met(self, store):
        """A post that keeps the existing event does not hide it from the walk."""
        ids = fill(store)
        met = []
        for record in everything(store):
            met.append(record.id)
            store.post([Entry(ids[-1], "+0", "", "3|{}")], "keep")
        assert ids == met

    def test_a_post_whose_outcome_is_unknown_is_passed_over(self, store, monkeypatch):
        """An event that may have been stored must not feed the loop that posts it."""
        fill(store, 3)
        call = store._call

        def lost(verb, *arguments, **options):
            reply = call(verb, *arguments, **options)
            if verb == "post":
                raise OutcomeUnknown("no reply")
            return reply

        walk = everything(store)
        next(walk)
        monkeypatch.setattr(store, "_call", lost)
        with pytest.raises(OutcomeUnknown):
            store.post([Entry("perhaps", "+60000500", "", "3|{}")], "replace")
        assert ["e0001", "e0002"] == [record.id for record in walk]

    def test_an_event_is_not_met_again_if_the_reply_to_its_move_was_late(
        self, store, now, monkeypatch
    ):
        """The server moves the event when the call begins, and the timer notes it at the end."""
        ids = fill(store)
        post(store, "last", HOUR / 1000)
        call = store._call

        def late(verb, *arguments, **options):
            reply = call(verb, *arguments, **options)
            if verb == "reschedule":
                now.tick(2_900)
            return reply

        monkeypatch.setattr(store, "_call", late)
        walk = everything(store)
        met = [next(walk).id]
        store.reschedule(met[0], f"+{HOUR - 1}")
        met += [record.id for record in walk]
        assert [*ids, "last"] == met

    def test_an_event_posted_while_the_first_page_is_read_is_passed_over(self, store, monkeypatch):
        """A signal handler may post between the reply of the first page and its use."""
        ids = fill(store)
        call = store._call

        def interrupted(verb, *arguments, **options):
            reply = call(verb, *arguments, **options)
            if verb == "upcoming":
                monkeypatch.undo()
                post(store, "handler", 60_200.5)
            return reply

        monkeypatch.setattr(store, "_call", interrupted)
        assert ids == [record.id for record in everything(store)]

    @pytest.mark.parametrize(
        "refused",
        [
            lambda s: s.post([Entry("e0001", "+0", "", "3|{}")], "replace"),
            lambda s: s.reschedule("e0001", "+0"),
            lambda s: s.revive("e0001"),
            lambda s: s.declare(recurring("beat")),
            lambda s: s.suspend("beat", on=False),
        ],
        ids=["post", "reschedule", "revive", "declare", "resume"],
    )
    def test_a_call_that_the_server_refused_hides_no_event(self, store, monkeypatch, refused):
        """The call changed nothing, so the walk still meets every event that it has not met."""
        fill(store, 3)
        store.declare(recurring("beat", 3_600_000))
        walk = everything(store)
        next(walk)

        def refuse(*_, **__):
            raise StoreError("out of memory")

        monkeypatch.setattr(store, "_call", refuse)
        with pytest.raises(StoreError):
            refused(store)
        monkeypatch.undo()
        assert ["e0001", "e0002", "beat"] == [record.id.partition("@")[0] for record in walk]

    def test_events_of_another_timer_do_not_prolong_it(self, store, other):
        """What others post behind the end is not met, and what they post before it may be."""
        ids = fill(store)
        walk = everything(store)
        met = [next(walk).id]
        post(other, "behind", YEAR / 1000)
        post(other, "before", 60_000.5)
        met += [record.id for record in walk]
        assert "behind" not in met
        assert ids == [id for id in met if id != "before"]

    def test_what_was_behind_the_end_is_forgotten(self, store):
        """A walk remembers only what it could meet again: memory stays flat."""
        fill(store)
        for record in everything(store):
            store.reschedule(record.id, f"+{YEAR}")
            (walk,) = store._walks._events.values()
            assert set() == walk.passed

    def test_nothing_is_left_of_a_walk(self, store):
        """A walk that ended, or was given up, is noted by no post any more."""
        fill(store)
        list(everything(store))
        walk = store.upcoming("-inf", "+inf")
        next(walk)
        assert store._walks.under_way
        walk.close()
        assert not store._walks.under_way


class TestSchedules:
    """A walk yields at most one pending occurrence of each schedule."""

    def test_clearing_schedules_ends(self, store):
        """Each cancelled occurrence makes the next one; a loop that cancels all of it ends."""
        names = [f"beat-{i:03}" for i in range(150)]
        for name in names:
            store.declare(recurring(name))
        post(store, "far", YEAR / 1000)
        met = []
        for record in everything(store):
            met.append(record.id)
            assert store.cancel(record.id)
        assert [*names, "far"] == [id.partition("@")[0] for id in met]

    def test_an_occurrence_that_is_retried_is_met_besides(self, store, node, now):
        """The mark is for the pending occurrence; another one of the schedule waits like any."""
        store.declare(recurring("beat"))
        now.tick(1_000)
        (claim,) = node.claim()
        node.fail(claim, wait=500)
        assert 2 == len(list(everything(store)))

    def test_a_schedule_that_the_loop_declares_is_passed_over(self, store):
        """A loop that declares a schedule for each event does not meet these."""
        ids = fill(store, 120)
        post(store, "last", YEAR / 1000)
        met = []
        for record in everything(store):
            met.append(record.id)
            store.declare(recurring(f"of-{record.id}"))
            store.run_now(f"of-{record.id}")
        assert [*ids, "last"] == met


class TestDead:
    """Walks through the dead letters."""

    def test_letters_that_die_again_are_not_met_again(self, store, node, now):
        """A loop that revives each letter ends, although what it revives fails again at once."""
        bury(store, node, MANY)
        now.tick(1)
        met = []
        for letter in itertools.islice(store.dead(), 5 * MANY):
            met.append(letter.id)
            assert store.revive(letter.id)
            (claim,) = node.claim()
            node.fail(claim)
        assert MANY == len(met) == len(set(met))

    def test_a_loop_that_revives_ends_after_the_clock_was_put_back(self, store, node, now):
        """Revived letters die again before the end of the walk, because the clock is behind it."""
        bury(store, node, MANY)
        now.tick(HOUR / 1000)
        post(store, "last", max_retries=0)
        node.fail(*node.claim())
        now.tick(-HOUR / 2000)
        met = []
        for letter in itertools.islice(store.dead(), 5 * MANY):
            met.append(letter.id)
            now.tick(1)
            assert store.revive(letter.id)
            node.fail(*node.claim())
        assert [*(f"d{i:04}" for i in range(MANY)), "last"] == met

    def test_letters_that_the_loop_puts_back_are_passed_over(self, client, namespace, now):
        """A letter is put back at the time of its death, which the walk may have before it."""
        store = Inventory(source(client, 1.0), namespace, timeout=3.0, now=now)
        bury(store, Peer(store, "node"), MANY)
        now.tick(1)
        bury(store, Peer(store, "node"), 1)
        met = []
        for letter in itertools.islice(store.dead(), 5 * MANY):
            met.append(letter.id)
            copy = type(letter)(f"{letter.id}-copy", None, 1, "failed", "", letter.died, b",0|{}")
            store.restore([copy])
        store.close()
        assert [*(f"d{i:04}" for i in range(1, MANY)), "d0000"] == met

    def test_a_letter_that_goes_away_does_not_lose_the_place(self, store, node):
        """Where the last letter of a page is revived, the next page repeats and misses none."""
        bury(store, node, MANY)
        met = []
        for letter in store.dead():
            met.append(letter.id)
            store.revive(letter.id)
        assert sorted(met) == sorted(f"d{i:04}" for i in range(MANY))


class TestPages:
    """One page is bounded by number, and by bytes."""

    @pytest.fixture
    def pages(self, store, monkeypatch):
        """How many bytes each page has brought."""
        sizes = []
        call = store._call

        def counted(verb, *arguments, **options):
            reply = call(verb, *arguments, **options)
            if verb in {"upcoming", "dead"}:
                sizes.append(sum(map(len, reply[-1])))
            return reply

        monkeypatch.setattr(store, "_call", counted)
        return sizes

    def test_large_events_come_in_several_pages(self, store, pages):
        """Events of 300 kB come a few at a time, so no script keeps the server busy for long."""
        ids = fill(store, 14, rest=f'3|{{"a":"{"x" * 300_000}"}}')
        assert ids == [record.id for record in store.upcoming("-inf", "+inf")]
        assert max(pages) < 1_400_000
        assert 3 < len(pages)

    def test_large_letters_come_in_several_pages(self, store, node, pages):
        """The same for dead letters."""
        store.post(
            [Entry(f"d{i}", "+0", "", f'0|{{"a":"{"x" * 300_000}"}}') for i in range(9)], "replace"
        )
        while claims := node.claim(100):
            for claim in claims:
                node.fail(claim)
        assert 9 == len(list(store.dead()))
        assert max(pages) < 1_400_000
        assert 2 < len(pages)

    def test_an_event_over_the_limit_comes_alone(self, store, pages):
        """An event that is larger than a page is not left out."""
        ids = fill(store, 3, rest=f'3|{{"a":"{"x" * 1_100_000}"}}')
        records = list(store.upcoming("-inf", "+inf"))
        assert ids == [record.id for record in records]
        assert isinstance(records[0], Record)
        assert 3 <= len(pages)


def test_places_of_strange_ids(store):
    """A place among ties is found again, whatever the bytes of its id, if its event is gone."""
    ids = sorted({*(f"é{i}" for i in range(60)), *(f"Z{i}" for i in range(60)), "~", "aa", "a"})
    store.post([Entry(id, "+1000000", "", "3|{}") for id in ids], "replace")
    met = []
    for record in everything(store):
        met.append(record.id)
        assert store.cancel(record.id)
    assert sorted(ids, key=str.encode) == met
