"""Show the progress of the demo: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Protocol

from dtimer.cli.demo.tally import NodeTally, Tally, percentile
from dtimer.cli.output import Output

_STYLES = {"killed": "bold red", "died": "bold red"}

#: Seconds between two frames, and between two plain lines.
FRAME, _LINE = 0.1, 1.0


class View(Protocol):
    """Shows the progress of the demo."""

    def note(self, text: str) -> None:
        """Print something that has happened. It stays on the screen."""
        ...

    def show(self, tally: Tally, seconds: float) -> None:
        """Show the current counts. Called at least every `FRAME`; may draw less often."""
        ...


def table(tally: Tally) -> Any:
    """Return a table with the counts and the lateness of each node."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # 77 columns, to fit a terminal of 80.
    made = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), show_footer=True)
    made.add_column("node", "all", no_wrap=True, min_width=6)
    made.add_column("state", no_wrap=True, min_width=8)
    nodes = tally.nodes
    counts = (
        sum(node.received for node in nodes),
        sum(node.handled for node in nodes),
        sum(len(node.in_flight) for node in nodes),
        sum(node.again for node in nodes),
    )
    names = ("received", "handled", "in flight", "again", "p50 ms", "p99 ms", "max ms")
    for name, total in zip(names, [*map(str, counts), *_lateness(tally.lateness)], strict=True):
        made.add_column(name, total, justify="right", no_wrap=True)
    for node in nodes:
        made.add_row(*_row(node), style=_STYLES.get(node.state))
    return made


def _row(node: NodeTally) -> list[str]:
    counts = (node.received, node.handled, len(node.in_flight), node.again)
    return [node.name, node.state, *map(str, counts), *_lateness(node.lateness)]


def _lateness(values: list[float]) -> list[str]:
    parts = (percentile(values, part) for part in (0.5, 0.99, 1))
    return ["-" if part is None else f"{part:.1f}" for part in parts]


def since(seconds: float) -> str:
    """Format the elapsed time for the start of a line."""
    return f"{seconds:5.1f} s  "


def _standing(tally: Tally, seconds: float) -> str:
    waiting = len(tally.posted) - len(tally.handled)
    return (
        f"{since(seconds)}posted {len(tally.posted)}, handled {len(tally.handled)},"
        f" waiting {waiting}"
    )


class Silent:
    """Shows nothing. For ``--json``, which prints only the result."""

    def note(self, text: str) -> None:
        """See `View.note`."""

    def show(self, tally: Tally, seconds: float) -> None:
        """See `View.show`."""


class Plain:
    """Prints a line a second. For a pipe or a file."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._next = 0.0

    def note(self, text: str) -> None:
        """See `View.note`."""
        self._output.result(text)

    def show(self, tally: Tally, seconds: float) -> None:
        """See `View.show`."""
        if tally.posted and seconds >= self._next:
            self._next = seconds + _LINE
            p50, p99, most = _lateness(tally.lateness)
            in_flight = sum(len(node.in_flight) for node in tally.nodes)
            self._output.result(
                f"{_standing(tally, seconds)}, in flight {in_flight};"
                f" late p50 {p50}, p99 {p99}, max {most} ms"
            )


class Screen:
    """Updates a table in place, with the notes below it. For a terminal."""

    def __init__(self, live: Any) -> None:
        self._live = live
        self._notes: list[str] = []

    def note(self, text: str) -> None:
        """See `View.note`."""
        self._notes.append(text)

    def show(self, tally: Tally, seconds: float) -> None:
        """See `View.show`."""
        from rich.console import Group
        from rich.text import Text

        notes = [Text(note) for note in self._notes]
        standing = Text(_standing(tally, seconds), style="bold")
        standing.append("  (ms: late, from due to received)", style="not bold dim")
        self._live.update(Group("", table(tally), "", standing, *notes), refresh=True)


@contextlib.contextmanager
def opened_view(output: Output) -> Iterator[View]:
    """Yield the view that suits standard output."""
    if output.as_json:
        yield Silent()
    elif not sys.stdout.isatty():
        yield Plain(output)
    else:
        from rich.live import Live

        with Live(console=output.console(sys.stdout), auto_refresh=False) as live:
            yield Screen(live)
