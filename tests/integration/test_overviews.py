"""The history, the events that fall due, and those in flight, as operators read them."""

from __future__ import annotations

import itertools

import pytest
from peers import LEASE, Peer, post

from dtimer import OptionError
from dtimer.model.overviews import DueCount
from dtimer.store.format import Entry, write_body

MINUTE = 60_000
HOUR = 60 * MINUTE


@pytest.fixture
def report(store, now):
    """Return a function that has a joined node report in the given number of minutes."""
    Peer(store, "reporter")

    def after(minutes=1):
        now.tick(minutes * MINUTE)
        return store.report("reporter", "{}", history=True)

    after(0)
    return after


def bury(node, store, id):
    """Post an event without retries, and let its only attempt fail."""
    post(store, id, max_retries=0)
    node.fail(node.claim()[0])


class TestHistory:
    """The history of a day."""

    def test_a_row_has_the_counts_of_its_minute(self, store, node, now, report):
        """A chart shows the night although nothing has watched it."""
        post(store, "later", HOUR)
        bury(node, store, "dead")
        post(store, "done")
        now.tick(3)
        node.confirm(node.claim()[0])
        post(store, "running")
        node.claim()
        post(store, "overdue")
        began = now.us / 1000 - 3
        report()
        (row,) = store.history()
        assert (began, 1) == (row.begins, row.minutes)
        assert (5, 3, 1, 0, 1) == (
            row.posted, row.started, row.confirmed, row.retried, row.died
        )  # fmt: skip
        assert (2, 1, 2, 1) == (row.scheduled, row.in_flight, row.overdue, row.dead)
        assert row.late_p50_ms < 1
        assert 3 <= row.late_p99_ms < 3 * 2**0.5 + 1

    def test_each_row_counts_from_the_row_before(self, store, report):
        """Rates do not grow with the age of the namespace."""
        for n in range(3):
            post(store, f"tea{n}", HOUR)
            report()
        rows = store.history()
        assert [1, 1, 1] == [row.posted for row in rows]
        assert [1, 2, 3] == [row.scheduled for row in rows]
        assert [MINUTE] * 2 == [b.begins - a.begins for a, b in itertools.pairwise(rows)]
        assert [None] * 3 == [row.late_p50_ms for row in rows]

    def test_a_second_report_in_a_minute_adds_nothing(self, store, report):
        """Each of a hundred nodes reports, and the rows are those of the namespace."""
        post(store, "tea", HOUR)
        report()
        post(store, "egg", HOUR)
        report(0.5)
        assert [1] == [row.posted for row in store.history()]

    def test_nothing_is_written_while_nothing_happens(self, store, report, client):
        """An idle namespace costs Redis no writes."""
        post(store, "tea")
        store.cancel("tea")
        report()
        before = client.hgetall(store.keys.sys)
        for _ in range(3):
            report()
        assert before == client.hgetall(store.keys.sys)

    def test_minutes_without_a_node_are_missing(self, store, report):
        """They are drawn as a gap, and the next row says for how many minutes it counts."""
        post(store, "tea", 24 * HOUR)
        report()
        post(store, "egg", 24 * HOUR)
        report(90)
        first, second = store.history()
        assert 90 * MINUTE == second.begins - first.begins
        assert (1, 90) == (second.posted, second.minutes)

    def test_has_one_field_an_hour_and_ends_after_a_day(self, store, report, client):
        """Its size is bounded by construction, and nothing trims it."""
        post(store, "tea", 1_000 * HOUR)
        for _ in range(50):
            report(30)
        fields = [f for f in client.hkeys(store.keys.sys) if f.startswith(b"history:")]
        assert 25 == len(fields), "24 hours and the end"
        assert 48 <= len(store.history()) <= 49

    def test_the_first_row_follows_the_second_report(self, store, now):
        """Earlier events have no known time."""
        Peer(store, "reporter")
        post(store, "tea", HOUR)
        store.report("reporter", "{}", history=True)
        assert [] == store.history()

    def test_is_not_written_by_a_node_that_must_not(self, store, now):
        """The option `history` turns it off."""
        Peer(store, "reporter")
        post(store, "tea", HOUR)
        for _ in range(2):
            now.tick(MINUTE)
            store.report("reporter", "{}")
        assert [] == store.history()

    def test_a_report_says_when_the_next_minute_begins(self, report):
        """The next report comes then, so that no minute is missing."""
        assert 60_000_000 == report()
        assert 42_000_000 == report(0.3)

    @pytest.mark.parametrize("value", [b"", b"x", b"1;2;3", b"9" * 30, b"30000000;a;b"])
    def test_foreign_values_are_skipped(self, store, report, client, value):
        """A value that another program has written neither fails a node nor a page."""
        post(store, "tea", HOUR)
        report()
        for field in (b"history:end", b"history:%d" % (500_000 % 24)):
            client.hset(store.keys.sys, field, value)
        assert [] == store.history()
        report()
        report()
        assert 1 <= len(store.history()) <= 2

    def test_a_clock_set_back_does_not_fill_the_memory(self, store, report, client):
        """Each minute is then written again and again."""
        post(store, "tea", 1_000 * HOUR)
        for n in range(800):
            report(-1 if n % 2 else 1)
        sizes = [len(value) for value in client.hvals(store.keys.sys)]
        assert max(sizes) < 25_000


