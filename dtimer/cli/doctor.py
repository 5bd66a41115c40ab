"""The command ``doctor``."""

from __future__ import annotations

import click

from dtimer.cli.options import shared
from dtimer.cli.output import escaped
from dtimer.cli.server import Settings, chosen_url, opened_store
from dtimer.monitor.findings import Finding, Level

_MARKS = {
    Level.OK: ("ok", "green"),
    Level.WARNING: ("warning", "yellow"),
    Level.ERROR: ("ERROR", "bold red"),
}


@click.command(
    epilog="""
    Nothing is changed, except that a new namespace gets its version. The exit code is 0
    without findings, 1 if there are warnings, and 3 if there are errors.

    \b
    Examples:
      $ dtimer doctor
      $ dtimer doctor --json
    """
)
@shared()
@click.pass_obj
def doctor(settings: Settings) -> int:
    """
    Check a server and a namespace, and say what to do.

    Checks the connection, the server's version, role, persistence and eviction, pub/sub,
    the schema, the permission to run each command that the scripts use, the clocks, and
    whether the keys agree with each other.
    """
    from dtimer.monitor.checks import examine

    worst = Level.OK
    with opened_store(settings) as store:
        for finding in examine(store, chosen_url(settings)):
            worst = max(worst, finding.level)
            _print(settings, finding)
    return int(worst)


def _print(settings: Settings, finding: Finding) -> None:
    word, style = _MARKS[finding.level]
    parts: list[str | tuple[str, str]] = [(f"{word:<8}", style), f"{finding.check:<12}"]
    indent = " " * 20
    # Not a rich table: it would cut a remedy, which users copy.
    lines = _wrapped(escaped(finding.text))
    parts.append(f"\n{indent}".join(lines))
    if finding.remedy:
        for i, line in enumerate(_wrapped(escaped(finding.remedy), less=2)):
            parts.append((f"\n{indent}{'  ' if i else '→ '}{line}", "cyan"))
    settings.output.result(
        *parts,
        check=finding.check,
        level=finding.level.name.lower(),
        text=finding.text,
        remedy=finding.remedy,
    )


def _wrapped(text: str, less: int = 0) -> list[str]:
    import shutil
    import sys
    import textwrap

    if not sys.stdout.isatty():
        return [text]
    width = shutil.get_terminal_size().columns - 20 - less
    return textwrap.wrap(text, max(20, width), break_long_words=False, break_on_hyphens=False)
