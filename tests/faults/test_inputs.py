"""The catalogue, F85 to F97: what people hand over, and what arrives of it."""

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
    """As numpy's float64 is."""


class Colour(enum.IntEnum):
    """A number with a name."""

    RED = 3


class Nowhere(tzinfo):
    """A zone that does not know its offset."""

    def __repr__(self):
        return "Nowhere"

    def utcoffset(self, moment):
        return None


@pytest.fixture
def nowhere(monkeypatch):
    """A timer for whom any input or output at all is a failure."""
    timer = DTimer("poster", "redis://127.0.0.1:1")

    def call(*_, **__):
        raise AssertionError("it was sent")

    monkeypatch.setattr(timer._store, "post", call)
    monkeypatch.setattr(timer._store, "_call", call)
    yield timer
    timer.leave()


class TestPayloads:
    """A payload is refused before anything is sent, or arrives as it was."""

    @pytest.mark.fault("F85")
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, Number("nan")], ids=repr)
    @pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [[v]], lambda v: {"b": v}])
    def test_no_number(self, nowhere, value, wrap):
        """NaN and the infinities are a PayloadError wherever they stand."""
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
    def test_no_json(self, nowhere, value):
        """What JSON has no word for is a PayloadError that names its type."""
        with pytest.raises(PayloadError, match="payload"):
            nowhere.post({"a": [value]})

    @pytest.mark.fault("F86")
    def test_endless(self, nowhere):
        """What holds itself, or is nested beyond reason, is a PayloadError."""
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
    def test_keys(self, nowhere, key):
        """
        A key that is no string is refused at every depth. The json module would write it as
        one, and the same key twice beside its twin.
        """
        for payload in ({key: 1}, {"a": {"1": 1, key: 2}}, {"a": [[{key: 1}]]}):
            with pytest.raises(PayloadError, match="keys must be strings"):
                nowhere.post(payload)

    @pytest.mark.fault("F91")
    @pytest.mark.parametrize("size", [262_144, 10**6, 10**8])
    def test_too_large(self, nowhere, size):
        """A payload over the limit names both sizes and is not sent, however large it is."""
        with pytest.raises(PayloadTooLarge, match=f"has {size + 8} bytes .* 262144"):
            nowhere.post({"a": "x" * size})

    @pytest.mark.fault("F91")
    def test_as_large_as_may_be(self, watch):
        """Payloads of exactly the limit arrive whole, several at a time."""
        watch.node(max_events=5)
        text = "x" * (262_144 - len('{"n":1,"a":""}'))
        watch.wait_handled(*[watch.post(more={"a": text}) for _ in range(9)])

    @pytest.mark.fault("F88")
    @pytest.mark.fault("F89")
    @pytest.mark.fault("F90")
    def test_awkward(self, watch):
        """
        Surrogates, NUL, separators, huge numbers, empty lists and maps, negative zero: the same,
        by value and by type, on the first attempt and on the second.
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
    def test_too_many_digits(self, nowhere):
        """An integer of more digits than Python would read back is refused when it is posted."""
        with pytest.raises(PayloadError, match="digit"):
            nowhere.post({"a": 10**4_300})


class TestNames:
    """Ids and namespaces are data, and never part of a script, a pattern or a key."""

    @pytest.mark.fault("F92")
    @pytest.mark.parametrize(
        "id",
        [
            *["", "x" * 256, "ü" * 128, "x" * 10**6, "a\nb", "\0", "\x7f", "\x85", "\ud800"],
            *[b"a", 5, None, True, "beat@1800000000000000"],
        ],
        ids=lambda name: repr(name)[:20],
    )
    def test_no_id(self, nowhere, id):
        """What is no id is an OptionError in each call that takes one."""
        for call in (nowhere.cancel, nowhere.peek, nowhere.revive):
            if id != "beat@1800000000000000":
                with pytest.raises(OptionError, match="id"):
                    call(id)
        if id is not None:
            with pytest.raises(OptionError, match="id"):
                nowhere.post({}, id=id)

    @pytest.mark.fault("F92")
    def test_ids(self, watch):
        """Ids of every other kind are told apart, and each names its own event all its life."""
        watch.node()
        # Wrong keys, patterns, numbers, another case, another form of the same letter.
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
    def test_no_namespace(self, ns):
        """What would break the hash tag of the keys, or be a pattern, is no namespace."""
        with pytest.raises(OptionError, match="ns must be"):
            DTimer("node", "redis://127.0.0.1:1", ns=ns)


class Hours(timedelta):
    """A duration of somebody's own."""


