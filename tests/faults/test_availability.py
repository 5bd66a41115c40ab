"""Faults F41 and F43 to F48: failovers, split brain, slots that move, and wrong servers."""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
import time
from pathlib import Path

import pytest
import redis
from chaos.settings import CALL_LIMIT, HASTY, PATIENT
from proxy import Proxy
from redis.crc import key_slot
from servers import LONGEST_CALL, PATIENCE, eventually
from topologies import migrate, three_masters, watched_by_sentinel

import dtimer.store
from dtimer import DTimer, OutcomeUnknown, StateRollback, StoreError
from dtimer.store.keys import Keys
from dtimer.testing import Catch
from faults.expectations import Watch
from faults.haste import hurried

LATER = 4_000_000_000_000


def rollbacks_of(*nodes):
    """Return the rollbacks that these nodes reported."""
    return [e for node in nodes for e in node.errors if isinstance(e, StateRollback)]


class TestPlannedFailover:
    """F41: an operator asks Sentinel to promote the replica."""

    @pytest.mark.fault("F41")
    def test_nodes_follow_a_failover_and_report_what_it_lost(self):
        """
        Nodes follow the new master, and each replicated event is handled once.

        A coordinated failover (Valkey 9) loses nothing. In any other the old master accepts
        writes for ten more seconds unless it is demoted by hand. If any are lost, the
        application receives an error.
        """
        with (
            watched_by_sentinel() as (client, master, replica, sentinel),
            Watch(replica, "chaos") as watch,
        ):
            watch.rollback = True
            node = watch.node(url=client.master_for("events"))
            timer = DTimer("poster", client.master_for("events"), ns=watch.ns, **PATIENT)
            errors = Catch(timer, "error")
            kept = [timer.post({"n": n}, 500, id=f"kept-{n}") for n in range(10)]
            with master.client() as probe:
                probe.set("mark", 1)
                assert 1 == probe.wait(1, PATIENCE * 1000)
            posted = []
            with watch.fault(degraded=None, recovers=False):
                coordinated = self._fail_over(client.sentinels[0])
                for n in itertools.count():
                    with contextlib.suppress(StoreError):
                        posted.append(timer.post({"n": n}, at=LATER, id=f"during-{n}"))
                    if self._master(client.sentinels[0]) == replica.port:
                        break
                if not coordinated:
                    with master.client() as probe:
                        probe.replicaof("127.0.0.1", replica.port)
                watch.assert_recovery()
            posted.append(timer.post({"n": -1}, at=LATER, id="after"))
            watch.wait_handled(*kept)
            lost = [id for id in posted if timer.peek(id) is None]
            rollbacks = rollbacks_of(node)
            if coordinated or (not rollbacks and errors.empty()):
                assert [] == rollbacks
                assert [] == lost
                assert [1] * len(kept) == [watch.times(id) for id in kept]
            timer.leave()
            sentinel.kill9()
            master.kill9()

    def _fail_over(self, sentinel):
        """Begin a failover; return True if the servers coordinate it (Valkey 9)."""
        try:
            sentinel.execute_command("SENTINEL", "FAILOVER", "events", "COORDINATED")
        except redis.ResponseError:
            sentinel.execute_command("SENTINEL", "FAILOVER", "events")
            return False
        return True

    def _master(self, sentinel):
        return sentinel.sentinel_get_master_addr_by_name("events")[1]


class TestSplitBrain:
    """F43: two masters accept writes, each from its own clients."""

    @pytest.mark.fault("F43")
    def test_the_remaining_master_refuses_the_lower_token(self, pair):
        """
        Both masters grant the event, which no client can prevent. The second claim has the
        greater token. The remaining master refuses the confirm of the first holder.
        """
        master, link, replica = pair
        with Proxy(master) as proxy, Watch(replica, "chaos") as watch:
            watch.rollback = True
            cut_off = DTimer("cut off", proxy.url, ns=watch.ns, auto_confirm=False, **PATIENT)
            events, errors = Catch(cut_off, "event"), Catch(cut_off, "error")
            cut_off.join()
            cut_off.post({"n": 1}, at=LATER, id="shared")
            with master.client() as client:
                client.set("mark", 1)
                assert 1 == client.wait(1, PATIENCE * 1000)
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
            while not isinstance(error := errors.next(), StateRollback):
                pass
            assert not error.wiped
            cut_off.leave()
            # This node lost nothing: it only ever used the new master.
            assert [] == rollbacks_of(node)
            watch.assert_recovery()

    @pytest.mark.fault("F43")
    @pytest.mark.fault("F36")
    def test_a_master_without_its_replica_refuses_writes(self, pair):
        """
        With ``min-replicas-to-write``, a master that is cut off from its replica refuses writes
        as soon as the allowed lag has passed. Posts fail definitely and events are not
        delivered until the replica is back.
        """
        master, link, replica = pair
        master.configure(min_replicas_to_write=1, min_replicas_max_lag=1)
        with master.client() as client:
            eventually(lambda: client.info("replication")["min_slaves_good_slaves"] == 1)
        with Watch(master, "chaos") as watch:
            node = watch.node()
            with watch.fault(recovers=False) as fault:
                link.blackhole()
                fault.felt()
                assert "NOREPLICAS" in node.timer.health().error
                with pytest.raises(StoreError, match="NOREPLICAS"):
                    node.timer.post({"n": 1})
            link.heal()
            watch.healthy()
            watch.assert_recovery()
            assert [] == rollbacks_of(node)
            replica.kill9()
            master.configure(min_replicas_to_write=0)


