"""Iterating over pending events and dead letters while the loop changes them."""

from __future__ import annotations

import itertools

import pytest
from peers import Peer, definition, post

from dtimer.errors import OutcomeUnknown, StoreError
from dtimer.model.records import Record
from dtimer.store.admin import AdminStore
from dtimer.store.connection.sources import source
from dtimer.store.format import Entry
from dtimer.store.store import Store

#: In microseconds, the unit of the store.
HOUR = 3_600_000_000
YEAR = 365 * 24 * HOUR

#: The number of events in more than two pages.
MANY = 250


@pytest.fixture
def other(client, namespace, now):
    """The store of another process, on the same namespace."""
    store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
    yield store
    store.release()


def fill(store, many=MANY, apart_us=1_000, rest="3|{}"):
    """Post *many* events; return their ids in due order."""
    entries = [Entry(f"e{i:04}", f"+{60_000_000 + i * apart_us}", f",{rest}") for i in range(many)]
    for first in range(0, many, 500):
        store.post(entries[first : first + 500], "replace")
    return [entry.id for entry in entries]


def everything(store):
    """Iterate over all waiting events; stop an iteration that does not end."""
    return itertools.islice(store.upcoming("-inf", "+inf"), 5 * MANY)


def dead_letters(store):
    """Iterate over all dead letters; stop an iteration that does not end."""
    return itertools.islice(store.dead(), 5 * MANY)


def visit(walk, act=lambda record: None):
    """Iterate, call *act* with each record, and return the ids in the order of the visits."""
    ids = []
    for record in walk:
        ids.append(record.id)
        act(record)
    return ids


@pytest.fixture
def after_reply(store, monkeypatch):
    """A function: call *act* after each reply to a call of *verb*, before the store uses it."""

    def after_reply(verb, act):
        call = store.namespace.call

        def call_and_act(called, *arguments, **options):
            reply = call(called, *arguments, **options)
            if called == verb:
                act(reply)
            return reply

        monkeypatch.setattr(store.namespace, "call", call_and_act)

    return after_reply


def bury_many(store, node, many, payload="{}"):
    """Create *many* dead letters with different times of death."""
    store.post([Entry(f"d{i:04}", "+0", f",0|{payload}") for i in range(many)], "replace")
    while claims := node.claim(100):
        for claim in claims:
            node.fail(claim)


