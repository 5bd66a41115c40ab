"""Iterating over pending events and dead letters while the loop changes them."""

from __future__ import annotations

import itertools

import pytest
from peers import Peer, post

from dtimer.errors import OutcomeUnknown, StoreError
from dtimer.model.records import Record
from dtimer.model.schedules import make_spec
from dtimer.store.admin import AdminStore
from dtimer.store.connection.sources import source
from dtimer.store.store import Entry, Store

HOUR = 3_600_000_000
YEAR = 365 * 24 * HOUR

#: More than two pages.
MANY = 250


@pytest.fixture
def other(client, namespace, now):
    """A second timer of the same namespace."""
    store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
    yield store
    store.close()


def fill(store, many=MANY, apart_us=1_000, rest="3|{}"):
    """Post *many* events; return their ids in due order."""
    entries = [Entry(f"e{i:04}", f"+{60_000_000 + i * apart_us}", f",{rest}") for i in range(many)]
    for first in range(0, many, 500):
        store.post(entries[first : first + 500], "replace")
    return [entry.id for entry in entries]


def everything(store, most=5 * MANY):
    """Iterate over all scheduled events; stop an iteration that does not end."""
    return itertools.islice(store.upcoming("-inf", "+inf"), most)


def recurring(id, ms=1_000):
    return make_spec(
        id, every=ms, start=None, end=None, count=None, jitter=0, misfire="coalesce",
        overlap="queue", max_retries=3, payload="{}",
    )  # fmt: skip


def bury(store, node, many):
    """Create *many* dead letters with different times of death."""
    store.post([Entry(f"d{i:04}", "+0", ",0|{}") for i in range(many)], "replace")
    while claims := node.claim(100):
        for claim in claims:
            node.fail(claim)


