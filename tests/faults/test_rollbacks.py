"""
Faults F20, F21 and F42: Redis loses some or all of the writes that it had acknowledged.

Each node must report the rollback. The window that it names must include every lost write, and may
begin at most one poll interval before the first of them.
"""

from __future__ import annotations

import pytest
from chaos.settings import PATIENT
from proxy import Proxy
from servers import PATIENCE, PROMPT, YEAR_2096, Server, eventually, server_ms

from dtimer import NotReplicated, StateRollback
from faults.expectations import Watch

#: The longest time between two claims of a node, in ms, on a busy machine. A node cannot date a
#: rollback more precisely.
LONGEST_POLL = PATIENT["poll_interval"] + PROMPT * 1000


def rollback_of(node):
    """Wait until a node reports a rollback, and return it; there must be exactly one."""
    eventually(lambda: node.rollbacks)
    (rollback,) = node.rollbacks
    return rollback


def assert_dates(rollback, ms):
    """Assert that the reported window begins at most one poll interval before this time."""
    assert ms - LONGEST_POLL <= rollback.since <= ms


def wait_next_claim(*nodes):
    """Wait until each node has claimed once more."""
    for node in nodes:
        contact = node.timer._node._contact
        before = contact.answered
        eventually(lambda c=contact, b=before: c.answered > b)


@pytest.mark.fault("F20")
class TestPowerLoss:
    """The last writes are lost in a power failure."""

    def test_each_node_names_the_window_of_a_truncated_append_only_file(self, watch, own_server):
        """An operator needs it to find posts that are gone, and cancels that are undone."""
        watch.rollback = True
        nodes = [watch.node("node-1"), watch.node("node-2")]
        poster = nodes[0].timer
        poster.post({"n": 1}, at=YEAR_2096, id="kept")
        poster.post({"n": 2}, at=YEAR_2096, id="cancelled")
        wait_next_claim(*nodes)
        (tail,) = (own_server.folder / "appendonlydir").glob("*.incr.aof")
        size, began = tail.stat().st_size, server_ms(watch.client)
        assert poster.cancel("cancelled")
        poster.post({"n": 3}, at=YEAR_2096, id="gone")
        wait_next_claim(*nodes)
        with watch.fault() as fault:
            own_server.kill9()
            fault.felt(0.1)
            own_server.truncate_aof(tail.stat().st_size - size)
            own_server.start()
            watch.healthy()
            for node in nodes:
                rollback = rollback_of(node)
                assert not rollback.wiped
                assert_dates(rollback, began)
                assert server_ms(watch.client) >= rollback.until
        assert poster.peek("kept")
        assert poster.peek("cancelled")
        assert poster.peek("gone") is None
        poster.cancel("kept")
        poster.cancel("cancelled")

    def test_reports_the_writes_and_the_registrations_lost_since_the_last_snapshot(self):
        """Without an append-only file Redis restarts from its last snapshot."""
        with Server(tcp=True) as own_server, Watch(own_server, "chaos") as watch:
            watch.rollback = True
            client = watch.client
            old = watch.node("old")
            watch.wait_handled(watch.post())
            wait_next_claim(old)
            client.save()
            saved = server_ms(client)
            new = watch.node("new")
            ids = [new.timer.post({"n": 9}, id=f"gone-{n}", at=YEAR_2096) for n in range(20)]
            wait_next_claim(old, new)
            with watch.fault() as fault:
                own_server.kill9()
                fault.felt(0.1)
                own_server.start()
                watch.healthy()
                assert_dates(rollback_of(old), saved)
                # This node joined after the snapshot: it has seen no state that was kept.
                assert rollback_of(new).since is None
                assert not rollback_of(new).wiped
            assert [None] * len(ids) == [new.timer.peek(id) for id in ids]
            eventually(lambda: {"old", "new"} == {node.id for node in old.timer.nodes()})

    @pytest.mark.parametrize("fsync", ["always", "everysec"])
    def test_loses_nothing_with_appendfsync_always_and_reports_any_loss_with_everysec(self, fsync):
        """The docs advise users on this setting: ``everysec`` may lose the last second."""
        options = ["--appendfsync", fsync]
        with (
            Server(tcp=True, appendonly=True, args=options, power=True) as own_server,
            Watch(own_server, "chaos") as watch,
        ):
            watch.rollback = True
            node = watch.node()
            # The disk may be slow, so the poster waits long.
            poster = watch.caller()
            ids = [poster.post({"n": n}, at=YEAR_2096) for n in range(100)]
            wait_next_claim(node)
            with watch.fault() as fault:
                own_server.lose_power()
                fault.felt(0.1)
                own_server.start()
                watch.healthy()
            there = {record.id for record in node.timer.upcoming()}
            gone = set(ids) - there
            if fsync == "always":
                assert set() == gone
                assert [] == node.rollbacks
            elif gone:
                assert not rollback_of(node).wiped or len(gone) == len(ids)


