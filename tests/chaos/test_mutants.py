"""The mutants: each can be planted, and the program reports correctly which survive."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from chaos import mutants
from chaos.mutants import Unfit, check, main, plant
from chaos.mutations import MUTANTS, Change, Mutant

pytestmark = pytest.mark.chaos

#: A quick test that notices only a bug in one module.
_QUICK = "tests/unit/test_histogram.py"


def mutant(old, new, *tests, file="model/histogram.py", name="planted"):
    return Mutant(name, (Change(file, old, new),), tests or (_QUICK,))


def test_each_mutant_can_be_planted(tmp_path):
    """Each text to be changed is in the library exactly once."""
    check(MUTANTS, tmp_path)


def test_the_names_of_mutants_are_unique_and_their_tests_exist():
    """Two mutants with one name could not be told apart; a missing test file would kill none."""
    names = [m.name for m in MUTANTS]
    assert len(names) == len(set(names))
    files = {test.partition("::")[0] for m in MUTANTS for test in m.tests}
    assert [] == [name for name in sorted(files) if not (mutants.ROOT / name).exists()]


def test_the_page_lists_each_mutant_in_order():
    """``docs/mutants.rst`` has a row for each mutant, and gives their number."""
    text = (mutants.ROOT / "docs" / "mutants.rst").read_text("utf-8")
    row = r"^   \* - (.+)\n     - ``\w+/"
    rows = re.findall(row, text, re.MULTILINE)
    assert [m.name for m in MUTANTS] == rows
    assert [str(len(MUTANTS))] == re.findall(r"^There are (\d+)\.", text, re.MULTILINE)


def test_the_page_names_tests_that_exist():
    """``docs/mutants.rst`` names the tests that notice the mutants by their current names."""
    text = (mutants.ROOT / "docs" / "mutants.rst").read_text("utf-8")
    rows = re.findall(r"- ``([\w/]+\.py)``:\s+``(\w+)", text)
    assert len(MUTANTS) == len(rows)
    tests = mutants.ROOT / "tests"
    files = {file: (tests / file).read_text("utf-8") for file, _ in rows}
    assert [] == [name for file, name in rows if f"def {name}(" not in files[file]]


def test_the_readme_gives_the_number_of_mutants():
    """The README says how many bugs ``make mutants`` plants, and the number stays true."""
    text = (mutants.ROOT / "README.rst").read_text("utf-8")
    assert [str(len(MUTANTS))] == re.findall(r"plants (\d+) known bugs", text)


@pytest.mark.parametrize("old", ["no such text", "import"])
def test_a_text_that_is_not_found_exactly_once_is_an_error(tmp_path, old):
    """A change that does not fit the library is reported before any test runs."""
    with pytest.raises(Unfit, match="'planted': its text is"):
        main([], [mutant(old, "", file="engine/claimer.py")])


def test_a_missing_file_is_an_error(tmp_path):
    """A change of a file that was renamed is reported before any test runs."""
    with pytest.raises(Unfit, match=r"0 times in model/gone\.py"):
        plant(mutant("a", "b", file="model/gone.py"), tmp_path)


def test_a_surviving_mutant_is_reported(capsys):
    """The exit status is 1. The library stays unchanged, because mutants are planted in copies."""
    path = mutants.PACKAGE / "model" / "histogram.py"
    before = path.read_bytes()
    broken = mutant("from __future__ import annotations\n", "raise RuntimeError\n", name="broken")
    survivor = mutant(
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\n_HARMLESS = 1\n",
        name="a harmless one",
    )
    assert 1 == main([], [survivor, broken])
    said = capsys.readouterr().out
    assert "a harmless one" in said
    assert "SURVIVED" in said
    assert said.rstrip().endswith("2 mutants, 1 killed, 1 survived")
    assert _QUICK in said, "the test that killed the other"
    assert before == path.read_bytes()


def test_programs_that_a_test_starts_have_the_mutant_too(capsys):
    """A test that starts a process must not test the unchanged library there."""
    forgetful = next(m for m in MUTANTS if m.name == "a fork is not noticed")
    only = "tests/integration/test_processes.py::TestFork::test_nothing_is_inherited"
    assert 0 == main([], [replace(forgetful, tests=(only,))])
    assert only in capsys.readouterr().out


def test_tests_that_cannot_run_kill_no_mutant():
    """Tests that cannot run without the mutant either are an error, and not a kill."""
    gone = "tests/unit/test_gone.py"
    with pytest.raises(RuntimeError, match="cannot be run, even without the mutant"):
        main([], [mutant("BUCKETS = 81", "BUCKETS = 82", gone)])
