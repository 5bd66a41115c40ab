"""Faults F85 to F97: unusual payloads, ids, namespaces, times and client settings."""

from __future__ import annotations

import collections
import enum
import fractions
import math
import threading
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import PATIENCE, eventually

from dtimer import DTimer, OptionError, PayloadError, PayloadTooLarge, State, StoreError

pytestmark = pytest.mark.chaos


class Number(float):
    """A subclass of float, as numpy's float64 is."""


class Colour(enum.IntEnum):
    """An integer with a name."""

    RED = 3


class Nowhere(tzinfo):
    """A time zone without an offset."""

    def __repr__(self):
        return "Nowhere"

    def utcoffset(self, moment):
        return None


@pytest.fixture
def nowhere(monkeypatch):
    """A timer that fails the test if it sends anything."""
    timer = DTimer("poster", "redis://127.0.0.1:1")

    def call(*_, **__):
        raise AssertionError("it was sent")

    monkeypatch.setattr(timer._store, "post", call)
    monkeypatch.setattr(timer._store, "_call", call)
    yield timer
    timer.leave()


class TestPayloads:
    """A payload is rejected before anything is sent, or arrives unchanged."""

    @pytest.mark.fault("F85")
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, Number("nan")], ids=repr)
    @pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [[v]], lambda v: {"b": v}])
    def test_nan_and_infinity_are_rejected_at_every_depth(self, nowhere, value, wrap):
        """JSON has no NaN and no infinity, but the json module would write them."""
        with pytest.raises(PayloadError, match="JSON"):
            nowhere.post({"a": wrap(value)})

    @pytest.mark.fault("F86")
    @pytest.mark.parametrize(
        "value",
        [
            *[b"", bytearray(1), datetime.now(UTC), timedelta(1), Decimal(1), 1j, {1}, object()],
            *[fractions.Fraction(1, 3), collections.deque(), (x for x in ()), print, int],
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_type_that_json_lacks_is_rejected_by_name(self, nowhere, value):
        """The caller gets a PayloadError, not a payload of another type."""
        with pytest.raises(PayloadError, match="payload"):
            nowhere.post({"a": [value]})

    @pytest.mark.fault("F86")
    def test_circular_and_deep_payloads_are_rejected(self, nowhere):
        """A payload that contains itself, or is nested too deep, raises a PayloadError."""
        mine: dict = {}
        mine["list"] = [mine]
        deep: list = []
        for _ in range(100_000):
            deep = [deep]
        for payload, words in (
            (mine, "^the payload contains itself"),
            ({"not": 1, "list": [mine["list"]]}, r"^payload\['list'\]\[0\] contains itself"),
            ({"deep": deep}, r"deeper than 100 levels, at payload\['deep'\]\[0\]\[0\].*…$"),
        ):
            with pytest.raises(PayloadError, match=words):
                nowhere.post(payload)

    @pytest.mark.fault("F87")
    @pytest.mark.parametrize("key", [1, 1.0, True, None, (), b"1", Colour.RED], ids=repr)
    def test_a_key_that_is_not_a_string_is_rejected_at_every_depth(self, nowhere, key):
        """
        The json module would convert such a key to a string. If that string is a key already,
        the JSON would contain it twice.
        """
        for payload in ({key: 1}, {"a": {"1": 1, key: 2}}, {"a": [[{key: 1}]]}):
            with pytest.raises(PayloadError, match="keys must be strings"):
                nowhere.post(payload)

    @pytest.mark.fault("F91")
    @pytest.mark.parametrize("size", [262_144, 10**6, 10**8])
    def test_a_payload_over_the_limit_is_rejected_with_both_sizes(self, nowhere, size):
        """The error names the size and the limit. Even 100 MB are not sent to the server."""
        with pytest.raises(PayloadTooLarge, match=f"has {size + 8} bytes .* 262144"):
            nowhere.post({"a": "x" * size})

    @pytest.mark.fault("F91")
    def test_payloads_of_exactly_the_limit_arrive(self, watch):
        """They arrive complete, also when one claim returns several of them."""
        watch.node(max_events=5)
        text = "x" * (262_144 - len('{"n":1,"a":""}'))
        watch.wait_handled(*[watch.post(more={"a": text}) for _ in range(9)])

    @pytest.mark.fault("F88")
    @pytest.mark.fault("F89")
    @pytest.mark.fault("F90")
    def test_unusual_values_arrive_unchanged_in_each_attempt(self, watch):
        """
        Surrogates, NUL, separators, huge numbers, empty lists and maps, and negative zero keep
        their value and type, in the first attempt and in the second.
        """
        seen = []

        def handler(ev):
            seen.append(dict(ev))
            if ev.attempt == 1:
                raise RuntimeError("again")

        watch.node(handler=handler)
        awkward = {
            "text": "\ud800\0\u2028\ufeff🙂\x7f|,;:{}",
            "\ud800": {"": [[], {}, [{}]]},
            "big": [2**53 + 1, -(2**63) - 1, 10**4_299],
            "floats": [-0.0, 1e22, 5e-324, 0.1],
            "kin": [True, 1, 1.0, None],
        }
        id = watch.post(more=awkward)
        watch.wait_handled(id)
        assert [repr(watch.posted[id])] * 2 == list(map(repr, seen))

    @pytest.mark.fault("F89")
    def test_an_integer_that_python_could_not_read_back_is_rejected(self, nowhere):
        """Python reads at most 4300 digits, so the event could never be delivered."""
        with pytest.raises(PayloadError, match="digit"):
            nowhere.post({"a": 10**4_300})


class TestNames:
    """Ids and namespaces are treated as data, so no character in them has a special meaning."""

    @pytest.mark.fault("F92")
    @pytest.mark.parametrize(
        "id",
        [
            *["", "x" * 256, "ü" * 128, "x" * 10**6, "a\nb", "\0", "\x7f", "\x85", "\ud800"],
            *[b"a", 5, None, True, "beat@1800000000000000"],
        ],
        ids=lambda name: repr(name)[:20],
    )
    def test_an_invalid_id_is_rejected_by_each_call(self, nowhere, id):
        """Each call that takes an id checks it, and raises an OptionError that names it."""
        for call in (nowhere.cancel, nowhere.peek, nowhere.revive):
            if id != "beat@1800000000000000":
                with pytest.raises(OptionError, match="id"):
                    call(id)
        if id is not None:
            with pytest.raises(OptionError, match="id"):
                nowhere.post({}, id=id)

    @pytest.mark.fault("F92")
    def test_ids_with_special_characters_name_different_events(self, watch):
        """Similar ids are not confused: each names its own event from post to delivery."""
        watch.node()
        # Patterns, numbers, another case, and another Unicode form of the same letter.
        names = ["*", "{}", "a:b", "%s", "0", "-1", "nan", "+inf", "(1", "a", "A", "a ", " a"]
        names += [
            "\u00e9",
            "e\u0301",
            "\u202e",
            "🙂",
            "x" * 255,
            "ü" * 127,
            "'; return 1 --",
            "KEYS[1]",
        ]
        poster = watch._poster
        for n, name in enumerate(names):
            poster.post({"of": n}, 3_600_000, id=name)
        assert [{"of": n} for n in range(len(names))] == [poster.peek(name).event for name in names]
        assert set(names) == {record.id for record in poster.upcoming()}
        for name in names[::2]:
            assert "cancelled" == poster.cancel(name).value
        watch.excused |= set(names)
        for name in names[1::2]:
            assert poster.reschedule(name, 0)
        watch.wait_handled(*names[1::2])
        assert len(names) // 2 == len(watch.handled)

    @pytest.mark.fault("F93")
    @pytest.mark.parametrize(
        "ns", ["", "}", "a}b", "{a", "*", "a b", "a\n", "x" * 65, "ü", b"a", None]
    )
    def test_an_invalid_namespace_is_rejected(self, ns):
        """A brace would break the hash tag of the keys, and a star would be a pattern."""
        with pytest.raises(OptionError, match="ns must be"):
            DTimer("node", "redis://127.0.0.1:1", ns=ns)


class Hours(timedelta):
    """A subclass of timedelta, as an application may have."""


class TestTimes:
    """A delay or a due time is taken exactly, or is rejected."""

    @pytest.mark.fault("F94")
    @pytest.mark.parametrize(
        "delay",
        [
            *[math.nan, math.inf, -math.inf, 1e300, 10**400, -(10**400), True, "5", "0x10", b"5"],
            *[Decimal(5), fractions.Fraction(5), 5j, [5], 3_155_760_000_001, timedelta.max],
        ],
        ids=lambda delay: repr(delay)[:20],
    )
    def test_an_invalid_delay_is_rejected_by_name(self, nowhere, delay):
        """A delay must be a finite number of at most a hundred years. Each call checks it."""
        for call in (
            lambda: nowhere.post({}, delay),
            lambda: nowhere.post_many([({}, delay)]),
            lambda: nowhere.post_many([{"ev": {}, "delay": delay}]),
            lambda: nowhere.post({}, expires=delay),
            lambda: nowhere.reschedule("a", delay),
        ):
            with pytest.raises(OptionError, match=r"delay|expires"):
                call()

    @pytest.mark.fault("F94")
    def test_every_other_number_is_a_valid_delay(self, watch):
        """Zero or less means now. No event is delivered early."""
        watch.node(max_events=10)
        delays = [0, -0.0, -1, -1e9, 1, 0.0001, Number(5), Colour.RED, Hours(0), timedelta(-36_525)]
        watch.wait_handled(*[watch.post(delay) for delay in delays])

    @pytest.mark.fault("F95")
    @pytest.mark.parametrize(
        "at",
        [
            datetime(2030, 1, 1),  # noqa: DTZ001
            datetime(2030, 1, 1, tzinfo=Nowhere()),
            datetime.max.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
            datetime(2030, 1, 1).date(),  # noqa: DTZ001
            "2030-01-01T00:00:00Z",
            True,
            math.nan,
        ],
        ids=repr,
    )
    def test_an_invalid_due_time_is_rejected_by_name(self, nowhere, at):
        """A time without a zone is ambiguous, and one beyond a score's range cannot be stored."""
        with pytest.raises(OptionError, match="at"):
            nowhere.post({}, at=at)
        with pytest.raises(OptionError, match="at"):
            nowhere.reschedule("a", at=at)

    @pytest.mark.fault("F95")
    def test_a_time_in_the_distant_past_means_now(self, watch):
        """The earliest datetime works in every zone, although UTC cannot express it in some."""
        watch.node()
        zones = [timezone(timedelta(hours=hours)) for hours in (-14, 0, 14)]
        firsts = [datetime.min.replace(tzinfo=zone) for zone in zones]
        watch.wait_handled(*[watch.post(at=first) for first in firsts])


class TestClients:
    """dtimer's own connections do not depend on the settings of the caller's client."""

    @pytest.mark.fault("F96")
    @pytest.mark.parametrize("protocol", [2, 3])
    @pytest.mark.parametrize("decode", [False, True], ids=["bytes", "decoding"])
    @pytest.mark.parametrize("single", [False, True], ids=["pool", "single"])
    def test_a_node_works_with_every_kind_of_client(self, watch, own, protocol, decode, single):
        """Events arrive under each protocol, with and without decoding, pooled or not."""
        options = {"protocol": protocol, "decode_responses": decode}
        with redis.Redis.from_url(own.url, single_connection_client=single, **options) as client:
            watch.node(url=client)
            id = watch.post(timer=watch.nodes[0].timer, more={"u": "\ud800", "raw": "\xff"})
            watch.wait_handled(id)
            eventually(lambda: watch.nodes[0].timer.peek(id) is None)

    @pytest.mark.fault("F96")
    def test_calls_end_although_the_client_retries_for_ever(self, watch, own):
        """
        The client's own retry setting is not used. Calls of dtimer end at their deadline, and
        the node recovers in time.
        """
        retry = Retry(NoBackoff(), -1)
        with redis.Redis.from_url(own.url, retry=retry, retry_on_timeout=True) as client:
            node = watch.node(url=client)
            with watch.fault():
                own.kill9()
                with pytest.raises(StoreError):
                    watch.in_time(node.timer.stats)
                own.start()

    @pytest.mark.fault("F96")
    def test_a_body_that_is_not_utf_8_becomes_a_dead_letter(self, watch, own):
        """
        Another program may write bytes that are not UTF-8. The dead letter keeps the bytes, also
        with a client that decodes replies. The other events of the claim arrive.
        """
        with redis.Redis.from_url(own.url, decode_responses=True) as client:
            node = watch.node(url=client, max_events=10)
            watch.client.hset(watch.keys.body, "odd", b",3|{\xff")
            watch.client.zadd(watch.keys.due, {"odd": 1})
            watch.wait_handled(*[watch.post() for _ in range(5)])
            (letter,) = node.timer.dead()
            assert (b",3|{\xff", "corrupt") == (letter.raw, letter.reason)
            assert 1 == node.timer.purge_dead()


@pytest.mark.fault("F97")
@pytest.mark.parametrize("joined", [False, True], ids=["pending", "running"])
def test_ten_concurrent_posts_of_one_id_leave_one_whole_event(watch, own, joined):
    """
    The last post wins, and the parts of two posts are never mixed. If no node has joined yet,
    one event is delivered. If one has, each post is delivered at most once.
    """
    timers = [DTimer(f"poster-{n}", own.url, ns=watch.ns) for n in range(10)]
    for timer in timers:
        timer.stats()
    watch.excused.add("same")
    if joined:
        watch.node(concurrency=4)
    start = threading.Barrier(10)
    ids = []

    def post(n):
        start.wait(PATIENCE)
        ids.append(timers[n].post({"by": n, "again": n}, id="same"))

    for _ in range(5):
        threads = [threading.Thread(target=post, args=(n,)) for n in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
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
    for timer in timers:
        timer.leave()