class TestEnd:
    """An iteration ends at the last (due, id) that existed when it began."""

    @pytest.mark.parametrize("apart_us", [1_000, 0])
    def test_events_that_the_loop_postpones_are_visited_once(self, store, apart_us):
        """A loop that postpones all events moves each once, even among equal due times."""
        ids = fill(store, apart_us=apart_us)
        before = {record.id: record.due for record in everything(store)}

        def postpone(record):
            assert store.reschedule(record.id, str(round(record.due * 1000) + HOUR))

        assert ids == visit(everything(store), postpone)
        after = {record.id: record.due for record in everything(store)}
        assert {id: due + HOUR / 1000 for id, due in before.items()} == after

    def test_events_moved_within_the_range_are_visited_once(self, store):
        """An event that is moved to a later place of the iteration is not visited again."""
        ids = fill(store)
        post(store, "last", 3 * HOUR / 1000)
        visited = visit(everything(store), lambda r: store.reschedule(r.id, f"+{HOUR}"))
        assert [*ids, "last"] == visited

    @pytest.mark.parametrize("policy", ["post_new", "replace"])
    def test_events_that_the_loop_posts_are_skipped(self, store, policy):
        """A loop that posts an event for each event ends, however early the new ones are due."""
        ids = fill(store)
        post(store, "last", YEAR / 1000)

        def post_another(record):
            store.post([Entry(f"after-{record.id}", f"+{HOUR}", ",3|{}")], policy)

        assert [*ids, "last"] == visit(everything(store), post_another)

    def test_events_kept_by_a_post_are_visited(self, store):
        """A post that keeps the existing event does not hide that event from the iteration."""
        ids = fill(store)
        kept = [Entry(ids[-1], "+0", ",3|{}")]
        assert ids == visit(everything(store), lambda _: store.post(kept, "keep"))

    def test_a_post_with_an_unknown_outcome_is_skipped(self, store, after_reply):
        """If the event may have been stored, visiting it could make the loop endless."""
        fill(store, 3)

        def lose_reply(_):
            raise OutcomeUnknown("no reply")

        walk = everything(store)
        next(walk)
        after_reply("post", lose_reply)
        with pytest.raises(OutcomeUnknown):
            store.post([Entry("perhaps", "+60000500", ",3|{}")], "replace")
        assert ["e0001", "e0002"] == visit(walk)

    def test_an_event_is_not_visited_again_if_the_reply_to_its_move_was_late(
        self, store, now, after_reply
    ):
        """The server moves the event before the timer records the move."""
        ids = fill(store)
        post(store, "last", HOUR / 1000)
        after_reply("reschedule", lambda _: now.tick(2_900))
        walk = everything(store)
        first = next(walk).id
        store.reschedule(first, f"+{HOUR - 1}")
        assert [*ids, "last"] == [first, *visit(walk)]

    def test_an_event_posted_while_the_first_page_is_read_is_skipped(
        self, store, monkeypatch, after_reply
    ):
        """A signal handler may post between the reply of the first page and its use."""
        ids = fill(store)

        def post_once(_):
            monkeypatch.undo()
            post(store, "handler", 60_200.5)

        after_reply("upcoming", post_once)
        assert ids == visit(everything(store))

    @pytest.mark.parametrize(
        "refused",
        [
            lambda s: s.post([Entry("e0001", "+0", ",3|{}")], "replace"),
            lambda s: s.reschedule("e0001", "+0"),
            lambda s: s.revive("e0001"),
            lambda s: s.schedules.declare(definition("beat")),
            lambda s: s.schedules.pause("beat", on=False),
        ],
        ids=["post", "reschedule", "revive", "declare", "resume"],
    )
    def test_a_call_that_the_server_refused_hides_no_event(self, store, monkeypatch, refused):
        """The refused call changed nothing, so the iteration still visits all remaining events."""
        fill(store, 3)
        store.schedules.declare(definition("beat", every=3_600_000))
        walk = everything(store)
        next(walk)

        def refuse(*_, **__):
            raise StoreError("out of memory")

        monkeypatch.setattr(store.namespace, "call", refuse)
        with pytest.raises(StoreError):
            refused(store)
        monkeypatch.undo()
        assert ["e0001", "e0002", "beat"] == [id.partition("@")[0] for id in visit(walk)]

    def test_events_of_another_timer_do_not_prolong_the_iteration(self, store, other):
        """Events that other timers post behind the end are not visited; those before it may be."""
        ids = fill(store)
        walk = everything(store)
        first = next(walk).id
        post(other, "behind", YEAR / 1000)
        post(other, "before", 60_000.5)
        assert ids == [first, *(id for id in visit(walk) if id != "before")]

    def test_events_moved_behind_the_end_are_forgotten(self, store):
        """An iteration remembers only ids that it could visit again, so it needs little memory."""
        fill(store)
        for record in everything(store):
            store.reschedule(record.id, f"+{YEAR}")
            (registered,) = store.walks._events.values()
            assert set() == registered.skipped

    @pytest.mark.parametrize("many", [3, MANY], ids=["the last page", "the first page"])
    def test_an_iterator_that_is_kept_does_not_grow(self, store, many):
        """An iterator need not remember events that are posted before its place."""
        fill(store, many, apart_us=HOUR)
        walk = everything(store)
        next(walk)
        for n in range(300):
            store.post([Entry(f"n{n}", "+5000", ",3|{}")], "post_new")
        (registered,) = store.walks._events.values()
        assert set() == registered.skipped

    def test_an_event_that_the_loop_moves_back_is_skipped_on_the_current_page(self, store):
        """The page has been read before the move, and has the event with its old due time."""
        ids = fill(store)
        walk = everything(store)
        next(walk)
        assert store.reschedule(ids[50], "+0")
        assert [*ids[1:50], *ids[51:]] == visit(walk)

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
        """Cancelling an occurrence creates the next one, which the loop does not visit."""
        names = [f"beat-{i:03}" for i in range(150)]
        for name in names:
            store.schedules.declare(definition(name))
        post(store, "far", YEAR / 1000)
        visited = visit(everything(store), lambda record: store.cancel(record.id))
        assert [*names, "far"] == [id.partition("@")[0] for id in visited]

    def test_an_occurrence_that_waits_for_its_retry_is_visited_too(self, store, node, now):
        """The limit applies to the pending occurrence, not to an occurrence that waits to retry."""
        store.schedules.declare(definition("beat"))
        now.tick(1_000)
        (claim,) = node.claim()
        node.fail(claim, wait=500)
        assert 2 == len(visit(everything(store)))

    def test_schedules_that_the_loop_declares_are_skipped(self, store):
        """A loop that declares a schedule for each event does not visit their occurrences."""
        ids = fill(store, 120)
        post(store, "last", YEAR / 1000)

        def declare(record):
            store.schedules.declare(definition(f"of-{record.id}"))
            store.schedules.run_now(f"of-{record.id}")

        assert [*ids, "last"] == visit(everything(store), declare)


