"""Print lists: a table on a terminal, tabs in a pipe, with ``--json`` one object a line."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dtimer.cli.server import Settings

Item = TypeVar("Item")

#: A terminal with fewer columns is narrow, and moments are shortened.
WIDE = 120


@dataclass(frozen=True)
class Column:
    """
    A column of a table.

    Args:
        name: The heading.
        style: The style for rich.
        fold: Wrap long cells instead of cutting them, so that they can be copied.
        takes_rest: Give the column the space that the others leave, and cut its cells there. At
            most one column of a table.
    """

    name: str
    style: str = ""
    fold: bool = False
    takes_rest: bool = False


def show(
    settings: Settings,
    columns: Sequence[Column],
    items: Iterable[Item],
    cells: Callable[[Item, bool], Sequence[str]],
    fields: Callable[[Item], dict[str, Any]],
    *,
    empty: str,
    limit: int | None = None,
) -> None:
    """
    Print *items* in the form that suits standard output.

    Args:
        settings: The settings of the command.
        columns: One column for each cell.
        items: Iterated lazily, except on a terminal, where the table needs all of them.
        cells: Returns the cells of an item, for people. The second argument asks for short ones.
        fields: Returns the fields of an item, for programs.
        empty: The notice if *items* is empty.
        limit: Print at most this many, with a notice if there are more. None prints all.
    """
    left, count = iter(items), 0
    shown = itertools.islice(left, limit)
    if settings.as_json or not sys.stdout.isatty():
        for item in shown:
            count += 1
            if settings.as_json:
                settings.output.result(**fields(item))
            else:
                settings.output.result("\t".join(cells(item, False)))
    else:
        console = settings.output.console(sys.stdout)
        rows = [cells(item, console.width < WIDE) for item in shown]
        count = len(rows)
        if rows:
            console.print(table(columns, rows, console.width))
    if not count:
        settings.output.notice(empty)
    elif limit is not None and next(left, None) is not None:
        settings.output.notice(f"there are more than these {limit}: --limit shows them")


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Any:
    """Return a rich table of *rows*, at most *width* columns wide."""
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    made = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    heads = [column.name for column in columns]
    widths = [max(map(cell_len, texts)) for texts in zip(heads, *rows, strict=True)]
    longest = 40 if width >= WIDE else 20
    for i, column in enumerate(columns):
        if column.fold:
            widths[i] = min(widths[i], longest)
    taken = sum(w for w, c in zip(widths, columns, strict=True) if not c.takes_rest)
    for i, column in enumerate(columns):
        if column.takes_rest:
            widths[i] = max(8, min(widths[i], width - taken - 2 * len(columns)))
        made.add_column(column.name, overflow="fold", width=widths[i])
    for row in rows:
        texts = []
        for text, column, most in zip(row, columns, widths, strict=True):
            cell = Text(text, column.style)
            if column.takes_rest:
                cell.truncate(most, overflow="ellipsis")
            texts.append(cell)
        made.add_row(*texts)
    return made
