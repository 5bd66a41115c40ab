"""The checker's verdict: the violations, each with its proof, and the figures of the table."""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from chaos.history import Operation
from chaos.troubles import Troubles

#: Each invariant, in the words of the promises.
INVARIANTS = {
    "I1": "never early",
    "I2": "nothing lost",
    "I3": "nothing unexpected",
    "I4": "leases of an event do not overlap, and end for a reason",
    "I5": "tokens increase, and only the newest holder can settle or extend",
    "I6": "cancelled means cancelled",
    "I7": "confirmed once, and never delivered again",
    "I8": "no more starts than allowed, and dead only after the last attempt",
    "I9": "at most once if max_retries is 0",
    "I10": "the last post wins, and its payload is delivered",
    "I11": "recurring: no occurrence is delivered twice or left out",
    "I12": "the keys are sound at the end",
    "I13": "no handler runs while another still holds the lease",
    "I16": "each call ends within its deadline",
    "I17": "a node that leaves releases what it has not started",
    "I18": "posts delay an event no longer than max_wait",
}

#: How many violations of each invariant are kept with their proof. All are counted.
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
    """The count, two percentiles and the maximum of some durations, in ms."""

    n: int
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: array[float]) -> Spread:
        """Return the spread of *values*."""
        ranked = sorted(values)
        if not ranked:
            return cls(0, 0.0, 0.0, 0.0)
        at = [ranked[math.ceil(len(ranked) * share) - 1] for share in (0.5, 0.99, 1)]
        return cls(len(ranked), *at)


@dataclass
class Verdict:
    """
    The result of a check.

    Attributes:
        violations: The first violations of each invariant, with their proof.
        broken: The number of violations of each invariant.
        excused: The number of violations of each invariant that lost writes explain.
        counts: The figures of the table.
        redelivered: The deliveries after an event's first, by their reason.
        lateness: The time from the due time to a handler thread, by the phase of the run.
        recovery: The time from the end of a fault until its victims work again, by fault.
        fired: How often each fault was injected.
        notes: Remarks for the reader of the table.
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
        """True if no promise was broken."""
        return not self.broken

    def __str__(self) -> str:
        """Return the violations as text, which is empty if there are none."""
        more = [
            f"{name}: {n} violations in all"
            for name, n in self.broken.items()
            if n > sum(v.invariant == name for v in self.violations)
        ]
        return "\n".join([*map(str, self.violations), *more])


class CheckContext:
    """
    The facts of the run and the verdict on it, which the parts of the checker share.

    Args:
        troubles: The faults of the run.
        rollback: Excuse the violations that lost writes can explain.
    """

    def __init__(self, troubles: Troubles, *, rollback: bool) -> None:
        self.verdict = Verdict()
        self.troubles = troubles
        self._rollback = rollback
        self._late: dict[str, array[float]] = defaultdict(lambda: array("d"))
        self._recovered: dict[str, array[float]] = defaultdict(lambda: array("d"))
        #: The state at the end: the pending ids, None if the history has no end, and the dead
        #: letters by id.
        self.pending: set[str] | None = None
        self.buried: dict[str, Operation] = {}
        #: Posts with an unknown outcome and a generated id, which is unknown too, by their serial.
        self.nameless: dict[int, Operation] = {}

    def blame(self, invariant: str, id: str | None, text: str, *proof: Operation | None) -> None:
        """Add a violation to the verdict, or to the excused ones."""
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
        """Return True if a rollback may have undone any of these operations."""
        return self._rollback and any(
            self.troubles.in_rollback(op.t, self.troubles.latest(op)) for op in operations
        )

    def late(self, run: Operation) -> None:
        """Add an event's lateness; if the node did not record it, the lateness of the claim."""
        us = run.data.get("late_us", run.data["srv"] - run.data["due"])
        self._late[self.troubles.phase(run.t)].append(us / 1000)

    def recovered(self, note: Operation) -> None:
        """Add the time from the end of a fault until a process worked again."""
        self._recovered[note.data["fault"]].append(float(note.data["ms"]))

    def ended(self, note: Operation) -> None:
        """Store the state at the end of the run from a ``final`` note."""
        self.pending = set(note.data.get("pending", ()))
        for letter in note.data.get("dead", ()):
            data: dict[str, Any] = dict(letter)
            id = data.pop("id")
            self.buried[id] = Operation("buried", note.p, note.t, note.t, "ok", id, data)
        if not note.data.get("sound", True):
            self.blame("I12", "", "the keys of the namespace contradict each other", note)

    def close(self) -> Verdict:
        """Complete the verdict with the percentiles, and return it."""
        self.verdict.lateness = {phase: Spread.of(ms) for phase, ms in self._late.items()}
        self.verdict.recovery = {name: Spread.of(ms) for name, ms in self._recovered.items()}
        self.verdict.fired = self.troubles.fired
        return self.verdict