class TestAhead:
    """How many events fall due in the next periods."""

    def test_counts_the_events_of_each_period(self, store, now):
        """An operator sees the peak of the next hour before it comes."""
        for id, minutes in (("late", -1), ("a", 0.5), ("b", 0.9), ("c", 59.5), ("d", 61)):
            post(store, id, minutes * MINUTE)
        counts = store.ahead(MINUTE * 1000, 60)
        assert [2, *[0] * 58, 1] == [part.count for part in counts]
        assert DueCount(now.us / 1000 + MINUTE, 0) == counts[1]

    def test_an_event_on_the_border_counts_once(self, store):
        """The sum of all periods is the number of events."""
        for n in range(5):
            post(store, f"tea{n}", (n + 1) * MINUTE)
        assert [1] * 5 == [part.count for part in store.ahead(MINUTE * 1000, 5)]

    @pytest.mark.parametrize(
        ("span", "periods"), [(MINUTE, 0), (MINUTE, 121), (59, 60), (-1, 1), ("1h", 60)]
    )
    def test_a_wrong_argument_is_refused_before_any_call(self, make, span, periods):
        """The number of commands of a script is bounded."""
        with pytest.raises(OptionError):
            make(url="redis://127.0.0.1:1").ahead(span, periods=periods)

    def test_a_day_by_the_hour(self, make):
        """The same call shows any period."""
        timer = make()
        timer.post({}, 90 * MINUTE)
        counts = timer.ahead(24 * HOUR, periods=24)
        assert [0, 1, *[0] * 22] == [part.count for part in counts]
        assert HOUR == counts[1].begins - counts[0].begins


class TestInFlight:
    """The events that nodes have claimed."""

    def test_has_the_holder_and_the_times_of_each(self, store, node, now):
        """An operator sees which node has held which event for how long."""
        other = Peer(store, "other", join=False)
        store.join("other", '{"id": "node-2"}')
        post(store, "tea")
        now.tick(5)
        other.claim()
        began = now.us / 1000
        now.tick(1_000)
        post(store, "egg")
        node.claim()
        store.cancel("egg")
        tea, egg = store.in_flight(10)
        assert ("tea", "node-2", "other", 1) == (tea.id, tea.node, tea.incarnation, tea.attempt)
        assert (began - 5, began, began + LEASE) == (tea.due, tea.claimed, tea.lease_ends)
        assert (False, True) == (tea.cancelled, egg.cancelled)

    def test_the_holder_may_be_gone(self, store, node):
        """Its events stay in flight until their leases end."""
        post(store, "tea")
        node.claim()
        store.leave(node.name)
        (tea,) = store.in_flight(10)
        assert ("", node.name) == (tea.node, tea.incarnation)

    def test_returns_a_sample_of_many(self, store, node):
        """A call is bounded, however many events are in flight."""
        for n in range(10):
            post(store, f"tea{n}")
        node.claim(10)
        assert 3 == len(store.in_flight(3))

    @pytest.mark.parametrize("limit", [0, 1_001, None, 1.5])
    def test_a_wrong_limit_is_refused_before_any_call(self, make, limit):
        """As of every other argument."""
        with pytest.raises(OptionError):
            make(url="redis://127.0.0.1:1").in_flight(limit)

    def test_a_foreign_lease_is_skipped(self, store, node, client):
        """The next claim takes the event, so no node has it."""
        post(store, "tea")
        client.hset(store.keys.lease, "tea", "junk")
        assert [] == store.in_flight(10)
        client.hdel(store.keys.lease, "tea")


