"""The checker accepts simulated correct runs, and rejects each run with one wrong change."""

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
        assert {"failed", "killed", "retried", "paused", "outage F22", "revived"} <= redelivered
        assert {"dead", "expired", "cancelled", "superseded", "recovered", "refused"} <= counts
        assert {"claimed ahead"} <= counts

    def test_only_failures_and_revivals_redeliver_without_faults(self):
        """The checker must not name a fault as an explanation if there was none."""
        verdict = verdict_on(Rehearsal(1, posts=200, trouble=False).play())
        assert {} == verdict.broken
        assert {"failed", "revived"} == set(verdict.redelivered)


class Forger:
    """
    Changes one thing in the records of a correct run, if there is a place for it.

    Args:
        records: The records of each process.
        seed: Decides among several places.
    """

    def __init__(self, records, seed):
        self.records = records
        self.random = random.Random(seed)
        self.all = [r for lines in records.values() for r in lines]
        self.all.sort(key=lambda r: r["t"])
        self.ends = {(r["p"], r["k"]): r for r in self.all if "k" in r and r["ph"] != "inv"}
        self.final = self.all[-1]

    def pick(self, op, fits=lambda inv, end: True):
        """Return the two records of a random call that fits, or None if no call does."""
        calls = [
            (r, self.ends.get((r["p"], r["k"])))
            for r in self.all
            if r["op"] == op and r["ph"] == "inv"
        ]
        calls = [(inv, end) for inv, end in calls if end is not None and fits(inv, end)]
        return self.random.choice(calls) if calls else None

    def of(self, id):
        return [r for r in self.all if r.get("id") == id]

    def drop(self, records):
        gone = {id(r) for r in records}
        for p, lines in self.records.items():
            self.records[p] = [r for r in lines if id(r) not in gone]

    def run_again(self, inv, **changes):
        """Start the event of a run again, long after the end of the history."""
        at = self.final["t"] + 10**9
        us = inv["srv"] + (at - inv["t"]) // 1000
        changed = {"t": at, "k": 10**6, "srv": us, "due": us, "tok": us} | changes
        for extra in ({}, {"t": at + 1, "ph": "ok"}):
            self.records[inv["p"]].append(inv | changed | extra)
        return True


def redelivered_later(forger):
    """Redeliver an event long after its last run, when no fault explains it."""

    def last(inv, end):
        there = forger.of(inv["id"])
        newest = max((r for r in there if r["op"] == "run"), key=lambda r: r["tok"])
        revived = any(r["op"] == "revive" for r in there)
        # A node that leaves releases its events, so a later run would be legal.
        long_ago = forger.final["t"] - end["t"] > 7 * 10**9
        return end["ph"] == "ok" and newest is inv and not revived and long_ago

    found = forger.pick("run", last)
    return found and forger.run_again(found[0], att=found[0]["att"] + 1)


def payload_changed(forger):
    """Change the payload that a run received."""
    found = forger.pick("run")
    return found and found[0].update(crc=1) is None


def claimed_early(forger):
    """Claim an event with a given id before its due time."""
    found = forger.pick("run", lambda inv, end: not minted(inv))
    return found and found[0].update(due=found[0]["srv"] + 1) is None


def minted(inv):
    return inv["id"].startswith("m")


def claimed_too_far_ahead(forger):
    """Claim an event further ahead than the ``look_ahead`` of every node."""
    found = forger.pick("run", lambda inv, end: minted(inv))
    return found and found[0].update(due=found[0]["srv"] + 20_001) is None


def started_before_due(forger):
    """Start the handler of an event claimed ahead at the time of the claim."""
    found = forger.pick("run", lambda inv, end: inv["due"] - inv["srv"] > 5_000)
    if found:
        inv, end = found
        end["t"] -= inv["t"]
        inv["t"] = MONO + (inv["srv"] - SERVER) * 1000 + 500_000
        end["t"] += inv["t"]
    return found


def started_in_the_delay(forger):
    """Start a handler before the delay is over by the clock of the host."""

    def alone(inv, end):
        there = forger.of(inv["id"])
        return end["ph"] == "ok" and not any(
            r["op"] in ("reschedule", "revive") or (r["op"] == "run" and r["att"] > 1)
            for r in there
        )

    found = forger.pick("post", lambda inv, end: inv["delay_us"] > 0 and alone(inv, end))
    runs = [r for r in forger.of(found[0]["id"]) if r.get("n") == found[0]["n"]] if found else []
    runs = [r for r in runs if r["op"] == "run"]
    for run in runs:
        back = run["t"] - found[0]["t"] - 1000
        for record in (run, forger.ends.get((run["p"], run.get("k")), {})):
            if record.get("op") == "run":
                record["t"] -= back
    for run in runs:
        run["srv"] = run["due"] = run["tok"] = 1_800_000_000_000_000 + (run["t"] - MONO) // 1000
    return bool(runs)


def started_twice(forger):
    """Start the event of one claim on two nodes."""
    found = forger.pick("run")
    if found:
        inv, _ = found
        forger.records["other.9"] = [inv | {"p": "other.9", "t": inv["t"] + 5}]
    return found


