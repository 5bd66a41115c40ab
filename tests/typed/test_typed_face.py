"""
The types of the public face, as a user's type checker sees them.

Two programs are checked, and never run: one has a mistake on each marked line, the other has none.
"""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# A type checker reads the whole package first, on a busy machine for more than the usual minute.
pytestmark = pytest.mark.timeout(600)


def marked():
    """Return the lines of wrong.py that a type checker must refuse."""
    lines = (HERE / "wrong.py").read_text("utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if "  # wrong: " in line}


def mypy(folder):
    """Return the errors of mypy in its strict mode, as file and line."""
    settings = ["--config-file=", "--strict", "--cache-dir", folder / "cache"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, HERE / "right.py", HERE / "wrong.py"],
        env=os.environ | {"MYPYPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^(\S+?):(\d+): error: ", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return [(Path(file).name, int(line)) for file, line in found]


def inside(inner, outer):
    """Return whether the text of one error is a part of the text of another."""

    def place(end):
        return end["line"], end["character"]

    (begin, end), (first, last) = inner, outer
    return inner != outer and place(first) <= place(begin) and place(end) <= place(last)


def pyright(folder):
    """
    Return the errors of pyright, as file and line: strict for right.py, with defaults for wrong.py.

    A call that fits no overload is an error, and each of its arguments another: that counts once.
    """
    (folder / "wrong.py").write_text((HERE / "wrong.py").read_text("utf-8"), "utf-8")
    right = "# pyright: strict\n" + (HERE / "right.py").read_text("utf-8")
    (folder / "right.py").write_text(right, "utf-8")
    settings = {"extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = collections.defaultdict(list)
    for found in json.loads(done.stdout)["generalDiagnostics"]:
        if found["severity"] == "error":
            place = found["range"]["start"], found["range"]["end"]
            errors[Path(found["file"]).name].append(place)
    assert errors, done.stdout + done.stderr
    return [
        (file, place[0]["line"] + 1)
        for file, places in errors.items()
        for place in places
        if not any(inside(place, other) for other in places)
    ]


@pytest.fixture(scope="module", params=[mypy, pyright], ids=["mypy", "pyright"])
def errors(request, tmp_path_factory):
    """The errors that a type checker finds."""
    return request.param(tmp_path_factory.mktemp("typed"))


def test_each_mistake_is_one_error(errors):
    """A mistake that passes shows an Any, or a text where a Literal belongs."""
    lines = [line for file, line in errors if file == "wrong.py"]
    assert len(marked()) > 20
    assert sorted(marked()) == sorted(lines)


def test_what_users_write_is_no_error(errors):
    """A type that is too narrow makes users switch the check off."""
    assert [] == [line for file, line in errors if file == "right.py"]
