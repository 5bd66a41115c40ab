"""The public face: a user's editor offers what the reference describes, and no internals."""

import json
import re
from pathlib import Path

import pytest
from pyee.base import EventEmitter

import dtimer
from dtimer import Cancelled, Declared, DTimer, Reason, RunAt, State
from dtimer.timer.listeners import STREAM, TIMER

#: The interface of pyee, which both classes keep.
PYEE = {name for name in dir(EventEmitter) if not name.startswith("_")}


@pytest.fixture(scope="module")
def reference():
    """The text of the reference."""
    return (Path(__file__).resolve().parents[2] / "docs" / "reference.rst").read_text("utf-8")


@pytest.fixture
def timer():
    timer = DTimer("tea")
    yield timer
    timer.leave()


@pytest.fixture
def stream():
    stream = RunAt("tea")
    yield stream
    stream.stop()


def public(made):
    """Return the names that an editor offers for an object."""
    return {name for name in dir(made) if not name.startswith("_")}


def test_each_public_name_is_in_the_reference_or_of_pyee(reference, timer, stream):
    """A name without an underscore is a promise, and cannot be changed later."""
    for made in (timer, stream):
        name = type(made).__name__
        members = re.search(rf"autoclass:: {name}\n   :members: (.+)", reference)[1].split(", ")
        described = {*members, *re.findall(rf"automethod:: {name}\.(\w+)", reference)}
        assert described | PYEE == public(made) | PYEE
        assert public(made) >= PYEE


def test_the_timer_of_a_stream_has_the_same_public_names(timer, stream):
    """RunAt gives its timer away for inspection."""
    assert public(timer) == public(stream.timer)


def test_the_reference_has_each_emitted_event(reference):
    """The tables of events are written by hand."""
    of_timer, heading, of_stream = reference.partition("\nRunAt\n-----\n")
    assert heading
    for events, text in ((TIMER, of_timer), (STREAM, of_stream)):
        assert sorted(events) == sorted(re.findall(r"^   \* - ``'(\w+)'``", text, re.MULTILINE))


@pytest.mark.parametrize("kind", [Cancelled, Declared, Reason, State])
def test_each_member_of_an_enum_equals_its_text(kind):
    """If ``record.state == "dead"`` were always False, few type checkers would report it."""
    for member in kind:
        assert member.value == member
        assert f"{member.value}" == f"{member}"
        assert f'"{member.value}"' == json.dumps(member)
    assert [Cancelled.CANCELLED] == [member for member in Cancelled if member]


@pytest.mark.parametrize("name", dtimer.__all__)
def test_the_reference_describes_each_exported_name(reference, name):
    """An error is in the list of the module of errors. Any other name has its own entry."""
    errors = re.search(r"automodule:: dtimer\.errors\n   :members: ((?:.+\n)+?)   :", reference)[1]
    alone = re.search(rf"autoclass:: {name}\b|^``dtimer\.{name}``$", reference, re.MULTILINE)
    assert alone or name in re.findall(r"\w+", errors)
