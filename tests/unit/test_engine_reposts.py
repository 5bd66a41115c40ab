"""What is posted anew while claims are on their way."""

from __future__ import annotations

from dtimer.engine.reposts import Reposts


def test_only_while_something_is_on_its_way():
    """A process that posts for hours between two turns remembers nothing of it."""
    reposts = Reposts()
    reposts.add(["tea"])
    assert set() == reposts.since(0)
    reposts.begin(1)
    reposts.add(["egg"])
    assert {"egg"} == reposts.since(1)
    reposts.end()
    assert set() == reposts.since(0)


def test_by_the_question():
    """
    What was posted while one question was on its way concerns its answer, also when the next one
    has been asked already; and not that of the next, which was asked later.
    """
    reposts = Reposts()
    reposts.begin(1)
    reposts.add(["tea"])
    reposts.begin(2)
    assert {"tea"} == reposts.since(1)
    reposts.add(["egg"])
    assert {"tea", "egg"} == reposts.since(1)
    assert {"egg"} == reposts.since(2)
    reposts.begin(3)
    assert {"egg"} == reposts.since(1), "nobody will ask for that any more"
