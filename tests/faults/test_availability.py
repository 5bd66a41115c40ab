"""Rows F41 and F43 to F48: masters change, slots move, and who leads a node to the wrong one."""

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
from servers import LONGEST_CALL, PATIENCE, Server, eventually
from topologies import migrate, three_masters, watched_by_sentinel

import dtimer.store
from dtimer import DTimer, OutcomeUnknown, StateRollback, StoreError
from dtimer.store.keys import Keys
from dtimer.testing import Catch
from faults.expectations import Watch

LATER = 4_000_000_000_000


def told_of_rollback(*nodes):
    """Return the rollbacks that these nodes told of."""
    return [e for node in nodes for e in node.errors if isinstance(e, StateRollback)]


@pytest.fixture
def pair():
    """A master, the link to its replica, and the replica."""
    with (
        Server(tcp=True) as master,
        Proxy(master) as link,
        master.replica(link.port) as replica,
    ):
        yield master, link, replica


class TestPlanned:
    """F41: an operator has Sentinel change the master."""

    @pytest.mark.fault("F41")
    def test_by_sentinel(self):
        """
        Nodes follow, and what was replicated is handled once. Where the servers hand over in
        step nothing at all is lost. Where they do not, the old master takes writes for ten
        seconds more, unless it is demoted by hand: what is lost with that is told.
        """
        with (
            watched_by_sentinel() as (client, master, replica, sentinel),
            Watch(replica, "chaos") as watch,
        ):
            watch.rollback = True
            node = watch.node(url=client.master_for("events"))
            timer = DTimer("poster", client.master_for("events"), ns=watch.ns, **PATIENT)
            told = Catch(timer, "error")
            kept = [timer.post({"n": n}, 500, id=f"kept-{n}") for n in range(10)]
            with master.client() as asked:
                asked.set("mark", 1)
                assert 1 == asked.wait(1, PATIENCE * 1000)
            posted = []
            with watch.fault(degraded=None, recovers=False):
                coordinated = self._fail_over(client.sentinels[0])
                for n in itertools.count():
                    with contextlib.suppress(StoreError):
                        posted.append(timer.post({"n": n}, at=LATER, id=f"during-{n}"))
                    if self._master(client.sentinels[0]) == replica.port:
                        break
                if not coordinated:
                    with master.client() as asked:
                        asked.replicaof("127.0.0.1", replica.port)
                watch.recovered()
            posted.append(timer.post({"n": -1}, at=LATER, id="after"))
            watch.wait_handled(*kept)
            lost = [id for id in posted if timer.peek(id) is None]
            rollbacks = told_of_rollback(node)
            if coordinated or (not rollbacks and told.empty()):
                assert [] == rollbacks
                assert [] == lost
                assert [1] * len(kept) == [watch.times(id) for id in kept]
            timer.leave()
            sentinel.kill9()
            master.kill9()

    def _fail_over(self, sentinel):
        """Begin a failover; return whether the servers hand over in step (Valkey 9)."""
        try:
            sentinel.execute_command("SENTINEL", "FAILOVER", "events", "COORDINATED")
        except redis.ResponseError:
            sentinel.execute_command("SENTINEL", "FAILOVER", "events")
            return False
        return True

    def _master(self, sentinel):
        return sentinel.sentinel_get_master_addr_by_name("events")[1]


