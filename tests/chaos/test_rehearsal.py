"""
The checker accepts simulated correct runs, and rejects each run with one wrong change.

`chaos.history` explains the fields of the records, `chaos.verdict.INVARIANTS` the codes I1 to I18,
and `chaos.catalogue` the codes of the faults.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.cases import MONO, SERVER
from chaos.checker import check
from chaos.rehearsal import Rehearsal

seeds = st.integers(0, 2**32)
#: The seed reproduces a failure, so hypothesis need not shrink or store it.
tried = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def verdict_on(records, **options):
    """Write a history to files, and return the checker's verdict."""
    with tempfile.TemporaryDirectory() as folder:
        for p, lines in records.items():
            text = "".join(json.dumps(record) + "\n" for record in lines)
            (Path(folder) / f"{p}.jsonl").write_text(text)
        return check(folder, **options)


class TestCorrectRuns:
    """The checker finds no violation in a correct run."""

    @tried
    @given(seed=seeds, nodes=st.integers(1, 4), pace=st.sampled_from([3, 20, 60]))
    def test_accepts_runs_with_every_kind_of_fault(self, seed, nodes, pace):
        """Lost replies, late effects, kills, pauses and outages break no invariant."""
        verdict = verdict_on(Rehearsal(seed, nodes=nodes, pace=pace).play())
        assert {} == verdict.broken, f"\n{verdict}"

    def test_the_runs_contain_each_explanation_and_each_end(self):
        """Without redeliveries in them the runs would test little of the checker."""
        redelivered, counts = set(), set()
        for seed in range(60):
            verdict = verdict_on(Rehearsal(seed).play())
            redelivered |= set(+verdict.redelivered)
            counts |= set(+verdict.counts)
        # F22: the server freezes.
        assert {"failed", "killed", "retried", "paused", "outage F22", "revived"} <= redelivered
        assert {"dead", "expired", "cancelled", "superseded", "recovered", "refused"} <= counts
        assert {"claimed ahead", "debounced", "dropped"} <= counts

    def test_only_failures_and_revivals_redeliver_without_faults(self):
        """The checker must not name a fault as an explanation if there was none."""
        verdict = verdict_on(Rehearsal(1, posts=200, trouble=False).play())
        assert {} == verdict.broken
        assert {"failed", "revived"} == set(verdict.redelivered)


class Forger:
    """
    Changes one thing in the *records* of a correct run. The *seed* chooses the place.

    Attributes:
        all: All records, in the order of time.
        ends: The second record of each call, by its process and its ``k``.
        final: The record of the state at the end.
    """

    def __init__(self, records, seed):
        self.records = records
        self.random = random.Random(seed)
        self.all = sorted((r for lines in records.values() for r in lines), key=lambda r: r["t"])
        self.ends = {(r["p"], r["k"]): r for r in self.all if "k" in r and r["ph"] != "inv"}
        self.final = self.all[-1]

    def pick(self, op, fits):
        """Return the two records of a random call that fits, or None if no call does."""
        begins = [r for r in self.all if r["op"] == op and r["ph"] == "inv"]
        calls = [(begin, self.ends.get((begin["p"], begin["k"]))) for begin in begins]
        calls = [(begin, end) for begin, end in calls if end and fits(self, begin, end)]
        return self.random.choice(calls) if calls else None

    def of(self, id, *ops):
        """Return the records about an id, or only those of some kinds."""
        return [r for r in self.all if r.get("id") == id and (not ops or r["op"] in ops)]

    def drop(self, records):
        """Remove the records of all calls that these records belong to."""
        calls = {(r["p"], r.get("k")) for r in records}
        for p, lines in self.records.items():
            self.records[p] = [r for r in lines if "k" not in r or (p, r["k"]) not in calls]

    def run_again(self, begin, **changes):
        """Start the event of a run again, long after the end of the history."""
        at = self.final["t"] + 10**9
        us = begin["srv"] + (at - begin["t"]) // 1000
        changed = {"t": at, "k": 10**6, "srv": us, "due": us, "tok": us} | changes
        for extra in ({}, {"t": at + 1, "ph": "ok"}):
            self.records[begin["p"]].append(begin | changed | extra)


def any_call(forger, begin, end):
    return True


#: For each change: the kind of call that it changes, a function that tells which calls it fits, the
#: function that makes it, and the invariant that it breaks.
CHANGES = []


