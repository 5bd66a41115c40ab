"""Show the progress of a long command: a bar on stderr if that is a terminal, else nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import click

from dtimer.cli.server import Settings

Advance = Callable[[int], object]


@contextlib.contextmanager
def progress(settings: Settings, what: str, total: int | None) -> Iterator[Advance]:
    """
    Yield a function that advances the progress bar by a number of units.

    Args:
        settings: The settings of the command.
        what: The label of the bar.
        total: The number of units. If it is None, no bar is shown.
    """
    if total is None or settings.as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=total, label=what, file=sys.stderr) as bar:
        yield bar.update
