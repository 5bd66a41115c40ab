"""
Collect the faults of a run, which are the possible reasons of a redelivery.

A lease expires only if something keeps its holder from renewing it. So if an event is delivered
again although its handler did not fail, one of these must have happened between the two claims: the
process was killed, left, or was stopped; the server could not be reached; or the machine did not
run the process.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from chaos.history import Operation

FOREVER = 1 << 62
SECOND = 1_000_000_000

#: Faults that cannot cost a lease: of the subscription, slow bytes, lost scripts, a client's clock.
HARMLESS = {"F04", "F06", "F28", "F46", "F51"}
#: The server's clock is set.
CLOCKS = {"F49", "F50"}
KILLS = {"F58", "F59"}
PAUSES = {"F52", "F53", "F71", "F72"}
#: Acknowledged writes may be lost.
ROLLBACKS = {"F20", "F21", "F31", "F42", "F43"}
#: Any acknowledged write may be lost, not only the latest.
WIPES = {"F21", "F31"}

#: A leaving node releases its events at most this long, in ns, before it has left.
_LEAVING = 5 * SECOND
#: With ``appendfsync everysec``, an acknowledged write is on the disk after this time, in ns.
UNSYNCED = 2 * SECOND


@dataclass(slots=True)
class Spell:
    """An interval during which a fault had effects, and the name of that fault."""

    begin: int
    end: int
    label: str


@dataclass(slots=True)
class ProcessLifetime:
    """The facts about one process."""

    first: int
    last: int
    left: int | None = None
    killed: int | None = None
    gone: int = FOREVER
    max_run: int | None = None
    timeout: int | None = None
    hanging: bool = False
    #: The calls of ``leave``, not sorted.
    leaves: list[Operation] = field(default_factory=list)

    def died_by(self, t: int) -> bool:
        """Return True if the process may have died before *t*."""
        if self.killed is not None:
            return self.killed <= t
        # A process that died during a call, and whose death was not recorded.
        return self.hanging and self.left is None and self.last <= t


class _Spells:
    """Finds the spells that overlap an interval."""

    def __init__(self) -> None:
        self._spells: list[Spell] = []
        self._begins: list[int] = []
        self._reach: list[int] = []

    def add(self, spell: Spell) -> None:
        self._spells.append(spell)

    def close(self) -> None:
        self._spells.sort(key=lambda s: s.begin)
        self._begins = [s.begin for s in self._spells]
        reach = 0
        for spell in self._spells:
            reach = max(reach, spell.end)
            self._reach.append(reach)

    def meeting(self, t0: int, t1: int) -> Spell | None:
        return next(self.all_meeting(t0, t1), None)

    def all_meeting(self, t0: int, t1: int) -> Iterator[Spell]:
        i = bisect.bisect_right(self._begins, t1) - 1
        while i >= 0 and self._reach[i] >= t0:
            if self._spells[i].end >= t0:
                yield self._spells[i]
            i -= 1

    def quiet(self, t: int) -> int:
        """Return the first moment from *t* on that is outside all spells."""
        while (spell := self.meeting(t, t)) is not None and t < FOREVER:
            t = spell.end + 1
        return min(t, FOREVER)


@dataclass
class Troubles:
    """
    Collects the faults of a run with `saw`, and answers questions about them after `close`.

    Args:
        aftermath: How long after its end, in ns, a fault may still have effects.
        grace: How long, in ns, a call with an unknown outcome may take if no fault is active.
    """

    aftermath: int = 2 * SECOND
    grace: int = 5 * SECOND
    lifetimes: dict[str, ProcessLifetime] = field(default_factory=dict)
    fired: Counter[str] = field(default_factory=Counter)
    phases: list[tuple[int, str]] = field(default_factory=list)
    rollbacks: list[Spell] = field(default_factory=list)
    #: When the server's clock was set.
    steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._faults: list[Operation] = []
        self._kills: list[Operation] = []
        self._everywhere = _Spells()
        self._of: dict[str, _Spells] = {}

    # While the history is read

    def saw(self, op: Operation) -> None:
        """Take in one call or note of any process."""
        process = self.lifetimes.get(op.p)
        last = op.end or op.t
        if process is None:
            process = self.lifetimes[op.p] = ProcessLifetime(op.t, last)
        process.first = min(process.first, op.t)
        process.last = max(process.last, last)
        if op.end is None:
            process.hanging = True
        if op.op == "leave":
            process.leaves.append(op)
        if op.op == "fault":
            self._faults.append(op)
        elif op.op == "kill":
            self._kills.append(op)
        elif op.op == "phase":
            self.phases.append((op.t, op.data["phase"]))
        elif op.op == "stall":
            # One process noticed the stall, but the whole machine may have stalled.
            spell = Spell(op.t - op.data["ms"] * 1_000_000, op.t + self.aftermath, "stalled")
            self._everywhere.add(spell)
        elif op.op == "node":
            if op.data.get("phase") == "end":
                process.left = op.t
            for name in ("max_run", "timeout"):
                if op.data.get(f"{name}_ms") is not None:
                    setattr(process, name, round(op.data[f"{name}_ms"] * 1_000_000))

    def close(self) -> None:
        """Compute the spells of all faults, and find the process of each kill."""
        self.phases.sort()
        self._place_faults()
        for kill in self._kills:
            pid = str(kill.data["pid"])
            mortal = [
                (process.first, p)
                for p, process in self.lifetimes.items()
                if process.first <= kill.t and pid_of(p) == pid
            ]
            if mortal:
                # A kill is recorded when it is noticed, perhaps long after the last record.
                process = self.lifetimes[max(mortal)[1]]
                process.killed, process.gone = min(kill.t, process.last), kill.t
        self._everywhere.close()
        for spells in self._of.values():
            spells.close()

    def _place_faults(self) -> None:
        names = {name_of(p) for p in self.lifetimes}
        begun: dict[tuple[str, str], Operation] = {}
        for op in sorted(self._faults, key=lambda op: op.t):
            what = (op.data["name"], str(op.data.get("target") or ""))
            if op.data.get("phase") == "begin":
                self.fired[what[0]] += 1
                if what in begun:
                    self._place(begun[what], op.t, names)
                begun[what] = op
            elif what in begun:
                self._place(begun.pop(what), op.t, names)
        for op in begun.values():
            healed = [t for t, phase in self.phases if t > op.t and phase == "healed"]
            self._place(op, healed[0] if healed else FOREVER, names)

    def _place(self, begin: Operation, end: int, names: set[str]) -> None:
        name, target = begin.data["name"], str(begin.data.get("target") or "")
        if name in CLOCKS or begin.data.get("clock"):
            self.steps += [begin.t, end] if end < FOREVER else [begin.t]
            self.steps.sort()
        if name in ROLLBACKS or begin.data.get("rollback"):
            since = 0 if name in WIPES else begin.t - UNSYNCED
            self.rollbacks.append(Spell(since, end + self.aftermath, name))
        if name in HARMLESS:
            return
        label = f"outage {name}"
        for kind, those in (("killed", KILLS), ("paused", PAUSES), ("clock", CLOCKS)):
            if name in those:
                label = kind
        spell = Spell(begin.t, min(FOREVER, end + self.aftermath), label)
        if target in names:
            self._of.setdefault(target, _Spells()).add(spell)
        elif target in self.lifetimes:
            self._of.setdefault(name_of(target), _Spells()).add(spell)
        else:
            self._everywhere.add(spell)

    # After the history was read

    def met(self, p: str, t0: int, t1: int) -> str | None:
        """Return what kept process *p* from renewing a lease at some time from *t0* to *t1*."""
        process = self.lifetimes[p]
        if process.died_by(t1):
            return "killed"
        if process.left is not None and t0 <= process.left <= t1 + _LEAVING:
            return "left"
        own = self._of.get(name_of(p))
        spell = (own and own.meeting(t0, t1)) or self._everywhere.meeting(t0, t1)
        return spell.label if spell else None

    def anywhere(self, t0: int, t1: int) -> str | None:
        """Return what struck any process at some time from *t0* to *t1*."""
        spell = self._everywhere.meeting(t0, t1)
        for own in self._of.values():
            spell = spell or own.meeting(t0, t1)
        if spell:
            return spell.label
        for process in self.lifetimes.values():
            if process.died_by(t1) and process.gone >= t0:
                return "killed"
            if process.left is not None and t0 <= process.left <= t1:
                return "left"
        return None

    def halted(self, p: str, t0: int, t1: int) -> bool:
        """Return True if process *p* may have stood still at some time from *t0* to *t1*."""
        own = self._of.get(name_of(p))
        return any(
            spell.label in ("paused", "stalled", "killed")
            for spells in (own, self._everywhere)
            if spells
            for spell in spells.all_meeting(t0, t1)
        )

    def latest(self, op: Operation) -> int:
        """
        Return the last moment at which *op* may have acted on the server.

        A request with an unknown outcome may wait in the buffers of a stopped process. So for such
        a request this is a moment at which no fault has been active for a while.
        """
        if not op.unknown and op.end is not None:
            return op.end
        return self.quiet((op.end or op.t) + self.grace)

    def quiet(self, t: int) -> int:
        """Return the first moment from *t* on at which no fault was active anywhere."""
        while t < FOREVER:
            before = t
            t = self._everywhere.quiet(t)
            for own in self._of.values():
                t = own.quiet(t)
            if t == before:
                break
        return t

    def phase(self, t: int) -> str:
        """Return the phase of the run at *t*."""
        i = bisect.bisect_right(self.phases, (t, "\uffff")) - 1
        return self.phases[i][1] if i >= 0 else "healthy"

    def stepped_in(self, t0: int, t1: int) -> bool:
        """Return True if the server's clock was set at some time from *t0* to *t1*."""
        # The fault is recorded a moment before the clock is set.
        return any(t0 - SECOND <= t <= t1 for t in self.steps)

    def in_rollback(self, t0: int, t1: int) -> bool:
        """Return True if writes of the interval may have been lost."""
        return any(s.begin <= t1 and t0 <= s.end for s in self.rollbacks)


def name_of(p: str) -> str:
    """Return the name of a process without its pid."""
    return p.rpartition(".")[0]


def pid_of(p: str) -> str:
    """Return the pid in the name of a process."""
    return p.rpartition(".")[2].partition("-")[0]
