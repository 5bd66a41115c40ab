"""Guarantees of payloads: they arrive as posted, through a real server, at every attempt."""

from __future__ import annotations

import math
import queue

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import PATIENCE

from dtimer import DTimer

pytestmark = pytest.mark.acceptance

AWKWARD = {"a": [], "n": 9007199254740993, "u": "\ud800", "x": 1e22}

# Lua, its cjson, UTF-8 or a careless codec is known to distort each of these payloads.
TRAPS = [
    AWKWARD,
    {},
    {"": {}},
    {"empty": [[], {}, [[]], ""]},
    {"order": 1, "another": 2, "a": 3},
    {"big": [2**53 + 1, -(2**63) - 1, 10**4000]},
    {"floats": [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 1.0]},
    {"truth": [True, False, None, 0, 1, "null"]},
    {"text": "\x00\x1f\x7f\u2028\ue000\ufeff\U0001f600\udfff\r\n/|,;:{}"},
    {"12,3|": "12,3|", "pipe|": ",,,|"},
    {"deep": [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]},
    {"long": "x" * 200_000},
]


def same(one, other):
    """Return True if both are equal and of the same types: unlike ``==``, this tells 1 from 1.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return one == other


class Reader:
    """A node that fails each event a given number of times, and keeps each payload."""

    def __init__(self, server, namespace, attempts):
        self.attempts = attempts
        self._received: queue.SimpleQueue[tuple[int, dict]] = queue.SimpleQueue()
        self.timer = DTimer("reader", server.url, ns=namespace, backoff=0)
        self.timer.on("event", self._handle)
        self.timer.on("error", lambda _: None)

    def _handle(self, events):
        (ev,) = events
        # Copy the payload: the handler changes its own, which must not affect the next attempt.
        self._received.put((ev.attempt, dict(ev)))
        attempt = ev.attempt
        ev.clear()
        ev["spoilt"] = True
        if attempt < self.attempts:
            raise RuntimeError("again")

    def read(self, payload):
        """Post *payload* and return the payloads of all attempts."""
        self.timer.post(payload)
        received = [self._received.get(timeout=PATIENCE) for _ in range(self.attempts)]
        assert list(range(1, self.attempts + 1)) == [attempt for attempt, _ in received]
        return [payload for _, payload in received]


@pytest.fixture
def reader(server, namespace):
    reader = Reader(server, namespace, attempts=3)
    with reader.timer:
        yield reader


@pytest.mark.fault("F90")
@pytest.mark.parametrize("payload", TRAPS, ids=lambda payload: next(iter(payload), "nothing"))
def test_a_payload_arrives_as_it_was(reader, payload):
    """At each attempt with equal types and order, even if the handler changed its own copy."""
    assert all(same(payload, found) for found in reader.read(payload))


def test_reading_returns_the_payload_as_it_was(server, namespace):
    """``peek``, ``upcoming`` and a dead letter return the same payload as a handler gets."""
    timer = DTimer("poster", server.url, ns=namespace)
    id = timer.post(AWKWARD, 3_600_000)
    for record in (timer.peek(id), *timer.upcoming()):
        assert record
        assert same(AWKWARD, record.event)
    timer.post(AWKWARD, 50, id=id, expires=1)
    dead: queue.SimpleQueue[str] = queue.SimpleQueue()
    timer.on("event", lambda _: None)
    timer.on("expired", lambda letter: dead.put(letter.id))
    with timer:
        assert id == dead.get(timeout=PATIENCE)
        (letter,) = timer.dead()
    assert same(AWKWARD, letter.event)


TEXT = st.text(st.characters(), max_size=20)  # lone surrogates included
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
FINITE = SCALAR.filter(lambda value: not isinstance(value, float) or math.isfinite(value))
JSON = st.recursive(
    FINITE, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)


@pytest.fixture(scope="module")
def twice(server):
    """A node for all examples, which reads each one at a first and a second attempt."""
    reader = Reader(server, "hypothesis", attempts=2)
    yield reader
    with server.client() as client:
        client.delete(*client.scan_iter(match="dtimer:{hypothesis}:*"))


@pytest.mark.fault("F88")
@settings(
    max_examples=100,
    # The duration of a round trip says nothing about payloads.
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(payload=st.dictionaries(TEXT, JSON, max_size=5))
def test_any_payload_arrives_as_it_was(twice, payload):
    """Any JSON object arrives as posted, at the first and the second attempt."""
    # Join only while an example is read. Hypothesis draws the next example from the generator of
    # `random`, and a node's threads must not use that generator meanwhile.
    with twice.timer:
        assert all(same(payload, found) for found in twice.read(payload))
