"""The results of checks."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.IntEnum):
    """The severity of a finding. The highest one is the exit code of ``dtimer doctor``."""

    OK = 0
    WARNING = 1
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: its level, a text, and a remedy if there is a problem."""

    check: str
    level: Level
    text: str
    remedy: str = ""


def ok(check: str, text: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(check, Level.OK, text)


def warning(check: str, text: str, remedy: str) -> Finding:
    """Return a finding for a server that works, but may lose or delay events."""
    return Finding(check, Level.WARNING, text, remedy)


def error(check: str, text: str, remedy: str) -> Finding:
    """Return a finding for a server that does not work, or will lose events."""
    return Finding(check, Level.ERROR, text, remedy)
