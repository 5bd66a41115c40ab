"""
One generation of an event, which is what one post made of it: its claims, and how each ended.

Only what is certain counts. A run is a claim that reached a handler; others died before, and
show as a number missing among the attempts. What a handler that returned had confirmed
is not recorded, since it rides on the node's next turn; so a run that returned may have been
confirmed or not, and one that was handed out again has not.
"""

from __future__ import annotations

import itertools

from chaos.clock import Clock
from chaos.departures import Departures
from chaos.history import Operation
from chaos.troubles import FOREVER, Troubles
from chaos.verdict import Bench

_SETTLES = {"confirm", "retry", "release"}
#: What a lane was answered last is remembered for so long, in ns, at the least.
_MEMO = 60_000_000_000


class Generation:
    """
    What one post, or one nominal time of a schedule, brought about.

    Args:
        id: The event's.
        origin: The post, or the declaration of the schedule; None when there is none.
    """

    __slots__ = (
        "alone",
        "claims",
        "first",
        "id",
        "letters",
        "max_retries",
        "origin",
        "revived",
        "runs",
        "words",
    )

    def __init__(self, id: str, origin: Operation | None) -> None:
        self.id = id
        self.origin = origin
        self.max_retries: int | None = origin.data.get("max_retries") if origin else None
        #: In the order of their tokens, once `arrange` was called.
        self.runs: list[Operation] = []
        #: What nodes that record their claims have claimed, started or not.
        self.claims: list[Operation] = []
        self.words: dict[int, list[Operation]] = {}
        self.letters: list[Operation] = []
        self.revived = False
        #: No other post of the id can have come after it; or before it.
        self.alone = True
        self.first = True

    def arrange(self) -> None:
        """Put the runs in the order in which they were claimed."""
        if len(self.runs) > 1:
            self.runs.sort(key=token)

    def said(self, run: Operation, *ops: str) -> list[Operation]:
        """Return what the holder of a run said of it, of certain kinds."""
        words = self.words.get(run.data["tok"])
        return [word for word in words if word.op in ops] if words else []

    def confirmed(self) -> Operation | None:
        """Return a confirm that was accepted, the handler's own or the hand's."""
        for words in self.words.values():
            for word in words:
                if word.op == "confirm" and accepted(word):
                    return word
                if word.op == "auto" and word.data.get("result") == "DONE" and accepted(word):
                    return word
        return None

    @property
    def handled(self) -> bool:
        """True when it was done, as far as can be seen, and nothing need follow."""
        if self.confirmed() or any(
            word.op == "confirm" and word.unknown for words in self.words.values() for word in words
        ):
            return True
        if not self.runs:
            return False
        # Of those that returned, the last: whatever came before was taken from its holder.
        last = self.runs[-1]
        if last.ph != "ok" or last.end is None:
            return False
        given_back = any(word.ph == "ok" for word in self.said(last, "retry", "release"))
        refused = any(
            # What was confirmed long before is not remembered when it is asked again.
            word.t - last.end < _MEMO and not accepted(word)
            for word in self.said(last, "auto")
        )
        return not (given_back or refused)


def token(run: Operation) -> int:
    """Return the token of a run."""
    tok: int = run.data["tok"]
    return tok


def accepted(word: Operation) -> bool:
    """Tell whether the server took a holder's word, for certain."""
    return word.ph == "ok" and bool(word.data.get("accepted"))


