"""The question before something is destroyed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def yes_option(command: Command) -> Command:
    """Give a command the option ``--yes``."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(command)


def sure(what: str, *, yes: bool, count: Callable[[], int] | None = None) -> None:
    """
    Go on only when the user is sure; the question goes to stderr.

    Args:
        what: Is about to be done.
        yes: They have said so already.
        count: Tells how many it is about; called only when there is somebody to ask.

    Raises:
        click.UsageError: there is nobody to ask.
        click.Abort: they are not sure.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}: there is nobody here to ask; say --yes")
    number = "" if count is None else f" ({count()})"
    click.confirm(f"{what}{number}?", abort=True, err=True)
