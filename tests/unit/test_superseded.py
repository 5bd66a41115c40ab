"""The ids that this process replaces while claims are under way."""

from dtimer.engine.superseded import SupersededIds


def test_remembers_ids_only_while_a_claim_is_under_way():
    """A process that posts for hours between two claims must not collect ids."""
    superseded = SupersededIds()
    superseded.add(["tea"])
    assert set() == superseded.since(0)
    superseded.begin(1)
    superseded.add(["egg"])
    assert {"egg"} == superseded.since(1)
    superseded.end()
    assert set() == superseded.since(0)


def test_an_id_concerns_every_claim_under_way_when_it_was_posted():
    """A claim sent later is not concerned, because the server then returns the new event."""
    superseded = SupersededIds()
    superseded.begin(1)
    superseded.add(["tea"])
    superseded.begin(2)
    assert {"tea"} == superseded.since(1)
    superseded.add(["egg"])
    assert {"tea", "egg"} == superseded.since(1)
    assert {"egg"} == superseded.since(2)
    superseded.begin(3)
    assert {"egg"} == superseded.since(1), "kept ids of a claim that is over"
