"""The public face: a user's editor offers what the reference describes, and no internals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pyee.base import EventEmitter

import dtimer
from dtimer import Cancelled, Declared, DTimer, Reason, RunAt, State
from dtimer.timer.listeners import STREAM, TIMER

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference.rst"

#: The interface of pyee, which both classes keep.
PYEE = {name for name in dir(EventEmitter) if not name.startswith("_")}


def public(made):
    """Return the names that an editor offers for an object."""
    return {name for name in dir(made) if not name.startswith("_")}


def described(name):
    """Return the members of a class that the reference shows."""
    text = REFERENCE.read_text("utf-8")
    members = re.search(rf"autoclass:: {name}\n   :members: (.+)", text)[1]
    return {*members.split(", "), *re.findall(rf"automethod:: {name}\.(\w+)", text)}


@pytest.mark.parametrize("make", [DTimer, RunAt], ids=lambda kind: kind.__name__)
def test_each_public_name_is_in_the_reference_or_of_pyee(make):
    """A name without an underscore is a promise, and cannot be changed later."""
    made = make("tea")
    try:
        assert described(make.__name__) | PYEE == public(made) | PYEE
        assert public(made) >= PYEE
    finally:
        made.leave() if make is DTimer else made.stop()


def test_the_timer_of_a_queue_has_the_same_public_names():
    """RunAt gives its timer away for inspection."""
    queue = RunAt("tea")
    try:
        assert public(DTimer("tea")) == public(queue.timer)
    finally:
        queue.stop()


def test_the_reference_has_each_emitted_event():
    """The tables of events are written by hand."""
    text = REFERENCE.read_text("utf-8")
    timer, stream = (
        re.findall(r"^   \* - ``'(\w+)'``", part, re.MULTILINE) for part in halves(text)
    )
    assert sorted(TIMER) == sorted(timer)
    assert sorted(STREAM) == sorted(stream)


@pytest.mark.parametrize("kind", [Cancelled, Declared, Reason, State])
def test_each_member_of_an_enum_equals_its_text(kind):
    """``record.state == "dead"`` must not be false for a dead letter, and no check finds it."""
    for member in kind:
        assert member.value == member
        assert f"{member.value}" == f"{member}"
        assert f'"{member.value}"' == json.dumps(member)
    assert [Cancelled.CANCELLED] == [member for member in Cancelled if member]


def halves(text):
    """Return the parts of the reference about a timer, and about a stream."""
    before, heading, after = text.partition("\nRunAt\n-----\n")
    assert heading
    return before, after


@pytest.mark.parametrize("name", dtimer.__all__)
def test_the_reference_describes_each_exported_name(name):
    """The module of the errors lists them, because a class says that it is defined in dtimer."""
    text = REFERENCE.read_text("utf-8")
    errors = re.search(r"automodule:: dtimer\.errors\n   :members: ((?:.+\n)+?)   :", text)[1]
    alone = re.search(rf"autoclass:: {name}\b|^``dtimer\.{name}``$", text, re.MULTILINE)
    assert alone or name in re.findall(r"\w+", errors)
