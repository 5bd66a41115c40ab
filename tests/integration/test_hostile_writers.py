"""
Another program writes into the keys: nodes continue, and no loss goes unreported.

Each test starts with a sound namespace on a real server: an event in each state, a schedule and a
node. Then arbitrary bytes are written into some field of some key. `lua/parts/format.lua` and
`lua/parts/schedule.lua` describe the valid values, and `lua/parts/prelude.lua` the keys.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from peers import LEASE, Now, Peer, definition, post
from servers import LONGEST_CALL, PATIENCE, PROMPT, eventually

from dtimer import NamespaceCorrupt
from dtimer.errors import OptionError
from dtimer.model.claims import Settlement, Verdict
from dtimer.store.admin import AdminStore
from dtimer.store.connection.sources import source
from dtimer.store.keys import Keys
from dtimer.store.store import Store
from dtimer.testing import Catch

#: Fields that have a meaning in each hash, and some that have none.
HASHES = {
    "body": ["soon", "held", "failed", "tick@{next}"],
    "lease": ["soon", "held", "failed", "tick@{next}"],
    "tries": ["soon", "held", "failed"],
    "dead": ["gone", "soon"],
    "sys": ["token", "n:posted", "n:late:3", "n:died:failed"],
    "memo_a": ["w", "node", "other"],
    "memo_b": ["w", "node", "other"],
    "nodes": ["node", "other"],
    "defs": ["tick", "tock"],
    "plans": ["tick", "tock"],
    "beats": ["tick", "tock"],
}

#: The same for the members of each sorted set.
ZSETS = {
    "due": ["soon", "held", "failed", "tick@{next}", "stray"],
    "graves": ["gone", "soon", "stray"],
    "alive": ["node", "other"],
    "roster": ["node", "other"],
    "promise": ["node", "other"],
}

_pieces = st.sampled_from(
    [
        *(b"1", b"0", b"9" * 20, b"9" * 400, b"-", b".", b",", b";", b"|", b"@", b":"),
        *(b"s", b"c", b"q", b"a", b"nan", b"inf", b"1e308", b"0x10", b"%", b"%d", b"{}", b"["),
        *(b"\x00", b"\xff", b"\n", b",3|{}", b",3,s1,0|{}", b"1,1,1,s,node", b"1,1,1,c,node"),
        *(b"print;", b"60000000;"),
    ]
)
any_bytes = st.binary(max_size=60) | st.lists(_pieces, max_size=14).map(b"".join)


@st.composite
def mutated(draw):
    """Draw a change of the existing value: cut it, or insert something into it."""
    at, what, length = draw(st.integers(0, 60)), draw(_pieces), draw(st.integers(0, 20))
    return lambda value: value[:at] + what + value[at + length :]


any_score = st.sampled_from(
    [float("inf"), float("-inf"), 0.0, -1.0, 1.5, 1e300, -1e300, 1e17, 9007199254740993.0, 1e-300]
) | st.floats(allow_nan=False)


class World:
    """A namespace that is sound until the test spoils it."""

    def __init__(self, server, client):
        self.client = client
        self.now = Now()
        self.ns = f"t-{uuid.uuid4().hex[:12]}"
        self.store = Store(source(server.url, 3.0), self.ns, timeout=9.0, now=self.now)
        self.keys = Keys.of(self.ns)
        self.node = Peer(self.store, "node")
        store = self.store
        post(store, "gone", max_retries=0)
        self.node.fail(*self.node.claim())
        post(store, "failed")
        self.node.fail(*self.node.claim(), wait=5_000)
        post(store, "held")
        self.node.claim()
        store.schedules.declare(definition("tick", every=60_000))
        store.schedules.declare(definition("tock", cron="*/5 * * * *", tz="Europe/Berlin"))
        post(store, "soon", 1_000)
        self.next = store.schedules.get("tick").due * 1000

    def spoil(self, key, name, value):
        """Write a score or a value as another program would; a function gets the old value."""
        name = name.format(next=round(self.next))
        key = getattr(self.keys, key)
        if isinstance(value, float):
            self.client.zadd(key, {name: value})
        elif callable(value):
            self.client.hset(key, name, value(self.client.hget(key, name) or b""))
        else:
            self.client.hset(key, name, value)

    def assert_goes_on(self):
        """
        Assert that a node continues until everything in the namespace has become due, and that all
        inspections work. Return the ids that were delivered.
        """
        started = set()
        post(self.store, "good", 2_000)
        for step in (1_500, 1_000, 5_000, LEASE + 1, 60_000, LEASE + 1, 300_000, LEASE + 1):
            self.now.tick(step)
            for _ in range(60):
                began = time.monotonic()
                reply = self.node.claim_reply(10)
                assert time.monotonic() - began < PROMPT, "a script was slow"
                self.add_missing_times(reply)
                confirms = [Settlement(c.id, c.token, Verdict.CONFIRM) for c in reply.claims]
                started |= {c.id for c in reply.claims}
                if not (confirms or reply.buried):
                    break
                self.node.claim_reply(0, *confirms)
            else:
                raise AssertionError(f"the node claims without end: {reply}")
        self.inspect_and_repair()
        post(self.store, "last")
        started |= {c.id for c in self.node.claim(10)}
        assert {"good", "last"} <= started
        return started

    def add_missing_times(self, reply):
        """Compute the missing times of schedules, as a node does."""
        for schedule in reply.short:
            with contextlib.suppress(OptionError, NamespaceCorrupt):
                self.store.schedules.add_times(schedule)

    def inspect_and_repair(self):
        """Call everything that a person may use to inspect or repair."""
        store = self.store
        store.stats()
        store.nodes()
        AdminStore(store).holders()
        AdminStore(store).audit()
        AdminStore(store).waiting()
        for walk in (store.upcoming("-inf", "+inf"), store.dead(), AdminStore(store).waiting()):
            for _ in walk:
                pass
        for id in ("soon", "held", "failed", "gone", "stray", f"tick@{round(self.next)}"):
            store.peek(id)
        for id in ("tick", "tock"):
            with contextlib.suppress(NamespaceCorrupt):
                store.schedules.get(id)
            store.schedules.pause(id, on=True)
            store.schedules.pause(id, on=False)
            store.schedules.run_now(id)
            store.schedules.remove(id)
            assert store.schedules.get(id) is None
        for id in ("stray", "failed", "gone"):
            store.cancel(id)
            store.reschedule(id, "+1000")
            store.revive(id)
        store.purge()

    def close(self):
        self.client.delete(*self.keys)
        self.store.release()


@pytest.fixture
def make_world(server, client):
    """A function: make a namespace for an example, and remove that of the previous one."""
    with contextlib.ExitStack() as previous:

        def make_world():
            previous.close()
            world = World(server, client)
            previous.callback(world.close)
            return world

        yield make_world


def examples(n):
    """Return settings for *n* examples, each of which needs a server."""
    return settings(
        max_examples=n,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        phases=[p for p in Phase if p is not Phase.explain],
    )


class TestHashes:
    """Any bytes in any field of any hash."""

    @pytest.mark.parametrize("key", HASHES)
    @given(data=st.data())
    @examples(15)
    def test_any_value_leaves_other_events_delivered(self, make_world, key, data):
        """If a field holds any bytes, or nearly valid ones, all other events are delivered."""
        world = make_world()
        name = data.draw(st.sampled_from(HASHES[key]))
        world.spoil(key, name, data.draw(any_bytes | mutated()))
        started = world.assert_goes_on()
        if key in ("memo_a", "memo_b", "nodes", "dead"):
            assert {"soon", "held", "failed"} <= started

    @given(data=st.data())
    @examples(30)
    def test_several_spoilt_fields_leave_other_events_delivered(self, make_world, data):
        """If several fields hold any bytes, all other events are delivered."""
        world = make_world()
        for _ in range(data.draw(st.integers(2, 6))):
            key = data.draw(st.sampled_from(sorted(HASHES)))
            name = data.draw(st.sampled_from(HASHES[key]))
            world.spoil(key, name, data.draw(any_bytes | mutated()))
        world.assert_goes_on()


class TestZsets:
    """Any score for any member."""

    @pytest.mark.parametrize("key", ZSETS)
    @given(data=st.data())
    @examples(20)
    def test_any_score_leaves_other_events_delivered(self, make_world, key, data):
        """If a member of a sorted set has any score, all other events are delivered."""
        world = make_world()
        world.spoil(key, data.draw(st.sampled_from(ZSETS[key])), data.draw(any_score))
        world.assert_goes_on()

    @given(ids=st.lists(st.binary(max_size=300), min_size=1, max_size=20, unique=True))
    @example([b"", b"\x00", b"\xff", b"a@1", b"@", b"x" * 300])
    @examples(20)
    def test_ids_without_a_record_become_dead_letters(self, make_world, ids):
        """Ids that are not text and have no record become dead letters."""
        world = make_world()
        for id in ids:
            world.client.zadd(world.keys.due, {id: 1})
        before = world.store.stats().dead
        for _ in range(10):
            world.node.claim_reply(10)
        assert before + len(ids) == world.store.stats().dead
        world.assert_goes_on()


class TestTypes:
    """A key of a foreign type."""

    @pytest.mark.fault("F37")
    @pytest.mark.parametrize("key", Keys._fields)
    def test_a_key_of_a_foreign_type_is_named(self, make_world, key):
        """The node writes nothing to the key, and continues after the key has been removed."""
        world = make_world()
        name = getattr(world.keys, key)
        dump = world.client.dump(name)
        world.client.delete(name)
        world.client.set(name, "foreign")
        world.store.namespace._opened = False
        with pytest.raises(NamespaceCorrupt, match=key):
            world.store.namespace.open()
        assert b"foreign" == world.client.get(name)
        world.client.delete(name)
        if dump:
            world.client.restore(name, 0, dump)
        world.assert_goes_on()


FINDINGS = {
    # With 1 instead, this would be a valid pause.
    "an invalid pause": ("sys", "paused", b"what"),
    "an occurrence without a schedule": ("body", "soon", b",0,s0,0|{}"),
    # The fields of a state are listed in dtimer/store/format.py.
    "an empty schedule state": ("beats", "tick", b""),
    "a truncated schedule state": ("beats", "tick", b"print;60000000;c;q"),
    "an endless list of times": ("beats", "tock", b"p;;c;q;0;;;;1;;;" + b"1," * 3_000 + b"2;;;;"),
    "an interval of zero": ("beats", "tick", b"p;0;a;q;0;;;;1;;;;;;1;"),
    "a jitter beyond bounds": ("beats", "tick", b"p;10000;a;q;99999999999999999;;;;1;;;;;;1;"),
    "an endless number": ("beats", "tick", b"p;" + b"9" * 400 + b";c;q;0;;;;1;;;;;;1;"),
    "a template without retries": ("plans", "tick", b"{}"),
    "an empty template": ("plans", "tock", b""),
    "a definition that is not JSON": ("defs", "tock", b"\xff"),
    "a definition of another kind": ("defs", "tock", b"[]"),
    "an expression that never matches": (
        "defs",
        "tock",
        (
            b'{"count":null,"cron":"0 0 30 2 *","every":null,"jitter":0,"max_retries":3,'
            b'"misfire":"coalesce","overlap":"queue","start":null,"stop":null,"tz":"UTC"}'
        ),
    ),
    "a session without its number": ("memo_a", "node", b"what"),
    "a session entry of this claim": ("memo_a", "node", b"%d:1;2;3"),
    "a session entry of many events": ("memo_a", "node", b"%d:;;1;999999999;"),
    "a lease without an end": ("lease", "held", b"1,1," + b"9" * 400 + b",,node"),
    "a node that is not an object": ("nodes", "node", b"1|[1]"),
    "a node whose number is a list": ("nodes", "node", b'x|{"pid":[],"id":{}}'),
    "an endless number of retries": ("body", "soon", b",%s|{}" % (b"9" * 5000)),
    "an endless expiry": ("body", "soon", b"%s,3|{}" % (b"9" * 5000)),
    "an infinite due time": ("due", "soon", float("inf")),
    "a due time before all others": ("due", "soon", float("-inf")),
    "a fractional due time": ("due", "soon", 1.5),
    "a number of tries that is none": ("tries", "soon", b"nan"),
    "a number of tries without end": ("tries", "soon", b"1e300"),
    "a token that is not a number": ("sys", "token", b"abc"),
    "a token beyond bounds": ("sys", "token", b"100000000000000000"),
    "a lease that is not one": ("lease", "soon", b"what,is,this"),
    "a lease with a long token": ("lease", "soon", b"1,%s,1,,x" % (b"9" * 400)),
    **{f"a total of {n}": ("sys", f"n:{n}", b"many") for n in ("posted", "started", "confirmed")},
    "a total of dead letters": ("sys", "n:died:failed", b"many"),
}


class TestFindings:
    """Values that once caused a fault."""

    @pytest.mark.parametrize(("key", "name", "value"), FINDINGS.values(), ids=FINDINGS)
    def test_a_spoilt_value_does_not_stop_a_node(self, make_world, key, name, value):
        """With the spoilt value a node continues, and people can inspect and repair."""
        world = make_world()
        if key == "memo_a" and b"%d" in value:
            value %= world.node.seq + 1
        world.spoil(key, name, value)
        if key == "memo_a":
            # Make a claim that finds a foreign entry in its session.
            world.node.claim_reply(10)
        world.assert_goes_on()

    def test_cancelling_an_occurrence_without_next_times_ends(self, make_world):
        """A cron schedule whose definition was replaced by an interval's has no next times."""
        world = make_world()
        keys, store = world.keys, world.store
        (id,) = (r.id for r in store.upcoming("-inf", "+inf") if r.id.startswith("tock@"))
        fields = world.client.hget(keys.beats, "tock").split(b";")
        fields[11] = b""
        world.client.hset(keys.beats, "tock", b";".join(fields))
        world.client.hset(keys.defs, "tock", world.client.hget(keys.defs, "tick"))
        with pytest.raises(NamespaceCorrupt, match="declare it again"):
            store.cancel(id)
        assert store.schedules.remove("tock")

    def test_an_infinite_heartbeat_time_is_no_error(self, make_world):
        """The node is listed or ignored, and no call fails."""
        world = make_world()
        for score in (float("inf"), float("-inf")):
            world.client.zadd(world.keys.alive, {"node": score})
            assert len(world.store.nodes()) <= 1
        world.assert_goes_on()


