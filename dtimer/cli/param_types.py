"""The types of arguments. Each is checked while the command line is parsed, before any I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from dtimer.cli.durations import parse_duration, parse_expiry, parse_moment, parse_when
from dtimer.errors import OptionError
from dtimer.model.ids import check_id, check_namespace
from dtimer.model.payload import parse

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    # Older versions of click have no generic type.
    _ParamType = click.ParamType


class Checked(_ParamType):
    """
    An argument that a function reads. If the function refuses it, that is a usage error.

    Args:
        name: The name of the type in the help.
        read: Turns the text into the value, or raises an `OptionError`.
    """

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read *value*. click may call this again with the value that was returned."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except OptionError as e:
            self.fail(str(e), param, ctx)


def read_event(text: str) -> dict[str, Any]:
    """
    Read a payload from the command line.

    Raises:
        OptionError: *text* is not a JSON object.
    """
    try:
        event = parse(text)
    except (ValueError, RecursionError) as e:
        raise OptionError(f'it is not JSON ({e}); in a shell: \'{{"msg": "hello"}}\'') from None
    if not isinstance(event, dict):
        raise OptionError('it is not a JSON object; in a shell: \'{"msg": "hello"}\'')
    return event


EVENT = Checked("event", read_event)
DURATION = Checked("duration", parse_duration)
MOMENT = Checked("moment", parse_moment)
EXPIRY = Checked("expiry", parse_expiry)
WHEN = Checked("when", parse_when)
ID = Checked("id", check_id)
NAMESPACE = Checked("namespace", check_namespace)
