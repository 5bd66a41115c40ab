"""The model: what is accepted, what is refused and with which words."""

from __future__ import annotations

import copy
import json
import math
import pickle
import threading
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtimer.errors import OptionError, PayloadError, PayloadTooLarge
from dtimer.model.event import Cancelled
from dtimer.model.moments import duration_us, moment_us
from dtimer.model.names import EventId, Mint, check_id, check_namespace
from dtimer.model.options import DEFAULTS, validate
from dtimer.model.payload import decode, encode
from dtimer.model.retry import exponential, wait_us

LIMIT = 256 * 1024

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=20),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text(st.characters(), max_size=10), children, max_size=4)
    ),
    max_leaves=12,
)


class TestPayload:
    """What may be a payload, and that it comes back equal."""

    @pytest.mark.fault("F88")
    @given(st.dictionaries(st.text(st.characters(), max_size=10), json_values, max_size=4))
    def test_comes_back_equal(self, payload):
        """Whatever JSON can say comes back equal, type by type, lone surrogates too."""
        back = decode(encode(payload, 10**9).encode())
        assert payload == back
        assert repr(payload) == repr(back)

    @pytest.mark.fault("F86")
    @pytest.mark.parametrize(
        "payload",
        [
            {"a": math.nan},
            {"a": [math.inf]},
            {"a": b"bytes"},
            {"a": datetime.now(UTC)},
            {"a": {1, 2}},
            {"a": Decimal(1)},
            {1: "a"},
            {"a": [{None: 1}]},
            pytest.param({"a": 10**5000}, id="huge"),
            "text",
            ["list"],
            None,
        ],
    )
    def test_refuses_what_json_cannot_say(self, payload):
        """What would not come back equal is refused, in words."""
        with pytest.raises(PayloadError, match="payload"):
            encode(payload, LIMIT)

    @pytest.mark.fault("F86")
    def test_refuses_what_contains_itself(self):
        """A circle is refused, and so is what is nested beyond all reason."""
        circle: dict = {}
        circle["a"] = [circle]
        with pytest.raises(PayloadError, match="contains itself"):
            encode(circle, LIMIT)
        deep: dict = {}
        for _ in range(100):
            deep = {"a": deep}
        with pytest.raises(PayloadError, match="deeper than 100"):
            encode(deep, LIMIT)
        assert deep["a"] == decode(encode(deep["a"], LIMIT).encode())

    @pytest.mark.fault("F91")
    def test_refuses_too_much(self):
        """A payload over the limit is refused, and both sizes are named."""
        encode({"a": "x" * 10}, 18)
        with pytest.raises(PayloadTooLarge, match=r"has 19 bytes .* at most 18"):
            encode({"a": "x" * 11}, 18)

    @pytest.mark.fault("F91")
    def test_refuses_what_explodes(self):
        """
        A few containers that hold each other several times over, as YAML's anchors can make
        them, are refused when they would be too large, and before anything is written.
        """
        small: dict = {"laugh": ["ha"]}
        for _ in range(3):
            small = {"twice": [small, small]}
        assert small == decode(encode(small, LIMIT).encode())
        large = small
        for _ in range(30):
            large = {"twice": [large, [large], large]}
        with pytest.raises(PayloadTooLarge, match=f"at most {LIMIT} bytes"):
            encode(large, LIMIT)

    @pytest.mark.parametrize(
        "raw", [b"", b"\xff", b"[]", b"1", b'{"a":NaN}', b"{" * 9, b'{"a":' * 100_000]
    )
    def test_reading_foreign_bytes(self, raw):
        """Bytes that are no payload raise PayloadError and nothing else."""
        with pytest.raises(PayloadError):
            decode(raw)


class TestMoments:
    """Durations and moments become whole µs, or are refused."""

    @pytest.mark.fault("F94")
    @pytest.mark.parametrize(
        ("value", "us"),
        [(1, 1_000), (1.5, 1_500), (0.0001, 1), (-5, -5_000), (timedelta(seconds=2), 2_000_000)],
    )
    def test_durations(self, value, us):
        """Milliseconds and timedeltas become whole µs, rounded up."""
        assert us == duration_us(value, "delay")

    @pytest.mark.fault("F94")
    @pytest.mark.parametrize(
        "value",
        [
            math.nan,
            math.inf,
            -math.inf,
            True,
            "5",
            None,
            Decimal(1),
            1e300,
            3.2e12,
            timedelta(days=365.25 * 101),
        ],
    )
    def test_durations_refused(self, value):
        """What is no finite duration of at most 100 years is refused by name."""
        with pytest.raises(OptionError, match="delay"):
            duration_us(value, "delay")

    def test_moments(self):
        """Epoch milliseconds and aware datetimes of any zone are the same moment."""
        ms = 1_800_000_000_123
        at = datetime.fromtimestamp(ms / 1000, timezone(timedelta(hours=5)))
        assert ms * 1000 == moment_us(ms, "at") == moment_us(at, "at")

    @pytest.mark.fault("F95")
    @pytest.mark.parametrize(
        "value",
        [datetime(2030, 1, 1), math.nan, True, "2030-01-01", None, 1e300],  # noqa: DTZ001
    )
    def test_moments_refused(self, value):
        """Naive datetimes, and what is no moment, are refused by name."""
        with pytest.raises(OptionError, match="at"):
            moment_us(value, "at")

    @given(st.floats(0, 3e12))
    def test_never_early(self, ms):
        """Rounding is up: a delay is never shortened."""
        assert duration_us(ms, "delay") >= ms * 1000