class TestCluster:
    """F44 and F46: slots move, servers fail, and messages cross the cluster bus."""

    @pytest.mark.fault("F44")
    def test_a_node_follows_a_slot_that_moves(self):
        """
        While the slot of the namespace moves, posts succeed or raise. Then the node follows
        the slot, and each event is handled once. The move is not mistaken for a rollback.
        """
        with three_masters() as (client, servers):
            slot = key_slot(Keys.of("chaos").due.encode())
            port = client.get_node_from_key(Keys.of("chaos").due).port
            source = next(s for s in servers if s.port == port)
            target = servers[servers.index(source) - 1]
            with Watch(target, "chaos") as watch:
                self._move(watch, client, migrate(servers, source, target, slot))
                # The server that has sent its keys away keeps its connections open for a while.
                target.configure(cluster_require_full_coverage="no")
                source.kill9()

    def _move(self, watch, client, steps):
        timer = DTimer("poster", client, ns=watch.ns, **PATIENT)
        node = watch.node(url=client)
        pending = [watch.post(400, timer) for _ in range(20)]
        timer.post({"n": 0}, at=LATER, id="stays")
        refused = 0
        with watch.fault(degraded=None, recovers=False):
            for _ in steps:
                try:
                    pending.append(watch.post(0, timer))
                except StoreError:
                    refused += 1
            watch.assert_recovery()
        assert refused, "no post met the move"
        watch.wait_handled(*pending)
        assert timer.peek("stays")
        timer.cancel("stays")
        timer.leave()
        assert [] == rollbacks_of(node)

    @pytest.mark.fault("F44")
    def test_a_node_recovers_within_a_second_of_its_servers_return(self):
        """
        The node reports an error while the server of its namespace is down, although the other
        servers run. It serves again within a second of the server's return.
        """
        with three_masters() as (client, servers):
            port = client.get_node_from_key(Keys.of("chaos").due).port
            server = next(s for s in servers if s.port == port)
            other = next(s for s in servers if s is not server)
            timer = DTimer("node", client, ns="chaos", **PATIENT)
            events, errors = Catch(timer, "event"), Catch(timer, "error")
            with timer:
                server.kill9()
                errors.next()
                with other.client() as probe:
                    eventually(lambda: probe.cluster("INFO")["cluster_state"] == "fail")
                with pytest.raises(StoreError):
                    timer.post({"n": 1}, id="perhaps")
                server.start()
                eventually(lambda: timer.health().ok)
                # The server has no file, so it returns empty. The node must report that.
                while not isinstance(error := errors.next(), StateRollback):
                    pass
                assert error.wiped
                timer.post({"n": 2})
                while {"n": 2} != events.next()[0]:
                    pass

    @pytest.mark.fault("F44")
    @pytest.mark.parametrize("which", ["all", "its own"])
    def test_a_post_to_hung_servers_is_unknown_within_its_deadline(self, which):
        """
        A server that hangs may run the post later, so the outcome is unknown.

        The call says so within its deadline, however many servers fail to answer where the
        slots are. When they answer again, the node continues without help.
        """
        with three_masters() as (client, servers):
            port = client.get_node_from_key(Keys.of("chaos").due).port
            hanging = [s for s in servers if which == "all" or s.port == port]
            timer = DTimer("node", client, ns="chaos", **PATIENT)
            events, errors = Catch(timer, "event"), Catch(timer, "error")
            # The threads of a node may hold all its connections. A post would then open another,
            # which a hanging server does not complete: the post fails as not sent.
            poster = DTimer("poster", client, ns="chaos", timeout=LONGEST_CALL)
            with timer:
                poster.post({"n": 0})
                assert {"n": 0} == events.next()[0]
                for server in hanging:
                    server.pause()
                began = time.monotonic()
                with hurried(poster), pytest.raises(OutcomeUnknown):
                    poster.post({"n": 1}, at=LATER, id="perhaps")
                assert time.monotonic() - began <= CALL_LIMIT
                errors.next()
                for server in hanging:
                    server.resume()
                eventually(lambda: timer.health().ok)
                poster.post({"n": 2}, id="perhaps")
                assert {"n": 2} == events.next()[0]
            poster.leave()

    @pytest.mark.fault("F44")
    def test_a_first_call_to_hung_servers_fails_definitely(self):
        """Only the slot lookup was sent, so the post is known not to have run."""
        with three_masters() as (client, servers):
            timer = DTimer("node", client, ns="chaos", **PATIENT | HASTY)
            for server in servers:
                server.pause()
            began = time.monotonic()
            with pytest.raises(StoreError) as caught:
                timer.post({"n": 1})
            assert time.monotonic() - began <= CALL_LIMIT
            assert not isinstance(caught.value, OutcomeUnknown)
            for server in servers:
                server.resume()
            timer.leave()

    @pytest.mark.fault("F44")
    def test_a_redirection_is_followed_within_one_try(self):
        """
        A server that no longer holds the keys names the server that does. The client follows
        within the same try, because a claim has only one and would report an outage.
        """
        with three_masters() as (client, servers):
            slot = key_slot(Keys.of("chaos").due.encode())
            port = client.get_node_from_key(Keys.of("chaos").due).port
            source = next(s for s in servers if s.port == port)
            target = servers[servers.index(source) - 1]
            steps = migrate(servers, source, target, slot)
            timer = DTimer("poster", client, ns="chaos", timeout=LONGEST_CALL)
            timer.post({"n": 1}, at=LATER, id="moved")
            for _ in steps:
                pass
            assert b"scheduled" == timer._store._scripts.call_once("peek", "moved")[0]
            timer.leave()

    @pytest.mark.fault("F44")
    def test_eight_threads_share_one_slot_lookup(self):
        """The first calls of several threads look the slots up once and share the answer."""
        with three_masters() as (client, servers):
            timer = DTimer("poster", client, ns="chaos", timeout=LONGEST_CALL)
            at_once = threading.Barrier(8)

            def post():
                at_once.wait(PATIENCE)
                timer.post({}, at=LATER)

            threads = [threading.Thread(target=post) for _ in range(8)]
            before = _slot_lookups(servers)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert 1 == _slot_lookups(servers) - before
            timer.leave()

    @pytest.mark.fault("F46")
    def test_a_wake_reaches_a_subscription_on_another_server(self):
        """
        The cluster forwards a wake to a subscription on another server. PUBLISH does not count
        that subscriber, so dtimer must not rely on the count.
        """
        with three_masters() as (client, servers):
            port = client.get_node_from_key(Keys.of("chaos").due).port
            elsewhere = next(s for s in servers if s.port != port)
            with elsewhere.client() as sub:
                timer = DTimer("node", client, sub, ns="chaos", poll_interval=60_000)
                events = Catch(timer, "event")
                other = DTimer("other", client, ns="chaos")
                with timer:
                    eventually(lambda: timer.health().ok)
                    for n in range(3):
                        other.post({"n": n}, 20)
                        assert {"n": n} == events.next()[0]
                other.leave()


