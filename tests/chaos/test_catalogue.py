"""The catalogue of faults is complete, tested, and in agreement with the docs."""

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
    """Return the number of tests that are marked with each fault."""
    here = Path(__file__).resolve()
    found = Counter()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path != here:
            found.update(_MARK.findall(path.read_text("utf-8")))
    return found


def test_numbers_have_no_gap():
    """Docs and commits refer to the numbers, so a number that is gone must not be reused."""
    assert [f"F{n:02}" for n in range(1, len(FAULTS) + 1)] == list(FAULTS)


@pytest.mark.parametrize("number", FAULTS)
def test_each_fault_has_a_test_or_a_reason_why_not(number):
    """A fault without a test is only a claim."""
    assert bool(marked()[number]) != (number in NOT_INJECTED), FAULTS[number]


def test_each_mark_and_each_reason_names_a_fault_of_the_catalogue():
    """A mistyped number would leave the fault itself without a test."""
    assert set() == {*marked(), *NOT_INJECTED} - set(FAULTS)


@pytest.mark.parametrize("page", ["README.rst", "docs/guarantees.rst"])
def test_the_page_states_how_many_faults_are_injected(page):
    """README and guarantees give two numbers: the faults of the tests, and those of the soak."""
    text = " ".join((ROOT / page).read_text("utf-8").split())
    assert [str(len(FAULTS))] == re.findall(r"(?:each of|lists) (\d+) faults", text)
    # One soak leaves out one fault: F34 needs a single server, F44 a cluster.
    assert [str(len(soak.INJECTIONS) - 1)] == re.findall(
        r"(\d+) of (?:them|those faults) strike", text
    )


def test_the_docs_have_one_entry_for_each_fault():
    """A user who meets a fault looks up there how dtimer reacts."""
    entries = Counter()
    for path in (ROOT / "docs" / "failures").glob("*.rst"):
        entries.update(row or title for row, title in _ROW.findall(path.read_text("utf-8")))
    assert dict.fromkeys(FAULTS, 1) == dict(entries)
