"""Sort the recorded operations on one schedule by their kinds and occurrences."""

from __future__ import annotations

import re
from collections.abc import Callable

from chaos.history import Operation
from chaos.lease_checker import Generation

#: The id of an occurrence: its schedule, and its nominal time in µs.
OCCURRENCE = re.compile(r"(.+)@(\d{16})\Z", re.DOTALL)

_DEFINES = (
    *("every_us", "cron", "tz", "misfire", "overlap", "jitter_us", "start_us", "end_us"),
    *("count", "max_retries", "crc", "grace", "expires"),
)


class Chain:
    """The operations on one schedule and its occurrences, sorted by their kinds."""

    def __init__(self, name: str, operations: list[Operation]) -> None:
        self.name = name
        self.declarations: list[Operation] = []
        self.ends: list[Operation] = []
        self.unsteady = False
        self.extras: set[int] = set()
        self.extras_unknown = False
        self.occurrences: dict[int, Generation] = {}
        self.cancels: dict[int, list[Operation]] = {}
        self.moves: dict[int, list[Operation]] = {}
        self.revivals: dict[int, list[Operation]] = {}
        self.pending: set[int] = set()
        for op in operations:
            match = OCCURRENCE.match(op.id or "")
            if match:
                self._of_occurrence(int(match[2]), op)
            else:
                self._of_schedule(op)

    def id(self, nominal: int) -> str:
        return f"{self.name}@{nominal:016d}"

    def occurrence(self, nominal: int) -> Generation:
        """Return the operations on one occurrence."""
        gen = self.occurrences.get(nominal)
        if gen is None:
            gen = self.occurrences[nominal] = Generation(self.id(nominal), None)
        return gen

    def _of_schedule(self, op: Operation) -> None:
        if op.op == "schedule":
            self.declarations.append(op)
        elif op.op == "unschedule" and op.ph != "no":
            self.ends.append(op)
        elif op.op in ("pause_schedule", "resume_schedule") and op.ph != "no":
            self.unsteady = True
        elif op.op == "run_now" and op.ph != "no":
            match = OCCURRENCE.match(op.data.get("occurrence") or "")
            self.extras.add(int(match[2]) if match else 0)
            self.extras_unknown |= match is None

    def _of_occurrence(self, nominal: int, op: Operation) -> None:
        calls = {"cancel": self.cancels, "reschedule": self.moves, "revive": self.revivals}
        if op.op not in calls:
            self.occurrence(nominal).add(op)
        elif op.ph != "no":
            calls[op.op].setdefault(nominal, []).append(op)

    def met(self) -> set[int]:
        """Return the nominal times of the occurrences that certainly existed."""
        made = {n for n, gen in self.occurrences.items() if gen.runs or gen.letters}
        cancelled = {
            n
            for n, those in self.cancels.items()
            if any(c.unknown or c.data.get("outcome") != "NOT_FOUND" for c in those)
        }
        return made | cancelled | self.pending

    def doubtful(self, nominal: int) -> bool:
        """Return True if an occurrence may never have existed: only a cancel refers to it."""
        gen = self.occurrences.get(nominal)
        if nominal in self.pending or (gen and (gen.runs or gen.letters)):
            return False
        return all(cancel.unknown for cancel in self.cancels.get(nominal, ()))

    def stable(self, latest: Callable[[Operation], int]) -> Operation | None:
        """Return the declaration of the schedule, or None if the schedule ever changed."""
        declared = [d for d in self.declarations if d.ph != "no"]
        kinds = {tuple(d.data.get(name) for name in _DEFINES) for d in declared}
        if len(kinds) != 1 or self.unsteady:
            return None
        ended = min((op.t for op in self.ends), default=None)
        if ended is not None and max(latest(d) for d in declared) >= ended:
            return None
        return declared[0]
