"""Show the progress of the demo: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from dtimer.cli.demo.counts import Counts, NodeCounts
from dtimer.cli.output import Output

_NUMBERS = ("received", "handled", "in flight", "again", "p50 ms", "p99 ms", "max ms")


def table(counts: Counts) -> Any:
    """Return a table with the counts and the lateness of each node."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # 77 columns, to fit a terminal of 80.
    made = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), show_footer=True)
    name, state, *numbers = _row(counts.total)
    made.add_column("node", name, no_wrap=True, min_width=6)
    made.add_column("state", state, no_wrap=True, min_width=8)
    for head, number in zip(_NUMBERS, numbers, strict=True):
        made.add_column(head, number, justify="right", no_wrap=True)
    for node in counts.nodes:
        made.add_row(*_row(node), style="bold red" if node.state in ("killed", "died") else None)
    return made


def _row(node: NodeCounts) -> list[str]:
    totals = (node.received, node.handled, len(node.in_flight), node.again)
    late = ("-" if part is None else f"{part:.1f}" for part in node.late.values())
    return [node.name, node.state, *map(str, totals), *late]


class View:
    """Shows the progress: on *live*, the display of a terminal, or as lines; nothing as JSON."""

    def __init__(self, output: Output, live: Any = None) -> None:
        self._output = output
        self._live = live
        self._began = time.monotonic()
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """Print something that has happened, with the time. It stays on the screen."""
        line = f"{time.monotonic() - self._began:5.1f} s  {text}"
        if self._live is not None:
            self._notes.append(line)
        elif not self._output.as_json:
            self._output.result(line)

    def show(self, counts: Counts) -> None:
        """Update the table in place, with the notes below it. Only on a terminal."""
        if self._live is None:
            return
        from rich.console import Group
        from rich.text import Text

        unit = Text("(ms: late, from due to received)", style="dim")
        notes = map(Text, self._notes)
        self._live.update(Group("", table(counts), "", unit, *notes), refresh=True)


@contextlib.contextmanager
def opened_view(output: Output) -> Iterator[View]:
    """Yield the view that suits standard output."""
    if output.as_json or not sys.stdout.isatty():
        yield View(output)
        return
    from rich.live import Live

    with Live(console=output.console(sys.stdout), auto_refresh=False) as live:
        yield View(output, live)
