"""Draw a frame of ``top`` in the columns and lines of the screen."""

from __future__ import annotations

from typing import Any

from dtimer.cli.events import COLUMNS, cells
from dtimer.cli.namespace import node_cells
from dtimer.cli.output import lateness, moment
from dtimer.cli.tables import WIDE, Column, table
from dtimer.model.times import format_duration
from dtimer.monitor.judgement import LATE_MS, overdue_ms
from dtimer.monitor.sample import MINUTE, Frame

_BLOCKS, _PLAIN = "▁▂▃▄▅▆▇█", "_.-:=+*#"

_NODES = (
    Column("node", "cyan", fold=True),
    Column("in flight"),
    Column("share"),
    Column("state"),
    Column("last seen", "dim"),
    Column("host", fold=True),
    Column("pid", takes_rest=True),
)


def sparkline(history: list[float], width: int, blocks: str = _BLOCKS) -> str:
    """Draw the end of *history*, scaled to its maximum; a zero is a space."""
    shown = history[-width:]
    highest = max(shown, default=0.0)
    line = "".join(
        blocks[min(len(blocks) - 1, int(rate / highest * len(blocks)))] if rate else " "
        for rate in shown
    )
    return line.rjust(width)


def plan(height: int, nodes: int) -> tuple[int, int]:
    """Return how many upcoming events and how many nodes fit on *height* lines."""
    # The head takes six lines; each list two for its heading and two around it; the foot one.
    left = max(2, height - 6 - 8 - 1)
    for_nodes = min(max(nodes, 1), max(1, left // 2))
    return max(1, left - for_nodes), for_nodes


def _head(frame: Frame, width: int, blocks: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    stats = frame.stats
    late = overdue_ms(stats)
    title = Text.assemble(
        ("dtimer ", "bold"), (frame.ns, "bold cyan"), f"   {moment(frame.now, 'seconds')} (server)"
    )
    if stats.paused:
        title.append("   PAUSED", "bold yellow")
    if not stats.nodes:
        title.append("   NO NODE", "bold red")

    p50, p99 = (lateness(ms) if ms is not None else "-" for ms in frame.late)
    numbers = (
        ("due now", str(stats.overdue), "bold red" if late > LATE_MS else ""),
        ("scheduled", str(stats.scheduled), ""),
        ("in flight", str(stats.in_flight), "green" if stats.in_flight else ""),
        ("dead", str(stats.dead), "red" if stats.dead else ""),
        ("nodes", str(stats.nodes), ""),
        (
            "oldest overdue",
            format_duration(late) if stats.overdue else "-",
            "bold red" if late > LATE_MS else "",
        ),
        ("late p50", p50, ""),
        ("late p99", p99, ""),
    )
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in numbers:
        grid.add_column(no_wrap=True)
    grid.add_row(*(Text(name, "dim") for name, _, _ in numbers))
    grid.add_row(*(Text(value, style or "bold") for _, value, style in numbers))

    label = f"{frame.rate:.1f} confirmed/s, {frame.posted_rate:.1f} posted/s "
    free_space = max(10, min(MINUTE, width - len(label) - 14))
    spark = sparkline(frame.history, free_space, blocks)
    most = max(frame.history, default=0.0)
    rates = Text.assemble(label, (spark, "green"), (f" most {most:.0f}/s", "dim"))
    rates.truncate(width, overflow="crop")
    return title, grid, rates


def _share(frame: Frame, held: int) -> str:
    return f"{held / frame.stats.in_flight:.0%}" if frame.stats.in_flight else "-"


def draw(frame: Frame, width: int, height: int, note: str = "", *, encoding: str = "utf-8") -> Any:
    """Draw a frame on at most *height* lines; *note* is an error to show."""
    from rich.console import Group
    from rich.text import Text

    events, most_nodes = plan(height, len(frame.nodes))
    blocks = _BLOCKS if encoding.lower().startswith("utf") else _PLAIN
    title, grid, rates = _head(frame, width, blocks)
    parts: list[Any] = [title, Text(note, "bold red", no_wrap=True), grid, rates, ""]
    rows = []
    for node in frame.nodes[:most_nodes]:
        id, state, heard, host, pid, *_ = node_cells(node, True)
        held = frame.held.get(node.incarnation, 0)
        rows.append([id, str(held), _share(frame, held), state, heard, host, pid])
    if rows:
        parts += [table(_NODES, rows, width)]
        if len(frame.nodes) > most_nodes:
            parts.append(Text(f"and {len(frame.nodes) - most_nodes} more nodes", "dim"))
    else:
        parts.append(Text("no node has joined", "dim"))
    parts.append("")
    shown = [cells(record, width < WIDE, frame.now) for record in frame.upcoming[:events]]
    if shown:
        parts.append(table(COLUMNS, shown, width))
    else:
        parts.append(Text("nothing is waiting", "dim"))
    return Group(*parts)
