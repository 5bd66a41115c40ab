"""Posting through the public API: accepted arguments, and errors raised before any I/O."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from dtimer import DTimer, EventId, OptionError, State
from dtimer.store.scripts import load
from dtimer.testing import Clock


@pytest.fixture
def clock():
    return Clock(1_800_000_000_000)


@pytest.fixture
def timer(server, namespace, clock):
    timer = DTimer("poster", server.url, ns=namespace, now=clock)
    yield timer
    timer.leave()


@pytest.fixture
def calls(timer, monkeypatch):
    """A function: a block that counts the timer's script calls by verb."""

    @contextlib.contextmanager
    def calls():
        counts = Counter()
        run = timer._store._scripts.call

        def call(verb, *arguments, **options):
            counts[verb] += 1
            return run(verb, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(timer._store._scripts, "call", call)
            yield counts

    return calls


@pytest.fixture
def pipe(client):
    with client.pipeline(transaction=True) as pipe:
        yield pipe


@pytest.fixture
def unreachable():
    """A timer whose address has no server: any I/O would take long and fail."""
    return DTimer("poster", "redis://127.0.0.1:1", timeout=30_000)


@pytest.mark.fault("F94")
@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.post({}, max_retries=-1),
        lambda t: t.post({}, expires=0),
        lambda t: t.post({}, expires=datetime(2030, 1, 1)),  # noqa: DTZ001 - naive is the point
        lambda t: t.post({}, pipe=object()),
        lambda t: t.reschedule("a", 1, at=1),
        lambda t: t.revive(None),
        lambda t: t.upcoming(offset="1"),
        lambda t: t.upcoming(duration=math.nan),
        lambda t: t.upcoming(limit=-1),
        lambda t: t.dead(limit=1.5),
        lambda t: t.leave("soon"),
        lambda t: t.on(5, print),
        lambda t: t.post_many([5]),
        lambda t: t.post_many([({}, 1, 2)]),
        lambda t: t.post_many([{"delay": 1}]),
        lambda t: t.post_many([{"ev": {}, "dealy": 1}]),
    ],
)
def test_bad_arguments_are_refused_before_any_io(unreachable, call):
    """A bad argument of any method raises an OptionError at once, without a server."""
    with pytest.raises(OptionError):
        call(unreachable)


def test_a_coroutine_function_is_refused_as_a_handler(unreachable):
    """An async function is refused, because it would never be awaited."""

    async def handler(events):
        pass

    with pytest.raises(OptionError, match="plain function"):
        unreachable.on("event", handler)


@pytest.mark.fault("F56")
def test_delays_and_times_become_due_times(timer, clock):
    """A delay counts from now, a time is taken as given, and a time in the past means now."""
    now = clock()
    moment = datetime.fromtimestamp(now / 1000 + 60, UTC)
    for due, args in {
        now + 1_500: {"delay": 1_500},
        now + 1_500.5: {"delay": timedelta(milliseconds=1_500.5)},
        now + 60_000: {"at": moment},
        now + 7_000: {"at": now + 7_000},
        now: {"delay": -5},
    }.items():
        assert due == timer.peek(timer.post({}, **args)).due
    assert now == timer.peek(timer.post({}, at=5)).due


def test_generated_ids_are_distinct_and_ascend(timer):
    """Generated ids are distinct, and ascend in the order of the posts."""
    ids = [timer.post({}, 60_000) for _ in range(100)]
    assert sorted(set(ids)) == ids


def test_a_generated_id_that_is_taken_is_replaced(timer, monkeypatch):
    """If two generators produce the same id, neither event is lost."""
    first = timer.post({"n": 1}, 60_000)
    ids = iter([first, first, "another"])
    monkeypatch.setattr(timer._poster, "new_id", lambda: next(ids))
    assert "another" == timer.post({"n": 2}, 60_000)
    assert {"n": 1} == timer.peek(first).event


@pytest.mark.parametrize(
    ("policy", "gives_up"),
    [("replace", True), ("latest", True), ("earliest", True), ("keep", False), ("error", False)],
)
def test_a_post_gives_up_a_claimed_event_only_if_it_replaces_it(
    timer, monkeypatch, policy, gives_up
):
    """A post that does not replace an event does not make this process release it."""
    notes = []
    monkeypatch.setattr(
        timer._poster, "_note_superseded", lambda ids, *, posted: notes.append(posted)
    )
    timer.post({}, 60_000, id="tea", if_exists=policy)
    assert ([False, True] if gives_up else []) == notes


