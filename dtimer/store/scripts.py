"""
Load the scripts: plain ``.lua`` files, one verb each, joined with the parts that they use.

The header of a verb, which is its opening comment, is its contract. The loader reads these lines:

``Kind``
    ``reads``: the script changes nothing, so a lost reply leaves no doubt about its outcome.
    ``idempotent``: a second call has the same effect as the first. ``once``: the server remembers
    the operation by its name, so a repetition does not act twice.
``Roles``
    The users of Redis that call the script: ``node``, ``producer``. Any other call needs a user
    with all permissions (`dtimer.store.acl`).
``Uses``, ``Later``
    The parts that the script needs. The parts that it seldom needs, each with the function that
    it calls: ``types.check_types``.
``Commands``
    The Redis commands of this file. Each part lists its own.
``Arguments``
    The names of the arguments after the first two. The script reads them as locals.

Ids and payloads are always passed as arguments. They are never formatted into a script.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Literal, NamedTuple, cast

# Ordered so that each part follows the parts on which it depends.
_PARTS = (
    *("types", "session", "wake", "events", "judge", "replay"),
    *("schedule", "retime", "declare", "owners", "settle", "walk"),
)

_SECTION = re.compile(r"^ *--- @section (\S+)$", re.MULTILINE)
_LOCAL = re.compile(r"^local (?:function )?(\w+)", re.MULTILINE)
_FORMAT = re.compile(r"^ *-- Format +(.+)$", re.MULTILINE)

# The prelude names the first two elements of ARGV.
_FIRST_ARGUMENT = 3

Kind = Literal["reads", "idempotent", "once"]


class Argument(NamedTuple):
    """
    An argument of a verb, as its header declares it.

    An argument that ``repeats`` comes last. It stands for all remaining elements of ARGV, and its
    local is the index of the first of them.
    """

    name: str
    number: bool
    repeats: bool


class Header(NamedTuple):
    """The contract of a verb or a part, read from the opening comment of its file."""

    kind: Kind
    roles: frozenset[str]
    uses: tuple[str, ...]
    later: dict[str, str]
    commands: frozenset[str]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """A verb of the store: its source, and the SHA1 under which Redis caches it."""

    name: str
    kind: Kind
    source: bytes
    sha: bytes

    @property
    def doing(self) -> str:
        """The verb that names the operation in error texts."""
        return "post" if self.name == "post_new" else self.name


class Verb(str):
    """The name of a verb that Python calls, with the names of its arguments in order."""

    __slots__ = ("parameters",)

    parameters: tuple[str, ...]

    def in_order(self, **arguments: str) -> list[str]:
        """Return *arguments*, given by name, in the order in which the script reads them."""
        return [arguments[name] for name in self.parameters]


def verb(name: str, *parameters: str) -> Verb:
    """
    Declare that the calling module calls the verb *name* with *parameters*, in this order.

    Raises:
        TypeError: The header of the script has other arguments.
    """
    declared = tuple(f"{a.name}{'...' * a.repeats}" for a in header(name).arguments)
    if parameters != declared:
        raise TypeError(f"{name}.lua has the arguments {declared}, and its caller {parameters}")
    made = Verb(name)
    made.parameters = parameters
    return made


@cache
def texts() -> dict[str, str]:
    """
    Return the text of every file by its name: verbs, ``parts/…``, and sections in other folders.

    All files are read at once, before the first call. Later the process may have no descriptor
    left to open a file, or an upgrade may have replaced it.
    """
    folder = Path(__file__).with_name("lua")
    return {
        file.relative_to(folder).with_suffix("").as_posix(): file.read_text("utf-8")
        for file in folder.rglob("*.lua")
    }


def verbs() -> list[str]:
    """Return the names of all verbs, sorted."""
    return sorted(name for name in texts() if "/" not in name)


@cache
def header(name: str) -> Header:
    """Return the header of the verb *name*, or of a part (``parts/`` and its name)."""
    lines: dict[str, list[str]] = {}
    arguments = []
    for line in takewhile(lambda line: line.startswith("--"), texts()[name].splitlines()):
        label, *words = line[2:].split() or [""]
        if line.startswith(f"-- {label}"):
            lines.setdefault(label, words)
        elif "Arguments" in lines and "Returns" not in lines and line.startswith(f"--   {label}"):
            number, repeats = words[:1] == ["number:"], label.endswith("...")
            arguments.append(Argument(label.rstrip("."), number=number, repeats=repeats))
    later = [function.partition(".") for function in lines.get("Later", ())]
    return Header(
        kind=cast(Kind, " ".join(lines.get("Kind", ()))),
        roles=frozenset(lines.get("Roles", ())),
        uses=_ordered(lines.get("Uses", ())),
        later={part: function for part, _, function in later},
        commands=frozenset(lines.get("Commands", ())),
        arguments=tuple(arguments),
    )


def commands(*names: str) -> set[str]:
    """Return the Redis commands that the verbs *names* run, with their parts, in lower case."""
    files = {"parts/prelude", *names}
    for name in names:
        files |= {f"parts/{part}" for part in (*header(name).uses, *header(name).later)}
    for name in tuple(files):
        files |= set(sections(name))
    return {command for name in files for command in header(name).commands}


def sections(name: str) -> list[str]:
    """Return the names of the sections of a file, in order."""
    text = texts()[name]
    return _SECTION.findall(text) if "@section" in text else []


def _with_sections(name: str) -> str:
    """
    Return the text of a file, with each line ``--- @section`` replaced by that section.

    A section is a piece of a long function. It shares the locals of that function, and its header
    says which of them it reads and sets.
    """
    return _SECTION.sub(lambda line: texts()[line[1]].rstrip("\n"), texts()[name])


@cache
def load(name: str) -> Script:
    """
    Return the script of the verb *name*: the prelude, its parts, its arguments, its code.

    Creating the functions of a part costs a call as much as a Redis command. So a verb can list
    parts that it seldom needs after ``Later``. Its function ``later`` then creates them, and
    returns the functions that the header names, in that order.
    """
    contract = header(name)
    pieces = _parts(*contract.uses)
    if later := contract.later:
        returned = f"return {', '.join(later.values())}"
        pieces += ["local function later()", *_parts(*later), returned, "end"]
    pieces = _with_format("\n".join([*pieces, binding(contract.arguments), _with_sections(name)]))
    source = code("\n".join([*_parts("prelude"), *pieces])).encode()
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
    return Script(name, contract.kind, source, sha)


def _with_format(text: str) -> list[str]:
    """
    Return the functions and patterns of ``parts/format.lua`` that a script uses, then its *text*.

    A line ``-- Format`` in the text names those that are placed there, and not before the text.
    """
    places = re.split(r"\n(?=(?:--.*\n)*local )", texts()["parts/format"])
    named = {found[1]: place for place in places if (found := _LOCAL.search(place))}
    text = _FORMAT.sub(lambda line: "\n".join(named.pop(name) for name in line[1].split()), text)
    used = set(re.findall(r"\w+", code(text)))
    # A function may use a local before it in the file. So visit the last place first.
    for name, place in reversed(named.items()):
        if name in used:
            used.update(re.findall(r"\w+", code(place)))
    return [*(place for name, place in named.items() if name in used), text]


def binding(arguments: tuple[Argument, ...]) -> str:
    """Return the Lua statement that makes *arguments* locals; empty if there are none."""
    if not arguments:
        return ""
    values = []
    for at, (_, number, repeats) in enumerate(arguments, _FIRST_ARGUMENT):
        value = f"ARGV[{at}]"
        values.append(str(at) if repeats else f"tonumber({value})" if number else value)
    return f"local {', '.join(a.name for a in arguments)} = {', '.join(values)}"


def code(text: str) -> str:
    """
    Return *text* without comments and indentation, which halves the size of a post in a pipeline.

    Comments must be on separate lines, and no string may span lines (`tests/unit/test_scripts.py`).
    """
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("--"))


def _ordered(names: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for part in _PARTS if part in names)


def _parts(*names: str) -> list[str]:
    return [_with_sections(f"parts/{name}") for name in names]
