"""Read recoveries, leftovers and bugs from the history of a soak (`chaos.history`)."""

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

#: Faults that a person must fix, and the seconds after which a node tries again.
SLOW = {"F103": 5, "F104": 5}

#: These faults kill a process. Their recovery is recorded as ``killed``, from the start of the
#: successor.
_DEATHS = {"F58", "F59"}

#: Errors that a node must never emit, under any fault of its server.
_BUGS = {"ScriptError", "NamespaceCorrupt", "UnreadablePayload"}


@dataclass(slots=True)
class Strike:
    """An injected fault, from its beginning to its end, both on the monotonic clock in ns."""

    fault: str
    target: str
    begin: int
    end: int


@dataclass
class Findings:
    """
    Facts of a soak, read from its records in one pass.

    Attributes:
        errors: How many errors nodes emitted under ``'error'``, by kind.
        left: Threads and descriptors that programs left behind although they ended properly.
        bugs: Errors and log records that only a bug can cause.
        strikes: The injected faults.
    """

    errors: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)
    bugs: list[str] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)

    def __post_init__(self) -> None:
        # When the processes of a name began.
        self._begun: dict[str, list[int]] = defaultdict(list)
        # When the processes of a name started a handler or posted an event.
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
                # The recovery is measured from the start of the successor.
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
            # The recovery of a thread is measured from its failure, that of a process from its
            # death. Other records have these moments.
            if name != "F66" and name not in _DEATHS:
                self.strikes.append(Strike(name, target, t, t))
            return
        for strike in reversed(self.strikes):
            if (strike.fault, strike.target) == (name, target):
                strike.end = t
                return

    def recoveries(self) -> Iterator[tuple[Strike, str, float]]:
        """
        Yield each fault, each process that it struck, and the ms until that process worked again.

        A node works again when it receives an event, a poster when its call returns. A fault of the
        server strikes all processes. For a process that died, the time is that of its successor,
        from its start. Recoveries that another fault delayed are left out.
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