def test_stored_says_whether_the_post_was_stored(timer):
    """A post that keeps an existing event is not delivered, and only `.stored` shows it."""
    first = timer.post({"n": 1}, 60_000, id="tea", if_exists="keep")
    second = timer.post({"n": 2}, 60_000, id="tea", if_exists="keep")
    assert ("tea", "tea") == (first, second)
    assert (True, False) == (first.stored, second.stored)
    assert timer.post({}, 60_000).stored
    assert timer.post({}, 60_000, id="tea").stored


@pytest.mark.parametrize(("policy", "stored"), [("earliest", False), ("latest", True)])
def test_stored_says_whether_the_due_time_won(timer, policy, stored):
    """A post whose due time lost to that of a pending event is not stored."""
    timer.post({"n": 1}, 60_000, id="tea")
    assert stored is timer.post({"n": 2}, 90_000, id="tea", if_exists=policy).stored


def test_post_many_says_which_were_stored(timer):
    """`post_many` returns `.stored` for each event, in the order of the items."""
    timer.post({}, 60_000, id="b")
    keep = {"ev": {}, "delay": 60_000, "if_exists": "keep"}
    ids = timer.post_many([keep | {"id": id} for id in "abc"] + [({}, 60_000)])
    assert [True, False, True, True] == [id.stored for id in ids]
    assert {EventId} == set(map(type, ids))


def test_stored_is_unknown_in_a_pipeline(timer, pipe):
    """Until the caller executes the pipeline the result is unknown, so `.stored` is None."""
    assert timer.post({}, 60_000, id="tea", if_exists="keep", pipe=pipe).stored is None


def test_post_many_takes_few_round_trips(timer, client):
    """Thousands of events take a few round trips, and their ids are returned in order."""
    before = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    ids = timer.post_many(({"i": i}, 60_000 + i) for i in range(3_000))
    after = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert 3_000 == len(set(ids))
    assert [r.id for r in timer.upcoming()] == ids
    assert after - before <= 12


def test_post_many_reads_its_items_lazily(timer):
    """An endless iterable is posted in chunks and never held as a whole."""

    def items():
        yield from (({"i": i}, 60_000) for i in range(2_000))
        assert timer.stats().scheduled >= 1_000
        raise KeyError("the source is broken")

    with pytest.raises(KeyError) as caught:
        timer.post_many(items())
    assert any("had posted" in note for note in caught.value.__notes__)
    assert timer.stats().scheduled <= 2_000


def test_post_many_groups_items_with_and_without_ids(timer, calls):
    """A mix takes one call for each policy, and the ids are in the order of the items."""
    timer.post({}, 60_000)
    items = [
        ({}, 60_000) if i % 2 else {"ev": {"i": i}, "delay": 60_000, "id": f"e{i}"}
        for i in range(600)
    ]
    with calls() as counts:
        ids = timer.post_many(items)
    assert {"post": 1, "post_new": 1} == counts
    assert [i % 2 == 0 for i in range(600)] == [id.startswith("e") for id in ids]
    assert [f"e{i}" for i in range(0, 600, 2)] == ids[::2]
    assert ids[1::2] == sorted(set(ids[1::2]))
    assert all(timer.peek(id) for id in ids)


def test_post_many_makes_one_call_for_each_policy(timer, calls):
    """Each policy takes one call, and each id says whether its item was stored."""
    for id in "ab":
        timer.post({}, 60_000, id=id)
    policies = {"a": "keep", "b": "latest", "c": "keep", "d": "earliest", "e": "keep"}
    items = [
        {"ev": {}, "delay": 90_000, "id": id, "if_exists": policy}
        for id, policy in policies.items()
    ]
    with calls() as counts:
        ids = timer.post_many(items)
    assert {"post": 3} == counts
    assert list(policies) == ids
    assert [False, True, True, True, True] == [id.stored for id in ids]


def test_post_many_keeps_the_order_of_one_id_with_several_policies(timer):
    """Items with one id are posted in order, even if other policies lie between them."""
    ids = timer.post_many(
        [
            {"ev": {"n": 1}, "id": "tea", "delay": 100},
            {"ev": {"n": 2}, "id": "other", "delay": 100, "if_exists": "keep"},
            {"ev": {"n": 3}, "id": "tea", "delay": 100, "if_exists": "keep"},
            {"ev": {"n": 4}, "id": "other", "delay": 100},
        ]
    )
    assert [True, True, False, True] == [id.stored for id in ids]
    assert {"n": 1} == timer.peek("tea").event
    assert {"n": 4} == timer.peek("other").event