class TestTimes:
    """A delay or a moment is exact, or is refused."""

    @pytest.mark.fault("F94")
    @pytest.mark.parametrize(
        "delay",
        [
            *[math.nan, math.inf, -math.inf, 1e300, 10**400, -(10**400), True, "5", "0x10", b"5"],
            *[Decimal(5), fractions.Fraction(5), 5j, [5], 3_155_760_000_001, timedelta.max],
        ],
        ids=lambda delay: repr(delay)[:20],
    )
    def test_no_delay(self, nowhere, delay):
        """What is no finite delay of at most a hundred years is refused, by name, in each call."""
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
    def test_delays(self, watch):
        """Every other number is a delay; what is not positive is now, and none is early."""
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
    def test_no_moment(self, nowhere, at):
        """A moment without a zone, or beyond what a score can say, is refused by name."""
        with pytest.raises(OptionError, match="at"):
            nowhere.post({}, at=at)
        with pytest.raises(OptionError, match="at"):
            nowhere.reschedule("a", at=at)

    @pytest.mark.fault("F95")
    def test_the_first_moment_of_all(self, watch):
        """A moment long past is now, in whatever zone."""
        watch.node()
        zones = [timezone(timedelta(hours=hours)) for hours in (-14, 0, 14)]
        firsts = [datetime.min.replace(tzinfo=zone) for zone in zones]
        watch.wait_handled(*[watch.post(at=first) for first in firsts])


class TestClients:
    """Whatever the user's client is set to, ours are what we need."""

    @pytest.mark.fault("F96")
    @pytest.mark.parametrize("protocol", [2, 3])
    @pytest.mark.parametrize("decode", [False, True], ids=["bytes", "decoding"])
    @pytest.mark.parametrize("single", [False, True], ids=["pool", "single"])
    def test_settings(self, watch, own, protocol, decode, single):
        """Under every protocol, decoded or not, on a pool or on one connection, all is served."""
        options = {"protocol": protocol, "decode_responses": decode}
        with redis.Redis.from_url(own.url, single_connection_client=single, **options) as client:
            watch.node(url=client)
            id = watch.post(timer=watch.nodes[0].timer, more={"u": "\ud800", "raw": "\xff"})
            watch.wait_handled(id)
            eventually(lambda: watch.nodes[0].timer.peek(id) is None)

    @pytest.mark.fault("F96")
    def test_one_that_would_try_for_ever(self, watch, own):
        """
        A client that was told to try again without end has that for itself: our calls end at
        their deadline, and the node recovers in time.
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
    def test_bytes_that_are_no_text(self, watch, own):
        """
        A stranger's byte that is no UTF-8 in the body of an event ends as a dead letter with its
        bytes, also for a client that decodes: no reply breaks off, and nothing is lost beside it.
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
def test_one_id_posted_by_ten_at_once(watch, own, joined):
    """
    Ten posts of one id at the same moment leave one event, which is whole: the last of them. It
    is handed out once where nobody listened before, and each at most once where somebody did.
    """
    timers = [DTimer(f"poster-{n}", own.url, ns=watch.ns) for n in range(10)]
    for timer in timers:
        timer.stats()
    watch.excused.add("same")
    if joined:
        watch.node(concurrency=4)
    start = threading.Barrier(10)
    answers = []

    def post(n):
        start.wait(PATIENCE)
        answers.append(timers[n].post({"by": n, "again": n}, id="same"))

    for _ in range(5):
        crew = [threading.Thread(target=post, args=(n,)) for n in range(10)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join(PATIENCE)
    assert ["same"] * 50 == answers
    if not joined:
        record = timers[0].peek("same")
        assert State.SCHEDULED is record.state
        assert record.event["by"] == record.event["again"]
        watch.node()
    watch.wait_handled("same")
    watch.recovered()
    handed = [handled for handled in watch.handled if handled.id == "same"]
    assert all(one.payload["by"] == one.payload["again"] for one in handed)
    assert {1} == {one.attempt for one in handed}
    assert len(handed) == len({one.token for one in handed}) <= (50 if joined else 1)
    assert timers[0].peek("same") is None
    for timer in timers:
        timer.leave()
