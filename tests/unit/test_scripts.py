"""Loading the scripts from the package."""

from __future__ import annotations

from importlib import resources

from dtimer import DTimer
from dtimer.store.namespace import SCHEMA
from dtimer.store.scripts import load, texts


def test_reads_no_file_after_a_timer_was_made(monkeypatch):
    """
    A process without a free descriptor, or whose package was upgraded, continues with the scripts
    it has loaded.
    """
    verbs = [name for name in texts() if not name.startswith("parts/")]
    shas = {name: load(name).sha for name in verbs}
    texts.cache_clear()
    load.cache_clear()
    timer = DTimer("node", "redis://127.0.0.1:1")
    with monkeypatch.context() as patched:
        patched.setattr(resources, "files", None)
        assert shas == {name: load(name).sha for name in verbs}
    timer.leave()


def test_sends_scripts_without_comments():
    """
    A post in a pipeline sends its script, a third of which is comments.

    Stripping works by line, so a comment must be a line of its own and no string may span lines.
    """
    for name, text in texts().items():
        for line in text.splitlines():
            assert "--" not in line or line.lstrip().startswith("--"), f"{name}: {line}"
            assert "[[" not in line, f"{name}: {line}"
        if not name.startswith("parts/"):
            sent = load(name).source.decode().splitlines()
            assert [] == [line for line in sent if line.startswith((" ", "--")) or not line]


def test_scripts_and_package_have_the_same_schema_version():
    """A script of another version would misread the stored data."""
    assert f"local SCHEMA = '{SCHEMA}'\n" in texts()["parts/prelude"]
