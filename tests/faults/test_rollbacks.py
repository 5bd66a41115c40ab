"""
Rows F20, F21 and F42: Redis loses writes that it had acknowledged, a little or everything.

What is lost, what is back, and that it is told: the window that a node names holds every
write that is gone, and no more than a poll before it.
"""

from __future__ import annotations

import pytest
from chaos.settings import PATIENT
from proxy import Proxy
from servers import LONGEST_CALL, PATIENCE, PROMPT, Server, eventually

from dtimer import DTimer, NotReplicated, StateRollback
from faults.expectations import Watch

LATER = 4_000_000_000_000

#: A node takes a turn at least this often, in ms, and so does not know of less; and what a busy
#: machine adds to that.
SHORTEST = PATIENT["poll_interval"] + PROMPT * 1000


def rollback_of(node):
    """Wait until a node tells of a rollback; it must tell of one alone."""
    eventually(lambda: any(isinstance(e, StateRollback) for e in node.errors))
    (error,) = (e for e in node.errors if isinstance(e, StateRollback))
    return error


def turn_of(*nodes):
    """Wait until each of these has taken another turn."""
    for node in nodes:
        claimer = node.timer._life._claimer
        before = claimer.answered
        eventually(lambda c=claimer, b=before: c.answered > b)


def server_ms(client):
    """Return the time of a server, in ms."""
    seconds, micros = client.time()
    return seconds * 1000 + micros / 1000


class TestPowerLoss:
    """F20: the end of the history is gone with the power."""

    @pytest.mark.fault("F20")
    def test_a_file_cut_short(self, watch, own):
        """
        Of the append-only file the last half is lost: events posted in it are gone, one that
        was cancelled in it is back, and every node says between which moments that was.
        """
        watch.rollback = True
        nodes = [watch.node("node-1"), watch.node("node-2")]
        poster = nodes[0].timer
        poster.post({"n": 1}, at=LATER, id="kept")
        poster.post({"n": 2}, at=LATER, id="cancelled")
        turn_of(*nodes)
        (tail,) = (own.folder / "appendonlydir").glob("*.incr.aof")
        size, began = tail.stat().st_size, server_ms(watch.client)
        assert poster.cancel("cancelled")
        poster.post({"n": 3}, at=LATER, id="gone")
        turn_of(*nodes)
        with watch.fault(degraded=True) as fault:
            own.kill9()
            fault.felt(0.1)
            own.truncate_aof(tail.stat().st_size - size)
            own.start()
            watch.healthy()
            for node in nodes:
                error = rollback_of(node)
                assert not error.wiped
                assert began - SHORTEST <= error.since <= began
                assert server_ms(watch.client) >= error.until
        assert poster.peek("kept")
        assert poster.peek("cancelled")
        assert poster.peek("gone") is None
        poster.cancel("kept")
        poster.cancel("cancelled")

    @pytest.mark.fault("F20")
    def test_an_older_snapshot(self):
        """With snapshots alone all that was done since the last is gone, registrations too."""
        with Server(tcp=True) as own, Watch(own, "chaos") as watch:
            watch.rollback = True
            client = watch.client
            old = watch.node("old")
            watch.wait_handled(watch.post())
            turn_of(old)
            client.save()
            saved = server_ms(client)
            new = watch.node("new")
            ids = [new.timer.post({"n": 9}, id=f"gone-{n}", at=LATER) for n in range(20)]
            turn_of(old, new)
            with watch.fault(degraded=True) as fault:
                own.kill9()
                fault.felt(0.1)
                own.start()
                watch.healthy()
                assert saved - SHORTEST <= rollback_of(old).since <= saved
                # This one was not there yet, and knows of no moment that is.
                assert rollback_of(new).since is None
                assert not rollback_of(new).wiped
            assert [None] * len(ids) == [new.timer.peek(id) for id in ids]
            eventually(lambda: {"old", "new"} == {node.id for node in old.timer.nodes()})

    @pytest.mark.fault("F20")
    @pytest.mark.parametrize("fsync", ["always", "everysec"])
    def test_what_was_on_no_disk(self, fsync):
        """
        With ``appendfsync always`` a power failure loses nothing that was acknowledged, and
        nothing is told. With ``everysec`` something may be gone, and then it is told.
        """
        options = ["--appendfsync", fsync]
        with (
            Server(tcp=True, appendonly=True, args=options, power=True) as own,
            Watch(own, "chaos") as watch,
        ):
            watch.rollback = True
            node = watch.node()
            # Patient: the disk may be slow.
            poster = DTimer("poster", own.url, ns=watch.ns, timeout=LONGEST_CALL)
            ids = [poster.post({"n": n}, at=LATER) for n in range(100)]
            poster.leave()
            turn_of(node)
            with watch.fault(degraded=True) as fault:
                own.lose_power()
                fault.felt(0.1)
                own.start()
                watch.healthy()
            there = {record.id for record in node.timer.upcoming()}
            gone = set(ids) - there
            if fsync == "always":
                assert set() == gone
                assert [] == [e for e in node.errors if isinstance(e, StateRollback)]
            elif gone:
                assert not rollback_of(node).wiped or len(gone) == len(ids)

    @pytest.mark.fault("F20")
    @pytest.mark.fault("F19")
    def test_nothing_lost(self, watch, own):
        """A server that restarts with all it had gives no cause to say so, time and again."""
        node = watch.node()
        for _ in range(2):
            watch.post(700)
            with watch.fault() as fault:
                own.kill9()
                fault.felt(0.1)
                own.start()
        assert [] == [e for e in node.errors if isinstance(e, StateRollback)]


