"""The ids that this process replaces while claims are under way."""

from __future__ import annotations

from dtimer.engine.superseded import SupersededIds


def test_remembers_ids_only_while_a_claim_is_under_way():
    """A process that posts for hours between two claims must not collect ids."""
    reposts = SupersededIds()
    reposts.add(["tea"])
    assert set() == reposts.since(0)
    reposts.begin(1)
    reposts.add(["egg"])
    assert {"egg"} == reposts.since(1)
    reposts.end()
    assert set() == reposts.since(0)


def test_an_id_concerns_every_claim_under_way_when_it_was_posted():
    """A claim sent later is not concerned, because the server then returns the new event."""
    reposts = SupersededIds()
    reposts.begin(1)
    reposts.add(["tea"])
    reposts.begin(2)
    assert {"tea"} == reposts.since(1)
    reposts.add(["egg"])
    assert {"tea", "egg"} == reposts.since(1)
    assert {"egg"} == reposts.since(2)
    reposts.begin(3)
    assert {"egg"} == reposts.since(1), "kept ids of a claim that is over"
