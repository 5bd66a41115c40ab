"""The heartbeat: which leases it renews, when, and for how long."""

import time

import pytest
from seats import Announced, FakeStore, make_leases, reply

from dtimer.engine.heartbeat import Heartbeat
from dtimer.model.claims import Claim, Verdict


class HeartbeatHarness:
    """A heartbeat of the leases of some events."""

    def __init__(self, *ids, **options):
        self.store, self.announced = FakeStore(), Announced()
        self.leases = make_leases(announced=self.announced, **options)
        self.heartbeat = Heartbeat(self.store, self.leases, 30_000_000)
        self.held = self.leases.grant(reply(*ids).claims, time.monotonic())

    def beat(self):
        """Make a heartbeat due, and let it beat; return the renewals."""
        self.heartbeat.due = 0.0
        self.heartbeat.beat()
        return self.store.renewed


def test_renews_every_third_of_a_lease():
    """Two heartbeats may fail before the lease expires."""
    harness = HeartbeatHarness("tea", "egg")
    before = time.monotonic()
    assert [(["tea", "egg"], 30_000_000)] == harness.beat()
    assert before + 10 <= harness.heartbeat.due <= time.monotonic() + 10
    harness.heartbeat.beat()
    assert 1 == len(harness.store.renewed)


def test_the_first_beat_counts_from_the_claim():
    """The lease began before the reply arrived. Later claims do not delay the beat."""
    harness = HeartbeatHarness()
    harness.heartbeat.leases_began(100.0)
    assert 110.0 == harness.heartbeat.due
    harness.leases.grant(reply("tea").claims, 100.0)
    harness.heartbeat.leases_began(105.0)
    assert 110.0 == harness.heartbeat.due


def test_does_not_renew_settled_events_or_those_over_max_run():
    """A renewal would keep the event from other nodes."""
    harness = HeartbeatHarness("tea", "egg", "ham", max_run=10_000)
    tea, egg, ham = harness.held
    tea.reserve(Verdict.CONFIRM)
    egg.started = ham.started = time.monotonic()
    egg.started -= 11
    assert [(["ham"], 30_000_000)] == harness.beat()
    assert 1 == harness.leases.stuck()


def test_reports_a_lost_lease_once_and_renews_the_others():
    """The handler must learn that another node may run the event."""
    harness = HeartbeatHarness("tea", "egg")
    tea, egg = harness.held
    harness.store.lost.add("egg")
    for _ in range(2):
        harness.beat()
    assert [["tea", "egg"], ["tea"]] == [ids for ids, _ in harness.store.renewed]
    assert [("lease_lost", egg.event)] == harness.announced.all()
    assert egg.lost()
    assert not tea.lost()


def test_repeats_a_failed_heartbeat_soon():
    """Waiting for the next regular heartbeat could lose the lease."""
    harness = HeartbeatHarness("tea")
    harness.store.trouble = OSError("no reply")
    with pytest.raises(OSError, match="no reply"):
        harness.beat()
    assert 0.0 == harness.heartbeat.due


def test_renews_an_extended_lease_for_the_rest_of_its_extension():
    """A regular heartbeat would shorten the lease that the handler asked for."""
    harness = HeartbeatHarness("tea", "egg")
    harness.held[1]._wanted_until.append(time.monotonic() + 60)
    tea, (ids, lease_us) = harness.beat()
    assert (["tea"], 30_000_000) == tea
    assert ["egg"] == ids
    assert 30_000_000 < lease_us <= 60_000_000


def test_sends_an_extension_again_if_a_heartbeat_overtook_it():
    """
    The heartbeat was under way when the handler extended the lease, and shortened it again. The
    handler may return before the next heartbeat, so the extension is sent at once.
    """
    harness = HeartbeatHarness("tea")
    (tea,) = harness.held
    renew = harness.store.renew

    def overtaken(held, lease_us):
        harness.store.renew = renew
        tea._wanted_until.append(time.monotonic() + 60)
        return renew(held, lease_us)

    harness.store.renew = overtaken
    first, second = harness.beat()
    assert (["tea"], 30_000_000) == first
    assert 60_000_000 <= second[1]


def test_renews_at_most_100_leases_a_call():
    """A script that renewed all of them would block the server."""
    harness = HeartbeatHarness()
    claims = [Claim(str(n), n, 1, 1, 1, 3, b"{}") for n in range(240)]
    harness.leases.grant(claims, time.monotonic())
    assert [100, 100, 40] == [len(ids) for ids, _ in harness.beat()]