class TestNames:
    """Ids and namespaces, and the ids that we make."""

    @pytest.mark.fault("F92")
    @pytest.mark.parametrize("id", ["a", "ü", "x" * 255, "a b", "{}:*", "\u2028", "🙂"])
    def test_ids(self, id):
        """Any text without control characters, up to 255 bytes, is an id."""
        assert id == check_id(id)

    @pytest.mark.fault("F92")
    @pytest.mark.parametrize(
        "id", ["", "x" * 256, "ü" * 128, "a\n", "\0", "\x7f", "\x85", "\ud800", b"a", 1, None]
    )
    def test_ids_refused(self, id):
        """What is no id is refused before anything is sent."""
        with pytest.raises(OptionError, match="id"):
            check_id(id)

    @pytest.mark.fault("F93")
    @pytest.mark.parametrize("ns", ["dt", "RunAt~default", "a.b:c-d_1", "x" * 64])
    def test_namespaces(self, ns):
        """Letters, digits and a little punctuation make a namespace."""
        assert ns == check_namespace(ns)

    @pytest.mark.fault("F93")
    @pytest.mark.parametrize("ns", ["", "x" * 65, "}", "a}b", "*", "a b", "a\n", "ü", 1, None])
    def test_namespaces_refused(self, ns):
        """What could break the hash tag of the keys is refused."""
        with pytest.raises(OptionError, match="ns"):
            check_namespace(ns)

    def test_minted_ids_ascend(self):
        """Ids of one mint are short, distinct, and sort by the time of their making."""
        mint = Mint()
        ids = [mint() for _ in range(10_000)]
        assert sorted(set(ids)) == ids
        assert {12} == {len(id) for id in ids}

    def test_minted_ids_ascend_when_the_clock_falls_back(self, monkeypatch):
        """A clock that steps back makes no older and no equal id."""
        mint = Mint()
        first = mint()
        monkeypatch.setattr("dtimer.model.names.time.time_ns", lambda: 0)
        assert mint() > first

    def test_minting_from_many_threads(self):
        """No id is made twice, whichever threads ask."""
        mint, made = Mint(), []

        def make():
            made.extend([mint() for _ in range(2_000)])

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(made)) == 16_000


class TestEventId:
    """The id that a post returns: a string that knows whether its event was stored."""

    @pytest.mark.parametrize("stored", [True, False, None])
    def test_is_a_string(self, stored):
        """It stands wherever the id itself may: in sets, in JSON, in another call."""
        id = EventId("tea", stored=stored)
        assert {"tea"} == {id, "tea"}
        assert '"tea"' == json.dumps(id)
        assert id is check_id(id)

    @pytest.mark.parametrize("stored", [True, False, None])
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickles(self, stored, protocol):
        """It comes back from another process as it was."""
        id = EventId("tea", stored=stored)
        back = pickle.loads(pickle.dumps(id, protocol))
        assert (EventId, "tea", stored) == (type(back), back, back.stored)

    @pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
    def test_copies(self, make):
        """A copy says the same."""
        assert make(EventId("tea", stored=False)).stored is False


class TestOptions:
    """Options are checked once, all of them, and by name."""

    def test_defaults_are_valid(self):
        """The defaults pass their own checks."""
        assert "dt" == validate({}).ns

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"max_event": 1}, "did you mean 'max_events'"),
            ({"zzz": 1}, "there is no option 'zzz'"),
            ({"max_events": 0}, "max_events must be a whole number from 1 to 100"),
            ({"max_events": 101}, "max_events"),
            ({"max_events": True}, "max_events"),
            ({"max_events": 1.0}, "max_events"),
            ({"concurrency": 0}, "concurrency must be a whole number from 1 to 1000"),
            ({"concurrency": "4"}, "concurrency"),
            ({"max_retries": -1}, "max_retries"),
            ({"lease": 99}, "lease must be 100 to 86400000 ms"),
            ({"lease": math.nan}, "lease"),
            ({"poll_interval": 0}, "poll_interval"),
            ({"timeout": timedelta(0)}, "timeout"),
            ({"backoff": "1s"}, "backoff"),
            ({"auto_confirm": 1}, "auto_confirm"),
            ({"max_run": -1}, "max_run"),
            ({"max_payload": 1}, "max_payload"),
            ({"dead_limit": -1}, "dead_limit"),
            ({"dead_age": "week"}, "dead_age"),
            ({"exit_timeout": None}, "exit_timeout"),
            ({"shards": 2}, "shards"),
            ({"now": 5}, "now"),
            ({"ns": "a}b"}, "ns"),
        ],
        ids=str,
    )
    def test_refused(self, given, words):
        """A bad option is refused by name, with what was given and what is expected."""
        with pytest.raises(OptionError, match=words):
            validate(given)

    def test_each_option_is_documented(self):
        """The docstring of DTimer names every option."""
        from dtimer import DTimer

        for name in set(DEFAULTS) - {"shards"}:
            assert f"``{name}" in DTimer.__doc__, name


class TestBackoff:
    """The wait before a retry."""

    @pytest.mark.fault("F74")
    @given(st.integers(1, 10_000))
    def test_exponential_stays_in_bounds(self, attempt):
        """The wait doubles, an hour at most, and at least half of it is certain."""
        full = min(3_600_000, 1_000 * 2 ** min(attempt - 1, 30))
        assert full / 2 <= exponential(attempt) <= full

    def test_numbers_and_functions(self):
        """A backoff is a duration, or a function of the attempt to one."""
        assert 1_500 == wait_us(1.5, 1)
        assert 3_000_000 == wait_us(lambda n: timedelta(seconds=n), 3)
        assert 0 == wait_us(-1, 1)
        with pytest.raises(OptionError, match="backoff"):
            wait_us(lambda n: "soon", 1)


def test_cancelled_alone_is_true():
    """The truth of what cancel returns is: it will never start."""
    assert [Cancelled.CANCELLED] == [c for c in Cancelled if c]
