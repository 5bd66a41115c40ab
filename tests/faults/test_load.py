"""Faults F98 to F107: very many events, nodes and failures, and changes by operators."""

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
from background import background, together
from chaos.settings import PATIENT
from meters import Meter
from peers import Now, Peer
from scripts import Script
from servers import LIMIT, LONGEST_CALL, PATIENCE, PROMPT, YEAR_2096, eventually
from soundness import assert_sound

from dtimer import DTimer
from dtimer.store.connection.sources import source
from dtimer.store.keys import Keys
from dtimer.store.store import Store
from dtimer.testing import Catch
from faults.expectations import Watch

#: The number of events in the tests of large numbers. The docs give figures for a million.
MANY = int(os.environ.get("DTIMER_TEST_MANY", "100000"))

#: Milliseconds that another client of the server may wait, in the median: ten times as long as
#: on a quiet machine. A high percentile would measure the machine instead.
LONGEST_GET = 15 * PROMPT

# Another client of that server: measures how long each GET takes, until it is told to stop.
_MEASURE_GETS = """
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
    """Return how often each command was called, by scripts and by clients."""
    stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}


@pytest.mark.fault("F98")
def test_a_backlog_is_delivered_in_claims_of_at_most_a_hundred(own_server):
    """
    Larger claims would delay other clients of the server. A handler that runs meanwhile keeps its
    lease.
    """
    begun, go_on = threading.Event(), threading.Event()
    times: Counter[str] = Counter()
    attempts: set[int] = set()

    def handle(events):
        times.update(ev.id for ev in events)
        attempts.update(ev.attempt for ev in events)

    def wait(ev):
        begun.set()
        assert go_on.wait(LIMIT)

    with (
        Watch(own_server, "chaos") as watch,
        Script(own_server, "chaos", _MEASURE_GETS) as other_client,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(go_on.set)
        assert "ready" == other_client.hear()
        poster = watch.caller("bulk")
        poster.pause()
        poster.post_many(({}, 0) for _ in range(MANY))
        watch.client.config_resetstat()
        # The drain takes longer than a lease. Calls wait long, because the machine is busy.
        options = {"lease": 2_000, "timeout": LONGEST_CALL}
        slow_node = watch.node("slow", handler=wait, max_events=1, **options)
        drain = DTimer("drain", own_server.url, ns="chaos", max_events=100, **options)
        errors = Catch(drain, "error")
        drain.on("event", handle)
        poster.resume()
        with drain:
            assert begun.wait(PATIENCE)
            eventually(lambda: len(times) == MANY - 1, LIMIT - 10)
            # All others have been confirmed, and the slow handler still holds its lease.
            eventually(lambda: poster.stats().in_flight == 1)
        other_client.tell("stop")
        gets, median = map(float, other_client.hear().split())
        go_on.set()
        eventually(lambda: not poster.stats().in_flight)
        assert {1} == attempts == set(times.values())
        assert [1] == [handled.attempt for handled in watch.handled]
        assert errors.empty()
        assert [] == slow_node.errors
        assert gets > 10
        assert median < LONGEST_GET
        assert watch.client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"] < 20_000


@pytest.mark.fault("F99")
def test_an_event_wakes_only_one_of_fifty_nodes(own_server):
    """An event costs as many calls with fifty nodes as it costs with one."""
    handled = []
    with Watch(own_server, "chaos") as watch, contextlib.ExitStack() as stack:
        poster = watch.caller()
        for n in range(50):
            node = DTimer(f"node-{n}", own_server.url, ns="chaos", poll_interval=60_000)
            node.on("event", lambda events: handled.extend(ev.id for ev in events))
            stack.enter_context(node)
        eventually(lambda: 50 == sum(n.waiting for n in poster.nodes()))
        with Meter(own_server, "chaos") as meter:
            for n in range(10):
                id = poster.post({"n": n}, 20)
                eventually(lambda i=id: i in handled)
            eventually(lambda: 0 == poster.stats().in_flight)
            count = meter.read()
        # One wake for the post, unless a node is on duty; one for the next node; and echoes.
        assert len(count.wakes) <= 2 * 10
        assert count.calls <= 8 * 10 + 2 * len(count.echoes) + 20
        assert 10 == len(handled)


@pytest.mark.fault("F100")
def test_calls_do_not_get_slower_with_very_many_pending_events(own_server):
    """Each call runs the same commands as with a few events. None iterates over all events."""
    with Watch(own_server, "chaos") as watch:
        timer = watch.caller()
        watch.server.configure(slowlog_log_slower_than=0, slowlog_max_len=10_000)
        commands_before, us_before = measure_calls(watch, timer)
        memory = watch.client.info("memory")["used_memory"]
        timer.post_many(({"n": n}, 10_000_000 + n) for n in range(MANY))
        grown = watch.client.info("memory")["used_memory"] - memory
        commands_after, us_after = measure_calls(watch, timer)
        assert commands_before == commands_after
        assert not {"keys", "scan", "hscan", "zscan", "hgetall"} & commands_after
        assert us_after < 5 * us_before + 50
        # The payload, and the overhead that the docs on performance give.
        assert grown / MANY < 10 + 250
        began = time.monotonic()
        assert 10 == len(list(timer.upcoming(limit=10)))
        assert timer.stats().scheduled == MANY
        assert time.monotonic() - began < PROMPT
        watch.client.flushall()
        watch.rollback = True


def measure_calls(watch, timer):
    """Return the commands that a few calls run, and the median µs that a script takes."""
    node = watch.node(f"node-{len(watch.nodes)}", poll_interval=60_000)
    # From here on the node has nothing to renew, and no wake arrives.
    eventually(lambda: node.timer._node._listener.hears)
    for n in range(51):
        if n == 1:
            # The first round opens connections and loads the scripts.
            watch.client.config_resetstat()
            watch.client.slowlog_reset()
        timer.post({"n": 1}, at=YEAR_2096, id="measured")
        timer.reschedule("measured", at=YEAR_2096 - 1_000)
        timer.peek("measured")
        timer.cancel("measured")
    # An echo may or may not be published meanwhile.
    ran = set(commands(watch.client)) - {"publish"}
    slowlog = watch.client.slowlog_get(10_000)
    node.timer.leave()
    # Not the mean: a busy machine interrupts single scripts for many times as long as they run.
    took = [
        slow_node["duration"]
        for slow_node in slowlog
        if slow_node["command"].startswith(b"EVALSHA")
    ]
    return ran, statistics.median(took)


@pytest.mark.fault("F101")
def test_an_event_that_changes_a_thousand_times_leaves_nothing_behind(watch):
    """The event is delivered once, and hardly any of its changes wakes a node."""
    timer = watch.node(poll_interval=60_000).timer
    timer.post({"n": 0}, at=YEAR_2096, id="hot")
    watch.client.config_resetstat()
    for n in range(1, 1_001):
        if n % 2:
            assert timer.reschedule("hot", 600_000 + n % 7)
        else:
            timer.post({"n": n}, 600_000 + n % 7, id="hot")
    calls = commands(watch.client)["evalsha"]
    assert 1 == watch.client.hlen(watch.keys.body) == watch.client.zcard(watch.keys.due)
    assert 0 == watch.client.hlen(watch.keys.tries) == watch.client.hlen(watch.keys.lease)
    # Each due time is after the next claim of the node on duty, so few changes wake it.
    assert calls < 1_000 + 50
    watch.posted["hot"] = {"n": 1_000}
    assert timer.reschedule("hot", 0)
    watch.wait_handled("hot")
    assert 1 == watch.times("hot")


@pytest.mark.fault("F102")
def test_only_the_newest_dead_letters_are_kept(watch):
    """``dead_limit`` bounds the dead letters. All deaths are counted, also of those dropped."""
    node = watch.node(handler=lambda ev: 1 / 0, dead_limit=20, max_events=10)
    timer = node.timer
    ids = timer.post_many([{"ev": {"n": n}, "max_retries": 0} for n in range(200)])
    # These events become dead letters, and most of the dead letters are dropped.
    watch.excused.update(ids)
    eventually(lambda: timer.stats().totals.get("died") == 200)
    eventually(lambda: 20 >= len(list(timer.dead())))
    kept = [letter.id for letter in timer.dead()]
    assert 20 == len(kept) == len(set(kept))
    assert watch.client.zcard(watch.keys.graves) == watch.client.hlen(watch.keys.dead) == 20
    assert timer.revive(kept[0])
    eventually(lambda: timer.stats().totals["died"] == 201)
    assert timer.purge_dead() > 0
    assert [] == list(timer.dead())


@pytest.mark.fault("F103")
class TestCredentials:
    """The password changes, or the user is disabled or deleted."""

    @pytest.fixture
    def short_pause(self, monkeypatch):
        """Retry a refused login each second instead of every five seconds."""
        monkeypatch.setattr("dtimer.engine.connectivity._SLOW_PAUSE", 1.0)
        monkeypatch.setattr("dtimer.engine.listener._SLOW_PAUSE", 1.0)

    @pytest.fixture
    def user(self, own_server):
        """Return a function that changes the nodes' user and kills its connections."""
        with own_server.client() as client:

            def set_user(*rules):
                client.execute_command("ACL", "SETUSER", "app", *rules)
                client.execute_command("CLIENT", "KILL", "USER", "app")

            set_user("reset", "on", ">first", "~*", "&*", "+@all")
            yield set_user

    def refusals(self, watch):
        """Return how often the server has rejected a password."""
        errors = watch.client.info("errorstats")
        return sum(int(e["count"]) for name, e in errors.items() if "WRONGPASS" in name)

    @pytest.mark.parametrize("change", ["off", "password", "deleted"])
    def test_a_refused_node_retries_slowly_and_recovers(
        self, watch, own_server, user, short_pause, change
    ):
        """Only an operator can fix the credentials. The node serves again after the fix."""
        parts = urlsplit(own_server.url)
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
            # Two threads try once a second each, and this test has posted once.
            assert self.refusals(watch) - refused <= 2 * (seconds + 1) + 1
            assert "first" not in "".join(str(e) for e in node.errors)
        user("reset", "on", ">first", "~*", "&*", "+@all")
        watch.healthy()
        watch.wait_handled(id)
        watch.assert_recovery()

    def test_a_credential_provider_is_asked_for_each_connection(self, watch, own_server, user):
        """If a password rotation cuts all connections, the node connects with the new password."""

        class Vault(redis.CredentialProvider):
            word = "first"

            def get_credentials(self):
                return "app", self.word

        vault = Vault()
        with redis.Redis(port=own_server.port, credential_provider=vault) as client:
            watch.node(url=client)
            for word in ("second", "third"):
                vault.word = word
                user("resetpass", f">{word}")
                watch.healthy()
                watch.assert_recovery()


