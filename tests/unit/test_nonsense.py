"""A server that sends invalid replies: every call ends, and raises only errors of dtimer."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from dtimer import DTimer, OutcomeUnknown, StoreError
from dtimer.model.claims import ClaimRequest, Settlement, Verdict
from dtimer.store import script_client
from dtimer.store.admin import AdminStore
from dtimer.store.connection.sources import source
from dtimer.store.namespace import SCHEMA
from dtimer.store.store import Store

#: The reply of the script `open` for a sound namespace.
OPENED = [b"1800000000000000", SCHEMA.encode(), b"a-name", b"0", b"0", b"0"]

#: Replies that no script sends, or not in this place. Each script describes its own in its header.
INVALID = [
    None, True, 0, 1, -1, 10**30, 1.5, "text",
    b"", b"x", b"1", b"1;2", b"11;x;", b"x;;other", b"2;;", b"\xff;|", b"short", b"behind:x",
    b"1;2;1;;4;5;6;1;0;0|", b"1;2;1;1;;;;9;9;9|", b"1;2;1;;;;;1;0;0|1,1,1,9,9|",
    [], [None], [[]], [b"a"], [b"x"] * 3, [b"x"] * 4, [b"x"] * 5, [b"x"] * 6, [1] * 10,
    [None] * 10, [b"1"] * 5, [b"1"] * 6, [b"1"] * 8, [b"1"] * 10,
    [b"1", b"9", b"id", b"", b"", [b"a"]], [b"1", b"9", b"id", b"", b"", [None] * 5],
    [b"1", b"9", b"id", b"1", [b"a"]], [b"1", b"9", b"id", b"1", []],
    [b"dead", b"1", b"1", None], [b"{}", b"3|{}", b"a;b", b"", b"1"], [b"[", b"|", b"", b"", b""],
    {}, {b"a": b"b"},
]  # fmt: skip

CONFIRM = Settlement("id", 7, Verdict.CONFIRM)

#: A call of each kind, of the store or of the timer.
CALLS = {
    "post": lambda s, t: t.post({}),
    "post, named": lambda s, t: t.post({}, id="id", if_exists="keep"),
    "post_many": lambda s, t: t.post_many([({}, 0), ({}, 1)]),
    "cancel": lambda s, t: t.cancel("id"),
    "reschedule": lambda s, t: t.reschedule("id", 5),
    "peek": lambda s, t: t.peek("id"),
    "upcoming": lambda s, t: t.upcoming(),
    "dead": lambda s, t: t.dead(),
    "revive": lambda s, t: t.revive("id"),
    "pause": lambda s, t: t.pause(),
    "resume": lambda s, t: t.resume(),
    "stats": lambda s, t: t.stats(),
    "nodes": lambda s, t: t.nodes(),
    "every": lambda s, t: t.every(1_000, {}, id="id"),
    "cron": lambda s, t: t.cron("0 9 * * *", {}, id="id"),
    "schedules": lambda s, t: t.schedules(),
    "schedule": lambda s, t: t.schedule("id"),
    "unschedule": lambda s, t: t.unschedule("id"),
    "run_now": lambda s, t: t.run_now("id"),
    "pause_schedule": lambda s, t: t.pause_schedule("id"),
    "settle": lambda s, t: s.claims.settle([CONFIRM]),
    "extend": lambda s, t: s.claims.extend([("id", 7)], 1_000),
    "renew": lambda s, t: s.claims.renew([("id", 7)], 1_000),
    "claim": lambda s, t: list(
        s.claims.start("node", ClaimRequest(1, 1, True, False, [CONFIRM]), 1_000)(
            read_late=False
        ).results
    ),
    "trim": lambda s, t: s.trim(0, -1),
    "add_times": lambda s, t: s.schedules.add_times("id"),
    "letter": lambda s, t: s.letter("id"),
    "waiting": lambda s, t: AdminStore(s).waiting(),
    "specs": lambda s, t: AdminStore(s).specs(),
    "died_after": lambda s, t: AdminStore(s).died_after("id", 5),
    "holders": lambda s, t: AdminStore(s).holders(),
    "audit": lambda s, t: AdminStore(s).audit(),
    "permissions": lambda s, t: s.server.permissions(),
    "join": lambda s, t: s.join("node", "{}"),
}  # fmt: skip


@pytest.fixture
def reply_with(monkeypatch):
    """Return a function that makes every script but ``open`` return a reply, without a server."""

    def set_reply(reply, opened=OPENED):
        def run(connection, script, arguments, until, limit):
            return opened if script.name == "open" else reply

        pending = SimpleNamespace(arrived=0, ended_us=None, reply=reply, answer=lambda **_: reply)
        monkeypatch.setattr(script_client, "run", run)
        monkeypatch.setattr(script_client, "run_with_source", run)
        monkeypatch.setattr(script_client, "PendingCall", lambda *_, **__: pending)

    return set_reply


def error_of(call, timeout=300):
    """Return the error of dtimer that a call raises, or None."""
    timer = DTimer("node", "redis://127.0.0.1:1", timeout=timeout)
    store = Store(source("redis://127.0.0.1:1", 0.1), "dt", timeout=timeout / 1000)
    try:
        result = call(store, timer)
        if isinstance(result, Iterator):
            assert len(list(itertools.islice(result, 1_000))) < 1_000
    except StoreError as e:
        return e
    finally:
        timer.leave()
        store.release()
    return None


@pytest.mark.parametrize("name", CALLS)
def test_a_call_with_an_invalid_reply_raises_only_errors_of_dtimer(reply_with, name):
    """Another error would end a thread of the node, or reach a caller who does not expect it."""
    for reply in INVALID:
        reply_with(reply)
        error_of(CALLS[name])


@pytest.mark.parametrize("name", ["post", "peek", "settle", "cron"])
def test_an_invalid_reply_to_the_opening_script_raises(reply_with, name):
    """The opening script checks the namespace. A wrong reply must not let a foreign one pass."""
    for reply in INVALID:
        reply_with(b"1;1;", opened=reply)
        assert isinstance(error_of(CALLS[name]), StoreError)


@pytest.mark.parametrize("now", [b"9" * 19, b"260000000000000000", b"-1", b"1e9"])
def test_a_server_time_outside_the_calendar_raises(reply_with, now):
    """No schedule can be computed from such a time, and users do not expect a ValueError."""
    reply_with(b"new", opened=[now, *OPENED[1:]])
    assert isinstance(error_of(CALLS["cron"]), StoreError)


@pytest.mark.parametrize("reply", [b";7;", b"1;7;", b"111;7;"])
def test_a_reply_to_a_post_has_a_letter_for_each_event(reply_with, reply):
    """The letter 0 says that an event was not stored. Without a letter it would count as stored."""
    reply_with(reply)
    items = [{"ev": {}, "id": id, "if_exists": "keep"} for id in "ab"]
    assert isinstance(error_of(lambda s, t: t.post_many(items)), OutcomeUnknown)


@pytest.mark.parametrize("name", ["post", "cancel", "settle", "unschedule", "every"])
def test_an_invalid_reply_to_a_change_raises_outcome_unknown(reply_with, name):
    """The server may have stored the post or made the change."""
    reply_with([b"nonsense"])
    error = error_of(CALLS[name])
    assert isinstance(error, OutcomeUnknown)
    assert "answered" in str(error)
    assert "nonsense" not in str(error), "a reply may have payloads in it"


@pytest.mark.parametrize("name", ["peek", "upcoming", "stats", "schedules"])
def test_an_invalid_reply_to_a_query_raises_store_error(reply_with, name):
    """A query changes nothing, so its outcome cannot be unknown."""
    reply_with(object())
    assert StoreError is type(error_of(CALLS[name]))


@pytest.mark.parametrize("reply", [b"short", b"behind:1800000000000000"])
def test_a_reply_that_asks_for_more_times_ends_at_the_deadline(reply_with, reply):
    """A server that asks again and again must not hold the caller."""
    reply_with(reply)
    name = "cancel" if reply == b"short" else "cron"
    assert isinstance(error_of(CALLS[name], timeout=50), StoreError)
