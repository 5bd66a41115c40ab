"""Rows F98 to F107: very many events, nodes and failures, and what operators do to a server."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

import pytest
import redis
from chaos.settings import PATIENT
from meters import Meter
from peers import Now, Peer
from scripts import Script
from servers import LIMIT, LONGEST_CALL, PATIENCE, PROMPT, eventually
from soundness import assert_sound

from dtimer import DTimer
from dtimer.store.connect import source
from dtimer.store.keys import Keys
from dtimer.store.store import Store
from dtimer.testing import Catch
from faults.expectations import Watch

LATER = 4_000_000_000_000

#: Events of the rows that are about many: the figures of the docs are from a million.
MANY = int(os.environ.get("DTIMER_TEST_MANY", "100000"))

#: Milliseconds that another client of the server may wait, in the median: ten times what it
#: waits on a quiet machine. A percentile near the end would be that of the machine.
FOREIGN = 15 * PROMPT

# Another client of that server: how long each of its questions takes, until it is told to stop.
_FOREIGN = """
import redis, select, time
client = redis.Redis.from_url(sys.argv[1])
client.set("foreign", 1)
say("ready")
took = []
while not select.select([sys.stdin], [], [], 0.002)[0]:
    began = time.perf_counter()
    client.get("foreign")
    took.append((time.perf_counter() - began) * 1000)
