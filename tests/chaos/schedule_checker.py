"""
Check one schedule: each occurrence, and that none was delivered twice or left out.

An occurrence is never claimed after it has expired, and does not expire before. Its grace is not
checked: an occurrence that was claimed in time, and released, may start later.

The chain of occurrences is checked only if it is certain: if all declarations of the schedule were
equal, and it was neither paused nor ended and declared again. With ``misfire="skip"``,
``overlap="skip"`` or a grace, the server drops occurrences without a record. Then the checker tests
only whether each occurrence has a nominal time of the schedule, and is delivered once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from chaos.clock import Clock
from chaos.history import Operation
from chaos.id_checker import claimed_after
from chaos.lease_checker import Generation, LeaseChecker, stale_calls
from chaos.occurrences import OCCURRENCE, Chain
from chaos.verdict import CheckContext
from dtimer.model import schedules


class ScheduleChecker:
    """Checks schedules for I11, and their occurrences for the invariants of any event."""

    def __init__(self, context: CheckContext, clock: Clock) -> None:
        self._context = context
        self._clock = clock
        self._lease_checker = LeaseChecker(context, clock)
        self._latest = context.troubles.latest

    def check(self, name: str, operations: list[Operation]) -> None:
        """Check all operations on one schedule and its occurrences."""
        chain = Chain(name, operations)
        for id in self._context.pending or ():
            if (match := OCCURRENCE.match(id)) and match[1] == name:
                chain.pending.add(int(match[2]))
        for id, letter in self._context.buried.items():
            if (match := OCCURRENCE.match(id)) and match[1] == name:
                chain.occurrence(int(match[2])).letters.append(letter)
        for nominal, gen in chain.occurrences.items():
            self._check_occurrence(chain, nominal, gen)
        if not chain.declarations:
            return
        stable = chain.stable(self._latest)
        if stable is not None and not self._context.forgotten(chain.declarations):
            self._check_chain(chain, stable)

    # ------------------------------------------------------------------- each occurrence by itself

    def _check_occurrence(self, chain: Chain, nominal: int, gen: Generation) -> None:
        context = self._context
        gen.arrange()
        gen.revived = any(op.ph != "no" for op in chain.revivals.get(nominal, ()))
        declared = [d for d in chain.declarations if d.ph != "no"]
        limits = {d.data.get("max_retries") for d in declared}
        gen.origin = declared[0] if declared else None
        gen.max_retries = limits.pop() if len(limits) == 1 else None
        gen.alone = False
        sums = {d.data.get("crc") for d in declared}
        for run in gen.runs:
            if not any(d.t <= run.t for d in declared):
                text = "an occurrence of a schedule that was never declared"
                context.blame("I3", gen.id, text, run)
            elif None not in sums and run.data.get("crc") not in sums:
                text = "another payload than the declared one"
                context.blame("I10", gen.id, text, gen.origin, run)
            # A later attempt may come before the nominal time, if the clock was set back since.
            first = run.data["att"] == 1
            if first and self._clock.shown_us(run) < nominal and not chain.moves.get(nominal):
                context.blame("I1", gen.id, "claimed before its nominal time", run)
        if len({run.data.get("missed") for run in gen.runs}) > 1:
            text = "stands for more or fewer than at its first delivery"
            context.blame("I11", gen.id, text, *gen.runs)
        self._lease_checker.check(gen)
        stale_calls(context, gen.id, [gen])
        self._check_cancels(chain, nominal, gen)
        self._count_end(chain, nominal, gen)

    def _check_cancels(self, chain: Chain, nominal: int, gen: Generation) -> None:
        for cancel in chain.cancels.get(nominal, ()):
            if cancel.ph != "ok" or cancel.end is None or gen.revived:
                continue
            if cancel.data.get("outcome") == "NOT_FOUND":
                # The occurrence may not have existed yet.
                continue
            for run in gen.runs:
                if claimed_after(self._clock, run, cancel):
                    self._context.blame("I6", gen.id, "delivered after its cancel", cancel, run)

    def _count_end(self, chain: Chain, nominal: int, gen: Generation) -> None:
        counts = self._context.verdict.counts
        if not (gen.runs or gen.letters):
            return
        counts["occurrences"] += 1
        if gen.handled:
            counts["of them handled"] += 1
        elif gen.letters:
            counts["dead"] += 1
        elif any(c.data.get("outcome") != "NOT_FOUND" for c in chain.cancels.get(nominal, ())):
            counts["cancelled"] += 1
        elif self._context.pending is None or nominal in chain.pending:
            counts["pending"] += 1
        else:
            counts["lost"] += 1
            self._context.blame("I2", gen.id, "an occurrence was started, but lost", *gen.runs)

    # ----------------------------------------------------------------------------------- the chain

    def _check_chain(self, chain: Chain, stable: Operation) -> None:
        """Check the nominal times of all occurrences against *stable*, the only declaration."""
        context, says = self._context, stable.data
        successor = _successor(chain.name, says)
        met = sorted(chain.met())
        if not met:
            return
        if says.get("every_us") is not None:
            zero = says.get("start_us") or met[0]
            off = [nominal for nominal in met if (nominal - zero) % says["every_us"]]
        else:
            off = [nominal for nominal in met if successor(nominal - 1, 0) != nominal]
        if chain.extras:
            # The nominal time of an additional occurrence is the time at which it was requested.
            met = [nominal for nominal in met if nominal not in off]
            off = [] if chain.extras_unknown else [n for n in off if n not in chain.extras]
        for nominal in off:
            text = "not a nominal time of its schedule"
            runs = chain.occurrence(nominal).runs
            context.blame("I11", chain.id(nominal), text, stable, *runs)
        end = says.get("end_us")
        for nominal in met:
            if end is not None and nominal > end:
                runs = chain.occurrence(nominal).runs
                context.blame("I11", chain.id(nominal), "after the schedule's end", stable, *runs)
        context.verdict.counts["in held chains"] += len(met)
        if says.get("expires") is not None and says.get("jitter_us") is None:
            self._check_expiry(chain, stable, successor)
        started = [n for n in met if n in chain.occurrences and chain.occurrences[n].runs]
        count = says.get("count")
        if count is not None and len(started) - len(chain.extras) > count:
            text = f"{len(started)} occurrences, with count={count}"
            context.blame("I11", chain.name, text, stable)
        policies = says.get("misfire"), says.get("overlap")
        dropping = "skip" in policies or says.get("grace") is not None
        if off or (chain.extras and says.get("every_us") is None):
            return
        if not dropping:
            self._check_links(chain, stable, successor, met)
        if says.get("overlap", "queue") == "queue":
            self._check_overlap(chain, stable, started)
        self._check_end(chain, stable, met, started)

    def _check_expiry(
        self, chain: Chain, stable: Operation, successor: Callable[[int, int], int | None]
    ) -> None:
        """Find occurrences that were claimed after they had expired, or expired too early."""
        expires = round(stable.data["expires"] * 1000)
        for nominal, gen in chain.occurrences.items():
            if gen.revived:
                continue
            for run in gen.runs:
                # It expires with the latest of the missed ones for which it stands.
                missed = run.data.get("missed") or 0
                latest = successor(nominal, missed - 1) if missed else nominal
                claimed = min(run.data["srv"], run.data["tok"])
                if latest is not None and claimed >= latest + expires:
                    text = "delivered after it had expired"
                    self._context.blame("I3", gen.id, text, stable, run)
            for letter in gen.letters:
                expired = letter.op == "expired" or letter.data.get("reason") == "expired"
                if expired and self._clock.latest_ns(letter.t) < (nominal + expires) * 1000:
                    self._context.blame("I1", gen.id, "expired too early", stable, letter)

    def _check_links(
        self,
        chain: Chain,
        stable: Operation,
        successor: Callable[[int, int], int | None],
        met: list[int],
    ) -> None:
        """Find nominal times without an occurrence, or with more than one."""
        start = stable.data.get("start_us")
        expected = start if stable.data.get("every_us") is not None else None
        exact, last = expected is not None, None
        for nominal in met:
            if expected is not None and nominal != expected:
                if chain.doubtful(nominal):
                    continue
                proof = [stable, *chain.occurrence(nominal).runs[:1]]
                if last is not None:
                    proof += chain.occurrence(last).runs[:1]
                if nominal < expected:
                    text = "delivered, although the one before stood for it"
                    self._context.blame("I11", chain.id(nominal), text, *proof)
                elif exact:
                    text = f"left out, like all up to {nominal}"
                    self._context.blame("I11", chain.id(expected), text, *proof)
            gen = chain.occurrences.get(nominal)
            runs = gen.runs if gen else []
            missed = runs[-1].data.get("missed") or 0 if runs else 0
            # Only a run records how many missed times its occurrence replaces.
            exact = bool(runs)
            expected, last = successor(nominal, missed), nominal

    def _check_overlap(self, chain: Chain, stable: Operation, started: list[int]) -> None:
        """Find occurrences that started while the one before was still claimed."""
        for before, nominal in itertools.pairwise(started):
            earlier, later = chain.occurrences[before], chain.occurrences[nominal]
            if len(earlier.runs) != 1 or earlier.letters or chain.cancels.get(before):
                continue
            first, run = earlier.runs[0], later.runs[0]
            if (first.end is not None and first.end <= run.t) or before in chain.extras:
                continue
            settled = [
                w for w in earlier.holder_calls.get(first.data["tok"], ()) if w.op != "extend"
            ]
            if settled or self._context.troubles.anywhere(first.t, run.t):
                continue
            text = "started while the one before was still claimed, with overlap=queue"
            self._context.blame("I11", chain.id(nominal), text, stable, first, run)

    def _check_end(
        self, chain: Chain, stable: Operation, met: list[int], started: list[int]
    ) -> None:
        """Find a chain that ended although its schedule continues."""
        if self._context.pending is None or chain.ends or not started:
            return
        says = stable.data
        if says.get("count") is not None or says.get("end_us") is not None:
            return
        if not any(nominal > started[-1] for nominal in chain.pending):
            text = f"the chain ended: nothing is pending after {met[-1]}"
            runs = chain.occurrences[started[-1]].runs
            self._context.blame("I11", chain.name, text, stable, *runs)


def _successor(name: str, says: dict[str, Any]) -> Callable[[int, int], int | None]:
    """
    Return a function that computes the next nominal time of a schedule.

    Its arguments are a nominal time, and how many of the times after it are missed.
    """
    every = says.get("every_us")
    if every is not None:
        return lambda nominal, missed: nominal + (missed + 1) * every
    definition = schedules.make_spec(
        name,
        cron=says["cron"],
        tz=says.get("tz") or "UTC",
        start=None,
        end=None,
        count=None,
        jitter=0,
        misfire="coalesce",
        overlap="queue",
        max_retries=0,
        payload="{}",
    )

    def following(nominal: int, missed: int) -> int | None:
        return next(itertools.islice(definition.nominals(nominal), missed, None), None)

    return following