def change(invariant, op, fits=any_call):
    """Register a function that changes a call of a kind and so breaks this invariant."""

    def register(f):
        CHANGES.append(pytest.param(op, fits, f, invariant, id=f.__name__))
        return f

    return register


def generated(begin):
    """Return True if the library generated the id of a run."""
    return begin["id"].startswith("generated-")


def last_and_long_ago(forger, begin, end):
    newest = max(forger.of(begin["id"], "run"), key=lambda r: r["tok"])
    # Nodes leave at the end of the run, and a node that leaves releases its events. This must not
    # explain the redelivery, so the event was last run at least 7 s before.
    long_ago = forger.final["t"] - end["t"] > 7 * 10**9
    return (
        end["ph"] == "ok" and newest is begin and long_ago and not forger.of(begin["id"], "revive")
    )


@change("I4", "run", last_and_long_ago)
def redelivered_later(forger, begin, end):
    """Redeliver an event long after its last run, when no fault explains it."""
    forger.run_again(begin, att=begin["att"] + 1)


@change("I10", "run")
def payload_changed(forger, begin, end):
    begin["crc"] = 1


def updated_once(forger, begin, end):
    updates = [r for r in forger.of(begin["id"], "update") if r["ph"] == "inv"]
    return end.get("updated") and len(updates) == 1 and forger.of(begin["id"], "run")


@change("I10", "update", updated_once)
def update_lost(forger, begin, end):
    """Deliver the posted payload after an update."""
    (posted,) = (r for r in forger.of(begin["id"], "post") if r["ph"] == "inv")
    for run in forger.of(begin["id"], "run"):
        if run["ph"] == "inv" and run["t"] > end["t"]:
            run["crc"] = posted["crc"]


def first_run_of_a_debounce(forger, begin, end):
    posts = [r for r in forger.of(begin["id"], "post") if r["ph"] == "inv"]
    is_first = begin["id"].startswith("debounced-") and begin["n"] == posts[0]["n"]
    # An earlier start is that of a retry.
    return is_first and "max_wait_us" in posts[0] and begin["att"] == 1


@change("I18", "run", first_run_of_a_debounce)
def debounce_too_long(forger, begin, end):
    """Let a debounce end long after its limit."""
    for name in ("due", "srv", "tok"):
        begin[name] += 60_000_000
    for record in (begin, end):
        record["t"] += 60 * 10**9


@change("I1", "run", lambda forger, begin, end: not generated(begin))
def claimed_early(forger, begin, end):
    """Claim an event with a given id before its due time."""
    begin["due"] = begin["srv"] + 1


@change("I1", "run", lambda forger, begin, end: generated(begin))
def claimed_too_far_ahead(forger, begin, end):
    """Claim an event further ahead than the ``look_ahead`` of every node."""
    begin["due"] = begin["srv"] + 20_001


@change("I1", "run", lambda forger, begin, end: begin["due"] - begin["srv"] > 5_000)
def started_before_due(forger, begin, end):
    """Start a handler at the time of the claim, though the claim was ahead of the due time."""
    took = end["t"] - begin["t"]
    # MONO is in ns and SERVER in µs. The handler starts 500 µs after the claim.
    begin["t"] = MONO + (begin["srv"] - SERVER) * 1000 + 500_000
    end["t"] = begin["t"] + took


def delayed_and_run_once(forger, begin, end):
    moved = forger.of(begin["id"], "reschedule", "revive")
    retried = any(r["att"] > 1 for r in forger.of(begin["id"], "run") if "att" in r)
    ran = any(r["n"] == begin["n"] for r in forger.of(begin["id"], "run"))
    # The limit of a debounce may end the delay.
    moved = moved or "max_wait_us" in begin
    return begin["delay_us"] > 0 and end["ph"] == "ok" and ran and not (moved or retried)


@change("I1", "post", delayed_and_run_once)
def started_in_the_delay(forger, begin, end):
    """Start a handler before the delay is over by the clock of the host."""
    for run in [r for r in forger.of(begin["id"], "run") if r["n"] == begin["n"]]:
        ended = forger.ends.get((run["p"], run.get("k")), {})
        back = run["t"] - begin["t"] - 1000
        for record in (run, ended):
            if record.get("op") == "run":
                record["t"] -= back
        run["srv"] = run["due"] = run["tok"] = SERVER + (run["t"] - MONO) // 1000


@change("I5", "run")
def started_twice(forger, begin, end):
    """Start the event of one claim on two nodes."""
    forger.records["other.9"] = [begin | {"p": "other.9", "t": begin["t"] + 5}]