class Leases:
    """Checks generations: I4, I5, I7, I8, I9, I13, I17, and that no claim was before its time."""

    def __init__(self, bench: Bench, clock: Clock) -> None:
        self._bench = bench
        self._clock = clock
        self._troubles: Troubles = bench.troubles
        self._departures = Departures(bench, clock)

    def check(self, gen: Generation) -> None:
        """Check one generation, all of whose operations are there."""
        runs = gen.runs
        for run in runs:
            if (ahead := run.data["due"] - self._clock.shown_us(run)) > 0:
                self._ahead(gen, run, ahead)
            self._bench.late(run)
        if len(runs) > 1:
            for earlier, run in itertools.pairwise(runs):
                self._again(gen, earlier, run)
        if runs and (runs[0].data["att"] > 1 and not gen.revived):
            self._unseen(gen, None, runs[0])
        if runs:
            self._numbers(gen)
        if gen.words:
            self._words(gen)
        if gen.letters:
            self._deaths(gen)
        if gen.claims:
            self._departures.check(gen)

    def _ahead(self, gen: Generation, run: Operation, ahead: int) -> None:
        """Check a claim that was made so many µs before the event was due."""
        bench, due = self._bench, run.data["due"]
        bench.verdict.counts["claimed ahead"] += 1
        if gen.origin is None or not gen.origin.data.get("minted"):
            # It may be replaced until then.
            bench.blame("I1", gen.id, "claimed before it was due", gen.origin, run)
        elif ahead > run.data.get("ahead_us", 0):
            text = f"claimed {ahead / 1000:.1f} ms before it was due, which is too far ahead"
            bench.blame("I1", gen.id, text, gen.origin, run)
        left = due * 1000 - self._clock.latest_ns(run.t)
        if left > 0 and self._clock.kept_pace(self._clock.claimed(run)[0], run.t):
            text = f"its handler began {left / 1e6:.1f} ms before it was due by the server's clock"
            bench.blame("I1", gen.id, text, gen.origin, run)

    # ------------------------------------------------------------------------- claim after claim

    def _again(self, gen: Generation, earlier: Operation, run: Operation) -> None:
        bench = self._bench
        if token(earlier) == token(run):
            bench.verdict.redelivered["unexplained"] += 1
            bench.blame("I5", gen.id, "one claim was started twice", earlier, run)
            return
        if gen.revived:
            bench.verdict.redelivered["revived"] += 1
            return
        skipped = run.data["att"] - earlier.data["att"] > 1
        reason = self._given_back(gen, earlier, run)
        if reason is None:
            # Then its lease ran out.
            reason = self._ran_out(gen, earlier, run)
            if not skipped and self._clock.shown_us(run) < run.data["due"]:
                text = "claimed ahead of the end of the lease before it"
                bench.blame("I4", gen.id, text, earlier, run)
        elif skipped:
            self._unseen(gen, earlier, run)
        bench.verdict.redelivered[reason or "unexplained"] += 1
        if reason is None:
            words = gen.words.get(token(earlier), ())
            if earlier.end is None or run.t < earlier.end:
                text = "handed out while its handler ran, and nothing kept that from its lease"
                bench.blame("I13", gen.id, text, gen.origin, earlier, run, *words)
            else:
                text = "handed out again, and nothing explains why"
                bench.blame("I4", gen.id, text, gen.origin, earlier, run, *words)

    @staticmethod
    def _given_back(gen: Generation, earlier: Operation, run: Operation) -> str | None:
        words = [word for word in gen.said(earlier, "retry", "release") if word.t <= run.t]
        if any(word.op == "release" and word.ph != "no" for word in words):
            return "released"
        failed = earlier.ph == "no" and earlier.end is not None and earlier.end <= run.t
        if any(word.unknown or accepted(word) for word in words):
            return "failed" if failed else "retried"
        # Where it is told, nothing else can be: or else the failure itself tells.
        return "failed" if failed and not words else None

    def _ran_out(self, gen: Generation, earlier: Operation, run: Operation) -> str | None:
        over = FOREVER if earlier.end is None else earlier.end
        # While its handler runs an extension shortens nothing.
        lease = min(
            [earlier.data["lease_us"]]
            + [
                word.data["ms"] * 1000
                for word in gen.said(earlier, "extend")
                if "ms" in word.data and word.t >= over
            ]
        )
        since, _ = self._clock.claimed(earlier)
        ends = earlier.data["srv"] + lease
        # Where its clock was put back, the server counted the rest of the lease anew.
        if run.data["srv"] < ends and not self._troubles.stepped_in(since, run.t):
            short = (ends - run.data["srv"]) / 1000
            text = f"claimed {short:.1f} ms before the lease before it could have run out"
            self._bench.blame("I4", gen.id, text, earlier, run)
        until = run.t
        if earlier.end is not None:
            # What it came to was told the server at once, and heard before the lease was over.
            until = min(until, earlier.end + earlier.data["lease_us"] * 1000)
        met = self._troubles.met(earlier.p, since, until)
        limit = self._troubles.lives[earlier.p].max_run
        if limit is None or run.t - earlier.t < limit or met in ("killed", "left"):
            return met
        if earlier.end is None or earlier.end - earlier.t >= limit:
            return "overran"
        return met or "overran"

    def _unseen(self, gen: Generation, earlier: Operation | None, run: Operation) -> None:
        since = earlier.t if earlier else gen.origin.t if gen.origin else 0
        if self._troubles.anywhere(since, run.t) is None:
            text = "an attempt was counted that reached no handler, and nothing explains why"
            self._bench.blame("I4", gen.id, text, gen.origin, earlier, run)

    # -------------------------------------------------------------------------------- how often

    def _numbers(self, gen: Generation) -> None:
        runs, most = gen.runs, gen.max_retries
        if gen.revived:
            return
        for earlier, run in itertools.pairwise(runs):
            free = int(bool(gen.said(earlier, "release")))
            if run.data["att"] < earlier.data["att"] + 1 - free and token(earlier) != token(run):
                self._bench.blame("I8", gen.id, "attempts do not grow", earlier, run)
        if most is None:
            return
        charged = [run for run in runs if not gen.said(run, "release")]
        highest = max(runs, key=lambda run: run.data["att"])
        if len(charged) > most + 1 or highest.data["att"] > most + 1:
            text = f"started {len(runs)} times, with max_retries={most}"
            self._bench.blame("I8" if most else "I9", gen.id, text, gen.origin, *runs[:10])

    def _deaths(self, gen: Generation) -> None:
        bench = self._bench
        confirm = gen.confirmed()
        for letter in gen.letters:
            reason = letter.data.get("reason")
            attempt = letter.data.get("attempt", letter.data.get("att"))
            if gen.revived:
                continue
            if (
                reason in ("failed", "lease_lost")
                and attempt is not None
                and gen.max_retries is not None
                and attempt != gen.max_retries + 1
            ):
                text = f"dead after attempt {attempt}, with max_retries={gen.max_retries}"
                bench.blame("I8", gen.id, text, gen.origin, *gen.runs, letter)
            for run in gen.runs:
                if letter.op in ("dead", "expired") and self._clock.claimed(run)[0] > letter.t:
                    bench.blame("I8", gen.id, "handed out after its death", letter, run)
        if confirm is not None and gen.letters and not gen.revived:
            bench.blame("I7", gen.id, "confirmed, and a dead letter too", confirm, *gen.letters)

    # --------------------------------------------------------------------- what the holders said

    def _words(self, gen: Generation) -> None:
        bench = self._bench
        confirm = gen.confirmed()
        if confirm is not None:
            later = [run for run in gen.runs if token(run) > confirm.data["tok"]]
            if later:
                bench.blame("I7", gen.id, "confirmed, and claimed once more", confirm, *later)
        for words in gen.words.values():
            for word in words:
                over = word.data.get("result") in ("DEAD", "CANCELLED") and accepted(word)
                later = [r for r in gen.runs if over and token(r) > word.data["tok"]]
                if later and not gen.revived:
                    text = f"{word.op} came to {word.data['result']}, and it was claimed once more"
                    bench.blame("I8", gen.id, text, word, *later)
        counted: set[int] = set()
        for tok, words in gen.words.items():
            settled = {word.op for word in words if word.op in _SETTLES and accepted(word)}
            if "confirm" in settled:
                counted.add(tok)
            if len(settled) > 1:
                text = "one claim was settled in two ways"
                bench.blame("I7", gen.id, text, *words)
            run = next((run for run in gen.runs if token(run) == tok), None)
            if run is None:
                bench.blame("I5", gen.id, "a word about a claim that nobody had", *words)
                continue
            for word in words:
                if word.ph == "ok" and not accepted(word):
                    self._refusal(gen, run, word)
        if len(counted) > 1:
            words = [w for tok in counted for w in gen.words[tok] if accepted(w)]
            bench.blame("I7", gen.id, "confirmed by two holders", *words)

    def _refusal(self, gen: Generation, run: Operation, word: Operation) -> None:
        """Find a holder refused who was, for certain, the newest."""
        until = word.end if word.end is not None else word.t
        late = run.end is not None and run.end <= until
        if word.op == "retry" or (late and word.op != "auto") or not gen.alone:
            # It may have been its last attempt; or the library had settled it by then.
            return
        others = [w for w in gen.words[token(run)] if w is not word and w.op in _SETTLES]
        if any(w.t <= until for w in others) or any(r.t > run.t for r in gen.runs):
            return
        since, _ = self._clock.claimed(run)
        life = self._troubles.lives[run.p]
        if life.max_run is not None and until - run.t >= life.max_run:
            return
        if self._troubles.met(run.p, since, until) or self._troubles.anywhere(since, until):
            return
        if gen.letters or gen.revived:
            return
        text = f"{word.op} was refused to the only holder, for no reason"
        self._bench.blame("I5", gen.id, text, gen.origin, run, word)


def stale_words(bench: Bench, id: str, gens: list[Generation]) -> None:
    """Find holders whose word counted after a newer claim of the id had begun: I5."""
    if not any(gen.words for gen in gens):
        return
    runs = sorted((run for gen in gens for run in gen.runs), key=token)
    soonest = FOREVER
    first: Operation | None = None
    newer: dict[int, Operation] = {}
    for run in reversed(runs):
        if first is not None:
            newer[token(run)] = first
        if run.t < soonest:
            soonest, first = run.t, run
    for gen in gens:
        for tok, words in gen.words.items():
            for word in words:
                by, since = newer.get(tok), word.t
                if word.op == "auto":
                    # It is noted when the answer has come. It was asked when the run was over.
                    since = next((r.end or r.t for r in gen.runs if token(r) == tok), 0)
                if accepted(word) and by is not None and by.t < since:
                    text = f"{word.op} counted after a newer claim"
                    bench.blame("I5", id, text, word, by)
