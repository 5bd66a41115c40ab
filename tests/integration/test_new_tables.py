"""Cron schedules that are declared again after the rules of their time zone have changed."""

from __future__ import annotations

import struct
import zoneinfo

import pytest
from peers import Now, Peer, add_missing_times, definition

from dtimer.model.schedules import STORED_TIMES

#: In microseconds.
HOUR = 3_600_000_000
DAY = 24 * HOUR

#: 15 January 2027, 0:00 UTC; `Now` begins at 8:00.
MIDNIGHT = Now().us - 8 * HOUR


@pytest.fixture
def write_table(tmp_path):
    """A function: write the table of a zone with an offset from UTC, in hours."""
    paths = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([str(tmp_path), *paths])
    (tmp_path / "Test").mkdir()

    def write(hours):
        # The format of RFC 8536: no transitions, one offset and its abbreviation.
        counts = struct.pack(">6l", 0, 0, 0, 0, 1, 4)
        rule = struct.pack(">lBB", hours * 3600, 0, 0) + b"LMT\0"
        (tmp_path / "Test" / "Here").write_bytes(b"TZif" + bytes(16) + counts + rule)
        zoneinfo.ZoneInfo.clear_cache()

    yield write
    zoneinfo.reset_tzpath(paths)
    zoneinfo.ZoneInfo.clear_cache()


@pytest.fixture(autouse=True)
def midnight(now):
    """Start the test at midnight UTC."""
    now.us = MIDNIGHT


def declare(store, **options):
    """Declare a schedule in the zone of the test, every day at nine."""
    spec = definition("nine", cron="0 9 * * *", tz="Test/Here", **options)
    return store.schedules.declare(spec)


def due(store):
    """Return when pending occurrences are due, in hours after the start of the test."""
    return [(r.due * 1000 - MIDNIGHT) / HOUR for r in store.upcoming("-inf", "+inf")]


def claim_hourly(node, now, days=3):
    """Claim every hour for some days; return when each occurrence was claimed, in hours."""
    claimed = []
    for _ in range(days * 24):
        reply = node.claim_reply(10)
        claimed += [(claim.claimed_us - MIDNIGHT) / HOUR for claim in reply.claims]
        for claim in reply.claims:
            node.confirm(claim)
        add_missing_times(node.store, reply)
        now.us += HOUR
    return claimed


def move_to_eight(store):
    """Reschedule the pending occurrence, as a user would."""
    (record,) = store.upcoming("-inf", "+inf")
    assert store.reschedule(record.id, str(MIDNIGHT + 8 * HOUR))


@pytest.mark.parametrize("offsets", [(3, 4), (4, 3)])
def test_all_nominal_times_follow_the_new_table(store, node, now, write_table, offsets):
    """The pending occurrence moves, and later ones follow. No occurrence is lost or doubled."""
    old, new = offsets
    write_table(old)
    assert "new" == declare(store)
    assert [9 - old] == due(store)
    write_table(new)
    assert "changed" == declare(store)
    assert [9 - new] == due(store)
    assert [day * 24 + 9 - new for day in range(15)] == claim_hourly(node, now, 15)


def test_an_unchanged_table_changes_nothing(store, now, write_table, client):
    """A process that starts later computes later times; those that both know are equal."""
    write_table(3)
    declare(store)
    for _ in range(STORED_TIMES + 3):
        before = client.hgetall(store.keys.beats)
        assert "same" == declare(store)
        assert before == client.hgetall(store.keys.beats)
        now.us += DAY - HOUR


@pytest.mark.parametrize("cron", ["30 2 * * *", "*/20 * * * *", "0 */3 * * *", "15 1,2 * * sun"])
@pytest.mark.parametrize("change", [1_805_007_600, 1_825_567_200], ids=["spring", "autumn"])
def test_a_daylight_saving_change_is_not_a_new_table(store, node, now, cron, change):
    """The same table gives the same times from any moment, even around a daylight saving change."""
    spec = definition("nine", cron=cron, tz="America/New_York")
    now.us = change * 1_000_000 - 9 * HOUR
    assert "new" == store.schedules.declare(spec)
    for _ in range(40):
        now.us += HOUR // 2
        reply = node.claim_reply(10)
        for claim in reply.claims:
            node.confirm(claim)
        add_missing_times(store, reply)
        assert "same" == store.schedules.declare(spec)


