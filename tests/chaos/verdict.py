"""What became of a history: the violations, each with its proof, and the figures for the table."""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from chaos.history import Operation
from chaos.troubles import Troubles

#: What each invariant says, in the words of the promises.
INVARIANTS = {
    "I1": "never early",
    "I2": "nothing lost",
    "I3": "nothing unexpected",
    "I4": "leases of an event do not overlap, and end for a reason",
    "I5": "tokens grow, and only the newest holder's word counts",
    "I6": "cancelled is cancelled",
    "I7": "confirmed once, and never handed out after",
    "I8": "no more starts than allowed, and dead only when they are spent",
    "I9": "at most once where that is asked for",
    "I10": "the last post wins, and its payload is what is delivered",
    "I11": "recurring: no occurrence doubled, none left out",
    "I12": "the end is sound",
    "I13": "no handler runs beside another that still has its lease",
    "I16": "each call ends within its deadline",
    "I17": "a node that leaves releases what it has not started",
}

#: Of each invariant so many violations are kept with their proof; all are counted.
_KEPT = 25


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, and the operations that prove it."""

    invariant: str
    id: str
    text: str
    proof: tuple[Operation, ...]

    def __str__(self) -> str:
        head = f"{self.invariant} ({INVARIANTS[self.invariant]}): {self.id!r}: {self.text}"
        return "\n    ".join([head, *map(str, self.proof)])


@dataclass(frozen=True, slots=True)
class Spread:
    """Figures at a glance, in ms."""

    n: int
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: array[float]) -> Spread:
        """Return the spread of some values."""
        ranked = sorted(values)
        if not ranked:
            return cls(0, 0.0, 0.0, 0.0)
        at = [ranked[math.ceil(len(ranked) * share) - 1] for share in (0.5, 0.99, 1)]
        return cls(len(ranked), *at)


@dataclass
class Verdict:
    """
    What the checker found.

    Attributes:
        violations: The first of each invariant, with their proof.
        broken: How many violations of each invariant there were.
        excused: How many were put down to a rollback.
        counts: The figures of the table.
        redelivered: Runs beyond the first of an event, by what explains them.
        lateness: From due to a hand, by the phase of the run.
        recovery: From the end of a fault to service, by fault.
        fired: How often each fault was injected.
        notes: What a reader should know besides.
    """

    violations: list[Violation] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    redelivered: Counter[str] = field(default_factory=Counter)
    lateness: dict[str, Spread] = field(default_factory=dict)
    recovery: dict[str, Spread] = field(default_factory=dict)
    fired: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when no promise was broken."""
        return not self.broken

    def __str__(self) -> str:
        """Return all violations, readably; nothing when there are none."""
        more = [
            f"{name}: {n} violations in all"
            for name, n in self.broken.items()
            if n > sum(v.invariant == name for v in self.violations)
        ]
        return "\n".join([*map(str, self.violations), *more])


class Bench:
    """
    Where the parts of the checker look things up, and bring what they find.

    Args:
        troubles: What was done to the run.
        rollback: Put down to lost writes what they can explain.
    """

    def __init__(self, troubles: Troubles, *, rollback: bool) -> None:
        self.verdict = Verdict()
        self.troubles = troubles
        self._rollback = rollback
        self._late: dict[str, array[float]] = defaultdict(lambda: array("d"))
        self._recovered: dict[str, array[float]] = defaultdict(lambda: array("d"))
        #: The end: ids that are pending, None when the history has no end; dead letters by id.
        self.pending: set[str] | None = None
        self.buried: dict[str, Operation] = {}
        #: Posts whose id nobody knows, by their serial.
        self.nameless: dict[int, Operation] = {}

    def blame(self, invariant: str, id: str | None, text: str, *proof: Operation | None) -> None:
        """Bring a violation."""
        operations = tuple(op for op in proof if op is not None)
        if self._rollback and any(
            self.troubles.in_rollback(op.t, op.t if op.end is None else op.end) for op in operations
        ):
            self.verdict.excused[invariant] += 1
            return
        self.verdict.broken[invariant] += 1
        if self.verdict.broken[invariant] <= _KEPT:
            ranked = tuple(sorted(operations, key=lambda op: op.t))
            self.verdict.violations.append(Violation(invariant, id or "", text, ranked))

    def forgotten(self, operations: list[Operation]) -> bool:
        """Tell whether a rollback may have undone any of these, whenever they were."""
        return self._rollback and any(
            self.troubles.in_rollback(op.t, self.troubles.latest(op)) for op in operations
        )

    def late(self, run: Operation) -> None:
        """Count how late an event was; where the node does not tell, how late it was claimed."""
        us = run.data.get("late_us", run.data["srv"] - run.data["due"])
        self._late[self.troubles.phase(run.t)].append(us / 1000)

    def recovered(self, note: Operation) -> None:
        """Count how long it took from the end of a fault to service."""
        self._recovered[note.data["fault"]].append(float(note.data["ms"]))

    def ended(self, note: Operation) -> None:
        """Take the state at the end of the run from a ``final`` note."""
        self.pending = set(note.data.get("pending", ()))
        for letter in note.data.get("dead", ()):
            data: dict[str, Any] = dict(letter)
            id = data.pop("id")
            self.buried[id] = Operation("buried", note.p, note.t, note.t, "ok", id, data)
        if not note.data.get("sound", True):
            self.blame("I12", "", "the keys of the namespace contradict each other", note)

    def close(self) -> Verdict:
        """Return the verdict."""
        self.verdict.lateness = {phase: Spread.of(ms) for phase, ms in self._late.items()}
        self.verdict.recovery = {name: Spread.of(ms) for name, ms in self._recovered.items()}
        self.verdict.fired = self.troubles.fired
        return self.verdict
