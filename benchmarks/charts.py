"""Choose the plots for results: bars for each work, and lines for growth."""

from __future__ import annotations

from pathlib import Path

from benchmarks import plots
from benchmarks.numbers import middle
from benchmarks.results import Results, Row
from benchmarks.workloads import Work

#: The parameters of the cells that the bars of a work show.
_SHOWN = {
    "lateness": {"nodes": 1, "stream": 0},
    "drain": {"processes": 1},
    "memory": {"pending": 100_000, "size": 50},
    "idle": {"nodes": 1},
}

_GROWTH = {
    "rates": ("events/s", ("post/s", "bulk/s", "drain 1/s", "drain 100/s")),
    "lateness": ("ms", ("late p50", "late p99")),
    "bytes": ("bytes an event", ("bytes",)),
}


def draw(results: Results, works: list[Work], folder: Path) -> list[Path]:
    """Write all plots; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, str] = {}
    for work in works:
        rows = list(results.rows(work.name).values())
        if work.name == "growth":
            made |= _growth(rows)
            continue
        ways = {row.params.get("way") for row in rows}
        for way in sorted(ways, key=str):
            chosen = [row for row in rows if row.params.get("way") == way]
            name = f"{work.name}-{way}" if way else work.name
            for figure in (work.main, "p99") if work.name == "lateness" else (work.main,):
                extra = f"-{figure}" if figure != work.main else ""
                made[f"{name}{extra}"] = _bars(work, chosen, figure, way)
    paths = []
    for name, text in made.items():
        if text:
            path = folder / f"{name}.svg"
            path.write_text(text, "utf-8")
            paths.append(path)
    return paths


def _bars(work: Work, rows: list[Row], figure: str, way: str | None) -> str:
    shown = _SHOWN.get(work.name, {})
    bars = []
    for row in rows:
        # A logarithmic scale cannot show early events.
        rounds = {n: value for n, value in row.rounds(figure).items() if value > 0}
        if not rounds or any(row.params.get(name) != value for name, value in shown.items()):
            continue
        kind = plots.OURS if row.contender.ours else plots.PEER
        colour = plots.FLOOR if row.contender.floor else kind
        batch = row.params.get("batch", 1)
        name = row.contender.id + (f", {batch} at a time" if batch > 1 else "")
        low, high = min(rounds.values()), max(rounds.values())
        bars.append(plots.Bar(name, middle(rounds), low, high, colour))
    if len(bars) < 2:
        return ""
    bars.sort(key=lambda bar: bar.value, reverse=work.more_is_better)
    title = work.title.partition(":")[0] + (f", {way}" if way else "")
    title += f", {figure}" if figure.startswith("p") and figure[1:].isdigit() else ""
    return plots.bars(title, work.unit, bars)


def _growth(rows: list[Row]) -> dict[str, str]:
    """Draw the figures of dtimer, and dashed in the same colours those of the floor."""
    made: dict[str, str] = {}
    for name, (unit, figures) in _GROWTH.items():
        drawn = []
        for who in ("dtimer/defaults", "least scripts/floor"):
            mine = [row for row in rows if row.contender.id == who]
            for colour, figure in zip(plots.COLOURS, figures, strict=False):
                medians = {row.params["pending"]: row.medians().get(figure, 0) for row in mine}
                points = {x: y for x, y in medians.items() if y > 0}
                if points:
                    floor = mine[0].contender.floor
                    label = f"{figure}, floor" if floor else figure
                    drawn.append(plots.Line(label, points, colour, floor))
        if drawn:
            made[f"growth-{name}"] = plots.lines(f"growth: {name}", "pending events", unit, drawn)
    return made