@pytest.mark.fault("F105")
class TestNeighbours:
    """Other applications use the same namespace, or another database of the server."""

    def test_one_name_in_two_databases_is_two_namespaces(self, own_server):
        """Redis delivers messages across databases, but each node has a channel of its own."""
        with Watch(own_server, "chaos") as watch, redis.Redis(port=own_server.port, db=1) as client:
            # With this poll interval, an event arrives in time only by a wake.
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

    def test_two_applications_with_one_namespace_share_its_events(self, watch):
        """Each event goes to one of the two, because a namespace does not know applications."""
        watch.node("app-1")
        watch.node("app-2")
        ids = [watch.post(20) for _ in range(20)]
        watch.wait_handled(*ids)
        assert {"app-1", "app-2"} == {handled.node for handled in watch.handled}


@pytest.mark.fault("F106")
class TestComingAndGoing:
    """Hundreds of nodes join and leave, or die."""

    def test_two_hundred_joins_and_leaves_leave_nothing_behind(self, watch):
        """No key keeps an entry of a node that left, and a node that stays misses no event."""
        node = watch.node("stays")
        ids = [watch.post(50 * n) for n in range(20)]

        def come_and_go(n):
            for _ in range(50):
                with DTimer(f"passing-{n}", watch.server.url, ns=watch.ns, **PATIENT):
                    pass

        together(4, come_and_go)
        watch.wait_handled(*ids)
        assert ["stays"] == [n.id for n in node.timer.nodes()]
        for key in ("alive", "roster", "promise"):
            assert watch.client.zcard(getattr(watch.keys, key)) <= 1

    def test_dead_nodes_do_not_slow_a_claim_and_are_forgotten(self, client, namespace):
        """Two hundred nodes died without leaving. After a minute they are forgotten."""
        now = Now()
        store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
        node = Peer(store, "lives")

        def cost():
            client.config_resetstat()
            for _ in range(5):
                node.claim_reply(1)
            return {name: n for name, n in commands(client).items() if name[0] in "hz"}

        for n in range(2):
            Peer(store, f"dead-{n}").claim_reply(1)
        node.claim_reply(1)
        before = cost()
        for n in range(2, 200):
            Peer(store, f"dead-{n}").claim_reply(1)
        assert before == cost()
        assert 201 == len(store.nodes())
        now.tick(61_000)
        node.claim_reply(1)
        store.join("new", "{}")
        assert {"lives", "new"} == {n.incarnation for n in store.nodes()}
        assert client.hlen(store.keys.nodes) == 2 == client.zcard(store.keys.alive)
        assert client.zcard(store.keys.roster) <= 1
        assert_sound(client, store.keys)
        store.release()


@pytest.mark.fault("F107")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_chunk_is_stored_completely_or_not_at_all_if_the_server_is_killed(
    watch, own_server, seed
):
    """Each acknowledged event is there after a restart. The seed decides the time of the kill."""
    timer = watch.caller(timeout=PATIENT["timeout"])
    acknowledged = []
    begun = threading.Event()

    def post():
        with contextlib.suppress(Exception):
            for _ in range(1_000):
                acknowledged.extend(timer.post_many([({}, 10_000_000)] * 500))
                begun.set()

    with background(post):
        assert begun.wait(PATIENCE)
        moment = time.monotonic() + random.Random(seed).uniform(0, 0.2)
        eventually(lambda: time.monotonic() >= moment)
        own_server.kill9()
    own_server.start()
    there = set(watch.client.zrange(watch.keys.due, 0, -1))
    assert len(there) % 500 == 0
    assert there >= {id.encode() for id in acknowledged}
    assert_sound(watch.client, watch.keys)
    watch.client.flushall()
