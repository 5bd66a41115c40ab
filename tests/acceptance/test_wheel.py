"""
The package as a user installs it: built, installed, and run from another folder.

The source archive is built first and the wheel from it, as pip does when it finds no wheel. So a
file that MANIFEST.in or setup.cfg omits is missing here.
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
from servers import LIMIT, Server

ROOT = Path(__file__).resolve().parents[2]

# Two virtual environments are created and filled from the index.
pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.index,
    pytest.mark.slow,
    pytest.mark.timeout(5 * LIMIT),
]


#: A post and its delivery, with the installed package and a test server.
POST_AND_HANDLE = """
import queue, sys
from dtimer import DTimer

received = queue.Queue()
timer = DTimer("node", sys.argv[1], ns="wheel")
timer.on("event", received.put)
with timer:
    timer.post({"msg": "hello"}, 1)
    print(received.get(timeout=float(sys.argv[2]))[0]["msg"])
"""

#: A line that setuptools prints if it leaves a file out, or will do so in its next version.
WARNING = re.compile(r"\bwarn(ing)?\b|deprecat|found matching|absent from", re.IGNORECASE)


def run(*command, cwd):
    """Run a command and return its output. If it fails, the test shows that output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """
    A folder with the source archive, the wheel, and the output of the build.

    They are built from a copy, because setuptools leaves a build folder behind. The next wheel
    would contain its files, even deleted ones.
    """
    source = tmp_path_factory.mktemp("source") / "dtimer"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    (source / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", source / ".ci")
    out = tmp_path_factory.mktemp("dist")
    output = run(sys.executable, "-m", "build", "--outdir", out, source, cwd=out)
    (out / "build.log").write_text(output, "utf-8")
    return out


@pytest.fixture(scope="module")
def archive(built):
    """The names in the source archive, relative to the project's root."""
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
    """The Python of a clean virtual environment with the wheel and its requirements."""
    home = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", home, cwd=home)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=home)
    return python


def shipped():
    """Return the package's files that are not Python, by their paths in the project."""
    package = ROOT / "dtimer"
    return {
        path.relative_to(ROOT).as_posix()
        for path in (*package.rglob("*.lua"), *package.rglob("py.typed"))
    }


def test_the_build_prints_no_warning(built):
    """A warning is how setuptools announces that its next version will leave the scripts out."""
    lines = (built / "build.log").read_text("utf-8").splitlines()
    assert lines[-1].startswith("Successfully built")
    assert [] == [line for line in lines if WARNING.search(line)]


class TestArchive:
    """The source archive, from which Linux distributions build and test the package."""

    def test_it_contains_the_tests_and_the_docs(self, archive):
        """The source archive contains the tests, the docs and the files of the project's root."""
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

    @pytest.mark.parametrize("folder", ["benchmarks", "docs", "tests"])
    def test_it_contains_every_file_of_a_folder(self, archive, folder):
        """MANIFEST.in names the kinds of files, so it would omit a new kind."""
        files = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
        }
        assert files
        assert set() == files - archive

    def test_it_contains_no_compiled_module(self, archive):
        """A checkout in which the tests have run contains compiled modules."""
        assert set() == {name for name in archive if name.endswith(".pyc")}

    def test_it_contains_the_lua_scripts(self, archive):
        """The source archive contains every script and the typing marker."""
        assert set() == shipped() - archive


class TestWheel:
    """The metadata and the contents of the wheel."""

    def test_it_contains_the_lua_scripts(self, wheel):
        """The wheel contains every script and the typing marker, and nothing except the package."""
        with zipfile.ZipFile(wheel) as file:
            names = set(file.namelist())
        assert {"dtimer/py.typed"} < shipped()
        assert set() == shipped() - names
        assert {"dtimer"} == {n.split("/")[0] for n in names if ".dist-info/" not in n}

    def test_it_requires_three_packages(self, wheel):
        """Installing dtimer installs redis, pyee and cronsim, and no other package."""
        with zipfile.ZipFile(wheel) as file:
            (name,) = (n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = email.message_from_bytes(file.read(name))
        required = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
        everywhere = [r for r in required if "win32" not in r]
        named = sorted(re.split(r"[^\w-]", r)[0] for r in everywhere)
        assert ["cronsim", "pyee", "redis"] == named
        assert "MIT" == metadata["License-Expression"]


class TestInstalled:
    """The wheel in a clean virtual environment, run from another folder."""

    def test_the_package_works_from_elsewhere(self, installed, tmp_path):
        """The installed package is imported, not the checkout, and needs no extra."""
        program = "import dtimer; print(dtimer.DTimer.__name__, dtimer.__file__, sep='\\n')"
        name, file = run(installed, "-c", program, cwd=tmp_path).splitlines()
        assert "DTimer" == name
        assert installed.parents[1] in Path(file).parents

    def test_the_scripts_are_found_as_resources(self, installed, tmp_path):
        """The installed package finds each of its scripts and its typing marker."""
        program = (
            "import sys; from importlib.resources import files\n"
            "for name in sys.argv[1:]:\n"
            "    assert files('dtimer').joinpath(name).is_file(), name\n"
        )
        names = [name.removeprefix("dtimer/") for name in sorted(shipped())]
        run(installed, "-c", program, *names, cwd=tmp_path)

    def test_an_event_is_posted_and_handled(self, installed, tmp_path):
        """The installed package contains everything that a node needs."""
        with Server() as server:
            output = run(installed, "-c", POST_AND_HANDLE, server.url, LIMIT, cwd=tmp_path)
        assert "hello\n" == output

    def test_the_version_is_printed_without_extras(self, installed, wheel, tmp_path):
        """``python -m dtimer --version`` and the console script need no extra."""
        version = wheel.name.split("-")[1]
        assert version in run(installed, "-m", "dtimer", "--version", cwd=tmp_path)
        assert version in run(installed.with_name("dtimer"), "--version", cwd=tmp_path)
