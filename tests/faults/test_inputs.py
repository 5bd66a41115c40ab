"""Faults F85 to F97: unusual payloads, ids, times and client settings."""

from __future__ import annotations

import collections
import enum
import fractions
import math
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal

import pytest
import redis
from background import together
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import eventually

from dtimer import DTimer, OptionError, PayloadError, PayloadTooLarge, State, StoreError

pytestmark = pytest.mark.chaos


class Number(float):
    """A subclass of float, as numpy's float64 is."""


class Colour(enum.IntEnum):
    """An integer with a name."""

    RED = 3


class Hours(timedelta):
    """A subclass of timedelta, as an application may have."""


class ZoneWithoutOffset(tzinfo):
    """A time zone that does not tell its offset."""

    def __repr__(self):
        return "ZoneWithoutOffset"

    def utcoffset(self, moment):
        return None


@pytest.fixture
def offline_timer(monkeypatch):
    """A timer that fails the test if it sends anything."""
    timer = DTimer("poster", "redis://127.0.0.1:1")

    def call(*_, **__):
        raise AssertionError("it was sent")

    monkeypatch.setattr(timer._store._scripts, "call", call)
    yield timer
    timer.leave()


def short(value):
    return f"{type(value).__name__} {value!r:.20}"


class TestPayloads:
    """A payload is refused before anything is sent, or arrives unchanged."""

    @pytest.mark.fault("F85")
    @pytest.mark.fault("F86")
    @pytest.mark.fault("F89")
    @pytest.mark.parametrize(
        ("value", "words"),
        [
            *[(nan, "JSON") for nan in (math.nan, math.inf, -math.inf, Number("nan"))],
            *[(b, "payload") for b in (b"", bytearray(1), 1j, {1}, object(), (x for x in ()))],
            *[(t, "payload") for t in (datetime.now(UTC), timedelta(1), print, int)],
            *[(n, "payload") for n in (Decimal(1), fractions.Fraction(1, 3), collections.deque())],
            # Python reads at most 4300 digits, so the event could never be delivered.
            pytest.param(10**4_300, "digit", id="4301 digits"),
        ],
        ids=short,
    )
    def test_a_value_that_json_lacks_is_refused_at_every_depth(self, offline_timer, value, words):
        """JSON has no NaN, but the json module would write it."""
        for payload in ({"a": value}, {"a": [[value]]}, {"a": {"b": value}}):
            with pytest.raises(PayloadError, match=words):
                offline_timer.post(payload)

    @pytest.mark.fault("F86")
    def test_a_circular_or_very_deep_payload_is_refused_with_the_place(self, offline_timer):
        """The error names the container, because a large payload is hard to search by hand."""
        circle: dict = {}
        circle["list"] = [circle]
        deep: list = []
        for _ in range(100_000):
            deep = [deep]
        for payload, words in (
            (circle, "^the payload contains itself"),
            ({"not": 1, "list": [circle["list"]]}, r"^payload\['list'\]\[0\] contains itself"),
            ({"deep": deep}, r"deeper than 100 levels, at payload\['deep'\]\[0\]\[0\].*…$"),
        ):
            with pytest.raises(PayloadError, match=words):
                offline_timer.post(payload)

    @pytest.mark.fault("F87")
    @pytest.mark.parametrize("key", [1, 1.0, True, None, (), b"1", Colour.RED], ids=repr)
    def test_a_key_that_is_not_a_string_is_refused_at_every_depth(self, offline_timer, key):
        """The json module would convert it to a string, which may be a key already."""
        for payload in ({key: 1}, {"a": {"1": 1, key: 2}}, {"a": [[{key: 1}]]}):
            with pytest.raises(PayloadError, match="keys must be strings"):
                offline_timer.post(payload)

    @pytest.mark.fault("F91")
    @pytest.mark.parametrize("size", [262_144, 10**6, 10**8])
    def test_a_payload_over_the_limit_is_refused_with_both_sizes(self, offline_timer, size):
        """The error names the size and the limit. Even 100 MB are not sent to the server."""
        with pytest.raises(PayloadTooLarge, match=f"has {size + 8} bytes .* 262144"):
            offline_timer.post({"a": "x" * size})

    @pytest.mark.fault("F91")
    def test_payloads_of_exactly_the_limit_arrive(self, watch):
        """They arrive complete, also when one claim returns several of them."""
        watch.node(max_events=5)
        text = "x" * (262_144 - len('{"n":1,"a":""}'))
        watch.wait_handled(*[watch.post(more={"a": text}) for _ in range(9)])


@pytest.mark.fault("F92")
@pytest.mark.parametrize(
    "id",
    [
        *["", "x" * 256, "ü" * 128, "x" * 10**6, "a\nb", "\0", "\x7f", "\x85", "\ud800"],
        *[b"a", 5, None, True, "beat@1800000000000000"],
    ],
    ids=short,
)
def test_each_call_refuses_an_invalid_id(offline_timer, id):
    """The error names the argument. Only a schedule may post the id of an occurrence."""
    timer = offline_timer
    if id is not None:
        with pytest.raises(OptionError, match="id"):
            timer.post({}, id=id)
    for call in (timer.cancel, timer.peek, timer.revive):
        if id != "beat@1800000000000000":
            with pytest.raises(OptionError, match="id"):
                call(id)