class TestNewestDeadLetters:
    """Dead letters, the newest first."""

    @pytest.fixture
    def letters(self, store, node, now):
        """The ids of 250 dead letters, oldest first; some died at the same moment."""
        ids = [f"d{n:03}" for n in range(250)]
        for n, id in enumerate(ids):
            bury(node, store, id)
            if n % 3 == 0:
                now.tick(1)
        return ids

    def test_come_in_the_reverse_order(self, store, letters):
        """A page shows what has just died, and reads no more than it shows."""
        assert letters == [letter.id for letter in store.dead()]
        assert letters[::-1] == [letter.id for letter in store.dead(newest=True)]

    def test_a_loop_may_revive_or_delete_each(self, store, node, letters):
        """The position of a page holds although its letter is gone."""
        seen = []
        for letter in store.dead(newest=True):
            seen.append(letter.id)
            assert store.revive(letter.id)
            if len(seen) % 50 == 0:
                bury(node, store, f"new{len(seen)}")
        assert letters[::-1] == seen
        for claim in node.claim(100):
            node.confirm(claim)

    def test_there_may_be_none(self, store):
        """An empty list is not an error."""
        assert [] == list(store.dead(newest=True))


class TestPeek:
    """The limits of an event, in each of its states."""

    def test_has_the_expiry_and_the_retries(self, store, node, now):
        """An operator sees how often an event may still start, and until when."""
        post(store, "tea", max_retries=0, expires="+5000000")
        expires = now.us / 1000 + 5_000

        def limits():
            record = store.peek("tea")
            return record.max_retries, record.expires

        assert (0, expires) == limits()
        (claim,) = node.claim()
        assert (0, expires) == limits()
        node.fail(claim)
        assert (0, expires) == limits()
        post(store, "tea", HOUR)
        assert (3, None) == limits()
        (record,) = store.upcoming("-inf", "+inf")
        assert 3 == record.max_retries

    def test_has_none_if_the_event_cannot_be_read(self, store, client):
        """As the payload."""
        post(store, "tea", HOUR)
        client.hset(store.keys.body, "tea", "junk")
        assert (None, None) == (store.peek("tea").max_retries, store.peek("tea").expires)
        post(store, "tea", HOUR)


def test_an_event_with_a_trace_is_claimed_ahead_of_its_time(store, node):
    """Tracing must not make events later."""
    trace = "0af7651916cd43dd8448eb211c80319cb7ad6b716920333101"
    store.post([Entry("tea", "+5000", write_body("", 3, "{}", trace=trace))], "post_new")
    (claim,) = node.claim(ahead=10)
    assert (trace, b"{}") == (claim.trace, claim.payload)


class TestReport:
    """The description of a node."""

    def test_replaces_the_description(self, store, node):
        """The time of joining stays."""
        joined = store.nodes()[0].joined
        store.report(node.name, '{"id": "n", "used": 2, "threads": 4, "rss": 9, "rtt": 1500}')
        (info,) = store.nodes()
        assert (joined, "n", 2, 4, 9, 1.5) == (
            info.joined, info.id, info.used, info.threads, info.rss, info.rtt_ms
        )  # fmt: skip

    def test_does_not_register_a_node(self, store):
        """A report that arrives after the node has left leaves nothing behind."""
        store.namespace.open()
        store.report("gone", "{}", history=True)
        assert [] == store.nodes()

    @pytest.mark.parametrize("value", ['"x"', "-1", "true", "1e300", "null", "[]"])
    def test_a_value_of_another_type_is_not_read(self, store, node, value):
        """Another version may have written it, and a page must still show the node."""
        store.report(node.name, f'{{"used": {value}, "rss": {value}, "deaf": {value}}}')
        (info,) = store.nodes()
        assert (0, None) == (info.used, info.rss)


def test_a_joined_node_describes_itself(make):
    """The list of nodes says which version runs where, and how many threads it has."""
    timer = make(concurrency=3)
    timer.on("event", print)
    with timer:
        (info,) = timer.nodes()
    assert (3, 0, False, 0) == (info.threads, info.used, info.deaf, info.restarts)
    assert info.version
    assert info.rss > 1_000_000
