"""Histories of correct runs, however odd, are accepted; changed in one place, they are caught."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.checker import check
from chaos.rehearsal import Rehearsal
from chaos.story import MONO, SERVER

seeds = st.integers(0, 2**32)
#: A failing seed says all: there is nothing to make smaller, and nothing to remember.
tried = settings(
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def verdict_on(records, **options):
    """Write a history down and have it checked."""
    with tempfile.TemporaryDirectory() as folder:
        for p, lines in records.items():
            text = "".join(json.dumps(record) + "\n" for record in lines)
            (Path(folder) / f"{p}.jsonl").write_text(text)
        return check(folder, **options)


class TestCorrectRuns:
    """Nothing is found wrong with a correct run."""

    @tried
    @given(seed=seeds, nodes=st.integers(1, 4), pace=st.sampled_from([3, 20, 60]))
    def test_with_all_kinds_of_trouble(self, seed, nodes, pace):
        """Lost replies, calls that act late, kills, pauses and outages: all of it is legal."""
        verdict = verdict_on(Rehearsal(seed, nodes=nodes, pace=pace).play())
        assert {} == verdict.broken, f"\n{verdict}"

    def test_trouble_is_what_they_have(self):
        """The runs are not vacuous: each explanation of a redelivery is met, and every end."""
        redelivered, counts = set(), set()
        for seed in range(40):
            verdict = verdict_on(Rehearsal(seed).play())
            redelivered |= set(+verdict.redelivered)
            counts |= set(+verdict.counts)
        assert {"failed", "killed", "retried", "paused", "outage F22", "revived"} <= redelivered
        assert {"dead", "expired", "cancelled", "superseded", "recovered", "refused"} <= counts
        assert {"claimed ahead"} <= counts

    def test_without_trouble_nothing_is_explained_away(self):
        """In a run in which nothing goes wrong second runs are those of failures."""
        verdict = verdict_on(Rehearsal(1, posts=200, trouble=False).play())
        assert {} == verdict.broken
        assert {"failed", "revived"} == set(verdict.redelivered)


class Doctor:
    """Changes one thing in the records of a correct run, if it finds where."""

    def __init__(self, records, seed):
        self.records = records
        self.random = random.Random(seed)
        self.all = [r for lines in records.values() for r in lines]
        self.all.sort(key=lambda r: r["t"])
        self.ends = {(r["p"], r["k"]): r for r in self.all if "k" in r and r["ph"] != "inv"}
        self.final = self.all[-1]

    def pick(self, op, fits=lambda inv, end: True):
        """Pick a call of some kind that fits; skip the example where there is none."""
        those = [
            (r, self.ends.get((r["p"], r["k"])))
            for r in self.all
            if r["op"] == op and r["ph"] == "inv"
        ]
        those = [(inv, end) for inv, end in those if end is not None and fits(inv, end)]
        return self.random.choice(those) if those else None

    def of(self, id):
        return [r for r in self.all if r.get("id") == id]

    def drop(self, records):
        gone = {id(r) for r in records}
        for p, lines in self.records.items():
            self.records[p] = [r for r in lines if id(r) not in gone]

    def run_again(self, inv, **changes):
        """Have the event of a run started once more, long after all is over."""
        at = self.final["t"] + 10**9
        us = inv["srv"] + (at - inv["t"]) // 1000
        changed = {"t": at, "k": 10**6, "srv": us, "due": us, "tok": us} | changes
        for extra in ({}, {"t": at + 1, "ph": "ok"}):
            self.records[inv["p"]].append(inv | changed | extra)
        return True


def later(doctor):
    """A run that comes when the post's every other run is over, and nothing is wrong any more."""

    def last(inv, end):
        there = doctor.of(inv["id"])
        newest = max((r for r in there if r["op"] == "run"), key=lambda r: r["tok"])
        revived = any(r["op"] == "revive" for r in there)
        # What its node gave up when it left is handed out again.
        long_ago = doctor.final["t"] - end["t"] > 7 * 10**9
        return end["ph"] == "ok" and newest is inv and not revived and long_ago

    found = doctor.pick("run", last)
    return found and doctor.run_again(found[0], att=found[0]["att"] + 1)


def payload(doctor):
    """A payload that changed on its way."""
    found = doctor.pick("run")
    return found and found[0].update(crc=1) is None


def early(doctor):
    """A claim before its due time, of an event that has a name."""
    found = doctor.pick("run", lambda inv, end: not minted(inv))
    return found and found[0].update(due=found[0]["srv"] + 1) is None


def minted(inv):
    return inv["id"].startswith("m")


def too_early(doctor):
    """A claim further ahead than any node was told to look."""
    found = doctor.pick("run", lambda inv, end: minted(inv))
    return found and found[0].update(due=found[0]["srv"] + 20_001) is None


def unkept(doctor):
    """A handler that begins as soon as its event has been claimed, ahead of its time."""
    found = doctor.pick("run", lambda inv, end: inv["due"] - inv["srv"] > 5_000)
    if found:
        inv, end = found
        end["t"] -= inv["t"]
        inv["t"] = MONO + (inv["srv"] - SERVER) * 1000 + 500_000
        end["t"] += inv["t"]
    return found


