"""
What each operation costs the server and the wire, counted and not timed, to the byte.

A change that makes something dearer, or cheaper, fails here and prints the line that is true
now. Whoever meant the change puts that line in the place of the old one, and says why in the
message of the commit. All of them at once:

    .venv/bin/pytest -n0 tests/integration/test_costs.py | grep -o 'it is now .*'
"""

from __future__ import annotations

import statistics
from dataclasses import astuple, dataclass

import pytest
import redis
from fleet import Fleet
from lua import interpreted
from meters import Meter
from peers import LEASE, Now, Peer
from relay import Relay
from servers import Server, eventually

from dtimer import DTimer
from dtimer.model.claims import Settlement, Verdict
from dtimer.model.names import Mint
from dtimer.store.connect import source
from dtimer.store.keys import Keys
from dtimer.store.store import Entry, Store

BODY = '3|{"i":12345,"due":1800000000000000,"k":"abcdefghij"}'


@dataclass(frozen=True)
class Cost:
    """
    Script calls that a client made, commands and instructions of Lua that these ran, and bytes
    sent and received.

    The bytes are those of a namespace of four letters; 16 of each call are the time, which is
    told by hand here and which a user's call leaves to the server.
    """

    calls: int
    commands: int
    instructions: int
    sent: int
    received: int


#: Calls, commands, instructions, bytes sent, bytes received.
COSTS: dict[str, Cost] = {
    "post, far": Cost(1, 6, 251, 630, 10),
    "post, due now": Cost(1, 9, 330, 620, 10),
    "post, 100 at a time": Cost(1, 7, 4766, 10333, 12),
    "post, 500 at a time": Cost(1, 7, 22766, 49534, 13),
    "claim": Cost(1, 18, 918, 648, 165),
    "claim, 100 at a time": Cost(1, 119, 20248, 650, 10863),
    "confirm": Cost(1, 12, 589, 689, 56),
    "confirm and claim": Cost(1, 23, 1069, 690, 166),
    "confirm and claim, 10 at a time": Cost(1, 34, 3182, 1070, 1150),
    "confirm and claim, 100 at a time": Cost(1, 124, 24062, 4853, 10963),
    "retry": Cost(1, 25, 857, 734, 56),
    "claim again after the lease": Cost(1, 18, 869, 647, 164),
    "extend": Cost(1, 5, 172, 573, 7),
    "extend, 100 at a time": Cost(1, 104, 4033, 4732, 108),
    "poll, nothing due": Cost(1, 7, 435, 647, 55),
    "cancel": Cost(1, 20, 476, 551, 15),
    "reschedule": Cost(1, 10, 250, 569, 7),
    "peek": Cost(1, 4, 78, 536, 110),
}

#: Bytes per pending event, of an id of ours and 52 bytes of payload: what MEMORY USAGE says of all
#: keys. Each server has hashes and sorted sets of its own; a hundredth more or less is none.
MEMORY = {"valkey 9": 163.1, "redis 7": 236.7}

#: What one lone event costs, from its post to its confirm, in a namespace of so many nodes that
#: wait: script calls, and nodes woken.
LONE = {1: (3, 1), 2: (4, 2), 8: (4, 2)}


class Case:
    """A store under a clock that stands still, a node that has joined it, and its counters."""

    def __init__(self, server: Server, relay: Relay, meter: Meter, client) -> None:
        self.now = Now()
        self.relay = relay
        self.meter = meter
        self._server = server
        self.store = Store(source(client, 5.0), "cost", timeout=10.0, now=self.now)
        self.mint = Mint()
        self.node = Peer(self.store, f"{0:024}")

    def post(self, count=1, delay=0):
        entries = [Entry(self.mint(), f"+{delay}", "", BODY) for _ in range(count)]
        self.store.post(entries, "mint")
        return [entry.id for entry in entries]

    def claimed(self, count=1):
        """Return claims on events posted for it, all others gone."""
        self.post(count)
        claims = self.node.claim(count)
        assert count == len(claims)
        return claims

    def cost(self, operation) -> Cost:
        """Return what an operation costs, after what it needs has been made."""
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


def post_due(case):
    return case.post


def claim(case, count=1):
    case.post(count)
    return lambda: case.node.claim(count)


