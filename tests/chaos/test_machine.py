"""
Compare the store with a model of its guarantees, on a real server, with time as an argument.

Hypothesis generates the operations, their callers and their times. The model (`chaos.model`)
predicts each result. Any reply may be lost and its operation repeated. Late duplicates arrive,
the clock steps forward and back, and the server forgets its scripts. After every step the keys
are sound and hold the same as the model.

CI runs the same examples each time. ``DTIMER_TEST_MACHINE=5000 pytest
tests/chaos/test_machine.py`` tries 5000 other examples, which takes a night. A failure prints
how to repeat it. With ``DTIMER_TEST_SHRINK=1`` Hypothesis minimises the example first, which
takes minutes.
"""

from __future__ import annotations

import itertools
import os
import re
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
from chaos.stepped import read_lease
from chaos.tapped import TappedSource
from dtimer.errors import EventExists
from dtimer.model.claims import ClaimReply, Outcome, Renewal, Settlement, Verdict
from dtimer.model.schedules import Declaration, make_spec
from dtimer.store.format import Entry, read_body, read_schedule_state, write_body
from dtimer.store.replies import read_claim_reply
from dtimer.store.store import Store

pytestmark = pytest.mark.chaos

LEASE = 30_000_000
GRACE = 50_000
#: Added to the place of a node that lags, as in the Lua part that wakes a node.
BEHIND = 2**52
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
#: The field of a body that a post with a limited wait has.
_FIRST = re.compile(rb"[^|]*,f(\d+)[,|]")
#: Delays and waits in µs: now, the same millisecond, soon, at the end of a lease, and later.
spans = st.sampled_from([0, 1, 999, 1_000, 50_000, 1_000_000, 2_500_000, LEASE, 3 * LEASE])
ticks = st.sampled_from(
    [1, 1_000, 50_000, 50_001, 500_000, 1_000_000, 3_000_000, LEASE, 61_000_000]
)
steps_back = st.sampled_from([1, 1_000, 2_000_000, 45_000_000, 3_600_000_000])
payloads = st.sampled_from(["{}", '{"n":1}', '{"a":[],"b":12345678901234567890,"c":"x|y/z"}'])
#: The reasons of snoozes and dead letters.
reasons = st.sampled_from(["", "unknown_kind", "buried"])
#: Whether the claiming node says that it lags.
lagging = st.sampled_from([False, False, True])
#: How far ahead of the due times a claim reaches, in µs.
aheads = st.sampled_from([0, 0, 1_000, 20_000, 100_000])
#: None if the reply arrives. If it is lost, the µs after which the request is sent again.
replies = st.sampled_from([None, None, None, 0, 700_000])


def _claim_reply(reply: bytes) -> ClaimReply:
    """Read the reply of a claim; return the settlements' outcomes in the order of the reply."""
    return read_claim_reply(reply, range(len(reply.split(b";", 4)[3])))


class Lossy:
    """A tap that runs a script twice if its reply should be lost, and records all requests."""

    def __init__(self, clock: Now) -> None:
        self.clock = clock
        #: The µs after which the next request is sent again; None if its reply arrives.
        self.lost: int | None = None
        self.sent: list[tuple[int, Any, list[Any], Any]] = []

    def __call__(self, script: Any, arguments: list[Any], send: Any) -> Any:
        """Send a request, as the tap of a `TappedSource`."""
        reply = send(arguments)
        lost, self.lost = self.lost, None
        if arguments[1]:
            self.sent.append((self.clock.us, script, arguments, reply))
        if lost is None or script.name == "open":
            return reply
        self.clock.us += lost
        again = send([str(self.clock.us), *arguments[1:]])
        self.assert_same(script, reply, again)
        return again

    @staticmethod
    def assert_same(script: Any, reply: Any, again: Any) -> None:
        """Assert that a repeated operation returns what the first one returned."""
        if script.name == "claim":
            # Only claims that are still held return. Outcomes and buried events are the same.
            was, now = _claim_reply(reply), _claim_reply(again)
            assert was.results == now.results
            assert was.buried == now.buried
            assert {claim.token for claim in was.claims} >= {claim.token for claim in now.claims}
        elif script.name in ("post", "post_new"):
            # All but the number of posted events, which may have grown.
            assert reply.split(b";")[::2] == again.split(b";")[::2]
        else:
            assert reply == again, script.name


