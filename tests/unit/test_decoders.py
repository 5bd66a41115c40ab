"""
All bytes in Redis or in a file are decoded, or refused with a documented error.

The decoders are listed in ``decoders``, which the fuzzer shares. `dtimer.store.format` describes
the valid bytes.
"""

import json
import time

import decoders
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers import PROMPT

from dtimer.errors import PayloadError
from dtimer.model.payload import DEEPEST, decode, encode

#: Bytes that once broke a decoder, or nearly.
CORPUS = [
    *[b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000],
    *[b'{"a":' + b"9" * 5_000 + b"}", b'{"a":1e999}', b'{"a":NaN}', b"9" * 5_000],
    *[b"," + b"9" * 6 + b"|" + b'{"a":' * 200 + b"1" + b"}" * 200, b",3,s1,0|" + b"{" * 2_000],
    *[b"1,failed,999999999|x", b"1,failed,0|", b'1|{"id":{},"pid":[],"host":1e999}'],
    *[b'1|{"pid":1e999}', b"9" * 5_000 + b"|{}", b"-inf", b"nan", b";" * 10_000],
    b"p;60000000;c;q;0;;x;;1;y;;;;;;",
    (
        b'{"cron":[],"count":null,"every":null,"jitter":0,"max_retries":3,"misfire":"coalesce",'
        b'"overlap":"queue","start":null,"stop":null,"tz":"UTC"}'
    ),
    (
        b'{"cron":"0 0 30 2 *","count":null,"every":null,"jitter":0,"max_retries":3,'
        b'"misfire":"coalesce","overlap":"queue","start":null,"stop":null,"tz":"UTC"}'
    ),
    (
        b'{"cron":null,"count":1e999,"every":1,"jitter":0,"max_retries":3,"misfire":{},'
        b'"overlap":[],"start":null,"stop":null,"tz":"/etc/passwd"}'
    ),
    b'{"kind":"event","id":1,"due":1e999,"event":{}}',
    b'{"kind":"event","id":"a","due":1,"event":{"a":1e999}}',
    b'{"kind":"event","id":"a","due":1,"event":{},"expires":[],"max_retries":{}}',
    b'{"kind":"dead","id":"\\ud800","died":0,"attempt":0,"reason":"x","raw":"!"}',
    b'{"kind":"dead","id":"a","died":0,"attempt":1e99,"reason":"x","event":"\\ud800"}',
    (
        b'{"kind":"schedule","id":"s","every":1e12,"cron":{},"tz":[],"start":0,"stop":0,'
        b'"count":0,"jitter":0,"misfire":[],"overlap":{},"max_retries":0,"event":{}}'
    ),
    (
        b'{"kind":"schedule","id":"s","every":null,"cron":"* * * * *","tz":"../../x","start":null,'
        b'"stop":null,"count":null,"jitter":0,"misfire":"skip","overlap":"skip","max_retries":0,'
        b'"event":{}}'
    ),
]

_words = st.sampled_from(
    [
        *[b"{", b"}", b"[", b"]", b":", b",", b'"', b"|", b";", b"s", b"@", b"-", b".", b"e"],
        *[b"null", b"kind", b"event", b"dead", b"schedule", b"id", b"due", b"1", b"0", b"9" * 20],
        *[b"1e999", b"true", b"NaN", b"\\ud800", b"\xff", b"\x00", b"\n", b",3|", b",3,s1,0|"],
        *[b"1,failed,2|"],
    ]
)
_garbage = st.binary(max_size=300) | st.lists(_words, max_size=40).map(b"".join)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
_fields = st.sampled_from(
    [
        *("kind", "id", "due", "event", "expires", "max_retries", "died", "attempt", "reason"),
        *("error", "raw", "every", "cron", "tz", "start", "stop", "count", "jitter", "misfire"),
        *("overlap", "paused", "pid", "host", "version"),
    ]
)
_kinds = st.sampled_from(["event", "dead", "schedule", "end", "export", "what"])
_lines = st.builds(
    lambda fields, kind: json.dumps(fields | kind).encode(),
    st.dictionaries(_fields, _json, max_size=12),
    st.fixed_dictionaries({"kind": _kinds}),
)


@pytest.mark.parametrize("name", decoders.ALL)
class TestEveryDecoder:
    """Each decoder reads any bytes, or raises an error that it documents."""

    @pytest.mark.parametrize("raw", CORPUS, ids=range(len(CORPUS)))
    def test_bytes_that_once_failed(self, name, raw):
        """Each finding of the fuzzer is tried on every decoder, and none takes long."""
        began = time.monotonic()
        decoders.decode_or_refuse(name, raw)
        assert time.monotonic() - began < PROMPT

    @pytest.mark.parametrize("raw", CORPUS, ids=range(len(CORPUS)))
    def test_bytes_that_once_failed_are_refused_alike_while_an_error_is_handled(self, name, raw):
        """CPython 3.11 then raises a KeyError for a field that is given twice, not a TypeError."""
        try:
            int("not a number")
        except ValueError:
            decoders.decode_or_refuse(name, raw)

    @given(raw=_garbage | _lines | _json.map(lambda v: json.dumps(v).encode()))
    @settings(max_examples=60, deadline=None)
    def test_random_bytes_json_and_lines_of_an_export(self, name, raw):
        """Another program, or a damaged file, may contain any bytes."""
        decoders.decode_or_refuse(name, raw)


class TestDepth:
    """A payload that is too deep for writing is too deep for reading."""

    @given(st.integers(1, 2_000))
    @example(DEEPEST)
    @example(DEEPEST + 1)
    @settings(max_examples=50, deadline=None)
    def test_reading_and_writing_have_the_same_limit(self, depth):
        """A payload can be read exactly if it can be written."""
        raw, payload = b'{"a":' * depth + b"1" + b"}" * depth, {"a": 1}
        for _ in range(depth - 1):
            payload = {"a": payload}
        if depth <= DEEPEST:
            assert payload == decode(raw)
            assert raw == encode(payload, 10**6).encode()
        else:
            with pytest.raises(PayloadError):
                decode(raw)
            with pytest.raises(PayloadError, match=f"deeper than {DEEPEST}"):
                encode(payload, 10**6)

    def test_containers_next_to_each_other_do_not_count_as_depth(self):
        """A list of a thousand lists is as deep as a list of one."""
        payload = {"a": [[] for _ in range(1_000)]}
        assert payload == decode(json.dumps(payload).encode())


def test_each_decoder_accepts_bytes_that_dtimer_writes():
    """A decoder that refused everything would pass all other tests."""
    for name, raw in decoders.GOOD.items():
        assert decoders.decode_or_refuse(name, raw), name
    assert set(decoders.GOOD) == set(decoders.ALL)
