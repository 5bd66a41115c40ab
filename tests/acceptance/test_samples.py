"""The samples of the README and the docs run, and do what the pages say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dtimer.testing import Catch

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = Path(__file__).parent / "samples"


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ("quickstart", "hello, attempt 1\n"),
        ("reminder", "reminded\n"),
        ("runat", "first\nmiddle\nlast\n"),
        ("recurring", "sweep 1800000060000.0 4\n['report', 'sweep']\n"),
    ],
)
def test_samples_of_the_docs(sample, says):
    """A sample runs as it stands, with warnings as errors, and prints what it should."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(SAMPLES / f"{sample}.py")],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (0, says, "") == (ran.returncode, ran.stdout, ran.stderr)


def test_the_example_of_the_readme(server, namespace, capsys, monkeypatch):
    """The seed's example, in Python, as the README shows it."""
    text = (ROOT / "README.rst").read_text()
    block = re.search(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", text)[1]
    code = re.sub(r"^ {3}", "", block, flags=re.MULTILINE)
    code = code.replace("redis.Redis()", "client, ns=namespace").replace("import redis\n", "")
    names = {"client": server.client(), "namespace": namespace}
    exec(compile(code, "README.rst", "exec"), names)
    timer = names["dt"]
    caught = Catch(timer, "event")
    (event,) = caught.next()
    timer.leave()
    names["client"].close()
    assert {"msg": "hello"} == event
    assert event.lateness_ms >= 0
    assert f"hello {event.id} 1 " in capsys.readouterr().out


def test_the_readme_shows_the_sample():
    """What the README shows of RunAt is the sample that runs above, to the letter."""
    readme = (ROOT / "README.rst").read_text()
    sample = (SAMPLES / "runat.py").read_text()
    shown = "".join(f"   {line}" if line.strip() else line for line in sample.splitlines(True))
    assert shown in readme
