"""
The table of options in the reference, made from the rows in ``dtimer/model/options.py``.

The names and texts come from the source, because a string below a field has no name at run time.
The defaults and limits come from the rows, as `dtimer.model.options.validate` uses them.
"""

from __future__ import annotations

import ast
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from dtimer.model import options


class Description(NamedTuple):
    """The type of an option as it is written in the source, and the text below it."""

    type: str
    text: str


def _type_of(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        return ast.unparse(annotation.slice.elts[0])
    return ast.unparse(annotation)


def descriptions() -> dict[str, Description]:
    """Return the description of each option that has one."""
    found = {}
    module = ast.parse(Path(options.__file__).read_text("utf-8"))
    kinds = {"TimerOptions", "RunAtOptions"}
    for kind in module.body:
        if not isinstance(kind, ast.ClassDef) or kind.name not in kinds:
            continue
        for field, below in zip(kind.body, kind.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                text = " ".join(str(below.value.value).split())
                found[field.target.id] = Description(_type_of(field.annotation), text)
    return found


def _default(value: Any) -> str:
    if callable(value):
        return "as described"
    if isinstance(value, timedelta):
        return f"``timedelta(days={value.days})``"
    # Numbers with underscores, as the pages write them.
    plain = isinstance(value, int) and not isinstance(value, bool)
    return f"``{value:_}``" if plain else f"``{value!r}``"


def _limits(row: options.Row) -> str:
    """Return the allowed values; empty if the type or the text says everything."""
    if isinstance(row, options.Other):
        return ""
    most = f"{row.most:_}"
    if isinstance(row, options.Time):
        days, rest = divmod(row.most, 86_400_000)
        most = f"{most} ms" if rest else "a day" if days == 1 else f"{days:_} days"
        return f" Allowed: {row.least:_} ms to {most}."
    return f" Allowed: {row.least:_} to {most}."


def table() -> list[str]:
    """Return the table as lines of reStructuredText."""
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 18 18 16 48",
        "",
        "   * - Option",
        "     - Type",
        "     - Default",
        "     - Meaning",
    ]
    described = descriptions()
    for name, row in options.ROWS.items():
        type_, text = described[name]
        also = "" if name in options.RunAtOptions.__annotations__ else " ``DTimer`` only."
        lines += [
            f"   * - ``{name}``",
            f"     - ``{type_}``",
            f"     - {_default(row.default)}",
            f"     - {text}{_limits(row)}{also}",
        ]
    return lines


def setup(app: Any) -> dict[str, bool]:
    """Add the directive ``option-table`` to Sphinx."""
    # Sphinx is installed where the pages are built, not where a test reads the table.
    from docutils import nodes  # noqa: PLC0415
    from docutils.statemachine import StringList  # noqa: PLC0415
    from sphinx.util.docutils import SphinxDirective  # noqa: PLC0415

    class OptionTable(SphinxDirective):  # type: ignore[misc]
        """The directive ``option-table``, which has no arguments."""

        def run(self) -> list[Any]:
            """Return the table."""
            self.env.note_dependency(options.__file__)
            node = nodes.container()
            self.state.nested_parse(StringList(table(), source=options.__file__), 0, node)
            return list(node.children)

    app.add_directive("option-table", OptionTable)
    return {"parallel_read_safe": True}
