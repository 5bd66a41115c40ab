"""
The page about the keys in Redis, made from the headers of the scripts.

``lua/parts/prelude.lua`` describes the keys, ``lua/parts/format.lua`` the forms of their values,
and ``lua/parts/schedule.lua`` the state of a schedule. To write the page again:

    python docs/redis_keys.py
"""

from __future__ import annotations

import re
from pathlib import Path

from dtimer.store.namespace import SCHEMA
from dtimer.store.scripts import texts

PAGE = Path(__file__).parent / "reference" / "redis-keys.rst"

_INTRODUCTION = f"""\
The keys in Redis
=================

.. Made by docs/redis_keys.py from the headers of the scripts. Do not change it here.

This page lists all keys of a namespace and their values, in version {SCHEMA} of the stored forms.
The key ``due`` of the namespace ``shop`` is ``dtimer:{{shop}}:due``. All keys have the same hash
tag, so a cluster stores them on one server. No other program should write to them.

A newer dtimer also reads and writes the forms of the version before. It does so until you run
``dtimer upgrade``. A new flag, or a new field of the JSON of a node, needs no new version, because
readers skip what they do not know.
"""


def _entries(text: str, first: str, last: str) -> list[tuple[str, str]]:
    """Return the names and descriptions that a header lists, from one line up to another."""
    begin = text.index(first)
    lines = text[begin : text.index(last, begin)].splitlines()
    indent = re.match(r"-- *", lines[0])[0]
    found: list[tuple[str, str]] = []
    for line in lines:
        if entry := re.match(rf"{indent}(\w+) +(\S.*)", line):
            found.append((entry[1], entry[2]))
        elif more := line.removeprefix("--").strip():
            name, described = found[-1]
            found[-1] = (name, f"{described} {more}")
    return found


def _prose(text: str) -> str:
    """Return a description as reStructuredText: forms as literals, without names of files."""
    text = re.sub(r" \((?:parts|dtimer)/[^)]*\)", "", text)
    return re.sub(r"(?<!\w)'([^']+)'(?!\w)", r"``\1``", text).removesuffix(".") + "."


def _table(title: str, entries: list[tuple[str, str]]) -> list[str]:
    lines = [title, "-" * len(title), "", ".. list-table::", "   :widths: 15 85", ""]
    for name, described in entries:
        lines += [f"   * - ``{name}``", f"     - {_prose(described)}"]
    return [*lines, ""]


def keys() -> list[tuple[str, str]]:
    """Return the name and the description of each key, in order."""
    return _entries(texts()["parts/prelude"], "--   due ", "-- ARGV[1]")


def forms() -> list[tuple[str, str]]:
    """Return the name and the description of each stored form."""
    return _entries(texts()["parts/format"], "-- body ", "-- A script has")


def page() -> str:
    """Return the text of the page."""
    state = _entries(texts()["parts/schedule"], "--   print ", "-- Few events")
    totals = re.findall(r"^  ('.*),$", texts()["stats"], re.MULTILINE)
    names = re.findall(r"'([a-z_]+)'", " ".join(totals))
    lines = [
        *_table("Keys", keys()),
        *_table("Values", forms()),
        *_table("The state of a schedule", state),
        "Totals",
        "------",
        "",
        f"The totals in ``sys`` are {', '.join(f'``{name}``' for name in names)},",
        "``died:<reason>`` for each reason of a dead letter, ``died:other``, and ``struck``: how",
        "many nodes were removed because they were silent.",
    ]
    return "\n".join([_INTRODUCTION, *lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