class TestSplitBrain:
    """F43: two masters, each with its clients."""

    @pytest.mark.fault("F43")
    def test_tokens_fence(self, pair):
        """
        Both hand the event out, which no client can prevent. The token of the second is the
        greater, and the first holder's confirm is refused by the master that remains.
        """
        master, link, replica = pair
        with Proxy(master) as way, Watch(replica, "chaos") as watch:
            watch.rollback = True
            cut_off = DTimer("cut off", way.url, ns=watch.ns, auto_confirm=False, **PATIENT)
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
            way.lead_to(replica)
            way.cut()
            assert not first.confirm()
            while not isinstance(error := errors.next(), StateRollback):
                pass
            assert not error.wiped
            cut_off.leave()
            # It lost nothing: it never knew of another master.
            assert [] == told_of_rollback(node)
            watch.recovered()

    @pytest.mark.fault("F43")
    @pytest.mark.fault("F36")
    def test_a_master_that_wants_its_replica(self, pair):
        """
        With ``min-replicas-to-write`` a master that is cut off takes no writes after its lag:
        posts fail definitely there and nothing is handed out, until it hears its replica.
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
            watch.recovered()
            assert [] == told_of_rollback(node)
            replica.kill9()
            master.configure(min_replicas_to_write=0)


class TestCluster:
    """F44 and F46: slots move, and messages go round."""

    @pytest.mark.fault("F44")
    def test_a_slot_moves(self):
        """
        While the slot of the namespace moves, posts succeed or fail definitely; then the
        node follows, and each event is handled once. Nothing is taken for a rollback.
        """
        with three_masters() as (client, servers):
            slot = key_slot(Keys.of("chaos").due.encode())
            port = client.get_node_from_key(Keys.of("chaos").due).port
            source = next(s for s in servers if s.port == port)
            target = servers[servers.index(source) - 1]
            with Watch(target, "chaos") as watch:
                self._move(watch, client, migrate(servers, source, target, slot))
                # The server that sent the keys keeps its connection for a while.
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
                    # What was refused, or not known to be done, is posted when it is over.
            watch.recovered()
        assert refused, "no post met the move"
        watch.wait_handled(*pending)
        assert timer.peek("stays")
        timer.cancel("stays")
        timer.leave()
        assert [] == told_of_rollback(node)

    @pytest.mark.fault("F44")
    def test_a_server_dies(self):
        """
        While the server of the namespace is down the cluster is, for the node: it says so,
        and goes on within a second of the server's return.
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
                with other.client() as asked:
                    eventually(lambda: asked.cluster("INFO")["cluster_state"] == "fail")
                with pytest.raises(StoreError):
                    timer.post({"n": 1}, id="perhaps")
                server.start()
                eventually(lambda: timer.health().ok)
                # Without a file it comes back empty, and that is told.
                while not isinstance(error := errors.next(), StateRollback):
                    pass
                assert error.wiped
                timer.post({"n": 2})
                while {"n": 2} != events.next()[0]:
                    pass

    @pytest.mark.fault("F44")
    @pytest.mark.parametrize("which", ["all", "its own"])
    def test_servers_hang(self, which):
        """
        A server that hangs may have been sent a post and do it later. So the outcome is unknown,
        and that is said within the deadline, however many servers do not answer the question
        where the keys are now. When they answer again the node goes on by itself.
        """
        with three_masters() as (client, servers):
            port = client.get_node_from_key(Keys.of("chaos").due).port
            hanging = [s for s in servers if which == "all" or s.port == port]
            timer = DTimer("node", client, ns="chaos", **PATIENT | HASTY)
            events, errors = Catch(timer, "event"), Catch(timer, "error")
            with timer:
                timer.post({"n": 0})
                assert {"n": 0} == events.next()[0]
                for server in hanging:
                    server.pause()
                began = time.monotonic()
                with pytest.raises(OutcomeUnknown):
                    timer.post({"n": 1}, at=LATER, id="perhaps")
                assert time.monotonic() - began <= CALL_LIMIT
                errors.next()
                for server in hanging:
                    server.resume()
                eventually(lambda: timer.health().ok)
                timer.post({"n": 2}, id="perhaps")
                assert {"n": 2} == events.next()[0]

    @pytest.mark.fault("F44")
    def test_servers_hang_before_the_first_call(self):
        """Nothing was sent but the question where to send it: that is definite, and in time."""
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
    def test_follows_the_keys_within_one_try(self):
        """
        A server that no longer holds the keys names the one that does. A node follows in the
        same try: a turn has only one, and would report an outage.
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
            assert b"scheduled" == timer._store._line.once("peek", "moved")[0]
            timer.leave()

    @pytest.mark.fault("F44")
    def test_eight_threads_find_the_way_by_one_question(self):
        """The first calls of several threads ask once where the keys are, and share the answer."""
        with three_masters() as (client, servers):
            timer = DTimer("poster", client, ns="chaos", timeout=LONGEST_CALL)
            at_once = threading.Barrier(8)

            def post():
                at_once.wait(PATIENCE)
                timer.post({}, at=LATER)

            threads = [threading.Thread(target=post) for _ in range(8)]
            before = _asked_for_slots(servers)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert 1 == _asked_for_slots(servers) - before
            timer.leave()

    @pytest.mark.fault("F46")
    def test_a_subscription_on_another_server(self):
        """
        A wake published by the server of the namespace arrives at a subscription on another,
        although PUBLISH counts nobody there: nobody goes by that count.
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