def _slot_lookups(servers):
    """Return how often clients have asked these servers for the table of slots."""
    lookups = 0
    for server in servers:
        with server.client() as client:
            stats = client.info("commandstats")
            lookups += stats.get("cmdstat_cluster|slots", {"calls": 0})["calls"]
    return lookups


_CALL = re.compile(r"redis\.p?call\(\s*'([A-Z]+)'\s*(?:,\s*([^\n]*))?")


class TestKeys:
    """F45: a server may reject a script that uses an undeclared key, or keys of two slots."""

    @pytest.mark.fault("F45")
    @pytest.mark.parametrize("ns", ["dt", "a.b:c~d-e_f", "x" * 64])
    def test_all_keys_of_a_namespace_are_in_one_slot(self, ns):
        """The hash tag is the name of the namespace, so different namespaces can be spread."""
        slots = {key_slot(key.encode()) for key in Keys.of(ns)}
        assert 1 == len(slots)
        assert slots == {key_slot(ns.encode())}

    @pytest.mark.fault("F45")
    def test_scripts_build_no_keys(self):
        """
        Each command of a script takes one of ``KEYS``, by the name that the prelude gives it.
        A key built in a script, or passed as an argument, would fail in a cluster.
        """
        folder = Path(dtimer.store.__file__).parent / "lua"
        prelude = (folder / "parts" / "prelude.lua").read_text()
        named = re.search(r"local (DUE[A-Z_, \n]+) = unpack\(KEYS\)", prelude)[1]
        names = set(re.findall(r"\w+", named))
        assert len(Keys._fields) == len(names)
        # Functions and loops use one of ``KEYS`` under these names. A channel is not a key.
        others = {
            ("TYPE", "key"),
            ("HRANDFIELD", "pair[1]"),
            ("ZSCORE", "pair[2]"),
            *(
                (command, "key")
                for command in ("ZCOUNT", "ZRANGE", "ZRANK", "ZREVRANGEBYSCORE", "ZSCORE")
            ),
        }
        undeclared = []
        for path in sorted(folder.rglob("*.lua")):
            for command, rest in _CALL.findall(path.read_text()):
                first = re.split(r"[,)]", rest)[0].strip()
                if command in {"TIME", "PUBLISH"} or first in names:
                    continue
                if (command, first) not in others:
                    undeclared.append(f"{path.name}: {command} {first}")
        assert [] == undeclared

    @pytest.mark.fault("F45")
    def test_scripts_touch_only_the_keys_of_the_namespace(self, watch):
        """A monitor sees no other key while a node uses every verb."""
        seen = []
        watching = threading.Event()
        with watch.server.client() as client, client.monitor() as monitor:

            def listen():
                watching.set()
                for heard in monitor.listen():
                    if heard["command"] == "PING over":
                        return
                    if heard["client_type"] == "lua":
                        seen.append(heard["command"])

            listener = threading.Thread(target=listen, daemon=True)
            listener.start()
            assert watching.wait(PATIENCE)
            node = watch.node()
            watch.wait_handled(watch.post(), watch.post(30))
            node.timer.post({"n": 0}, at=LATER, id="tea")
            node.timer.reschedule("tea", 5_000)
            node.timer.cancel("tea")
            node.timer.every(3_600_000, {}, id="hourly")
            node.timer.cron("@daily", {}, id="daily")
            node.timer.unschedule("hourly")
            node.timer.unschedule("daily")
            node.timer.stats()
            watch.client.execute_command("PING", "over")
            listener.join(PATIENCE)
        commands = {line.split(" ")[0].upper() for line in seen}
        assert {"ZADD", "HSET", "HDEL", "ZREM", "HMGET"} <= commands
        keyed = [line.split(" ") for line in seen]
        keyed = [words for words in keyed if words[0].upper() not in ("TIME", "PUBLISH")]
        assert set() == {words[1] for words in keyed} - set(watch.keys)