def sooner(doctor):
    """A handler that began before the delay was over, by the clock of the host."""

    def alone(inv, end):
        there = doctor.of(inv["id"])
        return end["ph"] == "ok" and not any(
            r["op"] in ("reschedule", "revive") or (r["op"] == "run" and r["att"] > 1)
            for r in there
        )

    found = doctor.pick("post", lambda inv, end: inv["delay_us"] > 0 and alone(inv, end))
    runs = [r for r in doctor.of(found[0]["id"]) if r.get("n") == found[0]["n"]] if found else []
    runs = [r for r in runs if r["op"] == "run"]
    for run in runs:
        back = run["t"] - found[0]["t"] - 1000
        for record in (run, doctor.ends.get((run["p"], run.get("k")), {})):
            if record.get("op") == "run":
                record["t"] -= back
    for run in runs:
        run["srv"] = run["due"] = run["tok"] = 1_800_000_000_000_000 + (run["t"] - MONO) // 1000
    return bool(runs)


def twice(doctor):
    """One claim, started twice."""
    found = doctor.pick("run")
    if found:
        inv, _ = found
        doctor.records["other.9"] = [inv | {"p": "other.9", "t": inv["t"] + 5}]
    return found


def unknown(doctor):
    """A serial that nobody posted."""
    found = doctor.pick("run", lambda inv, end: inv["n"] is not None)
    return found and found[0].update(n=99_999) is None


def lost(doctor):
    """An acknowledged event that was never handed out."""

    def alone(inv, end):
        there = doctor.of(inv["id"])
        others = any(r["op"] in ("cancel", "dead", "expired") for r in there)
        posts = [r for r in there if r["op"] == "post" and r["ph"] == "inv"]
        buried = any(letter["id"] == inv["id"] for letter in doctor.final["dead"])
        return end["ph"] == "ok" and len(posts) == 1 and not (others or buried)

    found = doctor.pick("post", alone)
    if found:
        told = ("run", "auto", "confirm", "retry")
        calls = {(r["p"], r.get("k")) for r in doctor.of(found[0]["id"]) if r["op"] in told}
        doctor.drop([r for r in doctor.all if r["op"] in told and (r["p"], r.get("k")) in calls])
    return found


def stale(doctor):
    """A holder whose confirm counts after a newer claim had begun."""

    def older(inv, end):
        return any(
            r["op"] == "run" and r["ph"] == "inv" and r["t"] < end["t"] and r["tok"] > inv["tok"]
            for r in doctor.of(inv["id"])
        )

    found = doctor.pick("run", older)
    if found:
        inv, end = found
        word = {name: inv[name] for name in ("p", "id", "n", "tok")}
        word |= {"op": "confirm", "k": 10**6, "t": end["t"] + 1, "ph": "inv"}
        doctor.records[inv["p"]] += [word, word | {"ph": "ok", "accepted": True}]
    return found


def cancelled(doctor):
    """An event that is handed out though its cancel had answered."""

    def fits(inv, end):
        there = doctor.of(inv["id"])
        post = doctor.ends[inv_of["p"], inv_of["k"]] if (inv_of := post_of(inv)) else None
        cancels = [r for r in there if r["op"] == "cancel" and r["ph"] == "inv"]
        known = [doctor.ends.get((c["p"], c["k"]), {}) for c in cancels]
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
        posts = (r for r in doctor.of(run["id"]) if r["op"] == "post" and r["ph"] == "inv")
        return next((r for r in posts if r["n"] == run["n"]), None)

    found = doctor.pick("run", fits)
    return found and doctor.run_again(found[0], att=found[0]["att"] + 1)


def off_beat(doctor):
    """An occurrence at a time that is none of its schedule's."""
    found = doctor.pick("run", lambda inv, end: "@" in inv["id"])
    if found:
        name, _, nominal = found[0]["id"].partition("@")
        doctor.run_again(found[0], id=f"{name}@{int(nominal) + 1}")
    return found


def gap(doctor):
    """An occurrence that was left out."""
    ids = sorted({r["id"] for r in doctor.all if r["op"] == "run" and "@" in r.get("id", "")})
    seen = [
        id
        for id in ids[1:-1]
        if {"run"} == {r["op"] for r in doctor.of(id)}
        and not any(letter["id"] == id for letter in doctor.final["dead"])
    ]
    if seen:
        left_out = doctor.of(doctor.random.choice(seen))
        calls = {(r["p"], r["k"]) for r in left_out}
        doctor.drop([r for r in doctor.all if (r["p"], r.get("k")) in calls])
    return seen


def unsound(doctor):
    """An end that is not sound."""
    return doctor.final.update(sound=False) is None


class TestChangedRuns:
    """One change that no correct library could have made is caught, by the right invariant."""

    @pytest.mark.parametrize(
        ("change", "names"),
        [
            (later, {"I4"}),
            (payload, {"I10"}),
            (early, {"I1"}),
            (too_early, {"I1"}),
            (unkept, {"I1"}),
            (sooner, {"I1"}),
            (twice, {"I5"}),
            (unknown, {"I3"}),
            (lost, {"I2"}),
            (stale, {"I5"}),
            (cancelled, {"I6"}),
            (off_beat, {"I11"}),
            (gap, {"I11"}),
            (unsound, {"I12"}),
        ],
    )
    def test_each_change_is_caught(self, change, names):
        """Whatever the run was like otherwise."""
        caught = 0
        # Some changes fit one run in five.
        for seed in range(40):
            # Trouble of its time may explain a claim that is made once more.
            doctor = Doctor(Rehearsal(seed, trouble=change is not later).play(), seed)
            if change(doctor):
                verdict = verdict_on(doctor.records)
                assert names & set(verdict.broken), f"seed {seed}, {change.__name__}:\n{verdict}"
                caught += 1
            if caught == 8:
                break
        assert caught >= 3
