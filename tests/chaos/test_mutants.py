"""The planted bugs: all of them can be planted, and the script tells the truth about them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from chaos import mutants
from chaos.mutants import Unfit, check, main, plant
from chaos.mutations import MUTANTS, Change, Mutant

pytestmark = pytest.mark.chaos

#: Notices nothing that is not in its own module, and takes no time.
_QUICK = "tests/unit/test_lateness.py"


def mutant(old, new, *tests, file="model/lateness.py", name="planted"):
    return Mutant(name, (Change(file, old, new),), tests or (_QUICK,))


def test_all_can_be_planted(tmp_path):
    """Every change fits the library as it is: each text is there exactly once."""
    check(MUTANTS, tmp_path)


def test_their_names_are_their_own():
    """No two mutants have one name, and each names tests that there are."""
    names = [m.name for m in MUTANTS]
    assert len(names) == len(set(names))
    files = {test.partition("::")[0] for m in MUTANTS for test in m.tests}
    assert [] == [name for name in sorted(files) if not (mutants.ROOT / name).exists()]


def test_the_page_lists_each_mutant_in_order():
    """``docs/mutants.rst`` has a row for each mutant, and gives their number."""
    text = (mutants.ROOT / "docs" / "mutants.rst").read_text("utf-8")
    row = r"^   \* - (.+)\n     - ``(?:unit|integration|acceptance|chaos)/"
    rows = re.findall(row, text, re.MULTILINE)
    assert [m.name for m in MUTANTS] == rows
    assert [str(len(MUTANTS))] == re.findall(r"^There are (\d+)\.", text, re.MULTILINE)


def test_the_readme_gives_their_number():
    """The README says how many bugs `make mutants` plants: a reader may check the number."""
    text = (mutants.ROOT / "README.rst").read_text("utf-8")
    assert [str(len(MUTANTS))] == re.findall(r"plants (\d+) known bugs", text)


@pytest.mark.parametrize("old", ["no such text", "import"])
def test_one_that_does_not_fit_is_refused(tmp_path, old):
    """A text that is not there, or there more than once, is an error before anything runs."""
    with pytest.raises(Unfit, match="'planted': its text is"):
        main([], [mutant(old, "", file="engine/claimer.py")])


def test_a_file_that_is_not_there(tmp_path):
    """A file that has moved away is the same."""
    with pytest.raises(Unfit, match=r"0 times in model/gone\.py"):
        plant(mutant("a", "b", file="model/gone.py"), tmp_path)


def test_a_survivor_is_told(capsys):
    """
    One that no test notices is named, and the exit status says so. A mutant lives in a copy: what
    is under test here stays as it is.
    """
    path = mutants.PACKAGE / "model" / "lateness.py"
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


def test_programs_have_the_mutant_too(capsys):
    """A program that a test starts in a process of its own runs the copy as well."""
    forgetful = next(m for m in MUTANTS if m.name == "a fork is not noticed")
    only = "tests/integration/test_processes.py::TestFork::test_nothing_is_inherited"
    assert 0 == main([], [replace(forgetful, tests=(only,))])
    assert only in capsys.readouterr().out


def test_tests_that_cannot_be_run():
    """Tests that fail without a mutant, too, kill none: to take that for a kill is an error."""
    gone = "tests/unit/test_gone.py"
    with pytest.raises(RuntimeError, match="cannot be run, with no mutant either"):
        main([], [mutant("BUCKETS = 81", "BUCKETS = 82", gone)])
