"""Faults F41 and F43 to F48: failovers, split brain, slots that move, and wrong servers."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from pathlib import Path

import pytest
import redis
from background import together
from chaos.settings import CALL_LIMIT, HASTY, PATIENT
from proxy import Proxy
from redis.crc import key_slot
from servers import LONGEST_CALL, PATIENCE, YEAR_2096, eventually
from topologies import holder, migrate, watched_by_sentinel

import dtimer.store
from dtimer import DTimer, OutcomeUnknown, StateRollback, StoreError
from dtimer.store.keys import Keys
from dtimer.testing import Catch
from faults.calls import definite_failure, hurried
from faults.expectations import Watch

#: The namespace of these tests.
NS = "chaos"


def wait_replicated(master):
    """Wait until the replica has all writes of its master."""
    with master.client() as client:
        client.set("mark", 1)
        assert 1 == client.wait(1, PATIENCE * 1000)


def next_rollback(errors):
    """Return the next rollback that a `Catch` of errors receives."""
    while not isinstance(error := errors.next(), StateRollback):
        pass
    return error


@pytest.mark.fault("F41")
def test_nodes_follow_a_failover_of_sentinel_and_report_what_it_lost():
    """Each replicated event is handled once. A coordinated failover (Valkey 9) loses no post."""
    with (
        watched_by_sentinel() as (client, master, replica, sentinel_server),
        Watch(replica, NS) as watch,
    ):
        watch.rollback = True
        (sentinel,) = client.sentinels
        node = watch.node(url=client.master_for("events"))
        timer = watch.caller("poster", client.master_for("events"), **PATIENT)
        errors = Catch(timer, "error")
        kept = [timer.post({"n": n}, 500, id=f"kept-{n}") for n in range(10)]
        wait_replicated(master)
        posted = []
        with watch.fault(degraded=False, recovers=False):
            coordinated = begin_failover(sentinel)
            for n in itertools.count():
                with contextlib.suppress(StoreError):
                    posted.append(timer.post({"n": n}, at=YEAR_2096, id=f"during-{n}"))
                if sentinel.sentinel_get_master_addr_by_name("events")[1] == replica.port:
                    break
            if not coordinated:
                # The old master would accept writes for ten more seconds.
                with master.client() as probe:
                    probe.replicaof("127.0.0.1", replica.port)
            watch.assert_recovery()
        posted.append(timer.post({"n": -1}, at=YEAR_2096, id="after"))
        watch.wait_handled(*kept)
        lost = [id for id in posted if timer.peek(id) is None]
        if coordinated or (not node.rollbacks and errors.empty()):
            assert [] == node.rollbacks
            assert [] == lost
            assert [1] * len(kept) == [watch.times(id) for id in kept]
        sentinel_server.kill9()
        master.kill9()


def begin_failover(sentinel):
    """Begin a failover; return True if the servers coordinate it (Valkey 9)."""
    try:
        sentinel.execute_command("SENTINEL", "FAILOVER", "events", "COORDINATED")
    except redis.ResponseError:
        sentinel.execute_command("SENTINEL", "FAILOVER", "events")
        return False
    return True


@pytest.mark.fault("F43")
class TestSplitBrain:
    """Two masters accept writes, each from its own clients."""

    def test_the_remaining_master_refuses_the_lower_token(self, replication):
        """No client can prevent that both masters grant the event. The tokens differ."""
        master, link, replica = replication
        with Proxy(master) as proxy, Watch(replica, NS) as watch:
            watch.rollback = True
            cut_off = watch.caller("cut off", proxy.url, auto_confirm=False, **PATIENT)
            events, errors = Catch(cut_off, "event"), Catch(cut_off, "error")
            cut_off.join()
            cut_off.post({"n": 1}, at=YEAR_2096, id="shared")
            wait_replicated(master)
            link.blackhole()
            replica.promote()
            assert cut_off.reschedule("shared", 0)
            (first,) = events.next()
            node = watch.node("node")
            assert node.timer.reschedule("shared", 0)
            watch.wait_handled("shared")
            (second,) = watch.handled
            assert second.token > first.token
            proxy.lead_to(replica)
            proxy.cut()
            assert not first.confirm()
            assert not next_rollback(errors).wiped
            cut_off.leave()
            # This node lost nothing: it only ever used the new master.
            assert [] == node.rollbacks
            watch.assert_recovery()

    @pytest.mark.fault("F36")
    def test_a_master_without_its_replica_refuses_writes(self, replication):
        """With ``min-replicas-to-write``, no second master can differ from it. Events wait."""
        master, link, replica = replication
        master.configure(min_replicas_to_write=1, min_replicas_max_lag=1)
        with master.client() as client:
            eventually(lambda: client.info("replication")["min_slaves_good_slaves"] == 1)
        with Watch(master, NS) as watch:
            node = watch.node()
            with watch.fault(recovers=False) as fault:
                link.blackhole()
                fault.felt()
                assert "NOREPLICAS" in node.timer.health().error
                with definite_failure("NOREPLICAS"):
                    node.timer.post({"n": 1})
            link.heal()
            watch.healthy()
            watch.assert_recovery()
            assert [] == node.rollbacks
            replica.kill9()
            master.configure(min_replicas_to_write=0)


@pytest.fixture
def cluster(cluster):
    """A client of a cluster, its servers, and the one of them that holds the namespace."""
    return *cluster, holder(NS, *cluster)


@pytest.fixture
def own_cluster(own_cluster):
    """The same of a cluster whose servers a test may kill."""
    return *own_cluster, holder(NS, *own_cluster)


@pytest.mark.fault("F44")
class TestCluster:
    """Slots move, and servers fail or hang."""

    @pytest.fixture
    def poster(self, cluster):
        """A timer that only posts."""
        timer = DTimer("poster", cluster[0], ns=NS, timeout=LONGEST_CALL)
        yield timer
        timer.leave()

    def test_a_node_follows_a_slot_that_moves(self, own_cluster):
        """During the move, posts succeed or raise. The move is not mistaken for a rollback."""
        client, servers, source = own_cluster
        target = servers[servers.index(source) - 1]
        with Watch(target, NS) as watch:
            timer = watch.caller("poster", client, **PATIENT)
            node = watch.node(url=client)
            pending = [watch.post(400, timer) for _ in range(20)]
            timer.post({"n": 0}, at=YEAR_2096, id="stays")
            refused = 0
            with watch.fault(degraded=False, recovers=False):
                # The servers refuse each post until its deadline.
                with hurried(timer):
                    for _ in migrate(NS, servers, source, target):
                        try:
                            pending.append(watch.post(0, timer))
                        except StoreError:
                            refused += 1
                watch.assert_recovery()
            assert refused, "no post met the move"
            watch.wait_handled(*pending)
            assert timer.peek("stays")
            timer.cancel("stays")
            assert [] == node.rollbacks
            # The source keeps the connections open for a while.
            target.configure(cluster_require_full_coverage="no")
            source.kill9()

    def test_a_node_recovers_within_a_second_of_its_servers_return(self, own_cluster):
        """The other servers run. The server returns empty, and the node reports that too."""
        client, servers, server = own_cluster
        timer = DTimer("node", client, ns=NS, **PATIENT)
        events, errors = Catch(timer, "event"), Catch(timer, "error")
        with timer:
            server.kill9()
            errors.next()
            with next(s for s in servers if s is not server).client() as probe:
                eventually(lambda: probe.cluster("INFO")["cluster_state"] == "fail")
            with pytest.raises(StoreError):
                timer.post({"n": 1}, id="perhaps")
            server.start()
            eventually(lambda: timer.health().ok)
            assert next_rollback(errors).wiped
            timer.post({"n": 2})
            while {"n": 2} != events.next()[0]:
                pass

    @pytest.mark.parametrize("all_servers", [True, False], ids=["all", "its own"])
    def test_a_post_to_hung_servers_is_unknown_within_its_deadline(
        self, cluster, poster, all_servers
    ):
        """A hung server may run the post later, and none may tell where the slots are."""
        client, servers, server = cluster
        hanging = servers if all_servers else [server]
        timer = DTimer("node", client, ns=NS, **PATIENT)
        events, errors = Catch(timer, "event"), Catch(timer, "error")
        # The poster is another timer. The threads of a node may hold all its connections: a post
        # would open another, which a hanging server does not complete, and fail as not sent.
        with timer:
            poster.post({"n": 0})
            assert {"n": 0} == events.next()[0]
            for each in hanging:
                each.pause()
            began = time.monotonic()
            with hurried(poster), pytest.raises(OutcomeUnknown):
                poster.post({"n": 1}, at=YEAR_2096, id="perhaps")
            assert time.monotonic() - began <= CALL_LIMIT
            errors.next()
            for each in hanging:
                each.resume()
            eventually(lambda: timer.health().ok)
            poster.post({"n": 2}, id="perhaps")
            assert {"n": 2} == events.next()[0]

    def test_a_first_call_to_hung_servers_fails_definitely(self, cluster):
        """Only the slot lookup was sent, so the post is known not to have run."""
        client, servers, _ = cluster
        timer = DTimer("node", client, ns=NS, **PATIENT | HASTY)
        for each in servers:
            each.pause()
        began = time.monotonic()
        with definite_failure():
            timer.post({"n": 1})
        assert time.monotonic() - began <= CALL_LIMIT
        for each in servers:
            each.resume()
        timer.leave()

    def test_a_redirection_is_followed_within_one_try(self, cluster, poster):
        """A claim has only one try, and would report an outage."""
        _, servers, source = cluster
        steps = migrate(NS, servers, source, servers[servers.index(source) - 1])
        poster.post({"n": 1}, at=YEAR_2096, id="moved")
        for _ in steps:
            pass
        assert b"scheduled" == poster._store._scripts.call_once("peek", "moved")[0]

    def test_eight_threads_share_one_slot_lookup(self, cluster, poster):
        """After a failover, all threads of all nodes would otherwise ask at once."""
        _, servers, _ = cluster
        before = slot_lookups(servers)
        together(8, lambda _: poster.post({}, at=YEAR_2096))
        assert 1 == slot_lookups(servers) - before


def slot_lookups(servers):
    """Return how often clients have asked these servers for the table of slots."""
    lookups = 0
    for server in servers:
        with server.client() as client:
            stats = client.info("commandstats")
            lookups += stats.get("cmdstat_cluster|slots", {"calls": 0})["calls"]
    return lookups


@pytest.mark.fault("F46")
def test_a_wake_reaches_a_subscription_on_another_server_of_a_cluster(cluster):
    """PUBLISH does not count such a subscriber, so dtimer must not rely on the count."""
    client, servers, server = cluster
    with next(s for s in servers if s is not server).client() as sub:
        timer = DTimer("node", client, sub, ns=NS, poll_interval=60_000)
        events = Catch(timer, "event")
        other_node = DTimer("other", client, ns=NS)
        with timer:
            eventually(lambda: timer.health().ok)
            for n in range(3):
                other_node.post({"n": n}, 20)
                assert {"n": n} == events.next()[0]
        other_node.leave()


_CALL = re.compile(r"redis\.p?call\(\s*'([A-Z]+)'\s*(?:,\s*([^\n]*))?")


@pytest.mark.fault("F45")
class TestKeys:
    """A server may reject a script that uses an undeclared key, or keys of two slots."""

    @pytest.mark.parametrize("ns", ["dt", "a.b:c~d-e_f", "x" * 64])
    def test_all_keys_of_a_namespace_are_in_one_slot(self, ns):
        """The hash tag is the name of the namespace, so different namespaces can be spread."""
        assert {key_slot(ns.encode())} == {key_slot(key.encode()) for key in Keys.of(ns)}

    def test_scripts_build_no_keys(self):
        """A key that is built in a script, or passed as an argument, would fail in a cluster."""
        folder = Path(dtimer.store.__file__).parent / "lua"
        prelude = (folder / "parts" / "prelude.lua").read_text()
        declared = re.search(r"local (DUE[A-Z_, \n]+) = unpack\(KEYS\)", prelude)[1]
        names = set(re.findall(r"\w+", declared))
        assert len(Keys._fields) == len(names)
        # Functions and loops use one of ``KEYS`` under these names. A channel is not a key.
        with_key = ("TYPE", "ZCOUNT", "ZRANGE", "ZRANK", "ZREVRANGEBYSCORE", "ZSCORE")
        others = {(command, "key") for command in with_key}
        others |= {("HRANDFIELD", "pair[1]"), ("ZSCORE", "pair[2]")}
        undeclared = []
        for path in sorted(folder.rglob("*.lua")):
            for command, rest in _CALL.findall(path.read_text()):
                first = re.split(r"[,)]", rest)[0].strip()
                if command in {"TIME", "PUBLISH"} or first in names:
                    continue
                if (command, first) not in others:
                    undeclared.append(f"{path.name}: {command} {first}")
        assert [] == undeclared


@pytest.mark.fault("F47")
def test_a_subscription_left_on_the_old_master_is_detected(replication):
    """
    The old master still runs, and never sends a wake. The node notices, because its echo goes
    through the new master and does not come back.
    """
    master, _, replica = replication
    with Proxy(master) as proxy, Proxy(master) as sub, Watch(replica, NS) as watch:
        watch.rollback = True
        node = watch.node(url=proxy.url, sub=sub.url)
        watch.posted[node.timer.post({"n": "before"})] = {"n": "before"}
        with watch.fault(degraded=False, recovers=False):
            # The old master does not become a replica, so it still accepts subscriptions.
            replica.promote()
            proxy.lead_to(replica)
            proxy.cut()
            eventually(lambda: node.timer.health().deaf)
            watch.wait_handled(watch.post())
            eventually(lambda: any("wakes do not arrive" in str(e) for e in node.errors))
            # The open connection stays: the deaf node must subscribe again by itself.
            sub.lead_to(replica)
            watch.assert_recovery()


@pytest.mark.fault("F48")
def test_joining_and_posting_on_a_replica_fail_with_the_cause(replication, caplog):
    """The error and the log say that the server is a read-only replica."""
    _, _, replica = replication
    with Watch(replica, NS) as watch:
        timer = watch.caller("node", **PATIENT)
        timer.on("event", lambda _: None)
        for call in (timer.join, lambda: timer.post({})):
            with pytest.raises(StoreError, match=r"read only replica|READONLY"):
                watch.in_time(call)
        assert "replica" in caplog.text
        assert not timer.joined


@pytest.mark.fault("F48")
def test_a_sentinel_client_for_replicas_cannot_join():
    """Sentinel's ``slave_for`` returns a client that reaches replicas only."""
    with watched_by_sentinel() as (client, _, _, _):
        timer = DTimer("node", client.slave_for("events"), **PATIENT)
        with pytest.raises((StoreError, redis.RedisError)):
            timer.join()
        assert not timer.joined
