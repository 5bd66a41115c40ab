"""The fault points: complete, documented, armed by code only, and off by default."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dtimer
from dtimer import faultpoints

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(set((ROOT / "dtimer").rglob("*.py")) - {Path(faultpoints.__file__)})


def calls_of_reached():
    """Return the point of each call of `reached`, and whether it is behind a check of `armed`."""
    found = []
    for tree in [ast.parse(path.read_text("utf-8")) for path in MODULES]:
        checked = set()
        for node in ast.walk(tree):
            # A method that groups several points is itself called behind such a check.
            if (isinstance(node, ast.If) and ast.unparse(node.test) == "armed") or (
                isinstance(node, ast.FunctionDef) and node.name == "_reach_fault_points"
            ):
                checked |= {id(inner) for inner in ast.walk(node)}
        found += [
            (ast.literal_eval(node.args[0]), id(node) in checked)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("reached")
        ]
    return found


class TestList:
    """The list of points matches the code."""

    def test_the_listed_points_are_the_reached_ones(self):
        """A test that arms an unreached point would test nothing."""
        assert set(faultpoints.POINTS) == {point for point, _ in calls_of_reached()}

    def test_each_call_is_behind_a_check_of_armed(self):
        """A point costs almost nothing while none is armed."""
        assert [] == [point for point, checked in calls_of_reached() if not checked]

    def test_the_internals_page_names_each_point(self):
        """Readers of the page rely on the list."""
        text = (ROOT / "docs" / "internals.rst").read_text("utf-8")
        assert [] == [point for point in faultpoints.POINTS if f"``{point}``" not in text]


def raise_memory_error():
    raise MemoryError


class TestArming:
    """A test arms a point with a function, which is called each time that the point is reached."""

    def test_calls_the_armed_function_until_the_end_of_the_context(self):
        """Contexts nest: the inner one hides the outer one."""
        called = []
        with faultpoints.arm("claim.answered", lambda: called.append("outer")):
            with faultpoints.arm("claim.answered", lambda: called.append("inner")):
                faultpoints.reached("claim.answered")
            faultpoints.reached("claim.answered")
            faultpoints.reached("handler.before")
        faultpoints.reached("claim.answered")
        assert ["inner", "outer"] == called
        assert {} == faultpoints.armed

    def test_passes_on_an_exception_and_disarms(self):
        """The next test must not find the point armed."""
        with pytest.raises(MemoryError), faultpoints.arm("loop.handler", raise_memory_error):
            faultpoints.reached("loop.handler")
        assert {} == faultpoints.armed

    def test_refuses_an_unknown_point(self):
        """A misspelt point would never be reached, and the test would pass for the wrong reason."""
        with pytest.raises(KeyError, match="unknown fault point"):
            faultpoints.arm("claim.answred", raise_memory_error).__enter__()

    def test_nothing_is_armed_on_import_whatever_the_environment(self):
        """No setting of a production machine can arm a point."""
        output = subprocess.run(
            [sys.executable, "-c", "import dtimer, dtimer.faultpoints as f; print(f.armed)"],
            env={"PYTHONPATH": str(Path(dtimer.__file__).parents[1]), "DTIMER_FAULTPOINTS": "all"},
            capture_output=True,
            check=True,
            text=True,
        )
        assert "{}" == output.stdout.strip()
        assert not hasattr(faultpoints, "os")