def test_post_many_posts_a_rare_policy_without_delay(timer):
    """An item with a rare policy is posted with the other items and does not wait for the end."""

    def items():
        yield {"ev": {}, "delay": 60_000, "id": "rare"}
        yield from [({}, 60_000)] * 2_000
        assert timer.peek("rare")
        raise KeyError("the source is broken")

    with pytest.raises(KeyError):
        timer.post_many(items())


@pytest.mark.parametrize("transaction", [True, False], ids=["multi", "pipeline"])
def test_a_pipeline_carries_a_script_once(timer, client, transaction):
    """
    The first post of each kind sends the script's text, so that the server need not know it. Later
    posts name it only, which saves 7 kB each. The same applies when the pipeline is used again.
    """
    with client.pipeline(transaction=transaction) as pipe:
        for n in range(2):
            client.script_flush()
            for i in range(3):
                timer.post({}, 60_000, id=f"{n}-{i}", pipe=pipe)
                timer.post({}, 60_000, pipe=pipe)
            verbs = [words[0] for words, _ in pipe.command_stack]
            assert ["EVAL"] * 2 + ["EVALSHA"] * 4 == verbs
            assert [b"1"] * 6 == [reply[:1] for reply in pipe.execute()]
    assert 12 == timer.stats().scheduled


def test_a_watching_pipeline_carries_the_script_when_needed(timer, client):
    """After WATCH a post is executed at once, so the post after MULTI must send the text."""
    with client.pipeline() as pipe:
        pipe.watch("nothing")
        timer.post({}, 60_000, id="at once", pipe=pipe)
        pipe.multi()
        client.script_flush()
        timer.post({}, 60_000, id="together", pipe=pipe)
        pipe.execute()
    assert timer.peek("at once")
    assert timer.peek("together")


@pytest.mark.parametrize("transaction", [True, False], ids=["multi", "pipeline"])
def test_a_post_in_a_pipeline_is_stored_when_it_is_executed(timer, client, namespace, transaction):
    """A post in the caller's pipeline is stored when the pipeline is executed, and not before."""
    with client.pipeline(transaction=transaction) as pipe:
        pipe.set(f"dtimer:{{{namespace}}}:users-own", "1")
        id = timer.post({"n": 1}, 60_000, pipe=pipe)
        assert timer.peek(id) is None
        pipe.execute()
    assert {"n": 1} == timer.peek(id).event


def test_the_pipeline_replies_say_what_each_post_did(timer, pipe):
    """A post is stored, kept, or refused because its id is pending. A refusal is not an error."""
    timer.post({"n": 1}, 60_000, id="tea", pipe=pipe)
    timer.post({"n": 2}, 60_000, id="tea", if_exists="keep", pipe=pipe)
    timer.post({"n": 3}, 60_000, id="tea", if_exists="error", pipe=pipe)
    timer.post({"n": 4}, 60_000, pipe=pipe)
    assert [b"1", b"0", b"x", b"1"] == [reply[:1] for reply in pipe.execute()]
    assert {"n": 1} == timer.peek("tea").event


def test_a_script_flush_does_not_break_a_transaction(timer, client, pipe):
    """A transaction works even if the server has forgotten all scripts."""
    load("post")
    load("post_new")
    client.script_flush()
    timer.post({}, 60_000, id="tea", pipe=pipe)
    id = timer.post({}, 60_000, pipe=pipe)
    pipe.execute()
    assert State.SCHEDULED is timer.peek(id).state
    assert State.SCHEDULED is timer.peek("tea").state


def test_upcoming_is_limited_by_offset_duration_and_limit(timer):
    """Offset, duration and limit select the listed events."""
    for ms in (100, 200, 300, 400):
        timer.post({}, ms, id=str(ms))
    assert ["100", "200", "300", "400"] == [r.id for r in timer.upcoming()]
    assert ["200", "300"] == [r.id for r in timer.upcoming(150, 200)]
    assert ["300"] == [r.id for r in timer.upcoming(timedelta(milliseconds=300), limit=1)]
    assert ["100"] == [r.id for r in timer.upcoming(duration=100)]