def _asked_for_slots(servers):
    """Return how often these servers were asked which of them has which slots."""
    asked = 0
    for server in servers:
        with server.client() as client:
            asked += client.info("commandstats").get("cmdstat_cluster|slots", {"calls": 0})["calls"]
    return asked


_CALL = re.compile(r"redis\.p?call\(\s*'([A-Z]+)'\s*(?:,\s*([^\n]*))?")


class TestKeys:
    """F45: a server that is strict about keys, or a cluster, has nothing to object to."""

    @pytest.mark.fault("F45")
    @pytest.mark.parametrize("ns", ["dt", "a.b:c~d-e_f", "x" * 64])
    def test_one_slot(self, ns):
        """All keys of a namespace are in one slot, and those of others elsewhere."""
        slots = {key_slot(key.encode()) for key in Keys.of(ns)}
        assert 1 == len(slots)
        assert slots == {key_slot(ns.encode())}

    @pytest.mark.fault("F45")
    def test_no_key_is_made_in_a_script(self):
        """
        What a script gives to a command as its key is one of ``KEYS``, by the name that the
        prelude gave it: nothing is put together there, nor taken from an argument.
        """
        folder = Path(dtimer.store.__file__).parent / "lua"
        prelude = (folder / "parts" / "prelude.lua").read_text()
        named = re.search(r"local (DUE[A-Z_, \n]+) = unpack\(KEYS\)", prelude)[1]
        names = set(re.findall(r"\w+", named))
        assert len(Keys._fields) == len(names)
        # A guard, an audit and a walk are given one of the keys; and a channel is no key.
        others = {
            ("TYPE", "key"),
            ("HRANDFIELD", "pair[1]"),
            ("ZSCORE", "pair[2]"),
            *(
                (command, "key")
                for command in ("ZCOUNT", "ZRANGE", "ZRANK", "ZREVRANGEBYSCORE", "ZSCORE")
            ),
        }
        strange = []
        for path in sorted(folder.rglob("*.lua")):
            for command, rest in _CALL.findall(path.read_text()):
                first = re.split(r"[,)]", rest)[0].strip()
                if command in {"TIME", "PUBLISH"} or first in names:
                    continue
                if (command, first) not in others:
                    strange.append(f"{path.name}: {command} {first}")
        assert [] == strange

    @pytest.mark.fault("F45")
    def test_no_other_key_is_touched(self, watch):
        """So it is when they run: a monitor sees no other key in a life of all verbs."""
        seen = []
        watching = threading.Event()
        with watch.server.client() as ear, ear.monitor() as monitor:

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
    """F47 and F48: a node is led to a server that is not, or is no longer, the master."""

    @pytest.mark.fault("F47")
    def test_a_subscription_that_stayed(self, pair):
        """
        A subscription on the old master, which still runs, hears nothing of the new one: the
        echo that goes through the new master shows it. The node says that it is deaf, and
        serves by its polls; when the way to the subscription leads to the new one it hears.
        """
        master, _, replica = pair
        with Proxy(master) as way, Proxy(master) as sub, Watch(replica, "chaos") as watch:
            watch.rollback = True
            node = watch.node(url=way.url, sub=sub.url)
            watch.posted[node.timer.post({"n": "before"})] = {"n": "before"}
            with watch.fault(degraded=None, recovers=False):
                # Not followed: the old master is no replica of anybody, and takes subscribers.
                replica.promote()
                way.lead_to(replica)
                way.cut()
                eventually(lambda: node.timer.health().deaf)
                watch.wait_handled(watch.post())
                eventually(lambda: any("wakes do not arrive" in str(e) for e in node.errors))
                # Only the way is changed: who subscribes anew because it is deaf finds it.
                sub.lead_to(replica)
                watch.recovered()

    @pytest.mark.fault("F48")
    def test_a_replica_at_join(self, pair, caplog):
        """Joining on a replica fails, and says why."""
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
    def test_a_client_of_sentinel_for_replicas(self):
        """So does a client that a Sentinel made for reading."""
        with watched_by_sentinel() as (client, _, _, _):
            timer = DTimer("node", client.slave_for("events"), **PATIENT)
            with pytest.raises((StoreError, redis.RedisError)):
                timer.join()
            assert not timer.joined