class TestDead:
    """Iterating over the dead letters."""

    @pytest.fixture
    def revive_and_fail(self, store, node):
        """A function: revive a dead letter, whose event fails at once."""

        def revive_and_fail(letter):
            assert store.revive(letter.id)
            node.fail(*node.claim())

        return revive_and_fail

    def test_dead_letters_that_die_again_are_not_visited_again(
        self, store, node, now, revive_and_fail
    ):
        """A loop that revives each dead letter ends, even if the revived events fail at once."""
        bury_many(store, node, MANY)
        now.tick(1)
        visited = visit(dead_letters(store), revive_and_fail)
        assert MANY == len(visited) == len(set(visited))

    def test_a_loop_that_revives_ends_after_the_clock_was_set_back(
        self, store, node, now, revive_and_fail
    ):
        """The revived events then die before the end of the iteration."""
        bury_many(store, node, MANY)
        now.tick(HOUR / 1000)
        post(store, "last", max_retries=0)
        node.fail(*node.claim())
        now.tick(-HOUR / 2000)

        def revive_later(letter):
            now.tick(1)
            revive_and_fail(letter)

        expected = [*(f"d{i:04}" for i in range(MANY)), "last"]
        assert expected == visit(dead_letters(store), revive_later)

    def test_dead_letters_that_the_loop_restores_are_skipped(self, client, namespace, now):
        """The iteration may not have reached the time of death of a restored letter yet."""
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        bury_many(store, Peer(store, "node"), MANY)
        now.tick(1)
        bury_many(store, Peer(store, "node"), 1)

        def restore_a_copy(letter):
            copy = type(letter)(f"{letter.id}-copy", None, 1, "failed", "", letter.died, b",0|{}")
            AdminStore(store).restore([copy])

        visited = visit(dead_letters(store), restore_a_copy)
        store.release()
        assert [*(f"d{i:04}" for i in range(1, MANY)), "d0000"] == visited

    def test_a_revived_dead_letter_does_not_lose_the_place(self, store, node):
        """If the last one of a page is revived, the next page starts at the right place."""
        bury_many(store, node, MANY)
        visited = visit(store.dead(), lambda letter: store.revive(letter.id))
        assert [f"d{i:04}" for i in range(MANY)] == sorted(visited)


class TestPages:
    """A page is limited in number and in bytes."""

    @pytest.fixture
    def page_sizes(self, after_reply):
        """The number of bytes in each page that was read."""
        sizes = []
        for verb in ("upcoming", "dead"):
            after_reply(verb, lambda reply: sizes.append(sum(map(len, reply[-1]))))
        return sizes

    def test_large_events_come_in_several_pages(self, store, page_sizes):
        """Events of 300 kB come a few at a time, so that no script keeps the server busy."""
        ids = fill(store, 14, rest=f'3|{{"a":"{"x" * 300_000}"}}')
        assert ids == visit(everything(store))
        assert max(page_sizes) < 1_400_000
        assert 3 < len(page_sizes)

    def test_large_dead_letters_come_in_several_pages(self, store, node, page_sizes):
        """The limit in bytes applies to dead letters too."""
        bury_many(store, node, 9, payload=f'{{"a":"{"x" * 300_000}"}}')
        assert 9 == len(visit(dead_letters(store)))
        assert max(page_sizes) < 1_400_000
        assert 2 < len(page_sizes)

    def test_an_event_larger_than_a_page_comes_alone(self, store, page_sizes):
        """An event that is larger than a page is not left out."""
        ids = fill(store, 3, rest=f'3|{{"a":"{"x" * 1_100_000}"}}')
        records = list(everything(store))
        assert ids == [record.id for record in records]
        assert isinstance(records[0], Record)
        assert 3 <= len(page_sizes)


def test_the_place_among_ties_is_found_with_any_id(store):
    """The place of a removed event is found again, with any bytes in its id."""
    ids = sorted({*(f"é{i}" for i in range(60)), *(f"Z{i}" for i in range(60)), "~", "aa", "a"})
    store.post([Entry(id, "+1000000", ",3|{}") for id in ids], "replace")
    visited = visit(everything(store), lambda record: store.cancel(record.id))
    assert sorted(ids, key=str.encode) == visited