def test_a_payload_above_the_limit_becomes_a_dead_letter(make, client):
    """The dead letter is truncated and says so. The events behind it are delivered."""
    node = make(poll_interval=100, timeout=LONGEST_CALL)
    caught, dead = Catch(node, "event"), Catch(node, "dead")
    keys = node._store.keys
    client.hset(keys.body, "huge", b',3|{"a":"%s"}' % (b"x" * 65 * 1024 * 1024))
    client.zadd(keys.due, {"huge": 1})
    with node:
        node.post({"n": 1})
        assert {"n": 1} == caught.next()[0]
        letter = dead.next()
    assert ("huge", "corrupt", 1024 * 1024) == (letter.id, letter.reason, len(letter.raw))
    assert "bytes are stored of it" in letter.error
    assert caught.empty()


def test_a_schedule_without_times_does_not_cost_leases(make, client):
    """If an expression never matches, that is reported, and running events keep their leases."""
    node = make(lease=1_200, poll_interval=50, concurrency=2)
    keys = node._store.keys
    errors, lost, done = Catch(node, "error"), Catch(node, "lease_lost"), threading.Event()
    attempts = []

    @node.on("event")
    def handle(events):
        if events[0].id == "long":
            attempts.append(events[0].attempt)
            assert done.wait(2 * PATIENCE)

    with node:
        node.cron("* * * * * *", {}, id="tick")
        fields = client.hget(keys.beats, "tick").split(b";")
        fields[11] = fields[11].split(b",")[0]
        client.hset(keys.beats, "tick", b";".join(fields))
        rule = client.hget(keys.defs, "tick").replace(b"* * * * * *", b"0 0 30 2 *")
        client.hset(keys.defs, "tick", rule)
        node.post({}, id="long")
        assert "cannot be read" in str(errors.next())
        ends = set()
        eventually(lambda: ends.add(client.zscore(keys.due, "long")) or len(ends) > 6)
        done.set()
        eventually(lambda: node.peek("long") is None)
        node.unschedule("tick")
    assert [1] == attempts
    assert lost.empty()
    assert errors.empty()