took.sort()
say(len(took), took[len(took) // 2])
"""


def commands(client):
    """Return how often each command was called, by scripts or clients."""
    stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}


class TestVeryManyDue:
    """F98: all that fell due in an outage."""

    @pytest.mark.fault("F98")
    def test_drained_in_bounded_claims(self, own):
        """
        A hundred thousand events that are due at once are handed out a hundred at a time,
        each once. Other clients of the server hardly notice, and a handler that runs
        meanwhile keeps its lease.
        """
        held, go_on = threading.Event(), threading.Event()
        with contextlib.ExitStack() as stack:
            watch = stack.enter_context(Watch(own, "chaos"))
            foreign = stack.enter_context(Script(own, "chaos", _FOREIGN))
            stack.callback(go_on.set)
            assert "ready" == foreign.hear()
            poster = DTimer("bulk", own.url, ns="chaos", timeout=LONGEST_CALL)
            poster.pause()
            poster.post_many(({}, 0) for _ in range(MANY))
            watch.client.config_resetstat()
            times: Counter[str] = Counter()
            attempts: set[int] = set()

            def handle(events):
                times.update(ev.id for ev in events)
                attempts.update(ev.attempt for ev in events)

            def hold(ev):
                held.set()
                assert go_on.wait(LIMIT)

            # Shorter leases than it takes; and calls that wait for a machine with much to do.
            patient = {"lease": 2_000, "timeout": LONGEST_CALL}
            slow = watch.node("slow", handler=hold, max_events=1, **patient)
            drain = DTimer("drain", own.url, ns="chaos", max_events=100, **patient)
            errors = Catch(drain, "error")
            drain.on("event", handle)
            poster.resume()
            with drain:
                assert held.wait(PATIENCE)
                eventually(lambda: len(times) == MANY - 1, LIMIT - 10)
                # All others have been confirmed, and it is still held.
                eventually(lambda: poster.stats().in_flight == 1)
            foreign.tell("stop")
            asked, median = map(float, foreign.hear().split())
            go_on.set()
            eventually(lambda: not poster.stats().in_flight)
            poster.leave()
            assert {1} == attempts == set(times.values())
            ((_, _, _, attempt, *_),) = watch.handled
            assert 1 == attempt
            assert errors.empty()
            assert [] == slow.errors
            assert asked > 10
            assert median < FOREIGN
            slowest = watch.client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]
            assert slowest < 20_000


class TestHerd:
    """F99: many nodes, and one event."""

    @pytest.mark.fault("F99")
    def test_one_node_comes(self, own):
        """With fifty nodes an event wakes one, and costs what it costs with one."""
        with contextlib.ExitStack() as stack:
            watch = stack.enter_context(Watch(own, "chaos"))
            handled = []
            nodes = []
            for n in range(50):
                node = DTimer(f"node-{n}", own.url, ns="chaos", poll_interval=60_000)
                node.on("event", lambda events: handled.extend(ev.id for ev in events))
                stack.enter_context(node)
                nodes.append(node)
            eventually(lambda: all(node.health().ok for node in nodes))
            eventually(lambda: 50 == sum(n.waiting for n in watch._poster.nodes()))
            with Meter(own, "chaos") as meter:
                for n in range(10):
                    id = watch._poster.post({"n": n}, 20)
                    eventually(lambda i=id: i in handled)
                eventually(lambda: 0 == watch._poster.stats().in_flight)
                count = meter.read()
            # Told of the post, or on duty already, and the next in line; and some echoes.
            assert len(count.wakes) <= 2 * 10
            assert count.calls <= 8 * 10 + 2 * len(count.echoes) + 20
            assert 10 == len(handled)


class TestVeryManyPending:
    """F100: a large namespace."""

    @pytest.mark.fault("F100")
    def test_everything_takes_as_long(self, own):
        """
        With very many events pending, every call runs the commands that it runs with a
        few, takes about as long, and nobody walks through all of them.
        """
        with Watch(own, "chaos") as watch:
            timer = DTimer("bulk", own.url, ns="chaos", timeout=LONGEST_CALL)
            watch.server.configure(slowlog_log_slower_than=0, slowlog_max_len=10_000)
            before = self._measure(watch, timer)
            memory = watch.client.info("memory")["used_memory"]
            timer.post_many(({"n": n}, 10_000_000 + n) for n in range(MANY))
            grown = watch.client.info("memory")["used_memory"] - memory
            after = self._measure(watch, timer)
            assert before[0] == after[0]
            assert not {"keys", "scan", "hscan", "zscan", "hgetall"} & set(after[0])
            assert after[1] < 5 * before[1] + 50
            # The payload, and what the docs on performance say.
            assert grown / MANY < 10 + 250
            began = time.monotonic()
            assert 10 == len(list(timer.upcoming(limit=10)))
            assert timer.stats().scheduled == MANY
            assert time.monotonic() - began < PROMPT
            watch.client.flushall()
            timer.leave()
            watch.rollback = True

    def _measure(self, watch, timer):
        """Return the commands of a few calls, and the median of the server's µs for a script."""
        node = watch.node(f"node-{len(watch.nodes)}", poll_interval=60_000)
        # With nothing to wake or renew meanwhile.
        eventually(lambda: node.timer._life._listener.hears)
        for n in range(51):
            if n == 1:
                # The first connects, and brings the scripts along.
                watch.client.config_resetstat()
                watch.client.slowlog_reset()
            timer.post({"n": 1}, at=LATER, id="measured")
            timer.reschedule("measured", at=LATER - 1_000)
            timer.peek("measured")
            timer.cancel("measured")
        stats = watch.client.info("commandstats")
        # Not the mean: a busy machine interrupts one script of a hundred for many times as long.
        took = [
            slow["duration"]
            for slow in watch.client.slowlog_get(10_000)
            if slow["command"].startswith(b"EVALSHA")
        ]
        node.timer.leave()
        # An echo may fall into it, or not.
        kinds = {name.removeprefix("cmdstat_") for name in stats} - {"publish"}
        return kinds, statistics.median(took)


class TestHotId:
    """F101: one id over and over."""

    @pytest.mark.fault("F101")
    def test_moved_a_thousand_times(self, watch):
        """An event that is moved and posted anew all the time leaves nothing behind, and is one."""
        node = watch.node(poll_interval=60_000)
        timer = node.timer
        timer.post({"n": 0}, at=LATER, id="hot")
        watch.client.config_resetstat()
        for n in range(1, 1_001):
            if n % 2:
                assert timer.reschedule("hot", 600_000 + n % 7)
            else:
                timer.post({"n": n}, 600_000 + n % 7, id="hot")
        ran = commands(watch.client)
        assert 1 == watch.client.hlen(watch.keys.body) == watch.client.zcard(watch.keys.due)
        assert 0 == watch.client.hlen(watch.keys.tries) == watch.client.hlen(watch.keys.lease)
        # Moved always ahead of what is told: the node on duty comes a few times, not a thousand.
        assert ran["evalsha"] < 1_000 + 50
        watch.posted["hot"] = {"n": 1_000}
        assert timer.reschedule("hot", 0)
        watch.wait_handled("hot")
        assert 1 == watch.times("hot")


class TestDeadLetters:
    """F102: handlers that always fail."""

    @pytest.mark.fault("F102")
    def test_no_more_than_are_wanted(self, watch):
        """No more dead letters are kept than the limit, the newest; each was told of."""

        def fail(ev):
            raise RuntimeError("as ever")

        node = watch.node(handler=fail, dead_limit=20, max_events=10)
        ids = node.timer.post_many([{"ev": {"n": n}, "max_retries": 0} for n in range(200)])
        watch.excused.update(ids)
        eventually(lambda: node.timer.stats().totals.get("died") == 200)
        eventually(lambda: 20 >= len(list(node.timer.dead())))
        kept = [letter.id for letter in node.timer.dead()]
        assert 20 == len(kept) == len(set(kept))
        assert watch.client.zcard(watch.keys.graves) == watch.client.hlen(watch.keys.dead) == 20
        assert node.timer.revive(kept[0])
        eventually(lambda: node.timer.stats().totals["died"] == 201)
        assert node.timer.purge_dead() > 0
        assert [] == list(node.timer.dead())


class TestCredentials:
    """F103: the password changes, the user is switched off."""

    @pytest.fixture
    def soon(self, monkeypatch):
        """What needs a person is tried again every second, not every five."""
        monkeypatch.setattr("dtimer.engine.reach._SLOW_PAUSE", 1.0)
        monkeypatch.setattr("dtimer.engine.listener._SLOW_PAUSE", 1.0)

    @pytest.fixture
    def user(self, own):
        """Change the user of the nodes, and cut their connections."""
        with own.client() as client:

            def set_user(*rules):
                client.execute_command("ACL", "SETUSER", "app", *rules)
                client.execute_command("CLIENT", "KILL", "USER", "app")

            set_user("reset", "on", ">first", "~*", "&*", "+@all")
            yield set_user

    def refusals(self, watch):
        """Return how often the server has refused somebody."""
        errors = watch.client.info("errorstats")
        return sum(int(e["count"]) for name, e in errors.items() if "WRONGPASS" in name)

    @pytest.mark.fault("F103")
    @pytest.mark.parametrize("change", ["off", "password", "deleted"])
    def test_not_hammered_and_back(self, watch, own, user, soon, change):
        """
        A node that is refused says so once, tries no more often than a person could mend it,
        and serves again when it is mended. A post is refused at once.
        """
        parts = urlsplit(own.url)
        node = watch.node(url=f"redis://app:first@{parts.netloc}/0")
        id = watch.post(600)
        with watch.fault(recovers=False) as fault:
            if change == "deleted":
                watch.client.execute_command("ACL", "DELUSER", "app")
            else:
                user(*{"off": ["off"], "password": ["resetpass", ">second"]}[change])
            fault.felt()
            began, refused = time.monotonic(), self.refusals(watch)
            with pytest.raises(Exception, match="refuses this client"):
                watch.in_time(node.timer.post, {"n": 0})
            eventually(lambda: time.monotonic() > began + 1.5)
            seconds = time.monotonic() - began
            # Two threads, once a second, and the post of this test.
            assert self.refusals(watch) - refused <= 2 * (seconds + 1) + 1
            assert "first" not in "".join(str(e) for e in node.errors)
        user("reset", "on", ">first", "~*", "&*", "+@all")
        watch.healthy()
        watch.wait_handled(id)
        watch.recovered()

    @pytest.mark.fault("F103")
    def test_a_provider_of_credentials(self, watch, own, user):
        """
        Where the client asks a provider, each connection does: a rotation that cuts all of
        them goes by, the subscription included.
        """

        class Vault(redis.CredentialProvider):
            word = "first"

            def get_credentials(self):
                return "app", self.word

        vault = Vault()
        with redis.Redis(port=own.port, credential_provider=vault) as client:
            watch.node(url=client)
            for word in ("second", "third"):
                vault.word = word
                user("resetpass", f">{word}")
                watch.healthy()
                watch.recovered()


class TestNeighbours:
    """F105: others in the same namespace, or in another database of the same server."""

    @pytest.mark.fault("F105")
    def test_databases_are_apart(self, own):
        """
        One name in two databases is two namespaces: events stay apart, and so do wakes,
        although messages know no databases: a channel names one life of one node.
        """
        with Watch(own, "chaos") as watch, redis.Redis(port=own.port, db=1) as client:
            # Each wake that is heard is one's own: the poll does not help.
            here = watch.node("here", poll_interval=60_000)
            there = DTimer("there", client, ns="chaos", poll_interval=60_000)
            events = Catch(there, "event")
            with there:
                eventually(lambda: there.health().ok)
                rings = here.rings
                for n in range(5):
                    id = there.post({"there": n}, 20)
                    assert [{"there": n}] == events.next()
                    assert here.timer.peek(id) is None
                assert rings == here.rings
                watch.wait_handled(watch.post(20), watch.post(20))
                assert ["there"] == [node.id for node in there.nodes()]
                assert ["here"] == [node.id for node in here.timer.nodes()]
            assert events.empty()
            client.delete(*Keys.of("chaos"))

    @pytest.mark.fault("F105")
    def test_two_applications_in_one(self, watch):
        """Two applications that chose one name share their events: each goes to one of both."""
        watch.node("app-1")
        watch.node("app-2")
        ids = [watch.post(20) for _ in range(20)]
        watch.wait_handled(*ids)
        assert {"app-1", "app-2"} == {handled.node for handled in watch.handled}


class TestComingAndGoing:
    """F106: nodes by the hundreds."""

    @pytest.mark.fault("F106")
    def test_lives_leave_nothing(self, watch):
        """Two hundred joins and leaves, four at a time, leave neither a trace nor a gap."""
        node = watch.node("stays")
        ids = [watch.post(50 * n) for n in range(20)]
        failed = []

        def come_and_go(name):
            try:
                for _ in range(50):
                    with DTimer(name, watch.server.url, ns=watch.ns, **PATIENT):
                        pass
            except BaseException as e:
                failed.append(e)

        threads = [threading.Thread(target=come_and_go, args=(f"passing-{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [] == failed
        watch.wait_handled(*ids)
        assert ["stays"] == [n.id for n in node.timer.nodes()]
        for key in ("alive", "roster", "promise"):
            assert watch.client.zcard(getattr(watch.keys, key)) <= 1

    @pytest.mark.fault("F106")
    def test_the_dead_cost_nothing(self, client, namespace):
        """
        Two hundred nodes that died without a word are forgotten within a minute; until then
        a turn runs no more commands for them than for two.
        """
        now = Now()
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        node = Peer(store, "lives")

        def cost():
            client.config_resetstat()
            for _ in range(5):
                node.turn(1)
            return {name: n for name, n in commands(client).items() if name[0] in "hz"}

        for n in range(2):
            Peer(store, f"dead-{n}").turn(1)
        node.turn(1)
        before = cost()
        for n in range(2, 200):
            Peer(store, f"dead-{n}").turn(1)
        assert before == cost()
        assert 201 == len(store.nodes())
        now.tick(61_000)
        node.turn(1)
        store.join("new", "{}")
        assert {"lives", "new"} == {n.incarnation for n in store.nodes()}
        assert client.hlen(store.keys.nodes) == 2 == client.zcard(store.keys.alive)
        assert client.zcard(store.keys.roster) <= 1
        assert_sound(client, store.keys)
        store.close()


class TestKilledAmidABulk:
    """F107: the server dies while it runs a script of hundreds of events."""

    @pytest.mark.fault("F107")
    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_all_or_nothing(self, watch, own, seed):
        """
        Of each chunk all events are there after a restart, or none; what was acknowledged is
        there. Killed at a moment that the seed gives.
        """
        timer = DTimer("bulk", own.url, ns=watch.ns, timeout=PATIENT["timeout"])
        acknowledged = []
        begun = threading.Event()

        def post():
            with contextlib.suppress(Exception):
                for _ in range(1_000):
                    acknowledged.extend(timer.post_many([({}, 10_000_000)] * 500))
                    begun.set()

        thread = threading.Thread(target=post)
        thread.start()
        assert begun.wait(PATIENCE)
        moment = time.monotonic() + random.Random(seed).uniform(0, 0.2)
        eventually(lambda: time.monotonic() >= moment)
        own.kill9()
        thread.join()
        own.start()
        there = set(watch.client.zrange(watch.keys.due, 0, -1))
        assert len(there) % 500 == 0
        assert there >= {id.encode() for id in acknowledged}
        assert_sound(watch.client, watch.keys)
        watch.client.flushall()
        timer.leave()
