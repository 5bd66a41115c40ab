"""
Uses of dtimer that type checkers must accept and understand.

This file is checked in the strict mode of each type checker, and never run.
"""

import json
import queue as stdlib_queue
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Unpack, assert_type

import fakeredis
import redis
import valkey
from redis.client import Pipeline
from redis.cluster import ClusterPipeline, RedisCluster

from dtimer import (
    Cancelled,
    Cleared,
    DeadLetter,
    Declared,
    DTimer,
    Duration,
    Emission,
    Event,
    EventId,
    HandlerError,
    IfExists,
    Job,
    Json,
    PostItem,
    Reason,
    Record,
    Route,
    Router,
    RunAt,
    RunAtOptions,
    ScheduleBlock,
    Signed,
    SkipRetry,
    State,
    TimerOptions,
    Zlib,
)
from dtimer.contrib.aio import AsyncioBridge
from dtimer.contrib.codecs import Encrypted

# Clients and options
for client in (redis.Redis(), redis.Redis(decode_responses=True), valkey.Valkey(), None):
    DTimer("node-1", client)
DTimer("node-1", fakeredis.FakeRedis(), RedisCluster())
DTimer("node-1", "redis://localhost", lease=timedelta(seconds=5), max_run=None, now=None)
DTimer("node-1", ns="tea", max_events=10, backoff=lambda attempt: 100 * attempt)
RunAt("reminders", redis={"host": "localhost", "port": 6379}, lease=5_000)
RunAt("reminders", redis=redis.Redis(), interval=timedelta(seconds=1), concurrency=4)


class Worker(DTimer):
    """A class of the user's own."""

    def __init__(self, name: str, **options: Unpack[TimerOptions]) -> None:
        super().__init__(name, **options)


def stream(name: str, **options: Unpack[RunAtOptions]) -> RunAt:
    """Pass the options on."""
    return RunAt(name, **options)


given: TimerOptions = {"ns": "tea", "lease": 5_000}
timer = Worker("node-1", **given)
queue = stream("reminders", max_retries=0)


# Posting
def post(delay: Duration, policy: IfExists) -> EventId:
    """Pass the types of arguments on."""
    return timer.post({"tea": "green"}, delay, id="tea", if_exists=policy)


assert_type(timer.post({"tea": ["green", {"sugar": 1}]}, 200).stored, bool | None)
timer.post(json.loads("{}"), at=datetime.now(UTC), expires=timedelta(hours=1), max_retries=0)


def post_in(pipe: Pipeline, cluster_pipe: ClusterPipeline) -> None:
    """Add a post to the pipelines of redis-py."""
    timer.post({"tea": "green"}, pipe=pipe)
    timer.post({"tea": "green"}, pipe=cluster_pipe)


timer.post_many([({"tea": "green"}, 5), {"ev": {"tea": "black"}, "id": "tea", "at": 0}])
items: list[PostItem] = [{"ev": {"n": n}, "delay": timedelta(seconds=n)} for n in range(3)]
timer.post_many(items)
timer.post_many(({"n": n}, 10 * n) for n in range(1_000))


# Listeners
@timer.on("event")
def handle(events: list[Event]) -> None:
    """Take a batch."""
    for event in events:
        assert_type(event.id, str)
        assert_type(event.due_at, datetime)
        assert_type(event.nominal_at, datetime | None)
        assert_type(event.confirm(), bool)
        assert_type(event.snooze(timedelta(minutes=1)), bool)
        assert_type(event.bury("no such tea"), bool)
        if event.cancelled:
            raise SkipRetry("cancelled", event)


handle([])


@timer.middleware
@contextmanager
def transaction(emission: Emission) -> Generator[None]:
    """Surround each call."""
    print(emission.name, [event.id for event in emission.events], emission.kind)
    yield


# asyncio
bridge = AsyncioBridge(timer, calls=2, drain=timedelta(seconds=5))


@timer.on("event")
@bridge.handler
async def handle_on_the_loop(events: list[Event]) -> None:
    """Take a batch, on the event loop."""
    for event in events:
        assert_type(await bridge.call(event.confirm), bool)


async def post_from_the_loop() -> EventId:
    """Post without blocking the event loop."""
    return await bridge.call(timer.post, {"tea": "green"}, 200, id="tea")


def serve() -> None:
    """Join in the background, or run in the foreground."""
    timer.join(wait=False)
    timer.run(drain=timedelta(seconds=5))