def never_posted(forger):
    """Run an event with a serial that was not posted."""
    found = forger.pick("run", lambda inv, end: inv["n"] is not None)
    return found and found[0].update(n=99_999) is None


def lost(forger):
    """Remove every run of an acknowledged event."""

    def alone(inv, end):
        there = forger.of(inv["id"])
        others = any(r["op"] in ("cancel", "dead", "expired") for r in there)
        posts = [r for r in there if r["op"] == "post" and r["ph"] == "inv"]
        buried = any(letter["id"] == inv["id"] for letter in forger.final["dead"])
        return end["ph"] == "ok" and len(posts) == 1 and not (others or buried)

    found = forger.pick("post", alone)
    if found:
        ops = ("run", "auto", "confirm", "retry")
        calls = {(r["p"], r.get("k")) for r in forger.of(found[0]["id"]) if r["op"] in ops}
        forger.drop([r for r in forger.all if r["op"] in ops and (r["p"], r.get("k")) in calls])
    return found


def stale_confirm(forger):
    """Accept the confirm of a holder after a newer claim."""

    def older(inv, end):
        return any(
            r["op"] == "run" and r["ph"] == "inv" and r["t"] < end["t"] and r["tok"] > inv["tok"]
            for r in forger.of(inv["id"])
        )

    found = forger.pick("run", older)
    if found:
        inv, end = found
        word = {name: inv[name] for name in ("p", "id", "n", "tok")}
        word |= {"op": "confirm", "k": 10**6, "t": end["t"] + 1, "ph": "inv"}
        forger.records[inv["p"]] += [word, word | {"ph": "ok", "accepted": True}]
    return found


def run_after_cancel(forger):
    """Run an event again after a cancel that returned CANCELLED."""

    def fits(inv, end):
        there = forger.of(inv["id"])
        post = forger.ends[inv_of["p"], inv_of["k"]] if (inv_of := post_of(inv)) else None
        cancels = [r for r in there if r["op"] == "cancel" and r["ph"] == "inv"]
        known = [forger.ends.get((c["p"], c["k"]), {}) for c in cancels]
        revived = any(r["op"] == "revive" for r in there)
        return (
            post is not None
            and post["ph"] == "ok"
            and not revived
            and any(
                c["t"] > post["t"] and e.get("outcome") == "CANCELLED"
                for c, e in zip(cancels, known, strict=True)
            )
        )

    def post_of(run):
        posts = (r for r in forger.of(run["id"]) if r["op"] == "post" and r["ph"] == "inv")
        return next((r for r in posts if r["n"] == run["n"]), None)

    found = forger.pick("run", fits)
    return found and forger.run_again(found[0], att=found[0]["att"] + 1)


def wrong_nominal_time(forger):
    """Run an occurrence at a time that its schedule does not have."""
    found = forger.pick("run", lambda inv, end: "@" in inv["id"])
    if found:
        name, _, nominal = found[0]["id"].partition("@")
        forger.run_again(found[0], id=f"{name}@{int(nominal) + 1}")
    return found


def occurrence_left_out(forger):
    """Remove every record of one occurrence."""
    ids = sorted({r["id"] for r in forger.all if r["op"] == "run" and "@" in r.get("id", "")})
    seen = [
        id
        for id in ids[1:-1]
        if {"run"} == {r["op"] for r in forger.of(id)}
        and not any(letter["id"] == id for letter in forger.final["dead"])
    ]
    if seen:
        left_out = forger.of(forger.random.choice(seen))
        calls = {(r["p"], r["k"]) for r in left_out}
        forger.drop([r for r in forger.all if (r["p"], r.get("k")) in calls])
    return seen


def unsound(forger):
    """Record that the state at the end contradicts itself."""
    return forger.final.update(sound=False) is None


class TestChangedRuns:
    """Each change that a correct library cannot cause breaks the right invariant."""

    @pytest.mark.parametrize(
        ("change", "names"),
        [
            (redelivered_later, {"I4"}),
            (payload_changed, {"I10"}),
            (claimed_early, {"I1"}),
            (claimed_too_far_ahead, {"I1"}),
            (started_before_due, {"I1"}),
            (started_in_the_delay, {"I1"}),
            (started_twice, {"I5"}),
            (never_posted, {"I3"}),
            (lost, {"I2"}),
            (stale_confirm, {"I5"}),
            (run_after_cancel, {"I6"}),
            (wrong_nominal_time, {"I11"}),
            (occurrence_left_out, {"I11"}),
            (unsound, {"I12"}),
        ],
    )
    def test_rejects_each_change_in_every_run(self, change, names):
        """The faults of the run must not hide the violation."""
        caught = 0
        # Some changes fit one run in five.
        for seed in range(40):
            # A fault of the run could explain the redelivery.
            faults = change is not redelivered_later
            forger = Forger(Rehearsal(seed, trouble=faults).play(), seed)
            if change(forger):
                verdict = verdict_on(forger.records)
                assert names & set(verdict.broken), f"seed {seed}, {change.__name__}:\n{verdict}"
                caught += 1
            if caught == 8:
                break
        assert caught >= 3
