"""The options that every command accepts, before or after its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from dtimer.cli.param_types import NAMESPACE
from dtimer.cli.server import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


def _note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Note a shared option. An option after the command is read later, and so takes precedence."""
    settings = ctx.ensure_object(Settings)
    if value is None or value is False:
        return
    if param.name == "url":
        settings.url = value
        settings.url_is_typed = ctx.get_parameter_source("url") is ParameterSource.COMMANDLINE
    elif param.name == "ns":
        settings.ns = value
    elif param.name == "codec":
        settings.codec_name = value
    else:
        settings.as_json = True


def shared(*, environment: bool = False, ns: bool = True) -> Callable[[Command], Command]:
    """
    Give a command the options that all commands share, and store them in its `Settings`.

    Args:
        environment: Also read them from the environment. Only the group does, so it happens once.
        ns: Include ``--ns``. False for a command that has a namespace of its own.
    """

    def option(*names: str, **attributes: Any) -> Callable[[Command], Command]:
        return click.option(*names, callback=_note, expose_value=False, **attributes)

    def decorate(command: Command) -> Command:
        command = option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")(
            command
        )
        command = option(
            "--codec",
            envvar="DTIMER_CODEC" if environment else None,
            metavar="MODULE:NAME",
            help="The codec of the payloads, as your program has it (env DTIMER_CODEC).",
        )(command)
        if ns:
            command = option(
                "--ns",
                type=NAMESPACE,
                envvar="DTIMER_NS" if environment else None,
                metavar="NAME",
                help="The namespace, dt by default (env DTIMER_NS).",
            )(command)
        return option(
            "--url",
            envvar="DTIMER_URL" if environment else None,
            metavar="URL",
            help="The server: redis://, rediss://, unix://, embedded:///folder (env DTIMER_URL).",
        )(command)

    return decorate


def limit_option(what: str) -> Callable[[Command], Command]:
    """Give a command that lists *what* the option ``--limit``."""
    return click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=50,
        show_default=True,
        metavar="N",
        help=f"The most {what} to list.",
    )
