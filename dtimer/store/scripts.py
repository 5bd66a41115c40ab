"""
Load the scripts: plain ``.lua`` files, one verb each, joined with the parts that they use.

Ids and payloads are always passed as arguments. They are never formatted into a script.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

# Ordered so that each part follows the parts on which it depends.
_PARTS = ("guard", "session", "rouse", "events", "replay", "plan", "retime", "settle", "walk")

_LOCAL = re.compile(r"^local (?:function )?(\w+)", re.MULTILINE)
_FORMAT = re.compile(r"^ *-- Format +(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A verb of the store: its source, and the SHA1 under which Redis caches it."""

    name: str
    source: bytes
    sha: bytes

    @property
    def doing(self) -> str:
        """The verb that names the operation in error texts."""
        return "post" if self.name == "post_new" else self.name


def uses(source: str, label: str = "Uses") -> set[str]:
    """Return the parts that a header lists after *label*, which is ``Uses`` or ``Later``."""
    line = re.search(rf"^-- {label} +(.+)$", source, re.MULTILINE)
    return set(line.group(1).split()) if line else set()


@cache
def texts() -> dict[str, str]:
    """
    Return the text of every verb and, under ``parts/``, of every part.

    All files are read at once, before the first call. Later the process may have no descriptor
    left to open a file, or an upgrade may have replaced it.
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
    Return the script of the verb *name*, with the prelude and its parts.

    Creating the functions of a part costs a call as much as a Redis command. So a verb can list
    parts that it seldom needs after ``Later``. Its function ``later`` then creates them, and
    returns one function of each part: the function with the name of the part.
    """
    verb = texts()[name]
    pieces = _parts(*_ordered(uses(verb)))
    if later := _ordered(uses(verb, "Later")):
        returned = f"return {', '.join(later)}"
        pieces += ["local function later()", *_parts(*later), returned, "end"]
    pieces = _with_format("\n".join([*pieces, verb]))
    source = _code("\n".join([*_parts("prelude"), *pieces])).encode()
    return Script(name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


def _with_format(text: str) -> list[str]:
    """
    Return the functions and patterns of ``parts/format.lua`` that a script uses, then its *text*.

    A line ``-- Format`` in the text names those that are placed there, and not before the text.
    """
    places = re.split(r"\n(?=(?:--.*\n)*local )", texts()["parts/format"])
    named = {found[1]: place for place in places if (found := _LOCAL.search(place))}
    text = _FORMAT.sub(lambda line: "\n".join(named.pop(name) for name in line[1].split()), text)
    used = set(re.findall(r"\w+", _code(text)))
    return [*(place for name, place in named.items() if name in used), text]


def _code(text: str) -> str:
    """
    Return *text* without comments and indentation, which halves the size of a post in a pipeline.

    Comments must be on separate lines, and no string may span lines (`tests/unit/test_scripts.py`).
    """
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("--"))


def _ordered(names: set[str]) -> list[str]:
    return [part for part in _PARTS if part in names]


def _parts(*names: str) -> list[str]:
    return [texts()[f"parts/{name}"] for name in names]