class TestWrongServer:
    """F47 and F48: a node reaches a server that is not, or no longer, the master."""

    @pytest.mark.fault("F47")
    def test_a_subscription_left_on_the_old_master_is_detected(self, pair):
        """
        A subscription on the old master, which still runs, receives nothing from the new one.

        The node notices, because its echo goes through the new master and does not come back.
        It reports that it is deaf and serves by polling. It receives wakes again as soon as
        the subscription's address leads to the new master.
        """
        master, _, replica = pair
        with Proxy(master) as proxy, Proxy(master) as sub, Watch(replica, "chaos") as watch:
            watch.rollback = True
            node = watch.node(url=proxy.url, sub=sub.url)
            watch.posted[node.timer.post({"n": "before"})] = {"n": "before"}
            with watch.fault(degraded=None, recovers=False):
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
    def test_joining_on_a_replica_fails(self, pair, caplog):
        """The error and the log name the cause: the server is a read-only replica."""
        _, _, replica = pair
        with Watch(replica, "chaos") as watch:
            timer = DTimer("node", replica.url, ns=watch.ns, **PATIENT)
            timer.on("event", lambda _: None)
            with pytest.raises(StoreError, match=r"read only replica|READONLY"):
                watch.in_time(timer.join)
            assert "replica" in caplog.text
            assert not timer.joined
            with pytest.raises(StoreError, match=r"read only replica|READONLY"):
                timer.post({})
            timer.leave()

    @pytest.mark.fault("F48")
    def test_a_sentinel_client_for_replicas_cannot_join(self):
        """Sentinel's ``slave_for`` returns a client that reaches replicas only."""
        with watched_by_sentinel() as (client, _, _, _):
            timer = DTimer("node", client.slave_for("events"), **PATIENT)
            with pytest.raises((StoreError, redis.RedisError)):
                timer.join()
            assert not timer.joined
