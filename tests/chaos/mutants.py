"""
Plant known bugs in copies of the library, and check that a test notices each of them.

    make mutants
    make mutants ARGS="-k token"        only mutants whose names contain the word

For each mutant its tests run until one fails. If none fails, the mutant survives: a test is
missing, and the exit status is 1. If a text to be changed is not found exactly once, that is an
error before any test runs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chaos.mutations import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dtimer"

#: Seconds for one selection of tests. A mutant that makes them hang counts as killed.
_PATIENCE = 300
_HUNG = "(it hung)"

_ELSEWHERE = 99
# A plugin of pytest, stored next to the copy. It fails if the tests import another library.
_GUARD = f"""
import os, sys
import pytest

def pytest_collection_finish(session):
    library = sys.modules.get("dtimer")
    if library and os.path.dirname(os.path.dirname(library.__file__)) != os.path.dirname(__file__):
        pytest.exit("another library", returncode={_ELSEWHERE})
"""


class Unfit(Exception):
    """A text to be changed is not in the library exactly once: the library has changed."""


@dataclass(frozen=True)
class Outcome:
    """The result of one mutant; ``killer`` is the test that failed, or None if it survived."""

    mutant: Mutant
    killer: str | None
    seconds: float


def plant(mutant: Mutant, package: Path) -> None:
    """
    Make the changes of *mutant* in a copy of the package.

    Raises:
        Unfit: a text to be changed is not found exactly once.
    """
    for change in mutant.changes:
        path = package / change.file
        text = path.read_text("utf-8") if path.exists() else ""
        if (times := text.count(change.old)) != 1:
            raise Unfit(
                f"{mutant.name!r}: its text is {times} times in {change.file}: {change.old!r:.100}"
            )
        path.write_text(text.replace(change.old, change.new), "utf-8")


def _copy(folder: Path) -> Path:
    return Path(
        shutil.copytree(PACKAGE, folder / "dtimer", ignore=shutil.ignore_patterns("__pycache__"))
    )


def check(mutants: Sequence[Mutant], folder: Path) -> None:
    """Raise `Unfit`, with their names, if some of *mutants* cannot be planted."""
    unfit = []
    package = _copy(folder)
    for mutant in mutants:
        try:
            plant(mutant, package)
        except Unfit as e:
            unfit.append(str(e))
        # Restore the files, so that one copy serves all mutants.
        for change in mutant.changes:
            if (PACKAGE / change.file).exists():
                shutil.copy(PACKAGE / change.file, package / change.file)
    if unfit:
        raise Unfit("; ".join(unfit))


def _environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(folder), str(ROOT / "tests")])
    return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def _first_failure(said: str) -> str:
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", said, re.MULTILINE)
    hung = re.search(r"^(tests\S+::\S+).*?Timeout|Timeout", said, re.DOTALL)
    if found:
        # pytest names the file relative to the folder of the copy.
        return re.sub(r"^.*?(?=tests/)", "", found[1])
    return _HUNG if hung else "(it could not be run)"


def try_out(mutant: Mutant) -> Outcome:
    """Plant a mutant in a copy of the package, and run its tests until one fails."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        plant(mutant, _copy(folder))
        (folder / "planted.py").write_text(_GUARD, "utf-8")
        for tests in mutant.tests:
            killer = _run(folder, tests)
            if killer is not None:
                return Outcome(mutant, killer, time.monotonic() - began)
    return Outcome(mutant, None, time.monotonic() - began)


def _command(tests: str, *more: str) -> list[str]:
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-n0"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    # The pythonpath of the project would find the unchanged library.
    command += ["-p", "no:cacheprovider", "-p", "planted", "-o", "pythonpath=tests"]
    return [*command, *more, str(ROOT / tests)]


def _run(folder: Path, tests: str) -> str | None:
    process = subprocess.Popen(
        _command(tests),
        env=_environment(folder),
        # Programs that a test starts import the library from the working directory first.
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return _HUNG
    if process.returncode == _ELSEWHERE:
        raise RuntimeError(f"the tests did not use the copy in {folder}")
    if process.returncode == 0:
        return None
    killer = _first_failure(said)
    if "::" not in killer and killer != _HUNG and not _can_run(tests):
        raise RuntimeError(f"{tests} cannot be run, even without the mutant:\n{said[-2000:]}")
    return killer


def _can_run(tests: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="sound-") as name:
        folder = Path(name)
        _copy(folder)
        (folder / "planted.py").write_text(_GUARD, "utf-8")
        process = subprocess.run(
            _command(tests, "--collect-only"),
            env=_environment(folder),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=False,
        )
    return process.returncode == 0


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the results as text."""
    width = max(len(outcome.mutant.name) for outcome in outcomes)
    lines = [
        f"{o.mutant.name:<{width}}  {o.seconds:6.1f} s  {o.killer or 'SURVIVED'}" for o in outcomes
    ]
    survivors = sum(o.killer is None for o in outcomes)
    lines.append(
        f"{len(outcomes)} mutants, {len(outcomes) - survivors} killed, {survivors} survived"
    )
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(words: Sequence[str], mutants: Sequence[Mutant] = MUTANTS) -> int:
    """Try the mutants, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.split("\n\n")[0])
    parser.add_argument("-k", default="", help="only mutants whose names contain this")
    parser.add_argument("-j", type=int, default=2, help="how many at a time (2)")
    given = parser.parse_args(words)
    chosen = [mutant for mutant in mutants if given.k in mutant.name]
    if not chosen:
        parser.error(f"no name of a mutant contains {given.k!r}")
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        check(chosen, Path(name))
    outcomes = []
    with concurrent.futures.ThreadPoolExecutor(given.j) as pool:
        for outcome in pool.map(try_out, chosen):
            outcomes.append(outcome)
            _say(table([outcome]).splitlines()[0])
    _say("\n" + table(outcomes))
    return int(any(outcome.killer is None for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
