"""
The model: which values are accepted, and which are refused with which message.

tests/faults/test_inputs.py shows for each call of a timer which payloads, ids and times it refuses.

The numbers in ``fault`` marks are rows of the catalogue of faults, tests/chaos/catalogue.py.
"""

import copy
import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtimer.errors import OptionError, PayloadError, PayloadTooLarge
from dtimer.model.ids import EventId, IdGenerator, check_id, check_namespace
from dtimer.model.options import validate
from dtimer.model.payload import decode, encode
from dtimer.model.retry import exponential, wait_us
from dtimer.model.times import duration_us, moment_us

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
    """Payloads, encoded and decoded."""

    @pytest.mark.fault("F88")
    @given(st.dictionaries(st.text(st.characters(), max_size=10), json_values, max_size=4))
    def test_comes_back_equal(self, payload):
        """Every JSON value comes back equal and of the same type, lone surrogates included."""
        decoded = decode(encode(payload, 10**9).encode())
        assert payload == decoded
        assert repr(payload) == repr(decoded)

    @pytest.mark.fault("F91")
    def test_refuses_a_payload_of_shared_containers_before_encoding_it(self):
        """A YAML file with a few anchors may stand for a text that would fill the memory."""
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
    def test_decoding_invalid_bytes_raises_payload_error(self, raw):
        """Another program may have written the bytes."""
        with pytest.raises(PayloadError):
            decode(raw)


class TestTimes:
    """Durations and moments become whole microseconds."""

    @pytest.mark.fault("F94")
    @pytest.mark.parametrize(
        ("value", "us"),
        [(1, 1_000), (1.5, 1_500), (0.0001, 1), (-5, -5_000), (timedelta(seconds=2), 2_000_000)],
    )
    def test_durations_become_whole_microseconds_rounded_up(self, value, us):
        """A duration is a number of milliseconds or a timedelta."""
        assert us == duration_us(value, "delay")

    def test_a_moment_is_epoch_milliseconds_or_an_aware_datetime(self):
        """The zone of the datetime does not matter."""
        ms = 1_800_000_000_123
        at = datetime.fromtimestamp(ms / 1000, timezone(timedelta(hours=5)))
        assert ms * 1000 == moment_us(ms, "at") == moment_us(at, "at")

    @pytest.mark.fault("F95")
    @pytest.mark.parametrize(
        "value",
        [datetime(2030, 1, 1), math.nan, True, "2030-01-01", None, 1e300],  # noqa: DTZ001
    )
    def test_refuses_naive_datetimes_and_invalid_moments(self, value):
        """A naive datetime is another moment on another machine."""
        with pytest.raises(OptionError, match="at"):
            moment_us(value, "at")

    @given(st.floats(0, 3e12))
    def test_rounding_never_shortens_a_delay(self, ms):
        """A shortened delay would deliver the event early."""
        assert duration_us(ms, "delay") >= ms * 1000


class TestIds:
    """Ids, namespaces, and generated ids."""

    @pytest.mark.fault("F92")
    @pytest.mark.parametrize("id", ["a", "ü", "x" * 255, "a b", "{}:*", "\u2028", "🙂"])
    def test_accepts_any_text_of_at_most_255_bytes_without_control_characters(self, id):
        """Users use keys of their own as ids."""
        assert id == check_id(id)

    @pytest.mark.fault("F93")
    @pytest.mark.parametrize("ns", ["dt", "RunAt~default", "a.b:c-d_1", "x" * 64])
    def test_accepts_a_namespace_of_letters_digits_and_some_punctuation(self, ns):
        """A namespace is part of every key."""
        assert ns == check_namespace(ns)

    @pytest.mark.fault("F93")
    @pytest.mark.parametrize("ns", ["", "x" * 65, "}", "a}b", "*", "a b", "a\n", "ü", 1, None])
    def test_refuses_a_namespace_that_could_break_the_hash_tag(self, ns):
        """All keys of a namespace must be in one slot of a cluster."""
        with pytest.raises(OptionError, match="ns"):
            check_namespace(ns)

    def test_generated_ids_are_short_unique_and_sorted_by_time(self):
        """Events with the same due time start in order of id."""
        generate = IdGenerator()
        ids = [generate() for _ in range(10_000)]
        assert sorted(set(ids)) == ids
        assert {12} == {len(id) for id in ids}

    def test_generated_ids_ascend_even_if_the_clock_steps_back(self, monkeypatch):
        """A repeated id would replace an event."""
        generate = IdGenerator()
        first = generate()
        monkeypatch.setattr("dtimer.model.ids.time.time_ns", lambda: 0)
        assert generate() > first

    def test_threads_never_generate_the_same_id(self):
        """A repeated id would replace an event."""
        generate = IdGenerator()
        with ThreadPoolExecutor(8) as pool:
            made = pool.map(lambda _: [generate() for _ in range(2_000)], range(8))
        assert 8 * 2_000 == len({id for ids in made for id in ids})