def confirm_and_claim(case, count=1):
    done = settled(case.claimed(count))
    case.post(count)
    return lambda: case.node.turn(count, *done)


def confirm(case, count=1):
    done = settled(case.claimed(count))
    return lambda: case.node.turn(0, *done)


def retry(case):
    failed = settled(case.claimed(), Verdict.RETRY)
    return lambda: case.node.turn(0, *failed)


def claim_again(case):
    case.claimed()
    case.now.tick(LEASE)
    return lambda: case.node.claim(1)


def extend(case, count=1):
    held = [(c.id, c.token) for c in case.claimed(count)]
    return lambda: case.store.extend(held, LEASE * 1000)


def poll(case):
    return lambda: case.node.turn(1)


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
    "post, due now": post_due,
    "post, 100 at a time": lambda case: post(case, 100),
    "post, 500 at a time": lambda case: post(case, 500),
    "claim": claim,
    "claim, 100 at a time": lambda case: claim(case, 100),
    "confirm": confirm,
    "confirm and claim": confirm_and_claim,
    "confirm and claim, 10 at a time": lambda case: confirm_and_claim(case, 10),
    "confirm and claim, 100 at a time": lambda case: confirm_and_claim(case, 100),
    "retry": retry,
    "claim again after the lease": claim_again,
    "extend": extend,
    "extend, 100 at a time": lambda case: extend(case, 100),
    "poll, nothing due": poll,
    "cancel": cancel,
    "reschedule": reschedule,
    "peek": peek,
}


@pytest.fixture(scope="module")
def server():
    """A server without other guests: all that it counts is ours."""
    with Server() as server:
        yield server


@pytest.fixture
def case(server):
    """Counters at rest, in an empty namespace."""
    with server.client() as client:
        client.flushall()
    with (
        Relay(server.url) as relay,
        Meter(server, "cost") as meter,
        redis.Redis.from_url(relay.url) as ours,
    ):
        case = Case(server, relay, meter, ours)
        yield case
        case.store.close()


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_costs_what_it_did(case, name):
    """No operation costs more commands, calls or bytes than its line of the table says."""
    operation = OPERATIONS[name]
    # The first time scripts are loaded, connections made and memos begun.
    operation(case)()
    case.now.tick(1)
    found = case.cost(operation)
    assert COSTS.get(name) == found, f'it is now    "{name}": Cost{astuple(found)},'


def test_every_line_is_of_an_operation():
    """The table has a line for each operation, and none for what is gone."""
    assert list(OPERATIONS) == list(COSTS)


def test_a_pending_event_takes_the_memory_that_it_did(case, server):
    """An event that waits takes no more of Redis than it did, payload, id and index included."""
    count = 10_000
    with server.client() as client:
        for _ in range(count // 500):
            case.post(500, 3_600_000_000)
        used = sum(client.memory_usage(key, samples=0) or 0 for key in case.store.keys)
        info = client.info("server")
    name = info.get("server_name", "redis")
    kind = f"{name} {info[f'{name}_version'].partition('.')[0]}"
    each = round(used / count, 1)
    assert MEMORY.get(kind) == pytest.approx(each, rel=0.01), f'it is now    "{kind}": {each}'


@pytest.mark.parametrize("nodes", LONE)
def test_a_lone_event_costs_what_it_did(nodes):
    """However many nodes wait, one event makes so many calls of scripts and wakes so many nodes."""
    due, found = Keys.of("cost").due, []
    # An idle node's echoes are of its own time: it has them once in five seconds.
    with Server() as server, server.client() as client, Meter(server, "cost") as meter:
        poster = DTimer("poster", server.url, ns="cost")
        with Fleet(server.url, "cost", poll_interval=60_000) as fleet:
            for n in range(nodes):
                fleet.start(f"node-{n}")
            for _ in range(12):
                meter.read()
                poster.post({"brief": True})
                fleet.next("start")
                eventually(lambda: not client.zcard(due))
                count = meter.read()
                found.append((count.calls - len(count.echoes), len(count.wakes)))
        poster.leave()
    # A node that is late once comes once in vain, so the most frequent is taken.
    usual = statistics.mode(found)
    assert LONE[nodes] == usual, f"it is now    {nodes}: {usual}   (of {found})"
