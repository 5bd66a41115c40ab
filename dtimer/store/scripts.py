"""
The scripts: plain ``.lua`` files, one verb each, put together with the parts they use.

No script is made by formatting strings: ids and payloads only ever travel as arguments.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

# In the order of their dependence.
_PARTS = ("guard", "memo", "rouse", "events", "again", "plan", "retime", "settle", "walk")


@dataclass(frozen=True, slots=True)
class Script:
    """A verb of the store: its source, and the SHA1 under which Redis caches it."""

    name: str
    source: bytes
    sha: bytes

    @property
    def doing(self) -> str:
        """What it does, for the words of an error."""
        return "post" if self.name == "mint" else self.name


def uses(source: str, when: str = "Uses") -> set[str]:
    """Return the names of the parts that a verb declares in its header, after *when*."""
    line = re.search(rf"^-- {when} +(.+)$", source, re.MULTILINE)
    return set(line.group(1).split()) if line else set()


@cache
def texts() -> dict[str, str]:
    """
    Return the text of every verb and, under ``parts/``, of every part.

    Read all at once and before the first call: a process that runs must not need a file
    later, when it may have no descriptor for it, or an upgrade may have put another there.
    """
    folder = resources.files(__package__) / "lua"
    found = {}
    for place, prefix in ((folder, ""), (folder / "parts", "parts/")):
        for file in place.iterdir():
            name, dot, kind = file.name.rpartition(".")
            if dot and kind == "lua":
                found[prefix + name] = file.read_text(encoding="utf-8")
    return found


@cache
def load(name: str) -> Script:
    """
    Return the script of the verb *name*, prelude and parts included.

    To make the functions of a part costs a call as much as a command of Redis. So a verb may
    name parts that it seldom needs after ``Later``: its function ``later`` makes them, and
    returns from each the one that is named like it.
    """
    verb = texts()[name]
    pieces = _parts("prelude", *_ordered(uses(verb)))
    if later := _ordered(uses(verb, "Later")):
        returned = f"return {', '.join(later)}"
        pieces += ["local function later()", *_parts(*later), returned, "end"]
    source = _code("\n".join([*pieces, verb])).encode()
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


def _code(text: str) -> str:
    """
    Return *text* without comments and indentation: half of the bytes that a post in a pipe sends.

    Comments are lines of their own, and no string goes over a line (`tests/unit/test_scripts.py`).
    """
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("--"))


def _ordered(names: set[str]) -> list[str]:
    return [part for part in _PARTS if part in names]


def _parts(*names: str) -> list[str]:
    return [texts()[f"parts/{name}"] for name in names]
