"""The catalogue itself is complete, is shown by tests, and agrees with the docs."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from chaos import soak
from chaos.catalogue import FAULTS, NOT_INJECTED

ROOT = Path(__file__).resolve().parents[2]

_MARK = re.compile(r'\.fault\("(F\d+)"\)')
_ROW = re.compile(r"^ +\* - (F\d+)\b|^(F\d+)\b", re.MULTILINE)


def marked():
    """How often each number marks a test."""
    here = Path(__file__).resolve()
    found = Counter()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path != here:
            found.update(_MARK.findall(path.read_text("utf-8")))
    return found


def test_the_numbers_are_whole():
    """The catalogue runs from F01 to its end without a gap."""
    assert [f"F{n:02}" for n in range(1, len(FAULTS) + 1)] == list(FAULTS)


@pytest.mark.parametrize("number", FAULTS)
def test_each_row_is_shown(number):
    """A row has a test that injects the fault, or else a reason why it cannot be injected."""
    assert bool(marked()[number]) != (number in NOT_INJECTED), FAULTS[number]


def test_no_mark_is_of_nothing():
    """A test is marked with a number that the catalogue has, and so is a reason."""
    assert set() == {*marked(), *NOT_INJECTED} - set(FAULTS)


@pytest.mark.parametrize("page", ["README.rst", "docs/guarantees.rst"])
def test_the_page_gives_the_numbers_of_faults(page):
    """README and guarantees say how many faults the tests and the soak inject: both stay true."""
    text = " ".join((ROOT / page).read_text("utf-8").split())
    assert [str(len(FAULTS))] == re.findall(r"(?:each of|lists) (\d+) faults", text)
    # A soak injects all but one: F34 only without a cluster, F44 only with one.
    assert [str(len(soak.INJECTIONS) - 1)] == re.findall(
        r"(\d+) of (?:them|those faults) strike", text
    )


def test_each_row_is_told_of():
    """The docs have one entry for each row, and none besides."""
    told = Counter()
    for path in (ROOT / "docs" / "failures").glob("*.rst"):
        told.update(row or title for row, title in _ROW.findall(path.read_text("utf-8")))
    assert dict.fromkeys(FAULTS, 1) == dict(told)
