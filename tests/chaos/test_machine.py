"""
The store against a model of its promises, on a real server, with time as an argument.

Hypothesis makes up what is asked, by whom and when: the model (`chaos.model`) says what has
to come of it. Any reply may be lost and its operation repeated, late duplicates arrive, the
clock steps forward and back, scripts are forgotten. After every step the keys are sound,
and hold what the model holds.

In CI the same examples are run each time. ``DTIMER_TEST_MACHINE=5000 pytest
tests/chaos/test_machine.py`` looks for others, as many as it says, for a night. A failure
says how to run it again; with ``DTIMER_TEST_SHRINK=1`` it is made small first, which takes
minutes.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from peers import Now, Peer
from servers import LIMIT, clear
from soundness import assert_sound

from chaos.model import Event, Model, Schedule
from chaos.tapped import TappedSource
from dtimer.errors import EventExists
from dtimer.model.claims import Result, Settlement, Turn, Verdict
from dtimer.model.recurrence import define
from dtimer.store.codec import read_beat, read_turn
from dtimer.store.store import Entry, Store

pytestmark = pytest.mark.chaos

LEASE = 30_000_000
GRACE = 50_000
EXAMPLES = int(os.environ.get("DTIMER_TEST_MACHINE", "0"))
SHRINK = bool(os.environ.get("DTIMER_TEST_SHRINK"))

SETTINGS = settings(
    max_examples=EXAMPLES or 150,
    stateful_step_count=60 if EXAMPLES else 45,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink] if SHRINK else [Phase.generate],
    report_multiple_bugs=False,
)

ids = st.sampled_from(["tea", "post", "a b", "é"])
names = st.sampled_from(["beat", "b@1"])
nodes = st.sampled_from(["n1", "n2", "deaf"])
#: In µs, of delays and waits: now, the same millisecond, soon, at a lease's end, late.
spans = st.sampled_from([0, 1, 999, 1_000, 50_000, 1_000_000, 2_500_000, LEASE, 3 * LEASE])
ticks = st.sampled_from(
    [1, 1_000, 50_000, 50_001, 500_000, 1_000_000, 3_000_000, LEASE, 61_000_000]
)
steps_back = st.sampled_from([1, 1_000, 2_000_000, 45_000_000, 3_600_000_000])
payloads = st.sampled_from(["{}", '{"n":1}', '{"a":[],"b":12345678901234567890,"c":"x|y/z"}'])
#: How far ahead a turn claims.
aheads = st.sampled_from([0, 0, 1_000, 20_000, 100_000])
#: What becomes of a reply: it arrives, or it is lost, and this much later asked for again.
replies = st.sampled_from([None, None, None, 0, 700_000])


def _turn(reply: bytes) -> Turn:
    """Read the reply of a turn, its results in their own order."""
    return read_turn(reply, range(len(reply.split(b";", 4)[3])))


class Lossy:
    """Has a script run twice when its reply is to be lost, and remembers what was sent."""

    def __init__(self, clock: Now) -> None:
        self.clock = clock
        #: How much later it is asked again; None where the next reply arrives.
        self.lost: int | None = None
        self.sent: list[tuple[int, Any, list[Any], Any]] = []

    def __call__(self, script: Any, arguments: list[Any], send: Any) -> Any:
        """Be the tap of a store."""
        reply = send(arguments)
        lost, self.lost = self.lost, None
        if arguments[1]:
            self.sent.append((self.clock.us, script, arguments, reply))
        if lost is None or script.name == "open":
            return reply
        self.clock.us += lost
        again = send([str(self.clock.us), *arguments[1:]])
        self.same(script, reply, again)
        return again

    @staticmethod
    def same(script: Any, reply: Any, again: Any) -> None:
        """Assert that an operation that is done once more says what it said before."""
        if script.name == "turn":
            # What is still held comes again; the results and the unfit are as they were.
            was, now = _turn(reply), _turn(again)
            assert was.results == now.results
            assert was.buried == now.buried
            assert {claim.token for claim in was.claims} >= {claim.token for claim in now.claims}
        elif script.name in ("post", "mint"):
            # But not how many were posted.
            assert reply.split(b";")[::2] == again.split(b";")[::2]
        else:
            assert reply == again, script.name


class Machine(RuleBasedStateMachine):
    """A namespace, its model, three nodes, and a clock."""

    server: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.client = self.server.client()
        self.ns = f"m-{uuid.uuid4().hex[:12]}"
        self.now = Now()
        self.line = Lossy(self.now)
        way: Any = TappedSource(self.client, self.line)
        self.store = Store(way, self.ns, timeout=6.0, now=self.now)
        self.store.open()
        self.model = Model()
        self.peers: dict[str, Peer] = {}
        #: Every claim there ever was: id, token, node.
        self.claims: list[tuple[str, int, str]] = []
        self.tokens: list[int] = []
        self.cancelled: set[str] = set()
        self.stepped_back = False
        #: True where an event may have to wait for a poll.
        self.by_poll = False
        #: False while a step is being taken: one that failed is not drained after.
        self.fine = True

    def teardown(self) -> None:
        """Hand out, confirm and find an end to all that is left, then leave nothing."""
        try:
            if self.fine:
                self.drain()
                assert self.line.sent, "nothing went through the tap"
        finally:
            self.store.close()
            clear(self.client, self.ns)
            self.client.close()

    # ------------------------------------------------------------------------------- helpers

    def begin(self, reply: int | None) -> int:
        """Have the reply of the next script lost or not; return the time of its effect."""
        self.line.lost = reply
        self.fine = False
        return self.now.us

    def pick(self, index: int) -> tuple[str, int, str]:
        """One of the claims so far, recent ones more often."""
        return self.claims[-1 - index % len(self.claims)]

    @initialize()
    def nodes_join(self) -> None:
        """Two nodes that hear, and one that does not."""
        for name in ("n1", "n2", "deaf"):
            self.peers[name] = Peer(self.store, name, hears=name != "deaf")
            self.model.join(self.now.us, name)

    # --------------------------------------------------------------------------------- posts

    @rule(
        posts=st.lists(
            st.tuples(ids, spans, st.booleans(), payloads, st.sampled_from([0, 1, 3])),
            min_size=1,
            max_size=3,
            unique_by=lambda p: p[0],
        ),
        expires=st.sampled_from([None, None, 1_000_000, LEASE]),
        behind=st.sampled_from([False, False, True]),
        policy=st.sampled_from(
            ["replace", "replace", "keep", "error", "earliest", "latest", "mint"]
        ),
        reply=replies,
        piped=st.booleans(),
    )
    def post(self, *, posts, expires, behind, policy, reply, piped):
        """Post one event or several; within a pipeline of the caller's, sometimes."""
        now = self.begin(None if piped else reply)
        if policy == "mint" and any(id in self.model.dead for id, *_ in posts):
            # Ids that we make are new: no letter has one.
            policy = "replace"
        # Only events of a name stand in a line.
        behind = behind and policy != "mint"
        entries, events = [], []
        for id, span, relative, payload, retries in posts:
            when = f"+{span}" if relative else str(now - 2_000_000 + span)
            due = now + span if relative else now - 2_000_000 + span
            entry = Entry(
                id,
                ("=" if behind else "") + when,
                "" if expires is None else f"+{expires}",
                f"{retries}|{payload}",
            )
            entries.append(entry)
            event = Event(id, due, payload, retries, None if expires is None else now + expires)
            events.append((event, behind))
        stored, refused = self.model.post(now, events, policy)
        if piped:
            with self.client.pipeline(transaction=True) as pipe:
                self.store.post_in(pipe, entries, policy)
                letters, _, id = pipe.execute()[0].decode().split(";")
            assert refused == id
            told = "".join("01"[s] for s in stored[: 1 if policy == "mint" else None])
            assert ("x" if refused else told) == letters
        elif refused and policy == "error":
            with pytest.raises(EventExists) as error:
                self.store.post(entries, policy)
            assert refused == error.value.id
        else:
            posted = self.store.post(entries, policy)
            kept = {e.id for e, told in zip(entries, stored, strict=False) if not told}
            assert (refused, kept) == (posted.taken, posted.kept)
        for (event, _), done in zip(events, stored, strict=False):
            if done:
                self.cancelled.discard(event.id)

    # ------------------------------------------------------------------------ of single events

    def some(self, data: Any) -> str:
        """The id of an event that there is or was, or of none."""
        known = sorted({*self.model.pending, *self.model.dead, "tea", "nobody"})
        return data.draw(st.sampled_from(known), label="id")

    @rule(data=st.data(), reply=replies)
    def cancel(self, data, reply):
        """Cancel: what was told to be cancelled never starts."""
        id = self.some(data)
        now = self.begin(reply)
        expected = self.model.cancel(now, id)
        assert expected == self.store.cancel(id).value
        if expected == "cancelled":
            self.cancelled.add(id)

    @rule(data=st.data(), span=spans, relative=st.booleans(), reply=replies)
    def reschedule(self, data, span, relative, reply):
        """Move an event; of what has started, is dead or is not there nothing is made."""
        id = self.some(data)
        now = self.begin(reply)
        when = now + span if relative else now - 1_000_000 + span
        expected = self.model.reschedule(now, id, when)
        assert expected == self.store.reschedule(id, f"+{span}" if relative else str(when))

    @rule(data=st.data(), reply=replies)
    def revive(self, data, reply):
        """Give a dead letter another life."""
        dead = sorted(self.model.dead)
        id = data.draw(st.sampled_from(dead), label="id") if dead else self.some(data)
        now = self.begin(reply)
        if self.model.revive(now, id):
            self.cancelled.discard(id)
            assert self.store.revive(id)
        else:
            assert not self.store.revive(id)

    @rule(limit=st.integers(0, 3), age=st.sampled_from([-1, 0, LEASE]), reply=replies)
    def trim(self, limit, age, reply):
        """Drop the dead letters that are too many, or too old."""
        now = self.begin(reply)
        assert self.model.trim(now, limit, age) == self.store.trim(limit, age)

    @rule()
    def purge(self):
        """Drop all dead letters."""
        assert self.model.trim(self.now.us, 0, -1) == self.store.purge()

    @rule(on=st.booleans(), reply=replies)
    def pause(self, on, reply):
        """Pause the namespace, or have it go on."""
        self.begin(reply)
        assert (self.model.paused != on) == self.store.pause(on=on)
        self.model.paused = on

    # ---------------------------------------------------------------------------------- walks

    def walk(self) -> Iterator[str]:
        """Walk what is scheduled, two to a page; one that does not end is cut short."""
        met = self.store._walks.upcoming(self.store._ask, "-inf", "+inf", 2)
        return itertools.islice((event.id for event in met), 50)

    @rule(span=spans)
    def put_all_off(self, span):
        """Move each event that a walk meets: each is met once, in due order."""
        self.begin(None)
        waiting = sorted(
            (e.score, e.id.encode()) for e in self.model.pending.values() if e.token is None
        )
        met = []
        for id in self.walk():
            met.append(id.encode())
            assert self.model.reschedule(self.now.us, id, self.now.us + span)
            assert self.store.reschedule(id, f"+{span}")
        assert [id for _, id in waiting] == met

    @rule()
    def cancel_all(self):
        """Cancel each event that a walk meets: the walk ends, and meets none twice."""
        self.begin(None)
        waiting = {e.id for e in self.model.pending.values() if e.token is None}
        met = []
        for id in self.walk():
            met.append(id)
            assert self.model.cancel(self.now.us, id) == self.store.cancel(id).value
            self.cancelled.add(id)
        assert len(met) == len(set(met))
        # The next occurrence may come sooner than the one that was cancelled in its place.
        assert {id for id in waiting if "@" not in id} <= set(met)

    # ---------------------------------------------------------------------------------- turns

    @rule(
        name=nodes,
        limit=st.sampled_from([0, 1, 1, 2, 5]),
        settled=st.lists(
            st.tuples(st.integers(0, 6), st.sampled_from(list(Verdict)), spans), max_size=3
        ),
        hears=st.booleans(),
        reply=replies,
        ahead=aheads,
    )
    def turn(self, name, limit, settled, hears, *, reply, ahead):
        """A node settles what it likes, of its own or of others, and claims what is due."""
        settlements = []
        for index, verdict, wait in settled if self.claims else []:
            id, token, _ = self.pick(index)
            settlements.append(Settlement(id, token, verdict, wait, "why", "corrupt"))
        self.peers[name].hears = hears and name != "deaf"
        self.take(name, limit, settlements, reply, ahead)

    @rule(name=nodes, limit=st.sampled_from([1, 3]), ahead=aheads)
    def claim(self, name, limit, ahead):
        """A node claims, and nothing goes wrong."""
        self.take(name, limit, [], None, ahead)

    @precondition(lambda self: self.claims)
    @rule(index=st.integers(0, 2))
    def confirm(self, index):
        """The holder of a recent claim confirms it, or tries to."""
        id, token, name = self.pick(index)
        self.take(name, 0, [Settlement(id, token, Verdict.CONFIRM)], None)

    def take(
        self,
        name: str,
        limit: int,
        settlements: list[Settlement],
        reply: int | None,
        ahead: int = 0,
    ) -> int | None:
        """Take a turn in both worlds; return how long it is worth waiting."""
        now = self.begin(reply)
        peer, model, keys = self.peers[name], self.model, self.store.keys
        expected = model.settle_all(
            now, [(s.id, s.token, s.verdict.value, s.wait_us) for s in settlements]
        )
        promises = dict(self.client.zrange(keys.promise, 0, -1, withscores=True))
        promises.pop(name.encode(), None)
        registered = self.client.hkeys(keys.nodes)
        told = sum(n in registered and now - GRACE <= at <= now for n, at in promises.items())
        held = {id: (e.token, e.lease_end) for id, e in model.pending.items() if e.token}
        claims, buried, known = model.take(now, name, limit, LEASE, told, ahead=ahead)
        turn = peer.turn(limit, *settlements, lease=LEASE // 1000, ahead=ahead / 1000)
        assert expected == [_RESULTS[result] for result in turn.results]
        assert buried == turn.buried
        if reply is None and not (settlements or claims):
            # With work at hand nobody looks.
            assert known == turn.known
        assert [e.id for e in claims] == [c.id for c in turn.claims]
        for event, claim in zip(claims, turn.claims, strict=True):
            self.claimed(now, event, claim, held.get(event.id), ahead)
            event.token = claim.token
            # Asked for again it is a lease that starts anew.
            event.lease_end = self.now.us + LEASE
            self.claims.append((claim.id, claim.token, name))
        promised = self.client.zscore(keys.promise, name)
        if promised is not None and reply is None and promised != now:
            # At this very moment: it is told by a wake, as any other.
            assert turn.wait_us is not None
            assert promised >= now + turn.wait_us, "a promise that the node does not know of"
        return turn.wait_us

    def claimed(
        self, now: int, event: Event, claim: Any, held: tuple[int, int] | None, ahead: int
    ) -> None:
        """Assert of one claim what is promised of all."""
        assert claim.due_us <= now + ahead, "early"
        assert held is None or held[1] <= now, "two holders"
        assert claim.token > max(self.tokens, default=0), "a token that did not grow"
        self.tokens.append(claim.token)
        assert 1 <= claim.attempt <= event.max_retries + 1, "started too often"
        assert claim.id not in self.cancelled, "cancelled, and started"
        assert (event.starts, event.due, event.payload.encode(), event.missed) == (
            claim.attempt,
            claim.due_us,
            claim.payload,
            claim.missed,
        )

    # ------------------------------------------------------------------------- at once, leases

    @precondition(lambda self: self.claims)
    @rule(
        index=st.integers(0, 6), verdict=st.sampled_from(list(Verdict)), wait=spans, reply=replies
    )
    def settle(self, index, verdict, wait, reply):
        """A holder, or who was one, ends a claim at once."""
        id, token, _ = self.pick(index)
        now = self.begin(reply)
        (expected,) = self.model.settle_all(now, [(id, token, verdict.value, wait)])
        (result,) = self.store.settle([Settlement(id, token, verdict, wait, "why", "corrupt")])
        assert expected == _RESULTS[result]

    def stale(self) -> list[tuple[str, int]]:
        """Claims on events that are in flight, by others now."""
        pending = self.model.pending
        flying = {id: pending[id].token for id, *_ in self.claims if id in pending}
        return [(i, t) for i, t, _ in self.claims if flying.get(i) not in (None, t)]

    @precondition(lambda self: self.stale())
    @rule(data=st.data(), verdict=st.sampled_from(list(Verdict)), at_once=st.booleans())
    def settle_too_late(self, data, verdict, at_once):
        """Who lost its lease to another ends that claim, or renews it: nothing changes."""
        id, token = data.draw(st.sampled_from(self.stale()), label="claim")
        self.begin(None)
        assert [False] == self.store.extend([(id, token)], 2 * LEASE)
        late = Settlement(id, token, verdict, 0, "why", "corrupt")
        if at_once:
            assert [Result.STALE] == self.store.settle([late])
        else:
            self.take("deaf", 0, [late], None)

    @precondition(lambda self: self.claims)
    @rule(
        indices=st.lists(st.integers(0, 6), min_size=1, max_size=3, unique=True),
        lease=st.sampled_from([LEASE, LEASE, 2 * LEASE, 1_000]),
        at_least=st.booleans(),
        reply=replies,
    )
    def extend(self, indices, lease, at_least, reply):
        """A heartbeat, or a holder's wish: leases are renewed for their holders alone."""
        held = [self.pick(index)[:2] for index in indices]
        self.begin(reply)
        # Nobody is told when a holder gives up early: its lease may be made shorter.
        self.by_poll |= lease < LEASE
        renewed = self.store.extend(held, lease, at_least=at_least)
        # Asked for again it does the same again.
        assert renewed == [
            self.model.extend(self.now.us, *claim, lease, at_least=at_least) for claim in held
        ]

    # ------------------------------------------------------------------------------- schedules

    @rule(
        name=names,
        every=st.sampled_from([1_000, 3_000]),
        start=st.sampled_from([None, None, -5_000, 0, 2_000]),
        count=st.sampled_from([None, None, 3]),
        misfire=st.sampled_from(["coalesce", "skip", "all"]),
        overlap=st.sampled_from(["queue", "allow", "skip"]),
        retries=st.sampled_from([0, 3]),
        reply=replies,
    )
    def declare(self, *, name, every, start, count, misfire, overlap, retries, reply):
        """Declare a schedule, a changed one, or the same."""
        now = self.begin(None)
        begins = None if start is None else 1_800_000_000_000 + start
        definition = define(
            name, every=every, start=begins, end=None, count=count, jitter=0, misfire=misfire,
            overlap=overlap, max_retries=retries, payload="{}",
        )  # fmt: skip
        print_ = (every, begins, count, misfire, overlap, retries)
        new = Schedule(
            print_, every * 1000, misfire, overlap, retries, "{}", anchor=0, left=count, next=None
        )
        start_us = None if begins is None else begins * 1000
        expected = self.model.declare(now, name, new, start_us)
        self.line.lost = reply
        assert expected == self.store.declare(definition)
        if expected != "same":
            # It may begin where the older one began: with new events of the same ids.
            self.cancelled = {id for id in self.cancelled if id.rpartition("@")[0] != name}

    @rule(name=names, reply=replies)
    def unschedule(self, name, reply):
        """End a schedule."""
        self.begin(reply)
        assert self.model.unschedule(name) == self.store.unschedule(name)

    @rule(name=names, on=st.booleans(), reply=replies)
    def suspend(self, name, on, reply):
        """Pause one schedule, or let it go on."""
        self.begin(reply)
        assert self.model.suspend(name, on) == self.store.suspend(name, on=on)

    @rule(name=names, reply=replies)
    def run_now(self, name, reply):
        """Hand out one occurrence besides the others: its id is nobody else's."""
        now = self.begin(reply)
        id = self.store.run_now(name)
        assert (name in self.model.schedules) == (id is not None)
        if id is not None:
            assert id.startswith(f"{name}@")
            assert id not in self.model.pending
            assert id not in self.model.dead
            self.model.run_now(now, name, id)
            self.cancelled.discard(id)

    # ----------------------------------------------------------------- nodes, time, the server

    @rule(name=nodes, reply=replies)
    def join(self, name, reply):
        """A node registers, again maybe."""
        self.begin(reply)
        self.store.join(name, "{}")
        self.model.join(self.now.us, name)

    @rule(name=nodes, reply=replies)
    def leave(self, name, reply):
        """A node leaves."""
        self.begin(reply)
        self.store.leave(name)
        self.model.leave(name)

    @rule(us=ticks)
    def time_passes(self, us):
        """Leases end, events fall due, memos are forgotten."""
        self.now.us += us

    @rule(us=ticks)
    def time_passes_more(self, us):
        """The same: it is what happens most."""
        self.now.us += us

    @precondition(lambda self: not self.stepped_back)
    @rule(us=steps_back)
    def time_steps_back(self, us):
        """The clock of the server is set back; once, so that most runs know none of it."""
        self.now.us -= us
        self.stepped_back = self.by_poll = True

    @rule()
    def scripts_are_forgotten(self):
        """As by a restart, or by a person."""
        self.client.script_flush()

    @precondition(lambda self: self.line.sent)
    @rule(index=st.integers(0, 9))
    def late_duplicate(self, index):
        """
        What was sent before arrives once more, within the minute in which it is remembered:
        it is refused, or, when it was the last of its lane, told what it was told before.
        """
        at, script, arguments, reply = self.line.sent[-1 - index % len(self.line.sent)]
        if self.now.us - at > 60_000_000:
            return
        wire: Any = TappedSource(self.client, _straight).wire(self.store.keys)
        try:
            again = wire.run(script, [str(self.now.us), *arguments[1:]], 0, whole=True)
        except redis.ResponseError as e:
            if "DTSTALE" in str(e):
                return
            raise
        finally:
            wire.close()
        self.line.same(script, reply, again)
        if script.name != "turn":
            return
        # It was overtaken, or doubled: who holds what it told of goes on holding it.
        renewed = {claim.token for claim in _turn(again).claims}
        for claim in _turn(reply).claims:
            still = self.model.extend(self.now.us, claim.id, claim.token, LEASE)
            assert still == (claim.token in renewed)

    # ------------------------------------------------------------------------------ invariants

    @invariant()
    def sound(self):
        """No key contradicts another."""
        assert_sound(self.client, self.store.keys)

    @invariant()
    def as_the_model_has_it(self):
        """The server holds what the model holds."""
        keys, model = self.store.keys, self.model
        with self.client.pipeline(transaction=False) as pipe:
            pipe.zrange(keys.due, 0, -1, withscores=True)
            for key in (keys.body, keys.lease, keys.tries, keys.dead, keys.beats):
                pipe.hgetall(key)
            due, body, lease, tries, dead, beats = pipe.execute()
        assert {e.id: e.score for e in model.pending.values()} == {
            i.decode(): int(s) for i, s in due
        }
        assert {e.id: e.payload for e in model.pending.values()} == {
            i.decode(): b.partition(b"|")[2].decode() for i, b in body.items()
        }
        held = {e.id: (e.token, e.starts, e.cancelled) for e in model.pending.values() if e.token}
        assert held == {i.decode(): _lease(text) for i, text in lease.items()}
        waiting = {e.id: e.starts for e in model.pending.values() if not e.token and e.starts}
        assert waiting == {i.decode(): int(n) for i, n in tries.items()}
        assert {i: (e.starts, e.reason) for i, e in model.dead.items()} == {
            i.decode(): _letter(text) for i, text in dead.items()
        }
        assert {
            name: (s.next, s.last, s.running, s.left, s.paused)
            for name, s in model.schedules.items()
        } == {name.decode(): _beat(text) for name, text in beats.items()}
        self.fine = True

    @invariant()
    def somebody_comes(self):
        """
        Where a node hears, one has promised to come for the next event by its due time, or
        has been told to come now. Where the clock is set back it may take a poll.
        """
        keys, model = self.store.keys, self.model
        if self.by_poll or model.paused or not model.pending:
            return
        roster = self.client.zrange(keys.roster, 0, -1)
        if roster:
            earliest = min(e.score for e in model.pending.values())
            promises = [at for _, at in self.client.zrange(keys.promise, 0, -1, withscores=True)]
            assert promises, "nobody was told"
            assert min(promises) <= max(earliest, self.now.us), "nobody comes in time"

    def drain(self) -> None:
        """A node that polls gets all that is left, each at the poll after its time."""
        for name in list(self.model.schedules):
            assert self.store.unschedule(name)
            self.model.unschedule(name)
        self.store.pause(on=False)
        self.model.paused = False
        name = "deaf"
        self.store.join(name, "{}")
        self.model.join(self.now.us, name)
        settlements: list[Settlement] = []
        while self.model.pending:
            before = len(self.claims)
            wait = self.take(name, 100, settlements, None)
            settlements = [
                Settlement(id, token, Verdict.CONFIRM) for id, token, _ in self.claims[before:]
            ]
            left = [e for e in self.model.due(self.now.us) if e.token is None]
            assert not left or wait is not None
            self.now.us += 1_000_000
            soonest = min((e.score for e in self.model.pending.values()), default=0)
            if not settlements and not left:
                self.now.us = max(self.now.us, soonest)
            self.as_the_model_has_it()
        assert_sound(self.client, self.store.keys)


_RESULTS = {
    Result.DONE: "done",
    Result.STALE: "stale",
    Result.DEAD: "dead",
    Result.CANCELLED: "cancelled",
}


def _straight(script: Any, arguments: list[Any], send: Any) -> Any:
    return send(arguments)


def _lease(text: bytes) -> tuple[int, int, bool]:
    token, starts, _, flags, _ = text.split(b",", 4)
    return int(token), int(starts), b"c" in flags


def _letter(text: bytes) -> tuple[int, str]:
    starts, reason, _ = text.split(b",", 2)
    return int(starts), reason.decode()


def _number(text: str) -> int | None:
    return int(text) if text else None


def _beat(text: bytes) -> tuple[Any, ...]:
    beat = read_beat(text)
    numbers = (_number(beat[name]) for name in ("next", "last", "running", "left"))
    return (*numbers, beat["paused"] == "1")


@pytest.mark.slow
@pytest.mark.timeout(0 if EXAMPLES else 4 * LIMIT)
def test_the_store_keeps_its_promises(server):
    """Whatever is asked, by whom and when, the store does what the model says."""

    class OnThisServer(Machine):
        pass

    OnThisServer.server = server
    run_state_machine_as_test(OnThisServer, settings=SETTINGS)