class TestEnd:
    """An iteration ends at the last (due, id) that existed when it began."""

    @pytest.mark.parametrize("apart_us", [1_000, 0])
    def test_events_that_the_loop_postpones_are_visited_once(self, store, apart_us):
        """
        A loop that postpones every event by an hour moves each event once, even among equal due
        times.
        """
        ids = fill(store, apart_us=apart_us)
        before = {record.id: record.due for record in everything(store)}
        met = []
        for record in everything(store):
            met.append(record.id)
            assert store.reschedule(record.id, str(round(record.due * 1000) + HOUR))
        assert ids == met
        after = {record.id: record.due for record in everything(store)}
        assert {id: due + HOUR / 1000 for id, due in before.items()} == after

    def test_events_moved_within_the_range_are_visited_once(self, store):
        """An event that is moved to a later place of the iteration is not visited again."""
        ids = fill(store)
        post(store, "last", 3 * HOUR / 1000)
        met = []
        for record in everything(store):
            met.append(record.id)
            store.reschedule(record.id, f"+{HOUR}")
        assert [*ids, "last"] == met

    @pytest.mark.parametrize("policy", ["post_new", "replace"])
    def test_events_that_the_loop_posts_are_skipped(self, store, policy):
        """
        A loop that posts an event for each event that it visits ends, however early the new ones
        are due.
        """
        ids = fill(store)
        post(store, "last", YEAR / 1000)
        met = []
        for record in everything(store):
            met.append(record.id)
            store.post([Entry(f"after-{record.id}", f"+{HOUR}", ",3|{}")], policy)
        assert [*ids, "last"] == met

    def test_events_kept_by_a_post_are_visited(self, store):
        """A post that keeps the existing event does not hide that event from the iteration."""
        ids = fill(store)
        met = []
        for record in everything(store):
            met.append(record.id)
            store.post([Entry(ids[-1], "+0", ",3|{}")], "keep")
        assert ids == met

    def test_a_post_with_an_unknown_outcome_is_skipped(self, store, monkeypatch):
        """
        An event that may have been stored is skipped; otherwise the loop that posts it might not
        end.
        """
        fill(store, 3)
        call = store.namespace.call

        def lost(verb, *arguments, **options):
            reply = call(verb, *arguments, **options)
            if verb == "post":
                raise OutcomeUnknown("no reply")
            return reply

        walk = everything(store)
        next(walk)
        monkeypatch.setattr(store.namespace, "call", lost)
        with pytest.raises(OutcomeUnknown):
            store.post([Entry("perhaps", "+60000500", ",3|{}")], "replace")
        assert ["e0001", "e0002"] == [record.id for record in walk]

    def test_an_event_is_not_visited_again_if_the_reply_to_its_move_was_late(
        self, store, now, monkeypatch
    ):
        """
        The server moves the event when the call begins, and the timer records the move at
        the end.
        """
        ids = fill(store)
        post(store, "last", HOUR / 1000)
        call = store.namespace.call

        def late(verb, *arguments, **options):
            reply = call(verb, *arguments, **options)
            if verb == "reschedule":
                now.tick(2_900)
            return reply

        monkeypatch.setattr(store.namespace, "call", late)
        walk = everything(store)
        met = [next(walk).id]
        store.reschedule(met[0], f"+{HOUR - 1}")
        met += [record.id for record in walk]
        assert [*ids, "last"] == met

    def test_an_event_posted_while_the_first_page_is_read_is_skipped(self, store, monkeypatch):
        """A signal handler may post between the reply of the first page and its use."""
        ids = fill(store)
        call = store.namespace.call

        def interrupted(verb, *arguments, **options):
            reply = call(verb, *arguments, **options)
            if verb == "upcoming":
                monkeypatch.undo()
                post(store, "handler", 60_200.5)
            return reply

        monkeypatch.setattr(store.namespace, "call", interrupted)
        assert ids == [record.id for record in everything(store)]

    @pytest.mark.parametrize(
        "refused",
        [
            lambda s: s.post([Entry("e0001", "+0", ",3|{}")], "replace"),
            lambda s: s.reschedule("e0001", "+0"),
            lambda s: s.revive("e0001"),
            lambda s: s.schedules.declare(recurring("beat")),
            lambda s: s.schedules.pause("beat", on=False),
        ],
        ids=["post", "reschedule", "revive", "declare", "resume"],
    )
    def test_a_call_that_the_server_refused_hides_no_event(self, store, monkeypatch, refused):
        """The refused call changed nothing, so the iteration still visits all remaining events."""
        fill(store, 3)
        store.schedules.declare(recurring("beat", 3_600_000))
        walk = everything(store)
        next(walk)

        def refuse(*_, **__):
            raise StoreError("out of memory")

        monkeypatch.setattr(store.namespace, "call", refuse)
        with pytest.raises(StoreError):
            refused(store)
        monkeypatch.undo()
        assert ["e0001", "e0002", "beat"] == [record.id.partition("@")[0] for record in walk]

    def test_events_of_another_timer_do_not_prolong_the_iteration(self, store, other):
        """Events that other timers post behind the end are not visited; those before it may be."""
        ids = fill(store)
        walk = everything(store)
        met = [next(walk).id]
        post(other, "behind", YEAR / 1000)
        post(other, "before", 60_000.5)
        met += [record.id for record in walk]
        assert "behind" not in met
        assert ids == [id for id in met if id != "before"]

    def test_events_moved_behind_the_end_are_forgotten(self, store):
        """
        An iteration remembers only ids that it could visit again, so its memory stays
        constant.
        """
        fill(store)
        for record in everything(store):
            store.reschedule(record.id, f"+{YEAR}")
            (walk,) = store.walks._events.values()
            assert set() == walk.skipped

    @pytest.mark.parametrize("many", [3, MANY], ids=["the last page", "the first page"])
    def test_an_iterator_that_is_kept_does_not_grow(self, store, many):
        """
        An iterator cannot visit events that are posted before its place, so it need not remember
        them.
        """
        fill(store, many, apart_us=HOUR)
        walk = everything(store)
        next(walk)
        for n in range(300):
            store.post([Entry(f"n{n}", "+5000", ",3|{}")], "post_new")
        (noted,) = store.walks._events.values()
        assert set() == noted.skipped

    def test_an_event_that_the_loop_moves_back_is_skipped_on_the_current_page(self, store):
        """The page has been read before the move, and has the event with its old due time."""
        ids = fill(store)
        walk = everything(store)
        next(walk)
        assert store.reschedule(ids[50], "+0")
        assert [*ids[1:50], *ids[51:]] == [record.id for record in walk]

    def test_an_ended_iteration_leaves_nothing_behind(self, store):
        """After an iteration has ended or been closed, posts no longer record ids for it."""
        fill(store)
        list(everything(store))
        walk = store.upcoming("-inf", "+inf")
        next(walk)
        assert store.walks.under_way
        walk.close()
        assert not store.walks.under_way


class TestSchedules:
    """An iteration yields at most one pending occurrence of each schedule."""

    def test_a_loop_that_cancels_occurrences_ends(self, store):
        """
        Cancelling an occurrence creates the next one. A loop that cancels everything still
        ends.
        """
        names = [f"beat-{i:03}" for i in range(150)]
        for name in names:
            store.schedules.declare(recurring(name))
        post(store, "far", YEAR / 1000)
        met = []
        for record in everything(store):
            met.append(record.id)
            assert store.cancel(record.id)
        assert [*names, "far"] == [id.partition("@")[0] for id in met]

    def test_an_occurrence_that_waits_for_its_retry_is_visited_too(self, store, node, now):
        """
        The limit applies to the pending occurrence. An occurrence that waits for its retry is
        visited too.
        """
        store.schedules.declare(recurring("beat"))
        now.tick(1_000)
        (claim,) = node.claim()
        node.fail(claim, wait=500)
        assert 2 == len(list(everything(store)))

    def test_schedules_that_the_loop_declares_are_skipped(self, store):
        """A loop that declares a schedule for each event does not visit their occurrences."""
        ids = fill(store, 120)
        post(store, "last", YEAR / 1000)
        met = []
        for record in everything(store):
            met.append(record.id)
            store.schedules.declare(recurring(f"of-{record.id}"))
            store.schedules.run_now(f"of-{record.id}")
        assert [*ids, "last"] == met


