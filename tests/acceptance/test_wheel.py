"""
What the package index would hand to a user: built, installed and run from elsewhere.

The source archive is built first and the wheel out of it, as an installer without a
wheel would, so a file that MANIFEST.in or setup.cfg forgets is missed here.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from servers import LIMIT

ROOT = Path(__file__).resolve().parents[2]

# Two virtual environments are made and filled from the index.
pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.index,
    pytest.mark.slow,
    pytest.mark.timeout(5 * LIMIT),
]


def run(*command, cwd):
    """What a command printed; a test that runs one that fails shows what it said."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """
    A folder with the source archive and the wheel.

    Built from a copy: setuptools leaves a build folder behind, and what lies in there
    would come back in the next wheel, deleted files too.
    """
    source = tmp_path_factory.mktemp("source") / "dtimer"
    strange = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=strange)
    (source / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", source / ".ci")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, source, cwd=out)
    return out


@pytest.fixture(scope="module")
def archive(built):
    """The names in the source archive, from the root of the project on."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


@pytest.fixture(scope="module")
def wheel(built):
    """The path of the wheel."""
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The Python of a clean virtual environment that has the wheel and what it requires."""
    home = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", home, cwd=home)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=home)
    return python


def shipped():
    """The files of the package that are not Python, by their path in the project."""
    package = ROOT / "dtimer"
    return {
        path.relative_to(ROOT).as_posix()
        for path in (*package.rglob("*.lua"), *package.rglob("py.typed"))
    }


class TestArchive:
    """The source archive, from which a distribution builds and tests."""

    def test_it_holds_the_tests_and_the_docs(self, archive):
        """Tests, docs and the files of the project's root are in the source archive."""
        wanted = {
            ".ci/run",
            "CHANGELOG.rst",
            "CONTRIBUTING.rst",
            "LICENSE",
            "README.rst",
            "docs/conf.py",
            "tests/acceptance/test_wheel.py",
            "tests/conftest.py",
            "tox.ini",
        }
        assert set() == wanted - archive

    def test_it_holds_what_is_not_python(self, archive):
        """Every script and the mark of typing are in the source archive."""
        assert set() == shipped() - archive


class TestWheel:
    """The wheel, by what it says and holds."""

    def test_it_holds_what_is_not_python(self, wheel):
        """Every script and the mark of typing are in the wheel, and nothing but the package is."""
        with zipfile.ZipFile(wheel) as file:
            names = set(file.namelist())
        assert {"dtimer/py.typed"} < shipped()
        assert set() == shipped() - names
        assert {"dtimer"} == {n.split("/")[0] for n in names if ".dist-info/" not in n}

    def test_it_requires_few_packages(self, wheel):
        """Whoever installs dtimer gets redis, pyee and cronsim with it, and nothing else."""
        with zipfile.ZipFile(wheel) as file:
            (name,) = (n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = email.message_from_bytes(file.read(name))
        required = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
        everywhere = [r for r in required if "win32" not in r]
        named = sorted(re.split(r"[^\w-]", r)[0] for r in everywhere)
        assert ["cronsim", "pyee", "redis"] == named
        assert "MIT" == metadata["License-Expression"]


class TestInstalled:
    """The wheel in a clean virtual environment, run from a folder that is not ours."""

    def test_the_package_works_from_elsewhere(self, installed, tmp_path):
        """
        ``DTimer`` is there without any extra, and comes from the virtual environment
        and not from the checkout.
        """
        program = "import dtimer; print(dtimer.DTimer.__name__, dtimer.__file__, sep='\\n')"
        name, file = run(installed, "-c", program, cwd=tmp_path).splitlines()
        assert "DTimer" == name
        assert installed.parents[1] in Path(file).parents

    def test_the_scripts_are_found_as_resources(self, installed, tmp_path):
        """The installed package finds each of its scripts, and its mark of typing, by itself."""
        program = (
            "import sys; from importlib.resources import files\n"
            "for name in sys.argv[1:]:\n"
            "    assert files('dtimer').joinpath(name).is_file(), name\n"
        )
        names = [name.removeprefix("dtimer/") for name in sorted(shipped())]
        run(installed, "-c", program, *names, cwd=tmp_path)

    def test_the_version_is_told_without_extras(self, installed, wheel, tmp_path):
        """
        ``python -m dtimer --version`` and the console script print the version of the
        wheel, also where the extra of the command line is not installed.
        """
        version = wheel.name.split("-")[1]
        assert version in run(installed, "-m", "dtimer", "--version", cwd=tmp_path)
        assert version in run(installed.with_name("dtimer"), "--version", cwd=tmp_path)
