"""What the record of a soak tells besides whether promises were kept: recoveries, leftovers."""

from __future__ import annotations

import bisect
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from chaos.history import History
from chaos.troubles import name_of

SECOND = 1_000_000_000

#: What a person has to see to is tried again after 5 s: it must not be hammered.
SLOW = {"F103": 5, "F104": 5}

#: What comes of these is told as ``killed``, counted from the beginning of the successor.
_DEATHS = {"F58", "F59"}

#: Errors that a node must never emit, whatever is done to its server.
_BUGS = {"ScriptError", "NamespaceCorrupt"}


@dataclass(slots=True)
class Strike:
    """One fault, from its beginning to its end, both on the monotonic clock in ns."""

    fault: str
    target: str
    begin: int
    end: int


@dataclass
class Findings:
    """
    Read from the records in one pass.

    Attributes:
        errors: What nodes emitted under ``'error'``, by kind.
        left: What programs left behind that had ended in good order.
        strikes: The faults.
    """

    errors: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)
    bugs: list[str] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)

    def __post_init__(self) -> None:
        # When processes of a name began.
        self._begun: dict[str, list[int]] = defaultdict(list)
        # When somebody was of service.
        self._service: dict[str, array[int]] = defaultdict(lambda: array("q"))

    @classmethod
    def of(cls, history: History) -> Findings:
        """Read a history."""
        found = cls()
        for path in history.files:
            for record in history.records(path):
                found._saw(record)
        for times in found._service.values():
            times[:] = array("q", sorted(times))
        for strike in found.strikes:
            if strike.fault == "killed":
                # Nobody can be of service before the successor has begun.
                later = [t for t in found._begun[strike.target] if t > strike.begin]
                strike.end = min(later, default=strike.begin)
        return found

    def _saw(self, record: dict[str, Any]) -> None:
        op, ph, who = record["op"], record["ph"], name_of(record["p"])
        if op == "fault":
            self._struck(record)
        elif op == "kill":
            self.strikes.append(Strike("killed", name_of(record["who"]), record["t"], record["t"]))
        elif op == "broken":
            self.strikes.append(Strike("F66", who, record["t"], record["t"]))
        elif op == "error":
            self.errors[record["kind"]] += 1
            if record["kind"] in _BUGS:
                self.bugs.append(f"{record['p']} emitted {record['kind']}: {record['text']}")
        elif op == "log" and record["level"] in ("ERROR", "CRITICAL"):
            self.bugs.append(f"{record['p']} logged: {record['text']}")
        elif op == "node" and record["phase"] == "begin":
            self._begun[who].append(record["t"])
        elif op == "node":
            for what in ("threads", "descriptors"):
                if record[what]:
                    self.left.append(f"{record['p']} left {what}: {record[what]}")
        elif (op == "run" and ph == "inv") or (op == "post" and ph == "ok"):
            self._service[who].append(record["t"])

    def _struck(self, record: dict[str, Any]) -> None:
        name, target, t = record["name"], record["target"], record["t"]
        if record["phase"] == "begin":
            # Of a thread it counts from its failure, and of a process from its death.
            if name != "F66" and name not in _DEATHS:
                self.strikes.append(Strike(name, target, t, t))
            return
        for strike in reversed(self.strikes):
            if (strike.fault, strike.target) == (name, target):
                strike.end = t
                return

    def recoveries(self) -> Iterator[tuple[Strike, str, float]]:
        """
        Tell how many ms it took from the end of a fault until whom it struck was of service.

        A node is when it is handed an event, a poster when a call of it is answered; after
        a fault of the server, all of them are. Who died is succeeded by another process,
        and what is told is that one's start. Left out is what another fault delayed.
        """
        for strike in self.strikes:
            since = strike.end
            struck = list(self._service) if strike.target == "server" else [strike.target]
            for who in struck:
                times = self._service.get(who, array("q"))
                i = bisect.bisect_right(times, since)
                if i < len(times) and not self._disturbed(strike, who, since, times[i]):
                    yield strike, who, (times[i] - since) / 1e6

    def _disturbed(self, strike: Strike, who: str, since: int, until: int) -> bool:
        return any(
            other is not strike
            and other.target in (who, "server")
            and other.begin <= until
            and other.end + (1 + SLOW.get(other.fault, 0)) * SECOND >= since
            for other in self.strikes
        )