@change("I3", "run", lambda forger, begin, end: begin["n"] is not None)
def never_posted(forger, begin, end):
    begin["n"] = 99_999


def posted_once(forger, begin, end):
    posts = [r for r in forger.of(begin["id"], "post") if r["ph"] == "inv"]
    buried = any(letter["id"] == begin["id"] for letter in forger.final["dead"])
    others = forger.of(begin["id"], "cancel", "dead", "drop", "expired")
    return end["ph"] == "ok" and len(posts) == 1 and not (others or buried)


@change("I2", "post", posted_once)
def lost(forger, begin, end):
    """Remove every run of an acknowledged event."""
    forger.drop(forger.of(begin["id"], "run", "confirm", "retry"))
    # An `auto` note has no `k`, so `drop` does not remove it. It says how the node settled the run.
    noted = {id(r) for r in forger.of(begin["id"], "auto")}
    for p, lines in forger.records.items():
        forger.records[p] = [r for r in lines if id(r) not in noted]


def claimed_again_before_its_end(forger, begin, end):
    runs = [r for r in forger.of(begin["id"], "run") if r["ph"] == "inv"]
    return any(r["t"] < end["t"] and r["tok"] > begin["tok"] for r in runs)


@change("I5", "run", claimed_again_before_its_end)
def stale_confirm(forger, begin, end):
    """Accept the confirm of a holder after a newer claim."""
    confirm = {name: begin[name] for name in ("p", "id", "n", "tok")}
    confirm |= {"op": "confirm", "k": 10**6, "t": end["t"] + 1, "ph": "inv"}
    forger.records[begin["p"]] += [confirm, confirm | {"ph": "ok", "accepted": True}]


def cancelled_after_its_post(forger, begin, end):
    calls = forger.of(begin["id"])
    posts = [r for r in calls if (r["op"], r["ph"]) == ("post", "inv") and r["n"] == begin["n"]]
    post = posts and forger.ends.get((posts[0]["p"], posts[0]["k"]))
    cancels = [r for r in calls if (r["op"], r["ph"]) == ("cancel", "inv")]
    return (
        post
        and post["ph"] == "ok"
        and not forger.of(begin["id"], "revive")
        and any(
            cancel["t"] > post["t"]
            and forger.ends.get((cancel["p"], cancel["k"]), {}).get("outcome") == "CANCELLED"
            for cancel in cancels
        )
    )


@change("I6", "run", cancelled_after_its_post)
def run_after_cancel(forger, begin, end):
    """Run an event again after a cancel that returned CANCELLED."""
    forger.run_again(begin, att=begin["att"] + 1)


@change("I11", "run", lambda forger, begin, end: "@" in begin["id"])
def wrong_nominal_time(forger, begin, end):
    """Run an occurrence at a time that its schedule does not have."""
    name, _, nominal = begin["id"].partition("@")
    forger.run_again(begin, id=f"{name}@{int(nominal) + 1}")


def between_two_occurrences(forger, begin, end):
    ids = sorted({r["id"] for r in forger.all if r["op"] == "run" and "@" in r.get("id", "")})
    buried = any(letter["id"] == begin["id"] for letter in forger.final["dead"])
    only_runs = {"run"} == {r["op"] for r in forger.of(begin["id"])}
    return begin["id"] in ids[1:-1] and only_runs and not buried


@change("I11", "run", between_two_occurrences)
def occurrence_left_out(forger, begin, end):
    forger.drop(forger.of(begin["id"]))


# Each run has a `clock` call, so this change fits each run. It concerns the final record.
@change("I12", "clock")
def unsound(forger, begin, end):
    """Record that the state at the end contradicts itself."""
    forger.final["sound"] = False


@pytest.mark.parametrize(("op", "fits", "make", "invariant"), CHANGES)
def test_rejects_each_change_that_a_correct_library_cannot_cause(op, fits, make, invariant):
    """The faults of the run must not hide the violation."""
    rejected = 0
    # Some changes fit one run in five.
    for seed in range(40):
        # A fault of the run could explain the redelivery, or begin a new wait.
        faults = make not in {redelivered_later, debounce_too_long}
        forger = Forger(Rehearsal(seed, trouble=faults).play(), seed)
        if call := forger.pick(op, fits):
            make(forger, *call)
            verdict = verdict_on(forger.records)
            assert invariant in verdict.broken, f"seed {seed}:\n{verdict}"
            rejected += 1
        if rejected == 8:
            break
    assert rejected >= 3