class TestWiped:
    """F21: FLUSHALL while nodes are joined."""

    @pytest.mark.fault("F21")
    def test_all_is_made_anew(self, watch):
        """
        Nodes register again by themselves and say that everything is gone, once each; the
        schedules that they declared recur again; ``health()`` stays well.
        """
        watch.rollback = True
        nodes = [watch.node("node-1"), watch.node("node-2")]
        for node in nodes:
            node.timer.every(50, {"n": "beat"}, id="beat")
        nodes[0].timer.post({"n": 1}, id="gone", at=LATER)
        eventually(lambda: len(watch.handled) > 2)
        with watch.fault(degraded=None):
            watch.client.flushall()
            for node in nodes:
                assert rollback_of(node).wiped
            eventually(lambda: 2 == len(nodes[0].timer.nodes()))
            handled = len(watch.handled)
            eventually(lambda: len(watch.handled) > handled + 2)
        assert nodes[0].timer.peek("gone") is None
        assert all(node.timer.health().ok for node in nodes)
        assert all([] == node.heard("disconnected") for node in nodes)
        nodes[0].timer.unschedule("beat")
        assert [] == list(nodes[0].timer.schedules())

    @pytest.mark.fault("F21")
    def test_again_and_again(self, watch):
        """Each time is told, once."""
        watch.rollback = True
        node = watch.node()
        for times in range(1, 4):
            watch.client.flushall()
            eventually(lambda n=times: len(node.errors) == n)
            watch.wait_handled(watch.post())
            turn_of(node)
        assert [True] * 3 == [error.wiped for error in node.errors]


class TestFailover:
    """F42: a replica is promoted that had not heard of the last writes."""

    @pytest.fixture
    def pair(self, pair):
        """A master, the link to its replica, the replica, and an address that follows."""
        with Proxy(pair[0]) as address:
            yield *pair, address

    @pytest.mark.fault("F42")
    def test_the_writes_of_the_window(self, pair):
        """
        Lost is what was acknowledged in the window: a post, a cancel, a confirm. The post
        that asked for a replica was told at once; the rest is told when it is found out.
        """
        master, link, replica, address = pair
        with Watch(replica, "chaos") as watch:
            watch.rollback = True
            self._fail_over(watch, master, link, replica, address)

    def _fail_over(self, watch, master, link, replica, address):
        poster = DTimer("poster", address.url, ns=watch.ns, **PATIENT)
        node = watch.node(url=address.url)
        poster.post({"n": 1}, at=LATER, id="kept")
        poster.post({"n": 2}, at=LATER, id="cancelled")
        poster.post({"n": 3}, at=LATER, id="again")
        turn_of(node)
        with master.client() as client:
            client.set("mark", 1)
            assert 1 == client.wait(1, PATIENCE * 1000)
            began = server_ms(client)
        link.blackhole()
        # More than are posted by others until it posts again: it knows of no more than totals.
        poster.post_many([({"n": 4}, 10_000_000)] * 100)
        poster.post({"n": 4}, at=LATER, id="gone")
        assert poster.cancel("cancelled")
        assert poster.reschedule("again", 0)
        watch.wait_handled("again")
        with pytest.raises(NotReplicated):
            poster.post({"n": 5}, at=LATER, id="refused", wait_replicas=1)
        turn_of(node)
        with watch.fault(degraded=None, recovers=False) as fault:
            master.kill9()
            eventually(lambda: node.timer.health().error)
            replica.promote()
            address.lead_to(replica)
            address.cut()
            watch.recovered()
            error = rollback_of(node)
            fault.felt(0.0)
        assert not error.wiped
        assert began - SHORTEST <= error.since <= began
        assert poster.peek("kept")
        assert poster.peek("cancelled")
        assert poster.peek("gone") is None
        assert poster.peek("refused") is None
        # It was handled and confirmed, and of that the replica knows nothing.
        assert {"n": 3} == poster.peek("again").event
        assert poster.reschedule("again", 0)
        eventually(lambda: 2 == watch.times("again"))
        # The poster as well, which is no node: it posts less than it knows to have posted.
        told = []
        poster.on("error", told.append)
        poster.post({"n": 6}, at=LATER, id="more")
        assert [StateRollback] == [type(e) for e in told]
        for id in ("kept", "cancelled", "more"):
            poster.cancel(id)
        poster.leave()

    @pytest.mark.fault("F42")
    def test_nothing_is_lost_that_was_replicated(self, pair):
        """A failover at rest loses nothing, and so nothing is told."""
        master, _, replica, address = pair
        with Watch(replica, "chaos") as watch:
            node = watch.node(url=address.url)
            poster = DTimer("poster", address.url, ns=watch.ns, **PATIENT)
            id = poster.post({"n": 0}, 1_000, wait_replicas=1)
            watch.posted[id] = {"n": 0}
            turn_of(node)
            with watch.fault(degraded=None, recovers=False):
                # Turns are writes as well: the last may be the one that is lost.
                master.configure(min_replicas_to_write=2)
                with master.client() as client:
                    eventually(lambda: client.wait(1, 100) == 1)
                    state = client.info("replication")
                    eventually(
                        lambda: (
                            client.info("replication")["slave0"]["offset"]
                            >= state["master_repl_offset"]
                        )
                    )
                master.kill9()
                replica.promote()
                address.lead_to(replica)
                address.cut()
                watch.recovered()
            poster.leave()
            watch.wait_handled(id)
            assert [] == [e for e in node.errors if isinstance(e, StateRollback)]
