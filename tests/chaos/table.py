"""Format the figures of a verdict, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from chaos.verdict import INVARIANTS, Spread, Verdict

#: The counts of the table, in this order. A missing count is 0.
_COUNTS = (
    *("posted", "handled", "occurrences", "of them handled", "in held chains"),
    *("claimed ahead", "left unstarted", "lost", "early", "dead", "expired", "cancelled"),
    *("superseded", "debounced", "dropped", "pending", "refused", "unknown outcomes"),
    *("recovered", "written", "read", "processes", "killed", "records", "torn lines"),
)
_PHASES = ("healthy", "faulty", "healed", "drained")


def _number(value: float) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:.1f}"


def _spread(spread: Spread) -> str:
    of = (spread.p50, spread.p99, spread.max)
    return f"{_number(spread.n):>11}" + "".join(f"{_number(ms):>11}" for ms in of)


def rows(verdict: Verdict) -> list[tuple[str, str]]:
    """Return the lines of the table, each as a name and its figures."""
    lines = [(name, f"{_number(verdict.counts[name]):>11}") for name in _COUNTS]
    reasons = sorted(verdict.redelivered.items(), key=lambda item: -item[1])
    explained = [(reason, n) for reason, n in reasons if reason != "unexplained"]
    lines[5:5] = [
        ("redelivered", f"{_number(sum(verdict.redelivered.values())):>11}"),
        *((f"  {reason}", f"{_number(n):>11}") for reason, n in explained),
        ("  unexplained", f"{_number(verdict.redelivered['unexplained']):>11}"),
    ]
    heading = "".join(f"{name:>11}" for name in ("n", "p50", "p99", "max"))
    lines.append(("", ""))
    lines.append(("lateness, ms", heading))
    named = sorted(verdict.lateness, key=lambda p: _PHASES.index(p) if p in _PHASES else 9)
    lines += [(f"  {phase}", _spread(verdict.lateness[phase])) for phase in named]
    if verdict.fired or verdict.recovery:
        lines += [("", ""), ("faults: fired; recovery, ms", f"{'fired':>11}{heading}")]
        for name in sorted(set(verdict.fired) | set(verdict.recovery)):
            spread = verdict.recovery.get(name)
            beside = f"{_number(verdict.fired[name]):>11}" + (_spread(spread) if spread else "")
            lines.append((f"  {name}", beside))
    lines += [("", ""), ("violations", f"{_number(sum(verdict.broken.values())):>11}")]
    for name, n in sorted(verdict.broken.items()):
        lines.append((f"  {name} {INVARIANTS[name]}", f"{_number(n):>11}"))
    for name, n in sorted(verdict.excused.items()):
        lines.append((f"  {name} excused by a rollback", f"{_number(n):>11}"))
    return lines


def as_text(verdict: Verdict) -> str:
    lines = rows(verdict)
    width = max(len(name) for name, _ in lines) + 2
    text = [f"{name:<{width}}{beside}".rstrip() for name, beside in lines]
    return "\n".join([*text, *(f"note: {note}" for note in verdict.notes)])


def as_json(verdict: Verdict) -> str:
    """Return all figures as a JSON object, so that runs can be compared."""
    figures: dict[str, Any] = {
        "ok": verdict.ok,
        "counts": dict.fromkeys(_COUNTS, 0) | dict(verdict.counts),
        "redelivered": {"unexplained": 0} | dict(verdict.redelivered),
        "lateness_ms": {phase: asdict(s) for phase, s in verdict.lateness.items()},
        "recovery_ms": {name: asdict(s) for name, s in verdict.recovery.items()},
        "fired": dict(verdict.fired),
        "violations": dict(verdict.broken),
        "excused": dict(verdict.excused),
        "notes": verdict.notes,
    }
    return json.dumps(figures, indent=2, sort_keys=True)
