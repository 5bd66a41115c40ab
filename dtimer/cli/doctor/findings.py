"""What a check has found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.IntEnum):
    """How bad it is; the worst is the exit code of the whole."""

    OK = 0
    WARNING = 1
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how it is, and where it is not well, what to do."""

    check: str
    level: Level
    text: str
    remedy: str = ""


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, text)


def warning(check: str, text: str, remedy: str) -> Finding:
    """It works, and something may be lost, or late."""
    return Finding(check, Level.WARNING, text, remedy)


def error(check: str, text: str, remedy: str) -> Finding:
    """It does not work, or events will be lost."""
    return Finding(check, Level.ERROR, text, remedy)
