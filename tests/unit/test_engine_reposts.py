"""What is posted anew while claims are on their way."""

from __future__ import annotations

from dtimer.engine.reposts import Reposts


def test_only_while_something_is_on_its_way():
    """A process that posts for hours between two turns remembers nothing of it."""
    reposts = Reposts()
    reposts.add(["tea"])
    assert not reposts
    reposts.begin()
    reposts.add(["egg"])
    assert ["egg"] == [id for id in ("tea", "egg") if id in reposts]
    reposts.end()
    assert not reposts
    assert "egg" not in reposts


def test_until_the_claims_of_its_time_have_come():
    """When the next are asked for, those of the question before are not handed out yet."""
    reposts = Reposts()
    reposts.begin()
    reposts.add(["tea"])
    reposts.begin()
    assert "tea" in reposts
    reposts.begin()
    assert "tea" not in reposts