class TestTimes:
    """A delay or a due time is taken exactly, or is refused."""

    @pytest.mark.fault("F94")
    @pytest.mark.parametrize(
        "delay",
        [
            *[math.nan, math.inf, -math.inf, 1e300, 10**400, -(10**400), True, "5", "0x10", b"5"],
            *[Decimal(5), fractions.Fraction(5), 5j, [5], 3_155_760_000_001, timedelta.max],
        ],
        ids=short,
    )
    def test_each_call_refuses_an_invalid_delay(self, offline_timer, delay):
        """A delay is a finite number of at most a hundred years. The error names the argument."""
        for call in (
            lambda: offline_timer.post({}, delay),
            lambda: offline_timer.post_many([({}, delay)]),
            lambda: offline_timer.post_many([{"ev": {}, "delay": delay}]),
            lambda: offline_timer.post({}, expires=delay),
            lambda: offline_timer.reschedule("a", delay),
        ):
            with pytest.raises(OptionError, match=r"delay|expires"):
                call()

    @pytest.mark.fault("F95")
    @pytest.mark.parametrize(
        "at",
        [
            datetime(2030, 1, 1),  # noqa: DTZ001
            datetime(2030, 1, 1, tzinfo=ZoneWithoutOffset()),
            datetime.max.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
            datetime(2030, 1, 1).date(),  # noqa: DTZ001
            *["2030-01-01T00:00:00Z", True, math.nan],
        ],
        ids=repr,
    )
    def test_each_call_refuses_an_invalid_due_time(self, offline_timer, at):
        """A time without a zone is ambiguous, and one beyond a score's range cannot be stored."""
        with pytest.raises(OptionError, match="at"):
            offline_timer.post({}, at=at)
        with pytest.raises(OptionError, match="at"):
            offline_timer.reschedule("a", at=at)

    @pytest.mark.fault("F94")
    @pytest.mark.fault("F95")
    def test_every_other_number_and_any_past_time_is_accepted(self, watch):
        """Zero, less, and the past mean now, also a past that UTC cannot express in some zones."""
        watch.node(max_events=10)
        delays = [0, -0.0, -1, -1e9, 1, 0.0001, Number(5), Colour.RED, Hours(0), timedelta(-36_525)]
        zones = [timezone(timedelta(hours=hours)) for hours in (-14, 0, 14)]
        ids = [watch.post(delay) for delay in delays]
        ids += [watch.post(at=datetime.min.replace(tzinfo=zone)) for zone in zones]
        watch.wait_handled(*ids)


@pytest.mark.fault("F96")
class TestClients:
    """dtimer's own connections do not depend on the settings of the caller's client."""

    @pytest.mark.parametrize("protocol", [2, 3])
    @pytest.mark.parametrize("decode", [False, True], ids=["bytes", "decoding"])
    @pytest.mark.parametrize("single", [False, True], ids=["pool", "single"])
    def test_a_node_works_with_every_kind_of_client(
        self, watch, own_server, protocol, decode, single
    ):
        """Events arrive under each protocol, with and without decoding, pooled or not."""
        options = {"protocol": protocol, "decode_responses": decode}
        with redis.Redis.from_url(
            own_server.url, single_connection_client=single, **options
        ) as client:
            timer = watch.node(url=client).timer
            id = watch.post(timer=timer, more={"u": "\ud800", "raw": "\xff"})
            watch.wait_handled(id)
            eventually(lambda: timer.peek(id) is None)

    def test_calls_end_although_the_client_retries_for_ever(self, watch, own_server):
        """Calls of dtimer end at their own deadline, and the node recovers in time."""
        retry = Retry(NoBackoff(), -1)
        with redis.Redis.from_url(own_server.url, retry=retry, retry_on_timeout=True) as client:
            node = watch.node(url=client)
            with watch.fault():
                own_server.kill9()
                with pytest.raises(StoreError):
                    watch.in_time(node.timer.stats)
                own_server.start()

    def test_a_body_that_is_not_utf_8_becomes_a_dead_letter(self, watch, own_server):
        """The dead letter keeps the bytes that another program wrote, and other events arrive."""
        with redis.Redis.from_url(own_server.url, decode_responses=True) as client:
            node = watch.node(url=client, max_events=10)
            # The head of the body is valid (dtimer/store/format.py), but not its payload.
            watch.client.hset(watch.keys.body, "odd", b",3|{\xff")
            watch.client.zadd(watch.keys.due, {"odd": 1})
            watch.wait_handled(*[watch.post() for _ in range(5)])
            (letter,) = node.timer.dead()
            assert (b",3|{\xff", "corrupt") == (letter.raw, letter.reason)
            assert 1 == node.timer.purge_dead()


@pytest.mark.fault("F97")
@pytest.mark.parametrize("joined", [False, True], ids=["pending", "running"])
def test_ten_concurrent_posts_of_one_id_leave_one_whole_event(watch, joined):
    """
    The last post wins, and the parts of two posts are never mixed. If no node has joined yet,
    one event is delivered. If one has, each post is delivered at most once.
    """
    timers = [watch.caller(f"poster-{n}") for n in range(10)]
    for timer in timers:
        timer.stats()
    # With a node, each of the 50 posts may be delivered once.
    watch.excused.add("same")
    if joined:
        watch.node(concurrency=4)
    ids = []
    for _ in range(5):
        together(10, lambda n: ids.append(timers[n].post({"by": n, "again": n}, id="same")))
    assert ["same"] * 50 == ids
    if not joined:
        record = timers[0].peek("same")
        assert State.SCHEDULED is record.state
        assert record.event["by"] == record.event["again"]
        watch.node()
    watch.wait_handled("same")
    watch.assert_recovery()
    delivered = [handled for handled in watch.handled if handled.id == "same"]
    assert all(handled.payload["by"] == handled.payload["again"] for handled in delivered)
    assert {1} == {handled.attempt for handled in delivered}
    assert len(delivered) == len({handled.token for handled in delivered}) <= (50 if joined else 1)
    assert timers[0].peek("same") is None
