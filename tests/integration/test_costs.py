"""
Count what each operation costs the server and the network: commands, instructions and bytes.

A change that makes an operation more expensive, or cheaper, fails here and prints the line that
is true now. If the change is intended, replace the old line and give the reason in the commit
message. To print all lines at once:

    .venv/bin/pytest -n0 tests/integration/test_costs.py | grep -o 'it is now .*'
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import statistics
import threading
from dataclasses import astuple, dataclass

import pytest
import redis
from lua import interpreted
from meters import Meter
from peers import LEASE, Now, Peer
from relay import Relay
from servers import LATER, LONGEST_CALL, PATIENCE, YEAR_2096, Server, eventually

from dtimer import DTimer
from dtimer.model.claims import Settlement, Verdict
from dtimer.model.ids import IdGenerator
from dtimer.store.connection.sources import source
from dtimer.store.format import Entry
from dtimer.store.keys import Keys
from dtimer.store.store import Store

BODY = '3|{"i":12345,"due":1800000000000000,"k":"abcdefghij"}'


@dataclass(frozen=True)
class Cost:
    """
    The cost of an operation: script calls by the client, commands and Lua instructions run by those
    scripts, and bytes sent and received.

    The bytes are for a namespace with a name of four letters. Each call includes 16 bytes for the
    time, which the test sends and which a user's call leaves to the server.
    """

    calls: int
    commands: int
    instructions: int
    sent: int
    received: int


#: Calls, commands, instructions, bytes sent, bytes received.
COSTS: dict[str, Cost] = {
    "post, far": Cost(1, 6, 262, 630, 10),
    "post, due now": Cost(1, 9, 344, 620, 10),
    "post, 100 at a time": Cost(1, 7, 4180, 10333, 12),
    "post, 500 at a time": Cost(1, 7, 19780, 49534, 13),
    "claim": Cost(1, 18, 974, 648, 165),
    "claim, 100 at a time": Cost(1, 119, 21697, 650, 10863),
    "confirm": Cost(1, 12, 608, 689, 56),
    "confirm and claim": Cost(1, 23, 1125, 690, 166),
    "confirm and claim, 10 at a time": Cost(1, 34, 3371, 1070, 1150),
    "confirm and claim, 100 at a time": Cost(1, 124, 25511, 4853, 10963),
    "retry": Cost(1, 25, 882, 734, 56),
    "snooze": Cost(1, 24, 867, 714, 56),
    "claim again after the lease": Cost(1, 20, 916, 647, 164),
    "extend": Cost(1, 6, 190, 573, 7),
    "extend, 100 at a time": Cost(1, 105, 4744, 4732, 108),
    "poll, nothing due": Cost(1, 7, 473, 647, 55),
    "cancel": Cost(1, 20, 412, 551, 7),
    "reschedule": Cost(1, 12, 326, 569, 7),
    "peek": Cost(1, 4, 75, 536, 110),
}

#: Bytes per pending event with a generated id and a payload of 52 bytes: MEMORY USAGE of all keys.
#: Servers store hashes and sorted sets differently; a difference of one percent is accepted.
MEMORY = {"valkey 9": 163.1, "redis 7": 236.7}

#: The cost of one lone event from its post to its confirm, by the number of waiting nodes: script
#: calls, and nodes woken.
LONE = {1: (3, 1), 2: (4, 2), 8: (4, 2)}


class Case:
    """A store under a stopped clock, a node that has joined, and counters of its costs."""

    def __init__(self, server: Server, relay: Relay, meter: Meter, client) -> None:
        self.now = Now()
        self.relay = relay
        self.meter = meter
        self._server = server
        self.store = Store(source(client, 5.0), "cost", timeout=10.0, now=self.now)
        self.new_id = IdGenerator()
        self.node = Peer(self.store, f"{0:024}")

    def post(self, count=1, delay=0):
        entries = [Entry(self.new_id(), f"+{delay}", f",{BODY}") for _ in range(count)]
        self.store.post(entries, "post_new")
        return [entry.id for entry in entries]

    def claimed(self, count=1):
        """Post events and return the claims on them; no other events are pending."""
        self.post(count)
        claims = self.node.claim(count)
        assert count == len(claims)
        return claims

    def cost(self, operation) -> Cost:
        """Prepare an operation, run it once, and return what it cost."""
        act = operation(self)
        self.meter.read()
        self.relay.read()
        act()
        sent, received = self.relay.read()
        count = self.meter.read()
        commands = sum(count.inside.values())
        return Cost(count.calls, commands, self._instructions(operation), sent, received)

    def _instructions(self, operation) -> int:
        self.now.tick(1)
        act = operation(self)
        with interpreted(self._server, self.store.keys) as counter:
            act()
            return counter.read()


def settled(claims, verdict=Verdict.CONFIRM):
    return [Settlement(c.id, c.token, verdict, error="boom" * 5) for c in claims]


def post(case, count=1, delay=3_600_000_000):
    return lambda: case.post(count, delay)


def claim(case, count=1):
    case.post(count)
    return lambda: case.node.claim(count)


def confirm_and_claim(case, count=1):
    done = settled(case.claimed(count))
    case.post(count)
    return lambda: case.node.claim_reply(count, *done)


def confirm(case, count=1):
    done = settled(case.claimed(count))
    return lambda: case.node.claim_reply(0, *done)


def retry(case):
    failed = settled(case.claimed(), Verdict.RETRY)
    return lambda: case.node.claim_reply(0, *failed)


def snooze(case):
    late = settled(case.claimed(), Verdict.SNOOZE)
    return lambda: case.node.claim_reply(0, *late)


def claim_again(case):
    case.claimed()
    case.now.tick(LEASE)
    return lambda: case.node.claim(1)


def extend(case, count=1):
    leases = [(c.id, c.token) for c in case.claimed(count)]
    return lambda: case.store.claims.extend(leases, LEASE * 1000)


def cancel(case):
    (id,) = case.post(delay=3_600_000_000)
    return lambda: case.store.cancel(id)


def reschedule(case):
    (id,) = case.post(delay=3_600_000_000)
    return lambda: case.store.reschedule(id, "+1800000000")


def peek(case):
    (id,) = case.post(delay=3_600_000_000)
    return lambda: case.store.peek(id)


OPERATIONS = {
    "post, far": post,
    "post, due now": lambda case: case.post,
    "post, 100 at a time": lambda case: post(case, 100),
    "post, 500 at a time": lambda case: post(case, 500),
    "claim": claim,
    "claim, 100 at a time": lambda case: claim(case, 100),
    "confirm": confirm,
    "confirm and claim": confirm_and_claim,
    "confirm and claim, 10 at a time": lambda case: confirm_and_claim(case, 10),
    "confirm and claim, 100 at a time": lambda case: confirm_and_claim(case, 100),
    "retry": retry,
    "snooze": snooze,
    "claim again after the lease": claim_again,
    "extend": extend,
    "extend, 100 at a time": lambda case: extend(case, 100),
    "poll, nothing due": lambda case: case.node.claim_reply,
    "cancel": cancel,
    "reschedule": reschedule,
    "peek": peek,
}


@pytest.fixture(scope="module")
def server():
    """A server that no other test uses, so that its counters count only this module."""
    with Server() as server:
        yield server


@pytest.fixture
def case(server):
    """An empty namespace with counters at zero."""
    with server.client() as client:
        client.flushall()
    with (
        Relay(server.url) as relay,
        Meter(server, "cost") as meter,
        redis.Redis.from_url(relay.url) as relayed_client,
    ):
        case = Case(server, relay, meter, relayed_client)
        yield case
        case.store.release()


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_costs_exactly_its_line(case, name):
    """A change that makes an operation more expensive must not go unnoticed."""
    operation = OPERATIONS[name]
    # The first run loads scripts, opens connections and starts sessions, which would distort the
    # count.
    operation(case)()
    case.now.tick(1)
    cost = case.cost(operation)
    assert COSTS.get(name) == cost, f'it is now    "{name}": Cost{astuple(cost)},'


def test_every_operation_has_a_line():
    """The table has one line for each operation and no others."""
    assert list(OPERATIONS) == list(COSTS)


def test_the_memory_of_a_pending_event_is_unchanged(case, server):
    """A pending event takes as much memory as the table states, with payload, id and index."""
    count = 10_000
    with server.client() as client:
        for _ in range(count // 500):
            case.post(500, 3_600_000_000)
        used = sum(client.memory_usage(key, samples=0) or 0 for key in case.store.keys)
        info = client.info("server")
    name = info.get("server_name", "redis")
    kind = f"{name} {info[f'{name}_version'].partition('.')[0]}"
    bytes_each = round(used / count, 1)
    assert MEMORY.get(kind) == pytest.approx(bytes_each, rel=0.01), (
        f'it is now    "{kind}": {bytes_each}'
    )


class Waiting:
    """
    Nodes of this process that wait for events, and whether they still have something to do.

    The clock of the scripts moves a little with each call, and not with time: no node is ever late,
    however busy the machine is.
    """

    def __init__(self, server: Server, client, nodes: int) -> None:
        self._client = client
        self._keys = Keys.of("cost")
        self._began: queue.SimpleQueue[tuple[DTimer, threading.Event]] = queue.SimpleQueue()
        # The steps of the clock, in ms, have an exact binary representation.
        self._now = itertools.count(YEAR_2096, 1 / 64)
        options = {"timeout": LONGEST_CALL, "lease": LATER, "now": self._now.__next__}
        options |= {"ns": "cost", "poll_interval": 60_000}
        self.poster = DTimer("poster", server.url, **options)
        self._nodes = [DTimer(f"node-{n}", server.url, **options) for n in range(nodes)]
        for timer in self._nodes:
            timer.on("event", lambda events, timer=timer: self._handle(timer))

    def join(self) -> None:
        """Have all nodes join; return when they wait for events."""
        for timer in self._nodes:
            timer.join()
        eventually(self._wait_all)

    def _handle(self, timer: DTimer) -> None:
        go_on = threading.Event()
        self._began.put((timer, go_on))
        assert go_on.wait(PATIENCE)

    def _has_woken(self) -> bool:
        """Return True if a node was woken, and has not claimed since."""
        return bool(self._client.zcount(self._keys.promise, "-inf", next(self._now) * 1_000))

    def _wait_all(self) -> bool:
        return not self._has_woken() and self._client.zcard(self._keys.roster) == len(self._nodes)

    def handle_one(self) -> None:
        """Have an event handled; return when all nodes wait again, and none has yet to claim."""
        self.poster.post({})
        timer, go_on = self._began.get(timeout=PATIENCE)
        # The handler returns when the claimer waits. Otherwise either of two threads would claim
        # next, and sometimes both.
        claiming = timer._node._claimer._claiming
        eventually(lambda: not (claiming.locked() or self._has_woken()))
        go_on.set()
        eventually(lambda: not self._client.zcard(self._keys.due) and self._wait_all())

    def close(self) -> None:
        for timer in [*self._nodes, self.poster]:
            timer.leave(0)


@pytest.mark.parametrize("nodes", LONE)
def test_the_cost_of_a_lone_event_is_unchanged(nodes, monkeypatch):
    """The script calls and wakes for one event stay as in the table, however many nodes wait."""
    monkeypatch.setattr("dtimer.timer.node._ECHO_EVERY", LATER)
    costs = []
    with (
        Server() as server,
        server.client() as client,
        Meter(server, "cost") as meter,
        contextlib.closing(Waiting(server, client, nodes)) as waiting,
    ):
        waiting.join()
        for _ in range(3 * nodes):
            meter.read()
            waiting.handle_one()
            count = meter.read()
            assert not count.echoes
            costs.append((count.calls, len(count.wakes)))
    # Each node may make one more claim at first, when it begins to receive wakes.
    usual = statistics.mode(costs)
    assert LONE[nodes] == usual, f"it is now    {nodes}: {usual}   (of {costs})"