class TestEventId:
    """The id that a post returns: a string that knows whether its event was stored."""

    @pytest.mark.parametrize("stored", [True, False, None])
    def test_works_like_a_string(self, stored):
        """Users put it in sets and JSON, and pass it to other calls."""
        id = EventId("tea", stored=stored)
        assert {"tea"} == {id, "tea"}
        assert '"tea"' == json.dumps(id)
        assert id is check_id(id)

    @pytest.mark.parametrize("stored", [True, False, None])
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_survives_pickling_and_copying(self, stored, protocol):
        """An id may be sent to another process, and still knows whether its event was stored."""
        id = EventId("tea", stored=stored)
        for other in (pickle.loads(pickle.dumps(id, protocol)), copy.copy(id), copy.deepcopy(id)):
            assert (EventId, "tea", stored) == (type(other), other, other.stored)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_event": 1}, "did you mean 'max_events'"),
        ({"zzz": 1}, "unknown option 'zzz'"),
        ({"max_events": 0}, "max_events must be a whole number from 1 to 100"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1 to 1000"),
        ({"lease": 99}, "lease must be 100 to 86400000 ms"),
        *[({"max_events": wrong}, "max_events") for wrong in (101, True, 1.0)],
        *[({"concurrency": "4"}, "concurrency"), ({"max_retries": -1}, "max_retries")],
        *[({"lease": math.nan}, "lease"), ({"poll_interval": 0}, "poll_interval")],
        *[({"timeout": timedelta(0)}, "timeout"), ({"backoff": "1s"}, "backoff")],
        *[({"auto_confirm": 1}, "auto_confirm"), ({"max_run": -1}, "max_run")],
        *[({"max_payload": 1}, "max_payload"), ({"dead_limit": -1}, "dead_limit")],
        *[({"dead_age": "week"}, "dead_age"), ({"exit_timeout": None}, "exit_timeout")],
        *[({"now": 5}, "now"), ({"ns": "a}b"}, "ns")],
    ],
    ids=str,
)
def test_refuses_an_invalid_option(given, words):
    """The message names the option, the given value and the expected one."""
    with pytest.raises(OptionError, match=words):
        validate(given)


class TestBackoff:
    """The wait before a retry."""

    @pytest.mark.fault("F74")
    @given(st.integers(1, 10_000))
    def test_exponential_doubles_up_to_an_hour_and_varies_by_half(self, attempt):
        """The variation spreads the retries of events that failed together."""
        longest = min(3_600_000, 1_000 * 2 ** min(attempt - 1, 30))
        assert longest / 2 <= exponential(attempt) <= longest

    def test_a_backoff_is_a_duration_or_a_function_of_the_attempt(self):
        """The error of a function that returns neither names the option."""
        assert 1_500 == wait_us(1.5, 1)
        assert 3_000_000 == wait_us(lambda n: timedelta(seconds=n), 3)
        assert 0 == wait_us(-1, 1)
        with pytest.raises(OptionError, match="backoff"):
            wait_us(lambda n: "soon", 1)
