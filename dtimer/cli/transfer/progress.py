"""Show the progress of a long command: a bar on stderr if that is a terminal, else nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from dtimer.cli.server import Settings

Advance = Callable[[int], object]


@contextlib.contextmanager
def progress(settings: Settings, what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """
    Yield a function that advances the progress bar by a number of units.

    Args:
        settings: The settings of the command.
        what: The label of the bar.
        total: The number of units, or None if it is unknown.
        unit: ``events`` or ``bytes``.
    """
    if settings.as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), count, TimeRemainingColumn())
    console = settings.output.console(sys.stderr)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)
