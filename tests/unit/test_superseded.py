"""The ids that this process replaces while claims are under way."""

from types import SimpleNamespace

from dtimer.engine.superseded import SupersededIds


def leases(*ids):
    """Return leases of events with these ids."""
    return [SimpleNamespace(claim=SimpleNamespace(id=id)) for id in ids]


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


def test_an_event_posted_again_during_each_claim_is_released_only_every_second_time():
    """If each claim released the event, it would not start before the posts end."""
    superseded = SupersededIds()
    released = []
    for seq in range(1, 5):
        superseded.begin(seq)
        superseded.add(["tea"])
        released.append(superseded.to_release(seq, leases("tea")))
    assert [{"tea"}, set(), {"tea"}, set()] == released


def test_an_event_that_has_started_may_be_released_again():
    """After a release, the next claim that has the event starts it. Later claims may release it."""
    superseded = SupersededIds()
    superseded.begin(1)
    superseded.add(["tea"])
    assert {"tea"} == superseded.to_release(1, leases("tea"))
    superseded.begin(2)
    assert set() == superseded.to_release(2, leases("egg"))
    superseded.begin(3)
    superseded.add(["egg"])
    superseded.end()
    assert set() == superseded.to_release(3, leases("tea"))
    superseded.begin(4)
    superseded.add(["tea"])
    assert {"tea"} == superseded.to_release(4, leases("tea"))


def test_does_not_collect_ids_while_a_claim_stays_unanswered():
    """
    While Redis refuses the claims of a node, its process may post for hours. All events of such a
    claim are released, because any of them may be replaced.
    """
    superseded = SupersededIds()
    superseded.begin(1)
    for n in range(25_000):
        superseded.add([f"tea {n}"])
    assert len(superseded.since(1)) <= 10_000
    assert {"tea 0", "tea 24999"} <= superseded.to_release(1, leases("tea 0", "tea 24999"))
    superseded.begin(2)
    assert set() == superseded.to_release(2, leases("egg"))


def test_does_not_collect_the_ids_of_released_events():
    """Other nodes may claim these events, so this node may never claim them again."""
    superseded = SupersededIds()
    for n in range(10_001):
        superseded.begin(n)
        superseded.add([f"tea {n}"])
        superseded.to_release(n, leases(f"tea {n}"))
    superseded.begin(20_000)
    superseded.add(["tea 0", "tea 10000"])
    # The node remembers 10 000 released ids, so it has dropped the oldest, "tea 0". This event is
    # released once more. "tea 10000" is remembered as released, and starts.
    assert {"tea 0"} == superseded.to_release(20_000, leases("tea 0", "tea 10000"))
