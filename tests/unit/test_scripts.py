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


def test_one_version():
    """Scripts and package mean the same version of what is kept in Redis."""
    assert f"local SCHEMA = '{SCHEMA}'\n" in texts()["parts/prelude"]