@pytest.mark.fault("F21")
def test_nodes_register_and_declare_their_schedules_again_after_a_wipe(watch):
    """Each node reports the wipe once, and ``health()`` stays ok: the server answers."""
    watch.rollback = True
    nodes = [watch.node("node-1"), watch.node("node-2")]
    for node in nodes:
        node.timer.every(50, {"n": "beat"}, id="beat")
    timer = nodes[0].timer
    timer.post({"n": 1}, id="gone", at=YEAR_2096)
    eventually(lambda: len(watch.handled) > 2)
    with watch.fault(degraded=False):
        watch.client.flushall()
        assert [True, True] == [rollback_of(node).wiped for node in nodes]
        eventually(lambda: 2 == len(timer.nodes()))
        handled = len(watch.handled)
        eventually(lambda: len(watch.handled) > handled + 2)
    assert timer.peek("gone") is None
    assert all(node.timer.health().ok for node in nodes)
    assert all([] == node.heard("disconnected") for node in nodes)
    timer.unschedule("beat")
    assert [] == list(timer.schedules())


@pytest.mark.fault("F42")
class TestFailover:
    """The promoted replica has not received the last writes of its master."""

    @pytest.fixture
    def replication(self, replication):
        """A master, the link to its replica, the replica, and an address for clients."""
        with Proxy(replication[0]) as address:
            yield *replication, address

    @pytest.fixture
    def watch(self, replication):
        with Watch(replication[2], "chaos") as watch:
            yield watch

    def test_loses_the_writes_of_the_window_and_reports_them(self, watch, replication):
        """The nodes report them later. A post with ``wait_replicas`` raises at once."""
        master, link, replica, address = replication
        watch.rollback = True
        poster = watch.caller("poster", address.url, **PATIENT)
        node = watch.node(url=address.url)
        poster.post({"n": 1}, at=YEAR_2096, id="kept")
        poster.post({"n": 2}, at=YEAR_2096, id="cancelled")
        poster.post({"n": 3}, at=YEAR_2096, id="again")
        wait_next_claim(node)
        with master.client() as client:
            client.set("mark", 1)
            assert 1 == client.wait(1, PATIENCE * 1000)
            link.blackhole()
            # Read after the cut: a claim between the two would be replicated, and be later.
            began = server_ms(client)
        # The poster compares totals. So it must lose more posts than others make before its next.
        poster.post_many([({"n": 4}, 10_000_000)] * 100)
        poster.post({"n": 4}, at=YEAR_2096, id="gone")
        assert poster.cancel("cancelled")
        assert poster.reschedule("again", 0)
        watch.wait_handled("again")
        with pytest.raises(NotReplicated):
            poster.post({"n": 5}, at=YEAR_2096, id="refused", wait_replicas=1)
        wait_next_claim(node)
        with watch.fault(degraded=False, recovers=False) as fault:
            master.kill9()
            eventually(lambda: node.timer.health().error)
            replica.promote()
            address.lead_to(replica)
            address.cut()
            watch.assert_recovery()
            rollback = rollback_of(node)
            fault.felt(0.0)
        assert not rollback.wiped
        assert_dates(rollback, began)
        assert poster.peek("kept")
        assert poster.peek("cancelled")
        assert poster.peek("gone") is None
        assert poster.peek("refused") is None
        # The replica has not received the confirm, so the event is pending again.
        assert {"n": 3} == poster.peek("again").event
        assert poster.reschedule("again", 0)
        eventually(lambda: 2 == watch.times("again"))
        # The poster, which has not joined, finds a smaller total of posts than it has seen.
        errors = []
        poster.on("error", errors.append)
        poster.post({"n": 6}, at=YEAR_2096, id="more")
        assert [StateRollback] == [type(e) for e in errors]
        for id in ("kept", "cancelled", "more"):
            poster.cancel(id)

    def test_reports_nothing_if_the_replica_had_every_write(self, watch, replication):
        """A planned failover must not alarm an operator."""
        master, _, replica, address = replication
        node = watch.node(url=address.url)
        poster = watch.caller("poster", address.url, **PATIENT)
        id = poster.post({"n": 0}, 1_000, wait_replicas=1)
        watch.posted[id] = {"n": 0}
        wait_next_claim(node)
        with watch.fault(degraded=False, recovers=False):
            # Claims are writes too. Refuse them, or the failover may lose the last one.
            master.configure(min_replicas_to_write=2)
            with master.client() as client:
                eventually(lambda: client.wait(1, 100) == 1)
                written = client.info("replication")["master_repl_offset"]
                eventually(lambda: client.info("replication")["slave0"]["offset"] >= written)
            master.kill9()
            replica.promote()
            address.lead_to(replica)
            address.cut()
            watch.assert_recovery()
        watch.wait_handled(id)
        assert [] == node.rollbacks
