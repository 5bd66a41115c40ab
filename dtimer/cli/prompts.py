"""The confirmation prompt of commands that delete data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def yes_option(command: Command) -> Command:
    """Give a command the option ``--yes``."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(command)


def confirm_or_abort(what: str, *, yes: bool, count: Callable[[], int] | None = None) -> None:
    """
    Ask the user to confirm, on stderr; return only if they do.

    Args:
        what: The action that is about to be done.
        yes: True if the user has confirmed already, by an option.
        count: Returns the number of items affected. Called only if the user is asked.

    Raises:
        click.UsageError: standard input is not a terminal.
        click.Abort: the user does not confirm.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{what}: cannot ask without a terminal; add --yes to confirm")
    number = "" if count is None else f" ({count()})"
    click.confirm(f"{what}{number}?", abort=True, err=True)