# Routers
router = Router("do", unknown_for=timedelta(hours=1))
timer.on("event", router)


@router.route("tea", max_retries=8, backoff=lambda attempt, error: 100 * attempt, expires=60_000)
def brew(event: Event) -> str:
    """Take one event."""
    return event.id


@router.route("milk", batch=True, backoff=timedelta(seconds=1))
def pour(events: list[Event]) -> int:
    """Take a list."""
    return len(events)


assert_type(brew, Route[Event, str])
assert_type(pour, Route[list[Event], int])
assert_type(pour([]), int)
assert_type(brew.post(timer, {"sort": "green"}, 60_000, id="x", if_exists="keep"), EventId)
assert_type(brew.every(timer, 60_000, {}, id="tea", misfire="skip", count=None), Declared)
assert_type(brew.cron(timer, "@daily", {}, id="tea", tz="UTC", overlap="allow"), Declared)
assert_type(router.kinds, frozenset[str])


@timer.once("dead")
@timer.on("expired")
def bury(letter: DeadLetter) -> bool:
    """Return something, which is ignored."""
    assert_type(letter.died_at, datetime)
    return letter.reason == "failed" or letter.reason is Reason.EXPIRED


@timer.on("error")
def fail(error: Exception) -> None:
    """Take an error apart."""
    if isinstance(error, HandlerError) and error.event is not None:
        assert_type(error.event, Event)


lost: list[Event] = []
timer.on("lease_lost", lost.append)
timer.on("retry", lambda event: print(event.attempt))
timer.once("ready", lambda: None)
timer.listens_to("connected")(lambda: None)
timer.add_listener("disconnected", fail)
timer.remove_listener("error", fail)

# Results
assert_type(timer.every(60_000, {"tea": "green"}, id="tea", misfire="skip"), Declared)
assert_type(timer.cron("@daily", {}, id="tea", tz="Europe/Berlin", overlap="allow"), Declared)
with timer.declare_schedules(owner="tea", version="1.2") as block:
    assert_type(timer.every(60_000, {}, id="tea", grace=1_000, expires=5_000), Declared)
assert_type(block, ScheduleBlock)
assert_type(block.outcomes, dict[str, Declared])
for record in timer.upcoming(schedule="tea"):
    assert_type(record, Record)
if timer.every(60_000, {}, id="tea") == "same":
    print("as before")
if timer.cancel("tea") is Cancelled.CANCELLED or timer.cancel("tea") == "not_found":
    print("never starts")
counts = timer.cancel_many(record.id for record in timer.upcoming())
assert_type(counts[Cancelled.CANCELLED], int)
assert_type(timer.update("tea", {"tea": "black"}), bool)
assert_type(timer.revive_dead("failed") + timer.revive_dead(Reason.EXPIRED), int)
assert_type(timer.drop("tea"), bool)
assert_type(timer.clear(), Cleared)
timer.post({}, 5_000, id=timer.new_id(), max_wait=60_000)
for record in timer.upcoming(limit=5):
    assert_type(record, Record)
    assert_type(record.due_at, datetime)
    print(record.state == "scheduled", record.state is State.DEAD)
for schedule in timer.schedules():
    assert_type(schedule.last_at, datetime | None)
    print(schedule.misfire == "skip", schedule.id)

# Codecs
DTimer("node", codec=Json() | Zlib(100) | Signed(["0123456789abcdef"], "tea", stage="seal"))
DTimer("node", codec=Zlib() | Encrypted(b"key"))


class Moments:
    """A codec of a user."""

    def encode(self, payload: dict[str, object], /) -> bytes:
        """Write a payload."""
        return json.dumps(payload, default=str).encode()

    def decode(self, raw: bytes, /) -> dict[str, object]:
        """Read a payload."""
        return dict(json.loads(raw))


DTimer("node", codec=Moments())
DTimer("node", codec=Moments() | Signed("0123456789abcdef"))

# Streams
keys: stdlib_queue.Queue[str] = stdlib_queue.Queue()
queue.on("data", keys.put)
queue.once("end", lambda: None)
queue.write("tea", datetime.now(UTC))
queue.write({"key": "tea", "runAt": 0})
jobs: list[Job] = [{"key": "tea"}]
assert_type(queue.pipe(RunAt("other")), RunAt)
queue.pipe(lambda key: print(key.upper()))
queue.pipe(keys.put)
queue.pipe(sys.stdout)
assert_type(list(queue), list[str])
