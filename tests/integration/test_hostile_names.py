"""Any id, payload or namespace is refused before any I/O, or carried unchanged."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from servers import eventually

from dtimer import DTimer, OptionError, PayloadError
from dtimer.store.keys import Keys

_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
_anything = st.text() | st.binary() | st.integers() | st.floats() | st.none() | st.tuples(st.text())

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def assert_short(error):
    """Assert that the error does not repeat a long value."""
    assert len(str(error)) < 2_000


@pytest.fixture
def timer(make):
    return make()


@given(id=st.text(max_size=300) | _anything)
@example("{}:wake:*")
@example("'; redis.call('FLUSHALL') --")
@example("$5\r\nhello\r\n")
@example("%s%n{0}")
@example("\ud800")
@example("x" * 255)
@example("é" * 128)
@quick
def test_any_id_is_refused_or_names_one_event(timer, client, id):
    """An id is refused with an OptionError, or names exactly one event."""
    if id is None:
        return
    keys_before = set(client.scan_iter(count=10_000))
    try:
        assert id == timer.post({"n": 1}, 3_600_000, id=id)
    except OptionError as e:
        assert_short(e)
        return
    assert (id, {"n": 1}) == (timer.peek(id).id, timer.peek(id).event)
    assert [id] == [record.id for record in timer.upcoming()]
    assert timer.cancel(id)
    assert timer.peek(id) is None
    new_keys = set(client.scan_iter(count=10_000)) - keys_before
    assert new_keys <= {key.encode() for key in Keys.of(timer.ns)}


@given(payload=st.dictionaries(st.text(), _json_values, max_size=5) | _anything | _json_values)
@quick
def test_any_payload_is_refused_or_returned_unchanged(timer, payload):
    """A payload is refused with a PayloadError, or comes back equal and with the same types."""
    try:
        id = timer.post(payload, 3_600_000)
    except PayloadError as e:
        assert_short(e)
        return
    assert repr(payload) == repr(timer.peek(id).event)
    timer.cancel(id)


@given(ns=st.text(max_size=80) | _anything)
@example("a}b")
@example("{x}")
@example("*")
@example("a b")
@example("a\n")
@quick
def test_any_namespace_is_refused_or_makes_valid_keys(ns):
    """A namespace is refused, or its keys share one hash tag and end in a known field."""
    try:
        timer = DTimer("node", "redis://127.0.0.1:1", ns=ns)
    except OptionError as e:
        assert_short(e)
        return
    for key in Keys.of(timer.ns):
        head, tag, field = key.partition("{" + ns + "}")
        assert ("dtimer:", "{" + ns + "}") == (head, tag)
        assert field.startswith(":")
        assert field[1:].isidentifier()


def test_an_id_that_looks_like_code_is_delivered(make):
    """An id that looks like a script, a key or a pattern is delivered like any other."""
    node = make()
    delivered = []
    node.on("event", lambda events: delivered.extend(ev.id for ev in events))
    ids = ["'; return redis.call('FLUSHALL') --", "*", "dtimer:{dt}:due", "%s", "a@b", "a,b;c|d"]
    with node:
        node.post_many([{"ev": {}, "id": id} for id in ids])
        eventually(lambda: len(delivered) == len(ids))
    assert sorted(ids) == sorted(delivered)
