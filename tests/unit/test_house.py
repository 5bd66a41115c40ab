"""
The rules of the house that a reader could forget: each is held by a check here.

The stairs themselves (who may import whom) are a contract in setup.cfg, which
``lint-imports`` holds.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import dtimer

ROOT = Path(__file__).resolve().parents[2]
LUA = ROOT / "dtimer" / "store" / "lua"

MODULES = sorted((ROOT / "dtimer").rglob("*.py"))
VERBS = sorted(path for path in LUA.rglob("*.lua") if "parts" not in path.parts)
TESTS = sorted((ROOT / "tests").rglob("*.py"))

#: Longer than this, and a second noun is hiding in the module.
MOST_LINES = 330


def named(path):
    """The id of a case: the path as one would type it."""
    return str(path.relative_to(ROOT))


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=named)


def test_there_is_something_to_check():
    """
    The checks below look at real files: were a folder to move, they would all pass
    on nothing.
    """
    assert MODULES
    assert VERBS
    assert Path(__file__).resolve() in TESTS


class TestModules:
    """The package, as its reader meets it."""

    @each(MODULES)
    def test_a_module_is_short(self, path):
        """No module reaches 330 lines: before that it is time to look for the second noun."""
        assert len(path.read_text("utf-8").splitlines()) < MOST_LINES

    def test_all_is_sorted(self):
        """``dtimer.__all__`` is in plain sorted order and names nothing twice."""
        assert sorted(set(dtimer.__all__)) == list(dtimer.__all__)

    def test_all_is_complete(self):
        """
        Whatever ``dtimer`` holds under a public name is in ``__all__``; only its own
        modules, which are there because they were imported, are not.
        """
        public = {
            name
            for name, value in vars(dtimer).items()
            if not name.startswith("_")
            and not isinstance(value, ModuleType)
            and name != "annotations"  # what ``from __future__`` leaves behind
        }
        assert public <= set(dtimer.__all__)

    def test_importing_it_is_light(self):
        """
        ``import dtimer`` imports no module of ours but itself, and so `dtimer --version`
        answers at once; each name is imported when it is first asked for.
        """
        code = (
            "import sys, dtimer; print([m for m in sys.modules if m.startswith('dtimer.')]);"
            " dtimer.DTimer; print('dtimer.timer' in sys.modules)"
        )
        said = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
        assert ["[]", "True"] == said.splitlines()

    def test_all_is_true(self):
        """Every name in ``__all__`` is there to be imported."""
        assert [] == [name for name in dtimer.__all__ if not hasattr(dtimer, name)]


def header_and_body(text):
    """
    The comment that a script opens with, and its code without further comments.

    The header ends with the first line that is no comment, be it empty.
    """
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    code = "\n".join(re.sub(r"--.*$", "", line) for line in lines[end:])
    return "\n".join(lines[:end]), code


class TestScripts:
    """A script's header is its contract, so it has to be there and be true."""

    @each(VERBS)
    def test_the_header_is_a_contract(self, path):
        """Every verb opens with a comment that states its ``ARGV`` and what it ``Returns``."""
        header, _ = header_and_body(path.read_text("utf-8"))
        assert re.search(r"\bARGV\b", header)
        assert re.search(r"\bReturns\b", header)

    @each(VERBS)
    def test_each_argument_is_named(self, path):
        """Every ``ARGV[n]`` that the body of a verb reads by number is named in its header."""
        header, body = header_and_body(path.read_text("utf-8"))
        arguments = r"\bARGV\[\s*(\d+)\s*\]"
        assert set(re.findall(arguments, body)) <= set(re.findall(arguments, header))

    def test_what_counts_as_header(self):
        """
        The header is the opening comment alone, and a comment in the body counts as
        neither.
        """
        text = "-- Do it.\n--\n-- ARGV[3]  what\nlocal a = ARGV[3] -- not ARGV[4]\n-- ARGV[5]\n"
        header, body = header_and_body(text)
        assert header.endswith("what")
        assert ["ARGV[3]"] == re.findall(r"ARGV\[\d\]", body)


def truths_in(path):
    """Every test function and test class of a file, wherever it stands."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, kinds) and node.name.startswith(("test_", "Test")):
            yield node


class TestTests:
    """The tests keep the test law."""

    @each(TESTS)
    def test_no_test_sleeps(self, path):
        """
        Nobody under tests/ calls the sleep of ``time``, nor hands a program that does to
        a subprocess: time is moved, or a signal is awaited.
        """
        if path == Path(__file__).resolve():
            return  # it has to spell what it looks for
        text = path.read_text("utf-8")
        assert not re.search(r"\btime\s*\.\s*sleep\b", text)
        assert not re.search(r"\bfrom\s+time\s+import\b[^\n]*\bsleep\b", text)

    @each([path for path in TESTS if path.name.startswith("test_")])
    def test_each_test_states_a_truth(self, path):
        """Every test and every class of tests has a docstring: it is the specification."""
        silent = [f"{path.name}:{t.lineno} {t.name}" for t in truths_in(path) if not docstring(t)]
        assert [] == silent


def docstring(node):
    """The docstring of a node, or nothing when there is none or it is blank."""
    return (ast.get_docstring(node) or "").strip()
