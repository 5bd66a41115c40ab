"""How far a long command is: a bar on stderr, where that is a terminal, and nothing else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from dtimer.cli.server import Settings

Advance = Callable[[int], object]


@contextlib.contextmanager
def progress(settings: Settings, what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """
    Give what is to be told how many more are done.

    Args:
        settings: Of the command.
        what: Is being done.
        total: How many there are to do; None when nobody knows.
        unit: ``events``, or ``bytes``.
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
