"""The scripts as they are read from the package."""

from __future__ import annotations

from importlib import resources

from dtimer import DTimer
from dtimer.store.namespace import SCHEMA
from dtimer.store.scripts import load, texts


def test_no_file_is_read_once_a_timer_is_made(monkeypatch):
    """
    A process that has no descriptor left, or whose package was upgraded under it, goes on
    with the scripts that it began with.
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


def test_comments_are_not_sent():
    """
    A post in a pipe sends its script, of which more than a third is comments. They are lines of
    their own, and no string goes over a line: so a line that begins with dashes is one.
    """
    for name, text in texts().items():
        for line in text.splitlines():
            assert "--" not in line or line.lstrip().startswith("--"), f"{name}: {line}"
            assert "[[" not in line, f"{name}: {line}"
        if not name.startswith("parts/"):
            sent = load(name).source.decode().splitlines()
            assert [] == [line for line in sent if line.startswith((" ", "--")) or not line]


def test_one_version():
    """Scripts and package mean the same version of what is kept in Redis."""
    assert f"local SCHEMA = '{SCHEMA}'\n" in texts()["parts/prelude"]
