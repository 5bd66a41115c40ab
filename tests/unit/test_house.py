"""
Rules for modules and tests that are easy to forget.

A contract in setup.cfg says which layer may import which; ``lint-imports`` checks it.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from types import ModuleType

import pytest

import dtimer

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "dtimer").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

#: The most lines of code in a module. A longer module has a second noun.
MOST_LINES = 250

#: Tokens that are not code.
_LAYOUT = {
    *(tokenize.COMMENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.INDENT, tokenize.NEWLINE),
    tokenize.NL,
}


def each(paths):
    """Return a mark that runs a test for each file, named by its path within the repository."""
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def lines_of_code(text):
    """Return the number of lines that have code: no comments, docstrings and blank lines."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_finds_modules_and_tests():
    """The checks below would pass on an empty list if a folder moved."""
    assert MODULES
    assert Path(__file__).resolve() in TESTS


class TestModules:
    """The modules of the package."""

    @each(MODULES)
    def test_a_module_has_at_most_250_lines_of_code(self, path):
        """A longer module has a second noun, which should have a module of its own."""
        assert lines_of_code(path.read_text("utf-8")) <= MOST_LINES

    def test_text_does_not_count_as_code(self):
        """A limit on text would be met by shorter docstrings, or by cutting a class in two."""
        code = ["def f():", "    x = [  # a list", "        1,", "    ]", "    return x"]
        text = ["", "# A comment.", *code[:1], '    """Do it.', "", '    Well."""', *code[1:]]
        assert len(code) == lines_of_code("\n".join(text))

    def test_each_module_has_a_layer(self):
        """`lint-imports` checks this for the package, but not for the modules of `contrib`."""
        text = (ROOT / "setup.cfg").read_text("utf-8")
        layers = re.search(r"^layers =\n((?: .*\n)+)", text, re.MULTILINE)[1]
        package = ROOT / "dtimer"
        found = [*package.glob("[a-z]*"), *(package / "contrib").glob("[a-z]*")]
        modules = {str(path.relative_to(package).with_suffix("")) for path in found}
        wanted = {name.replace("/", ".") for name in modules} - {"contrib", "py"}
        assert wanted <= set(re.findall(r"[a-z.]+", layers))

    def test_all_is_sorted_without_duplicates(self):
        """Sorted names make a change to the public face easy to see."""
        assert sorted(set(dtimer.__all__)) == list(dtimer.__all__)

    def test_all_names_every_public_attribute(self):
        """Submodules, which become attributes once imported, are not listed."""
        public = {
            name
            for name, value in vars(dtimer).items()
            if not name.startswith("_") and not isinstance(value, ModuleType)
        }
        assert public <= {*dtimer.__all__, "TYPE_CHECKING"}

    def test_importing_dtimer_imports_no_submodule(self):
        """Each name is imported when it is first used, so `dtimer --version` answers at once."""
        code = (
            "import sys, dtimer; print([m for m in sys.modules if m.startswith('dtimer.')]);"
            " dtimer.DTimer; print('dtimer.timer' in sys.modules)"
        )
        output = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
        assert ["[]", "True"] == output.splitlines()

    def test_every_name_in_all_can_be_imported(self):
        """The names are imported lazily, so a wrong one would fail only when it is used."""
        assert [] == [name for name in dtimer.__all__ if not hasattr(dtimer, name)]
        # An alias of a type, such as Duration, does not know its name.
        objects = {name: getattr(dtimer, name) for name in dtimer.__all__}
        named = {name: o.__name__ for name, o in objects.items() if isinstance(o, type)}
        assert {name: name for name in named} == named
        assert {"Duration", "IfExists", "Misfire", "Moment", "Overlap"} == {*objects} - {*named}


@each([path for path in TESTS if path != Path(__file__).resolve()])  # this file has the pattern
def test_no_test_sleeps(path):
    """Tests move time or wait for a signal, and so do the programs that they start."""
    text = path.read_text("utf-8")
    assert not re.search(r"\btime\s*\.\s*sleep\b", text)
    assert not re.search(r"\bfrom\s+time\s+import\b[^\n]*\bsleep\b", text)
