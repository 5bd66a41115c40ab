"""The help of ``dtimer``: its commands under headings, one line of 80 columns each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

#: The longest summary that is not cut: 80 columns minus the name and the margins.
LONGEST = 64


class Grouped(click.Group):
    """A group of commands that lists them under headings, in the order in which they were added."""

    def __init__(self, *arguments: object, **attributes: object) -> None:
        super().__init__(*arguments, **attributes)  # type: ignore[arg-type]
        self._headings: dict[str, list[str]] = {}

    def fill(self, sections: Mapping[str, Sequence[click.Command]]) -> None:
        """Add the commands of each heading."""
        for heading, commands in sections.items():
            for command in commands:
                self.add_command(command)
            self._headings[heading] = [command.name or "" for command in commands]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which the help lists them."""
        return [name for names in self._headings.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, heading by heading."""
        widest = max(map(len, self.commands))
        for heading, names in self._headings.items():
            rows = [
                (name.ljust(widest), self.commands[name].get_short_help_str(LONGEST))
                for name in names
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)
