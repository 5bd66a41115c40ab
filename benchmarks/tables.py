"""Tables as text: figures, the spread of the rounds, ratios, and reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.bench import FULL
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.results import Key, Results, Row, against
from benchmarks.targets import judge
from benchmarks.workloads import Work

MISSING = "—"
OURS = "dtimer/defaults"


def number(value: float | None) -> str:
    """Format a figure with three significant digits."""
    if value is None:
        return MISSING
    if value == 0 or isinstance(value, int):
        return f"{value:,.0f}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a table: *left* columns flush left, the others flush right."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(columns))]
    lines = []
    for row in cells:
        padded = (
            cell.ljust(width) if n < left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def table(results: Results, work: Work) -> list[str]:
    """Return the table of one work, with its notes below."""
    rows = results.rows(work.name)
    names = list(dict.fromkeys(name for row in rows.values() for name in row.figures))
    params = list(dict.fromkeys(name for row in rows.values() for name in row.params))
    floors = [
        c.id for c in CONTENDERS if c.floor and any(r.contender.id == c.id for r in rows.values())
    ]
    ours = any(row.contender.id == OURS for row in rows.values()) and len(rows) > 1
    compared = ([OURS] if ours else []) + floors
    heads = [f"of {name.partition('/')[0]}" for name in compared]
    columns = ["contender", *params, *names, "lowest to highest", *heads]
    lines = [
        [
            row.contender.id,
            *(_param(row.params.get(name, "")) for name in params),
            *(number(row.medians().get(name)) for name in names),
            _range(row, work.main),
            *(number(_ratio(row, rows, work, name)) for name in compared),
        ]
        for row in rows.values()
    ]
    # A contender that cannot do the work has a row too.
    absent = [c.id for c in _taking_part(results) if work.name in c.cannot]
    lines += [[name, *(MISSING for _ in columns[1:])] for name in absent]
    return [
        work.title,
        *(f"  {line}" for line in aligned(columns, lines)),
        *_notes(results, rows, work),
    ]


def _ratio(row: Row, rows: dict[Key, Row], work: Work, other: str) -> float | None:
    params = row.params
    if other == OURS and not row.contender.floor:
        params = work.reference(params)
    return against(row, rows, other, params, work.main)


def _param(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _range(row: Row, name: str) -> str:
    values = row.rounds(name).values()
    return f"{number(min(values))} to {number(max(values))}" if values else MISSING


def _notes(results: Results, rows: dict[Key, Row], work: Work) -> list[str]:
    """Return what contenders cannot do, with the reason, and what failed."""
    notes = []
    for contender in _taking_part(results):
        # Reasons for other works belong to their tables.
        parts = {work.name, *work.parts}
        notes += [
            f"  {MISSING} {contender.id}, {what}: {why}"
            for what, why in contender.cannot.items()
            if what in parts
        ]
    for row in rows.values():
        where = " ".join(f"{name}={value}" for name, value in row.params.items())
        notes += [f"  FAILED {row.contender.id} {where}: {e}" for e in dict.fromkeys(row.errors)]
    return notes


def _taking_part(results: Results) -> list[Contender]:
    return [one for one in CONTENDERS if one.id in results.about.get("contenders", [])]


def legend(results: Results) -> list[str]:
    """Return the contenders with their versions and settings."""
    versions = results.about.get("versions", {})
    lines = []
    for one in _taking_part(results):
        known = {name.lower(): number for name, number in versions.get(one.environment, {}).items()}
        lines.append((one.id, known.get(one.package, ""), one.says))
    return aligned(("contender", "version", "settings"), lines, left=3)


def judgement(results: Results) -> list[str]:
    """Return the targets that the results can be compared with, and whether they are met."""
    if results.about.get("scale") != FULL:
        return ["Targets are for the full scale only."]
    rows = [
        (
            target.what,
            f"{'at most' if target.most else 'at least'} {number(target.bound)}",
            number(value),
            "met" if target.met(value) else "MISSED",
        )
        for target, value in judge(results)
    ]
    return aligned(("target, by dtimer/defaults", "bound", "reached", ""), rows)


def heading(about: dict[str, Any]) -> list[str]:
    """Return the facts about the run, one a line."""
    facts = {name: value for name, value in about.items() if name not in ("versions", "contenders")}
    width = max(map(len, facts), default=0)
    return [f"{name.ljust(width)}  {value}" for name, value in facts.items()]
