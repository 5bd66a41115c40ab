"""The fault points: listed, reachable, armed by code alone, and off in production."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dtimer
from dtimer import faultpoints

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(set((ROOT / "dtimer").rglob("*.py")) - {Path(faultpoints.__file__)})


def calls(path):
    """What a module calls `reached` with, and whether each call is behind a look at `armed`."""
    tree = ast.parse(path.read_text("utf-8"))
    behind = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "armed":
            behind |= {id(inner) for inner in ast.walk(node)}
    for function in ast.walk(tree):
        # A method that groups several is called from behind such a look itself.
        if isinstance(function, ast.FunctionDef) and function.name == "_points":
            behind |= {id(inner) for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("reached"):
            yield ast.literal_eval(node.args[0]), id(node) in behind


def found():
    """Every call of `reached` in the library."""
    return [call for path in MODULES for call in calls(path)]


class TestList:
    """The list of the points is what there is."""

    def test_complete(self):
        """Every point that the library reaches is listed, and every listed one is reached."""
        assert set(faultpoints.POINTS) == {point for point, _ in found()}

    def test_each_behind_a_look(self):
        """No call is made while nothing is armed: each stands behind ``if armed``."""
        assert [] == [point for point, behind in found() if not behind]

    def test_told(self):
        """docs/internals.rst names each of them."""
        text = (ROOT / "docs" / "internals.rst").read_text("utf-8")
        assert [] == [point for point in faultpoints.POINTS if f"``{point}``" not in text]


class TestArming:
    """What may be armed, and for how long."""

    def test_until_the_end_of_the_block(self):
        """What is armed is called where its point is reached, and nowhere after the block."""
        called = []
        with faultpoints.arm("claim.answered", lambda: called.append("outer")):
            with faultpoints.arm("claim.answered", lambda: called.append("inner")):
                faultpoints.reached("claim.answered")
            faultpoints.reached("claim.answered")
            faultpoints.reached("handler.before")
        faultpoints.reached("claim.answered")
        assert ["inner", "outer"] == called
        assert {} == faultpoints.armed

    def test_what_is_armed_may_raise(self):
        """What it raises passes through, and the point is off afterwards all the same."""
        with pytest.raises(MemoryError), faultpoints.arm("loop.hand", _out_of_memory):
            faultpoints.reached("loop.hand")
        assert {} == faultpoints.armed

    def test_unknown(self):
        """A point that there is not is refused: it would never be reached."""
        with pytest.raises(KeyError, match="unknown fault point"):
            faultpoints.arm("claim.answred", _out_of_memory).__enter__()

    def test_off_from_the_start(self):
        """
        A process in which dtimer is imported has nothing armed, whatever its environment:
        no module reads one for it.
        """
        said = subprocess.run(
            [sys.executable, "-c", "import dtimer, dtimer.faultpoints as f; print(f.armed)"],
            env={"PYTHONPATH": str(Path(dtimer.__file__).parents[1]), "DTIMER_FAULTPOINTS": "all"},
            capture_output=True,
            check=True,
            text=True,
        )
        assert "{}" == said.stdout.strip()
        assert not hasattr(faultpoints, "os")


def _out_of_memory():
    raise MemoryError