class Machine(RuleBasedStateMachine):
    """A namespace, its model, three nodes and a clock."""

    server: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.client = self.server.client()
        self.ns = f"m-{uuid.uuid4().hex[:12]}"
        self.now = Now()
        self.lossy = Lossy(self.now)
        source: Any = TappedSource(self.client, self.lossy)
        self.store = Store(source, self.ns, timeout=6.0, now=self.now)
        self.store.namespace.open()
        self.model = Model()
        self.peers: dict[str, Peer] = {}
        #: Every claim so far: id, token, node.
        self.claims: list[tuple[str, int, str]] = []
        self.tokens: list[int] = []
        self.cancelled: set[str] = set()
        self.stepped_back = False
        #: True if an event may have to wait for a poll.
        self.by_poll = False
        #: False during a step. After a step that failed, teardown does not drain.
        self.fine = True

    def teardown(self) -> None:
        """Deliver and confirm all remaining events, then delete the namespace."""
        try:
            if self.fine:
                self.drain()
                assert self.lossy.sent, "nothing went through the tap"
        finally:
            self.store.release()
            clear(self.client, self.ns)
            self.client.close()

    # ------------------------------------------------------------------------------- helpers

    def begin(self, reply: int | None) -> int:
        """Set whether the next reply is lost; return the time at which the script takes effect."""
        self.lossy.lost = reply
        self.fine = False
        return self.now.us

    def pick(self, index: int) -> tuple[str, int, str]:
        """Return one of the claims so far; a small index is a recent one."""
        return self.claims[-1 - index % len(self.claims)]

    @initialize()
    def nodes_join(self) -> None:
        """Register two nodes that hear wakes and a deaf one."""
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
            ["replace", "replace", "keep", "error", "earliest", "latest", "post_new"]
        ),
        max_wait=st.sampled_from([None, None, 0, 1_500_000, LEASE]),
        reply=replies,
        piped=st.booleans(),
    )
    def post(self, *, posts, expires, behind, policy, max_wait, reply, piped):
        """Post one event or several, sometimes within a pipeline of the caller."""
        now = self.begin(None if piped else reply)
        if policy == "post_new" and any(id in self.model.dead for id, *_ in posts):
            # Generated ids are new, so no dead letter can have one.
            policy = "replace"
        # Only events with an id of the caller can queue behind another event.
        behind = behind and policy != "post_new"
        limited = max_wait is not None and policy == "replace"
        entries, events = [], []
        for id, span, relative, payload, retries in posts:
            when = f"+{span}" if relative else str(now - 2_000_000 + span)
            due = now + span if relative else now - 2_000_000 + span
            body = write_body(
                "" if expires is None else f"+{expires}", retries, payload, limited_wait=limited
            )
            limit = f",{max_wait}" if limited else ""
            entries.append(Entry(id, ("=" if behind else "") + when + limit, body))
            event = Event(id, due, payload, retries, None if expires is None else now + expires)
            event.max_wait = max_wait if limited else None
            events.append((event, behind))
        stored, refused = self.model.post(now, events, policy)
        if piped:
            with self.client.pipeline(transaction=True) as pipe:
                self.store.post_in(pipe, entries, policy)
                letters, _, id = pipe.execute()[0].decode().split(";")
            assert refused == id
            letters_expected = "".join(
                "01"[s] for s in stored[: 1 if policy == "post_new" else None]
            )
            assert ("x" if refused else letters_expected) == letters
        elif refused and policy == "error":
            with pytest.raises(EventExists) as error:
                self.store.post(entries, policy)
            assert refused == error.value.id
        else:
            posted = self.store.post(entries, policy)
            kept = {e.id for e, done in zip(entries, stored, strict=False) if not done}
            assert (refused, kept) == (posted.taken, posted.kept)
        for (event, _), done in zip(events, stored, strict=False):
            if done:
                self.cancelled.discard(event.id)

    # --------------------------------------------------------------------------- single events

    def some(self, data: Any) -> str:
        """Draw the id of a pending event or a dead letter, or an unknown id."""
        known = sorted({*self.model.pending, *self.model.dead, "tea", "nobody"})
        return data.draw(st.sampled_from(known), label="id")

    @rule(data=st.data(), reply=replies)
    def cancel(self, data, reply):
        """Cancel an event. If the store says that it is cancelled, it must never start."""
        id = self.some(data)
        now = self.begin(reply)
        expected = self.model.cancel(now, id)
        assert expected == self.store.cancel(id).value
        if expected == "cancelled":
            self.cancelled.add(id)

    @rule(data=st.data(), count=st.integers(2, 4), reply=replies)
    def cancel_many(self, data, count, reply):
        """Cancel several events with one script, perhaps one of them twice."""
        ids = [self.some(data) for _ in range(count)]
        now = self.begin(reply)
        expected = [self.model.cancel(now, id) for id in ids]
        assert expected == [outcome.value for outcome in self.store.cancel_some(ids)]
        self.cancelled |= {
            id for id, outcome in zip(ids, expected, strict=True) if outcome == "cancelled"
        }

    @rule(data=st.data(), payload=payloads, reply=replies)
    def update(self, data, payload, reply):
        """Replace the payload of an event. A running, dead or unknown event stays as it is."""
        id = self.some(data)
        self.begin(reply)
        assert self.model.update(id, payload) == self.store.update(id, payload)

    @rule(data=st.data(), span=spans, relative=st.booleans(), reply=replies)
    def reschedule(self, data, span, relative, reply):
        """Move an event. A running, dead or unknown event stays as it is."""
        id = self.some(data)
        now = self.begin(reply)
        when = now + span if relative else now - 1_000_000 + span
        expected = self.model.reschedule(now, id, when)
        assert expected == self.store.reschedule(id, f"+{span}" if relative else str(when))

    @rule(data=st.data(), reply=replies)
    def revive(self, data, reply):
        dead = sorted(self.model.dead)
        id = data.draw(st.sampled_from(dead), label="id") if dead else self.some(data)
        now = self.begin(reply)
        if self.model.revive(now, id):
            self.cancelled.discard(id)
            assert self.store.revive(id)
        else:
            assert not self.store.revive(id)

    @rule(
        data=st.data(),
        reason=st.sampled_from(["", "failed", "lease_lost", "expired"]),
        reply=replies,
    )
    def revive_some(self, data, reason, reply):
        """Revive several dead letters with one script, if they have a reason."""
        ids = [*sorted(self.model.dead), self.some(data)]
        now = self.begin(reply)
        revived = [
            id
            for id in ids
            if (letter := self.model.dead.get(id)) and reason in {"", letter.reason}
            if self.model.revive(now, id)
        ]
        self.cancelled.difference_update(revived)
        assert len(revived) == self.store.revive_some(ids, reason)

    @rule(reason=st.sampled_from(["", "failed", "expired"]))
    def revive_all(self, reason):
        """Revive all dead letters with a reason, as a walk finds them."""
        now = self.begin(None)
        letters = self.model.dead.items()
        ids = [id for id, letter in letters if reason in {"", letter.reason}]
        assert all(self.model.revive(now, id) for id in ids)
        self.cancelled.difference_update(ids)
        assert len(ids) == self.store.revive_all(reason)

    @rule(data=st.data(), reply=replies)
    def drop(self, data, reply):
        id = self.some(data)
        self.begin(reply)
        assert self.model.drop(id) == self.store.drop(id)

    @rule(seldom=st.integers(0, 9), reply=replies)
    def clear(self, seldom, reply):
        """Delete everything, but seldom, or few runs would have many events."""
        if seldom:
            return
        self.begin(reply)
        self.cancelled |= set(self.model.pending)
        cleared = self.store.clear()
        assert self.model.clear() == (cleared.events, cleared.dead, cleared.schedules)

    @rule(limit=st.integers(0, 3), age=st.sampled_from([-1, 0, LEASE]), reply=replies)
    def trim(self, limit, age, reply):
        """Drop the dead letters over a limit of number or age."""
        now = self.begin(reply)
        assert self.model.trim(now, limit, age) == self.store.trim(limit, age)

    @rule()
    def purge(self):
        assert self.model.trim(self.now.us, 0, -1) == self.store.purge()

    @rule(on=st.booleans(), reply=replies)
    def pause(self, on, reply):
        self.begin(reply)
        assert (self.model.paused != on) == self.store.pause(on=on)
        self.model.paused = on

    # ---------------------------------------------------------------------------------- walks

    def walk(self) -> Iterator[str]:
        """Walk the waiting events, two a page, and stop after 50 of them."""
        met = self.store.walks.upcoming(self.store.namespace.ask, "-inf", "+inf", 2)
        return itertools.islice((event.id for event in met), 50)

    @rule(span=spans)
    def reschedule_all(self, span):
        """Move each event that a walk meets. It must meet each one once, in due order."""
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
        """Cancel each event that a walk meets. The walk must end, and meet no event twice."""
        self.begin(None)
        waiting = {e.id for e in self.model.pending.values() if e.token is None}
        met = []
        for id in self.walk():
            met.append(id)
            assert self.model.cancel(self.now.us, id) == self.store.cancel(id).value
            self.cancelled.add(id)
        assert len(met) == len(set(met))
        # A cancelled occurrence is replaced by the next, which may be due earlier.
        assert {id for id in waiting if "@" not in id} <= set(met)

    # --------------------------------------------------------------------------------- claims

    @rule(
        name=nodes,
        limit=st.sampled_from([0, 1, 1, 2, 5]),
        settled=st.lists(
            st.tuples(st.integers(0, 6), st.sampled_from(list(Verdict)), spans, reasons),
            max_size=3,
        ),
        hears=st.booleans(),
        lags=lagging,
        reply=replies,
        ahead=aheads,
    )
    def claim_and_settle(self, name, limit, settled, hears, *, lags, reply, ahead):
        """Settle any claims, also those of other nodes, and claim due events."""
        settlements = []
        for index, verdict, wait, reason in settled if self.claims else []:
            id, token, _ = self.pick(index)
            settlements.append(_settlement(id, token, verdict, wait, reason))
        self.peers[name].hears = hears and name != "deaf"
        self.peers[name].lags = lags
        self.claim_in_both(name, limit, settlements, reply, ahead)

    @rule(name=nodes, limit=st.sampled_from([1, 3]), ahead=aheads, lags=lagging)
    def claim(self, name, limit, ahead, lags):
        """Claim due events; the reply arrives."""
        self.peers[name].lags = lags
        self.claim_in_both(name, limit, [], None, ahead)

    @precondition(lambda self: self.claims)
    @rule(index=st.integers(0, 2))
    def confirm(self, index):
        """Confirm a recent claim, through the node that made it."""
        id, token, name = self.pick(index)
        self.claim_in_both(name, 0, [Settlement(id, token, Verdict.CONFIRM)], None)

    def claim_in_both(
        self,
        name: str,
        limit: int,
        settlements: list[Settlement],
        reply: int | None,
        ahead: int = 0,
    ) -> int | None:
        """Claim from the store and from the model; return the µs until the next claim is due."""
        now = self.begin(reply)
        peer, model, keys = self.peers[name], self.model, self.store.keys
        expected = model.settle_all(
            now, [(s.id, s.token, s.verdict.value, s.wait_us, s.reason) for s in settlements]
        )
        awaited = self.awaited(now, name, limit)
        held = {id: (e.token, e.lease_end) for id, e in model.pending.items() if e.token}
        claims, buried, known = model.claim(now, name, limit, LEASE, awaited, ahead=ahead)
        actual = peer.claim_reply(limit, *settlements, lease=LEASE // 1000, ahead=ahead / 1000)
        assert expected == [result.name.lower() for result in actual.results]
        assert buried == actual.buried
        if reply is None and not (settlements or claims):
            # A claim that settles or returns events does not look the registration up.
            assert known == actual.known
        assert [e.id for e in claims] == [c.id for c in actual.claims]
        for event, claim in zip(claims, actual.claims, strict=True):
            self.claimed(now, event, claim, held.get(event.id), ahead)
            event.token = claim.token
            # If the reply was lost, the repeated request starts the lease again.
            event.lease_end = self.now.us + LEASE
            self.claims.append((claim.id, claim.token, name))
        planned_at = self.client.zscore(keys.promise, name)
        if planned_at is not None and reply is None and planned_at != now:
            # Except for exactly now, when a wake tells the node to claim.
            assert actual.wait_us is not None
            assert planned_at >= now + actual.wait_us, "a claim the node does not plan"
        return actual.wait_us

    def awaited(self, now: int, name: str, limit: int) -> int:
        """Return how many events a claim of this node leaves for others."""
        keys, peer = self.store.keys, self.peers[name]
        planned = dict(self.client.zrange(keys.promise, 0, -1, withscores=True))
        planned.pop(name.encode(), None)
        registered = self.client.hkeys(keys.nodes)
        listed = dict(self.client.zrange(keys.roster, 0, -1, withscores=True))
        own_place = listed.pop(name.encode(), BEHIND)
        on_time = [n for n, place in listed.items() if place < BEHIND]
        if peer.lags and on_time and self.model.pending:
            earliest = min(e.score for e in self.model.pending.values())
            at = planned.get(on_time[0])
            comes = at is not None and at <= max(earliest, now) and now <= at + GRACE
            if comes and on_time[0] in registered:
                return len(self.model.pending)
        takes_over = listed and not on_time and own_place >= BEHIND
        if takes_over and limit and peer.hears and not peer.lags:
            return 0
        return sum(n in registered and now - GRACE <= at <= now for n, at in planned.items())

    def claimed(
        self, now: int, event: Event, claim: Any, held: tuple[int, int] | None, ahead: int
    ) -> None:
        """Assert the guarantees that every claim has."""
        assert claim.due_us <= now + ahead, "early"
        assert held is None or held[1] <= now, "claimed while another node held it"
        assert claim.token > max(self.tokens, default=0), "the token did not grow"
        self.tokens.append(claim.token)
        assert 1 <= claim.attempt <= event.max_retries + 1, "started too often"
        assert claim.id not in self.cancelled, "started after it was cancelled"
        assert (event.starts, event.due, event.payload.encode(), event.missed) == (
            claim.attempt,
            claim.due_us,
            claim.payload,
            claim.missed,
        )

    # ---------------------------------------------------------------------- settlements, leases

    @precondition(lambda self: self.claims)
    @rule(
        index=st.integers(0, 6),
        verdict=st.sampled_from(list(Verdict)),
        wait=spans,
        reason=reasons,
        reply=replies,
    )
    def settle(self, index, verdict, wait, reason, reply):
        """Settle a claim outside the claim cycle, through its holder or a former holder."""
        id, token, _ = self.pick(index)
        now = self.begin(reply)
        settlement = _settlement(id, token, verdict, wait, reason)
        (expected,) = self.model.settle_all(
            now, [(id, token, verdict.value, wait, settlement.reason)]
        )
        (result,) = self.store.claims.settle([settlement])
        assert expected == result.name.lower()

    def stale(self) -> list[tuple[str, int]]:
        """Return claims on events that a later claim has taken over."""
        pending = self.model.pending
        flying = {id: pending[id].token for id, *_ in self.claims if id in pending}
        return [(i, t) for i, t, _ in self.claims if flying.get(i) not in (None, t)]

    @precondition(lambda self: self.stale())
    @rule(data=st.data(), verdict=st.sampled_from(list(Verdict)), at_once=st.booleans())
    def settle_too_late(self, data, verdict, at_once):
        """Settle or extend a claim that was lost to another node: nothing may change."""
        id, token = data.draw(st.sampled_from(self.stale()), label="claim")
        self.begin(None)
        assert [Renewal.LOST] == self.store.claims.extend([(id, token)], 2 * LEASE)
        late = Settlement(id, token, verdict, 0, "why", "corrupt")
        if at_once:
            assert [Outcome.STALE] == self.store.claims.settle([late])
        else:
            self.claim_in_both("deaf", 0, [late], None)

    @precondition(lambda self: self.claims)
    @rule(
        indices=st.lists(st.integers(0, 6), min_size=1, max_size=3, unique=True),
        lease=st.sampled_from([LEASE, LEASE, 2 * LEASE, 1_000]),
        at_least=st.booleans(),
        reply=replies,
    )
    def extend(self, indices, lease, at_least, reply):
        """Extend leases, as a heartbeat or a handler does. Only their holders can."""
        held = [self.pick(index)[:2] for index in indices]
        self.begin(reply)
        # A holder may shorten its lease. No node is woken at the earlier end.
        self.by_poll |= lease < LEASE
        renewed = self.store.claims.extend(held, lease, at_least=at_least)
        # If the reply was lost, the repeated request extends the leases again.
        assert [bool(each) for each in renewed] == [
            self.model.extend(self.now.us, *claim, lease, at_least=at_least) for claim in held
        ]
        for (id, _), each in zip(held, renewed, strict=True):
            if each:
                assert self.model.pending[id].cancelled == (each is Renewal.CANCELLED)

    # ------------------------------------------------------------------------------- schedules

    @rule(
        name=names,
        every=st.sampled_from([1_000, 3_000]),
        start=st.sampled_from([None, None, -5_000, 0, 2_000]),
        count=st.sampled_from([None, None, 3]),
        misfire=st.sampled_from(["coalesce", "skip", "all"]),
        overlap=st.sampled_from(["queue", "allow", "skip"]),
        retries=st.sampled_from([0, 3]),
        grace=st.sampled_from([None, None, 500, 4_000]),
        expires=st.sampled_from([None, None, 500, 4_000]),
        reply=replies,
    )
    def declare(
        self, *, name, every, start, count, misfire, overlap, retries, grace, expires, reply
    ):
        """Declare a schedule: a new one, a changed one, or the same again."""
        now = self.begin(None)
        begins = None if start is None else 1_800_000_000_000 + start
        spec = make_spec(
            name, every=every, start=begins, end=None, count=count, jitter=0, misfire=misfire,
            overlap=overlap, max_retries=retries, payload="{}", grace=grace, expires=expires,
        )  # fmt: skip
        options = (every, begins, count, misfire, overlap, retries, grace, expires)
        new = Schedule(
            options, every * 1000, misfire, overlap, retries, "{}", anchor=0, left=count, next=None,
            grace=grace and grace * 1000, expires=expires and expires * 1000,
        )  # fmt: skip
        start_us = None if begins is None else begins * 1000
        expected = self.model.declare(now, name, new, start_us)
        self.lossy.lost = reply
        assert expected == self.store.schedules.declare(spec)
        if expected != "same":
            # The new schedule may post events with the ids of cancelled ones.
            self.cancelled = {id for id in self.cancelled if id.rpartition("@")[0] != name}

    @rule(
        owner=st.sampled_from(["app", "b/2"]),
        version=st.integers(1, 4),
        block=st.dictionaries(
            names, st.tuples(st.sampled_from([1_000, 3_000]), st.sampled_from([None, 3]))
        ),
        reply=replies,
    )
    def declare_together(self, owner, version, block, reply):
        """Declare the schedules of an owner, with a version that may be lower than before."""
        now = self.begin(None)
        specs, new = [], {}
        for name, (every, count) in block.items():
            spec = make_spec(
                name, every=every, start=None, end=None, count=count, jitter=0,
                misfire="coalesce", overlap="queue", max_retries=3, payload="{}",
            )  # fmt: skip
            specs.append(spec)
            options = (every, None, count, "coalesce", "queue", 3, None, None)
            schedule = Schedule(
                options, every * 1000, "coalesce", "queue", 3, "{}", anchor=0, left=count, next=None
            )
            new[name] = (schedule, None)
        expected = self.model.declare_together(now, owner, version, new)
        self.lossy.lost = reply
        done = self.store.schedules.declare_together(Declaration(tuple(specs), owner, str(version)))
        if expected is None:
            assert str(self.model.owners[owner].version) == done.lower_than
            return
        assert (*expected, None) == (done.outcomes, sorted(done.removed), done.lower_than)
        for name, outcome in zip(block, expected[0], strict=True):
            if outcome != "same":
                self.cancelled = {id for id in self.cancelled if id.rpartition("@")[0] != name}

    @rule(name=names, reply=replies)
    def unschedule(self, name, reply):
        self.begin(reply)
        assert self.model.unschedule(name) == self.store.schedules.remove(name)

    @rule(name=names, on=st.booleans(), reply=replies)
    def pause_schedule(self, name, on, reply):
        """Pause or resume one schedule."""
        self.begin(reply)
        assert self.model.suspend(name, on) == self.store.schedules.pause(name, on=on)

    @rule(name=names, reply=replies)
    def run_now(self, name, reply):
        """Post an extra occurrence. No other event may have its id."""
        now = self.begin(reply)
        id = self.store.schedules.run_now(name)
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
        """Register a node, perhaps for the second time."""
        self.begin(reply)
        self.store.join(name, "{}")
        self.model.join(self.now.us, name)

    @rule(name=nodes, reply=replies)
    def leave(self, name, reply):
        self.begin(reply)
        self.store.leave(name)
        self.model.leave(name)

    @rule(us=ticks)
    def time_passes(self, us):
        """Let time pass: leases end, events fall due, and sessions expire."""
        self.now.us += us

    @rule(us=ticks)
    def time_passes_more(self, us):
        """Let time pass. A second rule makes Hypothesis choose it more often."""
        self.now.us += us

    @precondition(lambda self: not self.stepped_back)
    @rule(us=steps_back)
    def time_steps_back(self, us):
        """Set the server's clock back, at most once, so that most steps run without it."""
        self.now.us -= us
        self.stepped_back = self.by_poll = True

    @rule()
    def scripts_are_forgotten(self):
        """Flush the scripts, as a restart or an operator does."""
        self.client.script_flush()

    @precondition(lambda self: self.lossy.sent)
    @rule(index=st.integers(0, 9))
    def late_duplicate(self, index):
        """
        Send an earlier request again, within the minute for which its session is remembered.

        The server refuses it. If it was the last request of its session, the server repeats
        its reply instead.
        """
        at, script, arguments, reply = self.lossy.sent[-1 - index % len(self.lossy.sent)]
        if self.now.us - at > 60_000_000:
            return
        connection: Any = TappedSource(self.client, lambda _, words, send: send(words)).connection(
            self.store.keys
        )
        try:
            again = connection.run(script, [str(self.now.us), *arguments[1:]], 0, with_source=True)
        except redis.ResponseError as e:
            if "DTSTALE" in str(e):
                return
            raise
        finally:
            connection.close()
        self.lossy.assert_same(script, reply, again)
        if script.name != "claim":
            return
        # The duplicate must not take a lease away from its holder.
        renewed = {claim.token for claim in _claim_reply(again).claims}
        for claim in _claim_reply(reply).claims:
            still = self.model.extend(self.now.us, claim.id, claim.token, LEASE)
            assert still == (claim.token in renewed)

    # ------------------------------------------------------------------------------ invariants

    @invariant()
    def sound(self):
        """Check that no key contradicts another."""
        assert_sound(self.client, self.store.keys)

    @invariant()
    def equals_the_model(self):
        """Check that the server holds what the model holds."""
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
        assert {e.id: e.first for e in model.pending.values() if e.first is not None} == {
            i.decode(): int(found[1]) for i, b in body.items() if (found := _FIRST.match(b))
        }
        assert {e.id: e.snoozed for e in model.pending.values()} == {
            i.decode(): _first_snooze(b) for i, b in body.items()
        }
        held = {e.id: (e.token, e.starts, e.cancelled) for e in model.pending.values() if e.token}
        assert held == {i.decode(): read_lease(text) for i, text in lease.items()}
        waiting = {e.id: e.starts for e in model.pending.values() if not e.token and e.starts}
        assert waiting == {i.decode(): int(n) for i, n in tries.items()}
        assert {i: (e.starts, e.reason) for i, e in model.dead.items()} == {
            i.decode(): _dead_letter(text) for i, text in dead.items()
        }
        assert {
            name: (s.next, s.last, s.running, s.left, s.paused, s.owner)
            for name, s in model.schedules.items()
        } == {name.decode(): _schedule_state(text) for name, text in beats.items()}
        self.fine = True

    @invariant()
    def a_node_comes_in_time(self):
        """
        Check that a node is expected to claim when the next event falls due, or at once.

        This holds if at least one node hears wakes. After the clock was set back, an event may
        have to wait for a poll.
        """
        keys, model = self.store.keys, self.model
        if self.by_poll or model.paused or not model.pending:
            return
        roster = self.client.zrange(keys.roster, 0, -1)
        if roster:
            earliest = min(e.score for e in model.pending.values())
            planned = [at for _, at in self.client.zrange(keys.promise, 0, -1, withscores=True)]
            assert planned, "no node is expected to claim"
            assert min(planned) <= max(earliest, self.now.us), "no node claims in time"

    @invariant()
    def nodes_that_lag_are_behind(self):
        """Check that a node has a place behind those on time if it lagged at its last claim."""
        for name, place in self.client.zrange(self.store.keys.roster, 0, -1, withscores=True):
            assert self.peers[name.decode()].lags == (place >= BEHIND), f"{name!r} has {place}"

    def drain(self) -> None:
        """Deliver all remaining events to a deaf node, each at the poll after its due time."""
        for name in list(self.model.schedules):
            assert self.store.schedules.remove(name)
            self.model.unschedule(name)
        self.store.pause(on=False)
        self.model.paused = False
        name = "deaf"
        self.store.join(name, "{}")
        self.model.join(self.now.us, name)
        settlements: list[Settlement] = []
        while self.model.pending:
            before = len(self.claims)
            wait = self.claim_in_both(name, 100, settlements, None)
            settlements = [
                Settlement(id, token, Verdict.CONFIRM) for id, token, _ in self.claims[before:]
            ]
            left = [e for e in self.model.due(self.now.us) if e.token is None]
            assert not left or wait is not None
            self.now.us += 1_000_000
            soonest = min((e.score for e in self.model.pending.values()), default=0)
            if not settlements and not left:
                self.now.us = max(self.now.us, soonest)
            self.equals_the_model()
        assert_sound(self.client, self.store.keys)


def _settlement(id: str, token: int, verdict: Verdict, wait: int, reason: str) -> Settlement:
    # Only a snooze may have no reason.
    known = reason if verdict is Verdict.SNOOZE else reason or "buried"
    return Settlement(id, token, verdict, wait, "why", known)


def _first_snooze(raw: bytes) -> tuple[int | None, str]:
    body = read_body(raw)
    return (None, "") if body is None else (body.snoozed_us, body.snooze_reason)


def _dead_letter(text: bytes) -> tuple[int, str]:
    starts, reason, _ = text.split(b",", 2)
    return int(starts), reason.decode()


def _number(text: str) -> int | None:
    return int(text) if text else None


def _schedule_state(text: bytes) -> tuple[Any, ...]:
    state = read_schedule_state(text)
    numbers = (_number(state[name]) for name in ("next", "last", "running", "left"))
    return (*numbers, state["paused"] == "1", state["owner"])


@pytest.mark.slow
@pytest.mark.timeout(0 if EXAMPLES else 4 * LIMIT)
def test_the_store_agrees_with_the_model(server):
    """Random operations, lost replies and clock steps never make the store differ."""

    class OnThisServer(Machine):
        pass

    OnThisServer.server = server
    run_state_machine_as_test(OnThisServer, settings=SETTINGS)