class TestDead:
    """Iterating over the dead letters."""

    def test_dead_letters_that_die_again_are_not_visited_again(self, store, node, now):
        """A loop that revives each dead letter ends, even if the revived events fail at once."""
        bury(store, node, MANY)
        now.tick(1)
        met = []
        for letter in itertools.islice(store.dead(), 5 * MANY):
            met.append(letter.id)
            assert store.revive(letter.id)
            (claim,) = node.claim()
            node.fail(claim)
        assert MANY == len(met) == len(set(met))

    def test_a_loop_that_revives_ends_after_the_clock_was_set_back(self, store, node, now):
        """
        The revived events die before the end of the iteration, because the clock is behind
        it.
        """
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

    def test_dead_letters_that_the_loop_restores_are_skipped(self, client, namespace, now):
        """
        A dead letter is restored at its time of death, which the iteration may not have reached
        yet.
        """
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        bury(store, Peer(store, "node"), MANY)
        now.tick(1)
        bury(store, Peer(store, "node"), 1)
        met = []
        for letter in itertools.islice(store.dead(), 5 * MANY):
            met.append(letter.id)
            copy = type(letter)(f"{letter.id}-copy", None, 1, "failed", "", letter.died, b",0|{}")
            AdminStore(store).restore([copy])
        store.close()
        assert [*(f"d{i:04}" for i in range(1, MANY)), "d0000"] == met

    def test_a_revived_dead_letter_does_not_lose_the_place(self, store, node):
        """
        If the last dead letter of a page is revived, the next page neither repeats nor skips
        one.
        """
        bury(store, node, MANY)
        met = []
        for letter in store.dead():
            met.append(letter.id)
            store.revive(letter.id)
        assert sorted(met) == sorted(f"d{i:04}" for i in range(MANY))


class TestPages:
    """A page is limited in number and in bytes."""

    @pytest.fixture
    def pages(self, store, monkeypatch):
        """The bytes that each page has returned."""
        sizes = []
        call = store.namespace.call

        def counted(verb, *arguments, **options):
            reply = call(verb, *arguments, **options)
            if verb in {"upcoming", "dead"}:
                sizes.append(sum(map(len, reply[-1])))
            return reply

        monkeypatch.setattr(store.namespace, "call", counted)
        return sizes

    def test_large_events_come_in_several_pages(self, store, pages):
        """
        Events of 300 kB come a few at a time, so that no script keeps the server busy for
        long.
        """
        ids = fill(store, 14, rest=f'3|{{"a":"{"x" * 300_000}"}}')
        assert ids == [record.id for record in store.upcoming("-inf", "+inf")]
        assert max(pages) < 1_400_000
        assert 3 < len(pages)

    def test_large_dead_letters_come_in_several_pages(self, store, node, pages):
        """The limit in bytes applies to dead letters too."""
        store.post(
            [Entry(f"d{i}", "+0", f',0|{{"a":"{"x" * 300_000}"}}') for i in range(9)], "replace"
        )
        while claims := node.claim(100):
            for claim in claims:
                node.fail(claim)
        assert 9 == len(list(store.dead()))
        assert max(pages) < 1_400_000
        assert 2 < len(pages)

    def test_an_event_larger_than_a_page_comes_alone(self, store, pages):
        """An event that is larger than a page is not left out."""
        ids = fill(store, 3, rest=f'3|{{"a":"{"x" * 1_100_000}"}}')
        records = list(store.upcoming("-inf", "+inf"))
        assert ids == [record.id for record in records]
        assert isinstance(records[0], Record)
        assert 3 <= len(pages)


def test_the_place_among_ties_is_found_with_any_id(store):
    """
    If an event among equal due times is removed, its place is found again, with any bytes in its
    id.
    """
    ids = sorted({*(f"é{i}" for i in range(60)), *(f"Z{i}" for i in range(60)), "~", "aa", "a"})
    store.post([Entry(id, "+1000000", ",3|{}") for id in ids], "replace")
    met = []
    for record in everything(store):
        met.append(record.id)
        assert store.cancel(record.id)
    assert sorted(ids, key=str.encode) == met