def test_an_occurrence_that_came_by_the_old_table_does_not_come_again(
    store, node, now, write_table
):
    """Today's occurrence was claimed at five. By the new table it would be due at six."""
    write_table(4)
    declare(store)
    now.us += 5 * HOUR
    node.confirm(node.claim()[0])
    write_table(3)
    assert "changed" == declare(store)
    assert [24 + 6, 48 + 6] == claim_hourly(node, now)


def test_a_due_occurrence_stays(store, node, now, write_table):
    """An occurrence that is due and not claimed yet is not delivered again an hour later."""
    write_table(4)
    declare(store)
    now.us += 5 * HOUR
    write_table(3)
    assert "changed" == declare(store)
    assert [5, 24 + 6, 48 + 6] == claim_hourly(node, now)


def test_an_occurrence_whose_new_time_is_past_comes_at_the_old_time(store, node, now, write_table):
    """If the table changes between the new and the old time, the occurrence is not lost."""
    write_table(3)
    declare(store)
    now.us += 5 * HOUR + HOUR // 2
    write_table(4)
    assert "changed" == declare(store)
    assert [6] == due(store)
    assert [6.5, 24 + 5.5, 48 + 5.5] == claim_hourly(node, now)


@pytest.mark.parametrize("offsets", [(3, 4), (4, 3)])
def test_a_rescheduled_occurrence_stays_where_the_user_put_it(
    store, node, now, write_table, offsets
):
    """A pending occurrence that the user rescheduled keeps its time, and counts as that day's."""
    old, new = offsets
    write_table(old)
    declare(store)
    move_to_eight(store)
    write_table(new)
    assert "changed" == declare(store)
    assert [8] == due(store)
    assert [8, 24 + 9 - new, 48 + 9 - new] == claim_hourly(node, now)


@pytest.mark.parametrize(
    "case",
    [((4, 3), 5, True, False), ((3, 4), 5.5, False, False), ((3, 4), 0, False, True)],
    ids=["came by the old table", "comes by the old table", "moved by the user"],
)
def test_the_same_table_declared_twice_changes_nothing(store, node, now, write_table, case):
    """A time that only the first declaration has dropped must not count as a change."""
    offsets, hours, claims, move = case
    write_table(offsets[0])
    declare(store)
    now.us += round(hours * HOUR)
    if claims:
        node.confirm(node.claim()[0])
    if move:
        move_to_eight(store)
    write_table(offsets[1])
    assert "changed" == declare(store)
    before = due(store)
    assert "same" == declare(store)
    assert before == due(store)


def test_a_jittered_occurrence_moves(store, now, write_table):
    """An occurrence that is delayed by jitter counts as pending at its scheduled time."""
    write_table(3)
    declare(store, jitter=600_000)
    assert [6] != due(store)
    write_table(4)
    assert "changed" == declare(store, jitter=600_000)
    (hours,) = due(store)
    assert 5 <= hours <= 5 + 1 / 6


def test_a_paused_schedule_follows_the_new_table_when_resumed(store, write_table):
    """A paused schedule has no pending occurrence that could move."""
    write_table(3)
    declare(store)
    store.schedules.pause("nine", on=True)
    write_table(4)
    assert "changed" == declare(store)
    assert [] == due(store)
    store.schedules.pause("nine", on=False)
    assert [5] == due(store)


def test_a_limited_count_stays_the_same(store, node, now, write_table):
    """A new table neither adds nor removes an occurrence of a limited number."""
    write_table(3)
    declare(store, count=2)
    write_table(4)
    assert "changed" == declare(store, count=2)
    assert [5, 24 + 5] == claim_hourly(node, now, 5)


def test_the_last_of_alternating_declarations_applies(store, node, now, write_table):
    """If only some processes have the new table, the last declaration applies."""
    write_table(3)
    declare(store)
    Peer(store, "another")
    claimed = []
    for offset in (4, 3, 4):
        write_table(offset)
        assert "changed" == declare(store)
        claimed += claim_hourly(node, now, 1)
    assert [5, 24 + 6, 48 + 5] == claimed
